//! The reading end of the ring buffer, for a thread of its own. Views records in place; allocates nothing.

use std::{os::fd::AsFd, time::Duration};

use aya::maps::{Map, MapData, MapError, RingBuf};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tapio_kernel_abi::{BadRecord, RecordRef};

/// What can go wrong while waiting for records.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The ring buffer cannot be mapped.
    #[error("the ring buffer cannot be mapped")]
    Map(#[from] MapError),
    /// Waiting failed.
    #[error("waiting for records failed")]
    Poll(#[source] std::io::Error),
}

/// Records that were no records, by reason. Anything but zero means that object and agent do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BadCounts {
    /// Shorter than a header.
    pub short: u64,
    /// Not at a multiple of eight bytes.
    pub misaligned: u64,
    /// Of a length that is not its kind's.
    pub length: u64,
    /// Of an unknown kind.
    pub kind: u64,
}

impl BadCounts {
    const fn count(&mut self, bad: BadRecord) {
        match bad {
            BadRecord::Short => self.short += 1,
            BadRecord::Misaligned => self.misaligned += 1,
            BadRecord::Length => self.length += 1,
            BadRecord::Kind => self.kind += 1,
        }
    }

    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.short + self.misaligned + self.length + self.kind
    }
}

/// Reads the records in the order in which the kernel reserved them.
pub struct RingReader {
    ring: RingBuf<MapData>,
    bad: BadCounts,
}

impl RingReader {
    pub(super) fn new(map: Map) -> Result<Self, RingError> {
        Ok(Self { ring: RingBuf::try_from(map)?, bad: BadCounts::default() })
    }

    /// Waits until there may be records, at most `timeout`. `false` when it ran out or a signal came.
    ///
    /// # Errors
    /// The kernel refuses to wait; there is no use in trying again.
    pub fn poll(&self, timeout: Duration) -> Result<bool, RingError> {
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut descriptors = [PollFd::from_borrowed_fd(self.ring.as_fd(), PollFlags::IN)];
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(errno) => Err(RingError::Poll(errno.into())),
        }
    }

    /// Visits the records that are there, at most `limit` of them, and frees their place in the ring. Returns how
    /// many it took, bad ones included; fewer than `limit` means that the ring was empty.
    pub fn for_each(&mut self, limit: usize, mut visit: impl FnMut(RecordRef<'_>)) -> usize {
        self.for_each_with_bytes(limit, |record, _| visit(record))
    }

    /// As [`Self::for_each`], with the record's bytes as they left the kernel, for the flight recorder.
    pub fn for_each_with_bytes(
        &mut self,
        limit: usize,
        mut visit: impl FnMut(RecordRef<'_>, &[u8]),
    ) -> usize {
        let mut taken = 0;
        while taken < limit {
            let Some(item) = self.ring.next() else { break };
            match RecordRef::parse(&item) {
                Ok(record) => visit(record, &item),
                Err(bad) => self.bad.count(bad),
            }
            taken += 1;
        }
        taken
    }

    /// Records that were none, since the last call.
    #[must_use]
    pub const fn take_bad(&mut self) -> BadCounts {
        let none = BadCounts { short: 0, misaligned: 0, length: 0, kind: 0 };
        std::mem::replace(&mut self.bad, none)
    }
}
