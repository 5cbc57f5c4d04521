//! Unsigned integers in byte planes, minus a base: how a batch stores all of its cells, and the forms that they may have.
//!
//! Whatever the form, a cell is found in place, without going through the others.

use rkyv::util::AlignedVec;

use super::column::{unzigzag, zigzag};

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
pub(super) const fn width_of(value: u64) -> u8 {
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
    encode_width(cells, base, width, out);
    (base, width)
}

/// Appends `cells`, minus `base`, to `out` in `width` byte planes.
fn encode_width(cells: &[u64], base: u64, width: u8, out: &mut AlignedVec) {
    let mut at = out.len();
    out.resize(at + cells.len() * usize::from(width), 0);
    for plane in 0..width {
        let bytes = out.as_mut_slice().get_mut(at..at + cells.len()).unwrap_or_default();
        for (byte, cell) in bytes.iter_mut().zip(cells) {
            *byte = low_byte((cell - base) >> (8 * plane));
        }
        at += cells.len();
    }
}

/// What the integers of a column stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Form {
    /// The values themselves.
    #[default]
    Plain = 0,
    /// Values that [`coarse`](crate::units::coarse) leaves as they are, in steps: 64 small ones, then 32 to the octave.
    /// Where values are in steps anyway, the number of the step has no bits that are always zero.
    Steps = 1,
    /// What is added to the cell of another column, modulo 2^32: see [`beside`](super::slots::beside).
    Beside = 2,
    /// How far the cell lies from the one before it: of times, which rise from row to row, more or less. The first of each
    /// [`BLOCK_CELLS`] cells is an anchor, so that a cell is found without going through all before it. Planes of the
    /// distances, and behind them those of the anchors.
    Steady = 3,
}

/// How many cells there are from anchor to anchor.
const BLOCK_CELLS: u32 = 16;

impl Form {
    /// The forms by code; one of a newer version is not known.
    pub(super) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Plain),
            1 => Some(Self::Steps),
            2 => Some(Self::Beside),
            3 => Some(Self::Steady),
            _ => None,
        }
    }
}

/// The greatest step: 63 times 2^58.
pub(super) const STEP_MAX: u64 = 32 * 58 + 63;

/// The step of a value, if it lies on one.
pub(super) const fn step_of(value: u64) -> Option<u64> {
    let dropped = (u64::BITS - value.leading_zeros()).saturating_sub(6);
    let high = value >> dropped;
    if high << dropped == value { Some(32 * dropped as u64 + high) } else { None }
}

/// The value of a step, which is at most [`STEP_MAX`].
const fn value_of_step(step: u64) -> u64 {
    let dropped = (step / 32).saturating_sub(1);
    (step - 32 * dropped) << dropped
}

/// A column's cells: planes of values, or one plane of codes into planes of distinct values.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CellRun<'a> {
    values: Planes<'a>,
    codes: Option<&'a [u8]>,
    /// The first cell of each block, where the values are distances; and whether these may be negative (zigzag-coded).
    anchors: Option<(Planes<'a>, bool)>,
    /// Whether the values are steps.
    steps: bool,
}

impl<'a> CellRun<'a> {
    /// The cells in `bytes`; `distinct` is the length of the table of values, 0 for none. None if a number is
    /// impossible. Codes are not looked at: see [`Self::codes_are_known`].
    pub(super) fn new(base: u64, width: u8, distinct: u16, cells: u32, bytes: &'a [u8]) -> Option<Self> {
        if distinct == 0 {
            return Planes::new(base, width, cells, bytes).map(|values| Self { values, ..Self::default() });
        }
        let (codes, table) = bytes.split_at_checked(cells as usize)?;
        let values = Planes::new(base, width, u32::from(distinct), table)?;
        (usize::from(distinct) <= DISTINCT_MAX).then_some(Self {
            values,
            codes: Some(codes),
            ..Self::default()
        })
    }

    /// The cells in `bytes` as distances. `anchors` is the width of an anchor, plus 256 if distances may be negative. None
    /// if a number is impossible. Sums are modulo 2^64, so that every distance is possible.
    pub(super) fn steady(base: u64, width: u8, anchors: u16, cells: u32, bytes: &'a [u8]) -> Option<Self> {
        let distances = (cells as usize).checked_mul(usize::from(width))?;
        let (distances, rest) = bytes.split_at_checked(distances)?;
        let [anchor_width, is_signed @ 0..=1] = anchors.to_le_bytes() else { return None };
        let anchors = Planes::new(base, anchor_width, cells.div_ceil(BLOCK_CELLS), rest)?;
        let values = Planes::new(0, width, cells, distances)?;
        Some(Self { values, anchors: Some((anchors, is_signed == 1)), ..Self::default() })
    }

    /// The same cells, whose integers are of `form`.
    pub(super) fn of_form(self, form: Form) -> Self {
        Self { steps: form == Form::Steps, ..self }
    }

    /// Whether every code is in the table.
    pub(super) fn codes_are_known(&self) -> bool {
        let most = self.codes.and_then(|codes| codes.iter().max());
        most.is_none_or(|most| u32::from(*most) < self.values.cells())
    }

    pub(super) fn cells(&self) -> u32 {
        // The codes are as many as the 32-bit number that they were cut off by.
        self.codes.map_or(self.values.cells(), |codes| u32::try_from(codes.len()).unwrap_or(u32::MAX))
    }

    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<u64> {
        let stored = match self.codes {
            None => match &self.anchors {
                None => self.values.get(index),
                Some((anchors, is_signed)) => {
                    let block = index / BLOCK_CELLS;
                    let mut value = anchors.get(block)?;
                    for index in block * BLOCK_CELLS..=index {
                        value = beyond(value, self.values.get(index)?, *is_signed);
                    }
                    Some(value)
                }
            },
            Some(codes) => codes.get(index as usize).and_then(|code| self.values.get(u32::from(*code))),
        };
        if self.steps { stored.map(value_of_step) } else { stored }
    }

    /// Writes all cells to `out`, whose length must be their number.
    pub(super) fn copy_to(&self, out: &mut [u64]) {
        let Some(codes) = self.codes else {
            self.values.copy_to(out);
            if let Some((anchors, is_signed)) = &self.anchors {
                for (index, block) in (0..).zip(out.chunks_mut(BLOCK_CELLS as usize)) {
                    let mut value = anchors.get(index).unwrap_or(0);
                    for cell in block {
                        value = beyond(value, *cell, *is_signed);
                        *cell = value;
                    }
                }
            }
            if self.steps {
                out.iter_mut().for_each(|cell| *cell = value_of_step(*cell));
            }
            return;
        };
        let mut table = [0; DISTINCT_MAX];
        if let Some(values) = table.get_mut(..self.values.cells() as usize) {
            self.values.copy_to(values);
            if self.steps {
                values.iter_mut().for_each(|value| *value = value_of_step(*value));
            }
        }
        for (cell, code) in out.iter_mut().zip(codes) {
            *cell = table.get(usize::from(*code)).copied().unwrap_or(0);
        }
    }

    /// Whether every stored integer (a step, where they are steps) is at least `least` and at most `most`.
    pub(super) fn all_within(&self, least: u64, most: u64) -> bool {
        let Some((anchors, is_signed)) = &self.anchors else { return self.values.all_within(least, most) };
        // Decided without a look at the cells, but where one may be near a limit.
        let far = self.values.bound().saturating_mul(BLOCK_CELLS.into());
        let below = if *is_signed { far } else { 0 };
        let (lowest, highest) = (least.checked_add(below), most.checked_sub(far));
        let within = |cell: u64| (least..=most).contains(&cell);
        lowest.zip(highest).is_some_and(|(lowest, highest)| anchors.all_within(lowest, highest))
            || (0..self.values.cells()).all(|index| self.get(index).is_some_and(within))
    }
}

/// The value that lies `distance` beyond `value`, modulo 2^64.
const fn beyond(value: u64, distance: u64, is_signed: bool) -> u64 {
    let distance = if is_signed { unzigzag(distance).cast_unsigned() } else { distance };
    value.wrapping_add(distance)
}

/// How many bits `value` needs.
pub(super) const fn bits(value: u64) -> usize {
    (u64::BITS - value.leading_zeros()) as usize
}

/// Appends `cells` to `out` as [`CellRun::steady`] reads them, if that is shorter than in planes alone; returns the base,
/// the width of a distance, and what `steady` takes as `anchors`. `scratch` is written over.
pub(super) fn encode_steady(
    cells: &[u64],
    scratch: &mut Vec<u64>,
    out: &mut AlignedVec,
) -> Option<(u64, u8, u16)> {
    let range = cells.iter().max()? - cells.iter().min()?;
    let blocks = || cells.chunks(BLOCK_CELLS as usize);
    let is_signed = blocks().any(|block| !block.is_sorted());
    scratch.clear();
    scratch.extend(blocks().filter_map(|block| block.first()));
    let anchors = scratch.len();
    for block in blocks() {
        let before = block.iter().take(1).chain(block);
        scratch.extend(block.iter().zip(before).map(|(cell, before)| {
            let distance = cell.wrapping_sub(*before);
            if is_signed { zigzag(distance.cast_signed()) } else { distance }
        }));
    }
    let (anchors, distances) = scratch.split_at(anchors);
    // In bits, because what the compressor cannot take out of a plane are the bits in use.
    let steady: usize = distances.iter().map(|distance| bits(*distance)).sum();
    if steady + anchors.len() * bits(range) >= cells.len() * bits(range) {
        return None;
    }
    let width = width_of(distances.iter().copied().max()?);
    encode_width(distances, 0, width, out);
    let (base, anchor_width) = encode(anchors, out);
    Some((base, width, u16::from_le_bytes([anchor_width, u8::from(is_signed)])))
}

/// The most values that a column's table has: a code is one byte.
pub(super) const DISTINCT_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::distinct::Distinct, *};

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

    proptest! {
        /// Scenario: columns of few and of many distinct values are written in the form that is smaller.
        /// Guarantees: the values come back either way, one by one and all at once.
        #[test]
        fn either_form_comes_back(
            values in prop::collection::vec(any::<u64>(), 1..400),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 1..900),
        ) {
            let cells: Vec<u64> = picks.iter().map(|pick| *pick.get(&values)).collect();
            let mut out = AlignedVec::new();
            let mut distinct = Distinct::new();
            distinct.encode(&[1, 2, 3], &mut out);
            out.clear();
            let (base, width, table) = distinct.encode(&cells, &mut out);
            let count = u32::try_from(cells.len()).unwrap();
            let run = CellRun::new(base, width, table, count, &out).unwrap();
            let mut copy = vec![7; cells.len()];
            run.copy_to(&mut copy);
            prop_assert_eq!(&copy, &cells);
            prop_assert!(run.codes_are_known() && run.cells() == count);
            prop_assert!(out.len() <= cells.len() * 8);
            for (index, cell) in (0..).zip(&cells) {
                prop_assert_eq!(run.get(index), Some(*cell));
            }
            prop_assert_eq!(run.get(count), None);
            let (least, most) = (*cells.iter().min().unwrap(), *cells.iter().max().unwrap());
            prop_assert!(run.all_within(least, most) && (most == 0 || !run.all_within(0, most - 1)));
        }
    }

    proptest! {
        /// Scenario: times that rise, always or mostly, by little or by much.
        /// Guarantees: where it is shorter they are stored as distances, and come back; bounds are exact.
        #[test]
        fn steady_cells_come_back(
            first in prop_oneof![0_u64..9, Just(1_760_000_000_000_000), Just(u64::MAX - (1 << 25))],
            gaps in prop::collection::vec(0_u64..2_000, 1..900),
            jitter in prop::collection::vec(0_u64..5_000, 900),
            is_sorted: bool,
        ) {
            let mut time = first;
            let cells: Vec<u64> = gaps.iter().zip(&jitter).map(|(gap, jitter)| {
                time += gap;
                if is_sorted { time } else { time + jitter }
            }).collect();
            let (mut scratch, mut out) = (Vec::new(), AlignedVec::new());
            let encoded = encode_steady(&cells, &mut scratch, &mut out);
            prop_assert_eq!(encoded.is_none(), out.is_empty());
            if let Some((base, width, anchors)) = encoded {
                let count = u32::try_from(cells.len()).unwrap();
                let run = CellRun::steady(base, width, anchors, count, &out).unwrap();
                let mut copy = vec![7; cells.len()];
                run.copy_to(&mut copy);
                prop_assert_eq!(&copy, &cells);
                prop_assert!(run.codes_are_known() && run.cells() == count && run.get(count).is_none());
                for (index, cell) in (0..).zip(&cells) {
                    prop_assert_eq!(run.get(index), Some(*cell));
                }
                let (least, most) = (*cells.iter().min().unwrap(), *cells.iter().max().unwrap());
                prop_assert!(run.all_within(least, most) && !run.all_within(least, most - 1));
                prop_assert!(!run.all_within(least + 1, most));
                prop_assert!(CellRun::steady(base, width, anchors | 1 << 9, count, &out).is_none());
                prop_assert!(CellRun::steady(base, width, anchors, count, &out[1..]).is_none());
            }
        }
    }

    /// Scenario: every step, and values between them.
    /// Guarantees: steps are the values that are coarse already, in order, without a hole, and each comes back.
    #[test]
    fn steps_are_the_coarse_values() {
        let mut before = None;
        for step in 0..=STEP_MAX {
            let value = value_of_step(step);
            assert_eq!((step_of(value), crate::units::coarse(value)), (Some(step), value));
            assert!(before.is_none_or(|before| before < value));
            before = Some(value);
        }
        for value in [65, 67, 131, 1_001, u64::MAX] {
            assert_eq!(step_of(value), None, "{value}");
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
