//! Faults: the observations that a rule's anchor matches, grouped by who they are about.
//!
//! Occurrences at the same entity that follow each other closely are one fault: a kernel that kills three processes
//! of one container for memory has one reason for it.

use std::{collections::BTreeMap, sync::Arc};

use tapio_schemas::{
    entity::EntityKey,
    ids::EventId,
    observation::Observation,
    units::{Micros, TimeInterval, UnixMicros},
};

use super::{set::ObservationSet, topology::Topology};
use crate::rule::{About, LinkTo, Presence, Rule, Side};

/// Which fault: the rule, its first occurrence's time and event, its entity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GroupKey {
    pub(super) rule: usize,
    at: UnixMicros,
    event: EventId,
    entity: EntityKey,
}

/// A fault's occurrences, in the order of time.
#[derive(Clone, Debug)]
pub(super) struct AnchorGroup {
    pub(super) entity: EntityKey,
    pub(super) items: Vec<Arc<Observation>>,
    pub(super) first: TimeInterval,
    pub(super) last: TimeInterval,
}

impl AnchorGroup {
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.items.len() == other.items.len()
            && self.items.iter().zip(&other.items).all(|(a, b)| a.id == b.id)
    }
}

/// The faults of one rule, in the order of time.
pub(super) fn groups(
    set: &ObservationSet,
    topology: &Topology,
    index: usize,
    rule: &Rule,
) -> Vec<(GroupKey, AnchorGroup)> {
    let Some(step) = rule.anchor_step() else { return Vec::new() };
    let mut by_entity: BTreeMap<&EntityKey, Vec<&Arc<Observation>>> = BTreeMap::new();
    for intent in &step.observe {
        for observation in set.range(intent, UnixMicros(0), UnixMicros(u64::MAX)) {
            if step.condition.as_ref().is_none_or(|condition| condition.holds(observation)) {
                let entity = match step.about {
                    About::Container => &observation.subject,
                    About::Pod => topology.home_of(&observation.subject, observation.time.latest),
                };
                by_entity.entry(entity).or_default().push(observation);
            }
        }
    }
    let longest = rule.steps.iter().map(|step| step.within(Side::After)).max().unwrap_or_default();
    let merged_within = longest.max(Micros::from_secs(1));
    let mut groups: Vec<(GroupKey, AnchorGroup)> = Vec::new();
    for (entity, mut items) in by_entity {
        items.sort_by_key(|observation| (observation.time, observation.id));
        let mut open: Option<AnchorGroup> = None;
        for item in items {
            match &mut open {
                Some(group) if item.time.earliest <= group.last.latest.plus(merged_within) => {
                    group.last = group.last.max(item.time);
                    group.items.push(Arc::clone(item));
                }
                _ => {
                    let next = AnchorGroup {
                        entity: entity.clone(),
                        items: vec![Arc::clone(item)],
                        first: item.time,
                        last: item.time,
                    };
                    groups.extend(open.replace(next).and_then(|group| keyed(index, group)));
                }
            }
        }
        groups.extend(open.and_then(|group| keyed(index, group)));
    }
    groups.sort_by(|(a, _), (b, _)| a.cmp(b));
    groups
}

/// Drops at most `surplus` faults, the oldest first, that lack what the rule requires of the same pod or container: such
/// a fault explains nothing, whatever it is compared with. A rollout ends hundreds of containers, and few fail to start.
pub(super) fn drop_hopeless(
    groups: &mut Vec<(GroupKey, AnchorGroup)>,
    surplus: usize,
    set: &ObservationSet,
    topology: &Topology,
    rule: &Rule,
) {
    if surplus == 0 {
        return;
    }
    let (from, until) = (Micros(rule.reach_before().0.saturating_add(set.reach().0)), rule.reach_after());
    let required: Vec<BTreeMap<&EntityKey, Vec<UnixMicros>>> = rule
        .steps
        .iter()
        .filter(|step| step.presence == Presence::Required)
        .filter_map(|step| {
            let link = step.links.iter().find(|link| link.step == rule.anchor)?;
            let is_by_pod = match link.to {
                LinkTo::SamePod => true,
                LinkTo::SameContainer => false,
                _ => return None,
            };
            let mut seen: BTreeMap<&EntityKey, Vec<UnixMicros>> = BTreeMap::new();
            let all = |intent| set.range(intent, UnixMicros(0), UnixMicros(u64::MAX));
            for item in step.observe.iter().flat_map(|intent| all(intent.as_str())) {
                let home = topology.home_of(&item.subject, item.time.latest);
                let entity = if is_by_pod { home } else { &item.subject };
                seen.entry(entity).or_default().push(item.time.earliest);
            }
            Some(seen)
        })
        .collect();
    let mut left = surplus;
    groups.retain(|(_key, group)| {
        let window = group.first.earliest.minus(from)..=group.last.latest.plus(until);
        let has = |seen: &BTreeMap<&EntityKey, Vec<UnixMicros>>| {
            seen.get(&group.entity).is_some_and(|times| times.iter().any(|at| window.contains(at)))
        };
        let is_dropped = left > 0 && !required.iter().all(has);
        left -= usize::from(is_dropped);
        !is_dropped
    });
}

fn keyed(rule: usize, group: AnchorGroup) -> Option<(GroupKey, AnchorGroup)> {
    let event = group.items.first()?.id;
    let key = GroupKey { rule, at: group.first.earliest, event, entity: group.entity.clone() };
    Some((key, group))
}
