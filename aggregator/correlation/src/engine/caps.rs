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
    sources::Source,
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
    let look_back = look_back.minus(context.set.reach());
    let evicted = |until: Option<UnixMicros>| until.is_some_and(|until| until >= look_back);
    for (what, until) in [
        ("observations", context.set.evicted_until()),
        ("relations", context.topology.evicted_until()),
        ("frames", context.sources.evicted_until()),
    ] {
        if evicted(until) {
            return Some(format!("{what} of its window were evicted over budget"));
        }
    }
    if context.skipped_until.is_some_and(|until| until >= draft.first.earliest.minus(rule.reach_after())) {
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

/// What keeps a verdict from deciding that this is its symptom, if anything does.
pub(super) fn of_onset(context: &Context<'_>, rule: &Rule, draft: &Draft, onset: &Onset) -> Option<String> {
    if onset.is_traced {
        // The failing requests themselves were seen to break at the fault: nothing unseen can undo that.
        return None;
    }
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
        let from = fault.minus(rule.reach_after()).max(began.min(fault));
        let its = context.sources.losses(*id, from, fault);
        if its.unknown {
            return Some(format!(
                "the ledger of {} has a gap before the fault: the symptom may have begun earlier",
                node_of(source)
            ));
        }
        let lost = its.lost.iter().filter(|entry| step.is_none_or(|step| concerns(rule, step, entry)));
        unseen = lost.map(|entry| entry.count).fold(unseen, u64::saturating_add);
    }
    symptom::could_have_begun(onset, unseen)
        .then(|| format!("{unseen} records were lost before the fault: the symptom may have begun earlier"))
}

/// Why another fault may explain the symptom, unseen: on a node of something that the symptom's entity calls.
fn unseen_rival(context: &Context<'_>, rule: &Rule, draft: &Draft, onset: &Onset) -> Option<String> {
    let from = draft.first.earliest.minus(rule.reach_after());
    let until = onset.first.latest.min(context.watermark);
    let announcing = || context.rules.rules().iter().filter(|rule| rule.announce == Announce::Finding);
    let Some(nodes) = below(context, rule, draft, onset.subject()) else {
        return Some(format!("another fault may explain it: it calls more than {BELOW_MAX} others"));
    };
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

/// The nodes of what `entity` calls, directly and through what is affected too; `None` if that is too much to look at.
fn below(
    context: &Context<'_>,
    rule: &Rule,
    draft: &Draft,
    entity: &EntityKey,
) -> Option<BTreeSet<SourceId>> {
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
    Some(seen.iter().flat_map(|called| context.topology.nodes_of(called)).collect())
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
