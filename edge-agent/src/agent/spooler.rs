//! The thread that owns the disk's delays: writes frames to the shelf and does there what is due.

use std::{
    sync::{
        Arc,
        atomic::AtomicU64,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use prometheus_client::metrics::gauge::Gauge;
use tapio_daemon::{Progress, Registry, metrics::Drops, with_causes};
use tokio_util::sync::CancellationToken;

use crate::{
    outgoing::Outbound,
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
}

impl Spooler {
    /// Works until the capture thread, which makes the frames, is gone.
    pub(super) fn run(self) {
        // Also when this thread panics: without it nothing is spooled any more.
        let _finished = self.finished.clone().drop_guard();
        let mut is_well = true;
        loop {
            let (appended, is_frame) = match self.outbound.recv_timeout(TURN) {
                Ok(Outbound { position, events, bytes, ledger }) => {
                    let appended = self.shelf.append(position, events, &bytes, Instant::now());
                    if appended.is_err() {
                        self.losses.tell_again(ledger);
                    }
                    (appended, true)
                }
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
}
