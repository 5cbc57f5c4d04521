//! The small file that says how far a spool was trimmed and where it ended when it was closed.

use std::path::{Path, PathBuf};

use crate::Ordinal;
use crate::disk::Disk;
use crate::error::SpoolError;
use crate::slots::{SLOT_OFFSETS, Slot, Slots};

const MAGIC: [u8; 4] = *b"tCUR";

/// What is known across restarts beside the segments themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cursor {
    /// Records below this are no longer needed.
    pub(crate) low: Ordinal,
    /// The next ordinal when the spool was last closed in order, with everything on the disk.
    pub(crate) closed_at: Option<Ordinal>,
}

/// The cursor and its file. The two copies are written in turn; the younger one counts.
#[derive(Debug)]
pub(crate) struct CursorFile {
    slots: Slots,
    path: PathBuf,
    generation: u64,
    cursor: Cursor,
}

impl CursorFile {
    /// Opens the cursor of a spool; a directory without one has never been trimmed.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path) -> Result<Self, SpoolError> {
        let path = dir.join("cursor");
        let failed = |error| SpoolError::write("open", dir, &path, error);
        let slots = Slots::open(disk, &path, MAGIC).map_err(failed)?;
        let (generation, cursor) = match slots.read().map_err(failed)? {
            [Slot::Sound(first), Slot::Sound(second)] => decode(first.max(second)),
            [Slot::Sound(one), _] | [_, Slot::Sound(one)] => decode(one),
            // A first write that was torn had nothing to say.
            [Slot::Empty | Slot::Damaged, Slot::Empty] => (0, Cursor::default()),
            [Slot::Empty | Slot::Damaged, Slot::Damaged] => {
                return Err(SpoolError::Damaged {
                    path,
                    reason: "neither of its copies matches its checksum",
                    advice: "remove it; records that were already trimmed are then read again",
                });
            }
        };
        let fresh = generation == 0;
        let mut file = Self { slots, path, generation, cursor };
        if fresh {
            // Both copies get their room now: later the disk may be full.
            file.store(cursor, true)?;
            file.store(cursor, true)?;
            sync_dir(disk, dir)?;
        }
        Ok(file)
    }

    pub(crate) const fn get(&self) -> Cursor {
        self.cursor
    }

    /// Replaces the cursor. `durable` is false where syncing is switched off.
    pub(crate) fn store(&mut self, cursor: Cursor, durable: bool) -> Result<(), SpoolError> {
        let generation = self.generation.saturating_add(1);
        let [odd, even] = SLOT_OFFSETS;
        let offset = if generation.is_multiple_of(2) { even } else { odd };
        // No spool ends at the last ordinal there is, so it can stand for "was not closed".
        let closed_at = cursor.closed_at.map_or(u64::MAX, |at| at.0);
        // The place is used again after a failure: what counts is the other copy, which is untouched.
        self.slots.write(offset, [generation, cursor.low.0, closed_at], durable).map_err(|error| {
            let dir = self.path.parent().unwrap_or(&self.path);
            SpoolError::write("write", dir, &self.path, error)
        })?;
        self.generation = generation;
        self.cursor = cursor;
        Ok(())
    }
}

fn decode([generation, low, closed_at]: [u64; 3]) -> (u64, Cursor) {
    let closed_at = (closed_at != u64::MAX).then_some(Ordinal(closed_at));
    (generation, Cursor { low: Ordinal(low), closed_at })
}

/// Makes created, renamed and removed names in `dir` survive a power cut.
pub(crate) fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<(), SpoolError> {
    disk.sync_dir(dir).map_err(|error| SpoolError::write("sync", dir, dir, error))
}
