//! Which failing entity is the symptom: the outermost one that calls the fault's entity, failing since the fault.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use tapio_schemas::{
    entity::EntityKey,
    ids::{SourceId, TraceId},
    intent::LinkKind,
    observation::Observation,
    units::{TimeInterval, UnixMicros},
    verdict::Role,
};

use super::{
    bind::{Bound, Draft, Group, View, bound_at},
    set::end_of,
};
use crate::rule::{LinkTo, Rule, Step};

/// The most hops that a call chain is followed.
const HOPS_MAX: u32 = 16;

/// Earlier failures count as a beginning from this many on: a single one is background.
const EARLIER_MIN: u64 = 2;

/// Earlier failures count as a beginning if they came at a quarter of the later rate or more.
const EARLIER_SHARE: u128 = 4;

/// The shortest time over which a rate is taken.
const RATE_MICROS_MIN: u64 = 1_000_000;

/// How the symptom set in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Onset {
    pub(super) subject: EntityKey,
    /// How the calls from there to the fault's entity are known.
    pub(super) chain: LinkKind,
    /// Whether requests of the symptom were seen in the broken calls: then they are explained one by one.
    pub(super) is_traced: bool,
    /// The sources that would have seen it earlier.
    pub(super) sources: BTreeSet<SourceId>,
    /// Occurrences before the fault.
    pub(super) before: u64,
    /// The highest rate after the fault, occurrences per 1,000 seconds.
    pub(super) rate: u128,
    /// When the first occurrence failed.
    pub(super) first: TimeInterval,
}

fn total<'a>(items: impl IntoIterator<Item = &'a Arc<Observation>>) -> u64 {
    items.into_iter().fold(0, |sum, item| sum.saturating_add(item.count))
}

fn rate(count: u64, micros: u64) -> u128 {
    u128::from(count) * 1_000_000_000 / u128::from(micros.max(RATE_MICROS_MIN))
}

/// The highest rate since the fault over any beginning of the items. A maximum, so that fewer items never raise it.
fn rate_since(items: &[Arc<Observation>], fault: TimeInterval) -> u128 {
    let mut ends: Vec<(UnixMicros, u64)> =
        items.iter().map(|item| (end_of(item).earliest, item.count)).collect();
    ends.sort_unstable();
    let mut sum: u64 = 0;
    let mut highest = 0;
    for (end, count) in ends {
        sum = sum.saturating_add(count);
        highest = highest.max(rate(sum, end.since(fault.earliest).0));
    }
    highest
}

/// Whether failures before the fault are so many that those after it are their continuation.
pub(super) fn began_before(earlier: &Group, later: &Group, fault: TimeInterval) -> bool {
    let count = total(&earlier.items);
    let since = earlier.items.iter().map(|item| end_of(item).earliest).min();
    let micros = since.map_or(0, |since| fault.earliest.since(since).0);
    count >= EARLIER_MIN && rate(count, micros) * EARLIER_SHARE >= rate_since(&later.items, fault)
}

/// Whether so many unseen failures before the fault would have made a beginning.
pub(super) fn could_have_begun(onset: &Onset, unseen: u64) -> bool {
    let count = onset.before.saturating_add(unseen);
    unseen > 0 && count >= EARLIER_MIN && rate(count, RATE_MICROS_MIN) * EARLIER_SHARE >= onset.rate
}

/// The traces of the effects that are bound so far.
fn effect_traces(rule: &Rule, draft: &Draft) -> BTreeMap<TraceId, LinkKind> {
    let mut traces = BTreeMap::new();
    for (step, bound) in rule.steps.iter().zip(&draft.bound) {
        if step.role() == Role::Effect {
            for (trace, link) in bound.traces() {
                let known = traces.entry(trace).or_insert(link);
                if link == LinkKind::Observed {
                    *known = link;
                }
            }
        }
    }
    traces
}

/// Entities that call the fault's entity, through entities that are affected themselves: depth and link of each.
fn upstream(
    view: &View<'_>,
    victim: &EntityKey,
    draft: &Draft,
    until: UnixMicros,
    affected: &BTreeSet<&EntityKey>,
) -> BTreeMap<EntityKey, (u32, LinkKind)> {
    let mut levels: BTreeMap<EntityKey, (u32, LinkKind)> = BTreeMap::new();
    let mut queue = VecDeque::from([(victim.clone(), 0, LinkKind::Observed)]);
    while let Some((entity, depth, link)) = queue.pop_front() {
        if depth >= HOPS_MAX {
            continue;
        }
        for (caller, its) in view.topology.callers_of(&entity, &draft.last, until) {
            if caller == *victim || levels.contains_key(&caller) {
                continue;
            }
            let both = if link == LinkKind::Observed && its == link { link } else { LinkKind::Inferred };
            levels.insert(caller.clone(), (depth + 1, both));
            if affected.contains(&caller) {
                queue.push_back((caller, depth + 1, both));
            }
        }
    }
    levels
}

struct Affected {
    group: Group,
    depth: u32,
    chain: LinkKind,
    traced: Vec<Arc<Observation>>,
    earlier: u64,
}

/// Binds a step whose entities must call the fault's entity, to the outermost of them.
pub(super) fn outermost(
    view: &View<'_>,
    rule: &Rule,
    step: &Step,
    draft: &Draft,
    groups: Vec<Group>,
    before: Vec<Group>,
) -> (Bound, Option<Onset>) {
    let mut bound = Bound::default();
    let link = step.links.iter().find(|link| link.to == LinkTo::TransitivelyCalls);
    let victim = link.and_then(|link| bound_at(draft, link.step)?.groups.first()).map(|group| &group.subject);
    let Some(victim) = victim else { return (bound, None) };
    let traces = effect_traces(rule, draft);
    let effects = rule.steps.iter().zip(&draft.bound).filter(|(step, _bound)| step.role() == Role::Effect);
    let mut affected: BTreeSet<&EntityKey> =
        effects.flat_map(|(_step, bound)| bound.groups.iter().map(|group| &group.subject)).collect();
    affected.extend(groups.iter().map(|group| &group.subject));
    let until = draft.last.latest.plus(rule.reach_after());
    let levels = upstream(view, victim, draft, until, &affected);
    let mut chosen: Option<Affected> = None;
    for mut group in groups.iter().cloned() {
        let Some((depth, link)) = levels.get(&group.subject).copied() else { continue };
        let is_traced = |item: &Arc<Observation>| {
            item.trace_link == LinkKind::Observed
                && item.trace.is_some_and(|trace| traces.get(&trace) == Some(&LinkKind::Observed))
        };
        let traced: Vec<Arc<Observation>> =
            group.items.iter().filter(|item| is_traced(item)).cloned().collect();
        let earlier = before.iter().find(|other| other.subject == group.subject);
        if let Some(earlier) = earlier
            && began_before(earlier, &group, draft.first)
        {
            // What was failing already stays unexplained, except the requests that were seen to fail at the fault.
            if traced.is_empty() {
                bound.began_before.push(earlier.clone());
                continue;
            }
            group.items.clone_from(&traced);
        }
        group.link = if traced.is_empty() { LinkKind::Inferred } else { LinkKind::Observed };
        let earlier = earlier.map_or(0, |earlier| total(&earlier.items));
        let candidate = Affected { group, depth, chain: link, traced, earlier };
        if chosen.as_ref().is_none_or(|best| rank(&candidate) > rank(best)) {
            chosen = Some(candidate);
        }
    }
    if let Some(Affected { group, chain, traced, earlier, .. }) = chosen {
        let onset = onset_of(&group, chain, !traced.is_empty(), earlier, draft);
        bound.groups = vec![group];
        return (bound, onset);
    }
    let Some(other) = step.otherwise else { return (bound, None) };
    let calls = bound_at(draft, other).map(|other| other.groups.as_slice()).unwrap_or_default();
    let outside = calls.iter().filter(|group| !view.topology.serves(&group.subject));
    let most = outside.max_by_key(|group| (total(&group.items), Reverse(&group.subject))).cloned();
    let onset = most.as_ref().and_then(|group| onset_of(group, group.link, false, 0, draft));
    bound.stands_in = most.is_some().then_some(other);
    bound.groups = most.into_iter().collect();
    (bound, onset)
}

/// Seen in the broken calls first, then the furthest up, then the earliest, then the most.
fn rank(one: &Affected) -> (bool, u32, Reverse<Option<TimeInterval>>, u64, Reverse<&EntityKey>) {
    let first = one.group.items.iter().map(|item| end_of(item)).min();
    (!one.traced.is_empty(), one.depth, Reverse(first), total(&one.group.items), Reverse(&one.group.subject))
}

fn onset_of(group: &Group, chain: LinkKind, is_traced: bool, before: u64, draft: &Draft) -> Option<Onset> {
    Some(Onset {
        subject: group.subject.clone(),
        chain,
        is_traced,
        sources: group.items.iter().map(|item| item.source).collect(),
        before,
        rate: rate_since(&group.items, draft.first),
        first: group.items.iter().map(|item| end_of(item)).min()?,
    })
}
