//! What this host lets an agent do, tried for real and not guessed: `tapio-edge-agent check-host`.
//!
//! Loads and attaches every probe as the agent does, takes them off again, and says how each went. Reads no
//! configuration and writes nothing. `tapio doctor` asks for it and shows it beside what it finds by itself; each line
//! is a word and what it is about, so that a newer `tapio` reads an older agent.

use std::{
    ffi::OsStr,
    io::{self, Write as _},
    process::ExitCode,
};

use crate::{
    agent::describe_probes,
    attribute::{Hierarchy, Version},
    clock,
    probes::{Probes, ProbesConfig},
};

/// The word on the command line.
pub const COMMAND: &str = "check-host";
/// Enough for what happens while the probes are on.
const RING_BYTES: u32 = 64 << 10;

const HELP: &str = "\
Tries what this host lets an agent do: loads and attaches every probe, takes them off again, and prints a line each.
Needs no configuration. `tapio doctor` shows it with everything else that matters.

Usage: tapio-edge-agent check-host
";

/// Prints what was found, a line each; or help, or what is wrong with the word behind the command. The status says
/// whether it was understood and could be printed, not what was found.
#[must_use]
pub fn answer(word: Option<&OsStr>) -> ExitCode {
    let text = match word {
        None => lines().join("\n") + "\n",
        Some(word) if word == "--help" || word == "-h" => HELP.to_owned(),
        Some(word) => {
            let refusal =
                format!("error: {COMMAND} takes nothing but --help, and was given {}\n", word.display());
            // Who cannot be told sees the status.
            drop(io::stderr().lock().write_all(refusal.as_bytes()));
            return ExitCode::from(2);
        }
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn lines() -> Vec<String> {
    let (probes, capabilities) =
        Probes::load(&ProbesConfig { ring_bytes: RING_BYTES, ..ProbesConfig::default() });
    let mut lines: Vec<String> =
        describe_probes(&capabilities).map(|capability| format!("probe {capability}")).collect();
    // Off again.
    drop(probes);
    lines.push(match Hierarchy::find() {
        Ok(hierarchy) => {
            let version = match hierarchy.version() {
                Version::V1 => "v1",
                Version::V2 => "v2",
            };
            format!("groups {version} {}", hierarchy.directory("/").display())
        }
        Err(error) => format!("groups none {}", tapio_daemon::with_causes(&error)),
    });
    let (is_synchronized, error_micros) = clock::kernel_clock();
    let word = if is_synchronized { "synchronized" } else { "unsynchronized" };
    lines.push(format!("clock {word} {error_micros}"));
    lines
}
