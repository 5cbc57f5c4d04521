//! Unsigned integers in byte planes, minus a base: how a batch stores all of its cells.

use rkyv::util::AlignedVec;

/// Cells that lie in byte planes. The bytes are exactly `cells * width`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Planes<'a> {
    base: u64,
    width: u8,
    cells: u32,
    bytes: &'a [u8],
}

/// The greatest value that `width` bytes hold.
pub(super) const fn width_max(width: u8) -> u64 {
    match width {
        0 => 0,
        1..=7 => (1 << (8 * width)) - 1,
        _ => u64::MAX,
    }
}

/// The least width that holds `value`.
const fn width_of(value: u64) -> u8 {
    #[expect(clippy::cast_possible_truncation, reason = "at most 8")]
    let width = (64 - value.leading_zeros()).div_ceil(8) as u8;
    width
}

#[expect(clippy::cast_possible_truncation, reason = "the low byte is what is wanted")]
const fn low_byte(value: u64) -> u8 {
    value as u8
}

impl<'a> Planes<'a> {
    /// The cells in `bytes`, if their number and the base are possible: no cell may exceed 64 bits.
    pub(super) fn new(base: u64, width: u8, cells: u32, bytes: &'a [u8]) -> Option<Self> {
        let fits = width <= 8 && base.checked_add(width_max(width)).is_some();
        let length = (cells as usize).checked_mul(usize::from(width))?;
        (fits && bytes.len() == length).then_some(Self { base, width, cells, bytes })
    }

    pub(super) const fn cells(&self) -> u32 {
        self.cells
    }

    /// The cell at `index`.
    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<u64> {
        if index >= self.cells {
            return None;
        }
        let mut at = index as usize;
        let mut value = 0;
        for plane in 0..u32::from(self.width) {
            value |= u64::from(*self.bytes.get(at)?) << (8 * plane);
            at += self.cells as usize;
        }
        Some(self.base + value)
    }

    /// A value that no cell exceeds, known without looking at them.
    pub(super) const fn bound(&self) -> u64 {
        // `new` made sure that this does not overflow.
        self.base + width_max(self.width)
    }

    /// Writes all cells to `out`, whose length must be their number.
    pub(super) fn copy_to(&self, out: &mut [u64]) {
        out.fill(self.base);
        if self.width == 0 || self.cells == 0 {
            return;
        }
        for (plane, bytes) in self.bytes.chunks_exact(self.cells as usize).enumerate() {
            for (cell, byte) in out.iter_mut().zip(bytes) {
                *cell += u64::from(*byte) << (8 * plane);
            }
        }
    }

    /// Whether every cell is at least `least` and at most `most`.
    pub(super) fn all_within(&self, least: u64, most: u64) -> bool {
        if self.base >= least && self.bound() <= most {
            return true;
        }
        // Blocks of cells are put together on the stack: the loops vectorise and nothing is allocated.
        const BLOCK: usize = 512;
        let cells = self.cells as usize;
        let mut block = [0_u64; BLOCK];
        let mut from = 0;
        while from < cells {
            let length = BLOCK.min(cells - from);
            let Some(values) = block.get_mut(..length) else { return false };
            values.fill(self.base);
            for plane in 0..usize::from(self.width) {
                let at = plane * cells + from;
                let Some(bytes) = self.bytes.get(at..at + length) else { return false };
                for (value, byte) in values.iter_mut().zip(bytes) {
                    *value += u64::from(*byte) << (8 * plane);
                }
            }
            let (mut low, mut high) = (u64::MAX, 0);
            for value in values.iter() {
                low = low.min(*value);
                high = high.max(*value);
            }
            if low < least || high > most {
                return false;
            }
            from += length;
        }
        true
    }
}

/// Appends `cells` to `out` in byte planes; returns the base and the width chosen.
pub(super) fn encode(cells: &[u64], out: &mut AlignedVec) -> (u64, u8) {
    let least = cells.iter().copied().min().unwrap_or(0);
    let most = cells.iter().copied().max().unwrap_or(0);
    let width = width_of(most - least);
    // A base that saves no byte is left out, so that equal values stay equal bytes from batch to batch.
    let base = if width == width_of(most) { 0 } else { least.min(u64::MAX - width_max(width)) };
    let mut at = out.len();
    out.resize(at + cells.len() * usize::from(width), 0);
    for plane in 0..width {
        let bytes = out.as_mut_slice().get_mut(at..at + cells.len()).unwrap_or_default();
        for (byte, cell) in bytes.iter_mut().zip(cells) {
            *byte = low_byte((cell - base) >> (8 * plane));
        }
        at += cells.len();
    }
    (base, width)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Scenario: any cells are written in planes and read again, one by one, all at once, and bounded.
        /// Guarantees: the values come back, the width is the least possible, bounds are exact.
        #[test]
        fn cells_come_back(cells in prop::collection::vec(prop_oneof![
            any::<u64>(), 0_u64..300, 1_000_000_u64..1_000_200, Just(u64::MAX), (u64::MAX - 9)..u64::MAX,
        ], 1..1_200)) {
            let mut out = AlignedVec::new();
            let (base, width) = encode(&cells, &mut out);
            let planes = Planes::new(base, width, u32::try_from(cells.len()).unwrap(), &out).unwrap();
            let mut copy = vec![7; cells.len()];
            planes.copy_to(&mut copy);
            prop_assert_eq!(&copy, &cells);
            for (index, cell) in cells.iter().enumerate() {
                prop_assert_eq!(planes.get(u32::try_from(index).unwrap()), Some(*cell));
            }
            prop_assert_eq!(planes.get(u32::try_from(cells.len()).unwrap()), None);
            let (least, most) = (*cells.iter().min().unwrap(), *cells.iter().max().unwrap());
            prop_assert!(planes.all_within(least, most));
            prop_assert!(least == 0 || planes.all_within(least - 1, most));
            prop_assert!(least == u64::MAX || !planes.all_within(least + 1, most.max(least + 1)));
            prop_assert!(most == 0 || !planes.all_within(0, most - 1));
            prop_assert_eq!(width, width_of(most - least));
        }
    }

    /// Scenario: a constant column.
    /// Guarantees: it costs no bytes.
    #[test]
    fn constants_are_free() {
        let mut out = AlignedVec::new();
        assert_eq!(encode(&[40_000; 1_000], &mut out), (40_000, 0));
        assert!(out.is_empty());
    }
}
