//! Reading a spool in order, while it is being written, trimmed and evicted.
//!
//! A reader has file handles of its own and takes no lock that is held during I/O, so it never holds
//! the writer up. What it cannot read it passes over and says so with a [`Gap`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::Ordinal;
use crate::disk::{DiskFile, Open};
use crate::error::SpoolError;
use crate::layout::SEGMENT_HEADER_BYTES;
use crate::segment;
use crate::spool::Shared;

/// What a reader finds next.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A record whose checksum matched.
    Record {
        /// Its place.
        ordinal: Ordinal,
        /// Its bytes, valid until the next call.
        payload: &'a [u8],
    },
    /// Ordinals that cannot be read.
    Gap(Gap),
}

/// A range of ordinals that a reader passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The first ordinal that is missing.
    pub from: Ordinal,
    /// The ordinal at which reading goes on.
    pub until: Ordinal,
    /// Why.
    pub reason: GapReason,
}

/// Why a reader passed ordinals over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GapReason {
    /// Trimmed, or forced out by the quota, before this reader came to it.
    Removed,
    /// A record in the middle of a segment does not match its checksum. The rest of the segment is
    /// passed over, because where its records start is no longer known.
    Damaged {
        /// The segment's file.
        segment: PathBuf,
        /// Where the damage starts, in bytes.
        offset: u64,
    },
    /// Left out when the spool was opened, because a power cut may have taken records with these
    /// ordinals, or they were never used.
    Skipped,
}

impl GapReason {
    /// The reason as a metric's label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Damaged { .. } => "damaged",
            Self::Skipped => "skipped",
        }
    }
}

/// Reads records in order, from any thread. See [`crate::Spool::read_from`].
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    next: Ordinal,
    open: Option<OpenSegment>,
    payload: Vec<u8>,
}

#[derive(Debug)]
struct OpenSegment {
    base: Ordinal,
    file: Box<dyn DiskFile>,
    /// Where the record `Reader::next` starts.
    offset: u64,
}

/// What to do next, decided from the list of segments alone.
enum Step {
    Wait,
    Read { base: Ordinal },
    Skip(Ordinal, GapReason),
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, next: Ordinal) -> Self {
        Self { shared, next, open: None, payload: Vec::new() }
    }

    /// Another reader of the same spool, that starts at `ordinal`: for who may not wait for the writer.
    #[must_use]
    pub fn at(&self, ordinal: Ordinal) -> Self {
        Self::new(Arc::clone(&self.shared), ordinal)
    }

    /// The ordinal of the next record, if it is not missing.
    #[must_use]
    pub const fn position(&self) -> Ordinal {
        self.next
    }

    /// The next record or gap; `None` when everything that was appended so far has been read. A later
    /// call sees what is appended later.
    ///
    /// # Errors
    /// When the system refuses to open or read a segment. The reader stays where it is.
    pub fn next_item(&mut self) -> Result<Option<Item<'_>>, SpoolError> {
        // A segment may be removed between looking it up and opening it: then the list has changed, and
        // the second look says so. The writer removes from the list first, so this ends.
        loop {
            match self.step() {
                Step::Wait => return Ok(None),
                Step::Skip(until, reason) => return Ok(Some(self.skip(until, reason))),
                Step::Read { base } => {
                    if !self.open_at(base)? {
                        continue;
                    }
                    if self.read()? {
                        let ordinal = self.next;
                        self.next = ordinal.next();
                        return Ok(Some(Item::Record { ordinal, payload: &self.payload }));
                    }
                    let (until, reason) = self.damage(base);
                    return Ok(Some(self.skip(until, reason)));
                }
            }
        }
    }

    fn skip(&mut self, until: Ordinal, reason: GapReason) -> Item<'static> {
        let from = self.next;
        self.next = until;
        self.open = None;
        Item::Gap(Gap { from, until, reason })
    }

    fn step(&self) -> Step {
        let committed = self.shared.committed();
        if self.next >= committed {
            return Step::Wait;
        }
        let segments = self.shared.segments();
        let after = segments.partition_point(|segment| segment.base <= self.next);
        let following = segments.get(after).map_or(committed, |segment| segment.base);
        let Some(segment) = after.checked_sub(1).and_then(|at| segments.get(at)) else {
            return Step::Skip(following, GapReason::Removed);
        };
        let end = segment.end.unwrap_or(committed);
        if self.next >= end {
            return Step::Skip(following, GapReason::Skipped);
        }
        if !segment.readable {
            let path = segment::path_of(&self.shared.dir, segment.base);
            return Step::Skip(end, GapReason::Damaged { segment: path, offset: 0 });
        }
        Step::Read { base: segment.base }
    }

    /// Opens the segment at `base` and finds the next record in it. False when the segment is gone.
    fn open_at(&mut self, base: Ordinal) -> Result<bool, SpoolError> {
        if self.open.as_ref().is_some_and(|open| open.base == base) {
            return Ok(true);
        }
        self.open = None;
        let path = segment::path_of(&self.shared.dir, base);
        let file = match self.shared.disk.open(&path, Open::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.shared.lists(base) => {
                return Ok(false);
            }
            Err(error) => return Err(SpoolError::io("open", &path, error)),
        };
        let (mut ordinal, mut offset) = (base, SEGMENT_HEADER_BYTES);
        while ordinal < self.next {
            let header = segment::read_record_header(&*file, offset, ordinal)
                .map_err(|error| SpoolError::io("read", &path, error))?;
            // A damaged header is found again by `read`, at this place.
            let Some(header) = header else { break };
            ordinal = ordinal.next();
            offset = offset.saturating_add(header.record_bytes());
        }
        self.open = Some(OpenSegment { base, file, offset });
        Ok(true)
    }

    /// Reads the next record of the open segment into the payload. False when it is damaged.
    fn read(&mut self) -> Result<bool, SpoolError> {
        let Some(open) = &mut self.open else { return Ok(false) };
        let next = segment::read_record(&*open.file, open.offset, self.next, &mut self.payload)
            .map_err(|error| SpoolError::io("read", &segment::path_of(&self.shared.dir, open.base), error))?;
        if let Some(next) = next {
            open.offset = next;
        }
        Ok(next.is_some())
    }

    /// How far the damage in the segment at `base` reaches, and where it starts.
    fn damage(&self, base: Ordinal) -> (Ordinal, GapReason) {
        let until = self.shared.end_of(base).unwrap_or_else(|| self.shared.committed());
        let reason = GapReason::Damaged {
            segment: segment::path_of(&self.shared.dir, base),
            offset: self.open.as_ref().map_or(0, |open| open.offset),
        };
        (until.max(self.next.next()), reason)
    }
}
