//! Several faults, one symptom: which of them explains it, or that the evidence does not decide.
//!
//! Decided for each possible symptom by itself: a fault that surely made one service fail stays found when something
//! else may have made another fail too.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashSet},
};

use tapio_schemas::{
    entity::EntityKey,
    ids::EventId,
    units::UnixMicros,
    verdict::{Candidate, Outcome},
};

use super::{
    caps,
    conclude::{self, Concluded, Context},
    symptom::Onset,
};
use crate::rule::Announce;

/// The most other candidates that a verdict names.
const RIVALS_MAX: usize = 8;

/// Another verdict with the same symptom, and how its strength compares.
struct Rival<'a, 'b> {
    order: Ordering,
    of: &'a Concluded<'b>,
    is_traced: bool,
    /// Whether it may be as good only because of what was lost of its evidence.
    is_hidden: bool,
}

/// All verdicts, by what they claim as a symptom.
struct Field<'a, 'b> {
    all: &'a [Concluded<'b>],
    by_subject: BTreeMap<&'a EntityKey, Vec<(usize, &'a Onset)>>,
    /// Of which of them evidence was lost.
    lossy: BTreeSet<usize>,
}

struct Decision {
    outcome: Outcome,
    reason: Option<String>,
    shown: usize,
    candidates: Vec<Candidate>,
}

/// Compares all verdicts that claim the same symptom at the same time, and caps those that do not win.
pub(super) fn decide(context: &Context<'_>, concluded: &mut [Concluded<'_>]) {
    let field = Field::of(context, concluded);
    let decisions: Vec<Decision> =
        (0..).zip(concluded.iter()).map(|(place, one)| decide_one(place, one, &field)).collect();
    for (one, decision) in concluded.iter_mut().zip(decisions) {
        let Decision { outcome, reason, shown, candidates } = decision;
        if shown != one.shown {
            let told = (outcome, one.verdict.reason.clone());
            one.verdict = conclude::verdict(context, one.rule, one.draft, shown, told);
            one.shown = shown;
        }
        if one.verdict.outcome == Outcome::Finding && outcome != Outcome::Finding {
            one.verdict.reason = reason.unwrap_or_default();
        }
        one.verdict.outcome = outcome;
        if !candidates.is_empty() {
            one.verdict.candidates = candidates;
        }
    }
}

impl<'a, 'b> Field<'a, 'b> {
    fn of(context: &Context<'_>, all: &'a [Concluded<'b>]) -> Self {
        let mut by_subject: BTreeMap<&EntityKey, Vec<(usize, &Onset)>> = BTreeMap::new();
        for (place, one) in all.iter().enumerate() {
            if one.is_complete || one.rule.announce == Announce::Finding {
                for onset in &one.draft.onsets {
                    by_subject.entry(onset.subject()).or_default().push((place, onset));
                }
            }
        }
        let shared = by_subject.values().filter(|line| line.len() > 1).flatten();
        let places: BTreeSet<usize> = shared.map(|(place, _onset)| *place).collect();
        let is_lossy = |place: &usize| {
            let one = all.get(*place);
            one.is_some_and(|one| caps::may_miss_evidence(context, one.rule, one.draft))
        };
        let lossy = places.into_iter().filter(is_lossy).collect();
        Self { all, by_subject, lossy }
    }
}

fn decide_one(place: usize, one: &Concluded<'_>, field: &Field<'_, '_>) -> Decision {
    let rivals_at = |at: usize| -> Vec<Rival<'_, '_>> {
        let Some(onset) = one.draft.onsets.get(at).filter(|_onset| one.is_complete) else {
            return Vec::new();
        };
        let others = field.by_subject.get(onset.subject()).into_iter().flatten();
        let own_calls = own_calls(onset);
        let mut rivals: Vec<Rival<'_, '_>> = others
            .filter(|(other_place, _onset)| *other_place != place)
            .filter_map(|(other_place, its)| Some((*other_place, field.all.get(*other_place)?, *its)))
            .filter(|(_place, other, its)| are_rivals((one, onset), (other, its)))
            .filter(|(_place, _other, its)| !breaks_others(own_calls.as_ref(), its))
            .filter_map(|(other_place, other, its)| {
                let order = strength(other, its).cmp(&strength(one, onset));
                // Requests that were seen to fail at the fault are explained, whatever else was lost.
                let may_be_more = field.lossy.contains(&other_place) && !onset.is_traced;
                let is_hidden = may_be_more && (!other.is_complete || order == Ordering::Less);
                let order = if is_hidden { Ordering::Equal } else { order };
                (other.is_complete || is_hidden).then_some(Rival {
                    order,
                    of: other,
                    is_traced: its.is_traced,
                    is_hidden,
                })
            })
            .collect();
        rivals.sort_by(|a, b| b.order.cmp(&a.order).then_with(|| a.of.draft.first.cmp(&b.of.draft.first)));
        rivals.truncate(RIVALS_MAX);
        rivals
    };
    let is_won = |rivals: &[Rival<'_, '_>]| rivals.first().is_none_or(|rival| rival.order == Ordering::Less);
    let won = one.standing.iter().map(|at| (*at, rivals_at(*at))).find(|(_at, rivals)| is_won(rivals));
    let (shown, rivals) = won.unwrap_or_else(|| (one.shown, rivals_at(one.shown)));
    let reason = match rivals.first().map(|rival| rival.order) {
        Some(Ordering::Equal) if rivals.first().is_some_and(|rival| rival.is_hidden) => {
            Some("another fault may explain the same symptom as well: evidence of it was lost".to_owned())
        }
        Some(Ordering::Greater) => Some("another fault explains the same symptom better".to_owned()),
        Some(Ordering::Equal) => Some(
            "another fault explains the same symptom equally well: the evidence does not decide".to_owned(),
        ),
        _ => None,
    };
    let outcome = match reason {
        Some(_) => one.verdict.outcome.min(Outcome::Undetermined),
        None => one.verdict.outcome,
    };
    let is_traced = one.draft.onsets.get(shown).is_some_and(|onset| onset.is_traced);
    Decision { outcome, reason, shown, candidates: candidates(one, is_traced, &rivals) }
}

/// Whether two verdicts are about other faults, and claim the same entity's symptom over overlapping times. Two that
/// were both seen to break requests of it are both right, and no rivals.
fn are_rivals((one, a): (&Concluded<'_>, &Onset), (other, b): (&Concluded<'_>, &Onset)) -> bool {
    let is_same_fault = one.draft.cause == other.draft.cause && one.draft.first == other.draft.first;
    let last = |concluded: &Concluded<'_>, onset: &Onset| -> UnixMicros {
        let lines = concluded.draft.lines.iter().map(|line| line.last.latest).max();
        lines.unwrap_or_default().max(onset.last())
    };
    let is_both = a.is_traced && b.is_traced;
    !is_same_fault && !is_both && a.first.earliest <= last(other, b) && b.first.earliest <= last(one, a)
}

/// The calls to the fault's own entity that broke, where they are the symptom.
fn own_calls(onset: &Onset) -> Option<HashSet<EventId>> {
    onset.stands_in.map(|_step| onset.group.items.iter().map(|item| item.id).collect())
}

/// Whether another fault's symptom is its own broken calls, and none of these: then one caller met two faults, each of
/// which is seen on the calls to its own entity.
fn breaks_others(own_calls: Option<&HashSet<EventId>>, its: &Onset) -> bool {
    its.stands_in.is_some()
        && own_calls.is_some_and(|own| !its.group.items.iter().any(|item| own.contains(&item.id)))
}

/// Seen on the requests themselves first, then by the share of the evidence that is present.
fn strength(one: &Concluded<'_>, onset: &Onset) -> (bool, u64) {
    let expected = u64::from(one.verdict.evidence_expected.max(1));
    (onset.is_traced, u64::from(one.verdict.evidence_present) * 1_000 / expected)
}

fn candidates(one: &Concluded<'_>, is_traced: bool, rivals: &[Rival<'_, '_>]) -> Vec<Candidate> {
    if rivals.is_empty() {
        return Vec::new();
    }
    let of = |concluded: &Concluded<'_>, order: Ordering, is_traced: bool| Candidate {
        cause: concluded.verdict.cause.clone(),
        rule: concluded.verdict.rule.clone(),
        evidence_present: concluded.verdict.evidence_present,
        evidence_expected: concluded.verdict.evidence_expected,
        reason: match (order, is_traced) {
            (Ordering::Equal, _) => "as much evidence as another candidate".to_owned(),
            (_, true) => "its broken calls are of the failing requests".to_owned(),
            (_, false) => format!(
                "{} of {} expected evidence",
                concluded.verdict.evidence_present, concluded.verdict.evidence_expected
            ),
        },
    };
    let better = rivals.iter().take_while(|rival| rival.order == Ordering::Greater).count();
    let is_tied = rivals.iter().any(|rival| rival.order == Ordering::Equal);
    let own_order = if is_tied { Ordering::Equal } else { Ordering::Greater };
    let mut ranked: Vec<Candidate> =
        rivals.iter().map(|rival| of(rival.of, rival.order, rival.is_traced)).collect();
    ranked.insert(better.min(ranked.len()), of(one, own_order, is_traced));
    ranked
}
