//! Several faults, one symptom: which of them explains it, or that the evidence does not decide.

use std::cmp::Ordering;

use tapio_schemas::verdict::{Candidate, Outcome};

use super::conclude::Concluded;

/// The most other candidates that a verdict names.
const RIVALS_MAX: usize = 8;

/// Compares all verdicts that claim the same symptom at the same time, and caps those that do not win.
pub(super) fn decide(concluded: &mut [Concluded<'_>]) {
    let mut decisions: Vec<(Outcome, Option<String>, Vec<Candidate>)> = Vec::with_capacity(concluded.len());
    for (place, one) in concluded.iter().enumerate() {
        let mut rivals: Vec<(Ordering, &Concluded<'_>)> = concluded
            .iter()
            .enumerate()
            .filter(|(other_place, other)| *other_place != place && are_rivals(one, other))
            .map(|(_place, other)| (strength(other).cmp(&strength(one)), other))
            .collect();
        rivals.sort_by(|(a, a_one), (b, b_one)| {
            b.cmp(a).then_with(|| a_one.draft.first.cmp(&b_one.draft.first))
        });
        rivals.truncate(RIVALS_MAX);
        let strongest = rivals.first().map(|(order, _other)| *order);
        let reason = match strongest {
            Some(Ordering::Greater) => Some("another fault explains the same symptom better".to_owned()),
            Some(Ordering::Equal) => Some(
                "another fault explains the same symptom equally well: the evidence does not decide"
                    .to_owned(),
            ),
            _ => None,
        };
        let outcome = if reason.is_some() {
            one.verdict.outcome.min(Outcome::Undetermined)
        } else {
            one.verdict.outcome
        };
        decisions.push((outcome, reason, candidates(one, &rivals)));
    }
    for (one, (outcome, reason, candidates)) in concluded.iter_mut().zip(decisions) {
        if one.verdict.outcome == Outcome::Finding && outcome != Outcome::Finding {
            one.verdict.reason = reason.unwrap_or_default();
        }
        one.verdict.outcome = outcome;
        if !candidates.is_empty() {
            one.verdict.candidates = candidates;
        }
    }
}

/// Whether two verdicts are about other faults, complete, and claim the same entity's symptom over overlapping times.
/// Two that were both seen to break requests of it are both right, and no rivals.
fn are_rivals(one: &Concluded<'_>, other: &Concluded<'_>) -> bool {
    let (Some(a), Some(b)) = (&one.draft.onset, &other.draft.onset) else { return false };
    let is_same_fault = one.draft.cause == other.draft.cause && one.draft.first == other.draft.first;
    let last = |concluded: &Concluded<'_>| {
        concluded.verdict.evidence.iter().map(|line| line.last.latest).max().unwrap_or_default()
    };
    one.is_complete
        && other.is_complete
        && !is_same_fault
        && a.subject == b.subject
        && !(a.is_traced && b.is_traced)
        && a.first.earliest <= last(other)
        && b.first.earliest <= last(one)
}

/// Seen on the requests themselves first, then by the share of the evidence that is present.
fn strength(one: &Concluded<'_>) -> (bool, u64) {
    let traced = one.draft.onset.as_ref().is_some_and(|onset| onset.is_traced);
    let expected = u64::from(one.verdict.evidence_expected.max(1));
    (traced, u64::from(one.verdict.evidence_present) * 1_000 / expected)
}

fn candidates(one: &Concluded<'_>, rivals: &[(Ordering, &Concluded<'_>)]) -> Vec<Candidate> {
    if rivals.is_empty() {
        return Vec::new();
    }
    let of = |concluded: &Concluded<'_>, order: Ordering| Candidate {
        cause: concluded.verdict.cause.clone(),
        rule: concluded.verdict.rule.clone(),
        evidence_present: concluded.verdict.evidence_present,
        evidence_expected: concluded.verdict.evidence_expected,
        reason: match (order, strength(concluded).0) {
            (Ordering::Equal, _) => "as much evidence as another candidate".to_owned(),
            (_, true) => "its broken calls are of the failing requests".to_owned(),
            (_, false) => format!(
                "{} of {} expected evidence",
                concluded.verdict.evidence_present, concluded.verdict.evidence_expected
            ),
        },
    };
    let better = rivals.iter().take_while(|(order, _other)| *order == Ordering::Greater).count();
    let own_order = if rivals.iter().any(|(order, _other)| *order == Ordering::Equal) {
        Ordering::Equal
    } else {
        Ordering::Greater
    };
    let mut ranked: Vec<Candidate> = rivals.iter().map(|(order, other)| of(other, *order)).collect();
    ranked.insert(better.min(ranked.len()), of(one, own_order));
    ranked
}
