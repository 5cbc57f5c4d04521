//! Tapio's load side as a program: `demo` runs a real failure and shows what the running system says about it,
//! `footprint` measures what the system costs.

use std::io::{Write, stderr};
use std::process::ExitCode;

use clap::Parser;
use tapio_loadtest::command::{Arguments, run};

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Without a standard error there is nobody to tell.
            drop(writeln!(stderr(), "tapio-loadtest: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
