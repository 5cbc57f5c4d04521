//! The agent's file: how large what ships is.
//!
//! Reads the ELF headers alone, to tell whether symbols are in it and whether it needs a loader. Called by
//! [`super::run`].

use std::path::Path;

use crate::footprint::measure::Measure;

const NAME: &str = "agent_binary";
const SECTION_SYMBOLS: u64 = 2;
const SEGMENT_LOADER: u64 = 3;

/// The size of the program at `path`, if it is what ships.
pub(super) fn measure(path: &Path) -> Measure {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            return Measure::new(NAME, Err(format!("{} cannot be read: {error}", path.display())), "");
        }
    };
    match Elf::parse(&bytes) {
        None => Measure::new(NAME, Err(format!("{} is no ELF file of 64 bits", path.display())), ""),
        Some(Elf { has_symbols: true, .. }) => {
            let reason = "the measured binary has its symbols: scripts/build-agent builds the one that ships";
            Measure::new(NAME, Err(reason.to_owned()), "")
        }
        Some(Elf { needs_loader, .. }) => {
            #[expect(clippy::cast_precision_loss, reason = "a file of this size")]
            let mebibytes = bytes.len() as f64 / 1_048_576.0;
            let linked = if needs_loader { "linked dynamically" } else { "static" };
            Measure::new(
                NAME,
                Ok(mebibytes),
                format!("{} bytes, {linked}, with its eBPF object", bytes.len()),
            )
        }
    }
}

/// What is asked of a file in the Executable and Linkable Format (elf(5)), 64 bits, little endian.
#[derive(Debug, PartialEq, Eq)]
struct Elf {
    has_symbols: bool,
    needs_loader: bool,
}

impl Elf {
    fn parse(bytes: &[u8]) -> Option<Self> {
        bytes.starts_with(b"\x7fELF\x02\x01").then_some(())?;
        let number = |at: u64, length: usize| -> Option<u64> {
            let at = usize::try_from(at).ok()?;
            let field = bytes.get(at..at.checked_add(length)?)?;
            Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        };
        let table = |offset: u64, size: u64, count: u64, kind_at: u64, kind: u64| -> Option<bool> {
            let (offset, size, count) = (number(offset, 8)?, number(size, 2)?, number(count, 2)?);
            (0..count)
                .map(|entry| number(offset + entry * size + kind_at, 4))
                .try_fold(false, |found, of| of.map(|of| found || of == kind))
        };
        Some(Self {
            has_symbols: table(40, 58, 60, 4, SECTION_SYMBOLS)?,
            needs_loader: table(32, 54, 56, 0, SEGMENT_LOADER)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Elf, measure};

    /// Scenario: this test's own program, something that is no program, and a program that was cut.
    /// Guarantees: symbols are seen, and nothing is taken for a measure that is none.
    #[test]
    fn only_a_stripped_program_has_a_size() {
        let own = std::env::current_exe().unwrap();
        let bytes = std::fs::read(&own).unwrap();
        assert!(Elf::parse(&bytes).unwrap().has_symbols);
        assert_eq!(measure(&own).value, None);
        assert_eq!(Elf::parse(b"#!/bin/sh\n"), None);
        assert_eq!(Elf::parse(&bytes[..100]), None);
    }
}
