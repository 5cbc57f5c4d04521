//! From the spool into the store, exactly once: which block is next, with which token, and what is noted when it is in.
//!
//! A state machine without clock, network and threads: [`super::store`] drives it in production, a simulation drives the
//! same one. The cut is on the disk before the first insert; a block that may or may not be in is inserted again with the
//! same bytes and token; nothing drops rows after *received*. It never reads beyond what is synced.
//!
//! Damage in what is not stored yet is survived by starting again: the start finds it, and has all frames from there on
//! sent again by their sources, which keep them until they are stored.

mod reading;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tapio_schemas::{ids::SourceId, units::UnixMicros};
use tapio_spool::{Gap, Reader, SpoolError};
use tapio_store::{
    client::{ClientError, DeduplicationToken},
    native::{BlockError, EncodedBlock},
};
use tapio_wire::Position;
use thiserror::Error;

pub(crate) use self::reading::lost_records;
use super::{
    cut::{self, Cut, Fragment, Marks, Stored},
    encode::{Encoder, TABLES, TableBlock},
    positions::Positions,
};
use crate::{losses::Losses, metrics::StoreMetrics, source::EVENT_AGE_MAX, state::StateError};

/// A block is cut when it has this many rows of events.
const BLOCK_ROWS: usize = 100_000;
/// A block is cut when the frames in it have this many bytes, as they arrived.
const BLOCK_FRAME_BYTES: usize = 32 << 20;
/// A block is cut when its first frame has waited this long.
const BLOCK_WAIT: Duration = Duration::from_millis(200);
/// How often an idle writer looks by itself.
const IDLE_PAUSE: Duration = Duration::from_millis(50);
/// Marks of stored blocks that wait for the end of the replay window, at most; beyond, the oldest two become one.
const RETAINED_MAX: usize = 65_536;
/// How often it is looked for sources that are silent for so long that they are let go.
const LET_GO_INTERVAL: Duration = Duration::from_secs(600);

/// Why the writer cannot go on: the disk under the state directory, never the store. Where that disk is only full, what
/// was asked for may be asked for again.
#[derive(Debug, Error)]
pub enum WriterError {
    /// The spool cannot be read.
    #[error("the spool cannot be read")]
    Spool(#[from] SpoolError),
    /// A small durable file cannot be written.
    #[error("the cut or the stored mark cannot be written")]
    State(#[from] StateError),
    /// A block could not be put together: a fault of this program.
    #[error("a block cannot be encoded")]
    Block(#[from] BlockError),
    /// A block's token is none: a fault of this program.
    #[error("a block's token cannot be used")]
    Token(#[source] ClientError),
    /// Another process runs as this aggregator.
    #[error(
        "another process has begun to store as this aggregator: stop one of the two, or give it a name and a state \
         directory of its own"
    )]
    Superseded,
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

/// What the writer is made of.
pub(crate) struct Parts {
    pub(crate) reader: Reader,
    pub(crate) marks: Marks,
    pub(crate) stored: Stored,
    pub(crate) pending: Option<Cut>,
    pub(crate) encoder: Encoder,
    pub(crate) positions: Arc<Positions>,
    pub(crate) losses: Arc<Losses>,
    pub(crate) metrics: StoreMetrics,
    /// Stored frames stay in the spool for this long.
    pub(crate) replay_window: Duration,
}

/// The writer.
pub(crate) struct Writer {
    reader: Reader,
    marks: Marks,
    stored: Stored,
    encoder: Encoder,
    positions: Arc<Positions>,
    losses: Arc<Losses>,
    metrics: StoreMetrics,
    /// A cut of an earlier life that is not known to be stored.
    pending: Option<Cut>,
    /// Records that were read for the block.
    records: u64,
    state: State,
    retained: VecDeque<(Instant, u64)>,
    replay_window: Duration,
    let_go_at: Option<Instant>,
}

/// What the moment is.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The clock that never steps.
    pub now: Instant,
    /// The wall clock.
    pub unix: UnixMicros,
    /// Every record below is on the disk.
    pub synced: u64,
    /// No more records come: what waits is stored at once, and then nothing is left to do.
    pub is_draining: bool,
}

/// What is to be done next.
#[derive(Debug)]
pub enum Step<'a> {
    /// Nothing, for so long, unless more is synced before.
    Wait(Duration),
    /// No insert of an earlier life of this aggregator may reach the store any more: whoever made them is gone, and what
    /// is still on its way is to be refused. Answer with `fenced`.
    Fence,
    /// The store is to be asked for the last complete frame of each source; answer with `learned`.
    AskLastFrames,
    /// The store is to be asked for what it has of frames that are not complete; answer with `gathered`.
    AskFragments,
    /// The roll-ups of the minutes of the events of these frames are to be made what the events say: whether they were
    /// rolled up is not known. Answer with `reconciled`.
    Reconcile(&'a [Fragment]),
    /// The store is to be asked for the complete frames of the cut that began at this record; answer with
    /// `checked`.
    AskFramesOfCut(u64),
    /// A block is to be inserted, again and again until it is in; answer with `inserted`.
    Insert {
        /// Into which table.
        table: &'static str,
        /// What.
        block: &'a EncodedBlock,
        /// What makes it the same insert, however often it is tried.
        token: DeduplicationToken,
    },
    /// A block is in every table, and that is noted.
    Stored,
    /// Everything is stored, and no more comes.
    Drained,
}

/// A cut on its way.
#[derive(Debug)]
struct Block {
    cut: Cut,
    /// The damage behind it, which ends the writer once it is stored.
    damaged: Option<Gap>,
}

#[derive(Debug)]
enum State {
    /// Earlier lives may still insert.
    Fencing,
    /// The marks are new: what the store has is not known.
    Learning,
    /// Its complete frames are known, and not those that are not.
    Gathering,
    /// What it has of those is known, and not whether that is in the roll-ups.
    Reconciling(Vec<Fragment>),
    /// What the store has is known, and not noted yet.
    Learned(Vec<Fragment>),
    /// It is known, and to be noted.
    Noted,
    /// A cut of an earlier life is to be read again.
    Refilling(Cut),
    /// It is read, and the store is asked whether it is complete.
    Checking(Cut),
    /// No record of the next block is read.
    Empty,
    /// Records are read into the next block.
    Filling { since: Instant, bytes: usize },
    /// The block is full; the cut is to be written.
    Cutting(Block),
    /// The blocks go to their tables, one behind the other.
    Inserting { block: Block, blocks: Vec<TableBlock>, done: usize },
    /// All are in; that is to be noted.
    Noting(Block),
    /// Damage was found, and everything before it is stored.
    Broken(Gap),
}

impl Writer {
    pub(crate) fn new(parts: Parts, now: Instant) -> Self {
        let Parts { reader, marks, stored, pending, encoder, positions, losses, metrics, replay_window } =
            parts;
        // How long ago that was stored is not known any more: the whole window starts again.
        let retained = (stored.until > 0).then_some((now, stored.until)).into_iter().collect();
        Self {
            reader,
            marks,
            stored,
            encoder,
            positions,
            losses,
            metrics,
            pending,
            records: 0,
            state: State::Fencing,
            retained,
            replay_window,
            let_go_at: None,
        }
    }

    /// Goes on until something is to be done outside.
    ///
    /// # Errors
    /// Where the disk is only full, nothing has changed: it may be called again.
    pub(crate) fn step(&mut self, at: Moment) -> Result<Step<'_>, WriterError> {
        loop {
            match &mut self.state {
                State::Fencing => return Ok(Step::Fence),
                State::Learning => return Ok(Step::AskLastFrames),
                State::Gathering => return Ok(Step::AskFragments),
                State::Reconciling(_) => return Ok(self.reconcile()),
                State::Learned(fragments) => {
                    self.stored.fragments = std::mem::take(fragments).into();
                    self.stored.is_anew = false;
                    self.state = State::Noted;
                }
                State::Noted => {
                    self.note_stored()?;
                    self.state = State::Empty;
                }
                State::Refilling(cut) => {
                    let cut = cut.clone();
                    self.refill(&cut, at)?;
                    self.state = State::Checking(cut);
                }
                State::Checking(cut) => {
                    // A cut without frames is inserted again: its token keeps a second copy out.
                    if !self.encoder.frames().is_empty() {
                        return Ok(Step::AskFramesOfCut(cut.from));
                    }
                    let cut = cut.clone();
                    self.begin_inserting(Block { cut, damaged: None })?;
                }
                State::Empty => {
                    if let Some(cut) = self.pending.take() {
                        self.state = State::Refilling(cut);
                        continue;
                    }
                    if self.let_go(at) > 0 {
                        self.note_stored()?;
                    }
                    if self.reader.position().0 >= at.synced {
                        let step = if at.is_draining { Step::Drained } else { Step::Wait(IDLE_PAUSE) };
                        return Ok(step);
                    }
                    self.encoder.begin(self.stored.until);
                    self.records = 0;
                    self.state = State::Filling { since: at.now, bytes: 0 };
                }
                State::Filling { .. } => {
                    if let Some(wait) = self.fill(at)? {
                        return Ok(Step::Wait(wait));
                    }
                }
                State::Cutting(block) => {
                    if block.cut.until == block.cut.from {
                        self.state = block.damaged.take().map_or(State::Empty, State::Broken);
                        continue;
                    }
                    self.marks.write_cut(&block.cut)?;
                    let block = Block { cut: block.cut.clone(), damaged: block.damaged.take() };
                    self.begin_inserting(block)?;
                }
                State::Inserting { block, blocks, done } if *done >= blocks.len() => {
                    let block = Block { cut: block.cut.clone(), damaged: block.damaged.take() };
                    self.state = State::Noting(block);
                }
                State::Inserting { .. } => return self.insert(),
                State::Noting(block) => {
                    let block = Block { cut: block.cut.clone(), damaged: block.damaged.clone() };
                    self.note(&block.cut, at)?;
                    self.metrics.blocks.inc();
                    self.state = block.damaged.map_or(State::Empty, State::Broken);
                    return Ok(Step::Stored);
                }
                State::Broken(gap) => {
                    return Err(WriterError::Damaged { from: gap.from.0, until: gap.until.0 });
                }
            }
        }
    }

    /// No insert of an earlier life can reach the store any more.
    pub(crate) fn fenced(&mut self) {
        if matches!(self.state, State::Fencing) {
            self.state = if self.stored.is_anew { State::Learning } else { State::Empty };
        }
    }

    /// The last complete frames of all sources, as the store has them.
    pub(crate) fn learned(&mut self, frames: Vec<(SourceId, Position)>, unix: UnixMicros) {
        if !matches!(self.state, State::Learning) {
            return;
        }
        if !frames.is_empty() {
            tracing::warn!(
                sources = frames.len(),
                "the marks are new: what the store has is not stored again"
            );
        }
        for (source, position) in frames {
            self.stored.note(source, position, unix);
            self.positions.stored(source, position);
        }
        self.state = State::Gathering;
    }

    /// What the store has of frames that are not complete.
    pub(crate) fn gathered(&mut self, fragments: Vec<Fragment>) {
        if !matches!(self.state, State::Gathering) {
            return;
        }
        if !fragments.is_empty() {
            tracing::warn!(fragments = fragments.len(), "frames that the store has in part are completed");
        }
        self.state = State::Reconciling(fragments);
    }

    /// The roll-ups say what the events say.
    pub(crate) fn reconciled(&mut self) {
        if let State::Reconciling(fragments) = &mut self.state {
            self.state = State::Learned(std::mem::take(fragments));
        }
    }

    fn reconcile(&mut self) -> Step<'_> {
        match &mut self.state {
            State::Reconciling(fragments) => Step::Reconcile(fragments),
            _ => Step::Wait(IDLE_PAUSE),
        }
    }

    /// The complete frames of the cut that was asked for: if all are there, it needs no insert.
    ///
    /// # Errors
    /// When the block cannot be encoded.
    pub(crate) fn checked(&mut self, complete: &BTreeSet<(SourceId, Position)>) -> Result<(), WriterError> {
        let State::Checking(cut) = &self.state else { return Ok(()) };
        let block = Block { cut: cut.clone(), damaged: None };
        if self.encoder.frames().iter().all(|frame| complete.contains(frame)) {
            tracing::info!(from = block.cut.from, until = block.cut.until, "that block is stored");
            self.state = State::Noting(block);
            return Ok(());
        }
        self.begin_inserting(block)
    }

    /// The block that was to be inserted is in its table.
    pub(crate) fn inserted(&mut self) {
        if let State::Inserting { done, .. } = &mut self.state {
            *done += 1;
        }
    }

    /// Up to where the spool may be trimmed now: what was stored longer ago than the replay window, or the oldest of it
    /// while the spool is too full.
    pub(crate) fn take_trim(&mut self, now: Instant, is_full: bool) -> Option<u64> {
        let mut until = None;
        while let Some((stored_at, ordinal)) = self.retained.front() {
            // One block at a time while it is full: the spool says anew how full it is.
            let is_young = now.saturating_duration_since(*stored_at) < self.replay_window;
            if is_young && !(is_full && until.is_none()) {
                break;
            }
            until = Some(*ordinal);
            self.retained.pop_front();
        }
        until
    }

    /// Every record below is stored.
    pub(crate) const fn stored_until(&self) -> u64 {
        self.stored.until
    }

    fn begin_inserting(&mut self, block: Block) -> Result<(), WriterError> {
        let mut blocks = self.encoder.blocks()?;
        blocks.retain(|filled| block.cut.tables.iter().any(|table| table == filled.table));
        self.state = State::Inserting { block, blocks, done: 0 };
        Ok(())
    }

    fn insert(&self) -> Result<Step<'_>, WriterError> {
        let State::Inserting { block: Block { cut, .. }, blocks, done } = &self.state else {
            return Ok(Step::Wait(IDLE_PAUSE));
        };
        let Some(TableBlock { table, block }) = blocks.get(*done) else { return Ok(Step::Wait(IDLE_PAUSE)) };
        let token = DeduplicationToken::new(cut::token(&self.stored.spool, cut, table))
            .map_err(WriterError::Token)?;
        Ok(Step::Insert { table, block, token })
    }

    /// Notes durably that a cut is stored, and tells the sessions.
    fn note(&mut self, cut: &Cut, at: Moment) -> Result<(), WriterError> {
        for (source, position) in self.encoder.positions() {
            self.stored.note(source, position, at.unix);
            self.stored.fragments.completed(source, position);
        }
        self.stored.advance(cut.until);
        self.let_go(at);
        self.note_stored()?;
        for (source, position) in self.encoder.positions() {
            self.positions.stored(source, position);
        }
        if self.retained.len() >= RETAINED_MAX {
            self.retained.pop_front();
        }
        self.retained.push_back((at.now, cut.until));
        Ok(())
    }

    /// Writes down how far everything is stored.
    fn note_stored(&self) -> Result<(), WriterError> {
        Ok(self.marks.write_stored(&self.stored)?)
    }

    /// Lets go of sources that are gone: no frame that they still have would be taken, for its age.
    fn let_go(&mut self, at: Moment) -> u64 {
        if self.let_go_at.is_some_and(|again| at.now < again) {
            return 0;
        }
        self.let_go_at = Some(at.now + LET_GO_INTERVAL);
        let positions = &self.positions;
        let gone = self.stored.let_go(at.unix.minus(EVENT_AGE_MAX), |source| positions.forget(source));
        if gone > 0 {
            tracing::info!(gone, "sources that were silent for long are let go");
            self.metrics.sources_let_go.inc_by(gone);
        }
        gone
    }

    fn cut_until(&self, until: u64) -> Cut {
        Cut {
            from: self.stored.until,
            until,
            records: Some(self.records),
            encoder: cut::ENCODER_VERSION,
            tables: TABLES.iter().map(|table| (*table).to_owned()).collect(),
        }
    }
}
