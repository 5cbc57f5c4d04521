//! From events to numbered frames: the last place where the agent decides anything about an event.
//!
//! Rows go into one batch; the batch becomes a frame when something in it is urgent, when it is full, or when it is
//! old. Each frame carries the ledger since the frame before. Called by [`crate::capture`]; hands frames over to the
//! thread that spools them, and holds them, up to a limit, while that thread waits for its disk. A frame that is given
//! up leaves its ledger to the next one.

use std::{
    collections::VecDeque,
    sync::mpsc::{SyncSender, TrySendError},
};

use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder, BatchLimits, BatchView},
    ids::{FrameId, Incarnation, RuleSetVersion, Sequence, SourceId},
    intent::Severity,
    ledger::{Fate, LedgerEntry, Stage},
    units::{ClockOffset, UnixMicros},
};
use tapio_wire::{
    Position,
    frame::{FrameEncoder, FrameFault, FrameLimits, FrameMeta, Lane},
};

use crate::{event::Event, fold::WINDOW_NANOS, probes::Reached, tally::Tally};

/// An urgent event waits at most this long for others.
const URGENT_WAIT_NANOS: u64 = 10_000_000;
/// After a frame, urgent events wait at least this long for the next: each frame ends what is being folded.
const URGENT_PAUSE_NANOS: u64 = 30_000_000;
/// Any event waits at most this long: as long as events fold.
const BULK_WAIT_NANOS: u64 = WINDOW_NANOS;
/// A batch with so many events, those that are still being folded counted in, is full.
pub(crate) const BULK_ROWS: u32 = 1_000;
/// Without events, a frame says this often that the node lives and what it lost.
const QUIET_WAIT_NANOS: u64 = 500_000_000;
/// A window that would end so much before its begin is of a clock that was set back.
const CLOCK_STEP_MICROS_MIN: u64 = 1_000_000;
/// Frames that the channel to the spool's thread holds.
pub(crate) const FRAMES_WAITING_MAX: usize = 16;
/// Bytes of frames that wait before the channel: many seconds of a busy node, in which a slow disk may catch up.
const BYTES_WAITING_MAX: usize = 16 << 20;

/// A frame on its way to the spool.
pub(crate) struct Outbound {
    pub(crate) position: Position,
    /// How many events it has.
    pub(crate) events: u32,
    pub(crate) bytes: Vec<u8>,
    /// Its ledger, to be told again if the spool refuses it.
    pub(crate) ledger: Vec<LedgerEntry>,
    /// What of the kernel's records is told by it and the frames before.
    pub(crate) reached: Reached,
    /// The end of its ledger's window.
    pub(crate) until: UnixMicros,
}

/// The batch that is being filled.
pub(crate) struct Outgoing {
    batch: BatchBuilder,
    bytes: AlignedVec,
    encoder: FrameEncoder,
    source: SourceId,
    incarnation: Incarnation,
    sequence: u64,
    frames: SyncSender<Outbound>,
    /// Made, but not yet taken by the spool's thread.
    waiting: VecDeque<Outbound>,
    waiting_bytes: usize,
    /// The ledger of frames that were given up.
    untold: Vec<LedgerEntry>,
    urgent_since: Option<u64>,
    flushed_nanos: u64,
    since: UnixMicros,
    /// The rule set and the generation that are in force.
    pub(crate) rule_set: (RuleSetVersion, u64),
    /// What of the kernel's records the next frame, and those before it, tell.
    pub(crate) reached: Reached,
}

impl Outgoing {
    pub(crate) fn new(
        source: SourceId,
        incarnation: Incarnation,
        frames: SyncSender<Outbound>,
        since: UnixMicros,
    ) -> Result<Self, FrameFault> {
        Ok(Self {
            batch: BatchBuilder::new(BatchLimits { rows_max: 2 * BULK_ROWS, ..BatchLimits::default() }),
            bytes: AlignedVec::new(),
            encoder: FrameEncoder::new(FrameLimits::default())?,
            source,
            incarnation,
            sequence: 0,
            frames,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            untold: Vec::new(),
            urgent_since: None,
            flushed_nanos: 0,
            since,
            rule_set: (RuleSetVersion::default(), 0),
            reached: Reached::default(),
        })
    }

    /// Has the next frame tell what a lost one told.
    pub(crate) fn tell_again(&mut self, ledger: Vec<LedgerEntry>) {
        self.untold.extend(ledger);
    }

    /// Writes an event; `false` when it has to be written again after a flush.
    pub(crate) fn write(
        &mut self,
        event: &Event,
        clock: ClockOffset,
        now_nanos: u64,
        tally: &mut Tally,
    ) -> bool {
        match event.write(&mut self.batch, clock) {
            Ok(_row) => {}
            Err(refusal) if refusal.is_full() && self.batch.rows() > 0 => return false,
            Err(refusal) => {
                tracing::error!(%refusal, intent = event.intent, "an event does not fit a batch");
                tally.add_at(Stage::Batch, Fate::Lost, "events", "refused", 1);
                return true;
            }
        }
        if event.severity >= Severity::Warning {
            self.urgent_since.get_or_insert(now_nanos);
        }
        true
    }

    /// Whether something urgent waits.
    pub(crate) const fn is_urgent(&self) -> bool {
        self.urgent_since.is_some()
    }

    /// Whether the batch should become a frame now, with `folding` events that would come along.
    pub(crate) fn is_due(&self, now_nanos: u64, folding: usize) -> bool {
        let paused = now_nanos.saturating_sub(self.flushed_nanos);
        let is_urgent =
            self.urgent_since.is_some_and(|since| now_nanos.saturating_sub(since) >= URGENT_WAIT_NANOS);
        let is_quiet = self.batch.rows() == 0 && folding == 0;
        is_urgent && paused >= URGENT_PAUSE_NANOS
            || self.is_full(folding)
            || paused >= if is_quiet { QUIET_WAIT_NANOS } else { BULK_WAIT_NANOS }
    }

    /// Whether no more should come in before the batch has become a frame.
    pub(crate) fn is_full(&self, folding: usize) -> bool {
        let folding = u32::try_from(folding).unwrap_or(u32::MAX);
        self.batch.rows().saturating_add(folding) >= BULK_ROWS
    }

    /// Makes the frame. `until` is the time up to which everything that happened is in this frame or an earlier one.
    /// Returns the frame's id, and the batch for the node's own rules.
    pub(crate) fn flush(
        &mut self,
        until: UnixMicros,
        clock: ClockOffset,
        now_nanos: u64,
        tally: &mut Tally,
    ) -> Option<(FrameId, BatchView<'_>)> {
        let lane = if self.is_urgent() { Lane::Urgent } else { Lane::Bulk };
        self.urgent_since = None;
        self.flushed_nanos = now_nanos;
        let rows = self.batch.rows();
        if self.since.0.saturating_sub(until.0) > CLOCK_STEP_MICROS_MIN {
            // The clock that times are told by was set back: windows that waited for it to catch up would say nothing.
            self.since = until;
        }
        let until = until.max(self.since);
        let ledger = self.batch.ledger_mut();
        (ledger.since, ledger.until) = (self.since, until);
        for LedgerEntry { stage, fate, subject, reason, count } in self.untold.drain(..) {
            ledger.add(stage, fate, &subject, &reason, count);
        }
        tally.drain_into(ledger);
        // Told again by the next frame if this one is given up: all but that its events were carried.
        self.untold.clone_from(&ledger.entries);
        ledger.add(Stage::Batch, Fate::Carried, "events", "", rows.into());
        let id = FrameId {
            source: self.source,
            incarnation: self.incarnation,
            sequence: Sequence(self.sequence.saturating_add(1)),
        };
        if let Err(reason) = self.ship(id, lane, clock, until) {
            tracing::warn!(reason, rows, "a frame is given up");
            tally.add_at(Stage::Batch, Fate::Lost, "events", reason, rows.into());
            return None;
        }
        // The frame is on its way, and only now its number and its window are used.
        self.sequence = id.sequence.0;
        self.since = until;
        self.untold.clear();
        Some((id, BatchView::open(&self.bytes).ok()?))
    }

    fn ship(
        &mut self,
        id: FrameId,
        lane: Lane,
        clock: ClockOffset,
        until: UnixMicros,
    ) -> Result<(), &'static str> {
        let summary = self.batch.finish(&mut self.bytes).map_err(|_fault| {
            self.batch.clear();
            "batch-fault"
        })?;
        let meta = FrameMeta {
            lane,
            clock,
            rule_set: self.rule_set.0,
            config_generation: self.rule_set.1,
            ..FrameMeta::new(id, summary.rows)
        };
        let mut bytes = Vec::new();
        self.encoder.encode(meta, &self.bytes, &mut bytes).map_err(|_fault| "frame-too-large")?;
        self.hand_over()?;
        if self.waiting_bytes.saturating_add(bytes.len()) > BYTES_WAITING_MAX {
            return Err("spool-behind");
        }
        self.waiting_bytes += bytes.len();
        let mut ledger = self.untold.clone();
        ledger.push(LedgerEntry {
            stage: Stage::Batch,
            fate: Fate::Carried,
            subject: "events".to_owned(),
            reason: String::new(),
            count: summary.rows.into(),
        });
        let (position, events, reached) = (id.into(), summary.rows, self.reached);
        self.waiting.push_back(Outbound { position, events, bytes, ledger, reached, until });
        // That the thread is gone is found out with the next frame.
        let _handed_over = self.hand_over();
        Ok(())
    }

    /// Gives the spool's thread as many frames as it takes without being waited for, in order.
    fn hand_over(&mut self) -> Result<(), &'static str> {
        while let Some(frame) = self.waiting.pop_front() {
            let length = frame.bytes.len();
            match self.frames.try_send(frame) {
                Ok(()) => self.waiting_bytes -= length,
                Err(TrySendError::Full(frame)) => {
                    self.waiting.push_front(frame);
                    break;
                }
                Err(TrySendError::Disconnected(frame)) => {
                    self.waiting.push_front(frame);
                    return Err("spool-gone");
                }
            }
        }
        Ok(())
    }

    /// The end: waits until the spool's thread has taken what waits for it.
    pub(crate) fn finish(&mut self) {
        for frame in self.waiting.drain(..) {
            let events = frame.events;
            if self.frames.send(frame).is_err() {
                tracing::error!(events, "a frame is lost: the spool's thread is gone");
            }
        }
        self.waiting_bytes = 0;
    }
}

#[cfg(test)]
mod tests;
