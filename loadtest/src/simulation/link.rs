//! A connection between a source and an aggregator: bytes in order both ways, until it breaks.
//!
//! As QUIC's streams and TCP do, a connection keeps order and loses nothing while it stands. What is lost is what was
//! under way when it broke; what is reordered is what went over different connections. While a link is cut nothing
//! arrives, and both ends find out by themselves, each in its own time: until then one may be open and the other not.

use std::collections::VecDeque;

use bytes::Bytes;
use tapio_wire::session::AggregatorSession;

/// Bytes on their way.
struct Chunk {
    at: u64,
    bytes: Bytes,
}

/// Bytes under way in one direction.
#[derive(Default)]
pub(super) struct Lane(VecDeque<Chunk>);

impl Lane {
    /// Sends bytes that arrive at `at`, or later.
    pub(super) fn send(&mut self, bytes: Bytes, at: u64) {
        let at = self.0.back().map_or(at, |last| at.max(last.at));
        self.0.push_back(Chunk { at, bytes });
    }

    /// What has arrived.
    pub(super) fn arrive(&mut self, now: u64) -> Option<Bytes> {
        if self.0.front().is_some_and(|chunk| chunk.at <= now) {
            return self.0.pop_front().map(|chunk| chunk.bytes);
        }
        None
    }

    /// Loses all but the first `keep` pieces.
    pub(super) fn truncate(&mut self, keep: usize) {
        self.0.truncate(keep);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// One connection.
pub(super) struct Connection {
    pub(super) source: usize,
    /// The aggregator's end, while it has one.
    pub(super) session: Option<AggregatorSession>,
    pub(super) to_aggregator: Lane,
    pub(super) to_source: Lane,
    /// Whether the source still has its end.
    pub(super) has_source: bool,
    /// This path is so much longer than the shortest.
    pub(super) detour_micros: u64,
    /// Nothing arrives before this.
    pub(super) cut_until: u64,
}

impl Connection {
    /// Whether it is of use to nobody any more.
    pub(super) fn is_over(&self) -> bool {
        !self.has_source && (self.session.is_none() || self.to_aggregator.len() == 0)
    }
}
