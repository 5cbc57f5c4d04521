//! Asks the agent beside this program what it could do here: it loads and attaches every probe, and takes them off.

use std::{
    env,
    ffi::OsStr,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
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
/// What is kept of its complaints: the end, which says why it stopped.
const COMPLAINT_BYTES_MAX: usize = 2 << 10;
const COMPLAINT_LINES_MAX: usize = 3;
/// A complaint is there when its process is gone.
const COMPLAINT_WAIT_MAX: Duration = Duration::from_secs(1);

pub(super) fn checks(given: Option<&Path>) -> Vec<Check> {
    let Some(agent) = given.map_or_else(find, |path| Some(path.to_owned())) else {
        let found = format!("{PROGRAM} is neither beside this program nor on PATH: no probe was tried");
        return vec![Check::missing("agent", found, "install it, or name it with --agent FILE")];
    };
    let name = agent.display().to_string();
    match ask(&agent, ANSWER_WAIT_MAX) {
        Ok(answer) => {
            let mut checks = vec![Check::ok("agent", name)];
            checks.extend(answer.lines().filter_map(read));
            checks
        }
        Err(reason) => {
            vec![Check::missing("agent", format!("{name}: {reason}; no probe was tried"), reason.action())]
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

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("it cannot be started: {0}")]
    NotStarted(#[source] io::Error),
    /// Status 2 is what our programs end with when a word on the command line is not theirs.
    #[error("it does not know check-host{said}")]
    Unknown { said: String },
    /// By a signal, or with another status.
    #[error("it failed while it looked ({status}){said}")]
    Failed { status: ExitStatus, said: String },
    #[error("it gave no answer within {} s{said}", waited.as_secs())]
    Silent { waited: Duration, said: String },
    #[error("it answered check-host without a word of probes{said}")]
    Strange { said: String },
}

impl NoAnswer {
    const fn action(&self) -> &'static str {
        match self {
            Self::NotStarted(_) | Self::Unknown { .. } | Self::Strange { .. } => {
                "install an agent of this version, or name it with --agent FILE"
            }
            Self::Failed { .. } | Self::Silent { .. } => {
                "run it with check-host by itself and see where it ends; an agent that ends there is a fault to report"
            }
        }
    }
}

/// What `agent check-host` prints.
fn ask(agent: &Path, wait_max: Duration) -> Result<String, NoAnswer> {
    let until = Instant::now() + wait_max;
    let mut child = Command::new(agent)
        .arg("check-host")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NoAnswer::NotStarted)?;
    let answer = read_aside(child.stdout.take(), beginning);
    let complaint = read_aside(child.stderr.take(), end);
    let left = || until.saturating_duration_since(Instant::now());
    let status = loop {
        match child.try_wait().map_err(NoAnswer::NotStarted)? {
            Some(status) => break Some(status),
            None if left().is_zero() => {
                // It may have ended in between.
                drop(child.kill());
                drop(child.wait());
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    // What it started itself may keep the pipes open.
    let text = answer.recv_timeout(left()).unwrap_or_default();
    let said = said(&complaint.recv_timeout(left().max(COMPLAINT_WAIT_MAX)).unwrap_or_default());
    match status {
        Some(status) if status.success() && text.starts_with(PROBE) => Ok(text),
        Some(status) if status.success() => Err(NoAnswer::Strange { said }),
        Some(status) if status.code() == Some(2) => Err(NoAnswer::Unknown { said }),
        Some(status) => Err(NoAnswer::Failed { status, said }),
        None => Err(NoAnswer::Silent { waited: wait_max, said }),
    }
}

/// Reads on a thread of its own, so that nobody waits for a pipe that stays open.
fn read_aside<R: Read + Send + 'static>(
    pipe: Option<R>,
    read: fn(R) -> io::Result<Vec<u8>>,
) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // What is cut or no text is missed by who reads it; who waits no longer needs nothing.
        let bytes = pipe.and_then(|pipe| read(pipe).ok()).unwrap_or_default();
        drop(sender.send(String::from_utf8_lossy(&bytes).into_owned()));
    });
    receiver
}

fn beginning(pipe: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pipe.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn end(mut pipe: impl Read) -> io::Result<Vec<u8>> {
    let (mut kept, mut piece) = (Vec::new(), [0; 4 << 10]);
    loop {
        let length = pipe.read(&mut piece)?;
        if length == 0 {
            return Ok(kept);
        }
        kept.extend_from_slice(piece.get(..length).unwrap_or_default());
        kept.drain(..kept.len().saturating_sub(COMPLAINT_BYTES_MAX));
    }
}

/// The last lines of a complaint as the rest of a sentence.
fn said(complaint: &str) -> String {
    let lines: Vec<&str> = complaint.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(COMPLAINT_LINES_MAX)..).unwrap_or_default();
    if last.is_empty() { String::new() } else { format!(": {}", last.join(" | ")) }
}

/// One line of the answer; a newer agent may say more than this version knows.
fn read(line: &str) -> Option<Check> {
    let (word, rest) = line.split_once(' ')?;
    match word {
        "probe" => Some(probe(ProbeCapability::announced(rest))),
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
        let newer = verdict("probe exec=resting").unwrap();
        assert!(newer.0 == Verdict::Missing && newer.1.contains("exec=resting"), "{newer:?}");
    }

    /// Scenario: agents that do not know the word, that a signal ends, that fail, that answer something else, that hang,
    /// and that leave somebody behind who keeps their pipes; one is not there.
    /// Guarantees: each is told apart, with the end of what it complained of; nobody is waited for longer than said.
    #[test]
    fn why_there_is_no_answer_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let answer = |script: &str| {
            let program = folder.path().join("agent");
            std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            ask(&program, Duration::from_secs(1)).map_err(|error| error.to_string())
        };
        let refused = |script: &str| answer(script).unwrap_err();
        let unknown = refused("echo 'unexpected argument check-host' >&2; exit 2");
        assert_eq!(unknown, "it does not know check-host: unexpected argument check-host");
        let killed = refused("echo loading >&2; kill -SEGV $$");
        assert!(killed.contains("SIGSEGV") && killed.ends_with(": loading"), "{killed}");
        let failed = refused("seq 1000 >&2; echo 'out of memory' >&2; exit 101");
        assert!(failed.contains("101") && failed.ends_with(": 999 | 1000 | out of memory"), "{failed}");
        assert_eq!(refused("echo hello"), "it answered check-host without a word of probes");
        assert_eq!(refused("echo stuck >&2; exec sleep 20"), "it gave no answer within 1 s: stuck");
        let began = Instant::now();
        refused("sleep 20 & exit 3");
        assert!(began.elapsed() < Duration::from_secs(10), "a pipe was waited for");
        assert_eq!(
            answer("echo probe exec=working; sleep 1 >/dev/null 2>&1 &").unwrap(),
            "probe exec=working\n"
        );
        let nowhere = ask(&folder.path().join("nobody"), Duration::from_secs(1)).unwrap_err();
        assert!(nowhere.to_string().starts_with("it cannot be started: "), "{nowhere}");
    }
}
