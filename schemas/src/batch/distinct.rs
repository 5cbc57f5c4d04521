//! The table of a column of few distinct values.
//!
//! Its cells are one-byte codes in the order of first use. Columns that vary together (a process's pid, start, cgroup and
//! container) then have the same codes byte for byte, and the compressor, which does not see through planes otherwise,
//! stores them once.

use rkyv::util::AlignedVec;

use super::planes::{DISTINCT_MAX, bits, encode, width_of};

/// Finds the distinct values of a column. Keeps its memory from column to column.
pub(super) struct Distinct {
    /// The code of a value, plus one, where its hash points to, or behind.
    slots: Vec<u16>,
    values: Vec<u64>,
    codes: Vec<u8>,
}

impl Distinct {
    /// Four slots for each value: chains stay short.
    const SLOT_BITS: u32 = 10;

    pub(super) fn new() -> Self {
        Self { slots: vec![0; 1 << Self::SLOT_BITS], values: Vec::new(), codes: Vec::new() }
    }

    /// Gives `cells` their codes; false if there are too many distinct values for a table to pay.
    fn assign(&mut self, cells: &[u64]) -> bool {
        self.slots.fill(0);
        self.values.clear();
        self.codes.clear();
        let mut last = None;
        for cell in cells {
            let code = match last {
                Some((value, code)) if value == *cell => code,
                _ => match self.code(*cell) {
                    Some(code) => code,
                    None => return false,
                },
            };
            last = Some((*cell, code));
            self.codes.push(code);
        }
        true
    }

    fn code(&mut self, value: u64) -> Option<u8> {
        // Fibonacci hashing (Knuth, The Art of Computer Programming 3, section 6.4).
        let hash = value.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - Self::SLOT_BITS);
        let mask = (1 << Self::SLOT_BITS) - 1;
        let mut at = usize::try_from(hash).unwrap_or(0);
        loop {
            let slot = self.slots.get_mut(at & mask)?;
            let Some(code) = slot.checked_sub(1) else {
                if self.values.len() == DISTINCT_MAX {
                    return None;
                }
                self.values.push(value);
                *slot = u16::try_from(self.values.len()).ok()?;
                return u8::try_from(self.values.len() - 1).ok();
            };
            if self.values.get(usize::from(code)) == Some(&value) {
                return u8::try_from(code).ok();
            }
            at += 1;
        }
    }

    /// Appends `cells` to `out` in the form that is smaller; returns the base, the width and the table's length.
    pub(super) fn encode(&mut self, cells: &[u64], out: &mut AlignedVec) -> (u64, u8, u16) {
        let constant = cells.iter().all(|cell| Some(cell) == cells.first());
        if constant || !self.assign(cells) {
            let (base, width) = encode(cells, out);
            return (base, width, 0);
        }
        // A table of few values always pays: other columns may have the same codes. Of many it must be shorter, in bits,
        // because what the compressor cannot take out of a plane are the bits in use.
        let (count, range) = (self.values.len(), self.range());
        let coded = |code: usize, value: usize| cells.len() * code + count * value;
        let is_shorter = coded(bits(count as u64 - 1), bits(range)) < cells.len() * bits(range);
        let width = usize::from(width_of(range));
        let is_small = coded(1, width) < cells.len() * width;
        if count * 8 > cells.len() && !(is_shorter && is_small) {
            let (base, width) = encode(cells, out);
            return (base, width, 0);
        }
        out.extend_from_slice(&self.codes);
        let (base, width) = encode(&self.values, out);
        (base, width, u16::try_from(count).unwrap_or(0))
    }

    fn range(&self) -> u64 {
        let least = self.values.iter().min().copied().unwrap_or(0);
        self.values.iter().max().copied().unwrap_or(0) - least
    }
}
