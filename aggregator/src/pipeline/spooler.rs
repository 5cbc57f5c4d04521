//! The thread that owns the journal: takes what waits, commits it in groups, waits where there is no room.
//!
//! It takes everything that waits, writes it with one call, syncs once, and then says "received": so a group is as
//! large as what came during the sync before, and nobody waits for more than two syncs. Called by the intake through
//! a bounded queue; when that is full, sessions wait, and agents keep what they have.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tapio_daemon::{Progress, with_causes};
use tapio_spool::SpoolError;
use tokio::sync::mpsc;

use super::journal::{Append, Journal, Shared};
use crate::metrics::SpoolMetrics;

/// Records that may wait for the disk.
pub(crate) const QUEUE_RECORDS_MAX: usize = 256;
/// Records that are written with one call.
const GROUP_RECORDS_MAX: usize = 256;
/// Bytes that are written with one call, unless one record alone is larger.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// How long to wait before a full spool or disk is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(50);

/// What the spooler is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Append a record.
    Append(Append),
    /// Look at what [`Shared::trim`] says.
    Trim,
    /// Sync and end; queued records before it are written.
    Close,
}

/// The spooler's state; [`Spooler::run`] is its thread.
#[derive(Debug)]
pub(crate) struct Spooler {
    pub(crate) journal: Journal,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) progress: Progress,
    pub(crate) metrics: SpoolMetrics,
    /// Woken when there is more to read.
    pub(crate) reader: thread::Thread,
}

impl Spooler {
    /// Works until told to close, or until nobody can tell it anything any more.
    ///
    /// # Errors
    /// When the disk failed in a way that needs the process to start again.
    pub(crate) fn run(mut self) -> Result<(), SpoolError> {
        let mut group: Vec<Append> = Vec::with_capacity(GROUP_RECORDS_MAX);
        let mut held = None;
        loop {
            self.progress.idle();
            let Some(command) = held.take().or_else(|| self.commands.blocking_recv()) else { break };
            self.progress.busy();
            match command {
                Command::Trim => self.journal.trim()?,
                Command::Close => break,
                Command::Append(append) => {
                    let mut bytes = append.bytes();
                    group.push(append);
                    while group.len() < GROUP_RECORDS_MAX && bytes < GROUP_BYTES_MAX {
                        match self.commands.try_recv() {
                            Ok(Command::Append(append)) => {
                                bytes += append.bytes();
                                group.push(append);
                            }
                            Ok(other) => {
                                held = Some(other);
                                break;
                            }
                            Err(_empty_or_closed) => break,
                        }
                    }
                    self.commit(&mut group)?;
                }
            }
            self.note_used();
            self.progress.tick();
        }
        self.journal.close()?;
        self.progress.finish();
        Ok(())
    }

    /// Commits a group. A full disk or spool is waited for: nothing is dropped.
    fn commit(&mut self, group: &mut Vec<Append>) -> Result<(), SpoolError> {
        let (started, records) = (Instant::now(), group.len());
        let mut is_full = false;
        loop {
            match self.journal.commit(group) {
                Ok(()) => break,
                Err(error @ (SpoolError::Full { .. } | SpoolError::DiskFull { .. })) => {
                    self.metrics.full.inc();
                    self.shared.set_disk_full(matches!(error, SpoolError::DiskFull { .. }));
                    let text = with_causes(&error);
                    if !std::mem::replace(&mut is_full, true) {
                        tracing::error!(
                            error = text,
                            "the spool is full: nodes keep what they have until there is room"
                        );
                    }
                    self.progress.fault(format!("{text}; nodes keep what they have until there is room"));
                    if self.shared.is_closing() {
                        group.clear();
                        return Ok(());
                    }
                    thread::sleep(FULL_PAUSE);
                    self.journal.trim()?;
                }
                Err(error) => return Err(error),
            }
        }
        if is_full {
            tracing::info!("the spool has room again");
        }
        self.shared.set_disk_full(false);
        self.progress.clear();
        self.reader.unpark();
        self.metrics.sync_seconds.observe(started.elapsed().as_secs_f64());
        self.metrics.records.inc_by(records as u64);
        Ok(())
    }

    fn note_used(&self) {
        self.metrics.used_bytes.set(i64::try_from(self.shared.used_bytes()).unwrap_or(i64::MAX));
    }
}
