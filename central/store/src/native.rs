//! ClickHouse's `Native` block format, written column by column.
//!
//! Layout (ClickHouse documentation, "Native" format; client revision 0, as over HTTP): number of columns and of
//! rows as varuints, then for each column its name and type as strings and its cells. [`columns`] knows how each
//! type lays out its cells; this module owns the block around them and the checks that make a wrong block
//! impossible to send: the server takes surplus bytes for further rows without an error.
//!
//! Nothing here does I/O. The aggregator fills a [`BlockBuilder`] (or columns of its own) and hands the encoded
//! block to [`crate::client::BlockWriter`]. Buffers are kept by [`BlockBuilder::clear`]; a row allocates nothing.

pub mod any;
pub mod columns;

pub use any::AnyColumn;
pub use columns::NativeColumn;

/// The most rows that one block may hold; larger blocks cost the server memory and gain nothing.
pub const BLOCK_ROWS_MAX: usize = 1_000_000;
/// The most bytes that one encoded block may have.
pub const BLOCK_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Why a block cannot be encoded. All of these are faults of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// There is nothing to insert.
    #[error("the block has no columns or no rows")]
    Empty,
    /// A column was not given a cell for every row, or one too many.
    #[error("column {column} has {rows} rows and the block's first column has {expected}")]
    UnequalColumns {
        /// The column that differs.
        column: String,
        /// Its rows.
        rows: usize,
        /// The rows of the block's first column.
        expected: usize,
    },
    /// A column wrote another number of bytes than its cells need.
    #[error("column {column} encoded to {written} bytes instead of {expected}")]
    WrongLength {
        /// The column that differs.
        column: String,
        /// What it wrote.
        written: usize,
        /// What its cells need.
        expected: usize,
    },
    /// The block is over [`BLOCK_ROWS_MAX`] or [`BLOCK_BYTES_MAX`]; cut it.
    #[error(
        "the block has {rows} rows and {bytes} bytes; at most {BLOCK_ROWS_MAX} rows and {BLOCK_BYTES_MAX} bytes may go in one"
    )]
    TooLarge {
        /// Its rows.
        rows: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// A type that no column here can hold.
    #[error("column {column} has type {clickhouse_type}, which the block writer does not know")]
    UnknownType {
        /// The column.
        column: String,
        /// Its type as the schema names it.
        clickhouse_type: String,
    },
}

/// A block that passed every check, ready to be sent. Only [`encode`] makes one, so that its bytes are exactly its
/// columns and rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedBlock {
    columns: Vec<String>,
    rows: usize,
    bytes: bytes::Bytes,
}

impl EncodedBlock {
    /// The columns' names in the order of the bytes.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The number of rows, never zero.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// The block as the server reads it; clones share memory.
    #[must_use]
    pub const fn bytes(&self) -> &bytes::Bytes {
        &self.bytes
    }
}

/// Encodes columns that the caller owns. `columns` are (name, cells) in the order in which they are inserted.
///
/// # Errors
/// [`BlockError`] when the columns do not make up a block.
pub fn encode(columns: &[(&str, &dyn NativeColumn)]) -> Result<EncodedBlock, BlockError> {
    let rows = columns.first().map_or(0, |(_, column)| column.rows());
    if rows == 0 {
        return Err(BlockError::Empty);
    }
    let mut bytes_expected = varuint_len(columns.len()) + varuint_len(rows);
    for (name, column) in columns {
        if column.rows() != rows {
            return Err(BlockError::UnequalColumns {
                column: (*name).to_owned(),
                rows: column.rows(),
                expected: rows,
            });
        }
        bytes_expected += string_len(name.as_bytes())
            + string_len(column.clickhouse_type().as_bytes())
            + column.encoded_len();
    }
    if rows > BLOCK_ROWS_MAX || bytes_expected > BLOCK_BYTES_MAX {
        return Err(BlockError::TooLarge { rows, bytes: bytes_expected });
    }

    let mut out = Vec::with_capacity(bytes_expected);
    put_varuint(&mut out, columns.len());
    put_varuint(&mut out, rows);
    for (name, column) in columns {
        put_string(&mut out, name.as_bytes());
        put_string(&mut out, column.clickhouse_type().as_bytes());
        let before = out.len();
        column.encode(&mut out);
        let written = out.len() - before;
        if written != column.encoded_len() {
            return Err(BlockError::WrongLength {
                column: (*name).to_owned(),
                written,
                expected: column.encoded_len(),
            });
        }
    }
    Ok(EncodedBlock {
        columns: columns.iter().map(|(name, _)| (*name).to_owned()).collect(),
        rows,
        bytes: out.into(),
    })
}

/// A block whose columns are named by a schema at run time, as the events' field table does.
#[derive(Debug)]
pub struct BlockBuilder {
    columns: Vec<(String, AnyColumn)>,
}

impl BlockBuilder {
    /// A builder for `schema`, pairs of a column's name and its ClickHouse type.
    ///
    /// # Errors
    /// [`BlockError::UnknownType`] names the first type that is not supported.
    pub fn new<'a>(schema: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, BlockError> {
        let mut columns = Vec::new();
        for (name, clickhouse_type) in schema {
            let column = AnyColumn::of_type(clickhouse_type).ok_or_else(|| BlockError::UnknownType {
                column: name.to_owned(),
                clickhouse_type: clickhouse_type.to_owned(),
            })?;
            columns.push((name.to_owned(), column));
        }
        Ok(Self { columns })
    }

    /// The column at `index` of the schema, to fill. `None` past its end.
    pub fn column(&mut self, index: usize) -> Option<&mut AnyColumn> {
        self.columns.get_mut(index).map(|(_, column)| column)
    }

    /// All columns in the schema's order, to fill several at once.
    pub fn columns(&mut self) -> impl Iterator<Item = (&str, &mut AnyColumn)> {
        self.columns.iter_mut().map(|(name, column)| (name.as_str(), column))
    }

    /// The place of the column called `name`.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|(column, _)| column == name)
    }

    /// The rows of the first column; [`BlockBuilder::encode`] checks that all are equal.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.columns.first().map_or(0, |(_, column)| column.rows())
    }

    /// The block so far, checked. The builder keeps its rows until [`BlockBuilder::clear`].
    ///
    /// # Errors
    /// [`BlockError`] when the columns do not make up a block.
    pub fn encode(&self) -> Result<EncodedBlock, BlockError> {
        let columns: Vec<(&str, &dyn NativeColumn)> =
            self.columns.iter().map(|(name, column)| (name.as_str(), column as &dyn NativeColumn)).collect();
        encode(&columns)
    }

    /// Forgets all rows and keeps the buffers.
    pub fn clear(&mut self) {
        for (_, column) in &mut self.columns {
            column.clear();
        }
    }
}

/// LEB128, as ClickHouse's `writeVarUInt`.
pub(crate) fn put_varuint(out: &mut Vec<u8>, value: usize) {
    let mut rest = value as u64;
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push((rest & 0x7f) as u8);
}

pub(crate) fn varuint_len(value: usize) -> usize {
    let bits = (usize::BITS - value.leading_zeros()).max(1) as usize;
    bits.div_ceil(7)
}

pub(crate) fn put_string(out: &mut Vec<u8>, value: &[u8]) {
    put_varuint(out, value.len());
    out.extend_from_slice(value);
}

pub(crate) fn string_len(value: &[u8]) -> usize {
    varuint_len(value.len()) + value.len()
}
