//! The language of the system: units, ids, entities, events, observations, verdicts and findings.
//!
//! Everything that two tiers must agree on is defined here, once. The crate does no I/O, spawns nothing and never
//! reads a clock: time is always an argument. Bytes become a [`batch`] on the node and stay one until a row of
//! ClickHouse; the owned [`event::UnifiedEvent`] exists at the edges of the system only (APIs, logs, tests).

pub mod address;
pub mod batch;
pub mod capability;
pub mod entity;
pub mod event;
pub mod field;
pub mod finding;
pub mod ids;
pub mod intent;
pub mod ledger;
pub mod observation;
#[cfg(feature = "schema")]
mod schema;
pub mod units;
pub mod verdict;
