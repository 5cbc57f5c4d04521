//! The thread between the intake and the subscribers: opens frames again, selects, makes messages.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tapio_daemon::Progress;
use tapio_wire::frame::{FrameDecoder, FrameFault, FrameLimits};
use tokio::sync::mpsc;

use super::{Arrived, Live, MissedReason, filter::Scratch};

/// The thread.
pub(crate) struct Distributor {
    live: Live,
    queue: mpsc::Receiver<Arrived>,
    /// Events that the intake could not offer, and has not told of.
    left_out: Arc<AtomicU64>,
    cluster: String,
    decoder: FrameDecoder,
    scratch: Scratch,
    rows: Vec<u32>,
}

impl Distributor {
    pub(super) fn new(
        live: Live,
        queue: mpsc::Receiver<Arrived>,
        left_out: Arc<AtomicU64>,
        cluster: String,
    ) -> Result<Self, FrameFault> {
        let decoder = FrameDecoder::new(FrameLimits::default())?;
        Ok(Self { live, queue, left_out, cluster, decoder, scratch: Scratch::default(), rows: Vec::new() })
    }

    /// Works until the intake has ended.
    pub(crate) fn run(mut self, progress: Progress) {
        progress.idle();
        while let Some(arrived) = self.queue.blocking_recv() {
            progress.busy();
            self.distribute(&arrived);
            progress.tick();
            if self.queue.is_empty() {
                self.tell_left_out();
                progress.idle();
            }
        }
        progress.finish();
    }

    /// Does what waits.
    #[cfg(test)]
    pub(super) fn work_off(&mut self) {
        while let Ok(arrived) = self.queue.try_recv() {
            self.distribute(&arrived);
        }
        self.tell_left_out();
    }

    fn tell_left_out(&self) {
        self.live.missed_by_all(MissedReason::ServerBusy, self.left_out.swap(0, Ordering::Relaxed));
    }

    fn distribute(&mut self, arrived: &Arrived) {
        let subscribers = self.live.subscribers.load();
        if subscribers.is_empty() {
            return;
        }
        self.live.missed_by_all(MissedReason::ServerBusy, arrived.left_out_before);
        let Ok((_header, view)) = self.decoder.decode(&arrived.bytes, None) else {
            // The intake opened it, so it can only be memory that is short.
            self.live.missed_by_all(MissedReason::ServerBusy, arrived.events.into());
            return;
        };
        let (node, rows) = (arrived.node.as_str(), &mut self.rows);
        for subscriber in subscribers.iter() {
            subscriber.filter.select(&view, node, &mut self.scratch, rows);
            if !rows.is_empty() {
                let event = |row| tapio_proto::event(view.event(row, arrived.frame), &self.cluster, node);
                subscriber.deliver(rows, event);
            }
        }
    }
}
