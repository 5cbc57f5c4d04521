//! The store against the real ClickHouse engine: processes, sockets, disk.
//!
//! These need the engine's library (`scripts/lib/fetch-clickhouse`). Without it they fail, unless `TAPIO_NOT_PROVEN`
//! contains `clickhouse`; then each says what it did not prove.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, which clippy does not take for tests"
)]

mod blocks;
mod lifecycle;
mod reading;
mod rights;
mod schema;
mod sessions;

use std::path::Path;
use std::time::Duration;

use tapio_store::client::{BlockWriter, ReadLimits, Reader};
use tapio_store::engine::{EmbeddedEngine, EngineConfig, find_library};

/// The configuration for an engine below `directory`, or `None` where the library may be missing and is.
fn engine_config(directory: &Path) -> Option<EngineConfig> {
    match find_library() {
        Ok(library) => Some(EngineConfig::with_library(directory, library)),
        Err(error) => {
            let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
            assert!(allowed.split(',').any(|name| name.trim() == "clickhouse"), "{error}");
            println!("not proven: clickhouse: {error}");
            None
        }
    }
}

/// A fresh engine with the schema, and clients for it.
struct Store {
    engine: EmbeddedEngine,
    blocks: BlockWriter,
    writer: Reader,
    reader: Reader,
    directory: tempfile::TempDir,
}

impl Store {
    async fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let config = engine_config(directory.path())?;
        let engine = EmbeddedEngine::start(config).await.unwrap();
        let store = Self::of(engine, directory);
        tapio_store::migrations::migrate(&store.writer).await.unwrap();
        Some(store)
    }

    fn of(engine: EmbeddedEngine, directory: tempfile::TempDir) -> Self {
        Self {
            blocks: BlockWriter::new(engine.writer_endpoint().unwrap(), Duration::from_secs(30)),
            writer: Reader::new(&engine.writer_endpoint().unwrap(), ReadLimits::default()),
            reader: Reader::new(&engine.reader_endpoint().unwrap(), ReadLimits::default()),
            engine,
            directory,
        }
    }

    async fn number(&self, statement: &str) -> u64 {
        #[derive(serde::Deserialize)]
        struct Row {
            n: u64,
        }
        let rows: Vec<Row> = self.writer.rows(statement, &[]).await.unwrap();
        assert_eq!(rows.len(), 1, "{statement}");
        rows[0].n
    }

    async fn stop(self) {
        self.engine.stop().await.unwrap();
        drop(self.directory);
    }
}

/// Whether a process of this id exists (a zombie counts: somebody has to reap it).
fn process_exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
