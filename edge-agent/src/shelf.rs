//! The spool with the place of every frame in it: what the capture side appends to and the uplink reads from.
//!
//! Frames stay until they are stored at the other end, or the quota forces the oldest out, which is counted. The
//! uplink asks by [`Position`], the spool knows ordinals; the index between them is made again at start by reading
//! the frames' headers.
//!
//! The disk is the spool's thread's alone: it appends, syncs, trims, and opens the spool again when a failure has left
//! unknown what is on it. The uplink, which runs with other tasks, reads through file handles of its own and changes
//! only the index: it never waits for an fsync.

mod feed;
mod losses;

use std::{
    collections::{HashSet, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tapio_schemas::ids::{Incarnation, Sequence, SourceId};
use tapio_spool::{
    Item, Ordinal, QuotaPolicy, Reader, Spool, SpoolConfig, SpoolError, SyncPolicy, disk::Disk,
};
use tapio_wire::{Position, frame::FrameHeader};
use tokio::sync::Notify;

pub use self::{
    feed::Feed,
    losses::{Loss, Losses},
};

/// A segment of the spool; the quota has room for several.
const SEGMENT_BYTES_MAX: u64 = 8 << 20;
/// The least quota: two segments.
pub(crate) const QUOTA_BYTES_MIN: u64 = 2 * SEGMENT_BYTES_MAX;
/// The power-loss promise: no more than this is lost when the node loses power; a killed agent loses nothing.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// What is stored is forgotten on the disk this often. A trim that is lost with the agent only means that the next one
/// offers frames which the aggregator knows to be stored.
const TRIM_INTERVAL: Duration = Duration::from_secs(10);
/// The first wait before a spool that cannot be opened again is tried once more; it doubles up to [`REOPEN_MAX`].
const REOPEN_MIN: Duration = Duration::from_millis(500);
/// The longest wait before it is tried once more.
const REOPEN_MAX: Duration = Duration::from_secs(60);

/// How much a shelf may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What is evicted goes by segments of this many bytes.
    pub segment_bytes_max: u64,
    /// All segments together stay below this; at least two of them.
    pub quota_bytes: u64,
}

impl Room {
    /// Room for so many bytes, in segments as nodes have them.
    #[must_use]
    pub fn of_quota(quota_bytes: u64) -> Self {
        Self { segment_bytes_max: SEGMENT_BYTES_MAX, quota_bytes: quota_bytes.max(QUOTA_BYTES_MIN) }
    }
}

/// The frames that are not yet stored.
pub struct Shelf {
    device: Arc<dyn Disk>,
    directory: PathBuf,
    config: SpoolConfig,
    /// Whose frames these are.
    source: SourceId,
    losses: Arc<Losses>,
    /// Held during I/O, by the spool's thread alone. Locked before the index, never after it.
    disk: Mutex<OnDisk>,
    /// Never held during I/O.
    index: Mutex<Index>,
    /// Rises when the spool was opened again: readers of before see nothing new.
    generation: AtomicU64,
    /// A frame was appended.
    pub appended: Notify,
}

struct OnDisk {
    /// None while it cannot be opened.
    spool: Option<Spool>,
    /// It was closed for good.
    ended: bool,
    /// Not opened again before this.
    reopen_at: Instant,
    reopen_wait: Duration,
    trimmed_at: Instant,
}

#[derive(Clone, Copy)]
struct Kept {
    position: Position,
    ordinal: Ordinal,
    events: u32,
}

struct Index {
    kept: VecDeque<Kept>,
    /// The last frame that was appended in this life.
    last: Option<Position>,
    /// Up to here everything is stored.
    stored: Position,
    /// Records below this are of no use any more.
    trim: Option<Ordinal>,
    /// The ordinal behind the last frame that is kept.
    next: Ordinal,
    /// The readers are made from this one.
    reader: Reader,
}

/// A spool that was just opened.
struct Opened {
    spool: Spool,
    kept: VecDeque<Kept>,
    other_sources: Vec<u32>,
    no_frames: u64,
}

impl Shelf {
    /// Opens the spool in `directory` and finds the frames that `source` made in earlier lives. Those of another source,
    /// which the node was before it was renamed, no aggregator takes from this one: they are counted as lost.
    ///
    /// # Errors
    /// When the spool cannot be opened or read.
    pub fn open(
        device: Arc<dyn Disk>,
        directory: &Path,
        room: Room,
        source: SourceId,
        losses: Arc<Losses>,
        now: Instant,
    ) -> Result<Self, SpoolError> {
        let config = SpoolConfig {
            segment_bytes_max: room.segment_bytes_max,
            quota_bytes: room.quota_bytes,
            quota_policy: QuotaPolicy::EvictOldest,
            reserve_bytes: 0,
            sync: SyncPolicy::AtMostEvery(SYNC_INTERVAL),
        };
        let Opened { spool, kept, other_sources, no_frames } =
            open_spool(&device, directory, &config, source)?;
        if !other_sources.is_empty() {
            let frames = other_sources.len();
            tracing::warn!(frames, %source, "the spool has frames of another source, they are given up");
        }
        other_sources.into_iter().for_each(|events| losses.add(Loss::OtherSource, events));
        (0..no_frames).for_each(|_| losses.add(Loss::NoFrame, 0));
        let index = Index {
            kept,
            last: None,
            stored: Position::START,
            trim: None,
            next: spool.next(),
            reader: spool.read_from(spool.first()),
        };
        let disk = OnDisk {
            spool: Some(spool),
            ended: false,
            reopen_at: now,
            reopen_wait: REOPEN_MIN,
            trimmed_at: now,
        };
        Ok(Self {
            device,
            directory: directory.to_owned(),
            config,
            source,
            losses,
            disk: Mutex::new(disk),
            index: Mutex::new(index),
            generation: AtomicU64::new(0),
            appended: Notify::new(),
        })
    }

    /// Appends a frame of `events` events. One that the spool does not take is counted as lost.
    ///
    /// # Errors
    /// Why the spool did not take it; the frame is then counted.
    pub fn append(
        &self,
        position: Position,
        events: u32,
        frame: &[u8],
        now: Instant,
    ) -> Result<(), SpoolError> {
        let mut disk = self.disk();
        let mut written = self.write(&mut disk, frame);
        if matches!(written, Err(SpoolError::Poisoned { .. })) {
            written = self.reopen(&mut disk, now).and_then(|()| self.write(&mut disk, frame));
        }
        let (ordinal, first) = written.inspect_err(|_error| self.losses.add(Loss::Refused, events))?;
        let mut index = self.index();
        index.last = Some(position);
        index.next = ordinal.next();
        if position > index.stored {
            index.kept.push_back(Kept { position, ordinal, events });
        } else {
            // The uplink was faster: it has read the frame, and it is stored already.
            index.trim = Some(ordinal.next());
        }
        while let Some(evicted) = index.kept.front().copied().filter(|kept| kept.ordinal < first) {
            index.kept.pop_front();
            self.losses.add(Loss::Quota, evicted.events);
        }
        drop(index);
        self.appended.notify_one();
        Ok(())
    }

    /// Writes a record; returns its ordinal, and the oldest that is still there.
    fn write(&self, disk: &mut OnDisk, frame: &[u8]) -> Result<(Ordinal, Ordinal), SpoolError> {
        let spool = disk.spool.as_mut().ok_or_else(|| self.closed())?;
        let ordinal = spool.next();
        match spool.append(&[frame]) {
            Ok(_appended) => {}
            // It is there, and was only not forced to the disk.
            Err(error) if spool.next() > ordinal => {
                tracing::error!(%error, "the spool's end is not on the disk");
            }
            Err(error) => return Err(error),
        }
        Ok((ordinal, spool.first()))
    }

    fn closed(&self) -> SpoolError {
        SpoolError::Poisoned { dir: self.directory.clone(), reason: "it is not open".to_owned() }
    }

    /// Does what is due on the disk: forces it out, forgets what is stored, opens the spool again after a failure.
    ///
    /// # Errors
    /// When the spool's disk fails, or it cannot be opened again yet.
    pub fn tend(&self, now: Instant) -> Result<(), SpoolError> {
        let mut disk = self.disk();
        let is_due = now.saturating_duration_since(disk.trimmed_at) >= TRIM_INTERVAL;
        let tended = if is_due { self.trim(&mut disk, now) } else { Ok(()) };
        let tended = tended.and_then(|()| {
            let spool = disk.spool.as_mut().ok_or_else(|| self.closed())?;
            spool.sync_if_due(now)
        });
        match tended {
            Err(SpoolError::Poisoned { .. }) => self.reopen(&mut disk, now),
            tended => tended,
        }
    }

    fn trim(&self, disk: &mut OnDisk, now: Instant) -> Result<(), SpoolError> {
        disk.trimmed_at = now;
        let spool = disk.spool.as_mut().ok_or_else(|| self.closed())?;
        let until = self.index().trim;
        until.map_or(Ok(()), |until| spool.trim_until(until))
    }

    /// Opens the spool again: only that tells what is on the disk.
    fn reopen(&self, disk: &mut OnDisk, now: Instant) -> Result<(), SpoolError> {
        if disk.ended || now < disk.reopen_at {
            return Err(self.closed());
        }
        // First, because the lock of its directory goes with it.
        disk.spool = None;
        let opened =
            open_spool(&self.device, &self.directory, &self.config, self.source).inspect_err(|_error| {
                disk.reopen_at = now + disk.reopen_wait;
                disk.reopen_wait = (disk.reopen_wait * 2).min(REOPEN_MAX);
            })?;
        disk.reopen_wait = REOPEN_MIN;
        disk.reopen_at = now + REOPEN_MIN;
        let mut index = self.index();
        let there: HashSet<Position> = opened.kept.iter().map(|kept| kept.position).collect();
        for gone in index.kept.iter().filter(|kept| !there.contains(&kept.position)) {
            self.losses.add(Loss::Damaged, gone.events);
        }
        let stored = index.stored;
        index.kept = opened.kept.into_iter().filter(|kept| kept.position > stored).collect();
        // What was given up stays so: it would only be found again.
        index.next = opened.spool.next();
        index.reader = opened.spool.read_from(opened.spool.first());
        self.generation.fetch_add(1, Ordering::Release);
        drop(index);
        disk.spool = Some(opened.spool);
        self.appended.notify_one();
        tracing::warn!("the spool was opened again");
        Ok(())
    }

    /// The oldest frame that is kept; without one, the next that life `incarnation` will make.
    pub fn oldest_or_next(&self, incarnation: Incarnation) -> Position {
        let index = self.index();
        if let Some(oldest) = index.kept.front() {
            return oldest.position;
        }
        let made =
            index.last.filter(|last| last.incarnation == incarnation).map_or(0, |last| last.sequence.0);
        Position { incarnation, sequence: Sequence(made.saturating_add(1)) }
    }

    /// The newest frame that is kept.
    pub fn newest(&self) -> Option<Position> {
        self.index().kept.back().map(|kept| kept.position)
    }

    /// How many frames are kept.
    pub fn frames(&self) -> u64 {
        u64::try_from(self.index().kept.len()).unwrap_or(u64::MAX)
    }

    /// Everything up to `position` is stored: it may go, and is removed from the disk with the next trim.
    pub fn stored(&self, position: Position) {
        let mut index = self.index();
        index.stored = index.stored.max(position);
        while let Some(stored) = index.kept.front().copied().filter(|kept| kept.position <= position) {
            index.kept.pop_front();
            index.trim = Some(stored.ordinal.next());
        }
    }

    /// The frame at `position` will never be shipped: counts it as lost, once.
    pub fn give_up(&self, position: Position, loss: Loss) {
        let mut index = self.index();
        if let Ok(at) = index.kept.binary_search_by_key(&position, |kept| kept.position)
            && let Some(kept) = index.kept.remove(at)
        {
            self.losses.add(loss, kept.events);
        }
    }

    /// A reader of the frames behind `position`.
    pub fn read_after(&self, position: Position) -> Frames {
        let index = self.index();
        let at = index.kept.partition_point(|kept| kept.position <= position);
        let from = index.kept.get(at).map_or(index.next, |kept| kept.ordinal);
        let generation = self.generation.load(Ordering::Acquire);
        Frames { reader: index.reader.at(from), source: self.source, generation }
    }

    /// Whether `frames` reads from the spool as it was opened last.
    pub fn is_current(&self, frames: &Frames) -> bool {
        frames.generation == self.generation.load(Ordering::Acquire)
    }

    /// Ends in order. Nothing can be appended any more.
    ///
    /// # Errors
    /// When the spool's end cannot be forced to the disk.
    pub fn end(&self, now: Instant) -> Result<(), SpoolError> {
        let mut disk = self.disk();
        self.trim(&mut disk, now)?;
        disk.ended = true;
        disk.spool.take().map_or(Ok(()), Spool::close)
    }

    fn disk(&self) -> MutexGuard<'_, OnDisk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_spool(
    device: &Arc<dyn Disk>,
    directory: &Path,
    config: &SpoolConfig,
    source: SourceId,
) -> Result<Opened, SpoolError> {
    let (spool, recovery) = Spool::open_on(Arc::clone(device), directory, config.clone())?;
    tracing::info!(?recovery, "spool is open");
    let (mut kept, mut other_sources, mut no_frames) = (VecDeque::new(), Vec::new(), 0);
    let mut reader = spool.read_from(spool.first());
    while let Some(item) = reader.next_item()? {
        let Item::Record { ordinal, payload } = item else { continue };
        match FrameHeader::parse(payload) {
            Ok(header) if header.meta.id.source == source => {
                let position = Position::from(header.meta.id);
                kept.push_back(Kept { position, ordinal, events: header.meta.events });
            }
            Ok(header) => other_sources.push(header.meta.events),
            Err(fault) => {
                no_frames += 1;
                tracing::warn!(%fault, "a spooled record is no frame, it is passed over");
            }
        }
    }
    Ok(Opened { spool, kept, other_sources, no_frames })
}

/// Reads frames in order.
pub struct Frames {
    reader: Reader,
    source: SourceId,
    generation: u64,
}

impl Frames {
    /// The next frame of this source; `None` when all were read. A gap (evicted meanwhile, damaged) is passed over: the
    /// other end sees it in the positions.
    ///
    /// # Errors
    /// When the system refuses to read.
    pub fn next_frame(&mut self) -> Result<Option<(Position, Bytes)>, SpoolError> {
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
                    // What is no frame, or another source's, was counted when the spool was opened.
                    if let Ok(header) = FrameHeader::parse(payload)
                        && header.meta.id.source == self.source
                    {
                        return Ok(Some((Position::from(header.meta.id), Bytes::copy_from_slice(payload))));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
