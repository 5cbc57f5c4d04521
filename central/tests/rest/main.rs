//! Central's REST API and the `tapio` command, asked over real HTTPS, against the real ClickHouse engine.
//!
//! Each test starts an engine and a central of its own, inserts rows the way the aggregator does, and compares answers
//! with what it inserted. These need the engine's library (`scripts/lib/fetch-clickhouse`). Without it they fail,
//! unless `TAPIO_NOT_PROVEN` contains `clickhouse`; then each says what it did not prove.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests, which clippy does not take for tests"
)]

mod clusters;
mod command;
mod command_lists;
mod command_replay;
mod entities;
mod events;
mod exchange;
mod findings;
mod health;
mod hostile;
mod ledger;
mod nodes;
mod openapi;
mod refusals;
mod rows;
mod samples;
mod schemathesis;
mod status;
mod transport;
mod world;
