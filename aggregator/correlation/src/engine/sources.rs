//! What frames say of their sources: how far each was heard, what it lost, where a ledger is missing.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use tapio_schemas::{
    ids::{EventId, Incarnation, Sequence, SourceId},
    ledger::{Fate, LedgerEntry, LossSummary, Stage},
    observation::SourceProgress,
    units::{Micros, UnixMicros},
};

/// The most lines of losses that a verdict tells.
const REASONS_MAX: usize = 8;

/// Frames that follow each other become one row, in groups of this many by sequence: what a source sends without loss
/// costs little, and how it arrived never shows.
const RUN: u64 = 16;

/// By how much the times of a source's frames may go backwards, where its clock is set.
const DISORDER_MAX: Micros = Micros::from_secs(60);

/// A place in what a source sends.
type Position = (Incarnation, Sequence);

/// What one frame says was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Loss {
    since: UnixMicros,
    until: UnixMicros,
    entry: LedgerEntry,
}

/// A frame, or a full group of frames that follow each other. Losses stay with the frame that told them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    last: Sequence,
    since: UnixMicros,
    until: UnixMicros,
    records: u64,
    lost: Vec<Loss>,
}

/// What is known of one source.
#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    rows: BTreeMap<Position, Row>,
    /// The last frame that is not kept any more, and its end.
    floor: Option<(Position, UnixMicros)>,
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
    is_known: bool,
}

/// All sources.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    sources: BTreeMap<SourceId, Source>,
    rows: usize,
    evicted: u64,
    /// The end of the latest frame that was evicted over budget.
    evicted_until: Option<UnixMicros>,
}

/// What was heard of a source after a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The source.
    pub source: SourceId,
    /// The node's name; empty where nothing is known of the source.
    pub node: String,
    /// Since when it was heard without a gap.
    pub since: UnixMicros,
    /// Until when; zero where nothing is known of it.
    pub until: UnixMicros,
    /// Whether so much was lost that what is looked for may be among it: then `since` is where that ended.
    pub is_lossy: bool,
}

/// Losses among which what is looked for may be.
pub(super) struct Hiding<'a> {
    /// Whether losses of this kind count.
    pub(super) is_of: &'a dyn Fn(&LedgerEntry) -> bool,
    /// As many as that hide it.
    pub(super) enough: u64,
}

/// The losses of one source in a window.
#[derive(Clone, Debug, Default)]
pub(super) struct Losses {
    /// Records of the frames that overlap the window; of full groups of frames as a whole.
    pub(super) records: u64,
    pub(super) lost: Vec<LedgerEntry>,
    /// Whether a part of the window has no ledger.
    pub(super) unknown: bool,
}

impl Source {
    /// Takes what is known of the source, by the latest frame: its life, its node, its clock and probes.
    fn learn(&mut self, from: &Self) {
        let life = |id: &EventId| id.frame.incarnation;
        if !self.is_known || life(&from.latest) > life(&self.latest) {
            self.began = from.began;
        } else if life(&from.latest) == life(&self.latest) {
            self.began = self.began.min(from.began);
        }
        if !self.is_known || from.latest >= self.latest {
            self.latest = from.latest;
            self.node.clone_from(&from.node);
            self.clock_error = from.clock_error;
            self.missing_probes.clone_from(&from.missing_probes);
        }
        self.heard_until = self.heard_until.max(from.heard_until);
        self.is_known = true;
    }

    /// Keeps a row, unless it is kept already or was let go; joins full groups.
    fn put(&mut self, at: Position, row: Row) {
        let (incarnation, sequence) = at;
        let before = self.rows.range(..=at).next_back();
        let is_kept =
            before.is_some_and(|((life, _first), row)| *life == incarnation && row.last >= sequence);
        if is_kept || self.floor.is_some_and(|(floor, _until)| at <= floor) {
            return;
        }
        let inside: Vec<Position> =
            self.rows.range(at..=(incarnation, row.last)).map(|(position, _row)| *position).collect();
        for position in inside {
            self.rows.remove(&position);
        }
        self.rows.insert(at, row);
        // The first frame of a life is number 1.
        let start = sequence.0.saturating_sub(sequence.0.saturating_sub(1) % RUN);
        let group = (incarnation, Sequence(start))..(incarnation, Sequence(start.saturating_add(RUN)));
        let places: Vec<Position> = self.rows.range(group).map(|(position, _row)| *position).collect();
        if u64::try_from(places.len()).unwrap_or(u64::MAX) < RUN {
            return;
        }
        let mut joined: Option<Row> = None;
        for row in places.iter().filter_map(|place| self.rows.remove(place)) {
            if let Some(joined) = &mut joined {
                joined.last = row.last;
                joined.since = joined.since.min(row.since);
                joined.until = joined.until.max(row.until);
                joined.records = joined.records.saturating_add(row.records);
                joined.lost.extend(row.lost);
            } else {
                joined = Some(row);
            }
        }
        if let (Some(first), Some(row)) = (places.first(), joined) {
            self.rows.insert(*first, row);
        }
    }

    /// Until when so much was lost after `from` that what is looked for may be among it.
    fn hidden_until(&self, from: UnixMicros, hiding: &Hiding<'_>) -> Option<UnixMicros> {
        let rows = self.rows.values().rev().take_while(|row| row.until.plus(DISORDER_MAX) >= from);
        let mut lost: Vec<&Loss> = rows
            .flat_map(|row| &row.lost)
            .filter(|loss| loss.until > from && (hiding.is_of)(&loss.entry))
            .collect();
        lost.sort_unstable_by_key(|loss| Reverse(loss.until));
        let mut count: u64 = 0;
        lost.into_iter().find_map(|loss| {
            count = count.saturating_add(loss.entry.count);
            (count >= hiding.enough).then_some(loss.until)
        })
    }

    /// Since when it was heard without a gap up to its last frame, not before `from`.
    fn heard_since(&self, from: UnixMicros) -> UnixMicros {
        let mut later: Option<(Position, UnixMicros)> = None;
        let hole_behind = |position: Position, until: UnixMicros, later: Option<(Position, UnixMicros)>| {
            later
                .filter(|(next, since)| !follows(position, *next) && until < *since)
                .map(|(_next, since)| since)
        };
        for ((incarnation, first), row) in self.rows.iter().rev() {
            if let Some(since) = hole_behind((*incarnation, row.last), row.until, later) {
                return since.max(from);
            }
            if row.since <= from {
                return from;
            }
            later = Some(((*incarnation, *first), row.since));
        }
        // What is not kept any more was heard; of what came before the first frame nothing is known.
        let began = match self.floor {
            Some((position, until)) => hole_behind(position, until, later),
            None => later.map(|(_first, since)| since),
        };
        began.unwrap_or(from).max(from)
    }

    /// Lets go of what ended before `horizon`; gives the number of rows.
    fn forget_before(&mut self, horizon: UnixMicros) -> usize {
        let mut count = 0;
        while let Some(first) = self.rows.first_entry() {
            if first.get().until >= horizon {
                break;
            }
            let ((incarnation, _first), row) = first.remove_entry();
            self.floor = Some(((incarnation, row.last), row.until));
            count += 1;
        }
        count
    }
}

impl Sources {
    pub(super) fn insert(&mut self, progress: &SourceProgress, most: usize) {
        let SourceProgress { id, source, node, ledger, clock_error, missing_probes } = progress;
        let kernel = |fate| ledger.total(Stage::Kernel, fate);
        let lost = ledger.entries.iter().filter(|entry| entry.fate == Fate::Lost);
        let row = Row {
            last: id.frame.sequence,
            since: ledger.since,
            until: ledger.until,
            records: kernel(Fate::Carried).saturating_add(kernel(Fate::Lost)),
            lost: lost
                .map(|entry| Loss { since: ledger.since, until: ledger.until, entry: entry.clone() })
                .collect(),
        };
        let heard = Source {
            latest: *id,
            node: node.clone(),
            clock_error: *clock_error,
            missing_probes: missing_probes.clone(),
            began: ledger.since,
            heard_until: ledger.until,
            ..Source::default()
        };
        let entry = self.sources.entry(*source).or_default();
        entry.learn(&heard);
        let before = entry.rows.len();
        entry.put((id.frame.incarnation, id.frame.sequence), row);
        self.rows = (self.rows + entry.rows.len()).saturating_sub(before);
        self.keep_within(most);
    }

    fn keep_within(&mut self, most: usize) {
        if self.rows <= most {
            return;
        }
        let count = most.saturating_sub(most / 16);
        let mut ends: Vec<UnixMicros> =
            self.sources.values().flat_map(|source| source.rows.values().map(|row| row.until)).collect();
        ends.sort_unstable();
        let Some(cut) = ends.get(self.rows.saturating_sub(count)).copied() else { return };
        for source in self.sources.values_mut() {
            let gone = source.forget_before(cut);
            if gone > 0 {
                self.rows = self.rows.saturating_sub(gone);
                self.evicted = self.evicted.saturating_add(u64::try_from(gone).unwrap_or(u64::MAX));
                self.evicted_until = self.evicted_until.max(source.floor.map(|(_at, until)| until));
            }
        }
    }

    pub(super) fn merge(&mut self, other: &Self, most: usize) {
        for (id, source) in &other.sources {
            let entry = self.sources.entry(*id).or_default();
            entry.learn(source);
            entry.floor = entry.floor.max(source.floor);
            if let Some((floor, _until)) = entry.floor {
                entry.rows.retain(|at, _row| *at > floor);
            }
            for (at, row) in &source.rows {
                entry.put(*at, row.clone());
            }
        }
        self.rows = self.sources.values().map(|source| source.rows.len()).sum();
        self.evicted_until = self.evicted_until.max(other.evicted_until);
        self.keep_within(most);
    }

    /// The event time up to which every live source was heard, at most now. Without any, the time that silence is
    /// granted. A source whose clock runs ahead by more than that decides nothing.
    pub(super) fn watermark(&self, now: UnixMicros, silence: Micros) -> UnixMicros {
        let (oldest, newest) = (now.minus(silence), now.plus(silence));
        let heard = self.sources.values().map(|source| source.heard_until);
        let live = heard.filter(|until| (oldest..=newest).contains(until));
        live.min().unwrap_or(oldest).min(now)
    }

    pub(super) fn forget_before(&mut self, horizon: UnixMicros) {
        for source in self.sources.values_mut() {
            self.rows = self.rows.saturating_sub(source.forget_before(horizon));
        }
        let rows = &mut self.rows;
        self.sources.retain(|_id, source| {
            let stays = source.heard_until >= horizon;
            if !stays {
                *rows = rows.saturating_sub(source.rows.len());
            }
            stays
        });
    }

    pub(super) fn get(&self, id: SourceId) -> Option<&Source> {
        self.sources.get(&id)
    }

    /// What was heard of a source after `from`; where that is less than `least`, gaps and losses in it are not looked
    /// for.
    pub(super) fn heard(&self, id: SourceId, from: UnixMicros, least: Micros, hiding: &Hiding<'_>) -> Heard {
        let Some(source) = self.sources.get(&id) else {
            let (node, until) = (String::new(), UnixMicros(0));
            return Heard { source: id, node, since: from, until, is_lossy: false };
        };
        let (node, until) = (source.node.clone(), source.heard_until);
        if until < from.plus(least) {
            return Heard { source: id, node, since: from, until, is_lossy: false };
        }
        let (gap, hidden) = (source.heard_since(from), source.hidden_until(from, hiding));
        let since = gap.max(hidden.unwrap_or_default());
        Heard { source: id, node, since, until, is_lossy: hidden.is_some() }
    }

    /// The losses of one source in `[from, to]`, as far as the watermark allows to say.
    pub(super) fn losses(&self, id: SourceId, from: UnixMicros, to: UnixMicros) -> Losses {
        let Some(source) = self.sources.get(&id) else {
            return Losses { unknown: true, ..Losses::default() };
        };
        let mut losses = Losses::default();
        let recent = source.rows.iter().rev().take_while(|(_at, row)| row.until.plus(DISORDER_MAX) >= from);
        let start = recent.last().map_or((Incarnation(u64::MAX), Sequence(u64::MAX)), |(at, _row)| *at);
        let before = source.rows.range(..start).next_back();
        let before = before.map(|((incarnation, _first), row)| ((*incarnation, row.last), row.until));
        let mut previous = before.or(source.floor);
        for ((incarnation, first), row) in source.rows.range(start..) {
            let hole_from = match previous {
                Some((before, _until)) if follows(before, (*incarnation, *first)) => None,
                Some((_before, until)) => Some(until),
                None if *first > Sequence(1) => Some(UnixMicros(0)),
                None => None,
            };
            losses.unknown |=
                hole_from.is_some_and(|hole| hole < row.since && row.since >= from && hole <= to);
            previous = Some(((*incarnation, row.last), row.until));
            if row.until >= from && row.since <= to {
                losses.records = losses.records.saturating_add(row.records);
                let inside = row.lost.iter().filter(|loss| loss.until >= from && loss.since <= to);
                losses.lost.extend(inside.map(|loss| loss.entry.clone()));
            }
            if row.since > to.plus(DISORDER_MAX) {
                break;
            }
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

    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    pub(super) const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The time up to which frames were evicted over budget.
    pub(super) const fn evicted_until(&self) -> Option<UnixMicros> {
        self.evicted_until
    }
}

/// Whether `next` is the frame directly after `before`.
fn follows(before: Position, next: Position) -> bool {
    before.0 == next.0 && before.1.0.checked_add(1) == Some(next.1.0)
}

#[cfg(test)]
mod tests {
    use tapio_schemas::{
        ids::{FrameId, Incarnation},
        ledger::Ledger,
    };

    use super::*;

    fn frame(sequence: u64, lost: u64) -> SourceProgress {
        let mut ledger = Ledger {
            since: UnixMicros(sequence * 1_000),
            until: UnixMicros((sequence + 1) * 1_000),
            entries: Vec::new(),
        };
        ledger.add(Stage::Kernel, Fate::Carried, "exec", "", 10);
        ledger.add(Stage::Kernel, Fate::Lost, "exec", "ring-full", lost);
        let source = SourceId::of_name("node-a");
        SourceProgress {
            id: FrameId { source, incarnation: Incarnation(1), sequence: Sequence(sequence) }.row(0),
            source,
            node: "node-a".to_owned(),
            ledger,
            clock_error: Micros(0),
            missing_probes: Vec::new(),
        }
    }

    fn of(frames: impl IntoIterator<Item = u64>) -> Sources {
        let mut sources = Sources::default();
        for sequence in frames {
            sources.insert(&frame(sequence, u64::from(sequence == 70)), 1_000);
        }
        sources
    }

    /// Scenario: a hundred frames in order, backwards, each twice, and merged from two halves that overlap; frame 40 is
    /// missing everywhere.
    /// Guarantees: the same rows and losses in each case; the gap shows where it is and nowhere else; a loss is told of
    /// its own frame only; records are told of whole groups.
    #[test]
    fn groups_of_frames_say_the_same_however_they_come() {
        let all = || (1..=100).filter(|sequence| *sequence != 40);
        let mut merged = of(all().filter(|sequence| sequence % 3 != 0));
        merged.merge(&of(all().filter(|sequence| sequence % 2 == 0 || sequence % 3 == 0)), 1_000);
        merged.merge(&of(all()), 1_000);
        for sources in [of(all()), of(all().rev()), of(all().flat_map(|it| [it, it])), merged] {
            // Five full groups, fifteen around the gap, and the last four.
            assert_eq!(sources.rows(), 5 + 15 + 4);
            let id = SourceId::of_name("node-a");
            let window = |from: u64, to: u64| {
                let losses = sources.losses(id, UnixMicros(from * 1_000), UnixMicros(to * 1_000));
                (losses.records, losses.lost.len(), losses.unknown)
            };
            assert_eq!(window(10, 12), (160, 0, false));
            assert_eq!(window(42, 43), (30, 0, false));
            assert_eq!(window(38, 43), (60, 0, true));
            assert_eq!(window(71, 72).1, 1);
            assert_eq!(window(66, 69), (161, 0, false));
            assert!(window(90, 200).2, "it was not heard so far");
        }
    }

    /// Scenario: the oldest of contiguous frames are forgotten because nobody needs them; later ones come again.
    /// Guarantees: that is no gap, and what was let go does not come back.
    #[test]
    fn what_is_forgotten_is_no_gap() {
        let mut sources = of(1..=50);
        sources.forget_before(UnixMicros(35_000));
        sources.insert(&frame(3, 0), 1_000);
        let losses = sources.losses(SourceId::of_name("node-a"), UnixMicros(30_000), UnixMicros(51_000));
        assert!(!losses.unknown);
        assert_eq!(sources.rows(), 1 + 2);
    }
}
