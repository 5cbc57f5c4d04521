//! The feeder: reads the spool in order, cuts blocks, inserts them exactly once, and then says "stored".
//!
//! A thread of its own. The cut is on the disk before the first insert; an insert that fails is tried again with the
//! same bytes and token until it succeeds, because nothing drops rows after *received*: while the store is away, data
//! waits in the spool, and the health says so. It never reads beyond what is synced, and never makes an owned event.
//!
//! Damage in what is not stored yet is survived by starting again: the start finds it, and has all frames from there on
//! sent again by their sources, which keep them until they are stored.

mod asking;

use std::{
    collections::VecDeque,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tapio_daemon::Progress;
use tapio_schemas::{ids::SourceId, ledger::Stage};
use tapio_spool::{Gap, GapReason, Item, Ordinal, Reader, SpoolError};
use tapio_store::client::{Advice, BlockWriter, ClientError, DeduplicationToken};
use tapio_wire::{Position, frame::FrameHeader};
use thiserror::Error;
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    cut::{self, Cut, Marks, Stored},
    encode::{Encoder, TABLES, TableBlock},
    history::History,
    positions::Positions,
    record::{Kind, Record},
    spooler::{Command, Shared},
};
use crate::{
    clock::now,
    losses::Losses,
    metrics::{StoreMetrics, Table},
    patience::Patience,
    source::{EVENT_AGE_MAX, GivenUp},
    state::StateError,
};

/// A block is cut when it has this many rows of events.
const BLOCK_ROWS: usize = 100_000;
/// A block is cut when the frames in it have this many bytes, as they arrived.
const BLOCK_FRAME_BYTES: usize = 32 << 20;
/// A block is cut when its first frame has waited this long.
const BLOCK_WAIT: Duration = Duration::from_millis(200);
/// How often an idle feeder looks by itself.
const IDLE_PAUSE: Duration = Duration::from_millis(50);
/// Pauses between tries of an insert.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Marks of stored blocks that wait for the end of the replay window, at most; beyond, the oldest two become one.
const RETAINED_MAX: usize = 65_536;
/// How often it is looked for sources that are silent for so long that they are let go.
const LET_GO_INTERVAL: Duration = Duration::from_secs(600);

/// Why the feeder cannot go on: the disk under the state directory, never the store.
#[derive(Debug, Error)]
pub enum FeedError {
    /// The spool cannot be read.
    #[error("the spool cannot be read")]
    Spool(#[from] SpoolError),
    /// A small durable file cannot be written.
    #[error("the cut or the stored mark cannot be written")]
    State(#[from] StateError),
    /// A block could not be put together: a fault of this program.
    #[error("a block cannot be encoded: {0}")]
    Encode(String),
    /// Records are damaged that are not stored.
    #[error(
        "records {from} to {until} of the spool are damaged and not stored: start again, agents then send again what \
         they and those behind them held; and check the disk"
    )]
    Damaged {
        /// The first of them.
        from: u64,
        /// The first behind them.
        until: u64,
    },
}

/// What the feeder is made of; [`Feeder::run`] is its thread.
pub(crate) struct Feeder {
    pub(crate) reader: Reader,
    pub(crate) shared: Arc<Shared>,
    pub(crate) spooler: mpsc::Sender<Command>,
    pub(crate) marks: Marks,
    pub(crate) stored: Stored,
    pub(crate) pending: Option<Cut>,
    pub(crate) encoder: Encoder,
    pub(crate) writer: BlockWriter,
    pub(crate) history: History,
    pub(crate) runtime: Handle,
    pub(crate) positions: Arc<Positions>,
    pub(crate) losses: Arc<Losses>,
    pub(crate) metrics: StoreMetrics,
    pub(crate) progress: Progress,
    /// Cancelled when no more frames come: what waits is still stored.
    pub(crate) drain: CancellationToken,
    /// Cancelled when the time to drain is over: what waits stays in the spool.
    pub(crate) stop: CancellationToken,
    /// Stored frames stay in the spool for this long.
    pub(crate) replay_window: Duration,
    /// They leave it earlier when the spool uses more than this.
    pub(crate) replay_bytes_max: u64,
    /// When it is looked again for sources to let go.
    pub(crate) let_go_at: Instant,
}

/// Stored blocks whose frames are kept for the engine's replay.
#[derive(Debug, Default)]
struct Retained(VecDeque<(Instant, u64)>);

/// How filling a block ended.
enum Filled {
    /// The block is to be cut here.
    Cut,
    /// Damage was found: what stands before it is to be cut, if anything.
    Damaged(Gap),
    /// The feeder is to end.
    Stop,
}

impl Feeder {
    /// Works until stopped.
    ///
    /// # Errors
    /// When the disk under the state directory fails.
    pub(crate) fn run(mut self) -> Result<(), FeedError> {
        if !self.learn()? {
            self.progress.finish();
            return Ok(());
        }
        let mut retained = Retained::default();
        if self.stored.until > 0 {
            // How long ago that was stored is not known any more: the whole window starts again.
            retained.push(self.stored.until);
        }
        loop {
            self.encoder.begin(self.stored.until);
            let mut damaged = None;
            let cut = match self.pending.take() {
                Some(cut) => {
                    self.refill(&cut)?;
                    match self.is_complete(&cut) {
                        None => break,
                        Some(true) => {
                            tracing::info!(from = cut.from, until = cut.until, "that block is stored");
                            if !self.advance(&cut)? {
                                break;
                            }
                            retained.push(cut.until);
                            continue;
                        }
                        Some(false) => cut,
                    }
                }
                None => {
                    let until = match self.fill(&mut retained)? {
                        Filled::Stop => break,
                        Filled::Cut => self.reader.position().0,
                        Filled::Damaged(gap) => damaged.insert(gap).from.0,
                    };
                    let cut = Cut {
                        from: self.stored.until,
                        until,
                        encoder: cut::ENCODER_VERSION,
                        tables: TABLES.iter().map(|table| (*table).to_owned()).collect(),
                    };
                    if cut.until > cut.from && !self.patience().write(|| self.marks.write_cut(&cut))? {
                        break;
                    }
                    cut
                }
            };
            self.progress.busy();
            if cut.until > cut.from {
                if !self.insert(&cut)? || !self.advance(&cut)? {
                    break;
                }
                retained.push(cut.until);
            }
            if let Some(gap) = damaged {
                return Err(FeedError::Damaged { from: gap.from.0, until: gap.until.0 });
            }
            self.trim(&mut retained);
            self.progress.tick();
        }
        self.progress.finish();
        Ok(())
    }

    /// Reads records into the encoder until the block is full, its first record has waited long enough, or the end.
    fn fill(&mut self, retained: &mut Retained) -> Result<Filled, FeedError> {
        let mut first_at = None;
        let mut bytes = 0;
        loop {
            if self.stop.is_cancelled() {
                return Ok(Filled::Stop);
            }
            let draining = self.drain.is_cancelled();
            if self.reader.position().0 < self.shared.synced() {
                first_at.get_or_insert_with(Instant::now);
                match self.read_one()? {
                    Read::Bytes(read) => bytes += read,
                    Read::Damaged(gap) => return Ok(Filled::Damaged(gap)),
                }
                if self.encoder.event_rows() >= BLOCK_ROWS || bytes >= BLOCK_FRAME_BYTES {
                    return Ok(Filled::Cut);
                }
                continue;
            }
            self.note_waiting();
            match first_at {
                Some(first_at) if draining || first_at.elapsed() >= BLOCK_WAIT => return Ok(Filled::Cut),
                Some(first_at) => thread::park_timeout(BLOCK_WAIT.saturating_sub(first_at.elapsed())),
                None if draining => return Ok(Filled::Stop),
                None => {
                    self.progress.idle();
                    self.trim(retained);
                    if self.let_go() > 0 && !self.note_stored()? {
                        return Ok(Filled::Stop);
                    }
                    thread::park_timeout(IDLE_PAUSE);
                }
            }
        }
    }

    /// Reads exactly the records of a cut that was written before a crash.
    fn refill(&mut self, cut: &Cut) -> Result<(), FeedError> {
        tracing::info!(
            from = cut.from,
            until = cut.until,
            "a block that was cut before is cut again the same"
        );
        while self.reader.position().0 < cut.until {
            match self.read_one()? {
                // The start would have found it, so it came in between: the next start finds it.
                Read::Damaged(gap) => {
                    return Err(FeedError::Damaged { from: gap.from.0, until: gap.until.0 });
                }
                Read::Bytes(0) if self.reader.position().0 >= self.shared.synced() => break,
                Read::Bytes(_) => {}
            }
        }
        Ok(())
    }

    /// Reads the next record, or gap, into the encoder; returns the record's bytes.
    fn read_one(&mut self) -> Result<Read, FeedError> {
        let sent_again = self.stored.sent_again;
        let is_sent_again = |ordinal| sent_again.is_some_and(|range| range.contains(ordinal));
        let (ordinal, bytes, dropped) = match self.reader.next_item()? {
            None => return Ok(Read::Bytes(0)),
            Some(Item::Gap(gap)) if matches!(gap.reason, GapReason::Damaged { .. }) => {
                if !is_sent_again(gap.from.0) {
                    return Ok(Read::Damaged(gap));
                }
                tracing::error!(from = gap.from.0, until = gap.until.0, "records of the spool are damaged");
                self.metrics.drops.add(gap.reason.label(), lost_records(&gap));
                return Ok(Read::Bytes(0));
            }
            Some(Item::Gap(gap)) => {
                let lost = lost_records(&gap);
                if lost > 0 {
                    tracing::error!(
                        from = gap.from.0,
                        until = gap.until.0,
                        reason = gap.reason.label(),
                        "records of the spool are lost"
                    );
                    self.metrics.drops.add(gap.reason.label(), lost);
                    self.losses.lost(Stage::Store, "frames", gap.reason.label(), lost);
                }
                return Ok(Read::Bytes(0));
            }
            Some(Item::Record { ordinal, payload }) => {
                let (encoder, stored) = (&mut self.encoder, &self.stored);
                let pushed = Record::read(payload).map_err(|error| error.to_string()).and_then(|record| {
                    let frame = frame_of(&record);
                    let is_known = frame.is_some_and(|(source, position)| stored.has(source, position));
                    if is_known || (frame.is_some() && is_sent_again(ordinal.0)) {
                        return Ok(false);
                    }
                    encoder.push(ordinal.0, &record).map(|()| true)
                });
                if pushed == Ok(false) {
                    self.losses.folded(Stage::Store, "frames", "sent-again", 1);
                }
                (ordinal, payload.len(), pushed.err())
            }
        };
        if let Some(fault) = dropped {
            // The intake checked these very bytes and the spool's checksum held, so this is our own fault; one record
            // must not keep all others from being stored.
            tracing::error!(%ordinal, fault, "a record of the spool cannot be stored");
            self.metrics.drops.add("undecodable", 1);
            self.losses.lost(Stage::Store, "frames", "undecodable", 1);
        }
        Ok(Read::Bytes(bytes))
    }

    /// Inserts all blocks of the cut; false when the feeder was stopped before they were in.
    fn insert(&mut self, cut: &Cut) -> Result<bool, FeedError> {
        let started = Instant::now();
        let blocks = self.encoder.blocks().map_err(|error| FeedError::Encode(error.to_string()))?;
        for TableBlock { table, block } in &blocks {
            if !cut.tables.iter().any(|name| name == table) {
                continue;
            }
            let token = DeduplicationToken::new(cut::token(&self.stored.spool, cut, table))
                .map_err(|error| FeedError::Encode(error.to_string()))?;
            let mut pause = RETRY_PAUSE_MIN;
            loop {
                // Not cancel-safe, and need not be: whether the insert happened does not matter, as the same one
                // follows after the next start.
                let insert = self.writer.insert(table, block, &token);
                match self.patience().answer(&format!("an insert into {table}"), insert) {
                    None => return Ok(false),
                    Some(Ok(_inserted)) => break,
                    Some(Err(error)) => {
                        self.retry(table, &error, &mut pause);
                    }
                }
            }
            self.metrics.rows.get_or_create(&Table { table }).inc_by(block.rows() as u64);
        }
        self.progress.clear();
        self.metrics.blocks.inc();
        self.metrics.insert_seconds.observe(started.elapsed().as_secs_f64());
        Ok(true)
    }

    /// Says what is wrong and waits; the same block comes again.
    fn retry(&self, table: &str, error: &ClientError, pause: &mut Duration) {
        self.metrics.retries.inc();
        self.note_waiting();
        let advice = error.advice();
        let waiting = self.shared.synced().saturating_sub(self.stored.until);
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
        self.pause(pause);
    }

    fn pause(&self, pause: &mut Duration) {
        let stopped = async {
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = tokio::time::sleep(*pause) => {}
            }
        };
        self.runtime.block_on(stopped);
        *pause = (*pause * 2).min(RETRY_PAUSE_MAX);
        // Trying is progress; that nothing comes of it is what the fault says.
        self.progress.tick();
    }

    /// Notes durably that a cut is stored, and tells the sessions; false when stopped before.
    fn advance(&mut self, cut: &Cut) -> Result<bool, FeedError> {
        let now = now();
        for (source, position) in self.encoder.positions() {
            self.stored.note(source, position, now);
        }
        self.stored.until = cut.until;
        self.stored.sent_again = self.stored.sent_again.filter(|range| range.until > cut.until);
        self.let_go();
        if !self.note_stored()? {
            return Ok(false);
        }
        for (source, position) in self.encoder.positions() {
            self.positions.stored(source, position);
        }
        self.note_waiting();
        Ok(true)
    }

    /// Writes down how far everything is stored; false when stopped before.
    fn note_stored(&self) -> Result<bool, FeedError> {
        Ok(self.patience().write(|| self.marks.write_stored(&self.stored))?)
    }

    const fn patience(&self) -> Patience<'_> {
        Patience { runtime: &self.runtime, progress: &self.progress, stop: &self.stop }
    }

    /// Lets go of what was stored longer ago than the replay window, or of the oldest while the spool or its disk is too
    /// full.
    fn trim(&self, retained: &mut Retained) {
        let full = self.shared.used_bytes() > self.replay_bytes_max || self.shared.is_disk_full();
        if let Some(until) = retained.take(self.replay_window, full) {
            self.shared.trim(until);
            // If its queue is full it is busy, and looks by itself when it is out of room.
            drop(self.spooler.try_send(Command::Trim));
        }
    }

    /// Lets go of sources that are gone: no frame that they still have would be taken, for its age.
    fn let_go(&mut self) -> u64 {
        if Instant::now() < self.let_go_at {
            return 0;
        }
        self.let_go_at = Instant::now() + LET_GO_INTERVAL;
        let positions = &self.positions;
        let gone = self.stored.let_go(now().minus(EVENT_AGE_MAX), |source| positions.forget(source));
        if gone > 0 {
            tracing::info!(gone, "sources that were silent for long are let go");
            self.metrics.sources_let_go.inc_by(gone);
        }
        gone
    }

    fn note_waiting(&self) {
        let waiting = self.shared.synced().saturating_sub(self.stored.until);
        self.metrics.waiting_records.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }
}

impl Retained {
    fn push(&mut self, until: u64) {
        if self.0.len() >= RETAINED_MAX {
            self.0.pop_front();
        }
        self.0.push_back((Instant::now(), until));
    }

    /// Up to where the spool may be trimmed now.
    fn take(&mut self, window: Duration, full: bool) -> Option<u64> {
        let mut until = None;
        while let Some((stored_at, ordinal)) = self.0.front() {
            // One block at a time while it is full: the spool says anew how full it is.
            if stored_at.elapsed() < window && !(full && until.is_none()) {
                break;
            }
            until = Some(*ordinal);
            self.0.pop_front();
        }
        until
    }
}

/// What was read.
enum Read {
    /// A record of so many bytes, or nothing.
    Bytes(usize),
    /// Damage that the start did not find.
    Damaged(Gap),
}

/// The frame whose place a record takes.
fn frame_of(record: &Record<'_>) -> Option<(SourceId, Position)> {
    match record.kind {
        Kind::Frame => {
            FrameHeader::parse(record.body).ok().map(|header| (header.meta.id.source, header.meta.id.into()))
        }
        Kind::GivenUp => serde_json::from_slice::<GivenUp>(record.body)
            .ok()
            .map(|given_up| (given_up.source, Position::new(given_up.incarnation, given_up.sequence))),
        Kind::OwnLedger | Kind::Source => None,
    }
}

/// How many records a gap lost: ordinals that were skipped were never used.
pub(crate) fn lost_records(gap: &Gap) -> u64 {
    match gap.reason {
        GapReason::Skipped => 0,
        _ => gap.until.0.saturating_sub(gap.from.max(Ordinal::FIRST).0),
    }
}
