//! What can be wrong with a batch that somebody sent. Every fault has a name for counters and refusals.

use thiserror::Error;

/// Why a batch is refused. None of these is worth a retry: the same bytes fail again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BatchFault {
    /// There are fewer bytes than the prelude or its lengths say.
    #[error("the batch ends before its declared lengths")]
    Truncated,
    /// There are more bytes than the lengths say.
    #[error("the batch has bytes behind its declared lengths")]
    Surplus,
    /// The bytes do not begin at a multiple of 16.
    #[error("the batch is not aligned to 16 bytes in memory")]
    Misaligned,
    /// The prelude or the padding is not what it must be.
    #[error("the batch's prelude or padding is not zero where it must be")]
    Prelude,
    /// The directory is no valid archive.
    #[error("the batch's directory is not a valid archive")]
    Archive,
    /// The batch is of a version that this code does not read.
    #[error("the batch is of version {0}, which this reader does not know")]
    Version(u16),
    /// There are more rows than a batch may have.
    #[error("the batch has {0} rows, more than a batch may have")]
    TooManyRows(u32),
    /// There are more columns than a batch may have.
    #[error("the batch has more columns than a batch may have")]
    TooManyColumns,
    /// The window of the batch's ledger ends before it begins.
    #[error("the batch's window ends before it begins")]
    WindowReversed,
    /// Columns are not in ascending order of their ids, or one is there twice.
    #[error("column {0} is there twice or out of order")]
    ColumnOrder(u16),
    /// A column's bytes lie outside the blob.
    #[error("the bytes of column {0} lie outside the blob")]
    ColumnRange(u16),
    /// A known column has a cell type that is not the field table's.
    #[error("column {0} is of another cell type than its field")]
    ColumnType(u16),
    /// A known column is in another layer than in the field table.
    #[error("column {0} is in another layer than its field")]
    ColumnLayer(u16),
    /// A column's cells are wider than 8 bytes, or base and width together exceed 64 bits.
    #[error("column {0} has an impossible width or base")]
    ColumnWidth(u16),
    /// A column has not as many cells as its layer has rows.
    #[error("column {0} has not one cell for each row of its layer")]
    ColumnLength(u16),
    /// A cell is a code past the end of the column's own table of values.
    #[error("column {0} has a code that is not in its table of values")]
    ColumnCode(u16),
    /// A cell is greater than its field can be.
    #[error("column {0} has a value that its field cannot have")]
    ValueRange(u16),
    /// A cell is a code past the end of the symbol table.
    #[error("column {0} has a code that is not in the symbol table")]
    SymbolCode(u16),
    /// A cell is a code past the end of the table of sixteen-byte values.
    #[error("column {0} has a code that is not in the table of sixteen-byte values")]
    SixteenCode(u16),
    /// An event stands for no occurrence at all.
    #[error("a row has a count of zero")]
    ZeroCount,
    /// Row lists are not in ascending order of their layers, or one is there twice, or it is of the core layer.
    #[error("the row list of layer {0} is there twice, out of order, or of the core layer")]
    RowListOrder(u8),
    /// A row list lies outside the blob or has not one bit for each row.
    #[error("the row list of layer {0} is not of the batch's size")]
    RowListLength(u8),
    /// A row list names a row that the batch does not have.
    #[error("the row list of layer {0} names a row past the end")]
    RowListRange(u8),
    /// A text's end is out of order, inside a character or outside the symbol table.
    #[error("the symbol table's ends do not cut its text")]
    SymbolTable,
    /// A text is longer than a text may be.
    #[error("a text of the batch has {0} bytes, more than a text may have")]
    TextLength(usize),
    /// The texts together are longer than they may be.
    #[error("the batch's texts have {0} bytes, more than they may have")]
    SymbolBytes(usize),
    /// The texts would be too long if each were written out wherever it is named.
    #[error("the batch's texts, written out wherever they are named, have more bytes than they may have")]
    ExpandedSize,
    /// The table of sixteen-byte values lies outside the blob.
    #[error("the table of sixteen-byte values lies outside the blob")]
    SixteenTable,
    /// A line of the ledger names a text that is not in the symbol table.
    #[error("the ledger has a code that is not in the symbol table")]
    LedgerCode,
    /// The ledger has more lines than it may have.
    #[error("the ledger has {0} lines, more than it may have")]
    LedgerLines(usize),
}

impl BatchFault {
    /// The fault's name, for counters and refusals.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "batch-truncated",
            Self::Surplus => "batch-surplus",
            Self::Misaligned => "batch-misaligned",
            Self::Prelude => "batch-prelude",
            Self::Archive => "batch-archive",
            Self::Version(_) => "unknown-batch-version",
            Self::TooManyRows(_) => "too-many-rows",
            Self::TooManyColumns => "too-many-columns",
            Self::WindowReversed => "window-reversed",
            Self::ColumnOrder(_) => "column-order",
            Self::ColumnRange(_) => "column-range",
            Self::ColumnType(_) => "column-type",
            Self::ColumnLayer(_) => "column-layer",
            Self::ColumnWidth(_) => "column-width",
            Self::ColumnLength(_) => "column-length",
            Self::ColumnCode(_) => "column-code",
            Self::ValueRange(_) => "value-range",
            Self::SymbolCode(_) => "symbol-code",
            Self::SixteenCode(_) => "sixteen-code",
            Self::ZeroCount => "zero-count",
            Self::RowListOrder(_) => "row-list-order",
            Self::RowListLength(_) => "row-list-length",
            Self::RowListRange(_) => "row-list-range",
            Self::SymbolTable => "symbol-table",
            Self::TextLength(_) => "text-length",
            Self::SymbolBytes(_) => "symbol-bytes",
            Self::ExpandedSize => "expanded-size",
            Self::SixteenTable => "sixteen-table",
            Self::LedgerCode => "ledger-code",
            Self::LedgerLines(_) => "ledger-lines",
        }
    }
}
