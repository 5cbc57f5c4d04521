//! Binding: which observations satisfy the steps of a rule around one fault. A pure function of the set.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tapio_schemas::{
    entity::{EntityKey, EntityKind},
    ids::{SourceId, TraceId},
    intent::LinkKind,
    observation::Observation,
    units::{Micros, TimeInterval, UnixMicros},
    verdict::{Change, Evidence, Role},
};

use super::{
    anchor::AnchorGroup,
    evidence::{self, Changes},
    fresh::Fresh,
    set::{ObservationSet, end_of},
    symptom::{self, Onset},
    topology::{Moves, OwnersMemo, Topology, is_same_endpoint},
};
use crate::rule::{About, LinkTo, Rule, RuleSet, Side, Step, StepLink};

/// What binding reads.
pub(super) struct View<'a> {
    pub(super) rules: &'a RuleSet,
    /// The rule's place.
    pub(super) rule: usize,
    pub(super) set: &'a ObservationSet,
    pub(super) topology: &'a Topology,
}

/// Observations of one step about one entity, in the order of time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub(super) subject: EntityKey,
    pub(super) items: Vec<Arc<Observation>>,
    pub(super) link: LinkKind,
    /// How often the same was seen before the fault, where that is looked at.
    pub(super) before: u64,
}

/// What satisfies one step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Bound {
    pub(super) groups: Vec<Group>,
    /// The step whose evidence stands in for this one's.
    pub(super) stands_in: Option<u32>,
    /// Entities whose failures began before the fault, and those failures.
    pub(super) began_before: Vec<Group>,
    /// The traces of all that it could be, where `groups` holds the one that is shown.
    pub(super) requests: Option<BTreeMap<TraceId, LinkKind>>,
}

/// A rule, bound around one fault: everything of a verdict that does not depend on the watermark.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Draft {
    pub(super) cause: EntityKey,
    pub(super) first: TimeInterval,
    pub(super) last: TimeInterval,
    pub(super) bound: Vec<Bound>,
    /// What is known of how each possible symptom set in; the first is the one that `bound` and `lines` show.
    pub(super) onsets: Vec<Onset>,
    /// Entities whose callers and endpoints were looked at.
    pub(super) watched: BTreeSet<EntityKey>,
    /// Containers and pods of which it was asked who belongs to whom.
    housed: BTreeSet<EntityKey>,
    /// The evidence, as verdicts carry it.
    pub(super) lines: Vec<Evidence>,
    /// The sources that saw it.
    pub(super) seen_by: BTreeSet<SourceId>,
    /// What changed on the evidence's entities before the fault.
    pub(super) changes: Vec<Change>,
    change_window: (UnixMicros, UnixMicros),
    window: (UnixMicros, UnixMicros),
}

impl Bound {
    pub(super) fn items(&self) -> impl Iterator<Item = &Arc<Observation>> {
        self.groups.iter().flat_map(|group| &group.items)
    }

    pub(super) fn is_present(&self) -> bool {
        self.groups.iter().any(|group| !group.items.is_empty())
    }

    /// The trace ids of its items; each observed if one item's link to it is.
    pub(super) fn traces(&self) -> BTreeMap<TraceId, LinkKind> {
        self.requests.clone().unwrap_or_else(|| traces_of(self.items()))
    }
}

/// The trace ids of items; each observed if one item's link to it is.
pub(super) fn traces_of<'a>(
    items: impl Iterator<Item = &'a Arc<Observation>>,
) -> BTreeMap<TraceId, LinkKind> {
    let mut traces = BTreeMap::new();
    for item in items {
        if let Some(trace) = item.trace {
            let link = traces.entry(trace).or_insert(LinkKind::Inferred);
            if item.trace_link == LinkKind::Observed {
                *link = LinkKind::Observed;
            }
        }
    }
    traces
}

impl Draft {
    /// Whether something was inserted that binding would have looked at: of steps that are tied to a pod or container
    /// what is about that, of others whatever is in the window.
    pub(super) fn is_touched_by(&self, view: &View<'_>, rule: &Rule, fresh: &Fresh) -> bool {
        if fresh.is_empty() {
            return false;
        }
        let reaching =
            |kind: usize, (from, until): (UnixMicros, UnixMicros)| (from.minus(view.set.reach(kind)), until);
        let is_step_touched = |(place, step): (usize, &Step)| {
            // The anchor's evidence is the fault itself. Without that of a step that it refers to, a step has none.
            if u32::try_from(place) == Ok(rule.anchor) || !self.has_ground(step) {
                return false;
            }
            let mut kinds = view.rules.kinds().of_step(view.rule, place).iter();
            match own_subjects(view, self, step) {
                Some(own) => kinds.any(|kind| fresh.has_of(*kind, reaching(*kind, self.window), &own)),
                None => kinds.any(|kind| fresh.has(*kind, reaching(*kind, self.window))),
            }
        };
        if rule.steps.iter().enumerate().any(is_step_touched) {
            return true;
        }
        let own = evidence::changing(view.topology, &self.lines);
        let mut kinds = evidence::CHANGES.iter().filter_map(|intent| view.rules.kinds().own(intent));
        kinds.any(|kind| fresh.has_of(kind, reaching(kind, self.change_window), &own))
    }

    /// Whether each step that a step refers to has evidence.
    pub(super) fn has_ground(&self, step: &Step) -> bool {
        let others =
            step.bounds.iter().map(|bound| bound.step).chain(step.links.iter().map(|link| link.step));
        others.into_iter().all(|other| bound_at(self, other).is_some_and(Bound::is_present))
    }

    /// Whether a relation changed that binding looked at.
    pub(super) fn is_moved_by(&self, rule: &Rule, topology: &Topology, moves: &Moves) -> bool {
        let (from, until) = self.calls_within(rule);
        if rule.steps.iter().any(Step::looks_at_pods) && moves.concern_homes(&self.housed) {
            return true;
        }
        topology.concerns(moves, &self.watched, from, until)
    }

    /// When a call must have been seen, so that its caller counts as one around the fault.
    pub(super) fn calls_within(&self, rule: &Rule) -> (UnixMicros, UnixMicros) {
        let reach = rule.reach_after();
        (self.first.earliest.minus(reach), self.last.latest.plus(reach))
    }

    /// The lines of evidence with another possible symptom in the place of the one that is shown.
    pub(super) fn lines_showing(&self, rule: &Rule, onset: &Onset) -> Vec<Evidence> {
        let mut bound = self.bound.clone();
        if let Some(slot) = usize::try_from(onset.step).ok().and_then(|at| bound.get_mut(at)) {
            slot.groups = vec![onset.group.clone()];
            slot.stands_in = onset.stands_in;
        }
        evidence::lines_of(rule, &bound)
    }
}

/// Binds `rule` around the fault `group`.
pub(super) fn evaluate(view: &View<'_>, rule: &Rule, group: &AnchorGroup, change_window: Micros) -> Draft {
    let look_back = rule.reach_before().max(rule.reach_after());
    let mut draft = Draft {
        cause: group.entity.clone(),
        first: group.first,
        last: group.last,
        bound: vec![Bound::default(); rule.steps.len()],
        onsets: Vec::new(),
        watched: BTreeSet::new(),
        housed: BTreeSet::new(),
        lines: Vec::new(),
        seen_by: BTreeSet::new(),
        changes: Vec::new(),
        change_window: (group.first.earliest.minus(change_window), group.first.earliest),
        window: (group.first.earliest.minus(look_back), group.last.latest.plus(rule.reach_after())),
    };
    let (subject, items) = (group.entity.clone(), group.items.clone());
    let fault = Group { subject, items, link: LinkKind::Observed, before: 0 };
    place(&mut draft, rule.anchor, Bound { groups: vec![fault], ..Bound::default() });
    for at in &rule.order {
        let Some(step) = rule.step(*at) else { continue };
        for link in step.links.iter().filter(|link| link.to.is_by_calls()) {
            let owners = bound_at(&draft, link.step).map(|other| other.groups.as_slice()).unwrap_or_default();
            let owners: Vec<EntityKey> =
                owners.iter().flat_map(|group| view.topology.members_of(&group.subject)).collect();
            draft.watched.extend(owners);
        }
        let bound = bind_step(view, rule, *at, step, &mut draft);
        place(&mut draft, *at, bound);
    }
    let groups = draft.bound.iter().flat_map(|bound| bound.groups.iter().chain(&bound.began_before));
    let groups = groups.chain(draft.onsets.iter().map(|onset| &onset.group));
    draft.seen_by = groups.flat_map(|group| group.items.iter().map(|item| item.source)).collect();
    draft.lines = evidence::lines_of(rule, &draft.bound);
    let changes = Changes { rules: view.rules, set: view.set, topology: view.topology };
    draft.changes = changes.of(draft.first, &draft.lines, change_window);
    let subjects: Vec<EntityKey> = draft.lines.iter().map(|line| line.subject.clone()).collect();
    let homes = subjects.iter().map(|subject| view.topology.home_of(subject, draft.last.latest).clone());
    draft.housed.extend(homes);
    draft.housed.extend(subjects);
    draft.housed.extend(group.items.iter().map(|item| item.subject.clone()));
    draft
}

fn place(draft: &mut Draft, at: u32, bound: Bound) {
    let slot = usize::try_from(at).ok().and_then(|at| draft.bound.get_mut(at));
    if let Some(slot) = slot {
        *slot = bound;
    }
}

pub(super) fn bound_at(draft: &Draft, at: u32) -> Option<&Bound> {
    usize::try_from(at).ok().and_then(|at| draft.bound.get(at))
}

fn bind_step(view: &View<'_>, rule: &Rule, at: u32, step: &Step, draft: &mut Draft) -> Bound {
    let Some(window) = Window::of(step, draft) else { return Bound::default() };
    let by_call_chain = step.links.iter().any(|link| link.to == LinkTo::TransitivelyCalls);
    let mut groups = candidates(view, (at, step), draft, &window);
    if step.looks_at_pods() {
        let items = groups.iter().flat_map(|group| &group.items);
        draft.housed.extend(items.map(|item| item.subject.clone()));
    }
    groups.retain(|group| symptom::total(&group.items) >= u64::from(step.at_least));
    if !follows_fault(step) {
        return Bound { groups, ..Bound::default() };
    }
    // Failures that went on already before the fault are not explained by it.
    let before = candidates(view, (at, step), draft, &window.before_fault(draft, rule));
    if by_call_chain {
        return symptom::bind(view, rule, (at, step), draft, &groups, &before);
    }
    let mut bound = Bound::default();
    for mut group in groups {
        let earlier = before.iter().find(|other| other.subject == group.subject);
        match earlier {
            Some(earlier) if symptom::began_before(earlier, &group, draft.first) => {
                bound.began_before.push(earlier.clone());
            }
            _ => {
                group.before = earlier.map_or(0, |earlier| symptom::total(&earlier.items));
                bound.groups.push(group);
            }
        }
    }
    bound
}

/// Whether a step is what a fault leads to, so that what went on before it already is not counted.
pub(super) fn follows_fault(step: &Step) -> bool {
    let by_trace = step.links.iter().any(|link| link.to == LinkTo::SameTrace);
    matches!(step.role(), Role::Effect | Role::Symptom) && step.is_dated_by_end() && !by_trace
}

/// When a step's observations may have been: bounds on their start and on their end.
struct Window {
    start: (UnixMicros, UnixMicros),
    end: (UnixMicros, UnixMicros),
    /// Only what certainly ended before this.
    certainly_before: Option<TimeInterval>,
}

impl Window {
    /// The bounds of a step; `None` if a step that it refers to has no evidence.
    fn of(step: &Step, draft: &Draft) -> Option<Self> {
        let all = (UnixMicros(0), UnixMicros(u64::MAX));
        let mut window = Self { start: all, end: all, certainly_before: None };
        for bound in &step.bounds {
            let other = bound_at(draft, bound.step)?;
            let first = other.items().map(|item| item.time).min()?;
            let last = other.items().map(|item| item.time.latest).max()?;
            let within = Micros(bound.within_micros);
            match bound.side {
                Side::Before => {
                    window.start.0 = window.start.0.max(first.earliest.minus(within));
                    window.start.1 = window.start.1.min(first.latest);
                }
                Side::After => {
                    window.end.0 = window.end.0.max(first.earliest);
                    window.end.1 = window.end.1.min(last.plus(within));
                }
            }
        }
        for link in &step.links {
            bound_at(draft, link.step).filter(|other| other.is_present())?;
        }
        Some(window)
    }

    /// As long a time before the fault as the step may last after it.
    fn before_fault(&self, draft: &Draft, rule: &Rule) -> Self {
        let from = draft.first.earliest.minus(rule.reach_after());
        let all = (UnixMicros(0), UnixMicros(u64::MAX));
        Self {
            start: all,
            end: (from, self.end.0.max(draft.first.earliest)),
            certainly_before: Some(draft.first),
        }
    }

    fn holds(&self, observation: &Observation) -> bool {
        let (start, end) = (observation.time, end_of(observation));
        let overlaps = |of: TimeInterval, within: (UnixMicros, UnixMicros)| {
            of.earliest <= within.1 && of.latest >= within.0
        };
        overlaps(start, self.start)
            && overlaps(end, self.end)
            && self.certainly_before.is_none_or(|moment| end.certainly_before(&moment))
    }

    /// The time in which something that satisfies the step can have happened, no further from the fault than the
    /// rule looks.
    fn around(&self, rule: &Rule, draft: &Draft) -> (UnixMicros, UnixMicros) {
        let low = draft.first.earliest.minus(rule.reach_before());
        let high = draft.last.latest.plus(rule.reach_after());
        (self.start.0.max(self.end.0).max(low), self.start.1.min(self.end.1).min(high))
    }

    /// The starts among which to search.
    fn search(&self, reach: Micros) -> (UnixMicros, UnixMicros) {
        (self.start.0.minus(reach).max(self.end.0.minus(reach)), self.start.1.min(self.end.1))
    }
}

/// The time in which a step's evidence can have happened; `None` if a step that it refers to has no evidence.
pub(super) fn time_of(rule: &Rule, step: &Step, draft: &Draft) -> Option<(UnixMicros, UnixMicros)> {
    Window::of(step, draft).map(|window| window.around(rule, draft))
}

/// The observations that satisfy a step within a window, grouped by entity, each in the order of time.
fn candidates(view: &View<'_>, (place, step): (u32, &Step), draft: &Draft, window: &Window) -> Vec<Group> {
    let links: Vec<Linked<'_>> =
        step.links.iter().filter_map(|link| Linked::new(view, draft, link)).collect();
    if links.len() < step.links.len() {
        return Vec::new();
    }
    let mut owners = OwnersMemo::new(view.topology);
    let mut groups: BTreeMap<&EntityKey, Group> = BTreeMap::new();
    let kinds = usize::try_from(place).map_or(&[][..], |place| view.rules.kinds().of_step(view.rule, place));
    let own = own_subjects(view, draft, step);
    for kind in kinds {
        let within = window.search(view.set.reach(*kind));
        let of_own = own.iter().flatten().flat_map(|subject| view.set.of_subject(*kind, subject, within));
        let all = own.is_none().then(|| view.set.range(*kind, within.0, within.1));
        for item in of_own.chain(all.into_iter().flatten()) {
            if !window.holds(item) {
                continue;
            }
            let mut link = LinkKind::Observed;
            let linked = links.iter().all(|to| {
                let found = to.link_of(view.topology, &mut owners, item);
                if found == Some(LinkKind::Inferred) {
                    link = LinkKind::Inferred;
                }
                found.is_some()
            });
            if !linked {
                continue;
            }
            let subject = match step.about {
                About::Container => &item.subject,
                About::Pod => view.topology.home_of(&item.subject, item.time.latest),
            };
            let new = || Group { subject: subject.clone(), items: Vec::new(), link, before: 0 };
            let group = groups.entry(subject).or_insert_with(new);
            // One link that was seen is enough to tie the entity to the chain.
            if link == LinkKind::Observed {
                group.link = LinkKind::Observed;
            }
            group.items.push(Arc::clone(item));
        }
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    for group in &mut groups {
        group.items.sort_by_key(|item| (item.time, item.id));
    }
    groups
}

/// Whom the evidence of a step is about, where it is tied to the pod or the container of another step's.
fn own_subjects(view: &View<'_>, draft: &Draft, step: &Step) -> Option<BTreeSet<EntityKey>> {
    let is_own = |link: &&StepLink| matches!(link.to, LinkTo::SamePod | LinkTo::SameContainer);
    let link = step.links.iter().find(is_own)?;
    let groups = bound_at(draft, link.step).map(|other| other.groups.as_slice()).unwrap_or_default();
    let mut subjects = BTreeSet::new();
    for group in groups {
        if link.to == LinkTo::SamePod {
            let home = view.topology.home_of(&group.subject, draft.last.latest);
            subjects.extend(view.topology.members_of(home));
            subjects.insert(home.clone());
        } else {
            subjects.insert(group.subject.clone());
        }
    }
    Some(subjects)
}

/// A required relation to another step's evidence, prepared for asking of many observations.
struct Linked<'a> {
    to: LinkTo,
    other: &'a Bound,
    /// The containers of each of the other's entities.
    members: Vec<BTreeSet<EntityKey>>,
    /// The pods of the other's entities.
    homes: BTreeSet<&'a EntityKey>,
    traces: BTreeMap<TraceId, LinkKind>,
}

impl<'a> Linked<'a> {
    fn new(view: &View<'a>, draft: &'a Draft, link: &StepLink) -> Option<Self> {
        let other = bound_at(draft, link.step)?;
        let groups = || other.groups.iter();
        let (mut members, mut homes, mut traces) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
        match link.to {
            LinkTo::CallerOf | LinkTo::TransitivelyCalls => {
                members = groups().map(|group| view.topology.members_of(&group.subject)).collect();
            }
            LinkTo::SamePod => {
                homes =
                    groups().map(|group| view.topology.home_of(&group.subject, draft.last.latest)).collect();
            }
            LinkTo::SameTrace => traces = other.traces(),
            LinkTo::SameContainer | LinkTo::SameProcess | LinkTo::KeepsOut => {}
        }
        Some(Self { to: link.to, other, members, homes, traces })
    }

    /// Whether the other step's evidence is about this endpoint, where it is about endpoints at all: what stopped
    /// listening on one breaks no call to another.
    fn is_meant(&self, peer: &EntityKey) -> bool {
        let mut locals = self.other.items().map(|item| item.local.as_ref());
        let is_same = |local: Option<&EntityKey>| local.is_none_or(|local| is_same_endpoint(local, peer));
        peer.kind != EntityKind::Endpoint || locals.any(is_same)
    }

    /// How an observation is linked to the other step's evidence, if it is.
    fn link_of(
        &self,
        topology: &'a Topology,
        owners: &mut OwnersMemo<'a>,
        item: &'a Observation,
    ) -> Option<LinkKind> {
        match self.to {
            LinkTo::SameContainer => {
                let mut groups = self.other.groups.iter();
                groups.any(|group| group.subject == item.subject).then_some(LinkKind::Observed)
            }
            LinkTo::SamePod => {
                let home = topology.home_of(&item.subject, item.time.latest);
                self.homes.contains(home).then_some(LinkKind::Observed)
            }
            LinkTo::SameProcess => {
                let process = item.process.as_ref()?;
                let same = |one: &Arc<Observation>| {
                    one.process.as_ref().is_some_and(|its| same_process(its, process))
                };
                self.other.items().any(same).then_some(LinkKind::Observed)
            }
            LinkTo::KeepsOut => {
                let (held, kept_out) = (item.local.as_ref()?, item.peer.as_ref()?);
                let is_meant = |wanted: &Arc<Observation>| {
                    let is_there = |local: &EntityKey| is_same_endpoint(local, held);
                    wanted.source == item.source
                        && wanted.subject == *kept_out
                        && wanted.local.as_ref().is_some_and(is_there)
                };
                self.other.items().any(is_meant).then_some(LinkKind::Observed)
            }
            LinkTo::CallerOf => {
                let peer = item.peer.as_ref()?;
                let end = end_of(item);
                if !self.is_meant(peer) {
                    return None;
                }
                let mut others =
                    self.members.iter().filter(|members| !members.contains(&item.subject)).flatten();
                others.find_map(|member| owners.link_to(member, peer, &end))
            }
            // Who calls whom is decided over all of the step's entities at once, in `symptom::bind`.
            LinkTo::TransitivelyCalls => self
                .members
                .iter()
                .all(|members| !members.contains(&item.subject))
                .then_some(LinkKind::Observed),
            LinkTo::SameTrace => {
                let found = self.traces.get(&item.trace?)?;
                let observed = *found == LinkKind::Observed && item.trace_link == LinkKind::Observed;
                Some(if observed { LinkKind::Observed } else { LinkKind::Inferred })
            }
        }
    }
}

/// Whether two keys name one process: the same, or the same pid of a node where one has no start time.
fn same_process(a: &EntityKey, b: &EntityKey) -> bool {
    if a == b {
        return true;
    }
    let split =
        |key: &EntityKey| key.id.rsplit_once('/').map(|(left, right)| (left.to_owned(), right.to_owned()));
    let (Some((left, start)), Some((other_left, other_start))) = (split(a), split(b)) else { return false };
    a.kind == b.kind && left == other_left && (start == "0" || other_start == "0")
}
