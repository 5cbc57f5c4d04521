//! Records and losses of a node over the last minutes, in steps.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use tapio_schemas::{
    ledger::{Fate, Ledger, LedgerEntry, Stage},
    units::UnixMicros,
};

/// How far back is told.
pub(crate) const ACTIVITY_SECS: u64 = 600;
/// The length of a step.
pub(crate) const STEP_SECS: u64 = 10;
/// Steps that are kept.
const STEPS_MAX: usize = 60;
/// Lines of losses in a step; a node's stages and reasons are few.
const LINES_MAX: usize = 32;

/// What happened in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    /// Its beginning.
    pub(crate) at: UnixMicros,
    /// Records that the kernel's hooks wanted to hand on.
    pub(crate) records: u64,
    /// How many of them, or of what was made of them, were lost.
    pub(crate) lost: u64,
}

/// The steps in which anything happened, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Activity {
    steps: VecDeque<(Step, Vec<LedgerEntry>)>,
    /// Sums over `steps`.
    records: u64,
    lost: u64,
}

impl Activity {
    /// Adds the ledger of a frame that arrived at `now`.
    pub(super) fn add(&mut self, ledger: &Ledger, now: UnixMicros) {
        let step = STEP_SECS * 1_000_000;
        let at = UnixMicros(now.0 / step * step);
        if self.steps.back().is_none_or(|(last, _losses)| last.at < at) {
            self.steps.push_back((Step { at, records: 0, lost: 0 }, Vec::new()));
        }
        while self.steps.len() > STEPS_MAX {
            self.forget_first();
        }
        let Some((step, losses)) = self.steps.back_mut() else { return };
        let kernel = |fate| ledger.total(Stage::Kernel, fate);
        let (records, lost) = (kernel(Fate::Carried) + kernel(Fate::Lost), ledger.lost());
        step.records += records;
        step.lost += lost;
        self.records += records;
        self.lost += lost;
        for entry in ledger.entries.iter().filter(|entry| entry.fate == Fate::Lost) {
            let same = |known: &&mut LedgerEntry| {
                (known.stage, &known.subject, &known.reason) == (entry.stage, &entry.subject, &entry.reason)
            };
            if let Some(known) = losses.iter_mut().find(same) {
                known.count = known.count.saturating_add(entry.count);
            } else if losses.len() < LINES_MAX {
                losses.push(entry.clone());
            }
        }
    }

    /// Records and losses up to `now`; what is over by then is forgotten.
    pub(super) fn totals(&mut self, now: UnixMicros) -> (u64, u64) {
        while self.steps.front().is_some_and(|(step, _losses)| is_over(step, now)) {
            self.forget_first();
        }
        (self.records, self.lost)
    }

    fn forget_first(&mut self) {
        if let Some((step, _losses)) = self.steps.pop_front() {
            self.records -= step.records;
            self.lost -= step.lost;
        }
    }

    /// The losses by stage and reason, the most first.
    pub(super) fn losses(&self, now: UnixMicros) -> Vec<LedgerEntry> {
        let mut sums: BTreeMap<(Stage, &str, &str), LedgerEntry> = BTreeMap::new();
        for entry in self.recent(now).flat_map(|(_step, losses)| losses) {
            let key = (entry.stage, entry.subject.as_str(), entry.reason.as_str());
            let sum = sums.entry(key).or_insert_with(|| LedgerEntry { count: 0, ..entry.clone() });
            sum.count = sum.count.saturating_add(entry.count);
        }
        let mut losses: Vec<_> = sums.into_values().collect();
        losses.sort_by_key(|entry| std::cmp::Reverse(entry.count));
        losses
    }

    /// The steps up to `now`.
    pub(super) fn steps(&self, now: UnixMicros) -> Vec<Step> {
        self.recent(now).map(|(step, _losses)| *step).collect()
    }

    fn recent(&self, now: UnixMicros) -> impl Iterator<Item = &(Step, Vec<LedgerEntry>)> {
        self.steps.iter().filter(move |(step, _losses)| !is_over(step, now))
    }
}

fn is_over(step: &Step, now: UnixMicros) -> bool {
    now.since(step.at).0 > ACTIVITY_SECS * 1_000_000
}
