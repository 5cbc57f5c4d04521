//! Makes batches, row by row. It keeps its memory from batch to batch: in steady state no event allocates.

mod row;

use rkyv::{rancor::Failure, util::AlignedVec};
use thiserror::Error;

pub use self::row::RowWriter;
use super::{
    BATCH_ALIGNMENT_BYTES, BATCH_VERSION, BatchFault, EXPANDED_TEXT_BYTES_MAX, LEDGER_LINES_MAX, ROWS_MAX,
    SYMBOL_BYTES_MAX, TEXT_BYTES_MAX,
    directory::{ColumnEntry, Directory, LedgerLine, PRELUDE_BYTES, RowListEntry, Run},
    distinct::Distinct,
    intern::{Sixteens, Symbols},
    planes::{self, Form, step_of},
    slots::{SLOTS, beside, may_be_steady, may_be_steps, slot as slot_of},
};
use crate::{
    event::UnifiedEvent,
    field::{Cell, FIELDS, FieldSpec, Layer},
    ledger::{Fate, Ledger, LedgerEntry, Stage},
};

const LAYERS: usize = Layer::ALL.len();

/// The most lines of a ledger that are told one by one. Counts of further lines go into one line per stage and fate.
const LEDGER_LINES_TOLD_MAX: usize = 2_048;

const _: () = assert!(LEDGER_LINES_TOLD_MAX + Stage::ALL.len() * Fate::ALL.len() <= LEDGER_LINES_MAX);

/// The most bytes of a subject or reason in the ledger; longer ones are cut at a character's boundary.
const LEDGER_NAME_BYTES_MAX: usize = 256;

/// What the texts of a batch's rows may have when written out: the ledger's part is left free for it.
const ROWS_EXPANDED_BYTES_MAX: usize = EXPANDED_TEXT_BYTES_MAX - LEDGER_LINES_MAX * 2 * LEDGER_NAME_BYTES_MAX;

/// What the texts of the ledger may add to the symbol table, beyond the events' limit.
const LEDGER_TEXT_BYTES_MAX: usize = 128 * 1_024;

/// The reason and subject of a ledger line that stands for several that no longer fitted.
const LEDGER_OVERFLOW: &str = "ledger-full";

/// How much a batch may hold. What does not fit is refused by name and goes into the next batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// The most rows; at most [`ROWS_MAX`].
    pub rows_max: u32,
    /// The most bytes of distinct texts; at most [`SYMBOL_BYTES_MAX`], of which the ledger needs a small part.
    pub symbol_bytes_max: usize,
    /// The most distinct sixteen-byte values.
    pub sixteens_max: usize,
    /// The most bytes of one text, at most [`TEXT_BYTES_MAX`]; longer ones are cut at a character's boundary and
    /// counted.
    pub text_bytes_max: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { rows_max: 16_384, symbol_bytes_max: 1 << 20, sixteens_max: 32_768, text_bytes_max: 4_096 }
    }
}

/// Why a row was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RowRefusal {
    /// The batch has as many rows as it may: finish it and write the row again.
    #[error("the batch has all the rows that it may have")]
    RowsFull,
    /// The symbol table is full: finish the batch and write the row again.
    #[error("the batch's symbol table is full")]
    SymbolsFull,
    /// The texts of the rows, each written out wherever it is named, are as long as they may be: finish the batch and
    /// write the row again.
    #[error("the batch's texts are, written out, as long as they may be")]
    TextsFull,
    /// The table of sixteen-byte values is full: finish the batch and write the row again.
    #[error("the batch's table of sixteen-byte values is full")]
    SixteensFull,
    /// The row wrote a column that the field table does not have, or as another type.
    #[error("column {0} does not exist or is of another type")]
    WrongColumn(u16),
}

impl RowRefusal {
    /// Whether the same row fits into an empty batch.
    #[must_use]
    pub const fn is_full(self) -> bool {
        !matches!(self, Self::WrongColumn(_))
    }
}

/// What a finished batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSummary {
    /// How many rows it has.
    pub rows: u32,
    /// How many texts were cut because they exceeded the limit.
    pub truncated_texts: u64,
    /// How many values were lowered to the greatest that their field can have.
    pub lowered_values: u64,
}

/// Which rows have a layer.
#[derive(Default)]
struct LayerRowsBuilder {
    cells: u32,
    bitmap: Vec<u64>,
}

/// Makes batches.
pub struct BatchBuilder {
    limits: BatchLimits,
    rows: u32,
    layers: [LayerRowsBuilder; LAYERS],
    /// By slot; as long as the last row that wrote it.
    columns: Vec<Vec<u64>>,
    /// The last code of each column, which is often the next one too.
    last_symbols: [u32; SLOTS],
    symbols: Symbols,
    sixteens: Sixteens,
    ledger: Ledger,
    /// Bytes of the rows' plain texts, each written out wherever it is named.
    expanded_bytes: usize,
    truncated_texts: u64,
    lowered_values: u64,
    directory: Directory,
    distinct: Distinct,
    /// A column's cells in the form that they are stored in.
    formed: Vec<u64>,
    /// The columns in the order in which they are written, with how often their cells change.
    order: Vec<(usize, usize)>,
    blob: AlignedVec,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new(BatchLimits::default())
    }
}

impl BatchBuilder {
    /// An empty batch that may grow to `limits`.
    #[must_use]
    pub fn new(mut limits: BatchLimits) -> Self {
        limits.rows_max = limits.rows_max.clamp(1, ROWS_MAX);
        limits.symbol_bytes_max = limits.symbol_bytes_max.min(SYMBOL_BYTES_MAX - LEDGER_TEXT_BYTES_MAX);
        limits.text_bytes_max = limits.text_bytes_max.min(limits.symbol_bytes_max).min(TEXT_BYTES_MAX);
        Self {
            limits,
            rows: 0,
            layers: std::array::from_fn(|_layer| LayerRowsBuilder::default()),
            columns: FIELDS.iter().map(|_field| Vec::new()).collect(),
            last_symbols: [0; SLOTS],
            symbols: Symbols::new(),
            sixteens: Sixteens::new(),
            ledger: Ledger::default(),
            expanded_bytes: 0,
            truncated_texts: 0,
            lowered_values: 0,
            directory: Directory::default(),
            distinct: Distinct::new(),
            formed: Vec::new(),
            order: Vec::new(),
            blob: AlignedVec::new(),
        }
    }

    /// How many rows the batch has so far.
    #[must_use]
    pub const fn rows(&self) -> u32 {
        self.rows
    }

    /// Whether the batch has neither rows nor ledger lines.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0 && self.ledger.entries.is_empty()
    }

    /// How many bytes of distinct texts the batch has so far.
    #[must_use]
    pub fn symbol_bytes(&self) -> usize {
        self.symbols.text_bytes()
    }

    /// The losses that the batch will carry, and the window that it speaks of.
    pub const fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Begins a row. It becomes part of the batch with [`RowWriter::commit`], and never was if the writer is dropped.
    ///
    /// # Errors
    /// [`RowRefusal::RowsFull`] if the batch has all the rows that it may have.
    pub fn begin_row(&mut self) -> Result<RowWriter<'_>, RowRefusal> {
        if self.rows >= self.limits.rows_max {
            return Err(RowRefusal::RowsFull);
        }
        Ok(RowWriter::new(self))
    }

    /// Appends an owned event; its id is given by the row's place. Returns the row.
    ///
    /// A count of zero becomes one. Not for the hot path.
    ///
    /// # Errors
    /// As [`Self::begin_row`] and [`RowWriter::commit`].
    pub fn push_event(&mut self, event: &UnifiedEvent) -> Result<u32, RowRefusal> {
        let mut row = self.begin_row()?;
        event.visit(&mut |_layer, id, cell| {
            match cell {
                Cell::Unsigned(value) => row.unsigned(id, value),
                Cell::Signed(value) => row.signed(id, value),
                Cell::Float(value) => row.float(id, value),
                Cell::Sixteen(value) => row.sixteen(id, value),
                Cell::Symbol(text) => row.text(id, text),
            };
        });
        row.commit()
    }

    /// Forgets all rows and the ledger.
    pub fn clear(&mut self) {
        self.rows = 0;
        for layer in &mut self.layers {
            layer.cells = 0;
            layer.bitmap.clear();
        }
        self.columns.iter_mut().for_each(Vec::clear);
        self.last_symbols = [0; SLOTS];
        self.symbols.clear();
        self.sixteens.clear();
        self.ledger.entries.clear();
        self.expanded_bytes = 0;
        self.truncated_texts = 0;
        self.lowered_values = 0;
    }

    /// Writes the batch to `out`, replacing what is in it, and begins the next one. The ledger's window stays.
    ///
    /// # Errors
    /// [`BatchFault::Archive`] if the directory cannot be archived, which only a lack of memory explains.
    pub fn finish(&mut self, out: &mut AlignedVec) -> Result<BatchSummary, BatchFault> {
        let summary = BatchSummary {
            rows: self.rows,
            truncated_texts: self.truncated_texts,
            lowered_values: self.lowered_values,
        };
        let mut blob = std::mem::take(&mut self.blob);
        blob.clear();
        self.fill_directory(&mut blob);
        let assembled = assemble(&self.directory, &blob, out);
        std::mem::swap(&mut self.directory.symbols, self.symbols.text());
        self.blob = blob;
        assembled?;
        self.clear();
        Ok(summary)
    }

    /// Fills directory and blob. The symbol table's text is lent to the directory; the caller takes it back.
    pub(super) fn fill_directory(&mut self, blob: &mut AlignedVec) {
        self.directory.version = BATCH_VERSION;
        self.directory.rows = self.rows;
        self.directory.since_micros = self.ledger.since.0.min(self.ledger.until.0);
        self.directory.until_micros = self.ledger.until.0;
        // First in the blob, where they are aligned.
        self.directory.sixteens_offset = 0;
        self.directory.sixteens = count(self.sixteens.values().len());
        blob.extend_from_slice(self.sixteens.values().as_flattened());
        self.fill_row_lists(blob);
        self.fill_columns(blob);
        self.fill_ledger();
        let ends = self.symbols.ends();
        let offset = count(blob.len());
        let (base, width) = planes::encode(ends, blob);
        self.directory.symbol_ends = Run { base, offset, cells: count(ends.len()), width };
        std::mem::swap(&mut self.directory.symbols, self.symbols.text());
    }

    #[cfg(test)]
    pub(super) const fn directory_mut(&mut self) -> &mut Directory {
        &mut self.directory
    }

    fn fill_row_lists(&mut self, blob: &mut AlignedVec) {
        self.directory.row_lists.clear();
        let words = (self.rows as usize).div_ceil(64);
        for (layer, rows) in Layer::ALL.into_iter().zip(&mut self.layers) {
            if layer == Layer::Core || rows.cells == 0 || rows.cells == self.rows {
                continue;
            }
            rows.bitmap.resize(words, 0);
            let offset = count(blob.len());
            for word in &rows.bitmap {
                blob.extend_from_slice(&word.to_le_bytes());
            }
            let length = count(words * 8);
            self.directory.row_lists.push(RowListEntry { layer: layer as u8, offset, length });
        }
    }

    fn fill_columns(&mut self, blob: &mut AlignedVec) {
        self.directory.columns.clear();
        self.order.clear();
        for (slot, (spec, cells)) in FIELDS.iter().zip(&mut self.columns).enumerate() {
            if cells.iter().all(|cell| *cell == 0) {
                continue;
            }
            let layer_cells = match spec.layer {
                Layer::Core => self.rows,
                layer => self.layers.get(layer as usize).map_or(0, |rows| rows.cells),
            };
            cells.resize(layer_cells as usize, 0);
            let changes = cells.windows(2).filter(|pair| pair.first() != pair.last()).count();
            self.order.push((changes, slot));
        }
        // Columns that change as often lie side by side: the compressor works block by block, with one code for all
        // literals of a block, and columns that change together are found to be equal.
        self.order.sort_unstable_by_key(|(changes, slot)| (std::cmp::Reverse(*changes), *slot));
        for (_changes, slot) in &self.order {
            let (Some(spec), Some(cells)) = (FIELDS.get(*slot), self.columns.get(*slot)) else { continue };
            let offset = count(blob.len());
            let steady = may_be_steady(spec).then(|| planes::encode_steady(cells, &mut self.formed, blob));
            let (form, (base, width, distinct)) = if let Some(stored) = steady.flatten() {
                (Form::Steady, stored)
            } else {
                let beside = beside(spec.id).and_then(slot_of);
                let beside = beside.and_then(|(slot, _spec)| self.columns.get(slot));
                let form = form(spec, cells, beside, &mut self.formed);
                let stored = if form == Form::Plain { cells } else { &self.formed };
                (form, self.distinct.encode(stored, blob))
            };
            self.directory.columns.push(ColumnEntry {
                base,
                offset,
                length: count(blob.len()) - offset,
                id: spec.id,
                distinct,
                cell: spec.cell as u8 | (form as u8) << 4,
                width,
                layer: spec.layer as u8,
            });
        }
        self.directory.columns.sort_unstable_by_key(|entry| entry.id);
    }

    fn fill_ledger(&mut self) {
        let mut ledger = std::mem::take(&mut self.ledger);
        if ledger.entries.len() > LEDGER_LINES_TOLD_MAX {
            for LedgerEntry { stage, fate, count, .. } in ledger.entries.split_off(LEDGER_LINES_TOLD_MAX) {
                ledger.add(stage, fate, LEDGER_OVERFLOW, LEDGER_OVERFLOW, count);
            }
        }
        let bytes_max = self.symbols.text_bytes() + LEDGER_TEXT_BYTES_MAX;
        self.directory.ledger.clear();
        for entry in &ledger.entries {
            let subject = truncated(&entry.subject, LEDGER_NAME_BYTES_MAX);
            let reason = truncated(&entry.reason, LEDGER_NAME_BYTES_MAX);
            self.directory.ledger.push(LedgerLine {
                count: entry.count,
                subject: self.symbols.code(subject, bytes_max).unwrap_or(0),
                reason: self.symbols.code(reason, bytes_max).unwrap_or(0),
                stage: entry.stage.code(),
                fate: entry.fate.code(),
            });
        }
        self.ledger = ledger;
    }
}

/// Chooses the form of a column, and writes its cells to `formed` unless it is the plain one.
fn form(spec: &FieldSpec, cells: &[u64], beside: Option<&Vec<u64>>, formed: &mut Vec<u64>) -> Form {
    /// Numbers that lie farther apart have nothing to do with each other.
    const FAR: u64 = 1 << 16;
    formed.clear();
    if let Some(beside) = beside {
        let base = beside.iter().copied().chain(std::iter::repeat(0));
        formed
            .extend(cells.iter().zip(base).map(|(cell, base)| cell.wrapping_sub(base) & u64::from(u32::MAX)));
        if formed.iter().all(|cell| *cell < FAR) {
            return Form::Beside;
        }
    } else if may_be_steps(spec) && cells.iter().any(|cell| *cell > u64::from(u8::MAX)) {
        formed.extend(cells.iter().map_while(|cell| step_of(*cell)));
        if formed.len() == cells.len() {
            return Form::Steps;
        }
    }
    Form::Plain
}

/// Puts prelude, archived directory and blob together.
pub(super) fn assemble(directory: &Directory, blob: &[u8], out: &mut AlignedVec) -> Result<(), BatchFault> {
    out.clear();
    out.resize(PRELUDE_BYTES, 0);
    let archived = rkyv::api::high::to_bytes_in::<_, Failure>(directory, std::mem::take(out));
    *out = archived.map_err(|_failure| BatchFault::Archive)?;
    let length = |bytes: usize| u32::try_from(bytes).map_err(|_large| BatchFault::Archive);
    let archive_bytes = length(out.len() - PRELUDE_BYTES)?;
    let blob_bytes = length(blob.len())?;
    out.resize(out.len().next_multiple_of(BATCH_ALIGNMENT_BYTES), 0);
    out.extend_from_slice(blob);
    let lengths = archive_bytes.to_le_bytes().into_iter().chain(blob_bytes.to_le_bytes());
    for (place, byte) in out.as_mut_slice().iter_mut().zip(lengths) {
        *place = byte;
    }
    Ok(())
}

/// Lengths within a batch fit 32 bits: rows, columns and texts are bounded so that all of it stays below 50 MiB.
fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// The longest part of `text` of at most `bytes_max` that ends between two characters.
fn truncated(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or(text)
}
