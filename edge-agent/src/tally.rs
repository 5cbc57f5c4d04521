//! The agent's own part of the loss ledger: what became of every record, by probe and reason.
//!
//! Every record that is taken from the ring ends in exactly one line. Called wherever a record's fate is decided;
//! emptied into each batch.

use std::collections::HashMap;

use tapio_schemas::ledger::{Fate, Ledger, Stage};

/// Different lines; further ones share one per fate.
const LINES_MAX: usize = 512;

/// The counts since the last batch.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    lines: HashMap<(Stage, Fate, &'static str, &'static str), u64>,
}

impl Tally {
    /// Counts records of the capture stage.
    pub(crate) fn add(&mut self, fate: Fate, probe: &'static str, reason: &'static str, count: u64) {
        self.add_at(Stage::Capture, fate, probe, reason, count);
    }

    /// Counts at any stage.
    pub(crate) fn add_at(
        &mut self,
        stage: Stage,
        fate: Fate,
        subject: &'static str,
        reason: &'static str,
        count: u64,
    ) {
        if count == 0 {
            return;
        }
        let line = (stage, fate, subject, reason);
        let line = if self.lines.len() < LINES_MAX || self.lines.contains_key(&line) {
            line
        } else {
            (stage, fate, "other", "other")
        };
        let known = self.lines.entry(line).or_insert(0);
        *known = known.saturating_add(count);
    }

    /// Takes counts of the capture stage back that were told too early, and will be told again.
    pub(crate) fn withhold(&mut self, fate: Fate, probe: &'static str, count: u64) {
        if let Some(known) = self.lines.get_mut(&(Stage::Capture, fate, probe, "")) {
            *known = known.saturating_sub(count);
        }
    }

    /// Moves all counts into a batch's ledger.
    pub(crate) fn drain_into(&mut self, ledger: &mut Ledger) {
        let mut lines: Vec<_> = self.lines.drain().collect();
        lines.sort_unstable_by_key(|(line, _)| *line);
        for ((stage, fate, subject, reason), count) in lines {
            ledger.add(stage, fate, subject, reason, count);
        }
    }

    /// All counts since the last batch.
    pub(crate) fn lines(&self) -> impl Iterator<Item = ((Stage, Fate, &'static str, &'static str), u64)> {
        self.lines.iter().map(|(line, count)| (*line, *count))
    }

    /// What was lost at the agent's own stages.
    pub(crate) fn lost(&self) -> u64 {
        self.lines.iter().filter(|((_, fate, ..), _)| *fate == Fate::Lost).map(|(_, count)| count).sum()
    }

    #[cfg(test)]
    pub(crate) fn total(&self) -> u64 {
        self.lines.values().sum()
    }
}
