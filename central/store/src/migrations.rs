//! The schema: numbered, additive, idempotent DDL, and the runner that brings a server up to it.
//!
//! The statements are `schemas/clickhouse/NNNN_name.sql`, embedded here. `tapio.schema_migrations` says which ones a
//! server has. A server that has one that we don't know was written by a newer Tapio: it is refused, because this
//! Tapio cannot know what its rows mean. ClickHouse has no transactions: a runner that dies half-way, or two that
//! run at once, do no harm because every statement says IF NOT EXISTS. Whoever holds the migration lease calls this,
//! normally an aggregator at start; central only [`check`]s.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::client::{ClientError, DATABASE, Parameter, Reader};

/// One numbered step of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// Its number; steps run in this order.
    pub version: u32,
    /// Its name, for people.
    pub name: &'static str,
    /// Its statements, each ended by `;` at the end of a line.
    pub sql: &'static str,
}

macro_rules! migrations {
    ($($version:literal $name:literal),* $(,)?) => {
        &[$(Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../../../schemas/clickhouse/", $name, ".sql")),
        }),*]
    };
}

/// Every step that this build knows, in order.
pub const MIGRATIONS: &[Migration] =
    migrations![1 "0001_spine", 2 "0002_readable", 3 "0003_hosts", 4 "0004_tiers", 5 "0005_writers"];

/// Why the schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// A newer Tapio wrote this database.
    #[error(
        "the database has schema {found} ({name}) and this Tapio knows schemas up to {known}; \
             start a Tapio at least as new as the one that wrote it, or use another database"
    )]
    Newer {
        /// The newest step that the server has.
        found: u32,
        /// Its name.
        name: String,
        /// The newest step that this build has.
        known: u32,
    },
    /// The database is behind, and the caller only checks.
    #[error(
        "the database has schema {found} and this Tapio needs {needed}; \
             start an aggregator of this version first, it brings the schema up"
    )]
    Older {
        /// The newest step that the server has, 0 for none.
        found: u32,
        /// The newest step that this build has.
        needed: u32,
    },
    /// A step was changed after it was applied.
    #[error(
        "schema step {version} ({name}) was applied with other statements than this Tapio has for it; \
             steps never change once released, so one of the two builds is not a released one"
    )]
    Changed {
        /// The step.
        version: u32,
        /// Its name.
        name: String,
    },
    /// A statement failed.
    #[error("schema step {version} ({name}) failed at statement {statement}")]
    Statement {
        /// The step.
        version: u32,
        /// Its name.
        name: &'static str,
        /// Which of its statements, counted from 1.
        statement: usize,
        /// What the server said.
        #[source]
        source: ClientError,
    },
    /// The bookkeeping failed.
    #[error("the table of schema steps cannot be used")]
    Bookkeeping(#[source] ClientError),
    /// A table forgets too soon which blocks it has.
    #[error(
        "table {table} remembers its last {found} blocks ({setting}) and {needed} are needed, or a block that is \
             sent again would be stored twice; run ALTER TABLE {table} MODIFY SETTING {setting} = {needed}"
    )]
    Forgetful {
        /// The table.
        table: String,
        /// Which setting says so.
        setting: &'static str,
        /// Its value.
        found: u64,
        /// The least that will do.
        needed: u64,
    },
}

#[derive(Debug, Deserialize)]
struct Applied {
    version: u32,
    name: String,
    checksum: String,
}

/// Brings the schema up to [`MIGRATIONS`] and returns the versions that were applied now.
///
/// # Errors
/// [`MigrationError`]; nothing is applied when the database is newer or a released step was changed.
pub async fn migrate(server: &Reader) -> Result<Vec<u32>, MigrationError> {
    migrate_to(server, MIGRATIONS).await
}

/// As [`migrate`], for a list of steps of the caller's.
///
/// # Errors
/// As [`migrate`].
pub async fn migrate_to(server: &Reader, steps: &[Migration]) -> Result<Vec<u32>, MigrationError> {
    prepare(server).await?;
    let applied = applied(server).await?;
    verify(&applied, steps)?;
    let mut newly = Vec::new();
    for step in steps {
        if applied.iter().any(|done| done.version == step.version) {
            continue;
        }
        for (index, statement) in statements(step.sql).enumerate() {
            server.execute(statement, &[]).await.map_err(|source| MigrationError::Statement {
                version: step.version,
                name: step.name,
                statement: index + 1,
                source,
            })?;
        }
        record(server, step).await?;
        tracing::info!(version = step.version, name = step.name, "schema step applied");
        newly.push(step.version);
    }
    Ok(newly)
}

/// Checks that the schema is exactly the one that this build needs, and changes nothing.
///
/// # Errors
/// [`MigrationError::Newer`], [`MigrationError::Older`], [`MigrationError::Changed`] or the server's refusal.
pub async fn check(server: &Reader) -> Result<(), MigrationError> {
    let found = match applied(server).await {
        Ok(found) => found,
        // Unknown database or table: nothing was ever migrated.
        Err(MigrationError::Bookkeeping(ClientError::Server { code: 60 | 81, .. })) => Vec::new(),
        Err(error) => return Err(error),
    };
    verify(&found, MIGRATIONS)?;
    let newest = found.iter().map(|step| step.version).max().unwrap_or(0);
    let needed = newest_of(MIGRATIONS);
    if newest < needed {
        return Err(MigrationError::Older { found: newest, needed });
    }
    Ok(())
}

/// The blocks that each table must remember, so that a block that is sent again is recognised.
///
/// A writer repeats a block until it is stored and sends no other before. It may wait 60 s for an answer and pause for
/// 5 s, in which others that write the same table make up to five blocks a second each: 325. A block has a part, and so
/// an entry, for each day that its rows are of, which is one, or two around midnight: three writers, two parts, half as
/// much again for clocks that differ. What is repeated after a restart, however much later, does not rest on this: then
/// the table `frames` is asked.
pub const REMEMBERED_BLOCKS_MIN: u64 = 3_000;

/// Checks that every table of the schema remembers at least `needed` blocks, where its engine keeps any. A user's own
/// tables may stand in the schema's place (IF NOT EXISTS), made with other settings.
///
/// # Errors
/// [`MigrationError::Forgetful`] for the first table that does not, or the server's refusal.
pub async fn check_deduplication(server: &Reader, needed: u64) -> Result<(), MigrationError> {
    #[derive(Deserialize)]
    struct Table {
        name: String,
        engine: String,
        engine_full: String,
    }
    #[derive(Deserialize)]
    struct Setting {
        name: String,
        value: String,
    }
    let statement = format!(
        "SELECT name, engine, engine_full FROM system.tables \
         WHERE database = '{DATABASE}' AND engine LIKE '%MergeTree' AND name != 'schema_migrations' ORDER BY name"
    );
    let tables: Vec<Table> = server.rows(&statement, &[]).await.map_err(MigrationError::Bookkeeping)?;
    let statement =
        format!("SELECT name, value FROM system.merge_tree_settings WHERE name IN ('{OWN}', '{REPLICATED}')");
    let defaults: Vec<Setting> = server.rows(&statement, &[]).await.map_err(MigrationError::Bookkeeping)?;
    for table in tables {
        let setting = if table.engine.starts_with("Replicated") { REPLICATED } else { OWN };
        let default = || defaults.iter().find(|default| default.name == setting)?.value.parse().ok();
        let found = setting_in(&table.engine_full, setting).or_else(default).unwrap_or(0);
        if found < needed {
            return Err(MigrationError::Forgetful {
                table: format!("{DATABASE}.{}", table.name),
                setting,
                found,
                needed,
            });
        }
    }
    Ok(())
}

const OWN: &str = "non_replicated_deduplication_window";
const REPLICATED: &str = "replicated_deduplication_window";

/// The value of a setting in what `system.tables` says of a table's engine.
fn setting_in(engine_full: &str, setting: &str) -> Option<u64> {
    let (_, settings) = engine_full.rsplit_once(" SETTINGS ")?;
    settings.split(',').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        (name.trim() == setting).then(|| value.trim().trim_matches('\'').parse().ok())?
    })
}

async fn prepare(server: &Reader) -> Result<(), MigrationError> {
    // No TTL and no partition here: it holds one row per step for ever.
    let table = format!(
        "CREATE TABLE IF NOT EXISTS {DATABASE}.schema_migrations (\
           version UInt32, name String, checksum FixedString(64), applied_at DateTime64(3, 'UTC')\
         ) ENGINE = MergeTree ORDER BY version \
         SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"
    );
    let database = format!("CREATE DATABASE IF NOT EXISTS {DATABASE}");
    for statement in [database.as_str(), table.as_str()] {
        server.execute(statement, &[]).await.map_err(MigrationError::Bookkeeping)?;
    }
    Ok(())
}

async fn applied(server: &Reader) -> Result<Vec<Applied>, MigrationError> {
    // Two runners at once may both have recorded a step; the earliest row counts.
    let statement = format!(
        "SELECT version, argMin(name, applied_at) AS name, toString(argMin(checksum, applied_at)) AS checksum \
         FROM {DATABASE}.schema_migrations GROUP BY version ORDER BY version"
    );
    server.rows(&statement, &[]).await.map_err(MigrationError::Bookkeeping)
}

fn verify(applied: &[Applied], steps: &[Migration]) -> Result<(), MigrationError> {
    for done in applied {
        let Some(step) = steps.iter().find(|step| step.version == done.version) else {
            return Err(MigrationError::Newer {
                found: done.version,
                name: done.name.clone(),
                known: newest_of(steps),
            });
        };
        if checksum(step) != done.checksum {
            return Err(MigrationError::Changed { version: done.version, name: done.name.clone() });
        }
    }
    Ok(())
}

async fn record(server: &Reader, step: &Migration) -> Result<(), MigrationError> {
    let statement = format!(
        "INSERT INTO {DATABASE}.schema_migrations (version, name, checksum, applied_at) \
         SELECT {{version:UInt32}}, {{name:String}}, {{checksum:String}}, now64(3, 'UTC')"
    );
    let parameters = [
        ("version", Parameter::Unsigned(u64::from(step.version))),
        ("name", Parameter::from(step.name)),
        ("checksum", Parameter::Text(checksum(step))),
    ];
    server.execute(&statement, &parameters).await.map_err(MigrationError::Bookkeeping)
}

fn newest_of(steps: &[Migration]) -> u32 {
    steps.iter().map(|step| step.version).max().unwrap_or(0)
}

/// SHA-256 over the statements without comments and surrounding blanks, so that a comment may still be improved.
fn checksum(step: &Migration) -> String {
    let mut hasher = Sha256::new();
    for statement in statements(step.sql) {
        for line in statement.lines().map(str::trim).filter(|line| !is_comment(line)) {
            hasher.update(line.as_bytes());
            hasher.update(b"\n");
        }
        hasher.update(b";");
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The statements of a file: each ends with `;` at the end of a line. Pieces of comments alone are none.
fn statements(sql: &str) -> impl Iterator<Item = &str> {
    sql.split(";\n")
        .map(str::trim)
        .filter(|statement| statement.lines().map(str::trim).any(|line| !is_comment(line)))
}

fn is_comment(line: &str) -> bool {
    line.is_empty() || line.starts_with("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the embedded steps.
    /// Guarantees: they are numbered from 1 without gaps, their files' names carry the number, and every statement
    /// can be repeated.
    #[test]
    fn steps_are_numbered_and_repeatable() {
        for (index, step) in MIGRATIONS.iter().enumerate() {
            assert_eq!(step.version as usize, index + 1);
            assert!(step.name.starts_with(&format!("{:04}_", step.version)), "{}", step.name);
            assert!(step.sql.ends_with(";\n"), "{} must end with a semicolon and a line end", step.name);
            for statement in statements(step.sql) {
                assert!(statement.contains(" IF NOT EXISTS "), "not repeatable: {statement}");
            }
        }
    }

    /// Scenario: every table of the embedded steps.
    /// Guarantees: it has a TTL and a partition, drops whole parts, syncs to disk and knows repeated blocks.
    #[test]
    fn every_table_is_bounded_and_durable() {
        for statement in MIGRATIONS.iter().flat_map(|step| statements(step.sql)) {
            if !statement.contains("CREATE TABLE") {
                continue;
            }
            for needed in [
                "\nTTL ",
                "\nPARTITION BY ",
                "ttl_only_drop_parts = 1",
                "fsync_after_insert = 1",
                "fsync_part_directory = 1",
                "non_replicated_deduplication_window",
            ] {
                assert!(statement.contains(needed), "{needed:?} is missing in: {statement}");
            }
        }
    }

    /// Scenario: an engine as the server describes it, with both settings, and without any.
    /// Guarantees: each is read by its whole name; one that is not there is not made up.
    #[test]
    fn settings_are_read_from_the_engine() {
        let engine = "MergeTree PARTITION BY toDate(t) ORDER BY (a, b) TTL toDate(t) + toIntervalDay(30) \
            SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 100, \
            replicated_deduplication_window = 7";
        assert_eq!((setting_in(engine, OWN), setting_in(engine, REPLICATED)), (Some(100), Some(7)));
        assert_eq!(setting_in("MergeTree ORDER BY a", OWN), None);
        for step in MIGRATIONS.iter().flat_map(|step| statements(step.sql)) {
            if let Some((_, window)) = step.split_once("non_replicated_deduplication_window = ") {
                assert!(window.trim_end_matches(';').trim().parse::<u64>().unwrap() >= REMEMBERED_BLOCKS_MIN);
            }
        }
    }

    /// Scenario: a step with comments, blank lines and two statements; the same with another comment; another column.
    /// Guarantees: comments change nothing in the checksum, statements do.
    #[test]
    fn the_checksum_is_over_statements() {
        let step = |sql| Migration { version: 1, name: "0001_x", sql };
        let first = step("-- why\nCREATE TABLE a (\n  -- x\n  b Int8);\n\nCREATE TABLE c;\n");
        let reworded = step("CREATE TABLE a (\nb Int8);\nCREATE TABLE c;\n-- the end;\n");
        let changed = step("CREATE TABLE a (\nb Int16);\nCREATE TABLE c;\n");
        assert_eq!(statements(first.sql).count(), 2);
        assert_eq!(checksum(&first), checksum(&reworded));
        assert_ne!(checksum(&first), checksum(&changed));
    }
}
