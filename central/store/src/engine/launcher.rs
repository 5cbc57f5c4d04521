//! One run of the launcher: its process, what it said last, and how it is ended.
//!
//! The launcher's program is part of this library and is executed from memory, so that there is no second file to
//! install, to be stale, or to lie on a file system that forbids execution.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::{Pid, PidfdFlags};

use super::files::Prepared;
use super::{Addresses, EngineError};

/// `src/bin/tapio-clickhouse-engine.rs`, compiled by `build.rs`.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tapio-clickhouse-engine"));
const NAME: &str = "tapio-clickhouse-engine";
/// How much of the engine's output is remembered for error messages.
const TAIL_BYTES_MAX: usize = 8 * 1024;

/// A launched engine. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Launched {
    child: Child,
    pidfd: OwnedFd,
    tail: Arc<Mutex<VecDeque<u8>>>,
    tail_thread: Option<JoinHandle<()>>,
}

impl Launched {
    pub(super) fn start(
        library: &Path,
        prepared: &Prepared,
        addresses: Addresses,
    ) -> Result<Self, EngineError> {
        let fault = |doing| move |source: io::Error| EngineError::Launcher { doing, source };
        let program = program().map_err(fault("putting it into memory"))?;
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command.arg0(NAME).arg("--lib").arg(library);
        command.arg("--parent").arg(std::process::id().to_string());
        if let Some((uid, gid)) = prepared.identity.change_to {
            command.arg("--uid").arg(uid.to_string()).arg("--gid").arg(gid.to_string());
        }
        command.arg("--").args(engine_arguments(prepared, addresses));
        command
            .env_clear()
            .env("TZ", "UTC")
            .env("LC_ALL", "C.UTF-8")
            .current_dir(&prepared.data_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Its own group: Ctrl-C in a terminal goes to us, and we end the engine after the last insert.
            .process_group(0);
        let mut child = command.spawn().map_err(fault("starting it"))?;

        let tail = Arc::new(Mutex::new(VecDeque::with_capacity(TAIL_BYTES_MAX)));
        let tail_thread = child.stderr.take().map(|stderr| {
            let tail = Arc::clone(&tail);
            std::thread::Builder::new()
                .name("tapio-engine-log".to_owned())
                .spawn(move || keep_tail(stderr, &tail))
        });
        let opened = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default())
            .ok_or_else(|| io::Error::other("the process has no id"))
            .and_then(|pid| Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?));
        match (opened, tail_thread.transpose()) {
            (Ok(pidfd), Ok(tail_thread)) => Ok(Self { child, pidfd, tail, tail_thread }),
            (Err(error), _) | (_, Err(error)) => {
                let ended = child.kill().and_then(|()| child.wait());
                tracing::debug!(?ended, "the engine was ended because it cannot be watched");
                Err(EngineError::Launcher { doing: "watching it", source: error })
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Becomes readable when the process ends.
    pub(super) fn ended(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Closes its input, which is how it is asked to end.
    pub(super) fn ask_to_end(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Kills it. An engine that ended already is fine.
    pub(super) fn kill(&mut self) {
        if let Err(error) = self.child.kill() {
            tracing::debug!(%error, "the engine could not be killed");
        }
    }

    /// Waits for its end, which must have come or be certain; gives its status and everything it said at last.
    pub(super) fn reap(&mut self, log_file: &Path) -> (String, String) {
        let status = match self.child.wait() {
            Ok(status) => describe(status),
            Err(error) => format!("its status is unknown: {error}"),
        };
        if let Some(thread) = self.tail_thread.take()
            && thread.join().is_err()
        {
            tracing::debug!("the reader of the engine's output ended badly");
        }
        (status, self.said(log_file))
    }

    /// The end of its output and of its log.
    pub(super) fn said(&self, log_file: &Path) -> String {
        let tail: Vec<u8> =
            self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let mut said = String::from_utf8_lossy(&tail).trim().to_owned();
        match log_tail(log_file) {
            Ok(log) if !log.is_empty() => {
                said.push_str(&format!("\n--- end of {}\n{log}", log_file.display()));
            }
            Ok(_empty) => {}
            Err(error) => said.push_str(&format!("\n--- {} cannot be read: {error}", log_file.display())),
        }
        said
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        self.kill();
        if let Err(error) = self.child.wait() {
            tracing::debug!(%error, "the engine could not be waited for");
        }
    }
}

/// The `clickhouse local` command line that is a server: it starts its listener and then reads its input to the
/// end. `file(stdin, ...)` reads descriptor 0 itself; the path `/dev/stdin` could not be opened after the change of user.
fn engine_arguments(prepared: &Prepared, addresses: Addresses) -> Vec<String> {
    let option = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");
    let mut arguments = vec![
        option("path", &prepared.data_dir.display()),
        option("config-file", &prepared.config_file.display()),
        option("listen_host", &addresses.http.ip()),
        option("http_port", &addresses.http.port()),
        // The level is taken from here only; in the configuration file it is ignored.
        "--log-level".to_owned(),
        "warning".to_owned(),
    ];
    for query in ["SYSTEM START LISTEN HTTP", "SELECT count() FROM file(stdin, LineAsString) FORMAT Null"] {
        arguments.extend(["-q".to_owned(), query.to_owned()]);
    }
    arguments
}

fn program() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(NAME, flags)?;
    let mut file = File::from(fd);
    file.write_all(PROGRAM)?;
    let fd = OwnedFd::from(file);
    rustix::fs::fcntl_add_seals(
        &fd,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(fd)
}

fn keep_tail(mut stderr: ChildStderr, tail: &Mutex<VecDeque<u8>>) {
    let mut chunk = [0_u8; 4096];
    loop {
        let read = match stderr.read(&mut chunk) {
            Ok(0) => return,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_broken) => return,
        };
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(chunk.get(..read).unwrap_or_default());
        let surplus = tail.len().saturating_sub(TAIL_BYTES_MAX);
        tail.drain(..surplus);
    }
}

fn log_tail(path: &Path) -> io::Result<String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES_MAX as u64)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

fn describe(status: ExitStatus) -> String {
    // "exit status: 1" or "signal: 9 (SIGKILL)".
    status.to_string()
}

/// A loopback address that was free a moment ago.
pub(super) fn free_addresses() -> Result<Addresses, EngineError> {
    let http = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|source| EngineError::Launcher { doing: "finding a free port on loopback", source })?;
    Ok(Addresses { http })
}
