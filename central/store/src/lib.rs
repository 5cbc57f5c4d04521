//! ClickHouse for Tapio: everything between a tier and its only store.
//!
//! - [`engine`] runs the embedded engine as a supervised child process, the default on one machine;
//! - [`migrations`] brings any server's schema up to date;
//! - [`native`] encodes blocks, [`client`] inserts them exactly once and reads within limits;
//! - [`events`] is the events table's columns, made from the field table.
//!
//! Used by the aggregator (writes) and central (reads). One code path over HTTP for the embedded engine, one server
//! and a cluster: nothing outside [`engine`] knows which it is. This crate never retries and never decides what to
//! store: queues, cuts and backoff are the caller's.
//!
//! A test of another crate needs no more than this to have the real thing:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tapio_store::client::{ReadLimits, Reader};
//! use tapio_store::engine::{EmbeddedEngine, EngineConfig};
//!
//! let directory = std::env::temp_dir().join("some-empty-directory");
//! let engine = EmbeddedEngine::start(EngineConfig::new(directory)?).await?;
//! let writer = Reader::new(&engine.writer_endpoint()?, ReadLimits::default());
//! tapio_store::migrations::migrate(&writer).await?;
//! engine.stop().await?;
//! # Ok(())
//! # }
//! ```

pub mod client;
pub mod engine;
pub mod events;
pub mod migrations;
pub mod native;
