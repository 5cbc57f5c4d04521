//! What a spool may use and when it must be on the disk.

use std::time::Duration;

use crate::error::SpoolError;
use crate::layout::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};

/// When appended records are forced to the disk.
///
/// A killed process loses nothing under any policy; the policy states what a power cut may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Every append returns only after its records are on the disk.
    EachAppend,
    /// [`crate::Spool::sync_if_due`] does, when the last time is longer ago than this.
    AtMostEvery(Duration),
    /// [`crate::Spool::sync`] does, for callers that commit in groups.
    ByCaller,
    /// Never, not even on `sync`: for disks where a sync would stall something more important.
    Never,
}

/// What happens when the quota is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaPolicy {
    /// The append is refused with [`SpoolError::Full`], and nothing is lost.
    Refuse,
    /// The oldest segment is deleted, and its records are counted in [`crate::Appended::evicted`].
    EvictOldest,
}

/// How a spool is shaped.
#[derive(Debug, Clone)]
pub struct SpoolConfig {
    /// A segment is closed before it would grow past this. No record may be larger.
    pub segment_bytes_max: u64,
    /// All segments together stay below this. At least two segments.
    pub quota_bytes: u64,
    /// What happens at the quota.
    pub quota_policy: QuotaPolicy,
    /// Bytes that stay free on the file system: an append that would leave fewer is refused as on a full disk.
    pub reserve_bytes: u64,
    /// When records are forced to the disk.
    pub sync: SyncPolicy,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            segment_bytes_max: 16 << 20,
            quota_bytes: 256 << 20,
            quota_policy: QuotaPolicy::Refuse,
            reserve_bytes: 0,
            sync: SyncPolicy::AtMostEvery(Duration::from_secs(1)),
        }
    }
}

impl SpoolConfig {
    pub(crate) fn check(&self) -> Result<(), SpoolError> {
        let least = SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + 1;
        if self.segment_bytes_max < least || self.segment_bytes_max > u64::from(u32::MAX) {
            return Err(SpoolError::Config(format!(
                "segment_bytes_max is {}, it must be between {least} and {}",
                self.segment_bytes_max,
                u32::MAX
            )));
        }
        // One segment is being written while another is being given up: with less than two, neither
        // policy could make room.
        if self.quota_bytes < self.segment_bytes_max.saturating_mul(2) {
            return Err(SpoolError::Config(format!(
                "quota_bytes is {}, it must be at least twice segment_bytes_max ({})",
                self.quota_bytes, self.segment_bytes_max
            )));
        }
        Ok(())
    }
}
