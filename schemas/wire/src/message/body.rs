//! The bodies of messages. Their shapes are frozen: what is added comes as a new kind.

use bytes::Bytes;
use rkyv::{Archive, Deserialize, Serialize};
use tapio_schemas::ids::RuleSetVersion;

/// Codes of [`Refused`].
pub mod refusal {
    /// No protocol or batch version in common: one of the two sides must be upgraded.
    pub const VERSION: u16 = 1;
    /// A session of a newer incarnation of the same source took over.
    pub const SUPERSEDED: u16 = 2;
    /// Another aggregator owns this source now.
    pub const NOT_OWNER: u16 = 3;
    /// The aggregator is going away.
    pub const DRAINING: u16 = 4;
    /// What the source sent is not what the protocol allows.
    pub const PROTOCOL: u16 = 5;
    /// The aggregator has no room for another source.
    pub const FULL: u16 = 6;
}

/// The source introduces itself; the first message of every connection.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The oldest protocol version that it speaks.
    pub protocol_oldest: u16,
    /// The newest protocol version that it speaks.
    pub protocol_newest: u16,
    /// The version of the batches that it writes.
    pub batch_version: u16,
    /// Its software's version, for people.
    pub agent_version: String,
    /// Its node's name.
    pub node: String,
    /// Its present life.
    pub incarnation: u64,
    /// The oldest frame that it still has because it is not known to be stored: its incarnation.
    pub oldest_incarnation: u64,
    /// The sequence of that frame.
    pub oldest_sequence: u64,
    /// What works on its node, `probe=state`.
    pub capabilities: Vec<String>,
    /// When it sent this, Unix microseconds of its clock.
    pub sent_micros: u64,
}

/// The aggregator accepts the session.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol version that this session speaks.
    pub protocol: u16,
    /// How many frames the source may send before it gets more credit.
    pub credit_frames: u32,
    /// How many bytes of frames.
    pub credit_bytes: u64,
    /// The last frame that is durable at the aggregator; sending goes on behind it.
    pub received_incarnation: u64,
    /// Its sequence.
    pub received_sequence: u64,
    /// The last frame that is stored, as all before it are.
    pub stored_incarnation: u64,
    /// Its sequence.
    pub stored_sequence: u64,
    /// How often the source shall send heartbeats.
    pub heartbeat_interval_micros: u64,
    /// How wrong the aggregator's clock may be.
    pub clock_error_micros: u64,
    /// When the hello was sent, as it says.
    pub hello_sent_micros: u64,
    /// When the hello was received, by the aggregator's clock.
    pub hello_received_micros: u64,
    /// When this was sent, by the aggregator's clock.
    pub sent_micros: u64,
}

/// The aggregator does not accept the session, or ends it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Why, for programs: one of [`refusal`].
    pub code: u16,
    /// Why, for people.
    pub text: String,
}

/// What was received and what was stored. Both only ever go up within a connection.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// The last frame that is durable at the aggregator: its incarnation.
    pub received_incarnation: u64,
    /// Its sequence.
    pub received_sequence: u64,
    /// The last frame that is stored, as all before it are: its incarnation.
    pub stored_incarnation: u64,
    /// Its sequence.
    pub stored_sequence: u64,
}

/// The source may send this much more.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Frames.
    pub frames: u32,
    /// Bytes of frames.
    pub bytes: u64,
}

/// A compiled rule set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// Its version.
    pub version: RuleSetVersion,
    /// The generation of the configuration that brought it.
    pub generation: u64,
    /// The compiled rule set.
    pub bytes: Bytes,
}

/// The source runs a rule set from now on.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleSetApplied {
    /// Its version.
    pub version: u64,
}

/// The source lives and makes progress.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// When it sent this, Unix microseconds of its clock.
    pub sent_micros: u64,
    /// The rule set that it runs.
    pub rule_set: u64,
    /// The generation of the configuration that it runs.
    pub generation: u64,
    /// Records taken from the kernel since its start: a number that stands still tells of a dead pipeline.
    pub progress: u64,
    /// Frames in its spool.
    pub spooled_frames: u64,
}

/// The answer to a heartbeat.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// When the heartbeat was sent, as it says.
    pub heartbeat_sent_micros: u64,
    /// When it was received, by the aggregator's clock.
    pub received_micros: u64,
    /// When this was sent, by the aggregator's clock.
    pub sent_micros: u64,
}

/// The sender will end the session.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Drain {
    /// Why, for people.
    pub reason: String,
}

/// What a source runs on, and what it may use there. Sent once the session is open.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The kernel's release, as `uname -r` says it.
    pub kernel_release: String,
    /// The machine's architecture, as `uname -m` says it.
    pub architecture: String,
    /// What the source's configuration allows it, by name, in the unit that the name ends with.
    pub limits: Vec<(String, u64)>,
}
