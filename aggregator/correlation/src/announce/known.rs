//! A finding that is remembered: whether a verdict changes it, how its symptom goes on, and when it is over.
//!
//! No observation is no recovery: a finding is over when those that showed its symptom were heard on without a gap and
//! showed it no more, and it cannot be among what they lost. While they do not observe it stays open and says so; after a
//! long time it is closed as unobserved.

use tapio_schemas::{
    finding::{Continuation, Finding, FindingState, Resolution, Unobserved},
    units::{Micros, UnixMicros},
    verdict::{Evidence, Outcome, Role, Stance, Verdict},
};

use super::AnnounceLimits;
use crate::engine::{Engine, Heard, telling};

/// Counts that go on for long are told after this part of their age: what is told lags by so much of it.
const AGE_PARTS: u64 = 30;

/// A finding, and when it was last told.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) finding: Finding,
    symptom_seen_until: UnixMicros,
    /// When the first part of the fault began, as far as it is known here.
    since: UnixMicros,
    /// The symptom was counted on from there, and how.
    counted: (UnixMicros, Continuation),
    /// What was seen when it was followed last.
    seen: Seen,
}

/// What an engine shows of a finding's symptom at one moment.
#[derive(Clone, Debug, Default)]
struct Seen {
    watermark: UnixMicros,
    /// Whether sources had the time to be heard since findings are followed.
    may_be_silent: bool,
    heard: Vec<Heard>,
    /// Whether its rule is in force, so that the symptom would be seen.
    is_looked_for: bool,
    /// Whether the symptom was seen again since the finding was closed.
    is_again: bool,
}

/// What a verdict changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing that is worth a revision now.
    None,
    /// Only how often and until when things happened.
    Counts,
    /// What is claimed.
    Claim,
}

impl Known {
    pub(super) fn new(finding: Finding) -> Self {
        let symptom_seen_until = finding.verdict.symptom_seen_until;
        let since = fault_of(&finding.verdict).map(|fault| fault.first.earliest).unwrap_or_default();
        let counted = (symptom_end(&finding.verdict), finding.continuation);
        Self { finding, symptom_seen_until, since, counted, seen: Seen::default() }
    }

    /// Makes it open.
    pub(super) fn open(&mut self) {
        self.finding.resolution = Resolution::Unspecified;
        if std::mem::take(&mut self.finding.state) != FindingState::Open {
            self.finding.unobserved.clear();
        }
    }

    /// Notes that the symptom was seen until then. That alone is no revision, however often it comes.
    pub(super) fn see_symptom(&mut self, until: UnixMicros) {
        self.symptom_seen_until = self.symptom_seen_until.max(until);
    }

    /// When the symptom was seen last.
    fn last_symptom(&self) -> UnixMicros {
        let told = self.symptom_seen_until.max(self.finding.continuation.last);
        last_symptom(&self.finding.verdict).max(told)
    }

    /// Sees how the symptom goes on, and who would see it.
    pub(super) fn follow(&mut self, engine: &Engine, following_since: UnixMicros, limits: &AnnounceLimits) {
        let is_open = self.finding.state == FindingState::Open;
        // What was closed because nobody saw it opens again when it is seen.
        let is_closed = self.finding.resolution == Resolution::Unobserved;
        self.seen = Seen::default();
        if !is_open && !is_closed {
            return;
        }
        let before = self.last_symptom();
        self.see_symptom(engine.symptom_seen_until(&self.finding.verdict));
        let verdict = &self.finding.verdict;
        let counts_until = engine.counts_until(verdict);
        self.seen = Seen {
            watermark: engine.watermark(),
            may_be_silent: following_since.plus(limits.resolve_after) < engine.watermark(),
            heard: engine.heard(verdict, self.last_symptom(), limits.resolve_after),
            is_looked_for: counts_until.is_some(),
            is_again: is_closed && self.last_symptom() > before,
        };
        if is_open && let Some(counts_until) = counts_until {
            self.count(engine, counts_until);
        }
    }

    /// Counts the symptom on behind what the verdict counts, as far as those who see it were heard.
    fn count(&mut self, engine: &Engine, counts_until: UnixMicros) {
        let heard = self.seen.heard.iter().map(|heard| heard.until).min().unwrap_or_default();
        let until = heard.min(self.seen.watermark);
        let (from, counted) = &mut self.counted;
        if until <= counts_until.max(counted.counted_until) {
            return;
        }
        let after = if counted.counted_until.0 == 0 { *from } else { counted.counted_until };
        let (count, last) = engine.symptom_count(&self.finding.verdict, after, until);
        counted.count = counted.count.saturating_add(count);
        counted.at_least |= engine.may_have_missed(&self.finding.verdict, after, until);
        counted.last = counted.last.max(last.unwrap_or_default());
        counted.counted_until = until;
    }

    /// Ends it, opens it again, or tells what became of its symptom; gives the revision, where there is one.
    pub(super) fn settle(&mut self, now: UnixMicros, limits: &AnnounceLimits) -> Option<Finding> {
        if self.finding.state != FindingState::Open {
            let opens = std::mem::take(&mut self.seen.is_again);
            return opens.then(|| {
                self.open();
                self.revised(now)
            });
        }
        let silent = self.silent(limits);
        let resolution = self.resolution(limits);
        if resolution == Resolution::Unspecified && !self.is_worth_telling(&silent, now, limits) {
            return None;
        }
        if resolution != Resolution::Unspecified {
            self.finding.state = FindingState::Resolved;
            self.finding.resolution = resolution;
        }
        self.finding.unobserved = if resolution == Resolution::SymptomsStopped { Vec::new() } else { silent };
        self.finding.continuation = self.counted.1;
        Some(self.revised(now))
    }

    /// Takes a verdict over: what it does not count is counted on from where it ends.
    pub(super) fn tell(&mut self, verdict: &Verdict) {
        let from = symptom_end(verdict);
        if self.counted.0 != from {
            self.counted = (from, Continuation::default());
        }
        self.finding.continuation = self.counted.1;
        self.finding.verdict = verdict.clone();
    }

    fn revised(&mut self, now: UnixMicros) -> Finding {
        self.finding.revision = self.finding.revision.saturating_add(1);
        self.finding.revised_at = now;
        self.finding.clone()
    }

    /// Why it is over, if it is.
    fn resolution(&self, limits: &AnnounceLimits) -> Resolution {
        let Seen { watermark, may_be_silent, heard, is_looked_for, .. } = &self.seen;
        let last = self.last_symptom();
        let is_heard =
            |heard: &Heard| heard.since.max(last).plus(limits.resolve_after) < heard.until.min(*watermark);
        if *is_looked_for && !heard.is_empty() && heard.iter().all(is_heard) {
            Resolution::SymptomsStopped
        } else if *may_be_silent && last.plus(limits.unobserved_max) < *watermark {
            Resolution::Unobserved
        } else {
            Resolution::Unspecified
        }
    }

    /// The nodes that showed the symptom and were not heard for long, or lost so much that it may be among it.
    fn silent(&self, limits: &AnnounceLimits) -> Vec<Unobserved> {
        let Seen { watermark, may_be_silent, heard, .. } = &self.seen;
        if !may_be_silent {
            return self.finding.unobserved.clone();
        }
        let last = self.last_symptom();
        let since = |heard: &Heard| if heard.is_lossy { last } else { heard.until.max(last) };
        let is_silent = |heard: &&Heard| since(heard).plus(limits.resolve_after) < *watermark;
        let silent: Vec<&Heard> = heard.iter().filter(is_silent).collect();
        let told = &self.finding.unobserved;
        // The engine forgets sources that are silent for long: what is told of them stays.
        if told.len() == silent.len() && silent.iter().any(|heard| heard.node.is_empty()) {
            return told.clone();
        }
        let of = |heard: &&Heard| Unobserved { node: self.node_of(heard), since: since(heard) };
        let mut silent: Vec<Unobserved> = silent.iter().map(of).collect();
        silent.sort_by(|a, b| a.node.cmp(&b.node));
        silent
    }

    fn node_of(&self, heard: &Heard) -> String {
        if !heard.node.is_empty() {
            return heard.node.clone();
        }
        let shows = telling(&self.finding.verdict)
            .find(|line| line.events.iter().any(|event| event.frame.source == heard.source));
        let pod = shows.and_then(|line| {
            self.finding.names.iter().find(|named| named.entity == line.subject)?.pod.as_ref()
        });
        pod.map(|pod| pod.node.clone())
            .filter(|node| !node.is_empty())
            .unwrap_or_else(|| heard.source.to_string())
    }

    /// Whether an open finding is told anew: at once if other nodes are silent, counts the rarer the longer they go on.
    fn is_worth_telling(&self, silent: &[Unobserved], now: UnixMicros, limits: &AnnounceLimits) -> bool {
        fn nodes(of: &[Unobserved]) -> impl Iterator<Item = &str> {
            of.iter().map(|one| one.node.as_str())
        }
        let since_told = now.since(self.finding.revised_at);
        let age = now.since(self.finding.announced_at);
        let every = Micros(age.0 / AGE_PARTS).max(limits.revise_every).min(limits.remind_every);
        nodes(silent).ne(nodes(&self.finding.unobserved))
            || since_told >= limits.remind_every
            || self.counted.1.count != self.finding.continuation.count && since_told >= every
    }

    /// Whether a verdict is about the same fault: same rule, same cause, and the fault's times meet.
    pub(super) fn is_of(&self, verdict: &Verdict) -> bool {
        let mine = &self.finding.verdict;
        if !self.is_same_cause(verdict) {
            return false;
        }
        let (Some(a), Some(b)) = (fault_of(mine), fault_of(verdict)) else { return false };
        a.first.possibly_before(&b.last) && b.first.possibly_before(&a.last)
    }

    /// Whether a verdict is about a later part of the same fault: one that goes on for long is told in parts, which
    /// follow each other within `within`.
    pub(super) fn goes_on_with(&self, verdict: &Verdict, within: Micros) -> bool {
        let mine = &self.finding.verdict;
        self.follow_each_other(mine, verdict, within) && verdict.outcome == Outcome::Finding
    }

    /// Whether a verdict is about an earlier part of the same fault.
    pub(super) fn went_on_from(&self, verdict: &Verdict, within: Micros) -> bool {
        let mine = &self.finding.verdict;
        self.follow_each_other(verdict, mine, within)
            || self.is_same_cause(verdict)
                && fault_of(verdict).is_some_and(|fault| {
                    fault.first.earliest >= self.since
                        && Some(fault.first) < fault_of(mine).map(|own| own.first)
                })
    }

    fn follow_each_other(&self, earlier: &Verdict, later: &Verdict, within: Micros) -> bool {
        let (Some(earlier), Some(then)) = (fault_of(earlier), fault_of(later)) else { return false };
        let is_behind = earlier.first < then.first && then.first.earliest <= earlier.last.latest.plus(within);
        self.is_same_cause(later) && is_behind
    }

    fn is_same_cause(&self, verdict: &Verdict) -> bool {
        let mine = &self.finding.verdict;
        mine.rule == verdict.rule
            && mine.cause == verdict.cause
            && self.finding.state != FindingState::Superseded
    }

    pub(super) fn change_by(&self, verdict: &Verdict, now: UnixMicros, every: Micros) -> Change {
        let mine = &self.finding.verdict;
        if claim(mine) != claim(verdict) {
            return Change::Claim;
        }
        let counts = |verdict: &Verdict| -> Vec<(u64, UnixMicros)> {
            verdict.evidence.iter().map(|line| (line.count, line.last.latest)).collect()
        };
        let has_grown = counts(mine) != counts(verdict);
        if has_grown && now.since(self.finding.revised_at) >= every { Change::Counts } else { Change::None }
    }
}

fn last_symptom(verdict: &Verdict) -> UnixMicros {
    let symptoms = verdict.evidence.iter().filter(|line| {
        line.stance == Stance::Supporting && matches!(line.role, Role::Symptom | Role::Effect)
    });
    symptoms.map(|line| line.last.latest).max().unwrap_or_else(|| super::last_of(verdict))
}

/// The end of what a verdict counts of its symptom.
fn symptom_end(verdict: &Verdict) -> UnixMicros {
    verdict.first(Role::Symptom).map(|line| line.last.latest).unwrap_or_default()
}

fn fault_of(verdict: &Verdict) -> Option<&Evidence> {
    verdict.first(Role::Fault)
}

type Claim<'a> =
    (u8, &'a str, u32, u32, Vec<(&'a str, u8, u8, &'a str, Vec<&'a str>)>, Vec<&'a str>, usize, usize, bool);

/// What a verdict claims, without counts, times and wording.
fn claim(verdict: &Verdict) -> Claim<'_> {
    let line = |line: &'_ Evidence| -> (u8, u8) { (line.stance.code(), line.link.code()) };
    (
        verdict.outcome.code(),
        verdict.signature.as_str(),
        verdict.evidence_present,
        verdict.evidence_expected,
        verdict
            .evidence
            .iter()
            .map(|one| {
                let (stance, link) = line(one);
                let intents = one.intents.keys().map(String::as_str).collect();
                (one.step.as_str(), stance, link, one.subject.id.as_str(), intents)
            })
            .collect(),
        verdict.missing.iter().map(|missing| missing.step.as_str()).collect(),
        verdict.candidates.len(),
        verdict.changes.len(),
        verdict.losses.lost > 0,
    )
}
