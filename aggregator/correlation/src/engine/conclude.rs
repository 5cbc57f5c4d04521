//! From a bound rule to a verdict at one watermark: what is missing and why, what was lost, how far to commit.

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::{
    ids::SourceId,
    ledger::LossSummary,
    observation::Observation,
    units::UnixMicros,
    verdict::{Candidate, Change, Evidence, MissingEvidence, Outcome, Role, Verdict},
};

use super::{
    Limits,
    bind::Draft,
    caps::{self, concerns, probe_name},
    evidence::{self, Changes},
    faults::Faults,
    set::ObservationSet,
    sources::Sources,
    symptom::Onset,
    topology::Topology,
};
use crate::rule::{Announce, Presence, Rule, RuleSet, Step};

/// The most changes that a verdict names, the latest.
const CHANGES_MAX: usize = 8;

/// What a conclusion reads.
pub(super) struct Context<'a> {
    pub(super) rules: &'a RuleSet,
    pub(super) limits: &'a Limits,
    pub(super) set: &'a ObservationSet,
    pub(super) topology: &'a Topology,
    pub(super) sources: &'a Sources,
    pub(super) watermark: UnixMicros,
    pub(super) faults: &'a Faults,
}

/// A verdict, and what the comparison with other verdicts needs.
pub(super) struct Concluded<'a> {
    pub(super) rule: &'a Rule,
    pub(super) draft: &'a Draft,
    pub(super) verdict: Verdict,
    /// Whether every required step is there, and none that speaks against it: only then it competes for its symptom.
    pub(super) is_complete: bool,
    /// Of the draft's onsets those that nothing caps, the outermost first.
    pub(super) standing: Vec<usize>,
    /// The onset that the verdict shows.
    pub(super) shown: usize,
}

/// How far the evidence allows to commit.
struct Commitment {
    outcome: Outcome,
    /// Why not further.
    reason: String,
    standing: Vec<usize>,
}

/// Concludes one draft.
pub(super) fn conclude<'a>(context: &Context<'_>, rule: &'a Rule, draft: &'a Draft) -> Concluded<'a> {
    let is_complete = rule.steps.iter().zip(&draft.bound).all(|(step, bound)| match step.presence {
        Presence::Required => bound.is_present(),
        Presence::Expected => true,
        Presence::Contradicts => !bound.is_present(),
    });
    let Commitment { outcome, reason, standing } = commit(context, rule, draft);
    let shown = standing.first().copied().unwrap_or_default();
    let verdict = verdict(context, rule, draft, shown, (outcome, reason));
    Concluded { rule, draft, verdict, is_complete, standing, shown }
}

/// The verdict on a draft that shows one of its onsets.
pub(super) fn verdict(
    context: &Context<'_>,
    rule: &Rule,
    draft: &Draft,
    shown: usize,
    (outcome, reason): (Outcome, String),
) -> Verdict {
    let other = draft.onsets.get(shown).filter(|_onset| shown > 0);
    let lines = other.map_or_else(|| draft.lines.clone(), |onset| draft.lines_showing(rule, onset));
    let implicated = implicated(context, draft);
    let window = window_of(context, rule, draft, &lines);
    let losses = context.sources.summary(&implicated, window.0, window.1);
    let known = || implicated.iter().filter_map(|id| context.sources.get(*id));
    let broken: BTreeMap<&str, &str> = known()
        .flat_map(|source| {
            source.missing_probes.iter().map(|probe| (probe_name(probe), source.node.as_str()))
        })
        .collect();
    let missing: Vec<MissingEvidence> = rule
        .steps
        .iter()
        .zip(&draft.bound)
        .filter(|(step, bound)| step.presence != Presence::Contradicts && !bound.is_present())
        .map(|(step, _bound)| MissingEvidence {
            step: step.id.clone(),
            role: step.role(),
            why: why_missing(rule, step, draft, &broken, &losses),
        })
        .collect();
    let wanted = rule.steps.iter().filter(|step| step.presence != Presence::Contradicts).count();
    let expected = u32::try_from(wanted).unwrap_or(u32::MAX);
    let present = expected.saturating_sub(u32::try_from(missing.len()).unwrap_or(u32::MAX));
    let observed_since = known().map(|source| source.began).max().unwrap_or_default();
    let missing_probes = broken
        .keys()
        .filter(|probe| rule.steps.iter().any(|step| step.probes.iter().any(|name| name == *probe)))
        .map(|probe| (*probe).to_owned())
        .collect();
    let own = Candidate {
        cause: draft.cause.clone(),
        rule: rule.id.clone(),
        evidence_present: present,
        evidence_expected: expected,
        reason: if reason.is_empty() { "all required evidence is there".to_owned() } else { reason.clone() },
    };
    Verdict {
        rule: rule.id.clone(),
        rule_set: context.rules.version(),
        watermark: context.watermark,
        outcome,
        reason,
        severity: rule.severity(),
        cause: draft.cause.clone(),
        signature: evidence::signature(rule, &lines),
        changes: changes(context, draft, other.map(|_onset| lines.as_slice())),
        evidence: lines,
        evidence_present: present,
        evidence_expected: expected,
        missing,
        candidates: vec![own],
        observed_since,
        symptom_seen_until: symptom_seen_until(context, rule, draft, shown),
        losses,
        clock_error: known().map(|source| source.clock_error).max().unwrap_or_default(),
        missing_probes,
    }
}

/// Until when the symptom goes on, however long that is after the fault: the latest end of anything that satisfies its
/// step, but for the time within which a rule looks for it.
fn symptom_seen_until(context: &Context<'_>, rule: &Rule, draft: &Draft, shown: usize) -> UnixMicros {
    let seen = |onset: &Onset| {
        let place = usize::try_from(onset.stands_in.unwrap_or(onset.step)).ok()?;
        let kinds = context.rules.kinds().of_step(context.rules.place(&rule.id)?, place);
        let calls = onset.group.items.iter().filter(|_item| onset.stands_in.is_some());
        let peers: BTreeSet<_> = calls.filter_map(|item| item.peer.as_ref()).collect();
        let fits = |item: &Observation| {
            onset.stands_in.is_none() || context.topology.is_toward(item, |owner| peers.contains(owner))
        };
        context.set.last_end(kinds, onset.subject(), context.watermark, fits)
    };
    draft.onsets.get(shown).and_then(seen).filter(|last| *last >= draft.first.earliest).unwrap_or_default()
}

/// The sources that saw the evidence, or told of who calls the fault's entity.
fn implicated(context: &Context<'_>, draft: &Draft) -> BTreeSet<SourceId> {
    let mut sources = draft.seen_by.clone();
    for member in context.topology.members_of(&draft.cause) {
        sources.extend(context.topology.told_by(&member));
    }
    sources
}

/// The window of a verdict: from its first evidence to its last, as far as everything was heard.
fn window_of(
    context: &Context<'_>,
    rule: &Rule,
    draft: &Draft,
    lines: &[Evidence],
) -> (UnixMicros, UnixMicros) {
    let from = evidence::begin_of(lines, &draft.first).unwrap_or(draft.first.earliest);
    let until = lines.iter().map(|line| line.last.latest).max().unwrap_or(draft.last.latest);
    let until = if draft.onsets.is_empty() { draft.last.latest.plus(rule.reach_after()) } else { until };
    (from, until.min(context.watermark).max(from))
}

fn why_missing(
    rule: &Rule,
    step: &Step,
    draft: &Draft,
    broken: &BTreeMap<&str, &str>,
    losses: &LossSummary,
) -> String {
    let is_broken = |probe: &String| broken.contains_key(probe.as_str());
    if !step.probes.is_empty() && step.probes.iter().all(is_broken) {
        let nodes: BTreeSet<&str> =
            step.probes.iter().filter_map(|probe| broken.get(probe.as_str())).copied().collect();
        let nodes: Vec<&str> = nodes.into_iter().collect();
        return format!("no probe that sees it works on {}: {}", nodes.join(", "), step.probes.join(", "));
    }
    let lost: Vec<String> = losses
        .by_reason
        .iter()
        .filter(|entry| concerns(rule, step, entry))
        .map(|entry| format!("{} of {} ({})", entry.count, entry.subject, entry.reason))
        .collect();
    if !lost.is_empty() {
        return format!("it may be among the records that were lost: {}", lost.join(", "));
    }
    if !losses.unknown_sources.is_empty() {
        return format!("not everything was heard from {}", losses.unknown_sources.join(", "));
    }
    let place = rule.steps.iter().position(|other| other.id == step.id);
    let bound = place.and_then(|place| draft.bound.get(place));
    if bound.is_some_and(|bound| !bound.began_before.is_empty()) {
        return "what was seen began before the fault".to_owned();
    }
    if draft.bound.iter().any(|bound| bound.stands_in.is_some()) && step.role() == Role::Effect {
        return "the symptom is the broken call itself: nothing further up was seen".to_owned();
    }
    let some_broken: Vec<&str> =
        step.probes.iter().filter(|probe| is_broken(probe)).map(String::as_str).collect();
    if !some_broken.is_empty() {
        return format!("not seen; of the probes that see it, these do not work: {}", some_broken.join(", "));
    }
    "not seen, though the probes that see it worked".to_owned()
}

/// How far the evidence allows to commit, and why not further.
fn commit(context: &Context<'_>, rule: &Rule, draft: &Draft) -> Commitment {
    let no_further = |outcome, reason| Commitment { outcome, reason, standing: Vec::new() };
    let steps = || rule.steps.iter().zip(&draft.bound);
    if let Some((step, bound)) =
        steps().find(|(step, bound)| step.presence == Presence::Required && !bound.is_present())
    {
        let reason = if bound.began_before.is_empty() {
            format!("required evidence is missing: {}", step.id)
        } else {
            format!("{} began before the fault, which therefore does not explain it", step.id)
        };
        return no_further(Outcome::Hypothesis, reason);
    }
    if let Some((step, _bound)) =
        steps().find(|(step, bound)| step.presence == Presence::Contradicts && bound.is_present())
    {
        return no_further(Outcome::Hypothesis, format!("{} speaks against it", step.id));
    }
    if let Some(reason) = still_waiting(context, rule, draft) {
        return no_further(Outcome::Hypothesis, reason);
    }
    if rule.announce == Announce::Hypothesis {
        return no_further(Outcome::Hypothesis, "the rule announces nothing by itself".to_owned());
    }
    if let Some(reason) = caps::of_draft(context, rule, draft, &implicated(context, draft)) {
        return no_further(Outcome::Undetermined, reason);
    }
    let reasons = caps::of_onsets(context, rule, draft);
    let standing: Vec<usize> =
        reasons.iter().enumerate().filter(|(_at, reason)| reason.is_none()).map(|(at, _reason)| at).collect();
    match reasons.into_iter().next().flatten() {
        Some(reason) if standing.is_empty() => no_further(Outcome::Undetermined, reason),
        _ => Commitment { outcome: Outcome::Finding, reason: String::new(), standing },
    }
}

/// Why it is too early to commit, if it is.
fn still_waiting(context: &Context<'_>, rule: &Rule, draft: &Draft) -> Option<String> {
    // Of all that may be the symptom the earliest: which of them is shown must not decide when.
    let first = draft.onsets.iter().map(|onset| onset.first).min().unwrap_or(draft.first);
    if context.watermark < first.latest {
        return Some("not every source was heard up to the first symptom".to_owned());
    }
    let settled = first.latest.plus(context.limits.settle_max);
    for (step, bound) in rule.steps.iter().zip(&draft.bound) {
        let closes = if step.is_dated_by_end() { settled } else { draft.first.latest };
        if step.presence == Presence::Expected && !bound.is_present() && context.watermark < closes {
            return Some(format!("expected evidence may still come: {}", step.id));
        }
    }
    None
}

/// The changes that are none of what an agent sees when it starts: of the draft, or on the entities of other lines.
fn changes(context: &Context<'_>, draft: &Draft, of: Option<&[Evidence]>) -> Vec<Change> {
    let is_warm = |change: &&Change| {
        let began =
            context.sources.get(change.event.frame.source).map(|source| source.began).unwrap_or_default();
        change.at > began.plus(context.limits.warm_up)
    };
    let source = Changes { rules: context.rules, set: context.set, topology: context.topology };
    let other = of.map(|lines| source.of(draft.first, lines, context.limits.change_window));
    let changes = other.as_ref().unwrap_or(&draft.changes);
    let mut changes: Vec<Change> = changes.iter().filter(is_warm).cloned().collect();
    let surplus = changes.len().saturating_sub(CHANGES_MAX);
    changes.split_off(surplus)
}
