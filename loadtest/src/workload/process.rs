//! One process of the workload, in the cgroup of its own pod; one that is no service may be in none.
//!
//! Owns the child, its standard streams and its cgroup; ends it by closing its standard input, then by SIGKILL to its
//! own process id. Called by [`super::Workload`].

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::cgroup::{ContainerCgroup, Hierarchy, remove_container};
use crate::drive::Notice;
use crate::scenario::{ForeignPlan, Pod};
use crate::workload::Surroundings;

/// How long a process may take to end by itself.
const STOP_WAIT_MAX: Duration = Duration::from_secs(5);
/// Notices that are kept of one process; the programs say at most three.
const NOTICES_MAX: usize = 16;

type Notices = Arc<(Mutex<Vec<Notice>>, Condvar)>;

/// A running process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    notices: Notices,
    output_ended: Receiver<()>,
    /// Removed after the child has ended: fields drop in order, and [`Drop`] ends the child first.
    cgroup: Option<ContainerCgroup>,
    /// The cgroup that was removed when the process ended; its pod's may still be there.
    retired: Option<PathBuf>,
    log: PathBuf,
}

impl Process {
    /// Creates the pod's cgroup and starts the program inside it, in a process group of its own, so that a Ctrl-C at
    /// the terminal reaches only the program that will stop it in order. `restart` counts the containers before it in
    /// the same pod; each has logs of its own.
    pub(super) fn start(
        hierarchy: &Hierarchy,
        pod: &Pod,
        restart: u32,
        arguments: &[String],
        surroundings: Surroundings<'_>,
    ) -> anyhow::Result<Self> {
        let files = if restart == 0 { pod.service.clone() } else { format!("{}.{restart}", pod.service) };
        let log = surroundings.folder.join(format!("{files}.truth.jsonl"));
        let mut arguments = arguments.to_vec();
        arguments.extend(["--log".to_owned(), log.to_string_lossy().into_owned()]);
        let cgroup = Some(cgroup_of(hierarchy, pod, surroundings)?);
        Self::spawn(&pod.service, &files, surroundings.program, &arguments, cgroup, surroundings)
    }

    /// Starts the program under a command name of its own, inside the pod's cgroup or outside of all containers.
    pub(super) fn start_foreign(
        hierarchy: &Hierarchy,
        foreign: &ForeignPlan,
        arguments: &[String],
        surroundings: Surroundings<'_>,
    ) -> anyhow::Result<Self> {
        // The kernel names a process by the last part of the path that it was started by.
        let folder = surroundings.folder.join("foreign");
        let program = folder.join(&foreign.command);
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::os::unix::fs::symlink(std::path::absolute(surroundings.program)?, &program))
            .with_context(|| format!("cannot create {}", program.display()))?;
        let cgroup = match &foreign.pod {
            Some(pod) => Some(cgroup_of(hierarchy, pod, surroundings)?),
            None => None,
        };
        let files = format!("foreign/{}", foreign.command);
        Self::spawn(&foreign.command, &files, &program, arguments, cgroup, surroundings)
    }

    /// Runs a probe of the container that this process is the first of, as a kubelet does, and waits for its end: it reads
    /// a file, or fails.
    pub(super) fn probe(&self, file: &Path, surroundings: Surroundings<'_>) -> anyhow::Result<()> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        let mut probe = Command::new(surroundings.program)
            .arg("enter")
            .arg("--procs")
            .arg(cgroup.procs_file())
            .arg("--")
            .arg(surroundings.program)
            .arg("check")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start a probe of {}", self.name))?;
        surroundings.record.note_process(probe.id())?;
        let end = Instant::now() + STOP_WAIT_MAX;
        while probe.try_wait()?.is_none() {
            if Instant::now() > end {
                probe.kill()?;
                probe.wait()?;
                anyhow::bail!("a probe of {} did not end", self.name);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// `files` is what the names of its own files begin with.
    fn spawn(
        name: &str,
        files: &str,
        program: &Path,
        arguments: &[String],
        cgroup: Option<ContainerCgroup>,
        surroundings: Surroundings<'_>,
    ) -> anyhow::Result<Self> {
        let log = surroundings.folder.join(format!("{files}.truth.jsonl"));
        let errors_path = surroundings.folder.join(format!("{files}.stderr"));
        let errors =
            File::create(&errors_path).with_context(|| format!("cannot create {}", errors_path.display()))?;
        let mut command = Command::new(cgroup.as_ref().map_or(program, |_| surroundings.program));
        if let Some(cgroup) = &cgroup {
            command.arg("enter").arg("--procs").arg(cgroup.procs_file()).arg("--").arg(program);
        }
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", surroundings.program.display()))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let notices = Notices::default();
        let (ended, output_ended) = sync_channel(1);
        let shared = Arc::clone(&notices);
        let process =
            Self { name: name.to_owned(), child, input, notices, output_ended, cgroup, retired: None, log };
        surroundings.record.note_process(process.child.id())?;
        let output = output.context("the child has no standard output")?;
        std::thread::Builder::new().name("notices".to_owned()).spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(notice) = serde_json::from_str(&line) else { continue };
                let mut list = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                if list.len() < NOTICES_MAX {
                    list.push(notice);
                }
                shared.1.notify_all();
            }
            // Nobody waits any more where the receiver is gone.
            let _ = ended.send(());
        })?;
        Ok(process)
    }

    /// Name of the service.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id; `enter` keeps it over its exec.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The truth log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The cgroup; gone once the process was ended.
    #[must_use]
    pub const fn cgroup(&self) -> Option<&ContainerCgroup> {
        self.cgroup.as_ref()
    }

    /// How the process ended, if it has.
    ///
    /// # Errors
    /// The kernel refuses to say.
    pub fn exit(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Waits for a notice that `choose` takes.
    pub(super) fn wait_for<T>(&self, wait_max: Duration, choose: impl Fn(&Notice) -> Option<T>) -> Option<T> {
        let end = Instant::now() + wait_max;
        let mut list = self.notices.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(chosen) = list.iter().find_map(&choose) {
                return Some(chosen);
            }
            let left = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            list = self.notices.1.wait_timeout(list, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the process and removes its container's cgroup, but not its pod's; returns how it ended.
    pub(super) fn retire(&mut self) -> anyhow::Result<ExitStatus> {
        let exit = self.end()?;
        if let Some(cgroup) = self.cgroup.take() {
            self.retired = Some(cgroup.path().to_owned());
            cgroup.remove_from_pod()?;
        }
        Ok(exit)
    }

    /// Ends the process, removes its cgroup, and returns how it ended and what it said.
    pub(super) fn stop(mut self) -> anyhow::Result<(ExitStatus, Vec<Notice>)> {
        let exit = self.end()?;
        // The pipe's reader sees the end of the stream when the process is gone; what it said last is then complete.
        let _ = self.output_ended.recv_timeout(STOP_WAIT_MAX);
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.remove()?;
        }
        if let Some(path) = self.retired.take() {
            remove_container(&path)?;
        }
        let notices = self.notices.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((exit, notices))
    }

    fn end(&mut self) -> anyhow::Result<ExitStatus> {
        drop(self.input.take());
        let end = Instant::now() + STOP_WAIT_MAX;
        while Instant::now() < end {
            if let Some(exit) = self.exit()? {
                return Ok(exit);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.kill().with_context(|| format!("cannot end {}", self.name))?;
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))
    }
}

/// Makes the cgroup of a pod's container, noted before it is there.
fn cgroup_of(
    hierarchy: &Hierarchy,
    pod: &Pod,
    surroundings: Surroundings<'_>,
) -> anyhow::Result<ContainerCgroup> {
    let path = ContainerCgroup::path_of(hierarchy, &pod.pod_uid, &pod.container_id);
    surroundings.record.note_cgroup(&path)?;
    ContainerCgroup::create(hierarchy, &pod.pod_uid, &pod.container_id, pod.memory_limit_bytes)
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.retired.is_none() {
            // The run record still names the process and the cgroup, for the next run's sweep.
            drop(self.end());
        }
        if let Some(path) = &self.retired {
            drop(remove_container(path));
        }
    }
}
