//! Why a session ends. Every fault has a name for counters and refusals.

use thiserror::Error;

use crate::{Position, frame::FrameFault, message::MessageFault};

/// Why a session must end. The source connects again, later; what it had sent is sent again where that is needed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionFault {
    /// The bytes are no messages.
    #[error("the other side sent what is no message")]
    Message(#[from] MessageFault),
    /// A frame's header is faulty, or names another source.
    #[error("the source sent a faulty frame: {0}")]
    Frame(#[from] FrameFault),
    /// A message came that this side never takes, or not now.
    #[error("a message of kind {0} is not expected here")]
    Unexpected(u8),
    /// The source sent more than it had credit for.
    #[error("the source sent more frames than it had credit for")]
    CreditExceeded,
    /// No protocol version in common: one of the two sides must be upgraded.
    #[error(
        "no protocol version in common: the other side speaks {oldest} to {newest}; upgrade the older side"
    )]
    NoCommonVersion {
        /// The oldest that the other side speaks.
        oldest: u16,
        /// The newest that the other side speaks.
        newest: u16,
    },
    /// The aggregator acknowledged a frame that was not sent to it.
    #[error("the aggregator acknowledged {acknowledged}, but only frames up to {sent} were sent")]
    NotSent {
        /// What it acknowledged.
        acknowledged: Position,
        /// The last frame that was sent.
        sent: Position,
    },
    /// The aggregator has frames of a later life of this source: two processes run with one identity.
    #[error(
        "the aggregator has frames of incarnation {theirs}, later than this process's {ours}: two agents share one identity, stop one of them or give it a certificate of its own"
    )]
    NewerIncarnation {
        /// The later life.
        theirs: u64,
        /// This process's.
        ours: u64,
    },
    /// A frame is numbered 0, or of a life later than the hello said.
    #[error("the frame {0} is not of the life that the source introduced")]
    Position(Position),
    /// The other side does not take what it is sent.
    #[error("too much waits to be sent: the other side does not read")]
    OutputFull,
    /// The session has ended before.
    #[error("the session has ended")]
    Ended,
}

impl SessionFault {
    /// The fault's name, for counters and refusals.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Message(fault) => fault.name(),
            Self::Frame(fault) => fault.name(),
            Self::Unexpected(_) => "unexpected-message",
            Self::CreditExceeded => "credit-exceeded",
            Self::NoCommonVersion { .. } => "no-common-version",
            Self::NotSent { .. } => "acknowledged-not-sent",
            Self::NewerIncarnation { .. } => "newer-incarnation",
            Self::Position(_) => "frame-position",
            Self::OutputFull => "output-full",
            Self::Ended => "session-ended",
        }
    }

    /// What whoever runs the two sides can do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Frame(fault) => fault.advice(),
            Self::Message(_) | Self::Unexpected(_) | Self::NoCommonVersion { .. } => {
                "bring agent and aggregator to the same release, the aggregator first"
            }
            Self::NewerIncarnation { .. } => {
                "stop one of the two agents, or give it a certificate of its own"
            }
            Self::CreditExceeded | Self::NotSent { .. } | Self::Position(_) => {
                "find out who else has this node's certificate and key"
            }
            Self::OutputFull | Self::Ended => {
                "it connects again by itself; if not, look at the road between the two"
            }
        }
    }
}
