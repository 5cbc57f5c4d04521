//! What a session does while there is no room for what its node sends.

use std::time::{Duration, Instant};

use tapio_schemas::event::{Core, Raw, UnifiedEvent};
use tapio_wire::{Position, message::refusal, session::EdgeEvent};

use super::support::{Frame, Node, PATIENCE, World, frame, now};

/// Events of a large frame.
pub(crate) const LARGE_ROWS: u64 = 64;

/// Text that hardly becomes less when it is compressed.
fn noise(seed: u64, bytes: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b' ' + u8::try_from(state % 95).unwrap())
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// A frame of some hundred KiB.
pub(crate) fn large(node: &Node, sequence: u64) -> Frame {
    let events: Vec<_> = (0..LARGE_ROWS)
        .map(|row| UnifiedEvent {
            core: Core { time_micros: now().0, count: 1, ..Core::default() },
            raw: Some(Raw { format: "noise".to_owned(), body: noise(sequence * LARGE_ROWS + row, 8 << 10) }),
            ..UnifiedEvent::default()
        })
        .collect();
    frame(node.source, Position::new(1, sequence), &events)
}

/// Offers frames until no more are received: the spool is at its quota.
pub(crate) async fn fill(node: &mut Node) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    let mut sequence = 1;
    let (mut received, mut moved_at) = (node.session.received(), Instant::now());
    let mut next = large(node, sequence);
    while moved_at.elapsed() < Duration::from_secs(3) {
        assert!(Instant::now() < deadline && !node.closed, "the spool is not full; closed: {}", node.closed);
        if node.session.offer(next.position, next.bytes.clone()).is_ok() {
            sequence += 1;
            next = large(node, sequence);
        }
        node.step().await;
        if node.session.received() > received {
            (received, moved_at) = (node.session.received(), Instant::now());
        }
    }
    received.sequence.0
}

/// Scenario: the store is away and the spool reaches its quota; a node goes on sending for ten seconds; then it
/// connects again, as a restarted agent would, twice.
/// Guarantees: the session answers its heartbeats all the time and is not ended; a newer one takes its place at once,
/// and no place is left behind; nothing that was received is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_spool_does_not_make_a_session_deaf() {
    let world = World::new();
    let mut config = world.config("mode = \"server\"\nurl = \"http://127.0.0.1:9\"");
    config.state.spool_bytes_max = 40 << 20;
    let running = tapio_aggregator::start(config).await.unwrap();
    let mut node = world.node(&running, "n1", 1).await;
    let received = fill(&mut node).await;
    assert!(received > 30, "{received}");

    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        node.step().await;
        assert!(!node.closed && node.session.is_open(), "{:?}", node.events);
        assert!(!node.events.iter().any(|event| matches!(event, EdgeEvent::Silent)));
    }
    for _ in 0..2 {
        let mut newer = world.node(&running, "n1", 1).await;
        assert_eq!(newer.session.received().sequence.0, received);
        assert_eq!(node.until_refused().await.0, refusal::SUPERSEDED);
        newer.step().await;
        node = newer;
    }
    running.stop().await.unwrap();
}
