//! Asks the agent beside this program what it could do here: it loads and attaches every probe, and takes them off.

use std::{
    env,
    ffi::OsStr,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tapio_schemas::capability::{ProbeCapability, ProbeState};

use super::Check;

/// What the names of probes begin with.
pub(super) const PROBE: &str = "probe ";
const PROGRAM: &str = "tapio-edge-agent";
/// Loading the probes takes a second, on a busy machine some.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: u64 = 256 << 10;

pub(super) fn checks(given: Option<&Path>) -> Vec<Check> {
    let Some(agent) = given.map_or_else(find, |path| Some(path.to_owned())) else {
        let found = format!("{PROGRAM} is neither beside this program nor on PATH: no probe was tried");
        return vec![Check::missing("agent", found, "install it, or name it with --agent FILE")];
    };
    let name = agent.display().to_string();
    match ask(&agent) {
        Ok(answer) => {
            let mut checks = vec![Check::ok("agent", name)];
            checks.extend(answer.lines().filter_map(read));
            checks
        }
        Err(reason) => {
            let action = "install an agent of this version, or name it with --agent FILE";
            vec![Check::missing("agent", format!("{name}: {reason}; no probe was tried"), action)]
        }
    }
}

/// Beside this program, else the first on PATH.
fn find() -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join(PROGRAM));
    beside.into_iter().chain(on_path).find(|candidate| candidate.is_file())
}

fn ask(agent: &Path) -> Result<String, String> {
    let mut child = Command::new(agent)
        .arg("check-host")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let output = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        // What is cut or no text is missed below.
        let _ = output.map(|output| output.take(ANSWER_BYTES_MAX).read_to_string(&mut text));
        text
    });
    let until = Instant::now() + ANSWER_WAIT_MAX;
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if Instant::now() >= until => {
                // It may have ended in between.
                drop(child.kill());
                drop(child.wait());
                return Err(format!("no answer within {} s", ANSWER_WAIT_MAX.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let text = reader.join().unwrap_or_default();
    if status.success() && text.starts_with(PROBE) {
        Ok(text)
    } else {
        Err(format!("it does not know check-host ({status})"))
    }
}

/// One line of the answer; a newer agent may say more than this version knows.
fn read(line: &str) -> Option<Check> {
    let (word, rest) = line.split_once(' ')?;
    match word {
        "probe" => rest.parse().ok().map(probe),
        "groups" => Some(groups(rest)),
        "clock" => Some(clock(rest)),
        _ => None,
    }
}

fn probe(capability: ProbeCapability) -> Check {
    let what = format!("{PROBE}{}", capability.probe);
    match capability.state {
        ProbeState::Working => Check::ok(what, "loaded, attached and taken off again"),
        ProbeState::Disabled => Check::note(what, "turned off", ""),
        ProbeState::Failed { reason } => {
            let action =
                "give what is missing above; a probe that fails by itself is reported, and worked without";
            Check::missing(what, reason, action)
        }
    }
}

fn groups(text: &str) -> Check {
    match text.split_once(' ') {
        Some(("none", reason)) => Check::missing(
            "control groups",
            reason,
            "mount the memory controller: without it there are no containers",
        ),
        Some((version, mount)) => {
            Check::ok("control groups", format!("cgroup {version} with the memory controller, at {mount}"))
        }
        None => Check::note("control groups", format!("the agent says {text:?}"), ""),
    }
}

fn clock(text: &str) -> Check {
    let mut words = text.split(' ');
    let is_synchronized = words.next() == Some("synchronized");
    let micros = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
    let found = format!("within {} ms of true time, the kernel says", micros.div_ceil(1_000));
    if is_synchronized {
        Check::ok("clock", found)
    } else {
        let found = format!(
            "nothing disciplines it: {found}; the agent measures its offset to the aggregator, other tools' times differ"
        );
        Check::note("clock", found, "run an NTP client such as chrony or systemd-timesyncd")
    }
}

/// Whether a process's program is one of ours, by the name that the kernel keeps of it.
pub(super) fn is_tier(command: &OsStr) -> bool {
    command.to_string_lossy().starts_with("tapio-")
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// Scenario: lines as an agent prints them, one of a newer agent among them.
    /// Guarantees: each is judged; a refusal keeps its reason; what is not known is left out.
    #[test]
    fn an_answer_is_read() {
        let verdict = |line: &str| read(line).map(|check| (check.verdict, check.found));
        assert_eq!(verdict("probe exec=working").unwrap().0, Verdict::Ok);
        let refused = verdict("probe payload=failed:raw tracepoint sys_exit: EPERM").unwrap();
        assert_eq!(refused, (Verdict::Missing, "raw tracepoint sys_exit: EPERM".to_owned()));
        assert_eq!(verdict("groups v2 /sys/fs/cgroup").unwrap().0, Verdict::Ok);
        assert_eq!(verdict("groups none there is none").unwrap().0, Verdict::Missing);
        assert_eq!(
            verdict("clock synchronized 1500").unwrap(),
            (Verdict::Ok, "within 2 ms of true time, the kernel says".to_owned())
        );
        assert_eq!(verdict("clock unsynchronized 16000000").unwrap().0, Verdict::Note);
        assert_eq!(verdict("gpu none"), None);
    }
}
