//! What the source's session is told, and what it tells.

use tapio_schemas::ids::{Incarnation, RuleSetVersion};
use thiserror::Error;

use crate::{
    Position,
    message::{Host, RuleSet},
};

/// What a source's session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeConfig {
    /// The source's present life.
    pub incarnation: Incarnation,
    /// Its node's name.
    pub node: String,
    /// Its software's version, for people.
    pub agent_version: String,
    /// What works on its node, `probe=state`.
    pub capabilities: Vec<String>,
    /// What it runs on; none is not told.
    pub host: Option<Host>,
    /// The most frames that are held because they are not yet received.
    pub window_frames_max: usize,
    /// The most bytes of frames that are held; one frame is always taken.
    pub window_bytes_max: usize,
}

impl EdgeConfig {
    /// The configuration of a source in its life `incarnation` on `node`, with windows for a small node.
    #[must_use]
    pub fn new(incarnation: Incarnation, node: &str) -> Self {
        Self {
            incarnation,
            node: node.to_owned(),
            agent_version: String::new(),
            capabilities: Vec::new(),
            host: None,
            window_frames_max: 64,
            window_bytes_max: 2 << 20,
        }
    }
}

/// What the source says of itself in heartbeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeStatus {
    /// The rule set that it runs.
    pub rule_set: RuleSetVersion,
    /// The generation of the configuration that it runs.
    pub generation: u64,
    /// Records taken from the kernel since its start.
    pub progress: u64,
    /// Frames in its spool.
    pub spooled_frames: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EdgeEvent {
    /// The session is open. Frames after `received` are wanted; those up to `stored` may be forgotten.
    Welcomed {
        /// The last frame that is durable at the aggregator.
        received: Position,
        /// The last frame that is stored.
        stored: Position,
    },
    /// All frames up to here are durable at the aggregator.
    Received(Position),
    /// All frames up to here are stored: the spool may forget them.
    Stored(Position),
    /// A rule set to run. Answer with [`EdgeSession::rule_set_applied`].
    RuleSet(RuleSet),
    /// The aggregator does not want this session: disconnect. The code is one of [`crate::message::refusal`].
    Refused {
        /// Why, for programs.
        code: u16,
        /// Why, for people.
        text: String,
    },
    /// The aggregator goes away: disconnect and connect elsewhere if possible.
    Draining(String),
    /// The aggregator said nothing for too long: disconnect.
    Silent,
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OfferRefusal {
    /// No session is open: offer after [`EdgeEvent::Welcomed`].
    #[error("no session is open")]
    NotOpen,
    /// As many frames are held as may be: offer again after [`EdgeEvent::Received`].
    #[error("the window is full")]
    WindowFull,
    /// The frame does not stand behind the last one.
    #[error("the frame does not stand behind {after}")]
    OutOfOrder {
        /// The frame behind which the next one must stand.
        after: Position,
    },
    /// The frame is longer than a message may be.
    #[error("the frame is longer than the wire carries")]
    TooLarge,
}
