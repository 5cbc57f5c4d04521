//! Ctrl-C, SIGTERM and a closed terminal, as something that a waiting program can ask for.
//!
//! Owns the signal handlers of the demo. Ends nothing by itself: the demo stops what it started, in order. Called by
//! the demo's `main`.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// Whether the program was asked to stop; clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl Interrupt {
    /// Listens for the signals from now on.
    ///
    /// # Errors
    /// A handler cannot be installed.
    pub fn install() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("no runtime for signals")?;
        let interrupt = Self::default();
        let told = interrupt.clone();
        let mut signals = {
            let _inside = runtime.enter();
            let listen = |kind| signal(kind).context("cannot listen for signals");
            (
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
            )
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                loop {
                    // Each branch only waits for a signal: dropping the others loses nothing.
                    tokio::select! {
                        _ = signals.0.recv() => {}
                        _ = signals.1.recv() => {}
                        _ = signals.2.recv() => {}
                    }
                    told.raise();
                }
            });
        })?;
        Ok(interrupt)
    }

    /// Asks the program to stop.
    pub fn raise(&self) {
        *self.shared.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.1.notify_all();
    }

    /// Whether the program was asked to stop.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits, and ends the wait early when the program is asked to stop. True where it was.
    #[must_use]
    pub fn wait(&self, wait_max: Duration) -> bool {
        let end = Instant::now() + wait_max;
        let mut raised = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !*raised {
            let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return false;
            };
            raised = self.shared.1.wait_timeout(raised, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Interrupt;

    /// Scenario: one wait that nobody interrupts, one that is interrupted.
    /// Guarantees: the answer says which it was, and an interrupt ends the wait early.
    #[test]
    fn an_interrupt_ends_a_wait() {
        let interrupt = Interrupt::default();
        assert!(!interrupt.wait(Duration::from_millis(5)));
        let other = interrupt.clone();
        let start = Instant::now();
        let waiter = std::thread::spawn(move || other.wait(Duration::from_secs(60)));
        interrupt.raise();
        assert!(waiter.join().unwrap() && start.elapsed() < Duration::from_secs(30));
    }
}
