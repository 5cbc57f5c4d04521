//! The agent's process: its settings and logs, and then [`tapio_edge_agent::run`]; or, for `check-host`, what this host
//! lets it do.

use std::process::ExitCode;

use tapio_daemon::{Failure, config::Invocation, run_tier};
use tapio_edge_agent::{Config, config::TIER, host};

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == host::COMMAND) {
        return host::print();
    }
    run_tier(
        Invocation::of_this_process(&TIER, env!("CARGO_PKG_VERSION")),
        Config::check,
        |_config| Ok(()),
        |config, shutdown| async { tapio_edge_agent::run(config, shutdown).await.map_err(Failure::from) },
    )
}
