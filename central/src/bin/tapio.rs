//! The people's command.

use std::{
    io::{ErrorKind, Write},
    process::ExitCode,
};

use clap::Parser;
use tapio_central::cli::{self, client::ClientError};

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let mut out = std::io::stdout().lock();
    match cli::run(&arguments, &mut out).and_then(|()| out.flush().map_err(ClientError::Write)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe went away, as `tapio findings | head` does.
        Err(ClientError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let mut err = std::io::stderr().lock();
            // There is nobody left to tell when even this fails.
            drop(writeln!(err, "tapio: {error}"));
            ExitCode::FAILURE
        }
    }
}
