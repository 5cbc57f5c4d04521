//! What the intake refuses, and how it says so.

use std::time::Duration;

use tapio_identity::Name;
use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder},
    event::{Core, UnifiedEvent},
    ids::SourceId,
    intent::EventKind,
    ledger::{Fate, Stage},
};
use tapio_wire::{
    Position,
    frame::{FrameEncoder, FrameLimits, FrameMeta},
    message::refusal,
    session::EdgeEvent,
};
use tokio_util::sync::CancellationToken;

use super::support::{Frame, Node, World, engine_is_here, frame, now, number, store};

fn event() -> UnifiedEvent {
    UnifiedEvent {
        core: Core {
            time_micros: now().0,
            kind: EventKind::Process,
            count: 1,
            intent: "process-started".to_owned(),
            ..Core::default()
        },
        ..UnifiedEvent::default()
    }
}

fn first() -> Position {
    Position::new(1, 1)
}

/// Changes bytes in the middle of the payload; the header stays sound.
fn corrupt(source: SourceId) -> Frame {
    let Frame { position, bytes } = frame(source, first(), &[event(), event()]);
    let mut bytes = bytes.to_vec();
    let middle = 96 + (bytes.len() - 96) / 2;
    bytes[middle] ^= 0x55;
    Frame { position, bytes: bytes.into() }
}

/// A frame of some kilobytes whose header says that it unpacks to more than any frame may, or says less than the truth.
fn bomb(source: SourceId, position: Position, lies: bool) -> Frame {
    let zeros = vec![0; 64 << 20];
    let limits = FrameLimits { batch_bytes_max: usize::MAX, ..FrameLimits::default() };
    let meta = FrameMeta::new(position.of_source(source), 1);
    let mut bytes = Vec::new();
    FrameEncoder::new(limits).unwrap().encode(meta, &zeros, &mut bytes).unwrap();
    assert!(bytes.len() < zeros.len() / 200);
    if lies {
        bytes[84..88].copy_from_slice(&1_000_u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..92]);
        bytes[92..96].copy_from_slice(&crc.to_le_bytes());
    }
    Frame { position, bytes: bytes.into() }
}

/// Scenario: one node sends frames that are corrupt, cut short, of another source, of an unknown version, of another
/// century, or bombs that unpack to 64 MiB, each on a connection of its own; a second node sends sound frames all the
/// while. Then the aggregator is started with a store.
/// Guarantees: each is refused by its name, with where it is and what to do, and counted; the other session is not
/// disturbed, and each of its frames is stored once, and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faulty_frames_are_refused_by_name() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let running = world.without_store().await;
    let mut sound = world.node(&running, "sound", 1).await;
    let source = Name::node("tapio.test", "default", "demo", "faulty").unwrap().source_id();

    let short = {
        let Frame { position, bytes } = frame(source, first(), &[event()]);
        Frame { position, bytes: bytes.slice(..50) }
    };
    let unknown = {
        let meta = FrameMeta { batch_version: 9, ..FrameMeta::new(first().of_source(source), 0) };
        let mut bytes = Vec::new();
        FrameEncoder::new(FrameLimits::default()).unwrap().encode(meta, &[0; 64], &mut bytes).unwrap();
        Frame { position: first(), bytes: bytes.into() }
    };
    let mut old = event();
    old.core.time_micros = 1_000_000;
    let cases = [
        ("corrupt-payload", refusal::PROTOCOL, "check the disk", corrupt(source)),
        ("truncated", refusal::PROTOCOL, "check the disk", short),
        ("wrong-source", refusal::PROTOCOL, "who else has", frame(SourceId([9; 16]), first(), &[event()])),
        ("unknown-batch-version", refusal::VERSION, "same release", unknown),
        ("time-out-of-range", refusal::PROTOCOL, "node's clock", frame(source, Position::new(1, 2), &[old])),
        ("too-large", refusal::PROTOCOL, "more than the limit", bomb(source, first(), false)),
        ("corrupt-payload", refusal::PROTOCOL, "frame 1-3", bomb(source, Position::new(1, 3), true)),
    ];
    let mut counts = std::collections::BTreeMap::new();
    for (turn, (fault, code, told, bad)) in (1..).zip(cases) {
        let mut faulty = world.node(&running, "faulty", 1).await;
        faulty.offer(&bad).await;
        let (said, text) = faulty.until_refused().await;
        assert!(text.contains(fault), "{fault}: {text}");
        assert_eq!(said, code, "{fault}");
        assert!(text.contains(told), "{told}: {text}");
        sound.offer(&frame(sound.source, Position::new(1, turn), &[event()])).await;
        sound.until_received(turn).await;
        let metrics = running.registry.encode().unwrap();
        let count = counts.entry(fault).or_insert(0);
        *count += 1;
        assert!(
            metrics.contains(&format!("tapio_intake_frames_refused_total{{reason=\"{fault}\"}} {count}")),
            "{metrics}"
        );
    }
    running.stop().await.unwrap();

    let running = world.embedded().await;
    let turns: u64 = counts.values().sum();
    sound = world.node(&running, "sound", 1).await;
    sound.offer(&frame(sound.source, Position::new(1, turns + 1), &[event()])).await;
    sound.until_stored(turns + 1).await;
    let reader = store(&running);
    let stored = "SELECT count() AS n FROM tapio.events WHERE node = 'sound'";
    assert_eq!(number(&reader, stored).await, turns + 1);
    assert_eq!(number(&reader, "SELECT count() AS n FROM tapio.events").await, turns + 1);
    running.stop().await.unwrap();
}

/// Scenario: a frame that is corrupt on the node's disk is sent, refused, and sent again; sound ones stand behind it.
/// Guarantees: the second time it is given up, counted once as such and once as refused, and acknowledged; what stands
/// behind it passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_stays_corrupt_does_not_block_its_source() {
    let world = World::new();
    let running = world.without_store().await;
    let mut node = world.node(&running, "n1", 1).await;
    let bad = corrupt(node.source);
    node.offer(&bad).await;
    node.until_refused().await;
    let mut node = world.node(&running, "n1", 1).await;
    node.offer(&bad).await;
    node.until_received(1).await;
    node.offer(&frame(node.source, Position::new(1, 2), &[event()])).await;
    node.until_received(2).await;
    let metrics = running.registry.encode().unwrap();
    for (outcome, frames) in [("refused", 1), ("given-up", 1), ("accepted", 1)] {
        let line = format!("tapio_intake_frames_total{{outcome=\"{outcome}\"}} {frames}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    running.stop().await.unwrap();
}

/// Scenario: a frame that is corrupt is given up while the store is there.
/// Guarantees: the ledger says how many events were lost, and why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_is_given_up_stands_in_the_ledger() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let running = world.embedded().await;
    let mut node = world.node(&running, "n1", 1).await;
    let bad = corrupt(node.source);
    node.offer(&bad).await;
    node.until_refused().await;
    let mut node = world.node(&running, "n1", 1).await;
    node.offer(&bad).await;
    node.until_stored(1).await;
    let lost = "SELECT sum(count) AS n FROM tapio.ledger WHERE stage = 'intake' AND fate = 'lost' \
        AND subject = 'events' AND reason = 'corrupt-payload' AND node = 'n1'";
    assert_eq!(number(&store(&running), lost).await, 2);
    running.stop().await.unwrap();
}

/// Scenario: a node gave two frames up, and the one behind them is refused; it connects again and that one is given up.
/// Guarantees: the two count once, when the frame behind them is done with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_counts_once() {
    let world = World::new();
    let running = world.without_store().await;
    let source = Name::node("tapio.test", "default", "demo", "n1").unwrap().source_id();
    let mut bytes = frame(source, Position::new(1, 3), &[event(), event()]).bytes.to_vec();
    let middle = 96 + (bytes.len() - 96) / 2;
    bytes[middle] ^= 0x55;
    let bad = Frame { position: Position::new(1, 3), bytes: bytes.into() };
    for _ in 0..2 {
        let mut node = world.node(&running, "n1", 1).await;
        node.offer(&bad).await;
        node.until(|event| match event {
            EdgeEvent::Received(at) => at.sequence.0 == 3,
            event => matches!(event, EdgeEvent::Refused { .. }),
        })
        .await;
    }
    let metrics = running.registry.encode().unwrap();
    assert!(metrics.contains("tapio_intake_sequences_skipped_total 2"), "{metrics}");
    running.stop().await.unwrap();
}

/// Scenario: a ledger counts something and names no time at which it did; another counts nothing and names none.
/// Guarantees: the first is refused, because its rows would be of 1970 and gone at once; the second passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_without_a_time_is_refused() {
    let world = World::new();
    let running = world.without_store().await;
    let mut node = world.node(&running, "n1", 1).await;
    let timeless = |position: Position, counts: bool| {
        let mut batch = BatchBuilder::default();
        if counts {
            batch.ledger_mut().add(Stage::Kernel, Fate::Lost, "records", "ring-full", 1);
        }
        let mut bytes = AlignedVec::new();
        let summary = batch.finish(&mut bytes).unwrap();
        let meta = FrameMeta::new(position.of_source(node.source), summary.rows);
        let mut out = Vec::new();
        FrameEncoder::new(FrameLimits::default()).unwrap().encode(meta, &bytes, &mut out).unwrap();
        Frame { position, bytes: out.into() }
    };
    let (fine, wrong) = (timeless(first(), false), timeless(Position::new(1, 2), true));
    node.offer(&fine).await;
    node.until_received(1).await;
    node.offer(&wrong).await;
    assert!(node.until_refused().await.1.starts_with("time-out-of-range"));
    running.stop().await.unwrap();
}

/// Scenario: peers whose certificate is of another cluster, of an aggregator, or whose hello names another node.
/// Guarantees: none of them gets a session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_nodes_of_this_cluster_are_served() {
    let world = World::new();
    let running = world.without_store().await;
    for name in [
        Name::node("tapio.test", "default", "other", "n1").unwrap(),
        Name::node("tapio.test", "strangers", "demo", "n1").unwrap(),
        Name::aggregator("tapio.test", "default", "demo", "a2").unwrap(),
    ] {
        // The names differ, so the peer must look for an aggregator of this cluster anyhow.
        let connection = world.connect_as(&running, &name).await;
        let reason = connection.closed().await.to_string();
        assert!(reason.contains("expected"), "{name}: {reason}");
    }
    let name = Name::node("tapio.test", "default", "demo", "n1").unwrap();
    let mut liar = Node::connect(&world, &running, &name, "n2", 1).await;
    let (code, text) = liar.until_refused().await;
    assert_eq!(code, refusal::PROTOCOL);
    assert!(text.contains("n2"), "{text}");
    running.stop().await.unwrap();
}

/// Scenario: an agent restarts and connects before its old connection timed out; then the old life comes back.
/// Guarantees: the newer life is served and the older session told that it is superseded; the older life is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_life_supersedes() {
    let world = World::new();
    let running = world.without_store().await;
    let mut old = world.node(&running, "n1", 1).await;
    let mut new = world.node(&running, "n1", 2).await;
    assert_eq!(old.until_refused().await.0, refusal::SUPERSEDED);
    drop(old);
    let name = Name::node("tapio.test", "default", "demo", "n1").unwrap();
    let mut again = Node::connect(&world, &running, &name, "n1", 1).await;
    assert_eq!(again.until_refused().await.0, refusal::SUPERSEDED);
    new.offer(&frame(new.source, Position::new(2, 1), &[event()])).await;
    new.until_received(1).await;
    running.stop().await.unwrap();
}

/// Scenario: two agents have one identity: one of them is served, the other, an older life, comes again and again; then
/// it gives up, and the newer one goes as well, and the older one tries once more. Then there is a store.
/// Guarantees: metrics and health name the node, the other agent's address and life, and what to do; the older one is
/// told the same, also when the newer one is away, and nothing that it has is taken for sent; what both of them got
/// through is stored once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_with_one_identity_raise_an_alarm() {
    if !engine_is_here() {
        return;
    }
    let world = World::new();
    let running = world.without_store().await;
    let mut old = world.node(&running, "n1", 7).await;
    old.offer(&frame(old.source, Position::new(7, 1), &[event()])).await;
    old.until_received(1).await;
    let mut new = world.node(&running, "n1", 9).await;
    assert_eq!(old.until_refused().await.0, refusal::SUPERSEDED);
    drop(old);
    // A source has two places, and one that was told why it has to go may keep its own for a second.
    let places = Duration::from_millis(1_200);
    tokio::time::sleep(places).await;

    let name = Name::node("tapio.test", "default", "demo", "n1").unwrap();
    let reason = || {
        let status = running.health.status();
        status.reasons.into_iter().find(|reason| reason.starts_with("identities: "))
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let mut sequence = 0;
    let told = loop {
        let mut again = Node::connect(&world, &running, &name, "n1", 7).await;
        let (code, text) = again.until_refused().await;
        assert_eq!(code, refusal::SUPERSEDED);
        assert!(text.contains("at incarnation 9, this one at 7; stop one of the two"), "{text}");
        sequence += 1;
        new.offer(&frame(new.source, Position::new(9, sequence), &[event()])).await;
        new.until_received(sequence).await;
        if let Some(reason) = reason() {
            break reason;
        }
        assert!(std::time::Instant::now() < deadline, "nobody is told of the second agent");
        drop(again);
        tokio::time::sleep(places).await;
    };
    for part in [
        "two agents use the identity of one node: n1",
        "127.0.0.1:",
        "incarnation 7",
        "certificate of its own",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let metrics = running.registry.encode().unwrap();
    assert!(metrics.contains("tapio_intake_contested_identities 1"), "{metrics}");

    drop(new);
    tokio::time::sleep(places).await;
    let mut again = Node::connect(&world, &running, &name, "n1", 7).await;
    assert_eq!(again.until_refused().await.0, refusal::SUPERSEDED);
    running.stop().await.unwrap();
    let running = world.embedded().await;
    let mut new = world.node(&running, "n1", 9).await;
    new.offer(&frame(new.source, Position::new(9, sequence + 1), &[event()])).await;
    new.until_stored(sequence + 1).await;
    let reader = store(&running);
    let distinct = "SELECT uniqExact(source_id, incarnation, sequence, row) AS n FROM tapio.events";
    assert_eq!(number(&reader, "SELECT count() AS n FROM tapio.events").await, sequence + 2);
    assert_eq!(number(&reader, distinct).await, sequence + 2);
    running.stop().await.unwrap();
}

/// Scenario: a node connects with a certificate that is valid for some seconds, and stays.
/// Guarantees: its session ends with the certificate, and is told why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_certificate() {
    let world = World::new();
    let running = world.without_store().await;
    let mut node = world.node_for(&running, "n1", Duration::from_secs(5)).await;
    let (code, text) = node.until_refused().await;
    assert_eq!(code, refusal::PROTOCOL);
    assert!(text.starts_with("certificate-expired"), "{text}");
    running.stop().await.unwrap();
}

/// Scenario: the process is told to end while it starts.
/// Guarantees: it ends in order and soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_can_be_given_up() {
    let world = World::new();
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let store = "mode = \"server\"\nurl = \"http://127.0.0.1:9\"";
    let ended = tapio_aggregator::run(world.config(store), shutdown);
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap().unwrap();
}
