//! A story told in frames becomes a finding in the store.

use serde::Deserialize;
use tapio_schemas::{
    address::Address,
    event::{Core, Entity, Kernel, Metric, Network, Trace, UnifiedEvent},
    finding::Finding,
    ids::{SpanId, TraceId},
    intent::{self, EventKind, LinkKind},
    units::{Micros, UnixMicros},
};
use tapio_wire::Position;

use super::support::{PATIENCE, World, engine_is_here, frame, frame_until, now, number, store};

const SHOP: char = 'a';
const PAYMENT: char = 'b';
const PAYMENT_PORT: u16 = 9_090;
const SHOP_PORT: u16 = 8_080;

fn event(
    at: UnixMicros,
    kind: EventKind,
    intent: &str,
    probe: &str,
    container: char,
    pid: u32,
) -> UnifiedEvent {
    UnifiedEvent {
        core: Core {
            time_micros: at.0,
            time_error_micros: 1,
            kind,
            probe: probe.to_owned(),
            count: 1,
            intent: intent.to_owned(),
            ..Core::default()
        },
        entity: Some(Entity {
            container_id: container.to_string().repeat(64),
            pod_uid: format!("pod-{container}"),
            ..Entity::default()
        }),
        kernel: Some(Kernel { pid, tid: pid, start_boot_nanos: u64::from(pid) * 1_000, ..Kernel::default() }),
        ..UnifiedEvent::default()
    }
}

fn address(port: u16) -> (Address, u16) {
    ("127.0.0.1".parse().unwrap(), port)
}

fn listening(at: UnixMicros, container: char, pid: u32, port: u16) -> UnifiedEvent {
    let (local_address, local_port) = address(port);
    UnifiedEvent {
        network: Some(Network {
            local_address,
            local_port,
            protocol: "tcp".to_owned(),
            ..Network::default()
        }),
        ..event(at, EventKind::Network, intent::LISTENING, "tcp_state", container, pid)
    }
}

fn call(at: UnixMicros, intent: &str, probe: &str, trace: Option<TraceId>) -> UnifiedEvent {
    let (remote_address, remote_port) = address(PAYMENT_PORT);
    UnifiedEvent {
        network: Some(Network {
            local_address: remote_address,
            local_port: 40_000,
            remote_address,
            remote_port,
            protocol: "tcp".to_owned(),
            direction: "out".to_owned(),
            ..Network::default()
        }),
        trace: trace.map(|trace_id| Trace {
            trace_id,
            span_id: SpanId(5),
            link: LinkKind::Observed,
            ..Trace::default()
        }),
        ..event(at, EventKind::Network, intent, probe, SHOP, 100)
    }
}

fn served(at: UnixMicros, trace_id: TraceId) -> UnifiedEvent {
    let (local_address, local_port) = address(SHOP_PORT);
    UnifiedEvent {
        network: Some(Network {
            local_address,
            local_port,
            protocol: "http".to_owned(),
            direction: "in".to_owned(),
            method: "GET".to_owned(),
            route: "/checkout".to_owned(),
            status: 500,
            ..Network::default()
        }),
        trace: Some(Trace { trace_id, span_id: SpanId(4), link: LinkKind::Observed, ..Trace::default() }),
        ..event(at, EventKind::Request, intent::REQUEST_SERVED_ERROR, "payload", SHOP, 100)
    }
}

/// payment grows, is killed for memory, shop's calls break, shop answers 500.
pub(crate) fn story(at: UnixMicros) -> Vec<UnifiedEvent> {
    let limit_bytes = 64 << 20;
    let mut growth =
        event(at.minus(Micros::from_secs(5)), EventKind::Memory, intent::MEMORY_GROWTH, "memory", PAYMENT, 0);
    growth.metric = Some(Metric { name: "memory.growth".to_owned(), unit: "By/s".to_owned(), value: 3.2e6 });
    growth.kernel = Some(Kernel { size_bytes: 60 << 20, limit_bytes, ..Kernel::default() });
    let mut kill = event(at, EventKind::Memory, intent::OOM_KILL, "oom_victim", PAYMENT, 200);
    if let Some(kernel) = &mut kill.kernel {
        kernel.size_bytes = 63 << 20;
        kernel.limit_bytes = limit_bytes;
        kernel.command = "payment".to_owned();
    }
    let mut exit =
        event(at.plus(Micros(900)), EventKind::Process, intent::PROCESS_KILLED, "exit", PAYMENT, 200);
    if let Some(kernel) = &mut exit.kernel {
        kernel.signal = 9;
    }
    let trace = TraceId([7; 16]);
    let early = at.minus(Micros::from_secs(8));
    vec![
        listening(early, SHOP, 100, SHOP_PORT),
        listening(early, PAYMENT, 200, PAYMENT_PORT),
        call(early.plus(Micros(500)), intent::CONNECTION_OPENED, "tcp_state", None),
        growth,
        kill,
        exit,
        call(at.plus(Micros(2_000)), intent::CONNECTION_RESET, "tcp_reset_recv", Some(trace)),
        call(at.plus(Micros(2_100)), intent::REQUEST_UNANSWERED, "payload", Some(trace)),
        call(at.plus(Micros(3_000)), intent::CONNECTION_REFUSED, "tcp_state", None),
        served(at.plus(Micros(4_000)), trace),
    ]
}

#[derive(Deserialize)]
struct Row {
    document: String,
}

/// Scenario: a node tells, in one frame, that payment grew, was killed for memory, that shop's calls to it broke and
/// that shop answered 500; later frames only say that time passes. Then the aggregator is restarted.
/// Guarantees: the finding, its cause and the names of both services are in the store within seconds and in memory;
/// after the restart it is known under the same id, and no second row of the same revision appears.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_story_becomes_a_finding() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let pods = r#"{"version":1,"pods":[
        {"pod_uid":"pod-a","namespace":"shop","pod":"shop-1","service":"shop"},
        {"pod_uid":"pod-b","namespace":"shop","pod":"payment-1","service":"payment"}]}"#;
    std::fs::write(world.path().join("identities.json"), pods).unwrap();
    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    node.offer(&frame(node.source, Position::new(1, 1), &story(now()))).await;
    let reader = store(&running);
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut sequence = 1;
    // The watermark moves only while the source says that it lives.
    let found = loop {
        sequence += 1;
        node.offer(&frame(node.source, Position::new(1, sequence), &[])).await;
        node.until_received(sequence).await;
        let rows: Vec<Row> = reader
            .rows("SELECT document FROM tapio.findings ORDER BY revision DESC LIMIT 1", &[])
            .await
            .unwrap();
        if let Some(row) = rows.into_iter().next() {
            break serde_json::from_str::<Finding>(&row.document).unwrap();
        }
        assert!(std::time::Instant::now() < deadline, "no finding came");
        node.step().await;
    };
    assert!(found.title.contains("shop is failing because payment was killed"), "{}", found.title);
    assert_eq!(found.verdict.cause.id, PAYMENT.to_string().repeat(64));
    assert_eq!(running.recent.finding(&found.id).map(|known| known.id.clone()), Some(found.id.clone()));
    running.stop().await.unwrap();

    let running = world.embedded().await;
    let known: Vec<_> = running.recent.findings().iter().map(|known| known.id.clone()).collect();
    assert_eq!(known, std::slice::from_ref(&found.id));
    let mut node = world.node(&running, "n1", 1).await;
    for _ in 0..3 {
        sequence += 1;
        node.offer(&frame(node.source, Position::new(1, sequence), &[])).await;
        node.until_received(sequence).await;
        node.step().await;
    }
    let reader = store(&running);
    assert_eq!(number(&reader, "SELECT uniqExact(id) AS n FROM tapio.findings").await, 1);
    let doubled = "SELECT count() - uniqExact(id, revision) AS n FROM tapio.findings";
    assert_eq!(number(&reader, doubled).await, 0);
    running.stop().await.unwrap();
}

/// Scenario: a node's times are an hour ahead, as those of an agent that has not met its aggregator yet may be; then its
/// clock is set back, and the story of a finding happens there. Another node's clock is right all the while.
/// Guarantees: nothing is refused; the finding comes all the same, and every event is stored once, at the time it tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_hides_no_finding() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    let mut other = world.node(&running, "n2", 1).await;
    let hour = Micros::from_secs(3_600);
    for sequence in 1..=5 {
        let ahead = now().plus(hour);
        let early = event(ahead, EventKind::Process, intent::PROCESS_STARTED, "exec", SHOP, 90);
        node.offer(&frame_until(node.source, Position::new(1, sequence), &[early], ahead)).await;
        other.offer(&frame(other.source, Position::new(1, sequence), &[])).await;
    }
    node.until_received(5).await;
    let told = story(now());
    let mut sequence = 6;
    node.offer(&frame(node.source, Position::new(1, sequence), &told)).await;
    let began = std::time::Instant::now();
    while running.recent.findings().is_empty() {
        sequence += 1;
        node.offer(&frame(node.source, Position::new(1, sequence), &[])).await;
        other.offer(&frame(other.source, Position::new(1, sequence), &[])).await;
        node.until_received(sequence).await;
        other.until_received(sequence).await;
        assert!(began.elapsed() < PATIENCE, "no finding came");
        node.step().await;
    }
    println!("found after {:?}", began.elapsed());
    let title = running.recent.findings().first().map(|finding| finding.title.clone()).unwrap();
    assert!(title.contains("was killed"), "{title}");
    node.until_stored(sequence).await;
    let reader = store(&running);
    let count = "SELECT count() AS n FROM tapio.events WHERE node = 'n1'";
    assert_eq!(number(&reader, count).await, 5 + told.len() as u64);
    let ahead = "SELECT count() AS n FROM tapio.events WHERE time_micros > now64(6) + INTERVAL 50 MINUTE";
    assert_eq!(number(&reader, ahead).await, 5);
    running.stop().await.unwrap();
}
