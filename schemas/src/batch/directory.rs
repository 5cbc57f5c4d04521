//! What is archived before the blob: the directory, its shape frozen with the batch version.

use rkyv::{Archive, Serialize};

/// The prelude's length.
pub(super) const PRELUDE_BYTES: usize = 16;

/// What stands before the blob.
#[derive(Archive, Serialize, Default)]
pub(super) struct Directory {
    pub(super) version: u16,
    pub(super) rows: u32,
    pub(super) since_micros: u64,
    pub(super) until_micros: u64,
    /// Ascending by id.
    pub(super) columns: Vec<ColumnEntry>,
    /// Ascending by layer; only of layers that some rows lack.
    pub(super) row_lists: Vec<RowListEntry>,
    /// All texts, one behind the other; code 0, the empty text, is not among them.
    pub(super) symbols: String,
    /// Where the texts end in `symbols`, from code 1 on.
    pub(super) symbol_ends: Run,
    /// The sixteen-byte values from code 1 on (code 0 is all zeros): where they begin in the blob, and how many.
    pub(super) sixteens_offset: u32,
    pub(super) sixteens: u32,
    pub(super) ledger: Vec<LedgerLine>,
}

/// Cells in byte planes.
#[derive(Archive, Serialize, Default, Clone, Copy)]
pub(super) struct Run {
    pub(super) base: u64,
    pub(super) offset: u32,
    pub(super) cells: u32,
    pub(super) width: u8,
}

/// One column.
#[derive(Archive, Serialize, Clone, Copy)]
pub(super) struct ColumnEntry {
    pub(super) base: u64,
    /// Where its planes begin in the blob.
    pub(super) offset: u32,
    /// How many bytes they are.
    pub(super) length: u32,
    pub(super) id: u16,
    /// How many values the column's table has; 0 if its cells are the values themselves.
    pub(super) distinct: u16,
    /// The code of a [`crate::field::CellType`] in the low four bits, and of a [`super::planes::Form`] in the high ones:
    /// to a reader that does not know the form it is a cell type that it does not know.
    pub(super) cell: u8,
    /// Bytes per cell.
    pub(super) width: u8,
    /// The code of a [`crate::field::Layer`].
    pub(super) layer: u8,
}

/// Which rows have a layer: one bit for each row, the first row in the lowest bit of the first byte.
#[derive(Archive, Serialize, Clone, Copy)]
pub(super) struct RowListEntry {
    pub(super) layer: u8,
    /// Where the bitmap begins in the blob; it is of whole 8-byte words.
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// One line of the ledger, its texts as symbol codes.
#[derive(Archive, Serialize, Clone, Copy)]
pub(super) struct LedgerLine {
    pub(super) count: u64,
    pub(super) subject: u32,
    pub(super) reason: u32,
    pub(super) stage: u8,
    pub(super) fate: u8,
}
