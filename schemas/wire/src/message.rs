//! What crosses a session's byte stream: `u32` length of the body (little-endian), `u8` kind, body.
//!
//! Bodies are checked rkyv archives, of a kind's own struct that never changes once it shipped: what is added comes as
//! a new kind, and a reader skips kinds that it does not know and counts them. The body of a [`Kind::Frame`] is the
//! frame itself, that of a [`Kind::RuleSet`] begins with two numbers and ends with the rule set's bytes.

mod body;
mod codec;

pub use body::{
    Ack, Credit, Drain, Heartbeat, HeartbeatReply, Hello, Host, Refused, RuleSet, RuleSetApplied, Welcome,
    refusal,
};
pub use codec::{Message, MessageFault, MessageReader, encode};

use crate::frame::HEADER_BYTES_MAX;

/// What kind of message it is; the code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The source introduces itself.
    Hello = 1,
    /// The aggregator accepts the session.
    Welcome = 2,
    /// The aggregator does not accept the session, or ends it.
    Refused = 3,
    /// A frame.
    Frame = 4,
    /// What was received and stored.
    Ack = 5,
    /// The source may send more.
    Credit = 6,
    /// A compiled rule set, pushed.
    RuleSet = 7,
    /// The source runs a rule set.
    RuleSetApplied = 8,
    /// The source lives and makes progress.
    Heartbeat = 9,
    /// The answer, with the aggregator's timestamps.
    HeartbeatReply = 10,
    /// The sender will end the session: finish what is under way and come back, elsewhere if possible.
    Drain = 11,
    /// What the source runs on, and what it may use there.
    Host = 12,
}

impl Kind {
    /// The kind of a code, if this version knows it.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refused,
            4 => Self::Frame,
            5 => Self::Ack,
            6 => Self::Credit,
            7 => Self::RuleSet,
            8 => Self::RuleSetApplied,
            9 => Self::Heartbeat,
            10 => Self::HeartbeatReply,
            11 => Self::Drain,
            12 => Self::Host,
            _ => return None,
        })
    }

    /// The longest body of this kind. Longer ones end the session before anything is allocated.
    #[must_use]
    pub const fn body_bytes_max(self) -> usize {
        match self {
            Self::Frame => (4 << 20) + HEADER_BYTES_MAX,
            Self::RuleSet => 4 << 20,
            Self::Hello => 64 << 10,
            Self::Refused | Self::Drain | Self::Host => 4 << 10,
            _ => 256,
        }
    }
}

/// The longest body of a kind that this version does not know and skips.
pub const UNKNOWN_BODY_BYTES_MAX: usize = 4 << 20;

/// The versions of the session protocol that this code speaks, oldest and newest.
pub const PROTOCOL_VERSIONS: (u16, u16) = (1, 1);
