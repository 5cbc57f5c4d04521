//! The agent's file: how large what ships is.
//!
//! Reads the ELF headers alone, to tell what symbols and debug information take and whether it needs a loader. Called by
//! [`super::run`].

use std::path::Path;

use crate::footprint::measure::Measure;

const NAME: &str = "agent_binary";
/// Sections that are symbols.
const SECTION_SYMBOLS: u64 = 2;
/// Sections that take no room in the file.
const SECTION_NO_BITS: u64 = 8;
/// The flag of sections that are in memory when the program runs.
const FLAG_ALLOCATED: u64 = 2;
const SEGMENT_LOADER: u64 = 3;

/// The size of the program at `path` without symbols and debug information, which nothing needs that runs it.
pub(super) fn measure(path: &Path) -> Measure {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            return Measure::new(NAME, Err(format!("{} cannot be read: {error}", path.display())), "");
        }
    };
    let Some(elf) = Elf::parse(&bytes) else {
        return Measure::new(NAME, Err(format!("{} is no ELF file of 64 bits", path.display())), "");
    };
    let stripped = (bytes.len() as u64).saturating_sub(elf.strippable_bytes);
    #[expect(clippy::cast_precision_loss, reason = "a file of this size")]
    let mebibytes = stripped as f64 / 1_048_576.0;
    let linked = if elf.needs_loader { "linked dynamically" } else { "static" };
    let left_out = if elf.has_symbols {
        format!(
            "; of {} as built, the rest are symbols: scripts/build-agent builds the one that ships",
            bytes.len()
        )
    } else {
        String::new()
    };
    Measure::new(NAME, Ok(mebibytes), format!("{stripped} bytes, {linked}, with its eBPF object{left_out}"))
}

/// What is asked of a file in the Executable and Linkable Format (elf(5)), 64 bits, little endian.
#[derive(Debug, PartialEq, Eq)]
struct Elf {
    has_symbols: bool,
    needs_loader: bool,
    /// What takes room in the file and is never in memory.
    strippable_bytes: u64,
}

impl Elf {
    fn parse(bytes: &[u8]) -> Option<Self> {
        bytes.starts_with(b"\x7fELF\x02\x01").then_some(())?;
        let number = |at: u64, length: usize| -> Option<u64> {
            let at = usize::try_from(at).ok()?;
            let field = bytes.get(at..at.checked_add(length)?)?;
            Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        };
        let (segments, segment_bytes, segment_count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let mut needs_loader = false;
        for segment in 0..segment_count {
            needs_loader |= number(segments + segment * segment_bytes, 4)? == SEGMENT_LOADER;
        }
        let (sections, section_bytes, section_count) = (number(40, 8)?, number(58, 2)?, number(60, 2)?);
        let names = number(62, 2)?;
        let (mut has_symbols, mut strippable_bytes) = (false, 0);
        for section in 0..section_count {
            let at = sections + section * section_bytes;
            let (kind, flags, size) = (number(at + 4, 4)?, number(at + 8, 8)?, number(at + 32, 8)?);
            has_symbols |= kind == SECTION_SYMBOLS;
            // The names of the sections stay, and so does the table that this reads.
            if flags & FLAG_ALLOCATED == 0 && kind != SECTION_NO_BITS && section != names {
                strippable_bytes += size;
            }
        }
        Some(Self { has_symbols, needs_loader, strippable_bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Elf, measure};

    /// Scenario: this test's own program, the same as strip(1) leaves it, something that is no program, one that was cut.
    /// Guarantees: the size is what strip(1) leaves, but for a page; symbols are seen; nothing is taken for a size that is
    /// none.
    #[test]
    fn symbols_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let (own, stripped) = (std::env::current_exe().unwrap(), folder.path().join("stripped"));
        assert!(Command::new("strip").arg("-o").arg(&stripped).arg(&own).status().unwrap().success());
        let bytes = std::fs::read(&own).unwrap();
        assert!(Elf::parse(&bytes).unwrap().has_symbols);
        let left = std::fs::read(&stripped).unwrap();
        assert!(!Elf::parse(&left).unwrap().has_symbols);
        let (whole, left) = (measure(&own).value.unwrap(), measure(&stripped).value.unwrap());
        assert!((whole - left).abs() < 4096.0 / 1_048_576.0, "{whole} {left}");
        assert_eq!(Elf::parse(b"#!/bin/sh\n"), None);
        assert_eq!(Elf::parse(&bytes[..100]), None);
    }
}
