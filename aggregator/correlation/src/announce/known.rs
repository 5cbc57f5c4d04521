//! A finding that is remembered, and whether a verdict changes it.

use tapio_schemas::{
    finding::{Finding, FindingState},
    units::{Micros, UnixMicros},
    verdict::{Evidence, Role, Verdict},
};

/// A finding, and when it was last told.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) finding: Finding,
    symptom_seen_until: UnixMicros,
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
    pub(super) const fn new(finding: Finding) -> Self {
        let symptom_seen_until = finding.verdict.symptom_seen_until;
        Self { finding, symptom_seen_until }
    }

    /// Notes that the symptom was seen until then. That alone is no revision, however often it comes.
    pub(super) fn see_symptom(&mut self, until: UnixMicros) {
        self.symptom_seen_until = self.symptom_seen_until.max(until);
    }

    /// Until when the symptom was seen to go on.
    pub(super) const fn symptom_seen_until(&self) -> UnixMicros {
        self.symptom_seen_until
    }

    /// Whether a verdict is about the same fault: same rule, same cause, and the fault's times meet.
    pub(super) fn is_of(&self, verdict: &Verdict) -> bool {
        let mine = &self.finding.verdict;
        if mine.rule != verdict.rule
            || mine.cause != verdict.cause
            || self.finding.state == FindingState::Superseded
        {
            return false;
        }
        let (Some(a), Some(b)) = (mine.first(Role::Fault), verdict.first(Role::Fault)) else { return false };
        a.first.possibly_before(&b.last) && b.first.possibly_before(&a.last)
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
