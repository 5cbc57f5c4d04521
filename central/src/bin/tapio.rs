//! The people's command.

use std::{io::Write, process::ExitCode};

use clap::Parser;
use tapio_central::cli::{self, client::ClientError, terminal};

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let mut out = std::io::stdout().lock();
    let flushed = |out: &mut dyn Write| out.flush().map_err(ClientError::Write);
    match cli::run(&arguments, &mut out).and_then(|()| Ok(flushed(&mut out)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            let mut err = std::io::stderr().lock();
            // There is nobody left to tell when even this fails.
            drop(writeln!(err, "tapio: {}", terminal::printable(&error.to_string())));
            ExitCode::from(error.exit_status())
        }
    }
}
