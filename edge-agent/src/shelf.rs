//! The spool with the place of every frame in it: what the capture side appends to and the uplink reads from.
//!
//! Frames stay until they are stored at the other end, or the quota forces the oldest out, which is counted. The
//! uplink asks by [`Position`], the spool knows ordinals; the index between them is made again at start by reading
//! the frames' headers.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tapio_spool::{Item, Ordinal, QuotaPolicy, Reader, Spool, SpoolConfig, SpoolError, SyncPolicy};
use tapio_wire::{Position, frame::FrameHeader};
use tokio::sync::Notify;

/// A segment of the spool; the quota has room for several.
const SEGMENT_BYTES_MAX: u64 = 8 << 20;
/// The least quota: two segments.
pub(crate) const QUOTA_BYTES_MIN: u64 = 2 * SEGMENT_BYTES_MAX;
/// The power-loss promise: no more than this is lost when the node loses power; a killed agent loses nothing.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// The frames that are not yet stored.
pub(crate) struct Shelf {
    inner: Mutex<Inner>,
    /// A frame was appended.
    pub(crate) appended: Notify,
}

struct Inner {
    spool: Spool,
    index: VecDeque<(Position, Ordinal)>,
}

/// What an append did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shelved {
    /// Frames that the quota forced out.
    pub(crate) evicted: u64,
    /// Frames that are kept.
    pub(crate) frames: u64,
}

impl Shelf {
    /// Opens the spool in `directory` and finds the frames of earlier lives.
    pub(crate) fn open(directory: &Path, quota_bytes: u64) -> Result<Self, SpoolError> {
        let config = SpoolConfig {
            segment_bytes_max: SEGMENT_BYTES_MAX,
            quota_bytes: quota_bytes.max(QUOTA_BYTES_MIN),
            quota_policy: QuotaPolicy::EvictOldest,
            sync: SyncPolicy::AtMostEvery(SYNC_INTERVAL),
        };
        let (spool, recovery) = Spool::open(directory, config)?;
        tracing::info!(?recovery, "spool is open");
        let mut index = VecDeque::new();
        let mut reader = spool.read_from(spool.first());
        while let Some(item) = reader.next_item()? {
            if let Item::Record { ordinal, payload } = item {
                match FrameHeader::parse(payload) {
                    Ok(header) => index.push_back((Position::from(header.meta.id), ordinal)),
                    Err(fault) => tracing::warn!(%fault, "a spooled record is no frame, it is passed over"),
                }
            }
        }
        Ok(Self { inner: Mutex::new(Inner { spool, index }), appended: Notify::new() })
    }

    /// Appends a frame.
    pub(crate) fn append(&self, position: Position, frame: &[u8]) -> Result<Shelved, SpoolError> {
        let mut inner = self.lock();
        let appended = inner.spool.append(&[frame])?;
        inner.index.push_back((position, appended.ordinals.start));
        let first = inner.spool.first();
        while inner.index.front().is_some_and(|(_, ordinal)| *ordinal < first) {
            inner.index.pop_front();
        }
        let frames = u64::try_from(inner.index.len()).unwrap_or(u64::MAX);
        drop(inner);
        self.appended.notify_one();
        Ok(Shelved { evicted: appended.evicted.records, frames })
    }

    /// Forces to the disk what is due.
    pub(crate) fn sync_if_due(&self) -> Result<(), SpoolError> {
        self.lock().spool.sync_if_due()
    }

    /// The oldest frame that is kept.
    pub(crate) fn oldest(&self) -> Option<Position> {
        self.lock().index.front().map(|(position, _)| *position)
    }

    /// How many frames are kept.
    pub(crate) fn frames(&self) -> u64 {
        u64::try_from(self.lock().index.len()).unwrap_or(u64::MAX)
    }

    /// Everything up to `position` is stored: it may go.
    pub(crate) fn stored(&self, position: Position) -> Result<(), SpoolError> {
        let mut inner = self.lock();
        let mut until = None;
        while inner.index.front().is_some_and(|(kept, _)| *kept <= position) {
            until = inner.index.pop_front().map(|(_, ordinal)| ordinal.next());
        }
        match until {
            Some(until) => inner.spool.trim_until(until),
            None => Ok(()),
        }
    }

    /// A reader of the frames behind `position`.
    pub(crate) fn read_after(&self, position: Position) -> Frames {
        let inner = self.lock();
        let at = inner.index.partition_point(|(kept, _)| *kept <= position);
        let from = inner.index.get(at).map_or_else(|| inner.spool.next(), |(_, ordinal)| *ordinal);
        Frames { reader: inner.spool.read_from(from) }
    }

    /// Ends in order.
    pub(crate) fn sync(&self) -> Result<(), SpoolError> {
        self.lock().spool.sync().map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads frames in order.
pub(crate) struct Frames {
    reader: Reader,
}

impl Frames {
    /// The next frame; `None` when all were read. A gap (evicted meanwhile, damaged) is passed over: the other end
    /// sees it in the positions.
    pub(crate) fn next(&mut self) -> Result<Option<(Position, Bytes)>, SpoolError> {
        loop {
            match self.reader.next_item()? {
                None => return Ok(None),
                Some(Item::Gap(gap)) => {
                    tracing::warn!(reason = gap.reason.label(), from = gap.from.0, until = gap.until.0, "spool has a gap");
                }
                Some(Item::Record { payload, .. }) => {
                    if let Ok(header) = FrameHeader::parse(payload) {
                        return Ok(Some((Position::from(header.meta.id), Bytes::copy_from_slice(payload))));
                    }
                }
            }
        }
    }
}
