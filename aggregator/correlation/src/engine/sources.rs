//! What frames say of their sources: how far each was heard, what it lost, where a ledger is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use tapio_schemas::{
    ids::{EventId, Incarnation, Sequence, SourceId},
    ledger::{Fate, LedgerEntry, LossSummary, Stage},
    observation::SourceProgress,
    units::{Micros, UnixMicros},
};

/// The most lines of losses that a verdict tells.
const REASONS_MAX: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Frame {
    since: UnixMicros,
    records: u64,
    lost: Vec<LedgerEntry>,
}

/// What is known of one source.
#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    frames: BTreeMap<(UnixMicros, EventId), Frame>,
    latest: EventId,
    /// The node's name.
    pub(super) node: String,
    /// How wrong its clock may be.
    pub(super) clock_error: Micros,
    /// The probes that do not work there.
    pub(super) missing_probes: Vec<String>,
    /// When its present life began to observe.
    pub(super) began: UnixMicros,
    heard_until: UnixMicros,
    forgotten: bool,
}

/// All sources.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    sources: BTreeMap<SourceId, Source>,
    frames: usize,
    evicted: u64,
}

/// The losses of one source in a window.
#[derive(Clone, Debug, Default)]
pub(super) struct Losses {
    pub(super) records: u64,
    pub(super) lost: Vec<LedgerEntry>,
    /// Whether a part of the window has no ledger.
    pub(super) unknown: bool,
}

impl Sources {
    pub(super) fn insert(&mut self, progress: &SourceProgress, most: usize) {
        let SourceProgress { id, source, node, ledger, clock_error, missing_probes } = progress;
        let entry = self.sources.entry(*source).or_default();
        let kernel = |fate| ledger.total(Stage::Kernel, fate);
        let frame = Frame {
            since: ledger.since,
            records: kernel(Fate::Carried).saturating_add(kernel(Fate::Lost)),
            lost: ledger.entries.iter().filter(|entry| entry.fate == Fate::Lost).cloned().collect(),
        };
        let life = |id: &EventId| id.frame.incarnation;
        let first_of_life = entry.frames.is_empty() && entry.heard_until == UnixMicros(0);
        if first_of_life || life(id) > life(&entry.latest) {
            entry.began = ledger.since;
        } else if life(id) == life(&entry.latest) {
            entry.began = entry.began.min(ledger.since);
        }
        if first_of_life || *id >= entry.latest {
            entry.latest = *id;
            entry.node.clone_from(node);
            entry.clock_error = *clock_error;
            entry.missing_probes.clone_from(missing_probes);
        }
        entry.heard_until = entry.heard_until.max(ledger.until);
        if entry.frames.insert((ledger.until, *id), frame).is_none() {
            self.frames += 1;
        }
        if self.frames > most {
            self.evict_to(most.saturating_sub(most / 16));
        }
    }

    fn evict_to(&mut self, count: usize) {
        let mut ends: Vec<UnixMicros> = self
            .sources
            .values()
            .flat_map(|source| source.frames.keys().map(|(until, _id)| *until))
            .collect();
        ends.sort_unstable();
        let Some(cut) = ends.get(self.frames.saturating_sub(count)).copied() else { return };
        let before = self.frames;
        self.forget_before(cut);
        self.evicted += u64::try_from(before.saturating_sub(self.frames)).unwrap_or(u64::MAX);
    }

    pub(super) fn merge(&mut self, other: &Self, most: usize) {
        for (id, source) in &other.sources {
            let entry = self.sources.entry(*id).or_default();
            let (mine, theirs) = (entry.latest.frame.incarnation, source.latest.frame.incarnation);
            let empty = entry.frames.is_empty() && entry.heard_until == UnixMicros(0);
            if empty || theirs > mine {
                entry.began = source.began;
            } else if theirs == mine {
                entry.began = entry.began.min(source.began);
            }
            if empty || source.latest >= entry.latest {
                entry.latest = source.latest;
                entry.node.clone_from(&source.node);
                entry.clock_error = source.clock_error;
                entry.missing_probes.clone_from(&source.missing_probes);
            }
            entry.heard_until = entry.heard_until.max(source.heard_until);
            entry.forgotten |= source.forgotten;
            for (key, frame) in &source.frames {
                if entry.frames.insert(*key, frame.clone()).is_none() {
                    self.frames += 1;
                }
            }
        }
        if self.frames > most {
            self.evict_to(most.saturating_sub(most / 16));
        }
    }

    /// The event time up to which every live source was heard. Without any, the time that silence is granted.
    pub(super) fn watermark(&self, now: UnixMicros, silence: Micros) -> UnixMicros {
        let oldest = now.minus(silence);
        let live = self.sources.values().map(|source| source.heard_until).filter(|until| *until >= oldest);
        live.min().unwrap_or(oldest)
    }

    pub(super) fn forget_before(&mut self, horizon: UnixMicros) {
        for source in self.sources.values_mut() {
            while let Some(first) = source.frames.first_entry() {
                if first.key().0 >= horizon {
                    break;
                }
                first.remove();
                source.forgotten = true;
                self.frames = self.frames.saturating_sub(1);
            }
        }
        self.sources.retain(|_id, source| source.heard_until >= horizon);
    }

    pub(super) fn get(&self, id: SourceId) -> Option<&Source> {
        self.sources.get(&id)
    }

    /// The losses of one source in `[from, to]`, as far as the watermark allows to say.
    pub(super) fn losses(&self, id: SourceId, from: UnixMicros, to: UnixMicros) -> Losses {
        let Some(source) = self.sources.get(&id) else {
            return Losses { unknown: true, ..Losses::default() };
        };
        let mut losses = Losses::default();
        let start = (from, EventId::default());
        let mut previous = source
            .frames
            .range((Bound::Unbounded, Bound::Excluded(start)))
            .next_back()
            .map(|((until, id), _frame)| (*until, *id));
        for ((until, id), frame) in source.frames.range(start..) {
            let hole_from = match previous {
                Some((_until, before)) if follows(&before, id) => None,
                Some((until, _before)) => Some(until),
                None if id.frame.sequence > Sequence(1) && !source.forgotten => Some(UnixMicros(0)),
                None => None,
            };
            losses.unknown |=
                hole_from.is_some_and(|hole| hole < frame.since && frame.since >= from && hole <= to);
            if frame.since > to {
                return losses;
            }
            previous = Some((*until, *id));
            losses.records = losses.records.saturating_add(frame.records);
            losses.lost.extend(frame.lost.iter().cloned());
        }
        losses.unknown |= source.heard_until < to;
        losses
    }

    /// The losses of several sources in `[from, to]`, summed by reason, largest first.
    pub(super) fn summary(&self, of: &BTreeSet<SourceId>, from: UnixMicros, to: UnixMicros) -> LossSummary {
        let mut summary = LossSummary::default();
        let mut by_reason: BTreeMap<(Stage, String, String), u64> = BTreeMap::new();
        for id in of {
            let losses = self.losses(*id, from, to);
            summary.records = summary.records.saturating_add(losses.records);
            for entry in losses.lost {
                summary.lost = summary.lost.saturating_add(entry.count);
                let count = by_reason.entry((entry.stage, entry.subject, entry.reason)).or_default();
                *count = count.saturating_add(entry.count);
            }
            if losses.unknown {
                let name =
                    self.sources.get(id).map(|source| source.node.as_str()).filter(|name| !name.is_empty());
                summary.unknown_sources.push(name.map_or_else(|| id.to_string(), str::to_owned));
            }
        }
        let entry = |((stage, subject, reason), count)| LedgerEntry {
            stage,
            fate: Fate::Lost,
            subject,
            reason,
            count,
        };
        summary.by_reason = by_reason.into_iter().map(entry).collect();
        summary.by_reason.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.cmp(b)));
        summary.by_reason.truncate(REASONS_MAX);
        summary.unknown_sources.sort();
        summary
    }

    pub(super) const fn frames(&self) -> usize {
        self.frames
    }

    pub(super) const fn evicted(&self) -> u64 {
        self.evicted
    }
}

/// Whether `next` is the frame directly after `before`.
fn follows(before: &EventId, next: &EventId) -> bool {
    let (Incarnation(a), Incarnation(b)) = (before.frame.incarnation, next.frame.incarnation);
    a == b && before.frame.sequence.0.checked_add(1) == Some(next.frame.sequence.0)
}
