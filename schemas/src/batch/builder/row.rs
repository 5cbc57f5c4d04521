//! One row on its way into a batch: what is written at once, and taken back where the row is given up.

use super::{BatchBuilder, ROWS_EXPANDED_BYTES_MAX, RowRefusal, truncated};
use crate::{
    batch::column::zigzag,
    batch::slots::{VALUE_MAX, is_plain_text, slot},
    field::{CellType, FieldSpec, Layer, column},
};

/// One row being written. Writing a default value leaves the cell absent; writing a cell twice keeps the second value.
#[must_use = "a row that is not committed is forgotten"]
pub struct RowWriter<'b> {
    builder: &'b mut BatchBuilder,
    /// One bit for each column that the row has written.
    columns: u128,
    /// One bit for each layer other than core that the row has.
    layers: u16,
    /// Bytes of the row's plain texts.
    expanded_bytes: usize,
    refusal: Option<RowRefusal>,
    committed: bool,
}

impl<'b> RowWriter<'b> {
    pub(super) const fn new(builder: &'b mut BatchBuilder) -> Self {
        Self { builder, columns: 0, layers: 0, expanded_bytes: 0, refusal: None, committed: false }
    }
}

impl RowWriter<'_> {
    /// Writes an unsigned integer. One greater than its field can be is lowered, and counted.
    pub fn unsigned(&mut self, column: u16, value: u64) -> &mut Self {
        let Some((slot, spec)) = self.field(column, CellType::Unsigned) else { return self };
        let most = VALUE_MAX.get(slot).copied().unwrap_or(u64::MAX);
        self.builder.lowered_values += u64::from(value > most);
        self.put(slot, spec.layer, value.min(most))
    }

    /// Writes a signed integer.
    pub fn signed(&mut self, column: u16, value: i64) -> &mut Self {
        let Some((slot, spec)) = self.field(column, CellType::Signed) else { return self };
        self.put(slot, spec.layer, zigzag(value))
    }

    /// Writes a double.
    pub fn float(&mut self, column: u16, value: f64) -> &mut Self {
        let Some((slot, spec)) = self.field(column, CellType::Float) else { return self };
        self.put(slot, spec.layer, value.to_bits())
    }

    /// Writes sixteen bytes.
    pub fn sixteen(&mut self, column: u16, value: [u8; 16]) -> &mut Self {
        let Some((slot, spec)) = self.field(column, CellType::Sixteen) else { return self };
        let builder = &mut *self.builder;
        let Some(code) = builder.sixteens.code(value, builder.limits.sixteens_max) else {
            self.refusal = Some(RowRefusal::SixteensFull);
            return self;
        };
        self.put(slot, spec.layer, u64::from(code))
    }

    /// Writes a text.
    pub fn text(&mut self, column: u16, text: &str) -> &mut Self {
        let Some((slot, spec)) = self.field(column, CellType::Symbol) else { return self };
        let builder = &mut *self.builder;
        let short = truncated(text, builder.limits.text_bytes_max);
        builder.truncated_texts += u64::from(short.len() < text.len());
        let last = builder.last_symbols.get(slot).copied().unwrap_or(0);
        let code = if builder.symbols.get(last) == short {
            last
        } else if let Some(code) = builder.symbols.code(short, builder.limits.symbol_bytes_max) {
            if let Some(last) = builder.last_symbols.get_mut(slot) {
                *last = code;
            }
            code
        } else {
            self.refusal = Some(RowRefusal::SymbolsFull);
            return self;
        };
        if is_plain_text(spec) {
            // A cell that is written twice is counted twice: rather too much than too little.
            self.expanded_bytes = self.expanded_bytes.saturating_add(short.len());
        }
        self.put(slot, spec.layer, u64::from(code))
    }

    /// Makes the row part of the batch; returns its place. A row without a count stands for one occurrence.
    ///
    /// # Errors
    /// The first refusal of a write; the row then never was, and the batch is as before.
    pub fn commit(mut self) -> Result<u32, RowRefusal> {
        if let Some((slot, spec)) = slot(column::core::count)
            && (self.columns & (1 << slot) == 0 || self.is_zero(slot))
        {
            self.put(slot, spec.layer, 1);
        }
        if let Some(refusal) = self.refusal {
            return Err(refusal);
        }
        let expanded_bytes = self.builder.expanded_bytes.saturating_add(self.expanded_bytes);
        if expanded_bytes > ROWS_EXPANDED_BYTES_MAX {
            return Err(RowRefusal::TextsFull);
        }
        self.builder.expanded_bytes = expanded_bytes;
        self.committed = true;
        let row = self.builder.rows;
        self.builder.rows += 1;
        Ok(row)
    }

    /// Forgets the row, as dropping it does.
    pub fn abort(self) {}

    fn is_zero(&self, slot: usize) -> bool {
        self.builder.columns.get(slot).and_then(|cells| cells.last()) == Some(&0)
    }

    fn field(&mut self, column: u16, cell: CellType) -> Option<(usize, &'static FieldSpec)> {
        let found = slot(column).filter(|(_slot, spec)| spec.cell == cell);
        if found.is_none() {
            self.refusal.get_or_insert(RowRefusal::WrongColumn(column));
        }
        found
    }

    fn put(&mut self, slot: usize, layer: Layer, word: u64) -> &mut Self {
        let bit = 1_u128 << slot;
        let written = self.columns & bit != 0;
        if word == 0 && !written {
            return self;
        }
        let cell = if layer == Layer::Core { self.builder.rows } else { self.enter(layer) };
        let Some(cells) = self.builder.columns.get_mut(slot) else { return self };
        if written {
            if let Some(last) = cells.last_mut() {
                *last = word;
            }
        } else {
            self.columns |= bit;
            cells.resize(cell as usize, 0);
            cells.push(word);
        }
        self
    }

    /// Makes sure that the row has the layer; returns the cell's place in the layer's columns.
    fn enter(&mut self, layer: Layer) -> u32 {
        let row = self.builder.rows;
        let Some(rows) = self.builder.layers.get_mut(layer as usize) else { return 0 };
        if self.layers & (1 << layer as u8) == 0 {
            self.layers |= 1 << layer as u8;
            rows.bitmap.resize(row as usize / 64 + 1, 0);
            if let Some(word) = rows.bitmap.last_mut() {
                *word |= 1 << (row % 64);
            }
            rows.cells += 1;
        }
        rows.cells - 1
    }
}

impl Drop for RowWriter<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let mut columns = self.columns;
        while columns != 0 {
            if let Some(cells) = self.builder.columns.get_mut(columns.trailing_zeros() as usize) {
                cells.pop();
            }
            columns &= columns - 1;
        }
        let row = self.builder.rows;
        for (layer, rows) in self.builder.layers.iter_mut().enumerate() {
            if self.layers & (1 << layer) != 0 {
                rows.cells -= 1;
                if let Some(word) = rows.bitmap.last_mut() {
                    *word &= !(1 << (row % 64));
                }
            }
        }
    }
}
