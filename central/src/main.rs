//! The central process.

use std::process::ExitCode;

use tapio_central::config::{Config, TIER};
use tapio_daemon::{config::Invocation, run_tier};

fn main() -> ExitCode {
    run_tier(
        Invocation::of_this_process(&TIER, env!("CARGO_PKG_VERSION")),
        Config::check,
        |_config| Ok(()),
        |config, shutdown| async {
            tapio_central::run(config, shutdown, |_running| ()).await?;
            Ok(())
        },
    )
}
