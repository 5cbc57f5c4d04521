//! What the writing threads do while what they need is away: the store does not answer, or the disk of the state
//! directory is full. They wait, say so in health, and give up nothing.
//!
//! Called by the feeder and by the outbox of findings.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use tapio_daemon::{Progress, with_causes};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::state::StateError;

/// An answer that takes longer than this is told of in health.
const SLOW_MIN: Duration = Duration::from_secs(5);
/// How long to wait before a full disk is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(250);

/// Who waits, and until when.
pub(crate) struct Patience<'a> {
    pub(crate) runtime: &'a Handle,
    pub(crate) progress: &'a Progress,
    /// Cancelled when there is no more time to wait.
    pub(crate) stop: &'a CancellationToken,
}

impl Patience<'_> {
    /// Waits for an answer of the store; `None` when stopped before. Who is stopped must be able to ask again: whether
    /// what was asked for happened is not known then.
    pub(crate) fn answer<T>(&self, what: &str, asking: impl Future<Output = T>) -> Option<T> {
        let began = Instant::now();
        self.runtime.block_on(async {
            let mut asking = pin!(asking);
            loop {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return None,
                    answer = &mut asking => return Some(answer),
                    () = tokio::time::sleep(SLOW_MIN) => self.progress.fault(format!(
                        "ClickHouse has not answered {what} for {} s: data waits in the spool; see what ClickHouse is \
                         doing, and how busy its disk is",
                        began.elapsed().as_secs()
                    )),
                }
            }
        })
    }

    /// Writes a small durable file, again and again while its disk is full; false when stopped before.
    ///
    /// # Errors
    /// When something else than room is missing.
    pub(crate) fn write(&self, write: impl Fn() -> Result<(), StateError>) -> Result<bool, StateError> {
        let mut is_full = false;
        loop {
            match write() {
                Ok(()) => {
                    if is_full {
                        tracing::info!("the disk of the state directory has room again");
                        self.progress.clear();
                    }
                    return Ok(true);
                }
                Err(error) if error.is_disk_full() => {
                    let text = with_causes(&error);
                    if !std::mem::replace(&mut is_full, true) {
                        tracing::error!(error = text, "the disk of the state directory is full, data waits");
                    }
                    self.progress.fault(format!("{text}: free some space there, data waits in the spool"));
                    let stopped =
                        async { tokio::time::timeout(FULL_PAUSE, self.stop.cancelled()).await.is_ok() };
                    if self.runtime.block_on(stopped) {
                        return Ok(false);
                    }
                    self.progress.tick();
                }
                Err(error) => return Err(error),
            }
        }
    }
}
