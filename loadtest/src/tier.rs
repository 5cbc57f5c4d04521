//! One tier of the system as a supervised child of the demo: a program with its configuration file and its log.
//!
//! Owns the process from start to end, also on failure and panic: SIGTERM to its own process id, then SIGKILL. Knows
//! nothing of what the program does. Called by [`crate::demo`].

use std::ffi::OsString;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::run_record::RunRecord;

/// How long a tier may take to drain and end.
pub const STOP_WAIT_MAX: Duration = Duration::from_secs(15);
/// How much of a log an error shows.
const LOG_LINES_SHOWN: usize = 40;

/// A running tier. Dropping it ends the process.
#[derive(Debug)]
pub struct Tier {
    name: String,
    child: Child,
    log: PathBuf,
    stopped: bool,
}

impl Tier {
    /// Starts `program --config config`, its output in `<folder>/<name>.log`, in a process group of its own, so that a
    /// Ctrl-C at the terminal reaches only the demo, which stops the tiers in order.
    ///
    /// # Errors
    /// The program is not there or cannot be started.
    pub fn start(
        name: &str,
        program: &Path,
        config: &Path,
        folder: &Path,
        record: &RunRecord,
    ) -> anyhow::Result<Self> {
        Self::start_within(name, program, config, &[], folder, record)
    }

    /// As [`Tier::start`], through a command that becomes the program whose name and arguments are put behind it.
    ///
    /// # Errors
    /// The program is not there or cannot be started.
    pub fn start_within(
        name: &str,
        program: &Path,
        config: &Path,
        through: &[OsString],
        folder: &Path,
        record: &RunRecord,
    ) -> anyhow::Result<Self> {
        if !program.is_file() {
            bail!(
                "{} is not there: build it with `cargo build --release`, or run scripts/demo",
                program.display()
            );
        }
        let log = folder.join(format!("{name}.log"));
        // Behind what an earlier process of the tier has logged, if there was one.
        let output = File::options().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("cannot create {}", log.display()))?;
        let errors = output.try_clone().context("cannot share the log file")?;
        // The kernel ends the tier with the demo, also where the demo is killed and can end nothing.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .args(through)
            .arg(program)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let tier = Self { name: name.to_owned(), child, log, stopped: false };
        record.note_process(tier.pid())?;
        Ok(tier)
    }

    /// Name of the tier.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Fails, with the end of its log, where the tier has ended by itself.
    ///
    /// # Errors
    /// The tier is not running.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))? {
            None => Ok(()),
            Some(exit) => {
                bail!("{} ended by itself ({exit}); the end of its log:\n{}", self.name, self.log_end())
            }
        }
    }

    /// Waits until `ready` says so, while the tier runs.
    ///
    /// # Errors
    /// The tier ended, or was not ready in time; both with the end of its log.
    pub fn wait_until(&mut self, wait_max: Duration, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
        let end = Instant::now() + wait_max;
        while !ready() {
            self.check()?;
            if Instant::now() >= end {
                bail!(
                    "{} was not ready within {wait_max:?}; the end of its log:\n{}",
                    self.name,
                    self.log_end()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let skipped = lines.len().saturating_sub(LOG_LINES_SHOWN);
        lines.into_iter().skip(skipped).collect::<Vec<_>>().join("\n")
    }

    /// Ends the tier.
    ///
    /// # Errors
    /// The kernel refuses, or the tier did not end in order: by itself before, with a fault, or only by SIGKILL. With
    /// the end of its log.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let exit = self.end()?;
        if !exit.success() {
            bail!("{} did not end in order ({exit}); the end of its log:\n{}", self.name, self.log_end());
        }
        Ok(())
    }

    /// Kills the tier with SIGKILL, as the kernel would, and waits until it is gone.
    ///
    /// # Errors
    /// It had ended by itself before, or the kernel refuses.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.check()?;
        self.stopped = true;
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<ExitStatus> {
        self.stopped = true;
        let exit = || format!("cannot wait for {}", self.name);
        if let Some(status) = self.child.try_wait().with_context(exit)? {
            return Ok(status);
        }
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id is positive")?;
        // The child is not waited for yet, so that its id cannot belong to another process.
        kill_process(pid, Signal::TERM).with_context(|| format!("cannot stop {}", self.name))?;
        let end = Instant::now() + STOP_WAIT_MAX;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().with_context(exit)? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait().with_context(exit)
    }
}

impl Drop for Tier {
    fn drop(&mut self) {
        if !self.stopped {
            // The run record still names the process, for the next run's sweep.
            drop(self.end());
        }
    }
}

/// Ports below this are for what is installed on the machine.
const PORT_LEAST: u16 = 15_000;
/// How many numbers are tried for each port that is wanted.
const TRIES: usize = 1_000;

/// Free loopback ports, all different: each is held until all are found. They are outside the range from which the
/// kernel takes ports for outgoing connections, which would else take some before their owners listen.
///
/// # Errors
/// There are none.
pub fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let most = ephemeral_least().context("which ports the kernel gives away by itself is not known")?;
    // Where the kernel gives all away there is nothing better than what it gives.
    let range = u64::from(most.saturating_sub(PORT_LEAST));
    let random = RandomState::new();
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for number in 0..TRIES * count {
        if ports.len() == count {
            return Ok(ports);
        }
        let drawn = random.hash_one(number).checked_rem(range).map(u16::try_from).transpose()?;
        let wanted = drawn.map_or(0, |drawn| PORT_LEAST + drawn);
        let Ok(tcp) = TcpListener::bind(("127.0.0.1", wanted)) else { continue };
        let port = tcp.local_addr().context("a listener has an address")?.port();
        // The same number is wanted free for UDP as well, because QUIC may take it.
        if let Ok(udp) = UdpSocket::bind(("127.0.0.1", port)) {
            ports.push(port);
            held.push((tcp, udp));
        }
    }
    bail!(
        "{count} free ports on loopback are wanted, from {PORT_LEAST} to {most}, and {} were found",
        ports.len()
    )
}

/// The least port that the kernel takes for a socket that names none.
fn ephemeral_least() -> anyhow::Result<u16> {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let least = text.split_whitespace().next().with_context(|| format!("{path} is empty"))?;
    least.parse().with_context(|| format!("{path} begins with {least:?}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::{Tier, free_ports};
    use crate::run_record::{ProcessKey, RunRecord};

    fn start(script: &str) -> (tempfile::TempDir, Tier) {
        let folder = tempfile::tempdir().unwrap();
        let program: PathBuf = folder.path().join("program");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let record = RunRecord::create(&folder.path().join("state")).unwrap();
        let tier =
            Tier::start("tier", &program, &folder.path().join("c.toml"), folder.path(), &record).unwrap();
        (folder, tier)
    }

    /// Scenario: a tier that runs is stopped, another is dropped.
    /// Guarantees: SIGTERM is enough, nothing is left in either case, and an end out of order is told.
    #[test]
    fn a_tier_is_ended() {
        let (_folder, mut tier) = start("trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done");
        let log = tier.log().to_owned();
        tier.wait_until(Duration::from_secs(20), || std::fs::read(&log).is_ok_and(|text| !text.is_empty()))
            .unwrap();
        tier.stop().unwrap();
        let (_folder, tier) = start("exec sleep 60");
        let error = tier.stop().unwrap_err().to_string();
        assert!(error.contains("signal: 15"), "{error}");
        let (_folder, tier) = start("exec sleep 60");
        let pid = tier.pid();
        drop(tier);
        assert_eq!(ProcessKey::of(pid), None);
    }

    /// Scenario: a tier prints what is wrong and ends.
    /// Guarantees: the error shows how it ended and what it printed last.
    #[test]
    fn an_early_end_shows_the_log() {
        let (_folder, mut tier) = start("echo no such certificate; exit 2");
        let error = tier.wait_until(Duration::from_secs(20), || false).unwrap_err().to_string();
        assert!(error.contains("no such certificate") && error.contains("exit status: 2"), "{error}");
    }

    /// Scenario: many ports at once.
    /// Guarantees: they are all different, and none is one that the kernel gives away by itself.
    #[test]
    fn ports_are_different() {
        let ports = free_ports(20).unwrap();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 20);
        let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert!(ports.iter().all(|port| *port < own), "{ports:?} {own}");
    }
}
