//! The columns of a `Native` block: one struct per layout, each a growing buffer in the server's own format.
//!
//! Integers, floats, times and addresses are little-endian cells behind each other; strings carry their length;
//! arrays and maps are cumulative offsets and then all elements; low-cardinality strings are a dictionary and
//! indices into it (ClickHouse source: `SerializationLowCardinality`, `SerializationArray`,
//! `SerializationNullable`). A column must never hold more or fewer cells than it was given.

use std::collections::HashMap;

use super::put_varuint;

/// A column that can be written into a block.
pub trait NativeColumn {
    /// The type as ClickHouse spells it.
    fn clickhouse_type(&self) -> &str;
    /// The number of rows so far.
    fn rows(&self) -> usize;
    /// The exact number of bytes that [`NativeColumn::encode`] will append.
    fn encoded_len(&self) -> usize;
    /// Appends the cells to `out`.
    fn encode(&self, out: &mut Vec<u8>);
    /// Forgets all rows and keeps the buffers.
    fn clear(&mut self);

    /// Appends what a column writes once before all cells; only low-cardinality columns do. Columns that contain
    /// others call it for them, because ClickHouse puts it before the outer column's offsets.
    fn encode_prefix(&self, _out: &mut Vec<u8>) {}
    /// The bytes of [`NativeColumn::encode_prefix`].
    fn prefix_len(&self) -> usize {
        0
    }
    /// Appends the cells without the prefix.
    fn encode_cells(&self, out: &mut Vec<u8>) {
        self.encode(out);
    }
}

/// Cells of a fixed width: integers, floats, times, addresses, `FixedString`.
#[derive(Debug)]
pub struct FixedColumn {
    clickhouse_type: String,
    width: usize,
    cells: Vec<u8>,
}

impl FixedColumn {
    /// A column of `clickhouse_type` whose cells have `width` bytes; a width of zero becomes one.
    #[must_use]
    pub fn new(clickhouse_type: &str, width: usize) -> Self {
        Self { clickhouse_type: clickhouse_type.to_owned(), width: width.max(1), cells: Vec::new() }
    }

    /// The bytes of one cell.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Appends a little-endian integer or a raw cell, cut or padded with zeroes to the column's width.
    pub fn push(&mut self, cell: &[u8]) {
        let taken = cell.get(..self.width).unwrap_or(cell);
        self.cells.extend_from_slice(taken);
        self.cells.resize(self.cells.len() + self.width - taken.len(), 0);
    }

    /// Appends many cells at once; `cells` must be a multiple of the width, surplus bytes are not taken.
    pub fn extend(&mut self, cells: &[u8]) {
        let whole = cells.len() - cells.len() % self.width;
        self.cells.extend_from_slice(cells.get(..whole).unwrap_or_default());
    }

    /// Appends a UUID or another 16-byte id given in the order in which it is printed.
    ///
    /// ClickHouse keeps a UUID as two little-endian 64-bit halves, the printed first half first.
    pub fn push_uuid(&mut self, bytes: [u8; 16]) {
        let number = u128::from_be_bytes(bytes);
        self.push(&number.rotate_left(64).to_le_bytes());
    }
}

impl NativeColumn for FixedColumn {
    fn clickhouse_type(&self) -> &str {
        &self.clickhouse_type
    }
    fn rows(&self) -> usize {
        self.cells.len() / self.width
    }
    fn encoded_len(&self) -> usize {
        self.cells.len()
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.cells);
    }
    fn clear(&mut self) {
        self.cells.clear();
    }
}

/// `String`: any bytes.
#[derive(Debug, Default)]
pub struct StringColumn {
    encoded: Vec<u8>,
    rows: usize,
}

impl StringColumn {
    /// Appends one string.
    pub fn push(&mut self, value: &[u8]) {
        put_varuint(&mut self.encoded, value.len());
        self.encoded.extend_from_slice(value);
        self.rows += 1;
    }
}

impl NativeColumn for StringColumn {
    fn clickhouse_type(&self) -> &'static str {
        "String"
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn encoded_len(&self) -> usize {
        self.encoded.len()
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.encoded);
    }
    fn clear(&mut self) {
        self.encoded.clear();
        self.rows = 0;
    }
}

/// `LowCardinality(String)`: each distinct string once, and an index per row.
#[derive(Debug, Default)]
pub struct LowCardinalityColumn {
    keys: StringColumn,
    known: HashMap<Box<[u8]>, u32>,
    indices: Vec<u32>,
}

/// `SerializationLowCardinality`: one dictionary per block, carried in the block.
const KEYS_VERSION: u64 = 1;
const HAS_ADDITIONAL_KEYS: u64 = 1 << 9;

impl LowCardinalityColumn {
    /// The index of `value` in this block's dictionary, entering it if it is new. A caller that has a symbol table
    /// of its own interns each symbol once per block and pushes indices.
    pub fn intern(&mut self, value: &[u8]) -> u32 {
        if let Some(index) = self.known.get(value) {
            return *index;
        }
        // A block holds at most `BLOCK_ROWS_MAX` rows, so that the count fits.
        let index = u32::try_from(self.keys.rows).unwrap_or(u32::MAX);
        self.keys.push(value);
        self.known.insert(value.into(), index);
        index
    }

    /// Appends a row by the index that [`LowCardinalityColumn::intern`] gave since the last `clear`. An index that
    /// it did not give becomes the empty string: the server would refuse the whole block.
    pub fn push_index(&mut self, index: u32) {
        let known = (index as usize) < self.keys.rows;
        let index = if known { index } else { self.intern(b"") };
        self.indices.push(index);
    }

    /// Appends a row.
    pub fn push(&mut self, value: &[u8]) {
        let index = self.intern(value);
        self.indices.push(index);
    }

    /// (code of the index type, bytes per index)
    fn index_width(&self) -> (u64, usize) {
        match self.keys.rows {
            0..=0x100 => (0, 1),
            0x101..=0x1_0000 => (1, 2),
            _ => (2, 4),
        }
    }
}

impl NativeColumn for LowCardinalityColumn {
    fn clickhouse_type(&self) -> &'static str {
        "LowCardinality(String)"
    }
    fn rows(&self) -> usize {
        self.indices.len()
    }
    fn encoded_len(&self) -> usize {
        if self.indices.is_empty() {
            return self.prefix_len();
        }
        self.prefix_len() + 24 + self.keys.encoded_len() + self.indices.len() * self.index_width().1
    }
    fn encode(&self, out: &mut Vec<u8>) {
        self.encode_prefix(out);
        self.encode_cells(out);
    }
    fn clear(&mut self) {
        self.keys.clear();
        self.known.clear();
        self.indices.clear();
    }
    fn encode_prefix(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&KEYS_VERSION.to_le_bytes());
    }
    fn prefix_len(&self) -> usize {
        8
    }
    fn encode_cells(&self, out: &mut Vec<u8>) {
        // Inside an array or a map without elements ClickHouse writes nothing at all here.
        if self.indices.is_empty() {
            return;
        }
        let (code, width) = self.index_width();
        out.extend_from_slice(&(code | HAS_ADDITIONAL_KEYS).to_le_bytes());
        out.extend_from_slice(&(self.keys.rows as u64).to_le_bytes());
        self.keys.encode(out);
        out.extend_from_slice(&(self.indices.len() as u64).to_le_bytes());
        for index in &self.indices {
            let cell = index.to_le_bytes();
            out.extend_from_slice(cell.get(..width).unwrap_or(&cell));
        }
    }
}

/// `Array(T)`: the elements of all rows and, per row, where they end.
#[derive(Debug)]
pub struct ArrayColumn<C> {
    clickhouse_type: String,
    ends: Vec<u8>,
    elements: C,
}

impl<C: NativeColumn> ArrayColumn<C> {
    /// A column of arrays with elements like `elements`, which must be empty.
    #[must_use]
    pub fn new(elements: C) -> Self {
        Self { clickhouse_type: format!("Array({})", elements.clickhouse_type()), ends: Vec::new(), elements }
    }

    /// Where the elements of the row being built are pushed; [`ArrayColumn::finish_row`] ends the row.
    pub fn elements(&mut self) -> &mut C {
        &mut self.elements
    }

    /// Ends a row: it has the elements that were pushed since the last one.
    pub fn finish_row(&mut self) {
        self.ends.extend_from_slice(&(self.elements.rows() as u64).to_le_bytes());
    }
}

impl<C: NativeColumn> NativeColumn for ArrayColumn<C> {
    fn clickhouse_type(&self) -> &str {
        &self.clickhouse_type
    }
    fn rows(&self) -> usize {
        self.ends.len() / 8
    }
    fn encoded_len(&self) -> usize {
        self.ends.len() + self.elements.encoded_len()
    }
    fn encode(&self, out: &mut Vec<u8>) {
        self.elements.encode_prefix(out);
        out.extend_from_slice(&self.ends);
        self.elements.encode_cells(out);
    }
    fn clear(&mut self) {
        self.ends.clear();
        self.elements.clear();
    }
}

/// `Map(LowCardinality(String), String)`.
#[derive(Debug, Default)]
pub struct MapColumn {
    ends: Vec<u8>,
    keys: LowCardinalityColumn,
    values: StringColumn,
}

impl MapColumn {
    /// Adds an entry to the row being built; [`MapColumn::finish_row`] ends the row.
    pub fn push_entry(&mut self, key: &[u8], value: &[u8]) {
        self.keys.push(key);
        self.values.push(value);
    }

    /// Ends a row: it has the entries that were pushed since the last one.
    pub fn finish_row(&mut self) {
        self.ends.extend_from_slice(&(self.values.rows() as u64).to_le_bytes());
    }
}

impl NativeColumn for MapColumn {
    fn clickhouse_type(&self) -> &'static str {
        "Map(LowCardinality(String), String)"
    }
    fn rows(&self) -> usize {
        self.ends.len() / 8
    }
    fn encoded_len(&self) -> usize {
        self.ends.len() + self.keys.encoded_len() + self.values.encoded_len()
    }
    fn encode(&self, out: &mut Vec<u8>) {
        self.keys.encode_prefix(out);
        out.extend_from_slice(&self.ends);
        self.keys.encode_cells(out);
        self.values.encode(out);
    }
    fn clear(&mut self) {
        self.ends.clear();
        self.keys.clear();
        self.values.clear();
    }
}

/// `Nullable(T)` of a fixed-width or string column.
#[derive(Debug)]
pub struct NullableColumn<C> {
    clickhouse_type: String,
    nulls: Vec<u8>,
    values: C,
}

impl<C: NativeColumn> NullableColumn<C> {
    /// A nullable column with values like `values`, which must be empty.
    #[must_use]
    pub fn new(values: C) -> Self {
        Self { clickhouse_type: format!("Nullable({})", values.clickhouse_type()), nulls: Vec::new(), values }
    }

    /// Appends a row whose value `push` appends to the inner column, exactly one.
    pub fn push_with(&mut self, push: impl FnOnce(&mut C)) {
        self.nulls.push(0);
        push(&mut self.values);
    }

    /// Appends a null; `push_default` appends the one cell that stands under it.
    pub fn push_null_with(&mut self, push_default: impl FnOnce(&mut C)) {
        self.nulls.push(1);
        push_default(&mut self.values);
    }
}

impl<C: NativeColumn> NativeColumn for NullableColumn<C> {
    fn clickhouse_type(&self) -> &str {
        &self.clickhouse_type
    }
    fn rows(&self) -> usize {
        // The larger of the two, so that a caller who pushed no or two values is caught by the block's check.
        self.nulls.len().max(self.values.rows())
    }
    fn encoded_len(&self) -> usize {
        self.values.rows() + self.values.encoded_len()
    }
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.nulls);
        self.values.encode(out);
    }
    fn clear(&mut self) {
        self.nulls.clear();
        self.values.clear();
    }
}
