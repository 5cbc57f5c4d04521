//! Which failing entities may be the symptom: those that call the fault's entity, failing since the fault.
//!
//! Each of them is judged by itself; the outermost is shown. So evidence that is taken away can only take away: what
//! remains was judged before just as it is judged now.

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
    bind::{Bound, Draft, Group, View, bound_at, follows_fault, traces_of},
    set::end_of,
    topology::Topology,
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

/// How one possible symptom set in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Onset {
    /// The step that it satisfies.
    pub(super) step: u32,
    /// Its failures since the fault.
    pub(super) group: Group,
    /// The step whose evidence stands in for its own.
    pub(super) stands_in: Option<u32>,
    /// How the calls from there to the fault's entity are known, the last of them seen to break; `None` if none was.
    pub(super) chain: Option<LinkKind>,
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

impl Onset {
    pub(super) const fn subject(&self) -> &EntityKey {
        &self.group.subject
    }

    /// Whether so many unseen failures before the fault would have made a beginning.
    pub(super) fn could_have_begun(&self, unseen: u64) -> bool {
        could_have_begun(self.before, unseen, self.rate)
    }

    /// When the last occurrence failed.
    pub(super) fn last(&self) -> UnixMicros {
        self.group.items.iter().map(|item| end_of(item).latest).max().unwrap_or_default()
    }
}

pub(super) fn total<'a>(items: impl IntoIterator<Item = &'a Arc<Observation>>) -> u64 {
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

/// Whether so many unseen failures before the fault, beside those `before` it that were seen, would have made a
/// beginning of what came at this `highest` rate.
fn could_have_begun(before: u64, unseen: u64, highest: u128) -> bool {
    let count = before.saturating_add(unseen);
    unseen > 0 && count >= EARLIER_MIN && rate(count, RATE_MICROS_MIN) * EARLIER_SHARE >= highest
}

/// The effects that a fault leads to.
fn effects<'a>(rule: &'a Rule, draft: &'a Draft) -> impl Iterator<Item = (&'a Step, &'a Bound)> {
    rule.steps.iter().zip(&draft.bound).filter(|(step, _bound)| step.role() == Role::Effect)
}

/// The effects of which so many may have been lost before the fault that they are none of it, by their step's place and
/// entity. `unseen` tells of a group of a step how many were lost; `None` if nobody knows.
pub(super) fn unsure_effects<'a>(
    rule: &'a Rule,
    draft: &'a Draft,
    unseen: impl Fn(&Step, &Group) -> Option<u64>,
) -> BTreeSet<(&'a str, &'a EntityKey)> {
    let groups =
        effects(rule, draft).filter(|(step, _bound)| follows_fault(step)).flat_map(|(step, bound)| {
            let of_step = move |group| (step, group);
            bound.groups.iter().map(of_step)
        });
    let is_unsure = |(step, group): &(&Step, &Group)| {
        unseen(step, group).is_none_or(|unseen| {
            could_have_begun(group.before, unseen, rate_since(&group.items, draft.first))
        })
    };
    groups.filter(is_unsure).map(|(step, group)| (step.id.as_str(), &group.subject)).collect()
}

/// What ties symptoms to a fault without some of its effects.
pub(super) struct Ties {
    traces: BTreeMap<TraceId, LinkKind>,
    /// By the symptom's step.
    chains: BTreeMap<u32, Chains>,
}

impl Ties {
    pub(super) fn without(
        topology: &Topology,
        rule: &Rule,
        draft: &Draft,
        without: &BTreeSet<(&str, &EntityKey)>,
    ) -> Self {
        let mut rest = draft.clone();
        for (step, bound) in rule.steps.iter().zip(&mut rest.bound) {
            // What is tied by the symptom's own trace says nothing of whether that trace is one of the fault.
            let is_by_trace = step.links.iter().any(|link| link.to == LinkTo::SameTrace);
            bound
                .groups
                .retain(|group| !is_by_trace && !without.contains(&(step.id.as_str(), &group.subject)));
        }
        let chains = |step: u32| {
            let link = rule.step(step)?.links.iter().find(|link| link.to == LinkTo::TransitivelyCalls)?;
            let victim = bound_at(draft, link.step)?.groups.first()?;
            let victims = topology.members_of(&victim.subject);
            let broken = broken_callers(rule, &rest, link.step);
            let (at, within) = (&draft.last, draft.calls_within(rule));
            let upstream = Upstream::new(topology, (&victims, &draft.watched), broken.as_ref(), at, within);
            Some(Chains::of(&upstream, broken.as_ref()))
        };
        let steps: BTreeSet<u32> = draft.onsets.iter().map(|onset| onset.step).collect();
        let chains = steps.into_iter().filter_map(|step| Some((step, chains(step)?))).collect();
        Self { traces: effect_traces(rule, &rest), chains }
    }

    /// Whether a symptom stays tied to the fault as surely as it is.
    pub(super) fn hold(&self, onset: &Onset) -> bool {
        if onset.is_traced {
            return onset.group.items.iter().any(|item| is_traced(&self.traces, item));
        }
        self.chains.get(&onset.step).is_none_or(|chains| chains.link(onset.subject()) >= onset.chain)
    }
}

/// Whether a failing request is one that was seen to break at the fault.
fn is_traced(traces: &BTreeMap<TraceId, LinkKind>, item: &Observation) -> bool {
    item.trace_link == LinkKind::Observed
        && item.trace.is_some_and(|trace| traces.get(&trace) == Some(&LinkKind::Observed))
}

/// The traces of the effects that are bound so far.
fn effect_traces(rule: &Rule, draft: &Draft) -> BTreeMap<TraceId, LinkKind> {
    let mut traces = BTreeMap::new();
    for (_step, bound) in effects(rule, draft) {
        for (trace, link) in bound.traces() {
            let known = traces.entry(trace).or_insert(link);
            if link == LinkKind::Observed {
                *known = link;
            }
        }
    }
    traces
}

/// Who calls the fault's entity, through entities that are affected themselves.
struct Upstream<'a> {
    /// The fault's entity; of a pod its containers.
    victims: &'a BTreeSet<EntityKey>,
    /// Those through whom the search goes on.
    affected: &'a BTreeSet<EntityKey>,
    /// The callers of the victims and of the affected that the search comes to.
    callers: BTreeMap<EntityKey, BTreeMap<EntityKey, LinkKind>>,
}

impl<'a> Upstream<'a> {
    fn new(
        topology: &Topology,
        (victims, affected): (&'a BTreeSet<EntityKey>, &'a BTreeSet<EntityKey>),
        broken: Option<&BTreeMap<EntityKey, LinkKind>>,
        at: &TimeInterval,
        (from, until): (UnixMicros, UnixMicros),
    ) -> Self {
        let mut upstream = Self { victims, affected, callers: BTreeMap::new() };
        let mut next: Vec<EntityKey> = victims.iter().cloned().collect();
        while let Some(entity) = next.pop() {
            let mut its = topology.callers_of(&entity, at, from, until);
            // Calls that broke went to the victims, whoever listens there at the last of the fault.
            if victims.first() == Some(&entity) {
                broken.into_iter().flatten().for_each(|(caller, link)| add_caller(&mut its, caller, *link));
            }
            next.extend(its.keys().filter(|caller| affected.contains(caller)).cloned());
            upstream.callers.insert(entity, its);
            next.retain(|entity| !upstream.callers.contains_key(entity));
        }
        upstream
    }

    /// The callers and how far up they are, over links that are known at least as `link`. With `nearest`, only over
    /// these of the direct callers.
    fn levels(
        &self,
        link: LinkKind,
        nearest: Option<&BTreeMap<EntityKey, LinkKind>>,
    ) -> BTreeMap<EntityKey, u32> {
        let mut levels: BTreeMap<EntityKey, u32> = BTreeMap::new();
        let mut queue: VecDeque<(&EntityKey, u32)> = self.victims.iter().map(|victim| (victim, 0)).collect();
        while let Some((entity, depth)) = queue.pop_front() {
            if depth >= HOPS_MAX {
                continue;
            }
            for (caller, its) in self.callers.get(entity).into_iter().flatten() {
                let is_passable = depth > 0 || nearest.is_none_or(|nearest| nearest.contains_key(caller));
                let is_known = link != LinkKind::Observed || *its == LinkKind::Observed;
                if self.victims.contains(caller) || levels.contains_key(caller) || !is_passable || !is_known {
                    continue;
                }
                levels.insert(caller.clone(), depth + 1);
                if self.affected.contains(caller) {
                    queue.push_back((caller, depth + 1));
                }
            }
        }
        levels
    }
}

/// How the chains to the fault's entity are known.
struct Chains {
    any: BTreeMap<EntityKey, u32>,
    broken: BTreeMap<EntityKey, u32>,
    seen: BTreeMap<EntityKey, u32>,
}

impl Chains {
    /// `broken` are those whose calls to the fault's entity were seen to break; `None` if no step of the rule says
    /// what that would look like.
    fn of(upstream: &Upstream<'_>, broken: Option<&BTreeMap<EntityKey, LinkKind>>) -> Self {
        Self {
            any: upstream.levels(LinkKind::Inferred, None),
            broken: upstream.levels(LinkKind::Inferred, broken),
            seen: upstream.levels(LinkKind::Observed, broken),
        }
    }

    fn link(&self, entity: &EntityKey) -> Option<LinkKind> {
        let inferred = self.broken.contains_key(entity).then_some(LinkKind::Inferred);
        if self.seen.contains_key(entity) { Some(LinkKind::Observed) } else { inferred }
    }
}

/// Those whose calls to the victim's step broke, and how that is known; `None` if the rule has no such step.
fn broken_callers(rule: &Rule, draft: &Draft, victim: u32) -> Option<BTreeMap<EntityKey, LinkKind>> {
    let is_broken_call = |step: &Step| {
        step.role() == Role::Effect
            && step.links.iter().any(|link| link.to == LinkTo::CallerOf && link.step == victim)
    };
    rule.steps.iter().any(is_broken_call).then(|| {
        let bound = rule.steps.iter().zip(&draft.bound).filter(|(step, _bound)| is_broken_call(step));
        let groups = bound.flat_map(|(_step, bound)| &bound.groups);
        let mut callers: BTreeMap<EntityKey, LinkKind> = BTreeMap::new();
        for group in groups {
            add_caller(&mut callers, &group.subject, group.link);
        }
        callers
    })
}

/// Keeps the surest word on how a caller is known.
fn add_caller(callers: &mut BTreeMap<EntityKey, LinkKind>, caller: &EntityKey, link: LinkKind) {
    let known = callers.entry(caller.clone()).or_insert(LinkKind::Inferred);
    if link == LinkKind::Observed {
        *known = LinkKind::Observed;
    }
}

/// Binds a step whose entities must call the fault's entity: notes how each of them set in, the outermost first, and
/// shows that one.
pub(super) fn bind(
    view: &View<'_>,
    rule: &Rule,
    (at, step): (u32, &Step),
    draft: &mut Draft,
    groups: &[Group],
    before: &[Group],
) -> Bound {
    let mut bound = Bound::default();
    let Some(link) = step.links.iter().find(|link| link.to == LinkTo::TransitivelyCalls) else {
        return bound;
    };
    let victim = bound_at(draft, link.step).and_then(|bound| bound.groups.first());
    let Some(victims) = victim.map(|group| view.topology.members_of(&group.subject)) else { return bound };
    let traces = effect_traces(rule, draft);
    let subjects = |bound: &Bound| -> Vec<EntityKey> {
        bound.groups.iter().map(|group| group.subject.clone()).collect()
    };
    let mut affected: BTreeSet<EntityKey> =
        effects(rule, draft).flat_map(|(_step, bound)| subjects(bound)).collect();
    affected.extend(groups.iter().map(|group| group.subject.clone()));
    let within = draft.calls_within(rule);
    let broken = broken_callers(rule, draft, link.step);
    let upstream = Upstream::new(view.topology, (&victims, &affected), broken.as_ref(), &draft.last, within);
    let chains = Chains::of(&upstream, broken.as_ref());
    let mut onsets: Vec<(u32, Onset)> = Vec::new();
    for group in groups {
        let Some(depth) = chains.any.get(&group.subject).copied() else { continue };
        let mut group = group.clone();
        let traced = group.items.iter().filter(|item| is_traced(&traces, item));
        let traced: Vec<Arc<Observation>> = traced.cloned().collect();
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
        let chain = chains.link(&group.subject);
        let onset = onset_of(at, group, chain, !traced.is_empty(), earlier, draft);
        onsets.extend(onset.map(|onset| (depth, onset)));
    }
    let items = onsets.iter().flat_map(|(_depth, onset)| &onset.group.items);
    bound.requests = Some(traces_of(items));
    onsets.extend(stand_ins(view, at, step, draft));
    onsets.sort_by(|(a_depth, a), (b_depth, b)| rank(b, *b_depth).cmp(&rank(a, *a_depth)));
    if let Some((_depth, shown)) = onsets.first() {
        bound.groups = vec![shown.group.clone()];
        bound.stands_in = shown.stands_in;
    }
    draft.onsets = onsets.into_iter().map(|(_depth, onset)| onset).collect();
    draft.watched.extend(affected);
    bound
}

/// Callers that serve nothing themselves: they show the failure in their own calls.
fn stand_ins(view: &View<'_>, at: u32, step: &Step, draft: &Draft) -> Vec<(u32, Onset)> {
    let Some(other) = step.otherwise else { return Vec::new() };
    let calls = bound_at(draft, other).map(|other| other.groups.as_slice()).unwrap_or_default();
    let outside = calls.iter().filter(|group| !view.topology.serves(&group.subject));
    let onsets = outside.filter_map(|group| {
        let onset = onset_of(at, group.clone(), Some(group.link), false, None, draft)?;
        Some((0, Onset { stands_in: Some(other), ..onset }))
    });
    onsets.collect()
}

type Rank<'a> = (bool, bool, u8, u32, u64, Reverse<TimeInterval>, u64, Reverse<&'a EntityKey>);

/// Seen in the broken calls first, then one that fails itself, then the surest chain, then the furthest up, then the
/// earliest, then the most; of those that stand in, the most.
fn rank(one: &Onset, depth: u32) -> Rank<'_> {
    let count = total(&one.group.items);
    let stands_in = one.stands_in.is_some();
    let most = if stands_in { count } else { 0 };
    // What was seen on both sides needs no chain.
    let chain = match one.chain.filter(|_link| !one.is_traced) {
        None => 0,
        Some(LinkKind::None | LinkKind::Inferred) => 1,
        Some(LinkKind::Observed) => 2,
    };
    (one.is_traced, !stands_in, chain, depth, most, Reverse(one.first), count, Reverse(one.subject()))
}

fn onset_of(
    step: u32,
    group: Group,
    chain: Option<LinkKind>,
    is_traced: bool,
    earlier: Option<&Group>,
    draft: &Draft,
) -> Option<Onset> {
    let earlier = earlier.map(|earlier| earlier.items.as_slice()).unwrap_or_default();
    Some(Onset {
        step,
        stands_in: None,
        chain,
        is_traced,
        sources: group.items.iter().chain(earlier).map(|item| item.source).collect(),
        before: if earlier.is_empty() { group.before } else { total(earlier) },
        rate: rate_since(&group.items, draft.first),
        first: group.items.iter().map(|item| end_of(item)).min()?,
        group,
    })
}
