//! The columns of `tapio.events`: where an event came from, who it was about, and the field table's columns.
//!
//! The field table in `tapio_schemas::field` is the one definition; the DDL is held to it by a test in this crate.

use tapio_schemas::field::FIELDS;

use crate::native::{BlockBuilder, BlockError};

/// The columns before the field table's, as (name, type): the event's id and what the aggregator joined to it.
pub const CONTEXT_COLUMNS: &[(&str, &str)] = &[
    ("tenant", "LowCardinality(String)"),
    ("cluster", "LowCardinality(String)"),
    ("node", "LowCardinality(String)"),
    ("source_id", "FixedString(16)"),
    ("incarnation", "UInt64"),
    ("sequence", "UInt64"),
    ("row", "UInt32"),
    ("namespace", "LowCardinality(String)"),
    ("pod", "LowCardinality(String)"),
    ("workload", "LowCardinality(String)"),
    ("service", "LowCardinality(String)"),
];

/// All columns of `tapio.events` in the table's order: [`CONTEXT_COLUMNS`], then [`FIELDS`] in theirs.
pub fn columns() -> impl Iterator<Item = (&'static str, &'static str)> {
    CONTEXT_COLUMNS.iter().copied().chain(FIELDS.iter().map(|field| (field.column, field.clickhouse)))
}

/// A builder for blocks of `tapio.events`, its columns in the order of [`columns`].
///
/// # Errors
/// [`BlockError::UnknownType`] if the field table names a type that no column here holds; a test rules that out.
pub fn block_builder() -> Result<BlockBuilder, BlockError> {
    BlockBuilder::new(columns())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the field table as it stands.
    /// Guarantees: every field's ClickHouse type can be written.
    #[test]
    fn every_field_has_a_column() {
        let mut block = block_builder().unwrap();
        assert_eq!(block.columns().count(), CONTEXT_COLUMNS.len() + FIELDS.len());
    }
}
