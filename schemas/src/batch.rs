//! The columnar form of events: what a frame carries, and what is read in place from the received bytes.
//!
//! A batch is a directory of columns. Its bytes are, in this order:
//!
//! | bytes | what |
//! |---|---|
//! | 16 | prelude: length of the archive (u32), length of the blob (u32), eight zero bytes; little-endian |
//! | archive length | the archived directory: columns, row lists, symbol table, ledger |
//! | to the next multiple of 16 | zeros |
//! | blob length | the cells of all columns |
//!
//! Every cell is an unsigned integer (doubles are their bits, signed integers are zigzag-coded, texts and sixteen-byte
//! values are codes into a table of the batch). A column names a `base` and a `width` of 0 to 8 bytes: its cells are
//! stored minus the base, in byte planes (plane `k` holds byte `k` of all cells), so that equal high bytes lie side by
//! side and a constant column needs no bytes at all. A column of few distinct values has one plane of codes instead,
//! and behind it the planes of its `distinct` values. Sizes and durations that lie on the steps of
//! [`coarse`](crate::units::coarse) are stored as numbers of steps, threads as what lies between them and their
//! process, and times as what lies between them and the row before, with an anchor every sixteen rows. A column of a layer other than core has a cell only for the rows
//! that have the layer: a bitmap lists them, and a layer that all rows have needs none. An absent column reads as the
//! default in every row. The directory's shape is frozen with the batch version; what is added comes as columns, and a
//! reader skips column ids and cell types that it does not know.
//!
//! [`BatchBuilder`] writes batches (the agent's pipeline), [`BatchView`] reads them (the aggregator's intake). This
//! module never reads a clock and never makes an owned event except in [`BatchView::event`].

mod builder;
mod check;
mod column;
mod directory;
mod distinct;
mod fault;
mod intern;
mod planes;
mod rows;
mod slots;
mod view;

#[cfg(test)]
mod tests;

pub use builder::{BatchBuilder, BatchLimits, BatchSummary, RowRefusal, RowWriter};
pub use column::{Cells, ColumnView};
pub use fault::BatchFault;
/// The buffer that batches are written to and read from: its bytes begin at a multiple of 16.
pub use rkyv::util::AlignedVec;
pub use rows::{LayerRows, RowView, Rows};
pub use slots::value_max;
pub use view::BatchView;

/// The version of the batches that this code writes.
pub const BATCH_VERSION: u16 = 1;

/// The oldest version that this code reads. Version 0 was never shipped.
pub const BATCH_VERSION_OLDEST: u16 = 1;

/// The newest version that this code reads: the one after its own, whose new columns it skips.
pub const BATCH_VERSION_NEWEST: u16 = BATCH_VERSION + 1;

/// The most rows that a batch may have.
pub const ROWS_MAX: u32 = 65_536;

/// The most columns that a batch may have, those of unknown ids included.
pub const COLUMNS_MAX: usize = 250;

/// The most bytes of one text.
///
/// This and the limits below bound what a batch *becomes*: a text is stored once and named often, so that a frame of
/// a few kilobytes could otherwise stand for gigabytes of what a reader makes of it.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// The most bytes of all texts of a batch together. A reader that keeps a table of texts for each column needs at most
/// this for each.
pub const SYMBOL_BYTES_MAX: usize = 4 << 20;

/// The most lines of a batch's ledger: those that a sender tells one by one, and one more for each stage and fate that
/// stands for the rest.
pub const LEDGER_LINES_MAX: usize = 2_048 + 64;

/// The most bytes of the texts of a batch when each is written out wherever it is named: in the cells of the columns
/// that hold plain texts (`String` in ClickHouse), and in the lines of the ledger.
pub const EXPANDED_TEXT_BYTES_MAX: usize = 64 << 20;

/// The alignment of a batch's bytes, and of its blob within them.
pub const BATCH_ALIGNMENT_BYTES: usize = 16;

/// Whether this code reads batches of `version`.
#[must_use]
pub const fn is_readable(version: u16) -> bool {
    version >= BATCH_VERSION_OLDEST && version <= BATCH_VERSION_NEWEST
}
