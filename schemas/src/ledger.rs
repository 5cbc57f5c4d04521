//! The loss ledger: what every stage took in, folded, filtered and lost, by reason. It travels with the data.
//!
//! The law of each stage is `taken = carried + folded + filtered + lost`. Counts in a frame are of the time since the
//! source's frame before, so that sums over frames are totals and a missing frame is visible as a gap.

use serde::{Deserialize, Serialize};

use crate::{intent::coded, units::UnixMicros};

coded! {
    /// Where on the road something was counted.
    Stage {
        /// Of a stage that this version does not know.
        #[default]
        0 Unknown "unknown",
        /// The hooks in the kernel, until the record lies in the ring.
        1 Kernel "kernel",
        /// From the ring to attributed events.
        2 Capture "capture",
        /// From events to a batch.
        3 Batch "batch",
        /// The node's spool.
        4 EdgeSpool "edge-spool",
        /// The aggregator's intake.
        5 Intake "intake",
        /// The aggregator's spool and the way into the store.
        6 Store "store",
        /// The engine.
        7 Engine "engine",
    }
}

coded! {
    /// What became of the things counted.
    Fate {
        /// Of a fate that this version does not know.
        #[default]
        0 Unknown "unknown",
        /// Handed on to the next stage.
        1 Carried "carried",
        /// Counted into another that was handed on.
        2 Folded "folded",
        /// Not wanted, by rule or configuration.
        3 Filtered "filtered",
        /// Wanted and not handed on.
        4 Lost "lost",
    }
}

/// One line of a ledger.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LedgerEntry {
    /// Where.
    pub stage: Stage,
    /// What became of them.
    pub fate: Fate,
    /// The probe or lane that they belong to.
    pub subject: String,
    /// Why, for example `ring-full`; empty where the fate says it all.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// The ledger of a span of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ledger {
    /// From when.
    pub since: UnixMicros,
    /// Until when.
    pub until: UnixMicros,
    /// Its lines; a line not present counts zero.
    pub entries: Vec<LedgerEntry>,
}

/// What was lost in the window of a verdict, and out of how many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LossSummary {
    /// Records that the kernel hooks wanted to hand on in the window.
    pub records: u64,
    /// How many of them, or of what was made of them, were lost.
    pub lost: u64,
    /// The losses by stage and reason, largest first.
    pub by_reason: Vec<LedgerEntry>,
    /// Sources whose ledger of the window did not arrive or has a gap: their losses are not known.
    pub unknown_sources: Vec<String>,
}

impl Ledger {
    /// Counts `count` more of the line (stage, fate, subject, reason).
    pub fn add(&mut self, stage: Stage, fate: Fate, subject: &str, reason: &str, count: u64) {
        if count == 0 {
            return;
        }
        let same = |entry: &&mut LedgerEntry| {
            entry.stage == stage && entry.fate == fate && entry.subject == subject && entry.reason == reason
        };
        if let Some(entry) = self.entries.iter_mut().find(same) {
            entry.count = entry.count.saturating_add(count);
        } else {
            self.entries.push(LedgerEntry {
                stage,
                fate,
                subject: subject.to_owned(),
                reason: reason.to_owned(),
                count,
            });
        }
    }

    /// The sum of the lines with this stage and fate.
    #[must_use]
    pub fn total(&self, stage: Stage, fate: Fate) -> u64 {
        let of = |entry: &&LedgerEntry| entry.stage == stage && entry.fate == fate;
        self.entries.iter().filter(of).map(|entry| entry.count).sum()
    }

    /// The sum of all losses, whatever the stage.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.fate == Fate::Lost).map(|entry| entry.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: losses of one reason are counted twice, others once, and nothing of a third.
    /// Guarantees: equal lines add up, zero makes no line, sums are by fate.
    #[test]
    fn equal_lines_add_up() {
        let mut ledger = Ledger::default();
        ledger.add(Stage::Kernel, Fate::Lost, "tcp-state", "ring-full", 2);
        ledger.add(Stage::Kernel, Fate::Lost, "tcp-state", "ring-full", 3);
        ledger.add(Stage::Kernel, Fate::Carried, "tcp-state", "", 10);
        ledger.add(Stage::Kernel, Fate::Lost, "payload", "ring-full", 0);
        assert_eq!(ledger.entries.len(), 2);
        assert_eq!((ledger.lost(), ledger.total(Stage::Kernel, Fate::Carried)), (5, 10));
    }
}
