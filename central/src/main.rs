//! The central process.

use std::process::ExitCode;

use tapio_central::config::{Config, TIER};
use tapio_daemon::{Failure, config::Invocation, run_tier};

fn main() -> ExitCode {
    run_tier(
        Invocation::of_this_process(&TIER, env!("CARGO_PKG_VERSION")),
        Config::check,
        |config| tapio_central::check(config).into_iter().map(Failure::config).collect(),
        |config, shutdown| async {
            tapio_central::run(config, shutdown, |_running| ()).await?;
            Ok(())
        },
    )
}
