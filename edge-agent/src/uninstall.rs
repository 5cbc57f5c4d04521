//! Takes the probes off that outlived their agent: `tapio-edge-agent uninstall`.
//!
//! Reads no configuration: whoever uninstalls may have removed that already. Touches nothing but what agents pin, and
//! nothing that a running agent holds. Called by `main`.

use std::{
    ffi::OsStr,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use crate::probes::{Removed, remove_all};

/// The word on the command line.
pub const COMMAND: &str = "uninstall";
/// The default of `capture.pins`.
const FOLDER: &str = "/sys/fs/bpf/tapio";

const HELP: &str = "\
Removes the probes, counters and rings that agents of this host left in the kernel, and says what it removed. Agents must
have ended. What they have in their state directories stays.

Usage: tapio-edge-agent uninstall [FOLDER]

  FOLDER   `capture.pins` of the agents [default: /sys/fs/bpf/tapio]
";

/// Removes what is pinned and prints a line for each node; or help.
#[must_use]
pub fn answer(word: Option<&OsStr>) -> ExitCode {
    if word.is_some_and(|word| word == "--help" || word == "-h") {
        return say(HELP, ExitCode::SUCCESS);
    }
    let folder = word.map_or(Path::new(FOLDER), Path::new);
    match remove_all(folder) {
        Ok(removed) if removed.is_empty() => {
            say(&format!("nothing is pinned in {}\n", folder.display()), ExitCode::SUCCESS)
        }
        Ok(removed) => {
            let lines = removed.iter().map(|(directory, Removed { links, programs, maps })| {
                format!("removed {}: {links} links, {programs} programs, {maps} maps\n", directory.display())
            });
            say(&lines.collect::<String>(), ExitCode::SUCCESS)
        }
        Err(error) => {
            let text = format!("error: {}\n", tapio_daemon::with_causes(&error));
            // Who cannot be told sees the status.
            drop(io::stderr().lock().write_all(text.as_bytes()));
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str, status: ExitCode) -> ExitCode {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => status,
        Err(_) => ExitCode::FAILURE,
    }
}
