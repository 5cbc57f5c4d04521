//! The agent's process: options, configuration, logs, and then [`tapio_edge_agent::run`].

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tapio_daemon::{Failure, run_main, telemetry};
use tapio_edge_agent::Config;

/// Observes one node and ships what matters to its aggregator.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    run_main("tapio-edge-agent", |shutdown| async move {
        let config = Config::load(&options.config)?;
        if options.check_config {
            return Ok(());
        }
        telemetry::init(&config.log, telemetry::Format::default())?;
        tapio_edge_agent::run(config, shutdown).await.map_err(Failure::from)
    })
}
