//! The small file that says how far a spool was trimmed and where it ended when it was closed.
//!
//! Replaced as a whole: written beside, synced, renamed, directory synced. Either the old or the new
//! content is there after a crash.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use crate::Ordinal;
use crate::error::SpoolError;

const MAGIC: [u8; 8] = *b"TAPIOCUR";
const FILE: &str = "cursor";
const BYTES: usize = 28;

/// What is known across restarts beside the segments themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cursor {
    /// Records below this are no longer needed.
    pub(crate) low: Ordinal,
    /// The next ordinal when the spool was last closed in order, with everything on the disk.
    pub(crate) closed_at: Option<Ordinal>,
}

impl Cursor {
    /// Reads the cursor of a spool; a directory without one has never been trimmed.
    pub(crate) fn load(dir: &Path) -> Result<Self, SpoolError> {
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(SpoolError::io("read", &path, error)),
        };
        Self::decode(&bytes).ok_or(SpoolError::Damaged {
            path,
            reason: "its checksum does not match",
            advice: "remove it; records that were already trimmed are then read again",
        })
    }

    /// Replaces the cursor of a spool. `durable` is false where syncing is switched off.
    pub(crate) fn store(&self, dir: &Path, durable: bool) -> Result<(), SpoolError> {
        replace_file(dir, FILE, &self.encode(), durable)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.low.0.to_le_bytes());
        // No spool ends at the last ordinal there is, so it can stand for "was not closed".
        bytes.extend_from_slice(&self.closed_at.map_or(u64::MAX, |at| at.0).to_le_bytes());
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        let (magic, rest) = body.split_first_chunk::<8>()?;
        let (low, rest) = rest.split_first_chunk::<8>()?;
        let closed_at = u64::from_le_bytes(*rest.first_chunk::<8>()?);
        let sound = *magic == MAGIC && u32::from_le_bytes(*checksum) == crc32c::crc32c(body);
        sound.then_some(Self {
            low: Ordinal(u64::from_le_bytes(*low)),
            closed_at: (closed_at != u64::MAX).then_some(Ordinal(closed_at)),
        })
    }
}

/// Replaces a file so that a crash leaves either the old or the new content.
pub(crate) fn replace_file(dir: &Path, name: &str, bytes: &[u8], durable: bool) -> Result<(), SpoolError> {
    let path = dir.join(name);
    let beside = dir.join(format!("{name}.new"));
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        if durable {
            file.sync_all()?;
        }
        fs::rename(&beside, &path)
    };
    write().map_err(|error| SpoolError::write("write", dir, &path, error))?;
    if durable { sync_dir(dir) } else { Ok(()) }
}

/// Makes created, renamed and removed names in `dir` survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), SpoolError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| SpoolError::write("sync", dir, dir, error))
}
