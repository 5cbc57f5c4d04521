//! The threads of the tier: started by name, joined by name, their failures told to whoever waits.

use std::{collections::HashMap, thread, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::RunError;

/// The threads.
#[derive(Debug)]
pub(super) struct Threads {
    ended: HashMap<&'static str, oneshot::Receiver<Result<(), RunError>>>,
    failures: mpsc::Receiver<&'static str>,
    fail: mpsc::Sender<&'static str>,
    handles: Vec<thread::JoinHandle<()>>,
}

/// Threads that can fail before anybody looks.
const FAILURES_MAX: usize = 16;

impl Threads {
    pub(super) fn new() -> Self {
        let (fail, failures) = mpsc::channel(FAILURES_MAX);
        Self { ended: HashMap::new(), failures, fail, handles: Vec::new() }
    }

    /// Starts a thread.
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<(), RunError> + Send + 'static,
    ) -> Result<thread::Thread, RunError> {
        let (sender, receiver) = oneshot::channel();
        let fail = self.fail.clone();
        let handle = thread::Builder::new()
            .name(format!("tapio-{name}"))
            .spawn(move || {
                let failing = Failing { name, fail };
                let result = work();
                let failed = result.is_err();
                // Nobody listens any more when the tier gave up waiting.
                drop(sender.send(result));
                if !failed {
                    failing.defuse();
                }
            })
            .map_err(|source| RunError::System { doing: "start a thread", source })?;
        let thread = handle.thread().clone();
        self.ended.insert(name, receiver);
        self.handles.push(handle);
        Ok(thread)
    }

    /// Waits until a thread fails. Cancel-safe.
    pub(super) async fn failed(&mut self) -> RunError {
        match self.failures.recv().await {
            Some(name) => match self.ended.remove(name).map(|mut ended| ended.try_recv()) {
                Some(Ok(Err(error))) => error,
                _ => RunError::Panicked { name },
            },
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }

    /// Waits for a thread's end; one that takes longer is left alone, and one that was joined before is fine.
    pub(super) async fn join(&mut self, name: &'static str, time_max: Duration) -> Result<(), RunError> {
        let Some(ended) = self.ended.get_mut(name) else { return Ok(()) };
        let Ok(ended) = tokio::time::timeout(time_max, ended).await else {
            tracing::warn!(name, "a thread did not end in time");
            return Ok(());
        };
        self.ended.remove(name);
        ended.unwrap_or(Err(RunError::Panicked { name }))
    }
}

/// Says that its thread failed, also when it panicked.
struct Failing {
    name: &'static str,
    fail: mpsc::Sender<&'static str>,
}

impl Failing {
    fn defuse(mut self) {
        self.name = "";
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // A full queue holds failures enough.
            let _full = self.fail.try_send(self.name);
        }
    }
}

/// Makes a thread wait for the schema; false when stopped before.
pub(super) fn until_ready(
    mut ready: watch::Receiver<bool>,
    stop: CancellationToken,
) -> impl FnOnce() -> bool + Send + 'static {
    let runtime = tokio::runtime::Handle::current();
    move || {
        runtime.block_on(async {
            tokio::select! {
                () = stop.cancelled() => false,
                ready = ready.wait_for(|ready| *ready) => ready.is_ok(),
            }
        })
    }
}
