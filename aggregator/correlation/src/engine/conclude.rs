//! From a bound rule to a verdict at one watermark: what is missing and why, what was lost, how far to commit.

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::{
    ids::SourceId,
    intent::LinkKind,
    ledger::LossSummary,
    units::UnixMicros,
    verdict::{Candidate, Change, Evidence, MissingEvidence, Outcome, Role, Verdict},
};

use super::{
    Limits, bind::Draft, evidence, set::ObservationSet, sources::Sources, symptom, topology::Topology,
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
}

/// A verdict, and what the comparison with other verdicts needs.
pub(super) struct Concluded<'a> {
    pub(super) draft: &'a Draft,
    pub(super) verdict: Verdict,
    /// Whether every required step is there: only then it competes for its symptom.
    pub(super) is_complete: bool,
}

/// Concludes one draft.
pub(super) fn conclude<'a>(context: &Context<'_>, rule: &Rule, draft: &'a Draft) -> Concluded<'a> {
    let lines = draft.lines.clone();
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
    let is_complete = rule
        .steps
        .iter()
        .zip(&draft.bound)
        .all(|(step, bound)| step.presence != Presence::Required || bound.is_present());
    let (outcome, reason) = commit(context, rule, draft, &losses, window);
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
    let verdict = Verdict {
        rule: rule.id.clone(),
        rule_set: context.rules.version(),
        watermark: context.watermark,
        outcome,
        reason,
        severity: rule.severity(),
        cause: draft.cause.clone(),
        signature: evidence::signature(rule, &lines),
        changes: changes(context, draft),
        evidence: lines,
        evidence_present: present,
        evidence_expected: expected,
        missing,
        candidates: vec![own],
        observed_since,
        losses,
        clock_error: known().map(|source| source.clock_error).max().unwrap_or_default(),
        missing_probes,
    };
    Concluded { draft, verdict, is_complete }
}

/// The sources that saw the evidence, or told of who calls the fault's entity.
fn implicated(context: &Context<'_>, draft: &Draft) -> BTreeSet<SourceId> {
    let mut sources = draft.seen_by.clone();
    sources.extend(context.topology.told_by(&draft.cause));
    sources
}

/// The window of a verdict: from its first evidence to its last, as far as everything was heard.
fn window_of(
    context: &Context<'_>,
    rule: &Rule,
    draft: &Draft,
    lines: &[Evidence],
) -> (UnixMicros, UnixMicros) {
    let from = lines.iter().map(|line| line.first.earliest).min().unwrap_or(draft.first.earliest);
    let until = lines.iter().map(|line| line.last.latest).max().unwrap_or(draft.last.latest);
    let until = if draft.onset.is_some() { until } else { draft.last.latest.plus(rule.reach_after()) };
    (from, until.min(context.watermark).max(from))
}

/// A missing probe may be told with its reason behind a colon.
fn probe_name(probe: &str) -> &str {
    probe.split_once(':').map_or(probe, |(name, _reason)| name)
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
        .filter(|entry| concerns(rule, step, &entry.subject))
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

/// Whether losses of this probe or lane can hide the step: its own probes, and what is no probe of the rule.
fn concerns(rule: &Rule, step: &Step, subject: &str) -> bool {
    let names = |step: &Step| step.probes.iter().any(|probe| probe == subject);
    step.probes.is_empty() || names(step) || !rule.steps.iter().any(names)
}

/// How far the evidence allows to commit, and why not further.
fn commit(
    context: &Context<'_>,
    rule: &Rule,
    draft: &Draft,
    losses: &LossSummary,
    window: (UnixMicros, UnixMicros),
) -> (Outcome, String) {
    let steps = || rule.steps.iter().zip(&draft.bound);
    if let Some((step, bound)) =
        steps().find(|(step, bound)| step.presence == Presence::Required && !bound.is_present())
    {
        let reason = if bound.began_before.is_empty() {
            format!("required evidence is missing: {}", step.id)
        } else {
            format!("{} began before the fault, which therefore does not explain it", step.id)
        };
        return (Outcome::Hypothesis, reason);
    }
    if let Some((step, _bound)) =
        steps().find(|(step, bound)| step.presence == Presence::Contradicts && bound.is_present())
    {
        return (Outcome::Hypothesis, format!("{} speaks against it", step.id));
    }
    if let Some(reason) = still_waiting(context, rule, draft) {
        return (Outcome::Hypothesis, reason);
    }
    if rule.announce == Announce::Hypothesis {
        return (Outcome::Hypothesis, "the rule announces nothing by itself".to_owned());
    }
    if let Some(reason) = cap(context, rule, draft, losses, window) {
        return (Outcome::Undetermined, reason);
    }
    (Outcome::Finding, String::new())
}

/// Why it is too early to commit, if it is.
fn still_waiting(context: &Context<'_>, rule: &Rule, draft: &Draft) -> Option<String> {
    let first = draft.onset.as_ref().map_or(draft.first, |onset| onset.first);
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

/// What keeps a complete verdict from deciding, if anything does.
fn cap(
    context: &Context<'_>,
    rule: &Rule,
    draft: &Draft,
    losses: &LossSummary,
    window: (UnixMicros, UnixMicros),
) -> Option<String> {
    let onset = draft.onset.as_ref();
    let look_back =
        onset.map_or(window.0, |_onset| draft.first.earliest.minus(rule.reach_after()).min(window.0));
    if context.set.evicted_until().is_some_and(|until| until >= look_back) {
        return Some("observations of its window were evicted over budget".to_owned());
    }
    let onset = onset?;
    if onset.is_traced {
        // The failing requests themselves were seen to break at the fault: nothing unseen can undo that.
        return None;
    }
    if onset.chain != LinkKind::Observed {
        return Some("who calls whom is only inferred, and no request was seen on both sides".to_owned());
    }
    // What was lost before the fault could have shown that the symptom was there already.
    let before = (look_back, draft.first.earliest);
    let mut unseen: u64 = 0;
    let symptom = rule.steps.iter().zip(&draft.bound).find(|(step, bound)| {
        step.role() == Role::Symptom && bound.groups.iter().any(|group| group.subject == onset.subject)
    });
    for source in &onset.sources {
        let began = context.sources.get(*source).map_or(before.0, |source| source.began);
        let its = context.sources.losses(*source, before.0.max(began.min(before.1)), before.1);
        if its.unknown {
            return Some(format!(
                "the ledger of {} has a gap before the fault: the symptom may have begun earlier",
                losses.unknown_sources.first().map_or("a source", String::as_str)
            ));
        }
        let counts = its
            .lost
            .iter()
            .filter(|entry| symptom.is_none_or(|(step, _bound)| concerns(rule, step, &entry.subject)))
            .map(|entry| entry.count);
        unseen = counts.fold(unseen, u64::saturating_add);
    }
    symptom::could_have_begun(onset, unseen)
        .then(|| format!("{unseen} records were lost before the fault: the symptom may have begun earlier"))
}

/// The changes of a draft that are none of what an agent sees when it starts.
fn changes(context: &Context<'_>, draft: &Draft) -> Vec<Change> {
    let is_warm = |change: &&Change| {
        let began =
            context.sources.get(change.event.frame.source).map(|source| source.began).unwrap_or_default();
        change.at > began.plus(context.limits.warm_up)
    };
    let mut changes: Vec<Change> = draft.changes.iter().filter(is_warm).cloned().collect();
    let surplus = changes.len().saturating_sub(CHANGES_MAX);
    changes.split_off(surplus)
}
