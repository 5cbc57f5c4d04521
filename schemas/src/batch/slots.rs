//! Where a column id stands in the field table, found without a search, and how great its values may be.

use crate::field::{
    CellType, FIELDS, FieldSpec,
    column::{core, kernel},
};

/// How many fields there are.
pub(super) const SLOTS: usize = FIELDS.len();

const ID_LIMIT: usize = 256;
const NO_SLOT: u8 = u8::MAX;

// A row's touched columns are one bit each of a u128, and a slot is a byte.
const _: () = assert!(SLOTS <= 128);

#[expect(clippy::indexing_slicing, reason = "evaluated while compiling, where a wrong index is an error")]
static SLOT_OF_ID: [u8; ID_LIMIT] = {
    let mut table = [NO_SLOT; ID_LIMIT];
    let mut rest: &[FieldSpec] = FIELDS;
    let mut slot = 0_u8;
    while let [first, behind @ ..] = rest {
        table[first.id as usize] = slot;
        slot += 1;
        rest = behind;
    }
    table
};

/// The slot of a column id and its field, if this version knows it.
#[inline]
pub(super) fn slot(id: u16) -> Option<(usize, &'static FieldSpec)> {
    let slot = usize::from(*SLOT_OF_ID.get(usize::from(id))?);
    FIELDS.get(slot).map(|spec| (slot, spec))
}

/// The greatest cell that the field `spec` can have, as its type in ClickHouse bounds it.
///
/// Times end where microseconds have sixteen decimal digits, in the year 2286, within `DateTime64`'s range.
#[must_use]
pub const fn value_max(spec: &FieldSpec) -> u64 {
    if !matches!(spec.cell, CellType::Unsigned) {
        return u64::MAX;
    }
    match spec.clickhouse.as_bytes() {
        b"UInt8" => u8::MAX as u64,
        b"UInt16" => u16::MAX as u64,
        b"UInt32" => u32::MAX as u64,
        b"DateTime64(6, 'UTC')" => 9_999_999_999_999_999,
        _ => u64::MAX,
    }
}

/// The column of the same layer that the cells of `id` may be counted from, because they are mostly near: a thread's
/// number is its process's or a little greater.
pub(super) const fn beside(id: u16) -> Option<u16> {
    match id {
        kernel::tid => Some(kernel::pid),
        _ => None,
    }
}

/// Whether the cells of the field `spec` may be stored as distances: they rise from row to row.
pub(super) const fn may_be_steady(spec: &FieldSpec) -> bool {
    spec.id == core::time_micros
}

/// Whether the cells of the field `spec` may be stored as steps: sizes and durations, which 64 bits hold.
pub(super) const fn may_be_steps(spec: &FieldSpec) -> bool {
    matches!(spec.cell, CellType::Unsigned) && value_max(spec) == u64::MAX
}

/// Whether a cell of the field `spec` is written out as a text of its own wherever it is stored, rather than as a code
/// into a table of texts.
#[must_use]
pub(super) const fn is_plain_text(spec: &FieldSpec) -> bool {
    matches!(spec.cell, CellType::Symbol) && matches!(spec.clickhouse.as_bytes(), b"String")
}

/// [`value_max`] by slot.
#[expect(clippy::indexing_slicing, reason = "evaluated while compiling, where a wrong index is an error")]
pub(super) static VALUE_MAX: [u64; SLOTS] = {
    let mut table = [u64::MAX; SLOTS];
    let mut rest: &[FieldSpec] = FIELDS;
    let mut slot = 0;
    while let [first, behind @ ..] = rest {
        table[slot] = value_max(first);
        slot += 1;
        rest = behind;
    }
    table
};
