//! A small file that holds three numbers twice, and is overwritten in place.
//!
//! Each copy has a sector and a checksum of its own, so that a torn write or the decay of one leaves the
//! other. Overwriting needs no room, so it works on a full disk, where a file beside could not be made.

use std::io;
use std::path::Path;

use crate::disk::{Disk, DiskFile, Open};

/// Bytes of one copy: a magic number, three numbers, a checksum.
pub(crate) const SLOT_BYTES: usize = 32;
/// Where the two copies start.
pub(crate) const SLOT_OFFSETS: [u64; 2] = [0, 4096];

/// One copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Never written.
    Empty,
    Sound([u64; 3]),
    /// Torn or decayed.
    Damaged,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Slots {
    file: Box<dyn DiskFile>,
    magic: [u8; 4],
}

impl Slots {
    /// Opens the file, making it where there is none. `magic` says what the numbers are.
    pub(crate) fn open(disk: &dyn Disk, path: &Path, magic: [u8; 4]) -> io::Result<Self> {
        Ok(Self { file: disk.open(path, Open::Create)?, magic })
    }

    pub(crate) fn read(&self) -> io::Result<[Slot; 2]> {
        let [first, second] = SLOT_OFFSETS;
        Ok([self.read_at(first)?, self.read_at(second)?])
    }

    fn read_at(&self, offset: u64) -> io::Result<Slot> {
        if self.file.len()? <= offset {
            return Ok(Slot::Empty);
        }
        let mut bytes = [0; SLOT_BYTES];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(self.decode(&bytes).map_or(Slot::Damaged, Slot::Sound)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Slot::Damaged),
            Err(error) => Err(error),
        }
    }

    /// Overwrites the copy at `offset`, one of [`SLOT_OFFSETS`].
    pub(crate) fn write(&self, offset: u64, numbers: [u64; 3], durable: bool) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(SLOT_BYTES);
        bytes.extend_from_slice(&self.magic);
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        self.file.write_all_at(&bytes, offset)?;
        if durable { self.file.sync() } else { Ok(()) }
    }

    fn decode(&self, bytes: &[u8; SLOT_BYTES]) -> Option<[u64; 3]> {
        let (body, checksum) = bytes.split_last_chunk::<4>()?;
        let (magic, rest) = body.split_first_chunk::<4>()?;
        let (first, rest) = rest.split_first_chunk::<8>()?;
        let (second, rest) = rest.split_first_chunk::<8>()?;
        let numbers = [first, second, rest.first_chunk::<8>()?].map(|number| u64::from_le_bytes(*number));
        let sound = *magic == self.magic && u32::from_le_bytes(*checksum) == crc32c::crc32c(body);
        sound.then_some(numbers)
    }
}
