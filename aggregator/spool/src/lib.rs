//! Durable bytes in order, on a disk that may fill up and in a process that may be killed.
//!
//! A spool is a directory of segments. A record gets an [`Ordinal`] that is never used twice, is
//! read back in order by any number of [`Reader`]s, and stays until [`Spool::trim_until`] says that
//! it is no longer needed or the quota forces it out, which is counted.
//!
//! The crate must never know what a record means, start a thread, or read a clock to decide an
//! order. It blocks: callers give it a thread of its own. The agent's uplink and the aggregator's
//! intake call it.

pub mod disk;
pub mod incarnation;

mod config;
mod cursor;
mod error;
mod layout;
mod reader;
mod recovery;
mod segment;
mod slots;
mod spool;

pub use config::{QuotaPolicy, SpoolConfig, SyncPolicy};
pub use error::SpoolError;
pub use layout::{ORDINALS_PER_SEGMENT_MAX, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
pub use reader::{Gap, GapReason, Item, Reader};
pub use recovery::{Damage, Recovery};
pub use spool::{Appended, Evicted, Spool, SpoolStats, free_bytes};

/// The place of a record in its spool: rises by one per record, never used twice in a directory.
///
/// Ordinals may jump after damage or a power cut; readers then see a [`Gap`] that says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ordinal(pub u64);

impl Ordinal {
    /// The ordinal of a spool's first record.
    pub const FIRST: Self = Self(0);

    /// The next ordinal.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl std::fmt::Display for Ordinal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}
