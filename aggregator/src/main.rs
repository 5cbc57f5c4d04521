//! The aggregator's process.

use std::process::ExitCode;

use tapio_aggregator::{
    RunError,
    config::{Config, TIER},
    run,
};
use tapio_daemon::{config::Invocation, run_tier};

fn main() -> ExitCode {
    run_tier(
        Invocation::of_this_process(&TIER, env!("CARGO_PKG_VERSION")),
        Config::check,
        run::check,
        |config, shutdown| async { run(config, shutdown).await.map_err(RunError::into_failure) },
    )
}
