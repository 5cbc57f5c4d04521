//! What keeps complete evidence from deciding: what could not be seen, or was lost, and could have spoken against it.
//!
//! A cap never looks at how much supports a verdict, only at what could contradict it: taking support away must not
//! lift one. Called when a verdict is concluded, for the draft as a whole and for each of its possible symptoms.

use std::collections::{BTreeSet, VecDeque};

use tapio_schemas::{
    entity::EntityKey,
    ids::SourceId,
    intent::LinkKind,
    ledger::{LedgerEntry, Stage},
    units::UnixMicros,
};

use super::{
    bind::{self, Draft},
    conclude::Context,
    sources::{Losses, Source},
    symptom::{self, Onset},
};
use crate::rule::{Announce, LinkTo, Presence, Rule, Step};

/// The most entities below a symptom whose nodes are asked for other faults.
const BELOW_MAX: usize = 1_024;

/// What keeps a complete verdict from deciding, whatever its symptom, if anything does.
pub(super) fn of_draft(
    context: &Context<'_>,
    rule: &Rule,
    draft: &Draft,
    implicated: &BTreeSet<SourceId>,
) -> Option<String> {
    let look_back = draft.first.earliest.minus(rule.reach_before().max(rule.reach_after()));
    if let Some(reason) = evicted_evidence(context, rule, draft, look_back) {
        return Some(reason);
    }
    let evicted = |until: Option<UnixMicros>| until.is_some_and(|until| until >= look_back);
    for (what, until) in
        [("relations", context.topology.evicted_until()), ("frames", context.sources.evicted_until())]
    {
        if evicted(until) {
            return Some(format!("{what} of its window were evicted over budget"));
        }
    }
    let since = draft.first.earliest.minus(rule.reach_after());
    let skipped = context.rules.place(&rule.id).and_then(|place| context.faults.skipped_until(place));
    if skipped.is_some_and(|until| until >= since) {
        return Some("faults of its window were over budget and not compared with it".to_owned());
    }
    if let Some(reason) = unseen_end(context, rule, draft) {
        return Some(reason);
    }
    let contradicting = rule.steps.iter().filter(|step| step.presence == Presence::Contradicts);
    contradicting
        .filter_map(|step| Some((step, bind::time_of(rule, step, draft)?)))
        .find_map(|(step, window)| unseen_contradiction(context, rule, step, window, implicated))
}

/// Why evidence that the rule looks for may be missing: of the entities around the fault, or of any, some went over
/// budget. What the rule does not look for is nothing to it.
fn evicted_evidence(
    context: &Context<'_>,
    rule: &Rule,
    draft: &Draft,
    look_back: UnixMicros,
) -> Option<String> {
    let index = context.rules.place(&rule.id)?;
    let mut around = context.topology.members_of(&draft.cause);
    around.insert(draft.cause.clone());
    around.extend(draft.watched.iter().cloned());
    around.extend(draft.onsets.iter().map(|onset| onset.subject().clone()));
    let kinds = context.rules.kinds();
    let mut looked_for = (0..rule.steps.len()).flat_map(|place| kinds.of_step(index, place));
    looked_for.find_map(|kind| {
        let from = look_back.minus(context.set.reach(*kind));
        let until = context.set.evicted_until(*kind, &around)?;
        (until >= from).then(|| format!("{} of its window were evicted over budget", kinds.intent(*kind)))
    })
}

/// Whether evidence for a verdict may be among what was lost or evicted around its fault: then it may be worth more than
/// it shows. Only what it lacks could make it so; where that is required, all of it must be among what was lost, but for
/// what is not looked for yet because it is held against a step that is lacking too.
pub(super) fn may_miss_evidence(context: &Context<'_>, rule: &Rule, draft: &Draft) -> bool {
    let from = draft.first.earliest.minus(rule.reach_before().max(rule.reach_after()));
    if evicted_evidence(context, rule, draft, from).is_some() {
        return true;
    }
    let until = draft.last.latest.plus(rule.reach_after()).min(context.watermark);
    let mut sources = draft.seen_by.clone();
    for entity in draft.watched.iter().chain([&draft.cause]) {
        for member in context.topology.members_of(entity) {
            sources.extend(context.topology.told_by(&member));
        }
    }
    let losses = sources.iter().map(|id| {
        // Before it began to observe nothing was told, and nothing can have been lost.
        let began = context.sources.get(*id).map(|source| source.began).unwrap_or_default();
        context.sources.losses(*id, from.max(began).min(until), until)
    });
    let losses: Vec<Losses> = losses.filter(|its| its.unknown || !its.lost.is_empty()).collect();
    let may_be_lost = |step: &Step| {
        losses.iter().any(|its| its.unknown || its.lost.iter().any(|entry| concerns(rule, step, entry)))
    };
    let lacks = |presence: Presence| {
        let steps = rule.steps.iter().zip(&draft.bound);
        steps
            .filter(move |(step, bound)| step.presence == presence && !bound.is_present())
            .map(|(step, _)| step)
    };
    if lacks(Presence::Required).next().is_some() {
        return lacks(Presence::Required).filter(|step| draft.has_ground(step)).all(may_be_lost);
    }
    lacks(Presence::Expected).any(may_be_lost)
}

/// Why who kept another from an endpoint may no longer have been there, unseen.
fn unseen_end(context: &Context<'_>, rule: &Rule, draft: &Draft) -> Option<String> {
    let is_holder = |step: &&Step| step.links.iter().any(|link| link.to == LinkTo::KeepsOut);
    let step = rule.steps.iter().find(is_holder)?;
    let sources: BTreeSet<SourceId> =
        bind::bound_at(draft, rule.anchor)?.items().map(|item| item.source).collect();
    // The whole time around the fault, whatever supports the verdict: less of that must not make it surer.
    let (from, until) = draft.calls_within(rule);
    let until = until.min(context.watermark);
    sources.iter().find_map(|id| {
        let losses = context.sources.losses(*id, from.min(until), until);
        let lost = losses.lost.iter().any(|entry| concerns(rule, step, entry));
        (losses.unknown || lost).then(|| {
            let node = node_of(context.sources.get(*id));
            format!("{} is what {node} saw, and its end may be in what {node} lost", step.id)
        })
    })
}

/// Why a step that would speak against the verdict may be there, unseen.
fn unseen_contradiction(
    context: &Context<'_>,
    rule: &Rule,
    step: &Step,
    (from, until): (UnixMicros, UnixMicros),
    sources: &BTreeSet<SourceId>,
) -> Option<String> {
    let until = until.min(context.watermark);
    sources.iter().find_map(|id| {
        let source = context.sources.get(*id);
        if let Some(probe) = source.and_then(|source| broken_probe(source, step)) {
            return Some(format!(
                "{} would speak against it, and {probe} does not work on {}",
                step.id,
                node_of(source)
            ));
        }
        let losses = context.sources.losses(*id, from.min(until), until);
        let lost = losses.lost.iter().any(|entry| concerns(rule, step, entry));
        (losses.unknown || lost).then(|| {
            format!("{} would speak against it, and may be in what {} lost", step.id, node_of(source))
        })
    })
}

/// What keeps a verdict from deciding that this or that is its symptom, if anything does: for each of its possible ones.
pub(super) fn of_onsets(context: &Context<'_>, rule: &Rule, draft: &Draft) -> Vec<Option<String>> {
    let unsure = symptom::unsure_effects(rule, draft, |step, group| {
        let sources: BTreeSet<SourceId> = group.items.iter().map(|item| item.source).collect();
        sources.iter().try_fold(0, |unseen: u64, id| {
            Some(unseen.saturating_add(lost_before(context, rule, draft, Some(step), *id)?))
        })
    });
    let ties = (!unsure.is_empty()).then(|| symptom::Ties::without(context.topology, rule, draft, &unsure));
    let of_onset = |onset: &Onset| {
        // Of requests that were seen to break at the fault nothing more needs to be known.
        let reason = if onset.is_traced { None } else { untraced(context, rule, draft, onset) };
        let is_unsure = || ties.as_ref().is_some_and(|ties| !ties.hold(onset));
        reason.or_else(|| {
            is_unsure().then(|| {
                "records were lost before the fault: the calls that tie the symptom to it may have been broken earlier"
                    .to_owned()
            })
        })
    };
    draft.onsets.iter().map(of_onset).collect()
}

/// What was lost of a step at a source before the fault, in as long a time as it is looked for after it; `None` if
/// nobody knows.
fn lost_before(
    context: &Context<'_>,
    rule: &Rule,
    draft: &Draft,
    step: Option<&Step>,
    id: SourceId,
) -> Option<u64> {
    let fault = draft.first.earliest;
    let began = context.sources.get(id).map(|source| source.began).unwrap_or_default();
    let losses = context.sources.losses(id, fault.minus(rule.reach_after()).max(began.min(fault)), fault);
    if losses.unknown {
        return None;
    }
    let lost = losses.lost.iter().filter(|entry| step.is_none_or(|step| concerns(rule, step, entry)));
    Some(lost.map(|entry| entry.count).fold(0, u64::saturating_add))
}

/// What keeps a verdict from deciding that this is its symptom, where no request was seen on both sides.
fn untraced(context: &Context<'_>, rule: &Rule, draft: &Draft, onset: &Onset) -> Option<String> {
    match onset.chain {
        None => return Some("no broken call to it was seen".to_owned()),
        Some(LinkKind::Observed) => {}
        Some(LinkKind::None | LinkKind::Inferred) => {
            return Some("who calls whom is only inferred, and no request was seen on both sides".to_owned());
        }
    }
    unseen_beginning(context, rule, draft, onset).or_else(|| unseen_rival(context, rule, draft, onset))
}

/// Why the symptom may have been there before the fault, unseen.
fn unseen_beginning(context: &Context<'_>, rule: &Rule, draft: &Draft, onset: &Onset) -> Option<String> {
    let fault = draft.first.earliest;
    let step = rule.step(onset.stands_in.unwrap_or(onset.step));
    let mut unseen: u64 = 0;
    for id in &onset.sources {
        let source = context.sources.get(*id);
        let began = source.map(|source| source.began).unwrap_or_default();
        if began > fault.minus(context.limits.watched_min) {
            return Some(format!(
                "{} was watched for too short before the fault: the symptom may have begun earlier",
                node_of(source)
            ));
        }
        let Some(lost) = lost_before(context, rule, draft, step, *id) else {
            return Some(format!(
                "the ledger of {} has a gap before the fault: the symptom may have begun earlier",
                node_of(source)
            ));
        };
        unseen = unseen.saturating_add(lost);
    }
    onset
        .could_have_begun(unseen)
        .then(|| format!("{unseen} records were lost before the fault: the symptom may have begun earlier"))
}

/// Why another fault may explain the symptom, unseen: on a node of something that the symptom's entity calls.
fn unseen_rival(context: &Context<'_>, rule: &Rule, draft: &Draft, onset: &Onset) -> Option<String> {
    let from = draft.first.earliest.minus(rule.reach_after());
    let until = onset.first.latest.min(context.watermark);
    let announcing = || context.rules.rules().iter().filter(|rule| rule.announce == Announce::Finding);
    let Some(called) = below(context, rule, draft, onset.subject()) else {
        return Some(format!("another fault may explain it: it calls more than {BELOW_MAX} others"));
    };
    let nodes: BTreeSet<SourceId> =
        called.iter().flat_map(|called| context.topology.nodes_of(called)).collect();
    if let Some(reason) = skipped_rival(context, rule, &called, from) {
        return Some(reason);
    }
    for id in nodes {
        let source = context.sources.get(id);
        let broken = announcing()
            .filter_map(Rule::anchor_step)
            .find_map(|step| source.and_then(|source| broken_probe(source, step)));
        if let Some(probe) = broken {
            return Some(format!(
                "another fault may explain it: {probe} does not work on {}, which it calls too",
                node_of(source)
            ));
        }
        let began = source.map(|source| source.began).unwrap_or_default();
        let losses = context.sources.losses(id, from.max(began).min(until), until);
        let lost = announcing().any(|rule| {
            rule.anchor_step().is_some_and(|step| losses.lost.iter().any(|entry| concerns(rule, step, entry)))
        });
        let is_new =
            began > draft.first.earliest.minus(context.limits.watched_min) && !draft.seen_by.contains(&id);
        if losses.unknown || lost || is_new {
            return Some(format!(
                "another fault may explain it: not everything was heard from {}, which it calls too",
                node_of(source)
            ));
        }
    }
    None
}

/// Why a fault of another rule may explain it, that there was no room for: of what the symptom's entity calls.
fn skipped_rival(
    context: &Context<'_>,
    rule: &Rule,
    called: &BTreeSet<EntityKey>,
    from: UnixMicros,
) -> Option<String> {
    let others = context.rules.rules().iter().enumerate();
    let mut others = others.filter(|(_, other)| other.announce == Announce::Finding && other.id != rule.id);
    others.find_map(|(place, other)| {
        let skipped = |entity: &EntityKey| context.faults.skipped_of(place, entity) >= Some(from);
        let is_skipped =
            |called: &EntityKey| skipped(called) || context.topology.homes_of(called).any(skipped);
        let is_any = context.faults.skipped_until(place).is_some() && called.iter().any(is_skipped);
        is_any.then(|| format!("another fault may explain it: {} had no room for all of them", other.id))
    })
}

/// What `entity` calls, directly and through what is affected too; `None` if that is too much to look at.
fn below(
    context: &Context<'_>,
    rule: &Rule,
    draft: &Draft,
    entity: &EntityKey,
) -> Option<BTreeSet<EntityKey>> {
    let (from, until) = draft.calls_within(rule);
    let mut seen: BTreeSet<EntityKey> = BTreeSet::from([entity.clone()]);
    let mut queue: VecDeque<EntityKey> = VecDeque::from([entity.clone()]);
    while let Some(entity) = queue.pop_front() {
        for called in context.topology.called_by(&entity, &draft.last, from, until) {
            if seen.insert(called.clone()) && draft.watched.contains(&called) {
                queue.push_back(called);
            }
        }
        if seen.len() > BELOW_MAX {
            return None;
        }
    }
    seen.remove(entity);
    Some(seen)
}

/// A probe of the step that does not work at a source.
fn broken_probe<'a>(source: &Source, step: &'a Step) -> Option<&'a str> {
    let is_broken = |probe: &&String| source.missing_probes.iter().any(|broken| probe_name(broken) == *probe);
    step.probes.iter().find(is_broken).map(String::as_str)
}

fn node_of(source: Option<&Source>) -> &str {
    source.map(|source| source.node.as_str()).filter(|node| !node.is_empty()).unwrap_or("a source")
}

/// A missing probe may be told with its reason behind a colon.
pub(super) fn probe_name(probe: &str) -> &str {
    probe.split_once(':').map_or(probe, |(name, _reason)| name)
}

/// Whether losses of this line can hide the step: of its own probes, and of what is no probe of the rule. In the kernel
/// and at capture losses are told by probe: another probe's hide nothing of it.
pub(super) fn concerns(rule: &Rule, step: &Step, entry: &LedgerEntry) -> bool {
    /// What agents call the probes for whose names their ledger has no room.
    const OTHER: &str = "other";
    let names = |step: &Step| step.probes.contains(&entry.subject);
    if step.probes.is_empty() || names(step) {
        return true;
    }
    let is_by_probe = matches!(entry.stage, Stage::Kernel | Stage::Capture) && entry.subject != OTHER;
    !is_by_probe && !rule.steps.iter().any(names)
}
