//! The writer: appends, syncs, trims, and keeps within the quota.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::Ordinal;
use crate::config::{QuotaPolicy, SpoolConfig, SyncPolicy};
use crate::cursor::{Cursor, CursorFile, sync_dir};
use crate::disk::{Disk, DiskFile, Lock, RealDisk};
use crate::error::SpoolError;
use crate::layout::{
    ORDINALS_PER_SEGMENT_MAX, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, encode_record,
};
use crate::reader::Reader;
use crate::recovery::{self, Recovery};
use crate::segment::{self, Segment};

/// The owner of a spool's directory, and its only writer.
#[derive(Debug)]
pub struct Spool {
    config: SpoolConfig,
    shared: Arc<Shared>,
    /// Held for as long as the spool lives: the lock goes with it.
    _lock: Box<dyn Lock>,
    boot_id: Option<[u8; 16]>,
    active: Active,
    cursor: CursorFile,
    /// Bytes of all segments, the active one included.
    used_bytes: u64,
    synced: Ordinal,
    /// When [`Spool::sync_if_due`] last found everything on the disk.
    synced_at: Option<Instant>,
    buffer: Vec<u8>,
    stats: SpoolStats,
    poisoned: Option<String>,
}

/// What the writer and the readers both know.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    /// The next ordinal: every record below it is whole in its file.
    committed: AtomicU64,
    /// Rising by base; never locked during I/O.
    segments: Mutex<Vec<Segment>>,
}

#[derive(Debug)]
struct Active {
    base: Ordinal,
    file: Box<dyn DiskFile>,
    bytes: u64,
}

/// What an append did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The records' ordinals.
    pub ordinals: Range<Ordinal>,
    /// What had to go to make room.
    pub evicted: Evicted,
}

/// Records that the quota forced out before they were trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evicted {
    /// How many.
    pub records: u64,
    /// Bytes of their segments.
    pub bytes: u64,
}

/// Counts since the spool was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoolStats {
    /// Records appended.
    pub appended_records: u64,
    /// Bytes appended, headers included.
    pub appended_bytes: u64,
    /// Appends refused because the quota was reached.
    pub refused_full: u64,
    /// Appends refused because the disk was full.
    pub refused_disk_full: u64,
    /// What the quota forced out.
    pub evicted: Evicted,
    /// Times that records were forced to the disk.
    pub syncs: u64,
}

impl Spool {
    /// Opens the spool in `dir`, making it where there is none, and repairs what a crash left.
    ///
    /// # Errors
    /// When the configuration cannot work, another process owns the directory, or the system refuses.
    pub fn open(dir: &Path, config: SpoolConfig) -> Result<(Self, Recovery), SpoolError> {
        Self::open_on(Arc::new(RealDisk), dir, config)
    }

    /// [`Spool::open`] on any disk.
    ///
    /// # Errors
    /// See [`Spool::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: SpoolConfig,
    ) -> Result<(Self, Recovery), SpoolError> {
        config.check()?;
        disk.create_dir_all(dir).map_err(|error| SpoolError::write("create", dir, dir, error))?;
        let lock = lock(&*disk, dir)?;
        let mut cursor = CursorFile::open(&*disk, dir)?;
        let boot_id = disk.boot_id();
        let recovered = recovery::recover(&*disk, dir, &cursor.get(), boot_id)?;
        if cursor.get().closed_at.is_some() {
            // From the first append on the orderly end is no longer the end.
            cursor.store(Cursor { closed_at: None, ..cursor.get() }, true)?;
        }

        let durable = config.sync != SyncPolicy::Never;
        let mut segments = recovered.segments;
        let active = match (recovered.active, segments.last()) {
            (Some((file, bytes)), Some(last)) => Active { base: last.base, file, bytes },
            _ => {
                let header = SegmentHeader {
                    base: recovered.next,
                    previous_end: if segments.is_empty() { recovered.next } else { recovered.end },
                    boot_id: boot_id.unwrap_or_default(),
                };
                let file = segment::create(&*disk, dir, &header, durable)?;
                segments.push(Segment::active(recovered.next));
                Active { base: recovered.next, file, bytes: SEGMENT_HEADER_BYTES }
            }
        };
        let used_bytes = segments.iter().map(|segment| segment.bytes).sum();
        let shared = Shared {
            disk,
            dir: dir.to_owned(),
            committed: AtomicU64::new(recovered.next.0),
            segments: Mutex::new(segments),
        };
        let mut spool = Self {
            config,
            shared: Arc::new(shared),
            _lock: lock,
            boot_id,
            active,
            cursor,
            used_bytes,
            synced: recovered.next,
            synced_at: None,
            buffer: Vec::new(),
            stats: SpoolStats::default(),
            poisoned: None,
        };
        // What a killed process wrote may still be in the page cache only.
        spool.force()?;
        spool.remove_trimmed()?;
        Ok((spool, recovered.report))
    }

    /// Appends one record, given in parts.
    ///
    /// # Errors
    /// See [`Spool::append_batch`].
    pub fn append(&mut self, parts: &[&[u8]]) -> Result<Appended, SpoolError> {
        self.append_batch(&[parts])
    }

    /// Appends records with one write. Either all are appended or none.
    ///
    /// (A crash during the call may leave the first few of them.)
    ///
    /// # Errors
    /// `TooLarge`, `Full` and `DiskFull` leave the spool as it was, except for what was evicted, which
    /// [`Spool::stats`] counts; `Poisoned` means that it must be reopened.
    pub fn append_batch(&mut self, records: &[&[&[u8]]]) -> Result<Appended, SpoolError> {
        self.check_sound()?;
        let bytes = self.check_size(records)?;
        let evicted_before = self.stats.evicted;
        let count = records.len() as u64;
        if self.active.bytes.saturating_add(bytes) > self.config.segment_bytes_max
            || self.next().0.saturating_add(count)
                > self.active.base.0.saturating_add(ORDINALS_PER_SEGMENT_MAX)
        {
            self.make_room(bytes.saturating_add(SEGMENT_HEADER_BYTES))?;
            self.roll()?;
        } else {
            self.make_room(bytes)?;
        }

        let first = self.next();
        let until = Ordinal(first.0.saturating_add(count));
        self.encode(records, first);
        self.write()?;
        self.shared.committed.store(until.0, Ordering::Release);
        self.stats.appended_records += count;
        self.stats.appended_bytes += bytes;
        match self.config.sync {
            SyncPolicy::EachAppend => self.force()?,
            SyncPolicy::AtMostEvery(_) | SyncPolicy::ByCaller | SyncPolicy::Never => {}
        }
        let evicted = Evicted {
            records: self.stats.evicted.records - evicted_before.records,
            bytes: self.stats.evicted.bytes - evicted_before.bytes,
        };
        Ok(Appended { ordinals: first..until, evicted })
    }

    /// Forces what was appended to the disk and returns the ordinal below which everything is there.
    /// Does nothing under [`SyncPolicy::Never`].
    ///
    /// # Errors
    /// A failed sync poisons the spool: what the kernel still holds of the data is unknown.
    pub fn sync(&mut self) -> Result<Ordinal, SpoolError> {
        self.check_sound()?;
        self.force()?;
        Ok(self.synced)
    }

    /// Under [`SyncPolicy::AtMostEvery`]: syncs if something is not on the disk and the interval is over since that was
    /// last so. To be called after each append, and now and then by whoever has gone quiet.
    ///
    /// # Errors
    /// See [`Spool::sync`].
    pub fn sync_if_due(&mut self, now: Instant) -> Result<(), SpoolError> {
        let SyncPolicy::AtMostEvery(interval) = self.config.sync else { return Ok(()) };
        self.check_sound()?;
        let is_due = self.synced_at.is_some_and(|at| now.saturating_duration_since(at) >= interval);
        if self.synced < self.next() && is_due {
            self.force()?;
        }
        if self.synced == self.next() || self.synced_at.is_none() {
            self.synced_at = Some(now);
        }
        Ok(())
    }

    /// Says that records below `ordinal` are no longer needed. Their segments are deleted as soon as
    /// they hold nothing else; the statement itself is on the disk when this returns.
    ///
    /// # Errors
    /// When the cursor cannot be written; then nothing is deleted.
    pub fn trim_until(&mut self, ordinal: Ordinal) -> Result<(), SpoolError> {
        self.check_sound()?;
        let low = ordinal.min(self.next());
        if low > self.low() {
            self.cursor.store(Cursor { low, ..self.cursor.get() }, self.is_durable())?;
        }
        self.remove_trimmed()
    }

    /// A reader that starts at `ordinal`, or at the first record behind it that is still there.
    #[must_use]
    pub fn read_from(&self, ordinal: Ordinal) -> Reader {
        Reader::new(Arc::clone(&self.shared), ordinal)
    }

    /// The ordinal of the next append.
    #[must_use]
    pub fn next(&self) -> Ordinal {
        self.shared.committed()
    }

    /// Records below this were trimmed.
    #[must_use]
    pub const fn low(&self) -> Ordinal {
        self.cursor.get().low
    }

    /// The oldest ordinal that was not trimmed and is still there.
    #[must_use]
    pub fn first(&self) -> Ordinal {
        self.shared.segments().first().map_or(self.next(), |first| first.base).max(self.low())
    }

    /// Every record below this is on the disk, as far as the policy ever asks for it.
    #[must_use]
    pub const fn synced(&self) -> Ordinal {
        self.synced
    }

    /// Bytes of all segments.
    #[must_use]
    pub const fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Counts since the spool was opened.
    #[must_use]
    pub const fn stats(&self) -> SpoolStats {
        self.stats
    }

    /// Syncs and notes that the spool ended in order. A spool that is dropped instead is only not known
    /// to be complete after a power cut.
    ///
    /// # Errors
    /// See [`Spool::sync`].
    pub fn close(mut self) -> Result<(), SpoolError> {
        self.sync()?;
        if self.is_durable() {
            let cursor = Cursor { closed_at: Some(self.next()), ..self.cursor.get() };
            self.cursor.store(cursor, true)?;
        }
        Ok(())
    }

    fn is_durable(&self) -> bool {
        self.config.sync != SyncPolicy::Never
    }

    fn check_sound(&self) -> Result<(), SpoolError> {
        match &self.poisoned {
            None => Ok(()),
            Some(reason) => {
                Err(SpoolError::Poisoned { dir: self.shared.dir.clone(), reason: reason.clone() })
            }
        }
    }

    fn poison(&mut self, reason: String) {
        self.poisoned.get_or_insert(reason);
    }

    /// The bytes that the records need, if they fit a segment.
    fn check_size(&self, records: &[&[&[u8]]]) -> Result<u64, SpoolError> {
        let payload: u64 = records.iter().flat_map(|parts| parts.iter()).map(|part| part.len() as u64).sum();
        let bytes = payload.saturating_add(RECORD_HEADER_BYTES.saturating_mul(records.len() as u64));
        let limit_bytes = self.config.segment_bytes_max - SEGMENT_HEADER_BYTES;
        if bytes > limit_bytes {
            return Err(SpoolError::TooLarge { bytes, limit_bytes });
        }
        Ok(bytes)
    }

    fn encode(&mut self, records: &[&[&[u8]]], first: Ordinal) {
        self.buffer.clear();
        let mut ordinal = first;
        for parts in records {
            let bytes: usize = parts.iter().map(|part| part.len()).sum();
            // A segment's size is limited to what fits 32 bits, and the record fits a segment.
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            encode_record(&mut self.buffer, ordinal, bytes, parts);
            ordinal = ordinal.next();
        }
    }

    /// Writes the buffer behind the active segment's records, or leaves no trace of it.
    fn write(&mut self) -> Result<(), SpoolError> {
        let active = &mut self.active;
        if let Err(error) = active.file.write_all_at(&self.buffer, active.bytes) {
            let path = segment::path_of(&self.shared.dir, active.base);
            if let Err(undo) = active.file.set_len(active.bytes) {
                self.poison(format!("a failed write to {} could not be undone: {undo}", path.display()));
            }
            let error = SpoolError::write("write to", &self.shared.dir, &path, error);
            if matches!(error, SpoolError::DiskFull { .. }) {
                self.stats.refused_disk_full += 1;
            }
            return Err(error);
        }
        let bytes = self.buffer.len() as u64;
        active.bytes += bytes;
        self.used_bytes += bytes;
        if let Some(last) = self.shared.segments().last_mut() {
            last.bytes = active.bytes;
        }
        Ok(())
    }

    fn force(&mut self) -> Result<(), SpoolError> {
        if self.is_durable() {
            if let Err(error) = self.active.file.sync() {
                // The kernel may have dropped the pages that it could not write, and says so only once.
                let path = segment::path_of(&self.shared.dir, self.active.base);
                self.poison(format!("syncing {} failed: {error}", path.display()));
                // Never taken for a full disk, which leaves the spool as it was: this one must be opened again.
                return Err(SpoolError::io("sync", &path, error));
            }
            self.stats.syncs += 1;
        }
        self.synced = self.next();
        Ok(())
    }

    /// Closes the active segment and starts the next one.
    fn roll(&mut self) -> Result<(), SpoolError> {
        self.force()?;
        let base = self.next();
        let header = SegmentHeader { base, previous_end: base, boot_id: self.boot_id.unwrap_or_default() };
        let file = match segment::create(&*self.shared.disk, &self.shared.dir, &header, self.is_durable()) {
            Ok(file) => file,
            Err(error @ SpoolError::DiskFull { .. }) => {
                self.stats.refused_disk_full += 1;
                return Err(error);
            }
            Err(error) => {
                // Its name may be there, and going on in the old segment would hide records behind it.
                self.poison(error.to_string());
                return Err(error);
            }
        };
        self.active = Active { base, file, bytes: SEGMENT_HEADER_BYTES };
        self.used_bytes += SEGMENT_HEADER_BYTES;
        {
            let mut segments = self.shared.segments();
            if let Some(last) = segments.last_mut() {
                last.end = Some(base);
            }
            segments.push(Segment::active(base));
        }
        self.remove_trimmed()
    }

    /// Sees to it that `bytes` more stay within the quota, and with them the header of the segment that is
    /// started without being asked for when the spool is opened after a torn write.
    fn make_room(&mut self, bytes: u64) -> Result<(), SpoolError> {
        let quota_bytes = self.config.quota_bytes;
        let reserved_bytes = SEGMENT_HEADER_BYTES;
        while self.used_bytes.saturating_add(bytes).saturating_add(reserved_bytes) > quota_bytes {
            let evictable = self.config.quota_policy == QuotaPolicy::EvictOldest;
            if !(evictable && self.evict_oldest()?) {
                self.stats.refused_full += 1;
                return Err(SpoolError::Full {
                    dir: self.shared.dir.clone(),
                    used_bytes: self.used_bytes,
                    needed_bytes: bytes,
                    quota_bytes,
                });
            }
        }
        self.check_reserve(bytes)
    }

    /// Sees to it that the file system keeps its reserve. One that does not say what is free is believed to have room.
    fn check_reserve(&mut self, bytes: u64) -> Result<(), SpoolError> {
        let reserve_bytes = self.config.reserve_bytes;
        if reserve_bytes == 0 {
            return Ok(());
        }
        let Some(free_bytes) = self.shared.disk.free_bytes(&self.shared.dir) else { return Ok(()) };
        if free_bytes >= reserve_bytes.saturating_add(bytes) {
            return Ok(());
        }
        self.stats.refused_disk_full += 1;
        let said = format!("{free_bytes} bytes are free, of which {reserve_bytes} are kept for others");
        let source = std::io::Error::new(std::io::ErrorKind::StorageFull, said);
        Err(SpoolError::DiskFull { dir: self.shared.dir.clone(), source })
    }

    /// Deletes the oldest segment that is not being written. False when there is none.
    fn evict_oldest(&mut self) -> Result<bool, SpoolError> {
        let Some(oldest) = self.remove_first_if(|_| true)? else { return Ok(false) };
        let end = oldest.end.unwrap_or(oldest.base);
        let records = end.0.saturating_sub(oldest.base.max(self.low()).0);
        self.stats.evicted.records += records;
        self.stats.evicted.bytes += oldest.bytes;
        Ok(true)
    }

    fn remove_trimmed(&mut self) -> Result<(), SpoolError> {
        let low = self.low();
        let mut removed = false;
        while self.remove_first_if(|first| first.end.is_some_and(|end| end <= low))?.is_some() {
            removed = true;
        }
        if removed && self.is_durable() { sync_dir(&*self.shared.disk, &self.shared.dir) } else { Ok(()) }
    }

    /// Removes the first segment, unless it is the active one or `wanted` says no: from the list first,
    /// so that a reader that no longer finds the file finds out why.
    fn remove_first_if(&mut self, wanted: impl Fn(&Segment) -> bool) -> Result<Option<Segment>, SpoolError> {
        let first = {
            let mut segments = self.shared.segments();
            match segments.first() {
                Some(first) if first.end.is_some() && wanted(first) => segments.remove(0),
                _ => return Ok(None),
            }
        };
        let path = segment::path_of(&self.shared.dir, first.base);
        if let Err(error) = self.shared.disk.remove(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            self.shared.segments().insert(0, first);
            return Err(SpoolError::io("remove", &path, error));
        }
        self.used_bytes = self.used_bytes.saturating_sub(first.bytes);
        Ok(Some(first))
    }
}

impl Shared {
    pub(crate) fn committed(&self) -> Ordinal {
        Ordinal(self.committed.load(Ordering::Acquire))
    }

    pub(crate) fn segments(&self) -> MutexGuard<'_, Vec<Segment>> {
        // Nothing that holds the lock can panic half way through a change.
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lists(&self, base: Ordinal) -> bool {
        self.segments().iter().any(|segment| segment.base == base)
    }

    /// Where the records of the segment at `base` end, if it is closed.
    pub(crate) fn end_of(&self, base: Ordinal) -> Option<Ordinal> {
        self.segments().iter().find(|segment| segment.base == base)?.end
    }
}

/// Bytes that are free for this process on the file system of `path`; `None` where it does not say.
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    RealDisk.free_bytes(path)
}

fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn Lock>, SpoolError> {
    let path = dir.join("lock");
    let lock = disk.lock(&path, false).map_err(|error| SpoolError::write("lock", dir, &path, error))?;
    lock.ok_or_else(|| SpoolError::Locked { dir: dir.to_owned() })
}
