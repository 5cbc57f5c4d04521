//! An orderly end: the first signal asks for it, tasks are drained up to a deadline, and a second
//! signal ends the process at once.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// SIGTERM and SIGINT of this process, caught from [`Signals::catch`] on.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts to catch them. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next signal's name and number. Cancel-safe.
    pub async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 15),
            _ = self.interrupt.recv() => ("SIGINT", 2),
        }
    }

    /// Cancels `token` at the first signal and returns the second, which the caller should die of.
    pub async fn until_second(&mut self, token: &CancellationToken) -> (&'static str, u8) {
        let (name, _) = self.next().await;
        tracing::info!(signal = name, "shutting down, a second signal ends at once");
        token.cancel();
        self.next().await
    }
}

/// SIGHUP of this process, caught from [`Hangups::catch`] on: somebody wants the configuration to be read again.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Starts to catch it. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn catch() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for the next one. Cancel-safe.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            // The runtime is about to end, and no signal will come any more.
            std::future::pending::<()>().await;
        }
    }
}

/// What became of the tasks that were drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drained {
    /// Ended by themselves.
    pub finished: usize,
    /// Panicked.
    pub panicked: usize,
    /// Still running at the deadline, and aborted.
    pub aborted: usize,
}

impl Drained {
    /// Whether every task ended by itself.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.panicked == 0 && self.aborted == 0
    }
}

/// Waits for all tasks, for at most `deadline`, then aborts those that are left.
pub async fn drain<T: 'static>(tasks: &mut JoinSet<T>, deadline: Duration) -> Drained {
    let mut drained = Drained::default();
    let waited = tokio::time::timeout(deadline, async {
        while let Some(joined) = tasks.join_next().await {
            drained.count(&joined.map(drop));
        }
    });
    if waited.await.is_err() {
        tasks.abort_all();
        while let Some(joined) = tasks.join_next().await {
            drained.count(&joined.map(drop));
        }
    }
    if !drained.is_clean() {
        tracing::warn!(
            finished = drained.finished,
            panicked = drained.panicked,
            aborted = drained.aborted,
            "not every task ended by itself"
        );
    }
    drained
}

impl Drained {
    fn count(&mut self, joined: &Result<(), tokio::task::JoinError>) {
        match joined {
            Ok(()) => self.finished += 1,
            Err(error) if error.is_cancelled() => self.aborted += 1,
            Err(_panicked) => self.panicked += 1,
        }
    }
}
