//! The thread that keeps one engine running.
//!
//! A thread and not a task: the kernel's death signal is tied to the thread that started the child, and a runtime's
//! threads come and go. It waits in one `poll` for the child's end, for a command, or for a pause to pass.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use tokio::sync::watch;

use super::files::Prepared;
use super::launcher::{Launched, free_addresses};
use super::{Addresses, EngineConfig, EngineError, EngineState, EngineStatus, probe};

/// How often a starting engine is asked whether it answers.
const PROBE_PAUSE: Duration = Duration::from_millis(25);
/// An engine that lived this long did not die of its start: the pause begins small again.
const GOOD_LIFE: Duration = Duration::from_secs(60);
/// How often a first start tries other ports when somebody else took the free ones in between.
const PORT_ATTEMPTS: u32 = 3;

const RUN: u8 = 0;
const STOP: u8 = 1;
const KILL: u8 = 2;

/// Tells the thread to end.
#[derive(Debug, Clone)]
pub(super) struct Control {
    shared: Arc<(AtomicU8, OwnedFd)>,
}

impl Control {
    fn new() -> Result<Self, EngineError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = rustix::event::eventfd(0, flags).map_err(|error| EngineError::Launcher {
            doing: "making its control channel",
            source: error.into(),
        })?;
        Ok(Self { shared: Arc::new((AtomicU8::new(RUN), fd)) })
    }

    pub(super) fn stop_gracefully(&self) {
        self.tell(STOP);
    }

    pub(super) fn kill(&self) {
        self.tell(KILL);
    }

    fn tell(&self, command: u8) {
        self.shared.0.fetch_max(command, Ordering::SeqCst);
        // The counter stays readable for ever after: the thread only ever ends.
        if let Err(error) = rustix::io::write(&self.shared.1, &1_u64.to_ne_bytes()) {
            tracing::debug!(%error, "the engine's supervisor could not be woken");
        }
    }

    fn command(&self) -> u8 {
        self.shared.0.load(Ordering::SeqCst)
    }
}

/// A supervisor at work.
pub(super) struct Started {
    pub(super) control: Control,
    pub(super) status: watch::Receiver<EngineStatus>,
    pub(super) thread: JoinHandle<Result<(), EngineError>>,
}

/// Starts the thread; the status turns to `Ready`, or the thread ends with the error of the first start.
pub(super) fn start(config: EngineConfig, prepared: Prepared) -> Result<Started, EngineError> {
    let control = Control::new()?;
    let addresses = free_addresses()?;
    let (sender, status) =
        watch::channel(EngineStatus { state: EngineState::Starting, addresses, restarts: 0 });
    let supervisor = Supervisor { config, prepared, addresses, control: control.clone(), status: sender };
    let thread = std::thread::Builder::new()
        .name("tapio-engine".to_owned())
        .spawn(move || supervisor.run())
        .map_err(|source| EngineError::Launcher { doing: "starting its supervisor", source })?;
    Ok(Started { control, status, thread })
}

struct Supervisor {
    config: EngineConfig,
    prepared: Prepared,
    addresses: Addresses,
    control: Control,
    status: watch::Sender<EngineStatus>,
}

enum Woken {
    Ended,
    Told,
    Passed,
}

enum Start {
    Ready(Launched),
    Told,
}

impl Supervisor {
    fn run(mut self) -> Result<(), EngineError> {
        let outcome = self.supervise();
        self.publish(EngineState::Stopped, 0);
        outcome
    }

    fn supervise(&mut self) -> Result<(), EngineError> {
        let mut running = match self.first_start()? {
            Start::Ready(running) => running,
            Start::Told => return Ok(()),
        };
        let mut pause = self.config.restart_pause;
        loop {
            let since = Instant::now();
            self.publish(EngineState::Ready { pid: running.pid() }, 0);
            if let Woken::Told = self.wait(Some(&running), None) {
                return self.end(running);
            }
            let (status, said) = running.reap(&self.prepared.log_file);
            tracing::error!(status, said, "the embedded engine died and will be started again");
            if since.elapsed() >= GOOD_LIFE {
                pause = self.config.restart_pause;
            }
            let mut reason = status;
            running = loop {
                self.publish(EngineState::Restarting { reason }, 1);
                if let Woken::Told = self.wait(None, Some(pause)) {
                    return Ok(());
                }
                pause = (pause * 2).min(self.config.restart_pause_max);
                match self.start_once() {
                    Ok(Start::Ready(running)) => break running,
                    Ok(Start::Told) => return Ok(()),
                    Err(error) => {
                        tracing::error!(%error, "the embedded engine did not come back");
                        reason = error.to_string();
                    }
                }
            };
        }
    }

    /// The first start may move to other ports; later ones may not, because clients know them.
    fn first_start(&mut self) -> Result<Start, EngineError> {
        let mut attempt = 1;
        loop {
            match self.start_once() {
                Err(EngineError::Ended { said, .. })
                    if attempt < PORT_ATTEMPTS && said.contains("Address already in use") =>
                {
                    attempt += 1;
                    self.addresses = free_addresses()?;
                    let addresses = self.addresses;
                    self.status.send_modify(|status| status.addresses = addresses);
                }
                other => return other,
            }
        }
    }

    fn start_once(&self) -> Result<Start, EngineError> {
        let mut launched = Launched::start(&self.config.library, &self.prepared, self.addresses)?;
        let begun = Instant::now();
        loop {
            match self.wait(Some(&launched), Some(PROBE_PAUSE)) {
                Woken::Told => {
                    self.end(launched)?;
                    return Ok(Start::Told);
                }
                Woken::Ended => {
                    let (status, said) = launched.reap(&self.prepared.log_file);
                    return Err(EngineError::Ended { status, said });
                }
                Woken::Passed => {}
            }
            let answered = probe::answers(self.addresses.http, &self.prepared.writer)
                .and_then(|()| probe::answers(self.addresses.http, &self.prepared.reader));
            let Err(probe) = answered else { return Ok(Start::Ready(launched)) };
            if begun.elapsed() >= self.config.ready_timeout {
                launched.kill();
                let (_status, said) = launched.reap(&self.prepared.log_file);
                return Err(EngineError::NotReady {
                    address: self.addresses.http,
                    timeout: self.config.ready_timeout,
                    probe,
                    said,
                });
            }
        }
    }

    fn end(&self, mut running: Launched) -> Result<(), EngineError> {
        running.ask_to_end();
        let deadline = Instant::now() + self.config.stop_timeout;
        let mut in_time = true;
        // Only the child's end counts here: the command that brought us here stays readable.
        while self.control.command() != KILL {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                in_time = false;
                break;
            }
            let mut fds = [PollFd::from_borrowed_fd(running.ended(), PollFlags::IN)];
            // Short naps, so that a kill that is told meanwhile is heard.
            if poll(&mut fds, Some(left.min(Duration::from_millis(100)))) > 0 {
                break;
            }
        }
        running.kill();
        let (status, _said) = running.reap(&self.prepared.log_file);
        tracing::info!(status, "the embedded engine ended");
        if in_time { Ok(()) } else { Err(EngineError::Killed { timeout: self.config.stop_timeout }) }
    }

    /// Waits for the child's end, a command, or the pause.
    fn wait(&self, running: Option<&Launched>, pause: Option<Duration>) -> Woken {
        let told = PollFd::from_borrowed_fd(self.control.shared.1.as_fd(), PollFlags::IN);
        let ready = match running {
            Some(launched) => {
                poll(&mut [told, PollFd::from_borrowed_fd(launched.ended(), PollFlags::IN)], pause)
            }
            None => poll(&mut [told], pause),
        };
        if self.control.command() != RUN {
            Woken::Told
        } else if ready > 0 {
            Woken::Ended
        } else {
            Woken::Passed
        }
    }

    fn publish(&self, state: EngineState, restarts: u64) {
        self.status.send_modify(|status| {
            status.state = state;
            status.restarts += restarts;
        });
    }
}

/// `poll`, again after a signal; how many descriptors are ready.
fn poll(fds: &mut [PollFd<'_>], pause: Option<Duration>) -> usize {
    let timeout = pause.map(|pause| Timespec {
        tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(pause.subsec_nanos()),
    });
    loop {
        match rustix::event::poll(fds, timeout.as_ref()) {
            Ok(ready) => return ready,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                // Not possible with valid descriptors; never spin on it.
                tracing::error!(%error, "waiting for the engine failed");
                std::thread::sleep(Duration::from_millis(100));
                return 0;
            }
        }
    }
}
