//! Segment files: their names, how one is made, and how one is read through.

use std::io;
use std::path::{Path, PathBuf};

use crate::Ordinal;
use crate::cursor::sync_dir;
use crate::disk::{Disk, DiskFile, Open};
use crate::error::SpoolError;
use crate::layout::{RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES, SegmentHeader};

const SUFFIX: &str = ".seg";

/// A segment as the writer and the readers know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) base: Ordinal,
    /// The ordinal behind its last record; `None` for the segment that is being written.
    pub(crate) end: Option<Ordinal>,
    /// Bytes of the file. For the segment that is being written the spool knows better.
    pub(crate) bytes: u64,
    /// False when its header is damaged: nothing in it can be believed.
    pub(crate) readable: bool,
}

impl Segment {
    pub(crate) const fn active(base: Ordinal) -> Self {
        Self { base, end: None, bytes: SEGMENT_HEADER_BYTES, readable: true }
    }
}

pub(crate) fn path_of(dir: &Path, base: Ordinal) -> PathBuf {
    dir.join(format!("{:020}{SUFFIX}", base.0))
}

/// The bases of all segments in `dir`, rising. Removes what a crash left half made.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<Ordinal>, SpoolError> {
    let mut bases = Vec::new();
    for name in disk.list(dir).map_err(|error| SpoolError::io("list", dir, error))? {
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(".new") {
            let path = dir.join(name);
            disk.remove(&path).map_err(|error| SpoolError::io("remove", &path, error))?;
        } else if let Some(base) = name.strip_suffix(SUFFIX).and_then(|base| base.parse().ok()) {
            bases.push(Ordinal(base));
        }
    }
    bases.sort_unstable();
    Ok(bases)
}

/// Makes a segment that has its header and no record. The name appears only with the header in place.
pub(crate) fn create(
    disk: &dyn Disk,
    dir: &Path,
    header: &SegmentHeader,
    durable: bool,
) -> Result<Box<dyn DiskFile>, SpoolError> {
    let path = path_of(dir, header.base);
    let beside = path.with_extension("seg.new");
    let make = || {
        let file = disk.open(&beside, Open::Replace)?;
        file.write_all_at(&header.encode(), 0)?;
        if durable {
            file.sync()?;
        }
        disk.rename(&beside, &path)?;
        Ok(file)
    };
    let made = make().map_err(|error| SpoolError::write("create", dir, &path, error)).and_then(|file| {
        if durable {
            sync_dir(disk, dir)?;
        }
        Ok(file)
    });
    if made.is_err() {
        // Best effort: the caller goes on only where the name cannot have appeared, and the next open
        // removes what is half made.
        drop(disk.remove(&beside));
        drop(disk.remove(&path));
    }
    made
}

/// Reads a segment's header; `None` when it is missing, damaged, or that of another segment.
pub(crate) fn read_header(file: &dyn DiskFile, base: Ordinal) -> io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; 48];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(SegmentHeader::decode(&bytes).filter(|header| header.base == base)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the record `expected` at `offset` into `payload` and returns where the next one starts.
/// `None` when there is no such whole, sound record.
pub(crate) fn read_record(
    file: &dyn DiskFile,
    offset: u64,
    expected: Ordinal,
    payload: &mut Vec<u8>,
) -> io::Result<Option<u64>> {
    let Some(header) = read_record_header(file, offset, expected)? else { return Ok(None) };
    let Ok(payload_bytes) = usize::try_from(header.payload_bytes) else { return Ok(None) };
    // The length is not to be believed yet: no more is allocated than the file can hold.
    let end = offset.saturating_add(header.record_bytes());
    if payload_bytes > payload.capacity() && end > file.len()? {
        return Ok(None);
    }
    payload.resize(payload_bytes, 0);
    match file.read_exact_at(payload, offset.saturating_add(RECORD_HEADER_BYTES)) {
        Ok(()) => Ok(header.matches(payload).then_some(end)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads only the header of the record `expected`; its length has not been checked.
pub(crate) fn read_record_header(
    file: &dyn DiskFile,
    offset: u64,
    expected: Ordinal,
) -> io::Result<Option<RecordHeader>> {
    let mut bytes = [0; 20];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(RecordHeader::decode(&bytes, expected)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where the sound records of a segment end: the next ordinal and the offset behind the last one.
pub(crate) fn scan(file: &dyn DiskFile, base: Ordinal) -> io::Result<(Ordinal, u64)> {
    let (mut ordinal, mut offset) = (base, SEGMENT_HEADER_BYTES);
    let mut payload = Vec::new();
    while let Some(next) = read_record(file, offset, ordinal, &mut payload)? {
        ordinal = ordinal.next();
        offset = next;
    }
    Ok((ordinal, offset))
}
