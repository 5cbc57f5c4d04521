//! The wire between a source and its aggregator, sans-IO: bytes and times are arguments.
//!
//! - [`frame`]: a batch, compressed, checksummed and numbered. The spool stores frames, the session ships them.
//! - [`message`]: what crosses the one byte stream of a session, and its encoding.
//! - [`session`]: the two state machines of a session: hello, credit, acknowledgement, resending, heartbeats, pushes.
//! - [`clock`]: how a source measures its clock against the aggregator's, as NTP does.
//!
//! The crate opens no socket, reads no clock and spawns nothing. What arrives is never trusted: every declared length
//! is checked before anything is allocated for it, and every fault has a name.

pub mod clock;
pub mod frame;
pub mod message;
pub mod session;

use std::fmt;

use tapio_schemas::ids::{FrameId, Incarnation, Sequence, SourceId};

/// A frame's place in its source's life: frames are totally ordered by it, over restarts too.
///
/// The default, (0, 0), stands before every frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// In which of the source's lives.
    pub incarnation: Incarnation,
    /// The place in that life; the first frame is number 1.
    pub sequence: Sequence,
}

impl Position {
    /// The position before every frame.
    pub const START: Self = Self { incarnation: Incarnation(0), sequence: Sequence(0) };

    /// The place of frame `sequence` of life `incarnation`.
    #[must_use]
    pub const fn new(incarnation: u64, sequence: u64) -> Self {
        Self { incarnation: Incarnation(incarnation), sequence: Sequence(sequence) }
    }

    /// The frame at this position of `source`.
    #[must_use]
    pub const fn of_source(self, source: SourceId) -> FrameId {
        FrameId { source, incarnation: self.incarnation, sequence: self.sequence }
    }
}

impl From<FrameId> for Position {
    fn from(frame: FrameId) -> Self {
        Self { incarnation: frame.incarnation, sequence: frame.sequence }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.incarnation.0, self.sequence.0)
    }
}
