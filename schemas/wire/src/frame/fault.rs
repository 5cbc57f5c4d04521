//! What can be wrong with a frame. Every fault has a name for counters and refusals.

use tapio_schemas::{batch::BatchFault, ids::SourceId};
use thiserror::Error;

/// Why a frame is refused. The same bytes fail again, except where the reader's version or dictionaries are to blame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameFault {
    /// There are fewer bytes than a header, or than the header says.
    #[error("the frame ends before its declared length")]
    Truncated,
    /// The bytes do not begin as a frame does.
    #[error("the bytes are no frame: the magic number is missing")]
    BadMagic,
    /// The header's length is impossible.
    #[error("the frame's header declares an impossible length of {0} bytes")]
    HeaderLength(u16),
    /// The header's checksum does not match.
    #[error("the frame's header is corrupt: its checksum does not match")]
    HeaderChecksum,
    /// The batch is of a version that this code does not read: one of the two sides must be upgraded.
    #[error(
        "the frame carries a batch of version {0}, which this reader does not know; upgrade the older side"
    )]
    UnknownBatchVersion(u16),
    /// The payload is compressed with a dictionary that this reader does not have.
    #[error("the frame is compressed with dictionary {0}, which this reader does not have")]
    UnknownDictionary(u32),
    /// A declared length exceeds the reader's limit.
    #[error("the frame declares {declared} bytes of {what}, more than the limit of {limit}")]
    TooLarge {
        /// What is too large: `payload` or `batch`.
        what: &'static str,
        /// The length that the header declares.
        declared: u64,
        /// The limit.
        limit: u64,
    },
    /// There are more bytes than the header says, or the payload holds another number than the header says.
    #[error("the frame's length is not what its header declares")]
    LengthMismatch,
    /// The payload is no zstd frame, or its checksum does not match.
    #[error("the frame's payload is corrupt")]
    CorruptPayload,
    /// The frame names a source other than the one of the certificate that it came with.
    #[error("the frame names source {named}, but it came from source {expected}")]
    WrongSource {
        /// The source that the frame names.
        named: SourceId,
        /// The source that the certificate names.
        expected: SourceId,
    },
    /// Header and batch contradict each other on the batch's version or number of events.
    #[error("the frame's header contradicts its batch: {0}")]
    Contradiction(&'static str),
    /// The batch in it is faulty.
    #[error("the frame's batch is faulty")]
    Batch(#[from] BatchFault),
    /// The compressor refused to work, for lack of memory.
    #[error("the frame could not be compressed")]
    Compress,
}

impl FrameFault {
    /// The fault's name, for counters and refusals.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::BadMagic => "bad-magic",
            Self::HeaderLength(_) => "header-length",
            Self::HeaderChecksum => "header-checksum",
            Self::UnknownBatchVersion(_) => "unknown-batch-version",
            Self::UnknownDictionary(_) => "unknown-dictionary",
            Self::TooLarge { .. } => "too-large",
            Self::LengthMismatch => "length-mismatch",
            Self::CorruptPayload => "corrupt-payload",
            Self::WrongSource { .. } => "wrong-source",
            Self::Contradiction(_) => "contradiction",
            Self::Batch(fault) => fault.name(),
            Self::Compress => "compress",
        }
    }

    /// What whoever runs the two sides can do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::UnknownBatchVersion(_) | Self::UnknownDictionary(_) => {
                "bring agent and aggregator to the same release, the aggregator first"
            }
            Self::TooLarge { .. } | Self::WrongSource { .. } => {
                "no agent makes such a frame by itself: find out who else has this node's certificate and key"
            }
            Self::Compress => "free memory on the node",
            Self::Truncated
            | Self::BadMagic
            | Self::HeaderLength(_)
            | Self::HeaderChecksum
            | Self::LengthMismatch
            | Self::CorruptPayload
            | Self::Contradiction(_)
            | Self::Batch(_) => "if it comes again, check the disk and the memory of the node",
        }
    }
}
