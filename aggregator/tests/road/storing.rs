//! Frames in, rows out: exactly once, whatever dies on the way.

use std::time::Instant;

use rustix::process::Pid;
use tapio_aggregator::Running;
use tapio_schemas::{
    address::Address,
    event::{Core, Entity, Kernel, Network, Trace, UnifiedEvent},
    ids::{SpanId, TraceId},
    intent::{EventKind, LinkKind, Severity},
};
use tapio_wire::Position;

use super::support::{Node, PATIENCE, World, engine_is_here, frame, now, number, store};

fn event(number: u64) -> UnifiedEvent {
    UnifiedEvent {
        core: Core {
            time_micros: now().0,
            time_error_micros: 7,
            kind: EventKind::Request,
            probe: "payload".to_owned(),
            severity: Severity::Error,
            count: 1,
            intent: "request-served-error".to_owned(),
            ..Core::default()
        },
        trace: Some(Trace {
            trace_id: TraceId([3; 16]),
            span_id: SpanId(number),
            link: LinkKind::Observed,
            ..Trace::default()
        }),
        entity: number.is_multiple_of(2).then(|| Entity {
            pod_uid: "u1".to_owned(),
            container_id: "c".repeat(64),
            ..Entity::default()
        }),
        kernel: Some(Kernel {
            pid: u32::try_from(number).unwrap(),
            command: format!("c{}", number % 3),
            ..Kernel::default()
        }),
        network: Some(Network {
            local_port: 8_080,
            status: 500,
            route: "/orders".to_owned(),
            ..Network::default()
        }),
        ..UnifiedEvent::default()
    }
}

pub(crate) const ROWS: u64 = 50;

pub(crate) async fn send(node: &mut Node, incarnation: u64, sequences: std::ops::RangeInclusive<u64>) {
    for sequence in sequences {
        let events: Vec<_> = (0..ROWS).map(|row| event(sequence * 1_000 + row)).collect();
        let frame = frame(node.source, Position::new(incarnation, sequence), &events);
        node.offer(&frame).await;
    }
}

pub(crate) const DISTINCT: &str =
    "SELECT uniqExact(source_id, incarnation, sequence, row) AS n FROM tapio.events";
pub(crate) const EVENTS: &str = "SELECT count() AS n FROM tapio.events";

/// Scenario: a node ships frames; half of its events are of a pod that the identity file names.
/// Guarantees: every cell of every row is what was sent, names are joined, and frames, ledger and source are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_become_rows() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let names =
        r#"{"version":1,"pods":[{"pod_uid":"u1","namespace":"shop","pod":"payment-1","service":"payment"}]}"#;
    std::fs::write(world.path().join("identities.json"), names).unwrap();
    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    send(&mut node, 1, 1..=4).await;
    node.until_stored(4).await;

    let reader = store(&running);
    assert_eq!(number(&reader, EVENTS).await, 4 * ROWS);
    assert_eq!(number(&reader, DISTINCT).await, 4 * ROWS);
    let exact = "SELECT count() AS n FROM tapio.events WHERE node = 'n1' AND tenant = 'default' AND cluster = 'demo' \
        AND kernel_pid = sequence * 1000 + row AND trace_span_id = kernel_pid AND network_status = 500 \
        AND kernel_command = concat('c', toString(kernel_pid % 3)) AND intent = 'request-served-error' \
        AND network_route = '/orders' AND hex(trace_trace_id) = repeat('03', 16) AND trace_link = 1 AND kind = 5 \
        AND time_error_micros = 7 AND count = 1 AND abs(dateDiff('second', time_micros, now64(6))) < 600 \
        AND if(kernel_pid % 2 = 0, (service, pod, namespace, entity_pod_uid) = ('payment', 'payment-1', 'shop', 'u1'), \
               (service, pod, namespace, entity_pod_uid) = ('', '', '', ''))";
    assert_eq!(number(&reader, exact).await, 4 * ROWS);
    assert_eq!(number(&reader, "SELECT count() AS n FROM tapio.frames WHERE events = 50").await, 4);
    let ledger = "SELECT sum(count) AS n FROM tapio.ledger WHERE stage = 'kernel' AND fate = 'carried'";
    assert_eq!(number(&reader, ledger).await, 4 * ROWS);
    let source = "SELECT count() AS n FROM tapio.sources FINAL WHERE capability LIKE '%payload=failed%' \
        AND spiffe_id = 'spiffe://tapio.test/tenant/default/cluster/demo/node/n1' AND agent_version = '9.8.7' \
        AND kernel_release = '6.1.0-44' AND architecture = 'x86_64' AND limits = '{\"spool_bytes\":268435456}'";
    assert_eq!(number(&reader, source).await, 1);
    running.stop().await.unwrap();
}

/// The engine's process, once it runs and is another than the one that was killed before.
async fn engine_other_than(running: &Running, killed: Option<Pid>, nodes: &mut [Node]) -> Pid {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pid = running.store_pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).unwrap()));
        if let Some(pid) = pid.filter(|pid| Some(*pid) != killed) {
            return pid;
        }
        assert!(Instant::now() < deadline, "the engine did not come back");
        futures_util::future::join_all(nodes.iter_mut().map(Node::step)).await;
    }
}

/// Scenario: three nodes ship frames; the engine's process is killed with SIGKILL, three times, in the middle.
/// Guarantees: every event is stored exactly once, and the nodes are told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_engine_loses_and_doubles_nothing() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let running = world.embedded().await;
    let mut nodes = Vec::new();
    for name in ["n1", "n2", "n3"] {
        nodes.push(world.node(&running, name, 1).await);
    }
    let mut killed = None;
    for round in 0..6_u64 {
        for node in &mut nodes {
            send(node, 1, round * 10 + 1..=round * 10 + 10).await;
        }
        if round % 2 == 1 {
            let pid = engine_other_than(&running, killed, &mut nodes).await;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            killed = Some(pid);
        }
    }
    // Together: a node that nobody listens to meanwhile falls silent, and its session is ended.
    futures_util::future::join_all(nodes.iter_mut().map(|node| node.until_stored(60))).await;
    // The last kill may have come when everything was stored already.
    engine_other_than(&running, killed, &mut nodes).await;
    let reader = store(&running);
    assert_eq!(number(&reader, EVENTS).await, 3 * 60 * ROWS);
    assert_eq!(number(&reader, DISTINCT).await, 3 * 60 * ROWS);
    assert_eq!(number(&reader, "SELECT count() AS n FROM tapio.frames").await, 180);
    let per_minute = "SELECT sum(events) AS n FROM tapio.events_per_minute";
    assert_eq!(number(&reader, per_minute).await, 3 * 60 * ROWS);
    running.stop().await.unwrap();
}

/// Scenario: the aggregator has no store, receives frames and ends; it starts again with the engine, and the node,
/// which was only told "received", connects again and goes on; then it is restarted once more.
/// Guarantees: the node is told where to go on, and every event is stored exactly once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_loses_and_doubles_nothing() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let running = world.without_store().await;
    let mut node = world.node(&running, "n1", 1).await;
    send(&mut node, 1, 1..=20).await;
    node.until_received(20).await;
    running.stop().await.unwrap();

    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    assert_eq!(node.session.received(), Position::new(1, 20));
    send(&mut node, 1, 21..=30).await;
    node.until_received(30).await;
    running.stop().await.unwrap();

    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 2).await;
    send(&mut node, 2, 1..=5).await;
    node.until(
        |event| matches!(event, tapio_wire::session::EdgeEvent::Stored(at) if *at >= Position::new(2, 5)),
    )
    .await;
    let reader = store(&running);
    assert_eq!(number(&reader, EVENTS).await, 35 * ROWS);
    assert_eq!(number(&reader, DISTINCT).await, 35 * ROWS);
    running.stop().await.unwrap();
}

/// Scenario: addresses of both families go through the whole road.
/// Guarantees: ClickHouse shows them as they were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_stay_what_they_are() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    let mut event = event(1);
    event.network = Some(Network {
        local_address: "10.1.2.3".parse::<Address>().unwrap(),
        remote_address: "2001:db8::7".parse::<Address>().unwrap(),
        ..Network::default()
    });
    let frame = frame(node.source, Position::new(1, 1), &[event]);
    node.offer(&frame).await;
    node.until_stored(1).await;
    let reader = store(&running);
    let same = "SELECT count() AS n FROM tapio.events WHERE network_local_address = toIPv6('::ffff:10.1.2.3') \
        AND network_remote_address = toIPv6('2001:db8::7')";
    assert_eq!(number(&reader, same).await, 1);
    running.stop().await.unwrap();
}
