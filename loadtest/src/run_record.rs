//! What a run leaves while it runs, written down before it is left: processes, cgroups, its folder.
//!
//! Owns one file per run under the state root, and the sweep that cleans up after runs that were killed. Ends only
//! processes that the record names and that still are the recorded ones (process id and start time). Called by the
//! demo at its start and end, and by tests.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::cgroup::remove_container;

/// How long a sweep waits for one process to be gone.
const KILL_WAIT_MAX: Duration = Duration::from_secs(3);

/// A process that cannot be mistaken for another: ids are reused, ids with their start time are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Process id.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`, clock ticks since boot.
    pub start_ticks: u64,
}

impl ProcessKey {
    /// The key of a running process; `None` where there is none, or only a zombie.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name may hold spaces and parentheses; the fields after the last one are plain.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        let start_ticks = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, start_ticks })
    }

    fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    fn kill(self) -> bool {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return false };
        if !self.is_alive() {
            return false;
        }
        // A process that ended in between is what is wanted.
        let _ = kill_process(pid, Signal::KILL);
        let end = Instant::now() + KILL_WAIT_MAX;
        while self.is_alive() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Trace {
    Owner(ProcessKey),
    Process(ProcessKey),
    Cgroup(PathBuf),
    Folder(PathBuf),
}

/// The record of a run in progress.
#[derive(Debug)]
pub struct RunRecord {
    path: PathBuf,
    file: Mutex<File>,
}

impl RunRecord {
    /// Where runs are when nobody says otherwise. Not under root's home: nobody else may pass through that one, and
    /// the store would have to keep root's rights to reach its files.
    #[must_use]
    pub fn default_root() -> PathBuf {
        PathBuf::from("/var/lib/tapio")
    }

    /// Begins the record of the calling process.
    ///
    /// # Errors
    /// The state root cannot be written.
    pub fn create(root: &Path) -> anyhow::Result<Self> {
        let folder = root.join("runs");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let owner = ProcessKey::of(std::process::id()).context("cannot read /proc of the own process")?;
        for number in 0..1000 {
            let path = folder.join(format!("{}-{}-{number}.jsonl", owner.pid, owner.start_ticks));
            match OpenOptions::new().create_new(true).append(true).open(&path) {
                Ok(file) => {
                    let record = Self { path, file: Mutex::new(file) };
                    record.note(&Trace::Owner(owner))?;
                    return Ok(record);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("cannot create {}", path.display())),
            }
        }
        anyhow::bail!("{} holds 1000 records of this process", folder.display())
    }

    /// Notes a process that was just started.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn note_process(&self, pid: u32) -> anyhow::Result<()> {
        ProcessKey::of(pid).map_or(Ok(()), |key| self.note(&Trace::Process(key)))
    }

    /// Notes a container's cgroup that is about to be created.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn note_cgroup(&self, path: &Path) -> anyhow::Result<()> {
        self.note(&Trace::Cgroup(path.to_owned()))
    }

    /// Notes a folder below the state root that is about to be created and goes with the run.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn note_folder(&self, path: &Path) -> anyhow::Result<()> {
        self.note(&Trace::Folder(path.to_owned()))
    }

    /// Ends the record, unless a process or a cgroup of it is still there: it then stays for the next run's [`sweep`],
    /// and what is left is returned in words. Folders are the caller's to keep or to remove.
    ///
    /// # Errors
    /// The file cannot be read or removed.
    pub fn close(self) -> anyhow::Result<Vec<String>> {
        let text =
            fs::read_to_string(&self.path).with_context(|| format!("cannot read {}", self.path.display()))?;
        let left: Vec<String> = traces(&text)
            .filter_map(|trace| match trace {
                Trace::Process(key) if key.is_alive() => Some(format!("process {}", key.pid)),
                Trace::Cgroup(path) if path.exists() => Some(format!("cgroup {}", path.display())),
                Trace::Owner(_) | Trace::Process(_) | Trace::Cgroup(_) | Trace::Folder(_) => None,
            })
            .collect();
        if left.is_empty() {
            fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))?;
            remove_empty_parents(&self.path);
        }
        Ok(left)
    }

    fn note(&self, trace: &Trace) -> anyhow::Result<()> {
        let mut line = serde_json::to_string(trace)?;
        line.push('\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The traces of a record's text; a half line of a killed writer is none.
fn traces(text: &str) -> impl Iterator<Item = Trace> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok())
}

/// `runs/` and the state root go when the last run is over; other runs keep them.
fn remove_empty_parents(record: &Path) {
    for parent in record.ancestors().skip(1).take(2) {
        if fs::remove_dir(parent).is_err() {
            return;
        }
    }
}

/// What a sweep did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Swept {
    /// Runs that had been killed.
    pub runs: usize,
    /// Processes that had to be ended.
    pub processes: usize,
    /// What could not be cleaned up, in words.
    pub faults: Vec<String>,
}

/// Cleans up after every recorded run whose owner is gone.
///
/// # Errors
/// The records cannot be listed.
pub fn sweep(root: &Path) -> anyhow::Result<Swept> {
    let mut swept = Swept::default();
    let entries = match fs::read_dir(root.join("runs")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(swept),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}/runs", root.display())),
    };
    for entry in entries {
        let path = entry?.path();
        // Another run may just have closed its record.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let traces: Vec<Trace> = traces(&text).collect();
        // A record without an owner is one that is being created.
        let Some(Trace::Owner(owner)) = traces.first() else { continue };
        if !owner.is_alive() {
            sweep_run(root, &traces, &mut swept);
            swept.runs += 1;
            drop(fs::remove_file(&path));
            remove_empty_parents(&path);
        }
    }
    Ok(swept)
}

fn sweep_run(root: &Path, traces: &[Trace], swept: &mut Swept) {
    for trace in traces {
        if let Trace::Process(key) = trace {
            swept.processes += usize::from(key.kill());
        }
    }
    for trace in traces {
        let result = match trace {
            Trace::Cgroup(path) => remove_container(path),
            Trace::Folder(path) if path.starts_with(root) && path != root => {
                // The folder's lock is beside it, held by nobody any more.
                drop(fs::remove_file(path.with_extension("lock")));
                match fs::remove_dir_all(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(error).with_context(|| format!("cannot remove {}", path.display()))
                    }
                    _ => Ok(()),
                }
            }
            Trace::Owner(_) | Trace::Process(_) | Trace::Folder(_) => Ok(()),
        };
        if let Err(error) = result {
            swept.faults.push(format!("{error:#}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use super::{ProcessKey, RunRecord, sweep};

    /// Scenario: the record of a run whose owner is gone names a live process and a folder; one more names a process
    /// id that now belongs to somebody else.
    /// Guarantees: what the record names is cleaned up; a reused process id is left alone; the own run is left alone.
    #[test]
    fn sweeps_what_a_killed_run_left() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("tapio");
        let own = RunRecord::create(&state).unwrap();
        let mut left = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let key = ProcessKey::of(left.id()).unwrap();
        let folder = state.join("demo-1");
        fs::create_dir(&folder).unwrap();
        fs::write(state.join("demo-1.lock"), "").unwrap();
        let me = std::process::id();
        let text = format!(
            "{{\"owner\":{{\"pid\":{pid},\"start_ticks\":1}}}}\n{{\"process\":{{\"pid\":{pid},\"start_ticks\":{ticks}}}}}\n\
             {{\"process\":{{\"pid\":{me},\"start_ticks\":1}}}}\n{{\"folder\":{folder:?}}}\n{{\"folder\":{state:?}}}\n{{\"cgr",
            pid = key.pid,
            ticks = key.start_ticks,
        );
        fs::write(state.join("runs/killed.jsonl"), text).unwrap();
        let swept = sweep(&state).unwrap();
        assert_eq!((swept.runs, swept.processes, swept.faults.len()), (1, 1, 0), "{swept:?}");
        left.wait().unwrap();
        assert!(!folder.exists() && state.exists());
        assert_eq!(sweep(&state).unwrap().runs, 0);
        assert!(own.close().unwrap().is_empty());
        assert!(!state.exists());
    }

    /// Scenario: a run ends while a process that it noted still runs.
    /// Guarantees: the process is named, and the record stays for the next run's sweep.
    #[test]
    fn a_record_stays_while_something_is_left() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("tapio");
        let record = RunRecord::create(&state).unwrap();
        let mut left = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        record.note_process(left.id()).unwrap();
        let told = record.close().unwrap();
        left.kill().unwrap();
        left.wait().unwrap();
        assert_eq!(told, [format!("process {}", left.id())]);
        assert_eq!(fs::read_dir(state.join("runs")).unwrap().count(), 1);
    }
}
