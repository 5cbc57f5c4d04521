//! Batches as a whole: what goes in comes out, and what is faulty is refused by name.

use proptest::prelude::*;

use super::{
    builder::assemble,
    directory::{Directory, LedgerLine, Run},
    planes::{self, Planes},
    *,
};
use crate::{
    event::UnifiedEvent,
    field::{Cell, CellType, FIELDS, Layer, column},
    ids::{FrameId, Incarnation, Sequence, SourceId},
    ledger::{Fate, Ledger, LedgerEntry, Stage},
    units::UnixMicros,
};

const FRAME: FrameId =
    FrameId { source: SourceId([9; 16]), incarnation: Incarnation(3), sequence: Sequence(17) };

/// What a test writes into one field: the field's slot and a seed of its value.
type Write = (usize, u64, String);

fn writes() -> impl Strategy<Value = Vec<Vec<Write>>> {
    let seed = prop_oneof![any::<u64>(), 0_u64..5, 1_000_000_u64..1_000_300];
    let write = (0..FIELDS.len(), seed, "\\PC{0,9}");
    prop::collection::vec(prop::collection::vec(write, 0..24), 0..150)
}

/// An event with these fields, as a batch gives it back: without empty layers, and with a count.
fn event_of(writes: &[Write], row: u32) -> UnifiedEvent {
    let mut event = UnifiedEvent { id: FRAME.row(row), ..UnifiedEvent::default() };
    event.core.count = 1;
    for (slot, seed, text) in writes {
        let spec = &FIELDS[*slot];
        let most = value_max(spec);
        let cell = match spec.cell {
            CellType::Unsigned => Cell::Unsigned(if *seed > most { seed % (most + 1) } else { *seed }),
            CellType::Signed => Cell::Signed(seed.cast_signed()),
            CellType::Float => Cell::Float(f64::from(u32::try_from(seed % 1_000).unwrap()) / 8.0),
            CellType::Sixteen => Cell::Sixteen(u128::from(*seed).to_be_bytes()),
            CellType::Symbol => Cell::Symbol(text),
        };
        event.set(spec.layer, spec.id, cell);
    }
    event.core.count = event.core.count.max(1);
    let mut clean = UnifiedEvent { id: event.id, ..UnifiedEvent::default() };
    event.visit(&mut |layer, id, cell| assert!(clean.set(layer, id, cell)));
    clean
}

fn events_of(rows: &[Vec<Write>]) -> Vec<UnifiedEvent> {
    (0..).zip(rows).map(|(row, writes)| event_of(writes, row)).collect()
}

fn ledger() -> Ledger {
    let mut ledger = Ledger { since: UnixMicros(1_000), until: UnixMicros(2_000), ..Ledger::default() };
    ledger.add(Stage::Kernel, Fate::Carried, "tcp-state", "", 18_204);
    ledger.add(Stage::Capture, Fate::Lost, "http", "ring-full", 3);
    ledger
}

fn batch_of(events: &[UnifiedEvent]) -> AlignedVec {
    let mut builder = BatchBuilder::default();
    for (row, event) in (0..).zip(events) {
        assert_eq!(builder.push_event(event), Ok(row));
    }
    *builder.ledger_mut() = ledger();
    let mut out = AlignedVec::new();
    let summary = builder.finish(&mut out).unwrap();
    assert_eq!(summary.rows as usize, events.len());
    assert!(builder.is_empty());
    out
}

/// Reads everything that a batch has, by every way there is.
fn read_all(view: &BatchView<'_>) -> u64 {
    let mut sum = view.ledger().lost();
    let mut cells = Vec::new();
    for column in view.columns() {
        let id = column.spec().id;
        sum = sum.wrapping_add(column.iter().count() as u64);
        view.copy_rows(id, &mut cells);
        for (row, cell) in view.iter().zip(&cells) {
            assert_eq!(row.unsigned(id), *cell);
            sum = sum.wrapping_add(row.text(id).len() as u64).wrapping_add(u64::from(row.sixteen(id)[0]));
        }
    }
    for row in 0..view.rows() {
        sum = sum.wrapping_add(view.event(row, FRAME).core.time_micros);
    }
    sum
}

proptest! {
    // Each case reads every field of every row in every way: fewer cases than usual find as much.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Scenario: any events are put into a batch and read back.
    /// Guarantees: every field of every event comes back, by the owned form and by every accessor alike.
    #[test]
    fn events_come_back(rows in writes()) {
        let events = events_of(&rows);
        let bytes = batch_of(&events);
        let view = BatchView::open(&bytes).unwrap();
        prop_assert_eq!(view.rows() as usize, events.len());
        prop_assert_eq!(view.ledger(), ledger());
        prop_assert_eq!((view.since(), view.until()), (UnixMicros(1_000), UnixMicros(2_000)));
        let mut cells = Vec::new();
        for (row, event) in (0..).zip(&events) {
            prop_assert_eq!(&view.event(row, FRAME), event);
        }
        for spec in FIELDS {
            view.copy_rows(spec.id, &mut cells);
            prop_assert_eq!(cells.len(), events.len());
            for (row, cell) in view.iter().zip(&cells) {
                let at = row.row();
                prop_assert_eq!(row.unsigned(spec.id), *cell);
                prop_assert_eq!(row.unsigned(spec.id), view.unsigned(spec.id, at));
                prop_assert_eq!(row.signed(spec.id), view.signed(spec.id, at));
                prop_assert_eq!(row.sixteen(spec.id), view.sixteen(spec.id, at));
                prop_assert_eq!(row.text(spec.id), view.text(spec.id, at));
                prop_assert_eq!(row.has(spec.layer), view.layer_rows(spec.layer).contains(at));
                prop_assert_eq!(view.row(at).unwrap().unsigned(spec.id), *cell);
            }
            if let Some(column) = view.column(spec.id) {
                let rows: Vec<_> = column.layer_rows().iter().collect();
                prop_assert_eq!(rows.len(), column.len() as usize);
                for (cell, row) in (0..).zip(rows) {
                    prop_assert_eq!(column.word(cell), Some(view.unsigned(spec.id, row)));
                    prop_assert_eq!(column.layer_rows().cell(row), Some(cell));
                }
            }
        }
    }

    /// Scenario: rows are begun and given up between others, and the builder is used twice.
    /// Guarantees: given-up rows never were, and nothing of one batch shows in the next: equal rows, equal bytes.
    #[test]
    fn rows_given_up_never_were(rows in writes(), given_up in prop::collection::vec(any::<bool>(), 150)) {
        let kept: Vec<_> = rows.iter().zip(&given_up).filter(|(_, up)| !**up).map(|(row, _)| row.clone()).collect();
        let events = events_of(&kept);
        let mut builder = BatchBuilder::default();
        let mut out = AlignedVec::new();
        for event in events_of(&rows) {
            builder.push_event(&event).unwrap();
        }
        builder.finish(&mut out).unwrap();
        for (writes, up) in rows.iter().zip(&given_up) {
            let event = event_of(writes, 0);
            if *up {
                let mut row = builder.begin_row().unwrap();
                event.visit(&mut |_layer, id, cell| {
                    match cell {
                        Cell::Unsigned(value) => row.unsigned(id, value),
                        Cell::Signed(value) => row.signed(id, value),
                        Cell::Float(value) => row.float(id, value),
                        Cell::Sixteen(_) | Cell::Symbol(_) => &mut row,
                    };
                });
                row.abort();
            } else {
                builder.push_event(&event).unwrap();
            }
        }
        *builder.ledger_mut() = ledger();
        builder.finish(&mut out).unwrap();
        let alone = batch_of(&events);
        prop_assert_eq!(out.as_slice(), alone.as_slice());
    }

    /// Scenario: bits of a batch flip, or it is cut short.
    /// Guarantees: it is refused by name, or everything in it can still be read; nothing panics.
    #[test]
    fn flipped_bits_are_harmless(
        rows in writes(),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = batch_of(&events_of(&rows));
        for flip in flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if let Some(cut) = cut {
            bytes.resize(cut.index(bytes.len()), 0);
        }
        match BatchView::open(&bytes) {
            Ok(view) => { read_all(&view); }
            Err(fault) => prop_assert!(!fault.name().is_empty() && !fault.to_string().is_empty()),
        }
    }
}

/// Three events: two of the network, one of the kernel with a path.
fn small() -> Vec<UnifiedEvent> {
    let at = |slot_of: u16| FIELDS.iter().position(|spec| spec.id == slot_of).unwrap();
    let text = |id, text: &str| (at(id), 0, text.to_owned());
    let number = |id, value| (at(id), value, String::new());
    events_of(&[
        vec![
            number(column::core::time_micros, 1_000_000),
            number(column::core::kind, 5),
            text(column::network::route, "/orders"),
            number(column::network::status, 500),
            number(column::network::remote_address, 77),
        ],
        vec![
            number(column::core::time_micros, 1_000_300),
            number(column::core::duration_micros, 1_024),
            text(column::kernel::path, "/etc/hosts"),
        ],
        vec![
            number(column::core::count, 300),
            text(column::network::route, "/"),
            number(column::trace::trace_id, 5),
        ],
    ])
}

/// The small batch, changed in its directory or blob, or not at all, and opened.
fn forged(change: impl FnOnce(&mut Directory, &mut AlignedVec)) -> Result<u64, BatchFault> {
    let mut builder = BatchBuilder::default();
    for event in small() {
        builder.push_event(&event).unwrap();
    }
    *builder.ledger_mut() = ledger();
    let mut blob = AlignedVec::new();
    builder.fill_directory(&mut blob);
    change(builder.directory_mut(), &mut blob);
    let mut out = AlignedVec::new();
    assemble(builder.directory_mut(), &blob, &mut out).unwrap();
    BatchView::open(&out).map(|view| read_all(&view))
}

fn entry(directory: &mut Directory, id: u16) -> &mut directory::ColumnEntry {
    directory.columns.iter_mut().find(|entry| entry.id == id).unwrap()
}

/// Adds a text to the symbol table behind the others; returns its code.
fn name_text(directory: &mut Directory, blob: &mut AlignedVec, text: &str) -> u32 {
    let Run { base, offset, cells, width } = directory.symbol_ends;
    let bytes = &blob[offset as usize..][..cells as usize * usize::from(width)];
    let before = Planes::new(base, width, cells, bytes).unwrap();
    let mut ends: Vec<u64> = (0..cells).map(|cell| before.get(cell).unwrap()).collect();
    directory.symbols.push_str(text);
    ends.push(directory.symbols.len() as u64);
    let offset = u32::try_from(blob.len()).unwrap();
    let (base, width) = planes::encode(&ends, blob);
    directory.symbol_ends = Run { base, offset, cells: cells + 1, width };
    cells + 1
}

/// Bytes of the small batch's texts.
fn d_symbols() -> usize {
    let bytes = batch_of(&small());
    BatchView::open(&bytes).unwrap().directory.symbols.len()
}

/// Scenario: a frame of a few kilobytes holds one long text that every row names; and a builder is given rows until it
/// takes no more of them.
/// Guarantees: what would be gigabytes when written out is refused before anything is; what a builder makes is not.
#[test]
fn a_long_text_is_not_named_without_end() {
    let text = "x".repeat(TEXT_BYTES_MAX + 9);
    let mut builder = BatchBuilder::new(BatchLimits { rows_max: ROWS_MAX, ..BatchLimits::default() });
    for _ in 0..ROWS_MAX {
        let mut row = builder.begin_row().unwrap();
        row.text(column::kernel::path, "/a");
        row.commit().unwrap();
    }
    let mut blob = AlignedVec::new();
    builder.fill_directory(&mut blob);
    let directory = builder.directory_mut();
    let code = name_text(directory, &mut blob, &text[..TEXT_BYTES_MAX]);
    entry(directory, column::kernel::path).base = u64::from(code);
    let mut out = AlignedVec::new();
    assemble(directory, &blob, &mut out).unwrap();
    assert!(out.len() < TEXT_BYTES_MAX + 1_024);
    assert_eq!(BatchView::open(&out).err(), Some(BatchFault::ExpandedSize));

    let limits = BatchLimits {
        rows_max: ROWS_MAX,
        symbol_bytes_max: usize::MAX,
        text_bytes_max: usize::MAX,
        ..BatchLimits::default()
    };
    let mut builder = BatchBuilder::new(limits);
    let refusal = loop {
        let mut row = builder.begin_row().unwrap();
        row.text(column::kernel::path, &text).text(column::network::target, &text);
        if let Err(refusal) = row.commit() {
            break refusal;
        }
    };
    assert!(refusal == RowRefusal::TextsFull && refusal.is_full());
    let line = |number: u32| LedgerEntry {
        stage: Stage::Capture,
        fate: Fate::Lost,
        subject: text.clone(),
        reason: number.to_string(),
        count: 1,
    };
    builder.ledger_mut().entries = (0..3_000).map(line).collect();
    let summary = builder.finish(&mut out).unwrap();
    assert_eq!((summary.rows, summary.truncated_texts), (503, 1_008));
    let view = BatchView::open(&out).unwrap();
    assert_eq!(view.text(column::kernel::path, 502).len(), TEXT_BYTES_MAX);
    assert_eq!(view.ledger().lost(), 3_000);
}

/// Scenario: a sender that archives well writes a directory that lies, in every way that the pass knows.
/// Guarantees: each lie is refused, by its own name.
#[test]
fn every_semantic_fault_has_its_name() {
    use column::{core, kernel, network, trace};
    type Change = Box<dyn FnOnce(&mut Directory, &mut AlignedVec)>;
    fn case(
        fault: BatchFault,
        change: impl FnOnce(&mut Directory, &mut AlignedVec) + 'static,
    ) -> (BatchFault, Change) {
        (fault, Box::new(change))
    }
    let cases = [
        case(BatchFault::Version(0), |d, _| d.version = 0),
        case(BatchFault::Version(3), |d, _| d.version = 3),
        case(BatchFault::TooManyRows(65_537), |d, _| d.rows = 65_537),
        case(BatchFault::TooManyColumns, |d, _| {
            let first = d.columns[0];
            d.columns = vec![first; 251];
        }),
        case(BatchFault::WindowReversed, |d, _| d.since_micros = 3_000),
        case(BatchFault::ColumnOrder(core::time_micros), |d, _| {
            let first = d.columns[0];
            d.columns.insert(0, first);
        }),
        case(BatchFault::ColumnOrder(core::time_micros), |d, _| d.columns.swap(0, 1)),
        case(BatchFault::ColumnRange(core::time_micros), |d, _| {
            entry(d, core::time_micros).offset = u32::MAX;
        }),
        case(BatchFault::ColumnRange(network::route), |d, _| entry(d, network::route).length = 1 << 30),
        case(BatchFault::ColumnType(network::status), |d, _| entry(d, network::status).cell = 5),
        case(BatchFault::ColumnLayer(network::status), |d, _| entry(d, network::status).layer = 3),
        case(BatchFault::ColumnWidth(network::status), |d, _| entry(d, network::status).width = 9),
        case(BatchFault::ColumnWidth(core::time_micros), |d, _| entry(d, core::time_micros).base = u64::MAX),
        case(BatchFault::ColumnLength(core::time_micros), |d, _| entry(d, core::time_micros).width = 5),
        case(BatchFault::ColumnLength(core::time_micros), |d, _| d.rows = 4),
        case(BatchFault::ColumnCode(core::time_micros), |d, blob| {
            let entry = entry(d, core::time_micros);
            // Three codes and a table of one value of two bytes: as many bytes as before, and one more behind.
            (entry.cell, entry.distinct, entry.width, entry.length) = (1, 1, 2, 5);
            blob.as_mut_slice()[entry.offset as usize..][..5].copy_from_slice(&[0, 1, 0, 9, 9]);
        }),
        case(BatchFault::ColumnLength(core::time_micros), |d, _| entry(d, core::time_micros).distinct = 300),
        case(BatchFault::ValueRange(network::status), |d, _| entry(d, network::status).base = 70_000),
        case(BatchFault::ValueRange(core::time_micros), |d, _| entry(d, core::time_micros).base = 1 << 60),
        case(BatchFault::ColumnType(network::status), |d, _| entry(d, network::status).cell |= 1 << 4),
        case(BatchFault::ColumnType(network::status), |d, _| entry(d, network::status).cell |= 2 << 4),
        case(BatchFault::ColumnType(network::status), |d, _| entry(d, network::status).cell |= 3 << 4),
        // There is no such step.
        case(BatchFault::ValueRange(core::duration_micros), |d, _| {
            assert_eq!(entry(d, core::duration_micros).cell, 1 | 1 << 4);
            entry(d, core::duration_micros).base = 1_920;
        }),
        case(BatchFault::ColumnLength(core::time_micros), |d, _| {
            let entry = entry(d, core::time_micros);
            (entry.cell, entry.distinct) = (1 | 3 << 4, 3);
        }),
        case(BatchFault::SymbolCode(network::route), |d, _| entry(d, network::route).base = 40),
        case(BatchFault::SixteenCode(trace::trace_id), |d, _| entry(d, trace::trace_id).base = 3),
        case(BatchFault::ZeroCount, |d, _| d.columns.retain(|entry| entry.id != core::count)),
        case(BatchFault::ZeroCount, |d, blob| {
            let at = entry(d, core::count).offset as usize;
            blob[at] = 0;
        }),
        case(BatchFault::RowListOrder(0), |d, _| d.row_lists[0].layer = 0),
        case(BatchFault::RowListOrder(Layer::Trace as u8), |d, _| {
            let first = d.row_lists[0];
            d.row_lists.insert(0, first);
        }),
        case(BatchFault::RowListLength(Layer::Trace as u8), |d, _| d.row_lists[0].length = 16),
        case(BatchFault::RowListLength(Layer::Trace as u8), |d, _| d.row_lists[0].offset = 1 << 31),
        case(BatchFault::RowListRange(Layer::Trace as u8), |d, blob| {
            blob[d.row_lists[0].offset as usize] |= 0b1000;
        }),
        case(BatchFault::ColumnLength(trace::trace_id), |d, blob| {
            entry(d, trace::trace_id).width = 1;
            entry(d, trace::trace_id).length = 1;
            blob[d.row_lists[0].offset as usize] = 0b111;
        }),
        case(BatchFault::SymbolTable, |d, _| d.symbols.push('x')),
        case(BatchFault::SymbolTable, |d, _| d.symbols.clear()),
        case(BatchFault::SymbolTable, |d, _| {
            let length = d.symbols.len();
            d.symbols = "é".repeat(length / 2) + &"x".repeat(length % 2);
        }),
        case(BatchFault::SymbolTable, |d, _| d.symbol_ends.width = 9),
        case(BatchFault::SymbolTable, |d, _| d.symbol_ends.cells = u32::MAX),
        case(BatchFault::SixteenTable, |d, _| d.sixteens = 1 << 28),
        case(BatchFault::LedgerCode, |d, _| d.ledger[0].subject = 99),
        case(BatchFault::LedgerCode, |d, _| d.ledger[1].reason = 99),
        case(BatchFault::LedgerLines(2_113), |d, _| d.ledger = vec![d.ledger[0]; 2_113]),
        case(BatchFault::TextLength(65_537), |d, blob| {
            name_text(d, blob, &"x".repeat(65_537));
        }),
        case(BatchFault::SymbolBytes(d_symbols() + (4 << 20)), |d, blob| {
            name_text(d, blob, &"x".repeat(4 << 20));
        }),
        case(BatchFault::ExpandedSize, |d, blob| {
            let reason = name_text(d, blob, &"x".repeat(65_536));
            d.ledger = vec![LedgerLine { reason, ..d.ledger[0] }; 2_000];
        }),
        // The kernel's columns have one cell; without their row list they would have three.
        case(BatchFault::ColumnLength(kernel::path), |d, _| {
            entry(d, kernel::path).width = 1;
            entry(d, kernel::path).length = 1;
            d.row_lists.retain(|list| list.layer != Layer::Kernel as u8);
        }),
    ];
    for (fault, change) in cases {
        assert_eq!(forged(change), Err(fault), "{}", fault.name());
    }
    assert!(forged(|_, _| {}).is_ok());
}

/// Scenario: a thousand events of processes with many threads, in order of time, with coarse and with exact durations.
/// Guarantees: each column comes back whatever form it is stored in, cell by cell, all at once and by rows.
#[test]
fn every_form_comes_back() {
    use column::{core, kernel};
    for exact in [0, 1] {
        let mut builder = BatchBuilder::default();
        let cells = |row: u64| {
            let pid = 4_000 + row % 7 * 100;
            let late = if row % 50 == 49 { 90_000 } else { 0 };
            [
                (core::time_micros, 1_760_000_000_000_000 + row * row * 3 - late * exact),
                (core::duration_micros, ((32 + row % 32) << (row % 20)) + exact),
                (kernel::pid, pid * (row % 3)),
                (kernel::tid, pid * (row % 3) + row % 5),
            ]
        };
        for number in 0..1_000 {
            let mut row = builder.begin_row().unwrap();
            for (id, value) in cells(number) {
                row.unsigned(id, value);
            }
            row.commit().unwrap();
        }
        let mut out = AlignedVec::new();
        builder.finish(&mut out).unwrap();
        let view = BatchView::open(&out).unwrap();
        let forms: Vec<u8> = view.directory.columns.iter().map(|entry| entry.cell >> 4).collect();
        // Time, count, duration, process, thread.
        assert_eq!(forms, [3, 0, if exact == 0 { 1 } else { 0 }, 0, 2]);
        let mut words = Vec::new();
        for row in view.iter() {
            for (id, value) in cells(row.row().into()) {
                assert_eq!((row.unsigned(id), view.unsigned(id, row.row())), (value, value), "column {id}");
            }
        }
        for (index, (id, _)) in cells(0).into_iter().enumerate() {
            view.copy_rows(id, &mut words);
            assert!((0..1_000).zip(&words).all(|(row, word)| cells(row)[index].1 == *word), "column {id}");
        }
    }
}

/// Scenario: a newer sender adds a column, a layer and a cell type, and its version is one more.
/// Guarantees: the reader skips what it does not know and reads the rest; what it skips must still lie in the blob.
#[test]
fn what_is_newer_is_skipped() {
    let plain = forged(|_, _| {}).unwrap();
    let newer = |changed: &mut Directory, _: &mut AlignedVec| {
        changed.version = BATCH_VERSION + 1;
        let last = *changed.columns.last().unwrap();
        changed.columns.push(directory::ColumnEntry { id: 60_000, layer: 40, cell: 77, width: 200, ..last });
        let list = changed.row_lists[0];
        changed.row_lists.push(directory::RowListEntry { layer: 40, ..list });
    };
    assert_eq!(forged(newer), Ok(plain));
    // A known field in an unknown representation reads as absent.
    let recoded = |directory: &mut Directory, _: &mut AlignedVec| {
        entry(directory, column::network::status).cell = 9;
    };
    assert!(forged(recoded).is_ok());
    let outside = forged(|directory, blob| {
        newer(directory, blob);
        directory.columns.last_mut().unwrap().offset = u32::MAX;
    });
    assert_eq!(outside, Err(BatchFault::ColumnRange(60_000)));
}

/// Scenario: bytes that are cut, prolonged, moved or whose prelude is changed.
/// Guarantees: each is refused by its name.
#[test]
fn broken_envelopes_have_names() {
    let bytes = batch_of(&small());
    let opened = |change: &dyn Fn(&mut AlignedVec)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        BatchView::open(&bytes).map(|view| view.rows())
    };
    assert_eq!(opened(&|_| {}), Ok(3));
    assert_eq!(opened(&AlignedVec::clear), Err(BatchFault::Truncated));
    for length in 0..bytes.len() {
        assert_eq!(opened(&|bytes| bytes.resize(length, 0)), Err(BatchFault::Truncated));
    }
    assert_eq!(opened(&|bytes| bytes.push(0)), Err(BatchFault::Surplus));
    assert_eq!(opened(&|bytes| bytes[12] = 1), Err(BatchFault::Prelude));
    assert_eq!(opened(&|bytes| bytes[3] = 1), Err(BatchFault::Truncated));
    // Without its last field, the archive's root begins elsewhere.
    assert_eq!(opened(&|bytes| bytes[0] -= 15), Err(BatchFault::Prelude));
    let mut moved = AlignedVec::<16>::new();
    moved.resize(8, 0);
    moved.extend_from_slice(&bytes);
    assert_eq!(BatchView::open(&moved[8..]).err(), Some(BatchFault::Misaligned));
}

/// Scenario: a batch is filled to each of its limits.
/// Guarantees: the refusal says which, the refused row leaves no trace, and the batch so far is whole.
#[test]
fn limits_refuse_by_name() {
    let limits = BatchLimits { rows_max: 5, symbol_bytes_max: 24, sixteens_max: 2, text_bytes_max: 8 };
    let mut builder = BatchBuilder::new(limits);
    let mut push = |text: &str, address: u8| {
        let mut row = builder.begin_row()?;
        row.text(column::network::route, text).sixteen(column::network::remote_address, [address; 16]);
        row.commit()
    };
    assert_eq!(push("/orders", 1), Ok(0));
    // Cut to 8 bytes, which would split the second "é".
    assert_eq!(push("/eeeeeéé", 2), Ok(1));
    assert_eq!(push("/other", 3), Err(RowRefusal::SixteensFull));
    assert_eq!(push("/c", 0), Ok(2));
    assert_eq!(push("/d234567", 0), Err(RowRefusal::SymbolsFull));
    assert_eq!(push("", 0), Ok(3));
    let mut row = builder.begin_row().unwrap();
    row.unsigned(column::network::route, 1);
    assert_eq!(row.commit(), Err(RowRefusal::WrongColumn(column::network::route)));
    let mut row = builder.begin_row().unwrap();
    row.unsigned(9_999, 1);
    assert_eq!(row.commit(), Err(RowRefusal::WrongColumn(9_999)));
    let mut row = builder.begin_row().unwrap();
    row.unsigned(column::network::status, 70_000).unsigned(column::core::count, 0);
    assert_eq!(row.commit(), Ok(4));
    assert_eq!(builder.begin_row().err(), Some(RowRefusal::RowsFull));
    assert!(RowRefusal::RowsFull.is_full() && !RowRefusal::WrongColumn(1).is_full());
    let mut out = AlignedVec::new();
    let summary = builder.finish(&mut out).unwrap();
    assert_eq!(summary, BatchSummary { rows: 5, truncated_texts: 1, lowered_values: 1 });
    let view = BatchView::open(&out).unwrap();
    let routes: Vec<_> = view.iter().map(|row| row.text(column::network::route)).collect();
    assert_eq!(routes, ["/orders", "/eeeeeé", "/c", "", ""]);
    assert_eq!(view.unsigned(column::network::status, 4), 65_535);
    assert_eq!(view.unsigned(column::core::count, 4), 1);
}

/// Scenario: a ledger of more lines than a batch carries.
/// Guarantees: the counts of the surplus lines are carried in one line for each stage and fate.
#[test]
fn a_great_ledger_keeps_its_sums() {
    let mut builder = BatchBuilder::default();
    let entries = (0..5_000).map(|number| LedgerEntry {
        stage: Stage::Capture,
        fate: Fate::Lost,
        subject: format!("probe-{number}"),
        reason: "ring-full".into(),
        count: 2,
    });
    builder.ledger_mut().entries = entries.collect();
    let mut out = AlignedVec::new();
    builder.finish(&mut out).unwrap();
    let ledger = BatchView::open(&out).unwrap().ledger();
    assert_eq!((ledger.entries.len(), ledger.lost()), (2_049, 10_000));
}
