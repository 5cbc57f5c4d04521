//! What this host lets an agent do, tried for real and not guessed: `tapio-edge-agent check-host`.
//!
//! Loads and attaches every probe as the agent does, takes them off again, and says how each went. Reads no
//! configuration and writes nothing. `tapio doctor` asks for it and shows it beside what it finds by itself; each line
//! is a word and what it is about, so that a newer `tapio` reads an older agent.

use std::io::{self, Write as _};
use std::process::ExitCode;

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

/// Prints what was found, a line each. The status says whether it could be printed, not what was found.
#[must_use]
pub fn print() -> ExitCode {
    let mut text = lines().join("\n");
    text.push('\n');
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
