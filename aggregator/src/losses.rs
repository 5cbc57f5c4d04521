//! The aggregator's own ledger: what its stages carried and lost since it was last written down.
//!
//! Counted by every stage; taken at intervals and spooled like a frame, so that it is stored exactly once too. Lines
//! are few: stages and reasons are closed sets, and subjects are those or named by the rules in force.

use std::{
    borrow::Cow,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tapio_daemon::Registry;
use tapio_schemas::{
    ledger::{Fate, Ledger, Stage},
    units::UnixMicros,
};

/// What was counted since the last [`Losses::take`], and in all for the metrics.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    ledger: Mutex<Ledger>,
    items: Family<Line, Counter>,
}

/// A line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Line {
    stage: &'static str,
    fate: &'static str,
    subject: Cow<'static, str>,
    reason: &'static str,
}

impl Losses {
    /// Counts from `now` on.
    pub(crate) fn new(now: UnixMicros) -> Self {
        let ledger = Mutex::new(Ledger { since: now, until: now, entries: Vec::new() });
        Self { ledger, items: Family::default() }
    }

    /// The same, and what is counted is a metric too.
    pub(crate) fn metered(mut self, registry: &Registry) -> Self {
        self.items = registry.subsystem("ledger").register(
            "items",
            "What each stage carried on, folded, filtered and lost, as the ledger tells it",
            self.items,
        );
        self
    }

    /// Counts what was handed on.
    pub(crate) fn carried(&self, stage: Stage, subject: &'static str, count: u64) {
        self.count(stage, Fate::Carried, subject, "", count);
    }

    /// Counts what was lost, and why.
    pub(crate) fn lost(&self, stage: Stage, subject: &'static str, reason: &'static str, count: u64) {
        self.count(stage, Fate::Lost, subject, reason, count);
    }

    /// Counts what was lost of something that the rules name.
    pub(crate) fn lost_of(&self, stage: Stage, subject: String, reason: &'static str, count: u64) {
        self.count(stage, Fate::Lost, subject, reason, count);
    }

    /// Counts what came twice and was handed on once.
    pub(crate) fn folded(&self, stage: Stage, subject: &'static str, reason: &'static str, count: u64) {
        self.count(stage, Fate::Folded, subject, reason, count);
    }

    fn count(
        &self,
        stage: Stage,
        fate: Fate,
        subject: impl Into<Cow<'static, str>>,
        reason: &'static str,
        count: u64,
    ) {
        let subject = subject.into();
        self.lock().add(stage, fate, &subject, reason, count);
        let line = Line { stage: stage.as_str(), fate: fate.as_str(), subject, reason };
        self.items.get_or_create(&line).inc_by(count);
    }

    /// The ledger up to `now`, if it has any line; counting goes on with an empty one.
    pub(crate) fn take(&self, now: UnixMicros) -> Option<Ledger> {
        let mut ledger = self.lock();
        if ledger.entries.is_empty() {
            return None;
        }
        ledger.until = now;
        Some(std::mem::replace(&mut *ledger, Ledger { since: now, until: now, entries: Vec::new() }))
    }

    /// Puts a ledger back that could not be written down.
    pub(crate) fn put_back(&self, taken: Ledger) {
        let mut ledger = self.lock();
        ledger.since = taken.since.min(ledger.since);
        for entry in taken.entries {
            ledger.add(entry.stage, entry.fate, &entry.subject, &entry.reason, entry.count);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
