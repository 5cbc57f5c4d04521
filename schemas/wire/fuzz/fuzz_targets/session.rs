//! Any bytes as what the other side of a session says: the first byte says to whom, and in which state it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tapio_schemas::ids::{Incarnation, SourceId};
use tapio_wire::{
    Position,
    session::{AggregatorConfig, AggregatorSession, EdgeConfig, EdgeSession, Now, SourceState},
};

fn sessions(is_open: bool) -> (EdgeSession, AggregatorSession) {
    let now = Now::default();
    let mut edge = EdgeSession::new(EdgeConfig::new(Incarnation(3), "node-1"));
    let mut aggregator = AggregatorSession::new(SourceId([5; 16]), AggregatorConfig::default(), now);
    edge.connect(Position::new(3, 1), now).expect("a short hello");
    if is_open {
        while let Some(bytes) = edge.poll_output() {
            aggregator.handle_bytes(&bytes, now).expect("an honest hello");
        }
        aggregator.welcome(SourceState::default(), now).expect("greeted");
        while let Some(bytes) = aggregator.poll_output() {
            edge.handle_bytes(&bytes, now).expect("an honest welcome");
        }
    }
    (edge, aggregator)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let (mut edge, mut aggregator) = sessions(first & 1 == 1);
    let step = usize::from(first >> 2).max(1) * 16;
    for piece in bytes.chunks(step) {
        let ended = if first & 2 == 2 {
            edge.handle_bytes(piece, Now::default()).is_err()
        } else {
            aggregator.handle_bytes(piece, Now::default()).is_err()
        };
        while edge.poll_output().is_some() || aggregator.poll_output().is_some() {}
        while edge.poll_event().is_some() || aggregator.poll_event().is_some() {}
        if ended {
            return;
        }
    }
    assert!(edge.received().incarnation <= Incarnation(3));
});
