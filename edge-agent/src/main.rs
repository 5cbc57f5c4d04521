//! The agent's process: its settings and logs, and then [`tapio_edge_agent::run`].

use std::process::ExitCode;

use tapio_daemon::{Failure, config::Invocation, run_tier};
use tapio_edge_agent::{Config, config::TIER};

fn main() -> ExitCode {
    run_tier(
        Invocation::of_this_process(&TIER, env!("CARGO_PKG_VERSION")),
        Config::check,
        |_config| Ok(()),
        |config, shutdown| async { tapio_edge_agent::run(config, shutdown).await.map_err(Failure::from) },
    )
}
