//! What every binary needs to be a good process: a checked configuration, logs, metrics, a health that
//! means progress, and an orderly end.
//!
//! The crate must never know what the process does, and it spawns nothing that it does not own. The
//! binaries of all tiers call it, from `main` outwards.

pub mod config;
pub mod health;
pub mod http;
pub mod metrics;
pub mod process;
pub mod shutdown;
pub mod telemetry;
pub mod tier;

pub use config::{ConfigError, Problems};
pub use health::{Health, Progress};
pub use metrics::Registry;
pub use process::{Failure, run_main, with_causes};
pub use tier::run_tier;
