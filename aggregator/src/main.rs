//! The aggregator's process.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tapio_aggregator::{RunError, config::Config, run};
use tapio_daemon::{run_main, telemetry};

/// Accepts the frames of a cluster's nodes, correlates them, and writes ClickHouse.
#[derive(Parser)]
#[command(name = "tapio-aggregator", version)]
struct Arguments {
    /// The configuration, TOML.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and the rules, and exit: 0 when they are right, 2 when they are not.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    run_main("tapio-aggregator", |shutdown| async move {
        let config = Config::load(&arguments.config)?;
        telemetry::init(&config.telemetry.log, telemetry::Format::default())?;
        if arguments.check_config {
            return run::check(&config).map_err(RunError::into_failure);
        }
        run(config, shutdown).await.map_err(RunError::into_failure)
    })
}
