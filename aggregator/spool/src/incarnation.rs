//! A number that is on the disk before anyone uses it, and that never repeats.
//!
//! It tells the frames of one life of a process from those of another. It is written and synced twice,
//! one copy after the other, before it is given out: a torn write leaves the other copy, and so does the
//! decay of one. A directory that was wiped starts from the clock's microseconds, so that a reinstalled node
//! does not repeat its first life, and two that were made of one copied directory do not share a number.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cursor::sync_dir;
use crate::disk::{Disk, RealDisk};
use crate::error::SpoolError;
use crate::slots::{SLOT_OFFSETS, Slot, Slots};

const FILE: &str = "incarnation";
const MAGIC: [u8; 4] = *b"tINC";

/// The next incarnation of whatever has its state in `dir`. It is on the disk when this returns.
///
/// # Errors
/// When the file cannot be written, or both of its slots are damaged.
pub fn next(dir: &Path) -> Result<u64, SpoolError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    next_at_least(&RealDisk, dir, u64::try_from(now.as_micros()).unwrap_or(0))
}

/// [`next`] on any disk, with the lowest number to give out, which `next` takes from the clock.
///
/// # Errors
/// See [`next`].
pub fn next_at_least(disk: &dyn Disk, dir: &Path, least: u64) -> Result<u64, SpoolError> {
    disk.create_dir_all(dir).map_err(|error| SpoolError::write("create", dir, dir, error))?;
    let path = dir.join(FILE);
    let failed = |error| SpoolError::write("write", dir, &path, error);
    // Another agent that starts at the same time waits here.
    let _lock = disk.lock(&path, true).map_err(failed)?;
    let slots = Slots::open(disk, &path, MAGIC).map_err(failed)?;
    let last = match slots.read().map_err(failed)? {
        [Slot::Sound([first, ..]), Slot::Sound([second, ..])] => first.max(second),
        [Slot::Sound([number, ..]), _] | [_, Slot::Sound([number, ..])] => number,
        // The very first write was torn: nobody was given a number.
        [Slot::Empty | Slot::Damaged, Slot::Empty] => 0,
        [Slot::Empty | Slot::Damaged, Slot::Damaged] => {
            return Err(SpoolError::Damaged {
                path,
                reason: "neither of its copies matches its checksum",
                advice: "remove it if this machine's clock is right; the next number is then the clock's",
            });
        }
    };
    let number = last.saturating_add(1).max(least);
    for offset in SLOT_OFFSETS {
        slots.write(offset, [number, 0, 0], true).map_err(failed)?;
    }
    sync_dir(disk, dir)?;
    Ok(number)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::slots::SLOT_BYTES;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Scenario: a life after another, with any one copy damaged at any byte, or the file cut as the
        /// very first write may be, between them.
        /// Guarantees: every number is higher than all before it.
        #[test]
        fn it_never_repeats(damages in prop::collection::vec((0usize..3, 0usize..SLOT_BYTES, 1u8..), 1..20)) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join(FILE);
            let mut last = 0;
            for (slot, byte, flip) in damages {
                let number = next_at_least(&RealDisk, dir.path(), 0).expect("a number");
                prop_assert!(number > last);
                last = number;
                if let Some(&offset) = SLOT_OFFSETS.get(slot) {
                    let mut bytes = fs::read(&path).expect("read");
                    bytes[usize::try_from(offset).expect("small") + byte] ^= flip;
                    fs::write(&path, bytes).expect("written");
                }
            }
        }
    }

    /// Scenario: the very first write torn at every byte.
    /// Guarantees: there is a first number all the same, for nobody was given one.
    #[test]
    fn a_torn_first_write_is_no_obstacle() {
        let whole = tempfile::tempdir().expect("a directory");
        assert_eq!(next_at_least(&RealDisk, whole.path(), 0).expect("a number"), 1);
        let bytes = fs::read(whole.path().join(FILE)).expect("read");
        // Between the copies there is nothing that a cut could split.
        for cut in (0..=SLOT_BYTES + 1).chain(4095..=bytes.len()) {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join(FILE), &bytes[..cut]).expect("written");
            let number = next_at_least(&RealDisk, dir.path(), 0).expect("a number");
            assert_eq!(number, if cut < SLOT_BYTES { 1 } else { 2 }, "cut at {cut}");
        }
    }

    /// Scenario: both copies damaged; a wiped directory; a clock that stands behind.
    /// Guarantees: damage is refused with what to do; a wiped directory takes the clock's number; the
    /// clock never takes a number back.
    #[test]
    fn both_copies_damaged_is_refused_and_the_clock_only_lifts() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(next_at_least(&RealDisk, dir.path(), 1_000).expect("a number"), 1_000);
        assert_eq!(next_at_least(&RealDisk, dir.path(), 500).expect("a number"), 1_001);
        assert!(next(dir.path()).expect("a number") > 1_700_000_000);
        fs::write(dir.path().join(FILE), [0; 5000]).expect("written");
        let error = next(dir.path()).expect_err("damaged").to_string();
        assert!(error.contains("remove it"), "{error}");
    }

    /// Scenario: a machine with its directory is copied, and both copies go on.
    /// Guarantees: they get different numbers, so that the frames of one are never taken for the other's.
    #[test]
    fn copies_of_a_directory_get_different_numbers() {
        let (first, second) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
        let before = next(first.path()).expect("a number");
        fs::copy(first.path().join(FILE), second.path().join(FILE)).expect("copied");
        let numbers = [first, second].map(|dir| next(dir.path()).expect("a number"));
        assert!(
            numbers[0] > before && numbers[1] > before && numbers[0] != numbers[1],
            "{before} {numbers:?}"
        );
    }

    /// Scenario: threads that ask at the same time.
    /// Guarantees: no two get the same number.
    #[test]
    fn callers_at_the_same_time_get_different_numbers() {
        let dir = tempfile::tempdir().expect("a directory");
        let numbers: Vec<u64> = std::thread::scope(|scope| {
            let ask = || {
                (0..5).map(|_| next_at_least(&RealDisk, dir.path(), 0).expect("a number")).collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("numbers")).collect()
        });
        let distinct: std::collections::BTreeSet<_> = numbers.iter().collect();
        assert_eq!(distinct.len(), 20);
    }
}
