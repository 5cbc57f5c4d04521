//! The aggregator of a cluster: accepts the frames of nodes, correlates them, and writes ClickHouse.
//!
//! After validation the road forks: a frame goes to the spool, which acknowledges it and feeds the store, and at once
//! to the engine, which waits for no disk. [`run`] is the whole tier; `main` and the tests that run tiers in one
//! process call it. It must never know an agent or a central but through the wire and the store.

pub mod config;
pub mod recent;
pub mod road;
pub mod run;

#[cfg(test)]
mod allocations;
mod chains;
mod clock;
mod connections;
mod context;
mod dashboard;
mod engine;
mod enrolment;
mod grpc;
mod identity;
mod intake;
mod live;
mod losses;
mod metrics;
mod nodes;
mod patience;
mod pipeline;
mod recording;
mod rules;
mod source;
mod state;
mod store_link;
mod tasks;

pub use config::Config;
pub use recent::Recent;
pub use run::{RunError, Running, run, start};
