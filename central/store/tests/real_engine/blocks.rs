//! Native blocks: what is inserted is what comes back, once.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde::Deserialize;
use tapio_store::client::{Advice, ClientError, DeduplicationToken};
use tapio_store::native::{BlockBuilder, EncodedBlock};

use crate::Store;

/// `rows` rows of `tapio.frames` with sequences from `first`.
pub(crate) fn frames(first: u64, rows: u64) -> EncodedBlock {
    let mut block = BlockBuilder::new([
        ("tenant", "LowCardinality(String)"),
        ("cluster", "LowCardinality(String)"),
        ("node", "LowCardinality(String)"),
        ("source_id", "FixedString(16)"),
        ("incarnation", "UInt64"),
        ("sequence", "UInt64"),
        ("events", "UInt32"),
        ("batch_version", "UInt16"),
        ("received_at", "DateTime64(6, 'UTC')"),
        ("cut", "UInt64"),
    ])
    .unwrap();
    for row in 0..rows {
        for (name, column) in block.columns() {
            match name {
                "tenant" | "cluster" | "node" => column.push_bytes(b"x"),
                "source_id" => column.push_sixteen([7; 16]),
                "received_at" => column.push_unsigned(now_micros()),
                "sequence" => column.push_unsigned(first + row),
                _ => column.push_unsigned(1),
            }
        }
    }
    block.encode().unwrap()
}

/// Inside every table's time to live.
fn now_micros() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_micros().try_into().unwrap()
}

/// A block of `tapio.events` with one row per given minute, all else absent.
fn events(minutes: &[u64]) -> EncodedBlock {
    let mut block = tapio_store::events::block_builder().unwrap();
    let start = now_micros() / 60_000_000 * 60_000_000;
    for (row, minute) in minutes.iter().enumerate() {
        for (name, column) in block.columns() {
            match name {
                "tenant" | "cluster" | "node" => column.push_bytes(b"x"),
                "row" => column.push_unsigned(row as u64),
                "count" => column.push_unsigned(5),
                "time_micros" => column.push_unsigned(start - minute * 60_000_000),
                _ => column.push_default(),
            }
        }
    }
    block.encode().unwrap()
}

fn token(name: &str) -> DeduplicationToken {
    DeduplicationToken::new(name).unwrap()
}

/// Scenario: the same block with the same token twice, then with another token; into a table that feeds a view.
/// Guarantees: the token alone decides, in the table and behind the view: one copy, then two.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_inserted_once_also_through_the_view() {
    let Some(store) = Store::start().await else { return };
    let block = events(&[0, 0, 1]);
    let count = "SELECT count() AS n FROM tapio.events";
    let rolled_up = "SELECT sum(events) AS n FROM tapio.events_per_minute";
    for _again in 0..3 {
        let inserted = store.blocks.insert("events", &block, &token("cut-1")).await.unwrap();
        println!("{inserted:?}");
        assert_eq!(inserted.rows, 3);
        assert_eq!(store.number(count).await, 3);
        assert_eq!(store.number(rolled_up).await, 15);
    }
    store.blocks.insert("events", &block, &token("cut-2")).await.unwrap();
    assert_eq!(store.number(count).await, 6);
    assert_eq!(store.number(rolled_up).await, 30);
    // Another block under a known token is taken for a repetition: the token decides, not the contents.
    store.blocks.insert("events", &events(&[2]), &token("cut-1")).await.unwrap();
    assert_eq!(store.number(count).await, 6);
    store.stop().await;
}

/// Scenario: a column that the table lacks, a table that is missing, a text where the table has a number.
/// Guarantees: each is an error that says stop and names what is wrong; nothing of it is stored.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_do_not_fit_are_refused() {
    let Some(store) = Store::start().await else { return };
    let of_column = |name: &str, clickhouse_type: &str| {
        let mut block = BlockBuilder::new([(name, clickhouse_type)]).unwrap();
        for (_name, column) in block.columns() {
            column.push_bytes(b"text");
        }
        block.encode().unwrap()
    };
    for (what, table, block) in [
        ("nothing_known", "frames", of_column("nothing_known", "String")),
        ("missing_table", "missing_table", frames(0, 1)),
        ("sequence", "frames", of_column("sequence", "String")),
    ] {
        let error = store.blocks.insert(table, &block, &token(what)).await.expect_err(what);
        assert_eq!(error.advice(), Advice::Stop, "{what}: {error}");
        assert!(
            matches!(&error, ClientError::Server { message, .. } if message.contains(what)),
            "{what}: {error}"
        );
    }
    assert_eq!(store.number("SELECT count() AS n FROM tapio.frames").await, 0);
    store.stop().await;
}

#[derive(Debug, Clone)]
struct Row {
    small: u8,
    wide: u64,
    signed: i64,
    float: f64,
    time_micros: i64,
    time_nanos: i64,
    text: Vec<u8>,
    fixed: [u8; 16],
    uuid: [u8; 16],
    low: String,
    map: BTreeMap<String, String>,
    array: Vec<String>,
    low_array: Vec<String>,
    maybe: Option<u32>,
    maybe_text: Option<String>,
    address: [u8; 16],
}

const COLUMNS: &[(&str, &str)] = &[
    ("small", "UInt8"),
    ("wide", "UInt64"),
    ("signed", "Int64"),
    ("float", "Float64"),
    ("time_micros", "DateTime64(6, 'UTC')"),
    ("time_nanos", "DateTime64(9, 'UTC')"),
    ("text", "String"),
    ("fixed", "FixedString(16)"),
    ("uuid", "UUID"),
    ("low", "LowCardinality(String)"),
    ("map", "Map(LowCardinality(String), String)"),
    ("array", "Array(String)"),
    ("low_array", "Array(LowCardinality(String))"),
    ("maybe", "Nullable(UInt32)"),
    ("maybe_text", "Nullable(String)"),
    ("address", "IPv6"),
];

prop_compose! {
    fn row()(
        (small, wide, signed, float) in (any::<u8>(), any::<u64>(), any::<i64>(), any::<f64>()),
        time_micros in 0..4_000_000_000_000_000_i64,
        time_nanos in 0..4_000_000_000_000_000_000_i64,
        text in prop::collection::vec(any::<u8>(), 0..300),
        (fixed, uuid, address) in (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 16]>()),
        // Few and many distinct values, so that dictionaries pass the widths of their indices.
        low in prop_oneof!["[a-c]{0,1}", "[a-z]{3}"],
        map in prop::collection::btree_map("[a-d]{1}", "\\PC{0,8}", 0..4),
        array in prop::collection::vec("\\PC{0,5}", 0..4),
        low_array in prop::collection::vec("[a-e]{0,2}", 0..4),
        maybe in any::<Option<u32>>(),
        maybe_text in prop::option::of("\\PC{0,5}"),
    ) -> Row {
        Row { small, wide, signed, float, time_micros, time_nanos, text, fixed, uuid, low, map, array, low_array, maybe, maybe_text, address }
    }
}

#[derive(Debug, Deserialize)]
struct Stored {
    small: u8,
    wide: u64,
    signed: i64,
    float_bits: u64,
    time_micros: i64,
    time_nanos: i64,
    text: String,
    fixed: String,
    uuid: String,
    low: String,
    map: BTreeMap<String, String>,
    array: Vec<String>,
    low_array: Vec<String>,
    maybe: Option<u32>,
    maybe_text: Option<String>,
    address: Ipv6Addr,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fill(block: &mut BlockBuilder, index: usize, row: &Row) {
    for (name, column) in block.columns() {
        match name {
            "place" => column.push_unsigned(index as u64),
            "small" => column.push_unsigned(row.small.into()),
            "wide" => column.push_unsigned(row.wide),
            "signed" => column.push_signed(row.signed),
            "float" => column.push_float(row.float),
            "time_micros" => column.push_signed(row.time_micros),
            "time_nanos" => column.push_signed(row.time_nanos),
            "text" => column.push_bytes(&row.text),
            "fixed" => column.push_sixteen(row.fixed),
            "uuid" => column.push_sixteen(row.uuid),
            "low" => column.push_bytes(row.low.as_bytes()),
            "map" => column.push_map(row.map.iter().map(|(key, value)| (key.as_str(), value.as_str()))),
            "array" => column.push_array(row.array.iter().map(String::as_str)),
            "low_array" => column.push_array(row.low_array.iter().map(String::as_str)),
            "maybe" => match row.maybe {
                Some(value) => column.push_unsigned(value.into()),
                None => column.push_default(),
            },
            "maybe_text" => match &row.maybe_text {
                Some(value) => column.push_bytes(value.as_bytes()),
                None => column.push_default(),
            },
            "address" => column.push_sixteen(row.address),
            other => panic!("{other}"),
        }
    }
}

fn assert_same(stored: &Stored, row: &Row) {
    assert_eq!(stored.small, row.small);
    assert_eq!(stored.wide, row.wide);
    assert_eq!(stored.signed, row.signed);
    assert_eq!(stored.float_bits, row.float.to_bits());
    assert_eq!(stored.time_micros, row.time_micros);
    assert_eq!(stored.time_nanos, row.time_nanos);
    assert_eq!(stored.text, hex(&row.text));
    assert_eq!(stored.fixed, hex(&row.fixed));
    assert_eq!(stored.uuid.replace('-', ""), hex(&row.uuid));
    assert_eq!(stored.low, row.low);
    assert_eq!(stored.map, row.map);
    assert_eq!(stored.array, row.array);
    assert_eq!(stored.low_array, row.low_array);
    assert_eq!(stored.maybe, row.maybe);
    assert_eq!(stored.maybe_text, row.maybe_text);
    assert_eq!(stored.address, Ipv6Addr::from(row.address));
}

/// Scenario: blocks of generated rows, from one row to thousands (dictionaries with one- and two-byte indices), with
/// one builder that is cleared in between; read back by the real engine in another format.
/// Guarantees: every cell of every supported kind of type survives, bit by bit.
#[tokio::test(flavor = "multi_thread")]
async fn every_type_survives_the_engine() {
    let Some(store) = Store::start().await else { return };
    let schema = || std::iter::once(("place", "UInt32")).chain(COLUMNS.iter().copied());
    let columns: Vec<String> =
        schema().map(|(name, clickhouse_type)| format!("{name} {clickhouse_type}")).collect();
    let table =
        format!("CREATE TABLE tapio.types ({}) ENGINE = MergeTree ORDER BY place", columns.join(", "));
    store.writer.execute(&table, &[]).await.unwrap();

    let mut runner = TestRunner::default();
    let mut block = BlockBuilder::new(schema()).unwrap();
    for (case, rows) in [1_usize, 2, 300, 1, 3_000].into_iter().enumerate() {
        let generated = prop::collection::vec(row(), rows).new_tree(&mut runner).unwrap().current();
        block.clear();
        for (index, row) in generated.iter().enumerate() {
            fill(&mut block, index, row);
        }
        store.writer.execute("TRUNCATE TABLE tapio.types", &[]).await.unwrap();
        let encoded = block.encode().unwrap();
        let inserted = store.blocks.insert("types", &encoded, &token(&format!("case-{case}"))).await.unwrap();
        assert_eq!((inserted.rows, inserted.rows_written), (rows as u64, rows as u64));
        let statement = "SELECT small, wide, signed, reinterpretAsUInt64(float) AS float_bits, \
             toUnixTimestamp64Micro(t.time_micros) AS time_micros, toUnixTimestamp64Nano(t.time_nanos) AS time_nanos, \
             lower(hex(t.text)) AS text, lower(hex(t.fixed)) AS fixed, toString(t.uuid) AS uuid, low, map, array, \
             low_array, maybe, maybe_text, toString(t.address) AS address FROM tapio.types AS t ORDER BY place";
        let stored: Vec<Stored> = store.writer.rows(statement, &[]).await.unwrap();
        assert_eq!(stored.len(), generated.len());
        for (stored, row) in stored.iter().zip(&generated) {
            assert_same(stored, row);
        }
    }
    store.stop().await;
}
