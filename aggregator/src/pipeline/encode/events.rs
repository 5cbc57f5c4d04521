//! Rows of `events`, column by column out of the received bytes: no event is ever made, and no cell allocates.
//!
//! The columns are those of [`tapio_store::events::columns`], in that order. Symbols of a batch become keys of a block's dictionary, each looked up once per frame and
//! column. Called by [`super::Encoder`] with views that were checked.

use std::collections::BTreeSet;

use tapio_correlation::Pods;
use tapio_schemas::{
    batch::BatchView,
    field::{CellType, FIELDS, FieldSpec, column},
};
use tapio_store::native::{AnyColumn, BlockBuilder, BlockError, EncodedBlock};

use super::{FrameScope, Place};

/// A symbol that has no key in the block's dictionary yet.
const NO_KEY: u32 = u32::MAX;
/// The table is partitioned by days.
const DAY_MICROS: u64 = 86_400_000_000;

/// How a field's cells lie in a block.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Little-endian integers, and the bits of doubles, of this many bytes.
    Integer(usize),
    /// Sixteen bytes as they are.
    Sixteen,
    /// A key of the dictionary.
    LowCardinality,
    /// A text.
    Text,
}

/// The block of events being filled, and scratch that is kept.
#[derive(Debug)]
pub(super) struct EventRows {
    block: BlockBuilder,
    shapes: Vec<Shape>,
    /// By row: the cell's word, 0 where the row lacks it.
    words: Vec<u64>,
    bytes: Vec<u8>,
    /// By symbol code: the key in the block's dictionary.
    keys: Vec<u32>,
    /// The rows to append, where they are not all.
    chosen: Option<Vec<u32>>,
}

impl EventRows {
    pub(super) fn new() -> Result<Self, BlockError> {
        let block = tapio_store::events::block_builder()?;
        let shapes = FIELDS
            .iter()
            .map(|spec| {
                shape(spec).ok_or_else(|| BlockError::UnknownType {
                    column: spec.column.to_owned(),
                    clickhouse_type: spec.clickhouse.to_owned(),
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { block, shapes, words: Vec::new(), bytes: Vec::new(), keys: Vec::new(), chosen: None })
    }

    pub(super) fn rows(&self) -> usize {
        self.block.rows()
    }

    pub(super) fn clear(&mut self) {
        self.block.clear();
    }

    /// Chooses the rows to append: all, or those of days that are not present.
    fn choose(&mut self, view: &BatchView<'_>, present: Option<&BTreeSet<Place>>) {
        self.chosen = None;
        let Some(present) = present.filter(|present| present.iter().any(|place| *place != Place::Ledger))
        else {
            return;
        };
        copy_rows(view, column::core::time_micros, None, &mut self.words);
        let is_absent = |time: u64| {
            let day = u32::try_from(time / DAY_MICROS).unwrap_or(u32::MAX);
            !present.contains(&Place::Events(day))
        };
        let rows = (0..view.rows()).zip(&self.words);
        self.chosen = Some(rows.filter(|(_, time)| is_absent(**time)).map(|(row, _)| row).collect());
    }

    pub(super) fn encode(&self) -> Result<EncodedBlock, BlockError> {
        self.block.encode()
    }

    /// Appends the rows of a frame, but for those of the days of which the store has them.
    pub(super) fn push(
        &mut self,
        scope: &FrameScope<'_>,
        view: &BatchView<'_>,
        pods: &Pods,
        present: Option<&BTreeSet<Place>>,
    ) {
        self.choose(view, present);
        let rows = self.chosen.as_ref().map_or(view.rows() as usize, Vec::len);
        let chosen = self.chosen.as_deref();
        let mut columns = self.block.columns().map(|(_, column)| column);
        for text in [scope.tenant, scope.cluster, scope.node] {
            if let Some(AnyColumn::LowCardinality(column)) = columns.next() {
                let key = column.intern(text.as_bytes());
                (0..rows).for_each(|_row| column.push_index(key));
            }
        }
        let id = &scope.id;
        repeat(columns.next(), &id.source.0, rows, &mut self.bytes);
        repeat(columns.next(), &id.incarnation.0.to_le_bytes(), rows, &mut self.bytes);
        repeat(columns.next(), &id.sequence.0.to_le_bytes(), rows, &mut self.bytes);
        if let Some(column) = columns.next().and_then(AnyColumn::fixed) {
            self.bytes.clear();
            match chosen {
                None => (0..view.rows()).for_each(|row| self.bytes.extend_from_slice(&row.to_le_bytes())),
                Some(chosen) => {
                    chosen.iter().for_each(|row| self.bytes.extend_from_slice(&row.to_le_bytes()))
                }
            }
            column.extend(&self.bytes);
        }
        copy_rows(view, column::entity::pod_uid, chosen, &mut self.words);
        for name in [NamePart::Namespace, NamePart::Pod, NamePart::Workload, NamePart::Service] {
            if let Some(AnyColumn::LowCardinality(column)) = columns.next() {
                self.keys.clear();
                for code in &self.words {
                    let code = symbol_code(*code);
                    let key = key_of(&mut self.keys, code, || {
                        let pod = (code != 0).then(|| pods.get(view.symbol(code))).flatten();
                        column.intern(pod.map_or("", |pod| name.of(pod)).as_bytes())
                    });
                    column.push_index(key);
                }
            }
        }
        for ((spec, shape), into) in FIELDS.iter().zip(&self.shapes).zip(columns) {
            let absent = view.column(spec.id).is_none();
            if !absent {
                copy_rows(view, spec.id, chosen, &mut self.words);
            }
            match (shape, &mut *into) {
                (Shape::Integer(width), AnyColumn::Fixed(_)) => {
                    let Some(column) = into.fixed() else { continue };
                    self.bytes.clear();
                    if absent {
                        self.bytes.resize(rows * width, 0);
                    } else {
                        for word in &self.words {
                            let cell = word.to_le_bytes();
                            self.bytes.extend_from_slice(cell.get(..*width).unwrap_or(&cell));
                        }
                    }
                    column.extend(&self.bytes);
                }
                (Shape::Sixteen, AnyColumn::Fixed(_)) => {
                    let Some(column) = into.fixed() else { continue };
                    self.bytes.clear();
                    if absent {
                        self.bytes.resize(rows * 16, 0);
                    } else {
                        for code in &self.words {
                            self.bytes.extend_from_slice(&view.sixteen_value(*code));
                        }
                    }
                    column.extend(&self.bytes);
                }
                (Shape::LowCardinality, AnyColumn::LowCardinality(column)) => {
                    if absent {
                        let key = column.intern(b"");
                        (0..rows).for_each(|_row| column.push_index(key));
                        continue;
                    }
                    self.keys.clear();
                    for code in &self.words {
                        let code = symbol_code(*code);
                        let key =
                            key_of(&mut self.keys, code, || column.intern(view.symbol(code).as_bytes()));
                        column.push_index(key);
                    }
                }
                (Shape::Text, AnyColumn::String(column)) => {
                    if absent {
                        (0..rows).for_each(|_row| column.push(b""));
                        continue;
                    }
                    for code in &self.words {
                        column.push(view.symbol(symbol_code(*code)).as_bytes());
                    }
                }
                // The block was made from the same table, so its columns have the shapes; were one not to, the
                // block's own check would refuse it for its length.
                (_, _) => (0..rows).for_each(|_row| into.push_default()),
            }
        }
    }
}

/// One of the names that a row carries.
#[derive(Clone, Copy)]
enum NamePart {
    Namespace,
    Pod,
    Workload,
    Service,
}

impl NamePart {
    fn of(self, pod: &tapio_schemas::entity::PodIdentity) -> &str {
        match self {
            Self::Namespace => &pod.namespace,
            Self::Pod => &pod.pod,
            Self::Workload => &pod.workload,
            Self::Service => &pod.service,
        }
    }
}

fn shape(spec: &FieldSpec) -> Option<Shape> {
    let any = AnyColumn::of_type(spec.clickhouse)?;
    match (spec.cell, any) {
        (CellType::Unsigned | CellType::Float, mut any) => {
            let width = any.fixed()?.width();
            (width <= 8).then_some(Shape::Integer(width))
        }
        (CellType::Sixteen, mut any) => (any.fixed()?.width() == 16).then_some(Shape::Sixteen),
        (CellType::Symbol, AnyColumn::LowCardinality(_)) => Some(Shape::LowCardinality),
        (CellType::Symbol, AnyColumn::String(_)) => Some(Shape::Text),
        // No field is signed; one that comes needs its zigzag undone here.
        (CellType::Symbol | CellType::Signed, _) => None,
    }
}

/// Appends the same cell to a fixed column for every row.
fn repeat(column: Option<&mut AnyColumn>, cell: &[u8], rows: usize, scratch: &mut Vec<u8>) {
    if let Some(column) = column.and_then(AnyColumn::fixed) {
        scratch.clear();
        (0..rows).for_each(|_row| scratch.extend_from_slice(cell));
        column.extend(scratch);
    }
}

/// The words of a column by row. Always as many as there are rows to append: a block whose columns differ is never stored.
fn copy_rows(view: &BatchView<'_>, id: u16, chosen: Option<&[u32]>, words: &mut Vec<u64>) {
    view.copy_rows(id, words);
    words.resize(view.rows() as usize, 0);
    if let Some(chosen) = chosen {
        // Rising, so that what is read was not overwritten yet.
        for (to, row) in chosen.iter().enumerate() {
            words.swap(to, *row as usize);
        }
        words.truncate(chosen.len());
    }
}

fn symbol_code(word: u64) -> u32 {
    u32::try_from(word).unwrap_or(0)
}

/// The key of a symbol in the block's dictionary, found once per frame and column.
fn key_of(keys: &mut Vec<u32>, code: u32, intern: impl FnOnce() -> u32) -> u32 {
    let at = code as usize;
    if at >= keys.len() {
        keys.resize(at + 1, NO_KEY);
    }
    let Some(key) = keys.get_mut(at) else { return 0 };
    if *key == NO_KEY {
        *key = intern();
    }
    *key
}
