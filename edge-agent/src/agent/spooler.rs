//! The thread that owns the disk's delays: writes frames to the shelf and does there what is due.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use prometheus_client::metrics::gauge::Gauge;
use tapio_daemon::{Progress, Registry, metrics::Drops, with_causes};
use tapio_kernel_abi::ProbeId;
use tapio_schemas::ledger::{Fate, LedgerEntry, Stage};
use tapio_spool::SpoolError;
use tokio_util::sync::CancellationToken;

use crate::{
    capture::Shared,
    outgoing::Outbound,
    pipeline::{NO_AGENT, READING_DROPPED},
    probes::{self, Earlier, KernelLine, Mark, RingPlace},
    shelf::{Loss, Losses, Shelf},
};

/// How long a turn waits for a frame.
const TURN: Duration = Duration::from_millis(500);

/// What the spool's thread counts.
pub(super) struct Metrics {
    frames: Gauge<u64, AtomicU64>,
    lost_frames: Drops,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let registry = registry.subsystem("spool");
        Self {
            frames: registry.register("frames", "Frames that are not yet stored", Gauge::default()),
            lost_frames: registry.drops("lost_frames", "Frames that were not kept until they were stored"),
        }
    }

    fn update(&self, shelf: &Shelf, losses: &Losses) {
        self.frames.set(shelf.frames());
        for loss in Loss::ALL {
            let counted = self.lost_frames.get(loss.label());
            self.lost_frames.add(loss.label(), losses.frames(loss).saturating_sub(counted));
        }
    }
}

/// The thread.
pub(super) struct Spooler {
    pub(super) outbound: Receiver<Outbound>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) losses: Arc<Losses>,
    pub(super) metrics: Metrics,
    pub(super) progress: Progress,
    /// Cancelled when the last frame is in the spool.
    pub(super) finished: CancellationToken,
    pub(super) shared: Arc<Shared>,
    /// Where is written down what of the kernel's records is in the spool, if those outlive the agent: ring by ring.
    pub(super) marks: VecDeque<Marks>,
    /// The ring that the first of them is of.
    pub(super) ring: u32,
}

/// What is told of one ring by the frames in the spool.
pub(super) struct Marks {
    progress: probes::Progress,
    /// By all that were appended.
    told: Mark,
    /// Records that the agent had taken of rings before this one and not told: its ledgers tell them.
    carried: RingPlace,
    /// What is removed when all is told.
    earlier: Option<Earlier>,
}

impl Marks {
    pub(super) fn new(progress: probes::Progress, told: Mark, earlier: Option<Earlier>) -> Self {
        Self { progress, told, carried: RingPlace::default(), earlier }
    }

    /// All of the ring is told, but for what the agent still holds of it.
    fn end(self, next: &mut Self) {
        let Self { told, mut carried, earlier, .. } = self;
        for (carried, (taken, accounted)) in
            carried.taken.iter_mut().zip(told.reached.place.taken.into_iter().zip(told.accounted))
        {
            *carried = taken.saturating_sub(accounted);
        }
        next.carried = carried;
        if let Some(error) = earlier.and_then(|earlier| earlier.remove().err()) {
            let error = with_causes(&error);
            tracing::warn!(error, "what another version pinned cannot be removed");
        }
    }

    /// What is told once `frame` is appended; it is written down before.
    fn prepare(&mut self, frame: &Outbound) -> Mark {
        let mut mark =
            Mark { frame: frame.position, until_micros: frame.until.0, reached: frame.reached, ..self.told };
        for (taken, carried) in mark.reached.place.taken.iter_mut().zip(self.carried.taken) {
            *taken = taken.saturating_add(carried);
        }
        frame.ledger.iter().for_each(|entry| tell(&mut mark, entry));
        if let Err(error) = self.progress.prepare(&mark) {
            tracing::warn!(%error, "how far the spool is cannot be written down");
        }
        mark
    }

    fn confirm(&mut self, mark: Mark) {
        self.told = mark;
        if let Err(error) = self.progress.confirm(&mark) {
            tracing::warn!(%error, "how far the spool is cannot be written down");
        }
    }
}

/// Adds a line of a ledger.
fn tell(mark: &mut Mark, LedgerEntry { stage, fate, subject, reason, count }: &LedgerEntry) {
    let Some(probe) = ProbeId::ALL.into_iter().find(|probe| probe.name() == subject) else { return };
    let line = match (stage, fate, reason.as_str()) {
        // Of no record.
        (_, _, READING_DROPPED) => return,
        (Stage::Capture, ..) => {
            mark.add_accounted(probe, *count);
            return;
        }
        (Stage::Kernel, Fate::Carried, _) => KernelLine::Emitted,
        (Stage::Kernel, Fate::Folded, _) => KernelLine::Folded,
        (Stage::Kernel, Fate::Filtered, _) => KernelLine::Filtered,
        (Stage::Kernel, Fate::Lost, "ring-full" | NO_AGENT) => KernelLine::RingFull,
        (Stage::Kernel, Fate::Lost, "unreadable") => KernelLine::Unreadable,
        (Stage::Kernel, Fate::Lost, "recursion") => KernelLine::Missed,
        _ => return,
    };
    mark.add_kernel(probe, line, *count);
}

impl Spooler {
    /// Works until the capture thread, which makes the frames, is gone.
    pub(super) fn run(mut self) {
        // Also when this thread panics: without it nothing is spooled any more.
        let _finished = self.finished.clone().drop_guard();
        let mut is_well = true;
        loop {
            let (appended, is_frame) = match self.outbound.recv_timeout(TURN) {
                Ok(frame) => (self.append(frame), true),
                Err(RecvTimeoutError::Timeout) => (Ok(()), false),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            match appended.and_then(|()| self.shelf.tend(Instant::now())) {
                // That nothing fails is not enough: only a frame that is taken shows that there is room.
                Ok(()) if !is_well && is_frame => {
                    is_well = true;
                    tracing::info!("the spool takes frames again");
                    self.progress.clear();
                }
                Ok(()) => {}
                Err(error) => {
                    // Once: the frames that are lost meanwhile are in the ledger and in the metrics.
                    let error = with_causes(&error);
                    if std::mem::replace(&mut is_well, false) {
                        tracing::error!(
                            error,
                            "the spool's disk fails: frames that it does not take are lost, and counted"
                        );
                    }
                    self.progress.fault(format!(
                        "the spool takes no frames, those that are made are lost and counted: {error}"
                    ));
                }
            }
            self.metrics.update(&self.shelf, &self.losses);
            self.progress.tick();
        }
        self.progress.finish();
    }

    /// Appends a frame. Only then may the kernel forget what it tells.
    fn append(&mut self, frame: Outbound) -> Result<(), SpoolError> {
        while self.ring < frame.reached.ring
            && let Some(ended) = self.marks.pop_front()
        {
            self.ring += 1;
            if let Some(next) = self.marks.front_mut() {
                ended.end(next);
            }
        }
        let mark = self.marks.front_mut().map(|marks| marks.prepare(&frame));
        let Outbound { position, events, bytes, ledger, reached, .. } = frame;
        if let Err(error) = self.shelf.append(position, events, &bytes, Instant::now()) {
            self.losses.tell_again(ledger);
            return Err(error);
        }
        if let (Some(marks), Some(mark)) = (self.marks.front_mut(), mark) {
            marks.confirm(mark);
        }
        self.shared.set_spooled(reached);
        if self.marks.len() == 1 {
            // Of the maps that the sampler drains.
            self.shared.told_drain.store(reached.drained, Ordering::Release);
        }
        Ok(())
    }
}
