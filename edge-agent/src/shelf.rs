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
use tapio_schemas::ids::{Incarnation, Sequence};
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
    /// The last frame that was appended in this life.
    last: Option<Position>,
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
        Ok(Self { inner: Mutex::new(Inner { spool, index, last: None }), appended: Notify::new() })
    }

    /// Appends a frame.
    pub(crate) fn append(&self, position: Position, frame: &[u8]) -> Result<Shelved, SpoolError> {
        let mut inner = self.lock();
        let appended = inner.spool.append(&[frame])?;
        inner.index.push_back((position, appended.ordinals.start));
        inner.last = Some(position);
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

    /// The oldest frame that is kept; without one, the next that life `incarnation` will make.
    pub(crate) fn oldest_or_next(&self, incarnation: Incarnation) -> Position {
        let inner = self.lock();
        if let Some((oldest, _)) = inner.index.front() {
            return *oldest;
        }
        let made =
            inner.last.filter(|last| last.incarnation == incarnation).map_or(0, |last| last.sequence.0);
        Position { incarnation, sequence: Sequence(made.saturating_add(1)) }
    }

    /// The newest frame that is kept.
    pub(crate) fn newest(&self) -> Option<Position> {
        self.lock().index.back().map(|(position, _)| *position)
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
                    tracing::warn!(
                        reason = gap.reason.label(),
                        from = gap.from.0,
                        until = gap.until.0,
                        "spool has a gap"
                    );
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

#[cfg(test)]
mod tests {
    use tapio_schemas::ids::{FrameId, SourceId};
    use tapio_wire::frame::{FrameEncoder, FrameLimits, FrameMeta};

    use super::*;

    fn frame(position: Position) -> Vec<u8> {
        let id = FrameId {
            source: SourceId([1; 16]),
            incarnation: position.incarnation,
            sequence: position.sequence,
        };
        let mut batch = tapio_schemas::batch::AlignedVec::new();
        tapio_schemas::batch::BatchBuilder::default().finish(&mut batch).unwrap();
        let mut bytes = Vec::new();
        FrameEncoder::new(FrameLimits::default())
            .unwrap()
            .encode(FrameMeta::new(id, 0), &batch, &mut bytes)
            .unwrap();
        bytes
    }

    fn positions(mut frames: Frames) -> Vec<Position> {
        std::iter::from_fn(|| frames.next().unwrap()).map(|(position, _)| position).collect()
    }

    /// Scenario: frames of two lives are shelved, some are stored, the agent is restarted.
    /// Guarantees: reading goes on behind any position, over lives; what is stored is gone; what is not survives; an
    /// empty shelf names the next frame.
    #[test]
    fn frames_stay_until_they_are_stored() {
        let folder = tempfile::tempdir().unwrap();
        let all = [(7, 1), (7, 2), (9, 1), (9, 2)].map(|(life, number)| Position::new(life, number));
        let shelf = Shelf::open(folder.path(), 0).unwrap();
        assert_eq!(shelf.oldest_or_next(Incarnation(7)), all[0]);
        for position in all {
            assert_eq!(shelf.append(position, &frame(position)).unwrap().evicted, 0);
        }
        assert_eq!(positions(shelf.read_after(Position::START)), all);
        assert_eq!(positions(shelf.read_after(all[1])), all[2..]);
        shelf.stored(all[0]).unwrap();
        drop(shelf);
        let shelf = Shelf::open(folder.path(), 0).unwrap();
        assert_eq!((shelf.frames(), shelf.oldest_or_next(Incarnation(11))), (3, all[1]));
        assert_eq!(positions(shelf.read_after(Position::START)), all[1..]);
        shelf.stored(all[3]).unwrap();
        assert_eq!((shelf.newest(), positions(shelf.read_after(all[0]))), (None, vec![]));
        let next = Position::new(11, 1);
        shelf.append(next, &frame(next)).unwrap();
        shelf.stored(next).unwrap();
        assert_eq!(shelf.oldest_or_next(Incarnation(11)), Position::new(11, 2));
        shelf.sync().unwrap();
    }
}
