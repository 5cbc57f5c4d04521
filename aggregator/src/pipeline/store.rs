//! The thread that feeds the store: carries out what [`super::writer`] wants, and waits where it has to.
//!
//! An insert that fails is tried again with the same bytes and token until it succeeds: while the store is away, data
//! waits in the spool, and the health says so. A full disk under the state directory is waited for too.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tapio_daemon::{Progress, with_causes};
use tapio_store::client::{Advice, BlockWriter, ClientError};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    history::History,
    journal::Shared,
    spooler::Command,
    writer::{Moment, Step, Writer, WriterError},
};
use crate::{
    clock,
    metrics::{StoreMetrics, Table},
    patience::Patience,
};

/// Pauses between tries of an insert.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long to wait before a full disk is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(250);

/// What the thread is made of; [`Feeder::run`] is the thread.
pub(crate) struct Feeder {
    pub(crate) writer: Writer,
    pub(crate) road: Road,
}

/// The way to the store, and whoever waits or watches.
pub(crate) struct Road {
    pub(crate) shared: Arc<Shared>,
    pub(crate) spooler: mpsc::Sender<Command>,
    pub(crate) blocks: BlockWriter,
    pub(crate) history: History,
    pub(crate) runtime: Handle,
    pub(crate) metrics: StoreMetrics,
    pub(crate) progress: Progress,
    /// Cancelled when no more frames come: what waits is still stored.
    pub(crate) drain: CancellationToken,
    /// Cancelled when the time to drain is over: what waits stays in the spool.
    pub(crate) stop: CancellationToken,
    /// Stored frames leave the spool earlier when it uses more than this.
    pub(crate) replay_bytes_max: u64,
}

/// How an insert ended.
enum Inserting {
    Done,
    /// The time is over.
    Stopped,
    /// Another process of this aggregator has taken over.
    Superseded,
}

impl Feeder {
    /// Works until stopped, or until everything is stored and no more comes.
    ///
    /// # Errors
    /// When the disk under the state directory fails.
    pub(crate) fn run(mut self) -> Result<(), WriterError> {
        let Self { writer, road } = &mut self;
        let mut is_disk_full = false;
        while !road.stop.is_cancelled() {
            let stored_until = writer.stored_until();
            let step = match writer.step(road.moment()) {
                Err(WriterError::State(error)) if error.is_disk_full() => {
                    let text = with_causes(&error);
                    if !std::mem::replace(&mut is_disk_full, true) {
                        tracing::error!(error = text, "the disk of the state directory is full, data waits");
                    }
                    road.progress.fault(format!("{text}: free some space there, data waits in the spool"));
                    road.pause(FULL_PAUSE);
                    continue;
                }
                step => step?,
            };
            if std::mem::take(&mut is_disk_full) {
                tracing::info!("the disk of the state directory has room again");
                road.progress.clear();
            }
            match step {
                Step::Wait(wait) => {
                    if road.note_waiting(stored_until) == 0 {
                        road.progress.idle();
                    }
                    if !road.trim(writer) {
                        thread::park_timeout(wait);
                    }
                }
                Step::Fence => {
                    let Some(_done) = road.ask("to close earlier sessions", History::fence) else { break };
                    writer.fenced();
                }
                Step::AskFragments => {
                    let asked = road.ask("what it has of unfinished frames", History::fragments);
                    let Some(fragments) = asked else { break };
                    writer.gathered(fragments);
                }
                Step::Reconcile(fragments) => {
                    let asked =
                        road.ask("to make roll-ups true", async |history| history.reconcile(fragments).await);
                    let Some(()) = asked else { break };
                    writer.reconciled();
                }
                Step::AskLastFrames => {
                    let Some(frames) = road.ask("which frames it has", History::last_frames) else { break };
                    writer.learned(frames, clock::now());
                }
                Step::AskFramesOfCut(from) => {
                    let asked = road.ask("which frames of a block it has", async |history| {
                        history.frames_of_cut(from).await
                    });
                    let Some(frames) = asked else { break };
                    writer.checked(&frames)?;
                }
                Step::Insert { table, block, token } => {
                    road.progress.busy();
                    let started = Instant::now();
                    let inserting = || road.blocks.insert(table, block, &token);
                    match road.insert(table, stored_until, inserting) {
                        Inserting::Done => {}
                        Inserting::Stopped => break,
                        Inserting::Superseded => return Err(WriterError::Superseded),
                    }
                    road.metrics.rows.get_or_create(&Table { table }).inc_by(block.rows() as u64);
                    road.metrics.insert_seconds.observe(started.elapsed().as_secs_f64());
                    writer.inserted();
                }
                Step::Stored => {
                    road.note_waiting(stored_until);
                    road.progress.clear();
                    road.trim(writer);
                    road.progress.tick();
                }
                Step::Drained => break,
            }
        }
        self.road.progress.finish();
        Ok(())
    }
}

impl Road {
    fn moment(&self) -> Moment {
        Moment {
            now: Instant::now(),
            unix: clock::now(),
            synced: self.shared.synced(),
            is_draining: self.drain.is_cancelled(),
        }
    }

    /// Lets the spool go of what it need not keep; false where there is nothing.
    fn trim(&self, writer: &mut Writer) -> bool {
        let is_full = self.shared.used_bytes() > self.replay_bytes_max || self.shared.is_disk_full();
        let Some(until) = writer.take_trim(Instant::now(), is_full) else { return false };
        self.shared.trim(until);
        // If its queue is full it is busy, and looks by itself when it is out of room.
        drop(self.spooler.try_send(Command::Trim));
        true
    }

    /// Inserts until it is in.
    fn insert<F, T>(&self, table: &str, stored_until: u64, inserting: impl Fn() -> F) -> Inserting
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut pause = RETRY_PAUSE_MIN;
        while !self.stop.is_cancelled() {
            // Not cancel-safe, and need not be: whether the insert happened does not matter, as the same one follows
            // after the next start.
            match self.patience().answer(&format!("an insert into {table}"), inserting()) {
                None => break,
                Some(Ok(_inserted)) => return Inserting::Done,
                Some(Err(error)) if error.is_session_closed() => {
                    match self.ask("to open the session again", History::reopen) {
                        None => break,
                        Some(true) => {}
                        Some(false) => return Inserting::Superseded,
                    }
                }
                Some(Err(error)) => self.retry(table, stored_until, &error, &mut pause),
            }
        }
        Inserting::Stopped
    }

    /// Says what is wrong and waits; the same block comes again.
    fn retry(&self, table: &str, stored_until: u64, error: &ClientError, pause: &mut Duration) {
        self.metrics.retries.inc();
        let waiting = self.note_waiting(stored_until);
        let advice = error.advice();
        self.progress
            .fault(format!("{table} cannot be stored, {waiting} records wait in the spool: {error}"));
        if *pause >= RETRY_PAUSE_MAX || advice == Advice::Stop {
            tracing::error!(table, %error, waiting, "the store refuses, data waits in the spool");
        } else {
            tracing::warn!(table, %error, "an insert failed and is tried again");
        }
        if advice != Advice::Retry {
            *pause = RETRY_PAUSE_MAX;
        }
        self.pause(*pause);
        *pause = (*pause * 2).min(RETRY_PAUSE_MAX);
    }

    /// Asks the store until it answers; `None` when stopped before. A store that refuses is asked again too: without the
    /// answer nothing may be stored.
    fn ask<T>(&self, what: &str, question: impl AsyncFn(&History) -> Result<T, ClientError>) -> Option<T> {
        let mut pause = RETRY_PAUSE_MIN;
        while !self.stop.is_cancelled() {
            // A question that is dropped is asked again.
            match self.patience().answer(what, question(&self.history)) {
                None => break,
                Some(Ok(answer)) => {
                    self.progress.clear();
                    return Some(answer);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, what, "the store does not answer, and is asked again");
                    self.progress.fault(format!(
                        "the store does not answer {what}, and nothing is stored before: {error}"
                    ));
                    self.pause(pause);
                    pause = (pause * 2).min(RETRY_PAUSE_MAX);
                }
            }
        }
        None
    }

    /// How many records are on the disk and not stored.
    fn note_waiting(&self, stored_until: u64) -> u64 {
        let waiting = self.shared.synced().saturating_sub(stored_until);
        self.metrics.waiting_records.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        waiting
    }

    fn pause(&self, pause: Duration) {
        let stopped = async { drop(tokio::time::timeout(pause, self.stop.cancelled()).await) };
        self.runtime.block_on(stopped);
        // Trying is progress; that nothing comes of it is what the fault says.
        self.progress.tick();
    }

    const fn patience(&self) -> Patience<'_> {
        Patience { runtime: &self.runtime, progress: &self.progress, stop: &self.stop }
    }
}
