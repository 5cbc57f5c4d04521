//! Reads a batch in place: the one way from received bytes to values. Opening allocates nothing.

use rkyv::rancor::Failure;

use super::{
    BATCH_ALIGNMENT_BYTES, BatchFault, check,
    column::{ColumnView, unzigzag},
    directory::{ArchivedDirectory, PRELUDE_BYTES},
    planes::{CellRun, Form, Planes},
    rows::{LAYERS, LayerRows, RowView, Rows},
    slots::{SLOTS, beside, slot},
};
use crate::{
    event::UnifiedEvent,
    field::{FIELDS, FieldSpec, Layer},
    ids::FrameId,
    ledger::{Fate, Ledger, LedgerEntry, Stage},
    units::UnixMicros,
};

/// A checked batch over borrowed bytes.
#[derive(Clone)]
pub struct BatchView<'a> {
    pub(super) directory: &'a ArchivedDirectory,
    pub(super) blob: &'a [u8],
    /// By slot: the column's place in the directory, plus one; 0 if the batch does not have it.
    pub(super) places: [u8; SLOTS],
    pub(super) layers: [LayerRows<'a>; LAYERS],
    pub(super) symbol_ends: Planes<'a>,
    pub(super) sixteens: &'a [[u8; 16]],
}

impl<'a> BatchView<'a> {
    /// Opens a batch: checks the archive's structure, then in one pass all that the structure does not say.
    ///
    /// # Errors
    /// The first fault found. Nothing of a faulty batch can be read.
    pub fn open(bytes: &'a [u8]) -> Result<Self, BatchFault> {
        if !bytes.as_ptr().addr().is_multiple_of(BATCH_ALIGNMENT_BYTES) {
            return Err(BatchFault::Misaligned);
        }
        let (prelude, rest) = bytes.split_first_chunk::<PRELUDE_BYTES>().ok_or(BatchFault::Truncated)?;
        let [a, b, c, d, e, f, g, h, zeros @ ..] = *prelude;
        if zeros != [0; 8] {
            return Err(BatchFault::Prelude);
        }
        let archive_bytes = u32::from_le_bytes([a, b, c, d]) as usize;
        let blob_bytes = u32::from_le_bytes([e, f, g, h]) as usize;
        let (archive, rest) = rest.split_at_checked(archive_bytes).ok_or(BatchFault::Truncated)?;
        let padding = archive_bytes.next_multiple_of(BATCH_ALIGNMENT_BYTES) - archive_bytes;
        let (padding, blob) = rest.split_at_checked(padding).ok_or(BatchFault::Truncated)?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(BatchFault::Prelude);
        }
        match blob.len().cmp(&blob_bytes) {
            std::cmp::Ordering::Less => return Err(BatchFault::Truncated),
            std::cmp::Ordering::Greater => return Err(BatchFault::Surplus),
            std::cmp::Ordering::Equal => {}
        }
        let directory =
            rkyv::access::<ArchivedDirectory, Failure>(archive).map_err(|_failure| BatchFault::Archive)?;
        check::view(directory, blob)
    }

    /// The version of the batch.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.directory.version.to_native()
    }

    /// How many rows (events) it has.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.directory.rows.to_native()
    }

    /// From when its ledger counts.
    #[must_use]
    pub fn since(&self) -> UnixMicros {
        UnixMicros(self.directory.since_micros.to_native())
    }

    /// Until when its ledger counts: the source has shipped everything up to this time.
    #[must_use]
    pub fn until(&self) -> UnixMicros {
        UnixMicros(self.directory.until_micros.to_native())
    }

    /// The column of a field, if this version knows the field and the batch has it. Where it has not, every row reads
    /// as the field's default.
    #[inline]
    #[must_use]
    pub fn column(&self, id: u16) -> Option<ColumnView<'_, 'a>> {
        let (spec, form, cells) = self.run(id)?;
        // A column that the batch does not have is zero everywhere.
        let base = (form == Form::Beside).then(|| beside(id).and_then(|other| self.run(other)));
        let base = base.map(|found| found.map(|(_spec, _form, cells)| cells).unwrap_or_default());
        Some(ColumnView::new(self, spec, cells, base))
    }

    #[inline]
    fn run(&self, id: u16) -> Option<(&'static FieldSpec, Form, CellRun<'a>)> {
        let (slot, spec) = slot(id)?;
        let place = usize::from(*self.places.get(slot)?).checked_sub(1)?;
        let entry = self.directory.columns.get(place)?;
        let from = entry.offset.to_native() as usize;
        let bytes = self.blob.get(from..from + entry.length.to_native() as usize)?;
        let cells = self.layers.get(spec.layer as usize)?.len();
        let form = Form::from_code(entry.cell >> 4)?;
        let (base, width, distinct) = (entry.base.to_native(), entry.width, entry.distinct.to_native());
        let run = match form {
            Form::Steady => CellRun::steady(base, width, distinct, cells, bytes),
            Form::Plain | Form::Steps | Form::Beside => CellRun::new(base, width, distinct, cells, bytes),
        };
        run.map(|run| (spec, form, run.of_form(form)))
    }

    /// All columns of known fields that the batch has, by ascending id.
    pub fn columns(&self) -> impl Iterator<Item = ColumnView<'_, 'a>> {
        FIELDS.iter().filter_map(|spec| self.column(spec.id))
    }

    /// The rows that have `layer`.
    #[must_use]
    pub fn layer_rows(&self, layer: Layer) -> LayerRows<'a> {
        self.layers.get(layer as usize).copied().unwrap_or_default()
    }

    pub(super) const fn all_layer_rows(&self) -> &[LayerRows<'a>; LAYERS] {
        &self.layers
    }

    /// All rows, in order: the way to read several fields of each event.
    #[must_use]
    pub fn iter(&self) -> Rows<'_, 'a> {
        Rows::new(self)
    }

    /// One row, if the batch has it.
    #[must_use]
    pub fn row(&self, row: u32) -> Option<RowView<'_, 'a>> {
        (row < self.rows()).then(|| RowView::at(self, row))
    }

    fn word(&self, id: u16, row: u32) -> u64 {
        let found = self.column(id).and_then(|column| column.word(column.layer_rows().cell(row)?));
        found.unwrap_or(0)
    }

    /// The unsigned integer in column `id` of `row`; 0 where it is absent.
    #[must_use]
    pub fn unsigned(&self, id: u16, row: u32) -> u64 {
        self.word(id, row)
    }

    /// The signed integer in column `id` of `row`; 0 where it is absent.
    #[must_use]
    pub fn signed(&self, id: u16, row: u32) -> i64 {
        unzigzag(self.word(id, row))
    }

    /// The double in column `id` of `row`; 0 where it is absent.
    #[must_use]
    pub fn float(&self, id: u16, row: u32) -> f64 {
        f64::from_bits(self.word(id, row))
    }

    /// The sixteen bytes in column `id` of `row`; zeros where they are absent.
    #[must_use]
    pub fn sixteen(&self, id: u16, row: u32) -> [u8; 16] {
        self.sixteen_value(self.word(id, row))
    }

    /// The text in column `id` of `row`; empty where it is absent.
    #[must_use]
    pub fn text(&self, id: u16, row: u32) -> &'a str {
        self.symbol(u32::try_from(self.word(id, row)).unwrap_or(0))
    }

    /// Writes the stored integers of column `id` to `out`, one for each *row* of the batch: 0 where a row lacks it.
    ///
    /// `out` is replaced. What the integers mean is [`ColumnView::word`]'s; an absent column is all zeros.
    pub fn copy_rows(&self, id: u16, out: &mut Vec<u64>) {
        out.clear();
        let Some(column) = self.column(id) else {
            out.resize(self.rows() as usize, 0);
            return;
        };
        column.copy_words(out);
        let rows = column.layer_rows();
        if rows.is_dense() {
            return;
        }
        out.resize(self.rows() as usize, 0);
        // From the last cell on, so that each moves up into free space and the cells need no second buffer.
        let mut cell = rows.len() as usize;
        for row in (0..self.rows()).rev() {
            let word = if rows.contains(row) {
                cell -= 1;
                out.get(cell).copied().unwrap_or(0)
            } else {
                0
            };
            if let Some(place) = out.get_mut(row as usize) {
                *place = word;
            }
        }
    }

    /// How many symbol codes there are, code 0 (the empty text) included.
    #[must_use]
    pub const fn symbol_count(&self) -> u32 {
        self.symbol_ends.cells() + 1
    }

    /// The text of a symbol code; codes that the batch does not have are the empty text.
    #[must_use]
    pub fn symbol(&self, code: u32) -> &'a str {
        let Some(index) = code.checked_sub(1) else { return "" };
        let start = index.checked_sub(1).map_or(0, |before| self.symbol_end(before));
        self.directory.symbols.as_str().get(start..self.symbol_end(index)).unwrap_or("")
    }

    fn symbol_end(&self, index: u32) -> usize {
        self.symbol_ends.get(index).and_then(|end| usize::try_from(end).ok()).unwrap_or(0)
    }

    /// The sixteen-byte value of a stored code ([`ColumnView::word`]); codes that the batch does not have are zeros.
    #[must_use]
    pub fn sixteen_value(&self, code: u64) -> [u8; 16] {
        let index = usize::try_from(code).ok().and_then(|code| code.checked_sub(1));
        index.and_then(|index| self.sixteens.get(index)).copied().unwrap_or_default()
    }

    /// The event in `row` of the frame `frame`: the one conversion to the owned form. A row past the end is empty.
    ///
    /// A layer of which the row has no field but defaults is absent in the event.
    #[must_use]
    pub fn event(&self, row: u32, frame: FrameId) -> UnifiedEvent {
        let mut event = UnifiedEvent { id: frame.row(row), ..UnifiedEvent::default() };
        for column in self.columns() {
            let word = column.layer_rows().cell(row).and_then(|cell| column.word(cell)).unwrap_or(0);
            if word != 0 {
                event.set(column.layer(), column.spec().id, column.cell_of(word));
            }
        }
        event
    }

    /// What the source's stages counted since its frame before.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        let entries = self.directory.ledger.iter().map(|line| LedgerEntry {
            stage: Stage::from_code(line.stage),
            fate: Fate::from_code(line.fate),
            subject: self.symbol(line.subject.to_native()).to_owned(),
            reason: self.symbol(line.reason.to_native()).to_owned(),
            count: line.count.to_native(),
        });
        Ledger { since: self.since(), until: self.until(), entries: entries.collect() }
    }
}
