//! What the shelf could not keep, by reason, until the ledger and the metrics have it.
//!
//! Written by the spool's thread and the uplink, taken by the capture thread into the next frame's ledger.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use tapio_schemas::ledger::LedgerEntry;

/// Why a frame did not stay until it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The spool did not take it.
    Refused,
    /// The quota forced it out.
    Quota,
    /// It is of a life of this node under another name.
    OtherSource,
    /// It was spooled, and was gone when the spool had to be opened again.
    Damaged,
    /// What was spooled is no frame that this version reads.
    NoFrame,
    /// It is longer than the wire carries.
    TooLarge,
}

impl Loss {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Refused, Self::Quota, Self::OtherSource, Self::Damaged, Self::NoFrame, Self::TooLarge];

    /// The reason in the ledger and in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Refused => "spool-refused",
            Self::Quota => "quota",
            Self::OtherSource => "other-source",
            Self::Damaged => "spool-damaged",
            Self::NoFrame => "no-frame",
            Self::TooLarge => "frame-too-large",
        }
    }
}

#[derive(Debug, Default)]
struct Count {
    /// Since the start.
    frames: AtomicU64,
    /// Not yet in a ledger.
    untold: AtomicU64,
}

/// What was lost.
#[derive(Debug, Default)]
pub struct Losses {
    counts: [Count; Loss::ALL.len()],
    /// Lines of the ledgers of refused frames, each once: as many as there are subjects and reasons.
    untold: Mutex<Vec<LedgerEntry>>,
}

impl Losses {
    /// Counts a frame of so many events.
    pub fn add(&self, loss: Loss, events: u32) {
        let Some(count) = self.counts.get(loss as usize) else { return };
        count.frames.fetch_add(1, Ordering::Relaxed);
        // How many events were in what cannot be read is not known: it counts as one.
        let events = if loss == Loss::NoFrame { 1 } else { u64::from(events) };
        count.untold.fetch_add(events, Ordering::Relaxed);
    }

    /// What is to be told in the ledger: subject, reason, count. It is told once.
    pub fn take(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        Loss::ALL.into_iter().zip(&self.counts).map(|(loss, count)| {
            let subject = if loss == Loss::NoFrame { "frames" } else { "events" };
            (subject, loss.label(), count.untold.swap(0, Ordering::Relaxed))
        })
    }

    /// Keeps what a refused frame would have told for the next.
    pub fn tell_again(&self, ledger: Vec<LedgerEntry>) {
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in ledger {
            let key = |entry: &LedgerEntry| (entry.stage, entry.fate);
            let known = untold.iter_mut().find(|known| {
                key(known) == key(&entry) && known.subject == entry.subject && known.reason == entry.reason
            });
            match known {
                Some(known) => known.count = known.count.saturating_add(entry.count),
                None => untold.push(entry),
            }
        }
    }

    /// What refused frames would have told. It is told once.
    pub fn take_untold(&self) -> Vec<LedgerEntry> {
        std::mem::take(&mut self.untold.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Frames lost since the start.
    pub fn frames(&self, loss: Loss) -> u64 {
        self.counts.get(loss as usize).map_or(0, |count| count.frames.load(Ordering::Relaxed))
    }
}
