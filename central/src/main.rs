//! The central process.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tapio_central::config::Config;
use tapio_daemon::telemetry::Format;

/// Tapio central: REST over the history of all clusters.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tapio_daemon::run_main("tapio-central", move |shutdown| async move {
        let config = Config::load(&arguments.config)?;
        if arguments.check_config {
            return Ok(());
        }
        tapio_daemon::telemetry::init(config.log.as_deref().unwrap_or("info"), Format::Full)?;
        tapio_central::run(config, shutdown, |_running| ()).await?;
        Ok(())
    })
}
