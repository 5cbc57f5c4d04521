//! Migrations against the real engine.

use serde::Deserialize;
use tapio_schemas::intent::{EventKind, LinkKind, Severity};
use tapio_store::client::{ReadLimits, Reader};
use tapio_store::engine::EmbeddedEngine;
use tapio_store::migrations::{MIGRATIONS, Migration, MigrationError, check, migrate, migrate_to};

use crate::{Store, engine_config};

/// Scenario: a fresh server is checked, migrated, migrated again, and every step is run once more by hand as after a
/// crash before its record.
/// Guarantees: the check says that the schema is missing and then that it is right; repeating changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn migrating_is_idempotent() {
    let directory = tempfile::tempdir().unwrap();
    let Some(config) = engine_config(directory.path()) else { return };
    let engine = EmbeddedEngine::start(config).await.unwrap();
    let server = Reader::new(&engine.writer_endpoint().unwrap(), ReadLimits::default());

    let before = check(&server).await.unwrap_err();
    assert!(matches!(before, MigrationError::Older { found: 0, .. }), "{before}");
    let all: Vec<u32> = MIGRATIONS.iter().map(|step| step.version).collect();
    assert_eq!(migrate(&server).await.unwrap(), all);
    check(&server).await.unwrap();
    assert!(migrate(&server).await.unwrap().is_empty());

    server.execute("TRUNCATE TABLE tapio.schema_migrations", &[]).await.unwrap();
    assert_eq!(migrate(&server).await.unwrap(), all);
    check(&server).await.unwrap();
    engine.stop().await.unwrap();
}

/// Scenario: the server has a step that this build does not know; a step differs from what was applied; a step fails.
/// Guarantees: each is refused by name, and nothing of it is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn other_schemas_are_refused() {
    let Some(store) = Store::start().await else { return };
    let newest = MIGRATIONS.last().unwrap().version;
    let with = |step: Migration| [MIGRATIONS, &[step]].concat();
    let failing =
        Migration { version: newest + 1, name: "9998_failing", sql: "CREATE TABLE IF NOT EXISTS tapio.x;\n" };
    let failed = migrate_to(&store.writer, &with(failing)).await.unwrap_err();
    assert!(matches!(failed, MigrationError::Statement { statement: 1, .. }), "{failed}");
    check(&store.writer).await.unwrap();

    let later = Migration {
        version: newest + 1,
        name: "9999_later",
        sql: "CREATE TABLE IF NOT EXISTS tapio.later (a UInt8) ENGINE = MergeTree ORDER BY a;\n",
    };
    assert_eq!(migrate_to(&store.writer, &with(later)).await.unwrap(), [newest + 1]);
    let newer = migrate(&store.writer).await.unwrap_err();
    assert!(matches!(&newer, MigrationError::Newer { name, .. } if name == "9999_later"), "{newer}");
    assert!(newer.to_string().contains("start a Tapio at least as new"), "{newer}");
    assert!(check(&store.writer).await.is_err());

    let changed = Migration {
        sql: "CREATE TABLE IF NOT EXISTS tapio.later (a UInt16) ENGINE = MergeTree ORDER BY a;\n",
        ..later
    };
    let refused = migrate_to(&store.writer, &with(changed)).await.unwrap_err();
    assert!(matches!(refused, MigrationError::Changed { .. }), "{refused}");
    store.stop().await;
}

#[derive(Debug, PartialEq, Deserialize)]
struct Column {
    name: String,
    #[serde(rename = "type")]
    clickhouse_type: String,
}

/// Scenario: the events table as the engine describes it, and the field table.
/// Guarantees: the same columns, by name, type and order: the DDL cannot drift from the one definition.
#[tokio::test(flavor = "multi_thread")]
async fn the_events_table_is_the_field_table() {
    let Some(store) = Store::start().await else { return };
    let statement = "SELECT name, type FROM system.columns WHERE database = 'tapio' AND table = 'events' AND \
                     default_kind != 'ALIAS' ORDER BY position";
    let found: Vec<Column> = store.reader.rows(statement, &[]).await.unwrap();
    let expected: Vec<Column> = tapio_store::events::columns()
        .map(|(name, clickhouse_type)| Column {
            name: name.to_owned(),
            clickhouse_type: clickhouse_type.to_owned(),
        })
        .collect();
    assert_eq!(found, expected);
    store.stop().await;
}

#[derive(Debug, Deserialize)]
struct Alias {
    table: String,
    name: String,
    default_expression: String,
}

#[derive(Debug, Deserialize)]
struct Named {
    code: u8,
    name: String,
}

/// Scenario: every column that turns a code into a name, its expression asked for all codes.
/// Guarantees: analysts read the names of the API, also for codes of a newer version.
#[tokio::test(flavor = "multi_thread")]
async fn codes_read_as_the_names_of_the_api() {
    let Some(store) = Store::start().await else { return };
    let statement = "SELECT table, name, default_expression FROM system.columns \
                     WHERE database = 'tapio' AND default_kind = 'ALIAS' AND name LIKE '%\\_name' ORDER BY table, name";
    let aliases: Vec<Alias> = store.reader.rows(statement, &[]).await.unwrap();
    assert_eq!(aliases.len(), 5);
    for alias in aliases {
        let coded = alias.name.trim_end_matches("_name");
        let statement = format!(
            "SELECT {coded} AS code, {} AS name FROM (SELECT toUInt8(number) AS {coded} FROM numbers(256))",
            alias.default_expression
        );
        let named: Vec<Named> = store.reader.rows(&statement, &[]).await.unwrap();
        assert_eq!(named.len(), 256);
        for Named { code, name } in named {
            let expected = match coded {
                "kind" => EventKind::from_code(code).as_str(),
                "severity" => Severity::from_code(code).as_str(),
                "trace_link" => LinkKind::from_code(code).as_str(),
                other => panic!("{}.{other} is no code that this test knows", alias.table),
            };
            assert_eq!(name, expected, "{}.{} of {code}", alias.table, alias.name);
        }
    }
    store.stop().await;
}
