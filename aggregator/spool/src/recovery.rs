//! Opening a spool: what a crash, a power cut or a bad disk left behind, and what became of it.
//!
//! Only the last segment is read through. The ones before it were complete when the next was made;
//! their records are checked when they are read.

use std::io;
use std::path::{Path, PathBuf};

use crate::Ordinal;
use crate::cursor::Cursor;
use crate::disk::{Disk, DiskFile, Open};
use crate::error::SpoolError;
use crate::layout::{ORDINALS_PER_SEGMENT_MAX, SegmentHeader};
use crate::segment::{self, Segment};

/// Bytes that are written again with one call.
const REWRITE_BYTES: usize = 1 << 20;

/// What opening a spool found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Records below this were trimmed.
    pub low: Ordinal,
    /// The oldest ordinal that can still be there. Above `low` when the quota forced records out that
    /// nobody had trimmed.
    pub first: Ordinal,
    /// The ordinal of the next append.
    pub next: Ordinal,
    /// Segments found.
    pub segments: u64,
    /// Bytes behind the last whole record, cut off: an append that was under way.
    pub torn_bytes: u64,
    /// Ordinals left out because it is unknown whether they had been handed out.
    pub ordinals_skipped: u64,
    /// What cannot be read. Readers skip it and say so.
    pub damage: Vec<Damage>,
}

/// A place in a segment from which on its records cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment's file.
    pub segment: PathBuf,
    /// Where the damage starts, in bytes.
    pub offset: u64,
}

/// The state that the writer starts from.
pub(crate) struct Recovered {
    pub(crate) segments: Vec<Segment>,
    /// The last segment, if the writer may go on in it: file, end of its records.
    pub(crate) active: Option<(Box<dyn DiskFile>, u64)>,
    /// Where the last segment's records end.
    pub(crate) end: Ordinal,
    pub(crate) next: Ordinal,
    pub(crate) report: Recovery,
}

/// Reads what is in `dir` and cuts a torn tail off.
pub(crate) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    cursor: &Cursor,
    boot_id: Option<[u8; 16]>,
) -> Result<Recovered, SpoolError> {
    let bases = segment::list(disk, dir)?;
    let mut report = Recovery { low: cursor.low, ..Recovery::default() };
    let mut segments: Vec<Segment> = Vec::with_capacity(bases.len());
    let mut last = None;
    for base in bases {
        let path = segment::path_of(dir, base);
        let failed = |error| SpoolError::io("read", &path, error);
        let file = disk.open(&path, Open::Write).map_err(failed)?;
        let bytes = file.len().map_err(failed)?;
        let header = segment::read_header(&*file, base).map_err(failed)?;
        if header.is_none() {
            report.damage.push(Damage { segment: path.clone(), offset: 0 });
        }
        if let Some(previous) = segments.last_mut() {
            previous.end = Some(header.map_or(base, |header| header.previous_end.max(previous.base)));
        }
        segments.push(Segment { base, end: None, bytes, readable: header.is_some() });
        last = Some((file, header));
    }

    let mut recovered =
        Recovered { segments, active: None, end: cursor.low, next: cursor.low, report: Recovery::default() };
    if let (Some((file, header)), Some(segment)) = (last, recovered.segments.last_mut()) {
        match header {
            Some(header) => {
                let last = open_last(dir, cursor, boot_id, file, header, segment, &mut report)?;
                recovered.end = last.end;
                recovered.next = if last.is_complete { last.end } else { skip(segment.base) };
                recovered.active = Some((last.file, last.bytes));
            }
            None => {
                recovered.end = segment.base;
                recovered.next = skip(segment.base);
            }
        }
    }
    // A trim may be on the disk while the records that it covered are not.
    recovered.next = recovered.next.max(cursor.low).max(cursor.closed_at.unwrap_or_default());
    if recovered.next != recovered.end {
        recovered.active = None;
    }
    if recovered.active.is_none()
        && let Some(segment) = recovered.segments.last_mut()
    {
        segment.end = Some(recovered.end);
        report.ordinals_skipped = recovered.next.0.saturating_sub(recovered.end.0);
    }
    report.segments = recovered.segments.len() as u64;
    report.first = recovered.segments.first().map_or(recovered.next, |first| first.base).max(cursor.low);
    report.next = recovered.next;
    recovered.report = report;
    Ok(recovered)
}

/// The last segment, with its torn end cut off.
struct Last {
    end: Ordinal,
    /// Whether every ordinal that was handed out is in it.
    is_complete: bool,
    file: Box<dyn DiskFile>,
    bytes: u64,
}

/// Reads the last segment through and cuts its torn end off.
fn open_last(
    dir: &Path,
    cursor: &Cursor,
    boot_id: Option<[u8; 16]>,
    file: Box<dyn DiskFile>,
    header: SegmentHeader,
    segment: &mut Segment,
    report: &mut Recovery,
) -> Result<Last, SpoolError> {
    let path = segment::path_of(dir, segment.base);
    let (end, offset) =
        segment::scan(&*file, segment.base).map_err(|error| SpoolError::io("read", &path, error))?;
    report.torn_bytes = segment.bytes.saturating_sub(offset);
    // A killed process loses no written byte as long as the machine stays up, so an unbroken file from
    // this boot is complete. After another boot only an orderly close says so.
    let is_complete =
        report.torn_bytes == 0 && (Some(header.boot_id) == boot_id || cursor.closed_at == Some(end));
    if report.torn_bytes > 0 {
        let cut = || {
            file.set_len(offset)?;
            file.sync()
        };
        cut().map_err(|error| SpoolError::write("cut the torn end of", dir, &path, error))?;
        segment.bytes = offset;
    }
    if cursor.closed_at != Some(end) {
        rewrite(&*file, offset).map_err(|error| SpoolError::write("write again", dir, &path, error))?;
    }
    Ok(Last { end, is_complete, file, bytes: offset })
}

/// Writes a file's bytes once more where they are. After a sync that failed they may be in the page cache only, and no
/// later sync would write them, because they count as written (fsync(2), "`EIO`"): whoever failed may have been an earlier
/// process. A power cut in between changes nothing, as old and new are the same.
fn rewrite(file: &dyn DiskFile, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; REWRITE_BYTES];
    let mut offset = 0;
    while offset < bytes {
        let left = usize::try_from(bytes - offset).unwrap_or(usize::MAX);
        let length = left.min(REWRITE_BYTES);
        let part = buffer.get_mut(..length).unwrap_or_default();
        file.read_exact_at(part, offset)?;
        file.write_all_at(part, offset)?;
        offset += length as u64;
    }
    Ok(())
}

/// An ordinal that nothing in the segment at `base` can have reached.
fn skip(base: Ordinal) -> Ordinal {
    Ordinal(base.0.saturating_add(ORDINALS_PER_SEGMENT_MAX))
}
