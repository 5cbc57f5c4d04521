//! The one semantic pass over a batch: everything that the archive's structure check cannot see.
//!
//! After it, every code is in its table, every column has one cell for each row of its layer, every value is one that
//! its field can have, and what the batch becomes when its texts are written out is bounded: readers need no checks of
//! their own.

use super::{
    BatchFault, COLUMNS_MAX, EXPANDED_TEXT_BYTES_MAX, LEDGER_LINES_MAX, ROWS_MAX, SYMBOL_BYTES_MAX,
    TEXT_BYTES_MAX,
    directory::{ArchivedColumnEntry, ArchivedDirectory},
    is_readable,
    planes::{CellRun, Form, Planes, STEP_MAX},
    rows::{LAYERS, LayerRows},
    slots::{SLOTS, VALUE_MAX, beside, is_plain_text, may_be_steady, may_be_steps, slot},
    view::BatchView,
};
use crate::field::{CellType, FieldSpec, Layer, column};

/// Checks a batch and makes the view of it.
pub(super) fn view<'a>(
    directory: &'a ArchivedDirectory,
    blob: &'a [u8],
) -> Result<BatchView<'a>, BatchFault> {
    let version = directory.version.to_native();
    if !is_readable(version) {
        return Err(BatchFault::Version(version));
    }
    let rows = directory.rows.to_native();
    if rows > ROWS_MAX {
        return Err(BatchFault::TooManyRows(rows));
    }
    if directory.columns.len() > COLUMNS_MAX {
        return Err(BatchFault::TooManyColumns);
    }
    if directory.ledger.len() > LEDGER_LINES_MAX {
        return Err(BatchFault::LedgerLines(directory.ledger.len()));
    }
    if directory.since_micros.to_native() > directory.until_micros.to_native() {
        return Err(BatchFault::WindowReversed);
    }
    let (symbol_ends, longest) = symbol_ends(directory, blob)?;
    let mut view = BatchView {
        directory,
        blob,
        places: [0; SLOTS],
        layers: [LayerRows::default(); LAYERS],
        symbol_ends,
        sixteens: sixteens(directory, blob)?,
    };
    row_lists(&mut view, rows)?;
    let mut id_before = None;
    for (place, entry) in (1..).zip(directory.columns.iter()) {
        let id = entry.id.to_native();
        if id_before.is_some_and(|before| before >= id) {
            return Err(BatchFault::ColumnOrder(id));
        }
        id_before = Some(id);
        if let Some(slot) = column(&view, entry, id)?
            && let Some(found) = view.places.get_mut(slot)
        {
            *found = place;
        }
    }
    if rows > 0 && view.column(column::core::count).is_none() {
        return Err(BatchFault::ZeroCount);
    }
    let codes = view.symbol_count();
    let known = |code: u32| code < codes;
    if !directory.ledger.iter().all(|line| known(line.subject.to_native()) && known(line.reason.to_native()))
    {
        return Err(BatchFault::LedgerCode);
    }
    if expanded_text_exceeds(&view, longest, EXPANDED_TEXT_BYTES_MAX) {
        return Err(BatchFault::ExpandedSize);
    }
    Ok(view)
}

/// Whether the texts of plain columns and of the ledger have more than `most` bytes, each written out wherever it is
/// named. `longest` is the length of the longest text: mostly it decides without a look at the cells.
fn expanded_text_exceeds(view: &BatchView<'_>, longest: usize, most: usize) -> bool {
    let lines = view.directory.ledger.iter();
    let mut named: usize = 0;
    for column in view.columns().filter(|column| is_plain_text(column.spec())) {
        named = named.saturating_add(column.len() as usize);
    }
    named = named.saturating_add(lines.len().saturating_mul(2));
    if named.saturating_mul(longest) <= most {
        return false;
    }
    let mut total: usize = 0;
    for line in lines {
        total += view.symbol(line.subject.to_native()).len() + view.symbol(line.reason.to_native()).len();
    }
    for column in view.columns().filter(|column| is_plain_text(column.spec())) {
        for cell in 0..column.len() {
            let code = column.word(cell).and_then(|code| u32::try_from(code).ok()).unwrap_or(0);
            total = total.saturating_add(view.symbol(code).len());
            if total > most {
                return true;
            }
        }
    }
    total > most
}

fn range(blob: &[u8], offset: u32, length: usize) -> Option<&[u8]> {
    let from = offset as usize;
    blob.get(from..from.checked_add(length)?)
}

/// Where the texts end, and how long the longest is.
fn symbol_ends<'a>(
    directory: &'a ArchivedDirectory,
    blob: &'a [u8],
) -> Result<(Planes<'a>, usize), BatchFault> {
    let run = &directory.symbol_ends;
    let cells = run.cells.to_native();
    let length = (cells as usize).saturating_mul(usize::from(run.width));
    let bytes = range(blob, run.offset.to_native(), length).ok_or(BatchFault::SymbolTable)?;
    let ends = Planes::new(run.base.to_native(), run.width, cells, bytes).ok_or(BatchFault::SymbolTable)?;
    let text = directory.symbols.as_str();
    if text.len() > SYMBOL_BYTES_MAX {
        return Err(BatchFault::SymbolBytes(text.len()));
    }
    // Every text but code 0 has at least one byte, which also bounds the number of codes by bytes that are there.
    if cells as usize > text.len() {
        return Err(BatchFault::SymbolTable);
    }
    let (mut before, mut longest) = (0, 0);
    for index in 0..cells {
        let end = ends.get(index).and_then(|end| usize::try_from(end).ok()).unwrap_or(0);
        if end <= before || !text.is_char_boundary(end) {
            return Err(BatchFault::SymbolTable);
        }
        longest = longest.max(end - before);
        before = end;
    }
    if before != text.len() {
        return Err(BatchFault::SymbolTable);
    }
    if longest > TEXT_BYTES_MAX {
        return Err(BatchFault::TextLength(longest));
    }
    Ok((ends, longest))
}

fn sixteens<'a>(directory: &ArchivedDirectory, blob: &'a [u8]) -> Result<&'a [[u8; 16]], BatchFault> {
    let length = (directory.sixteens.to_native() as usize).saturating_mul(16);
    range(blob, directory.sixteens_offset.to_native(), length)
        .map(|bytes| bytes.as_chunks().0)
        .ok_or(BatchFault::SixteenTable)
}

fn row_lists(view: &mut BatchView<'_>, rows: u32) -> Result<(), BatchFault> {
    // A layer without a row list has all rows, once a column of it is there; core has them always.
    for layer in view.directory.columns.iter().map(|entry| entry.layer).chain([Layer::Core as u8]) {
        if let Some(found) = view.layers.get_mut(usize::from(layer)) {
            *found = LayerRows::all(rows);
        }
    }
    let mut layer_before = Layer::Core as u8;
    for entry in view.directory.row_lists.iter() {
        let layer = entry.layer;
        if layer <= layer_before {
            return Err(BatchFault::RowListOrder(layer));
        }
        layer_before = layer;
        let words = (rows as usize).div_ceil(64);
        let bytes = range(view.blob, entry.offset.to_native(), words * 8)
            .filter(|_bytes| entry.length.to_native() as usize == words * 8)
            .ok_or(BatchFault::RowListLength(layer))?;
        let bitmap = bytes.as_chunks::<8>().0;
        let last = bitmap.last().map_or(0, |word| u64::from_le_bytes(*word));
        let used = rows % 64;
        if used != 0 && last >> used != 0 {
            return Err(BatchFault::RowListRange(layer));
        }
        // A layer of a newer version is skipped, and so are its columns.
        if let Some(found) = view.layers.get_mut(usize::from(layer)) {
            *found = LayerRows::listed(bitmap);
        }
    }
    Ok(())
}

/// Checks one column; returns its slot, or none if this version does not know it.
fn column(view: &BatchView<'_>, entry: &ArchivedColumnEntry, id: u16) -> Result<Option<usize>, BatchFault> {
    let length = entry.length.to_native() as usize;
    let bytes = range(view.blob, entry.offset.to_native(), length).ok_or(BatchFault::ColumnRange(id))?;
    let Some((slot, spec)) = slot(id) else { return Ok(None) };
    let (cell, form) = (entry.cell & 0x0F, Form::from_code(entry.cell >> 4));
    // A cell type or form of a newer version is skipped; one that this version knows may contradict the field table.
    let Some(form) = form else { return Ok(None) };
    if cell != spec.cell as u8 {
        let known = (CellType::Unsigned as u8..=CellType::Symbol as u8).contains(&cell);
        return if known { Err(BatchFault::ColumnType(id)) } else { Ok(None) };
    }
    let most = match form {
        Form::Plain => None,
        Form::Steady if may_be_steady(spec) => None,
        Form::Steps if may_be_steps(spec) => Some(STEP_MAX),
        Form::Beside if beside(id).is_some() => Some(u64::from(u32::MAX)),
        Form::Steps | Form::Beside | Form::Steady => return Err(BatchFault::ColumnType(id)),
    };
    if entry.layer != spec.layer as u8 {
        return Err(BatchFault::ColumnLayer(id));
    }
    let cells = view.layer_rows(spec.layer).len();
    let base = entry.base.to_native();
    if Planes::new(base, entry.width, 0, &[]).is_none() {
        return Err(BatchFault::ColumnWidth(id));
    }
    let (width, distinct) = (entry.width, entry.distinct.to_native());
    let run = match form {
        Form::Steady => CellRun::steady(base, width, distinct, cells, bytes),
        Form::Plain | Form::Steps | Form::Beside => CellRun::new(base, width, distinct, cells, bytes),
    };
    let run = run.ok_or(BatchFault::ColumnLength(id))?;
    if !run.codes_are_known() {
        return Err(BatchFault::ColumnCode(id));
    }
    match most {
        None => values(view, &run, slot, spec)?,
        Some(most) if !run.all_within(0, most) => return Err(BatchFault::ValueRange(id)),
        Some(_within) => {}
    }
    Ok(Some(slot))
}

fn values(view: &BatchView<'_>, run: &CellRun<'_>, slot: usize, spec: &FieldSpec) -> Result<(), BatchFault> {
    let id = spec.id;
    let (most, fault) = match spec.cell {
        CellType::Symbol => (u64::from(view.symbol_count()) - 1, BatchFault::SymbolCode(id)),
        CellType::Sixteen => (view.sixteens.len() as u64, BatchFault::SixteenCode(id)),
        CellType::Unsigned | CellType::Signed | CellType::Float => {
            (VALUE_MAX.get(slot).copied().unwrap_or(u64::MAX), BatchFault::ValueRange(id))
        }
    };
    if !run.all_within(0, most) {
        return Err(fault);
    }
    if id == column::core::count && !run.all_within(1, most) {
        return Err(BatchFault::ZeroCount);
    }
    Ok(())
}
