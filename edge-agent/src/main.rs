//! The agent's process: its settings and logs, and then [`tapio_edge_agent::run`]; or, for `check-host`, what this host
//! lets it do, and for `uninstall`, the end of what outlived it.

use std::process::ExitCode;

use tapio_daemon::{Failure, config::Invocation, run_tier};
use tapio_edge_agent::{Config, config::TIER, host, uninstall};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    match words.next() {
        Some(word) if word == host::COMMAND => return host::answer(words.next().as_deref()),
        Some(word) if word == uninstall::COMMAND => return uninstall::answer(words.next().as_deref()),
        _ => {}
    }
    run_tier(
        Invocation::of_this_process(&TIER, env!("CARGO_PKG_VERSION")),
        Config::check,
        tapio_edge_agent::check,
        |config, shutdown| async { tapio_edge_agent::run(config, shutdown).await.map_err(Failure::from) },
    )
}
