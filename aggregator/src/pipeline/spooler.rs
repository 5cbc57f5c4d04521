//! The thread that owns the spool: appends what was accepted, forces it to the disk in groups, acknowledges, trims.
//!
//! It takes everything that waits, writes it with one call, syncs once, and then says "received": so a group is as
//! large as what came during the sync before, and nobody waits for more than two syncs. Called by the intake through
//! a bounded queue; when that is full, sessions wait, and agents keep what they have.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tapio_daemon::{Progress, with_causes};
use tapio_spool::{Ordinal, Spool, SpoolError};
use tapio_wire::Position;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::positions::SourcePosition;
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

/// A record to append.
#[derive(Debug)]
pub(crate) struct Append {
    /// Head and name.
    pub(crate) head: Vec<u8>,
    /// The body.
    pub(crate) body: Bytes,
    /// Who waits for it.
    pub(crate) receipt: Option<Receipt>,
    /// The room that it takes among the bytes under way; given back once it is on the disk.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// Whom to tell that a frame is on the disk.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) source: Arc<SourcePosition>,
    pub(crate) position: Position,
}

/// What the spooler and the others know of each other without a queue between them.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    synced: AtomicU64,
    trim: AtomicU64,
    used_bytes: AtomicU64,
    disk_full: AtomicBool,
    closing: AtomicBool,
}

impl Shared {
    /// Everything below is on the disk. The feeder reads no further: what a power cut may take must not be cut into a
    /// block.
    pub(crate) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Says that everything below is on the disk.
    pub(crate) fn set_synced(&self, until: Ordinal) {
        self.synced.store(until.0, Ordering::Release);
    }

    /// Says that records below are no longer needed. Not a command, because a full spool's queue is full too.
    pub(crate) fn trim(&self, until: u64) {
        self.trim.fetch_max(until, Ordering::AcqRel);
    }

    /// Bytes that the spool uses.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Acquire)
    }

    /// Whether the disk has no room for what waits: what is stored is then not kept for the engine's replay.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Acquire)
    }

    /// Says that a full spool is no longer waited for: what is not acknowledged is sent again.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

/// The spooler's state; [`Spooler::run`] is its thread.
#[derive(Debug)]
pub(crate) struct Spooler {
    pub(crate) spool: Spool,
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
                Command::Trim => self.trim()?,
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
            self.progress.tick();
        }
        self.spool.close()?;
        self.progress.finish();
        Ok(())
    }

    /// Writes a group, syncs it, and acknowledges it. A full disk or spool is waited for: nothing is dropped.
    fn commit(&mut self, group: &mut Vec<Append>) -> Result<(), SpoolError> {
        let started = Instant::now();
        let parts: Vec<[&[u8]; 2]> =
            group.iter().map(|append| [append.head.as_slice(), append.body.as_ref()]).collect();
        let records: Vec<&[&[u8]]> = parts.iter().map(<[&[u8]; 2]>::as_slice).collect();
        let mut is_full = false;
        loop {
            match self.spool.append_batch(&records) {
                Ok(_appended) => break,
                Err(error @ (SpoolError::Full { .. } | SpoolError::DiskFull { .. })) => {
                    self.metrics.full.inc();
                    self.shared
                        .disk_full
                        .store(matches!(error, SpoolError::DiskFull { .. }), Ordering::Release);
                    let text = with_causes(&error);
                    if !std::mem::replace(&mut is_full, true) {
                        tracing::error!(
                            error = text,
                            "the spool is full: nodes keep what they have until there is room"
                        );
                    }
                    self.progress.fault(format!("{text}; nodes keep what they have until there is room"));
                    if self.shared.closing.load(Ordering::Acquire) {
                        drop(records);
                        group.clear();
                        return Ok(());
                    }
                    thread::sleep(FULL_PAUSE);
                    self.spool.trim_until(Ordinal(self.shared.trim.load(Ordering::Acquire)))?;
                }
                Err(error) => return Err(error),
            }
        }
        if is_full {
            tracing::info!("the spool has room again");
        }
        self.shared.disk_full.store(false, Ordering::Release);
        self.progress.clear();
        let synced = self.spool.sync()?;
        self.shared.set_synced(synced);
        self.reader.unpark();
        self.metrics.sync_seconds.observe(started.elapsed().as_secs_f64());
        self.metrics.records.inc_by(group.len() as u64);
        self.note_used();
        for append in group.drain(..) {
            if let Some(receipt) = append.receipt {
                receipt.source.received(receipt.position);
            }
            drop(append.room);
        }
        Ok(())
    }

    fn trim(&mut self) -> Result<(), SpoolError> {
        self.spool.trim_until(Ordinal(self.shared.trim.load(Ordering::Acquire)))?;
        self.note_used();
        Ok(())
    }

    fn note_used(&self) {
        self.shared.used_bytes.store(self.spool.used_bytes(), Ordering::Release);
        self.metrics.used_bytes.set(i64::try_from(self.spool.used_bytes()).unwrap_or(i64::MAX));
    }
}

impl Append {
    fn bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}
