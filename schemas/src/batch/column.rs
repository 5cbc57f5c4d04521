//! One column of a batch, read in place.

use super::{planes::CellRun, rows::LayerRows, view::BatchView};
use crate::field::{Cell, CellType, FieldSpec, Layer};

pub(super) const fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

pub(super) const fn unzigzag(word: u64) -> i64 {
    (word >> 1).cast_signed() ^ -((word & 1).cast_signed())
}

/// The value that lies `cell` beyond `base`, modulo 2^32.
const fn from_base(base: u64, cell: u64) -> u64 {
    base.wrapping_add(cell) & u32::MAX as u64
}

/// A column of a known field that the batch has. It has one cell for each row of its layer.
#[derive(Clone, Copy)]
pub struct ColumnView<'v, 'a> {
    view: &'v BatchView<'a>,
    spec: &'static FieldSpec,
    cells: CellRun<'a>,
    /// What the cells are counted from, where they are.
    base: Option<CellRun<'a>>,
}

impl<'v, 'a> ColumnView<'v, 'a> {
    pub(super) const fn new(
        view: &'v BatchView<'a>,
        spec: &'static FieldSpec,
        cells: CellRun<'a>,
        base: Option<CellRun<'a>>,
    ) -> Self {
        Self { view, spec, cells, base }
    }

    /// The field that the column holds.
    #[must_use]
    pub const fn spec(&self) -> &'static FieldSpec {
        self.spec
    }

    /// The layer that it belongs to.
    #[must_use]
    pub const fn layer(&self) -> Layer {
        self.spec.layer
    }

    /// The rows that its cells belong to.
    #[must_use]
    pub fn layer_rows(&self) -> LayerRows<'a> {
        self.view.layer_rows(self.spec.layer)
    }

    /// How many cells it has.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.cells.cells()
    }

    /// Whether it has no cells.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.cells() == 0
    }

    /// The cell at `index` as the integer that is stored: the value, its zigzag code, a double's bits, or a code.
    #[inline]
    #[must_use]
    pub fn word(&self, index: u32) -> Option<u64> {
        let cell = self.cells.get(index)?;
        Some(self.base.map_or(cell, |base| from_base(base.get(index).unwrap_or(0), cell)))
    }

    /// The cell at `index` with its meaning.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<Cell<'a>> {
        self.word(index).map(|word| self.cell_of(word))
    }

    /// All cells, in order, with their rows.
    #[must_use]
    pub fn iter(&self) -> Cells<'v, 'a> {
        Cells { column: *self, next: 0 }
    }

    /// Writes all cells as they are stored to `out`, replacing what is in it. Far faster than one by one.
    pub fn copy_words(&self, out: &mut Vec<u64>) {
        out.resize(self.cells.cells() as usize, 0);
        self.cells.copy_to(out);
        if let Some(base) = self.base {
            for (index, cell) in (0..).zip(out.iter_mut()) {
                *cell = from_base(base.get(index).unwrap_or(0), *cell);
            }
        }
    }

    pub(super) fn cell_of(&self, word: u64) -> Cell<'a> {
        match self.spec.cell {
            CellType::Unsigned => Cell::Unsigned(word),
            CellType::Signed => Cell::Signed(unzigzag(word)),
            CellType::Float => Cell::Float(f64::from_bits(word)),
            CellType::Sixteen => Cell::Sixteen(self.view.sixteen_value(word)),
            CellType::Symbol => Cell::Symbol(self.view.symbol(u32::try_from(word).unwrap_or(0))),
        }
    }
}

/// The cells of a column, in order.
#[derive(Clone)]
pub struct Cells<'v, 'a> {
    column: ColumnView<'v, 'a>,
    next: u32,
}

impl<'a> Iterator for Cells<'_, 'a> {
    type Item = Cell<'a>;

    fn next(&mut self) -> Option<Cell<'a>> {
        let cell = self.column.get(self.next)?;
        self.next += 1;
        Some(cell)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.column.len() - self.next) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Cells<'_, '_> {}
