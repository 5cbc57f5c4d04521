//! The faults of all rules, kept up to date: an observation that comes or goes, or a container whose pod becomes known,
//! changes the faults of its own entity only.
//!
//! There is room for so many faults per rule. Over it, those go first that lack what the rule requires of the same pod
//! or container: such a fault explains nothing, whatever it is compared with. A rollout ends hundreds of containers, and
//! few fail to start.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tapio_schemas::{
    entity::EntityKey,
    ids::EventId,
    observation::Observation,
    units::{Micros, TimeInterval, UnixMicros},
};

use super::{
    anchor::{self, AnchorGroup, GroupKey},
    set::{Changed, Key, ObservationSet},
    topology::Topology,
};
use crate::rule::{About, LinkTo, Presence, Rule, RuleSet};

const ALWAYS: (UnixMicros, UnixMicros) = (UnixMicros(0), UnixMicros(u64::MAX));

type Items = BTreeMap<(TimeInterval, EventId), Arc<Observation>>;

/// Faults in the order in which they began, and in the order in which they ended.
#[derive(Clone, Debug, Default)]
struct Ranked {
    by_first: BTreeSet<GroupKey>,
    by_last: BTreeSet<(UnixMicros, GroupKey)>,
}

/// The faults of one rule.
#[derive(Clone, Debug, Default)]
struct OfRule {
    entity_of: BTreeMap<Key, EntityKey>,
    items: BTreeMap<EntityKey, Items>,
    groups: BTreeMap<GroupKey, Arc<AnchorGroup>>,
    keys: BTreeMap<EntityKey, Vec<GroupKey>>,
    /// Those that have what the rule requires of their own entity.
    hopeful: Ranked,
    hopeless: Ranked,
    /// The oldest of the hopeful that there was room for, where there was none for all.
    room_from: Option<GroupKey>,
}

/// The faults.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    rules: Vec<OfRule>,
    /// How often an entity's faults were grouped anew, since the start.
    regrouped: u64,
}

/// What is read to group faults.
pub(super) struct Ground<'a> {
    pub(super) rules: &'a RuleSet,
    pub(super) set: &'a ObservationSet,
    pub(super) topology: &'a Topology,
}

impl Ranked {
    fn insert(&mut self, key: &GroupKey, last: UnixMicros) {
        self.by_first.insert(key.clone());
        self.by_last.insert((last, key.clone()));
    }

    fn remove(&mut self, key: &GroupKey, last: UnixMicros) {
        if self.by_first.remove(key) {
            self.by_last.remove(&(last, key.clone()));
        }
    }

    fn forget_before(&mut self, oldest: UnixMicros) {
        while let Some((last, _key)) = self.by_last.first() {
            if *last >= oldest {
                break;
            }
            if let Some((_last, key)) = self.by_last.pop_first() {
                self.by_first.remove(&key);
            }
        }
    }

    fn latest(&self, count: usize) -> impl Iterator<Item = &GroupKey> {
        self.by_first.iter().rev().take(count)
    }
}

/// The kinds whose coming and going changes faults: of the faults themselves, and of what rules require of their entity.
pub(super) fn kinds(rules: &RuleSet) -> BTreeSet<usize> {
    let mut kinds = BTreeSet::new();
    for (index, rule) in rules.rules().iter().enumerate() {
        let places = own_required(rule).map(|(place, _is_by_pod)| place).chain(anchor_place(rule));
        for place in places {
            kinds.extend(rules.kinds().of_step(index, place));
        }
    }
    kinds
}

fn anchor_place(rule: &Rule) -> Option<usize> {
    usize::try_from(rule.anchor).ok()
}

/// The steps that the rule requires of the fault's own pod (`true`) or container.
fn own_required(rule: &Rule) -> impl Iterator<Item = (usize, bool)> {
    let required = |(place, step): (usize, &crate::rule::Step)| {
        let is_required = step.presence == Presence::Required;
        let link = step.links.iter().find(|link| link.step == rule.anchor).filter(|_link| is_required)?;
        match link.to {
            LinkTo::SamePod => Some((place, true)),
            LinkTo::SameContainer => Some((place, false)),
            _ => None,
        }
    };
    rule.steps.iter().enumerate().filter_map(required)
}

impl Faults {
    /// All faults of what is held, grouped anew.
    pub(super) fn from_scratch(ground: &Ground<'_>) -> Self {
        let mut faults = Self::default();
        let mut held = Vec::new();
        for kind in kinds(ground.rules) {
            let items = ground.set.range(kind, ALWAYS.0, ALWAYS.1);
            held.extend(items.map(|item| Changed { kind, item: Arc::clone(item) }));
        }
        faults.apply(ground, held, []);
        faults
    }

    /// Takes over what came or went, and the containers whose pods changed.
    pub(super) fn apply<'a>(
        &mut self,
        ground: &Ground<'_>,
        changed: Vec<Changed>,
        moved: impl IntoIterator<Item = &'a EntityKey>,
    ) {
        self.rules.resize_with(ground.rules.rules().len(), OfRule::default);
        let moved: Vec<&EntityKey> = moved.into_iter().collect();
        for (index, (rule, of_rule)) in ground.rules.rules().iter().zip(&mut self.rules).enumerate() {
            let Some(step) = rule.anchor_step() else { continue };
            let anchors =
                anchor_place(rule).map_or(&[][..], |place| ground.rules.kinds().of_step(index, place));
            let mut dirty: BTreeSet<EntityKey> = BTreeSet::new();
            for Changed { kind, item } in &changed {
                if anchors.contains(kind) {
                    of_rule.put(ground, step.about, anchors, item, &mut dirty);
                } else {
                    dirty.insert(ground.topology.home_of(&item.subject, item.time.latest).clone());
                    dirty.insert(item.subject.clone());
                }
            }
            if rule.steps.iter().any(crate::rule::Step::looks_at_pods) {
                for container in &moved {
                    dirty.extend(ground.topology.homes_of(container).cloned());
                    for kind in anchors {
                        let its: Vec<_> = ground.set.of_subject(*kind, container, ALWAYS).cloned().collect();
                        for item in its {
                            of_rule.put(ground, step.about, anchors, &item, &mut dirty);
                        }
                    }
                }
            }
            for entity in dirty {
                self.regrouped += u64::from(of_rule.regroup(ground, (index, rule), &entity));
            }
        }
    }

    /// The faults of a rule that are evaluated, the latest `most` of those that ended at `oldest` or later; and how many
    /// were left out.
    pub(super) fn alive(
        &mut self,
        rule: usize,
        oldest: UnixMicros,
        most: usize,
    ) -> (Vec<(GroupKey, Arc<AnchorGroup>)>, usize) {
        let Some(of_rule) = self.rules.get_mut(rule) else { return (Vec::new(), 0) };
        of_rule.hopeful.forget_before(oldest);
        of_rule.hopeless.forget_before(oldest);
        let (hopeful, hopeless) = (of_rule.hopeful.by_first.len(), of_rule.hopeless.by_first.len());
        let rest = most.saturating_sub(hopeful);
        let keys = of_rule.hopeful.latest(most).chain(of_rule.hopeless.latest(rest));
        let known = |key: &GroupKey| Some((key.clone(), Arc::clone(of_rule.groups.get(key)?)));
        let alive = keys.filter_map(known).collect();
        of_rule.room_from = if hopeful > most { of_rule.hopeful.latest(most).last().cloned() } else { None };
        (alive, hopeful.saturating_add(hopeless).saturating_sub(most))
    }

    /// The end of the latest fault of a rule that there was no room for, though it may explain something.
    pub(super) fn skipped_until(&self, rule: usize) -> Option<UnixMicros> {
        let of_rule = self.rules.get(rule)?;
        let from = of_rule.room_from.as_ref()?;
        // At most as many come before it as there was room for.
        of_rule.hopeful.by_last.iter().rev().find(|(_last, key)| key < from).map(|(last, _key)| *last)
    }

    /// The same of the faults of one entity.
    pub(super) fn skipped_of(&self, rule: usize, entity: &EntityKey) -> Option<UnixMicros> {
        let of_rule = self.rules.get(rule)?;
        let from = of_rule.room_from.as_ref()?;
        let keys = of_rule.keys.get(entity)?.iter();
        let skipped = keys.filter(|key| *key < from && of_rule.hopeful.by_first.contains(key));
        skipped.filter_map(|key| of_rule.groups.get(key)).map(|group| group.last.latest).max()
    }

    pub(super) const fn regrouped(&self) -> u64 {
        self.regrouped
    }
}

impl OfRule {
    /// Notes whose fault an observation is, or that it is none any more.
    fn put(
        &mut self,
        ground: &Ground<'_>,
        about: About,
        anchors: &[usize],
        item: &Arc<Observation>,
        dirty: &mut BTreeSet<EntityKey>,
    ) {
        let key = (item.time.earliest, item.id);
        let place = (item.time, item.id);
        let is_held = anchors.iter().any(|kind| ground.set.holds(*kind, item));
        let entity = match about {
            About::Container => &item.subject,
            About::Pod => ground.topology.home_of(&item.subject, item.time.latest),
        };
        let before = self.entity_of.get(&key);
        if before == is_held.then_some(entity) {
            return;
        }
        if let Some(before) = self.entity_of.remove(&key) {
            if let Some(items) = self.items.get_mut(&before) {
                items.remove(&place);
                if items.is_empty() {
                    self.items.remove(&before);
                }
            }
            dirty.insert(before);
        }
        if is_held {
            self.entity_of.insert(key, entity.clone());
            self.items.entry(entity.clone()).or_default().insert(place, Arc::clone(item));
            dirty.insert(entity.clone());
        }
    }

    /// Groups the faults of one entity anew; whether it has or had any.
    fn regroup(&mut self, ground: &Ground<'_>, (index, rule): (usize, &Rule), entity: &EntityKey) -> bool {
        let before = self.keys.remove(entity).unwrap_or_default();
        let items = self.items.get(entity);
        if before.is_empty() && items.is_none() {
            return false;
        }
        let mut known: BTreeMap<GroupKey, Arc<AnchorGroup>> = BTreeMap::new();
        for key in before {
            let Some(group) = self.groups.remove(&key) else { continue };
            self.hopeful.remove(&key, group.last.latest);
            self.hopeless.remove(&key, group.last.latest);
            known.insert(key, group);
        }
        let groups = items.map(|items| anchor::groups(rule, entity, items.values())).unwrap_or_default();
        let mut keys = Vec::with_capacity(groups.len());
        for group in groups {
            let key = group.key(index);
            let same = known.remove(&key).filter(|known| known.same_as(&group));
            let group = same.unwrap_or_else(|| Arc::new(group));
            let is_hopeful = has_own_required(ground, (index, rule), &group);
            let ranked = if is_hopeful { &mut self.hopeful } else { &mut self.hopeless };
            ranked.insert(&key, group.last.latest);
            self.groups.insert(key.clone(), group);
            keys.push(key);
        }
        if !keys.is_empty() {
            self.keys.insert(entity.clone(), keys);
        }
        true
    }
}

/// Whether a fault has, of its own pod or container, something of each that the rule requires of it.
fn has_own_required(ground: &Ground<'_>, (index, rule): (usize, &Rule), group: &AnchorGroup) -> bool {
    let kinds = ground.rules.kinds();
    let has = |(place, is_by_pod): (usize, bool)| {
        kinds.of_step(index, place).iter().any(|kind| {
            let before = Micros(rule.reach_before().0.saturating_add(ground.set.reach(*kind).0));
            let window = (group.first.earliest.minus(before), group.last.latest.plus(rule.reach_after()));
            let of = |subject: &EntityKey| {
                ground.set.of_subject(*kind, subject, window).any(|item| {
                    !is_by_pod || ground.topology.home_of(&item.subject, item.time.latest) == &group.entity
                })
            };
            of(&group.entity) || is_by_pod && ground.topology.members_of(&group.entity).iter().any(of)
        })
    };
    own_required(rule).all(has)
}
