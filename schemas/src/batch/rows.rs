//! Which rows have which layer, and a cursor over rows that finds each layer's cell without searching.

use super::view::BatchView;
use crate::field::Layer;

pub(super) const LAYERS: usize = Layer::ALL.len();

/// The rows that have a layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct LayerRows<'a> {
    cells: u32,
    /// None if the layer has all rows, or none at all.
    bitmap: Option<&'a [[u8; 8]]>,
}

impl<'a> LayerRows<'a> {
    /// All of `rows` rows.
    pub(super) const fn all(rows: u32) -> Self {
        Self { cells: rows, bitmap: None }
    }

    /// The rows whose bit is set.
    pub(super) fn listed(bitmap: &'a [[u8; 8]]) -> Self {
        let cells = bitmap.iter().map(|word| u64::from_le_bytes(*word).count_ones()).sum();
        Self { cells, bitmap: Some(bitmap) }
    }

    /// How many rows have the layer: the length of each of its columns.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.cells
    }

    /// Whether no row has it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.cells == 0
    }

    /// Whether every row has it, so that a row's number is its cell.
    #[must_use]
    pub const fn is_dense(&self) -> bool {
        self.bitmap.is_none()
    }

    /// Whether `row` has the layer.
    #[inline]
    #[must_use]
    pub fn contains(&self, row: u32) -> bool {
        let Some(bitmap) = self.bitmap else { return row < self.cells };
        let word = bitmap.get(row as usize / 64).map_or(0, |word| u64::from_le_bytes(*word));
        word >> (row % 64) & 1 == 1
    }

    /// The cell of `row` in the layer's columns, if the row has the layer. Counts bits: for a row here and there.
    #[must_use]
    pub fn cell(&self, row: u32) -> Option<u32> {
        self.contains(row).then(|| self.rank(row))
    }

    /// How many rows before `row` have the layer.
    pub(super) fn rank(&self, row: u32) -> u32 {
        let Some(bitmap) = self.bitmap else { return row.min(self.cells) };
        let (words, bit) = (row as usize / 64, row % 64);
        let before: u32 = bitmap.iter().take(words).map(|word| u64::from_le_bytes(*word).count_ones()).sum();
        let word = bitmap.get(words).map_or(0, |word| u64::from_le_bytes(*word));
        before + (word & ((1 << bit) - 1)).count_ones()
    }

    /// The rows, ascending; the n-th belongs to the n-th cell.
    pub fn iter(&self) -> impl Iterator<Item = u32> + 'a {
        let dense = if self.bitmap.is_none() { 0..self.cells } else { 0..0 };
        let words = self.bitmap.unwrap_or_default().iter().zip((0_u32..).step_by(64));
        dense.chain(words.flat_map(|(word, first)| {
            let mut rest = u64::from_le_bytes(*word);
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(first + bit)
            })
        }))
    }
}

/// One row of a batch. Its getters cost no search; an absent cell reads as the default.
#[derive(Clone, Copy)]
pub struct RowView<'v, 'a> {
    view: &'v BatchView<'a>,
    row: u32,
    /// For each layer, how many rows before this one have it.
    cells: [u32; LAYERS],
    /// One bit for each layer that the row has.
    layers: u16,
}

impl<'v, 'a> RowView<'v, 'a> {
    pub(super) fn at(view: &'v BatchView<'a>, row: u32) -> Self {
        let mut this = Self { view, row, cells: [0; LAYERS], layers: 0 };
        for (code, (rank, rows)) in this.cells.iter_mut().zip(view.all_layer_rows()).enumerate() {
            *rank = rows.rank(row);
            this.layers |= u16::from(rows.contains(row)) << code;
        }
        this
    }

    fn advance(&mut self) {
        self.row += 1;
        let mut layers = 0;
        for (code, (rank, rows)) in self.cells.iter_mut().zip(self.view.all_layer_rows()).enumerate() {
            *rank += u32::from(self.layers >> code & 1);
            layers |= u16::from(rows.contains(self.row)) << code;
        }
        self.layers = layers;
    }

    /// The row's place in the batch.
    #[must_use]
    pub const fn row(&self) -> u32 {
        self.row
    }

    /// Whether the row has `layer`.
    #[must_use]
    pub const fn has(&self, layer: Layer) -> bool {
        self.layers >> layer as u8 & 1 == 1
    }

    #[inline]
    fn word(&self, column: u16) -> u64 {
        let Some(column) = self.view.column(column) else { return 0 };
        let layer = column.layer();
        if !self.has(layer) {
            return 0;
        }
        self.cells.get(layer as usize).and_then(|cell| column.word(*cell)).unwrap_or(0)
    }

    /// The unsigned integer in `column`.
    #[inline]
    #[must_use]
    pub fn unsigned(&self, column: u16) -> u64 {
        self.word(column)
    }

    /// The signed integer in `column`.
    #[must_use]
    pub fn signed(&self, column: u16) -> i64 {
        super::column::unzigzag(self.word(column))
    }

    /// The double in `column`.
    #[must_use]
    pub fn float(&self, column: u16) -> f64 {
        f64::from_bits(self.word(column))
    }

    /// The sixteen bytes in `column`.
    #[must_use]
    pub fn sixteen(&self, column: u16) -> [u8; 16] {
        self.view.sixteen_value(self.word(column))
    }

    /// The symbol code in `column`: equal codes are equal texts, 0 is the empty text.
    #[inline]
    #[must_use]
    pub fn symbol_code(&self, column: u16) -> u32 {
        u32::try_from(self.word(column)).unwrap_or(0)
    }

    /// The text in `column`.
    #[must_use]
    pub fn text(&self, column: u16) -> &'a str {
        self.view.symbol(self.symbol_code(column))
    }
}

/// The rows of a batch, in order.
#[derive(Clone)]
pub struct Rows<'v, 'a> {
    next: RowView<'v, 'a>,
    end: u32,
}

impl<'v, 'a> Rows<'v, 'a> {
    pub(super) fn new(view: &'v BatchView<'a>) -> Self {
        Self { next: RowView::at(view, 0), end: view.rows() }
    }
}

impl<'v, 'a> Iterator for Rows<'v, 'a> {
    type Item = RowView<'v, 'a>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.next.row >= self.end {
            return None;
        }
        let row = self.next;
        self.next.advance();
        Some(row)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.end - self.next.row) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Rows<'_, '_> {}
