//! Faults: the observations that a rule's anchor matches, grouped by who they are about.
//!
//! Occurrences at the same entity that follow each other closely are one fault: a kernel that kills three processes of
//! one container for memory has one reason for it. What goes on for longer is cut, so that no fault grows without end;
//! who announces verdicts goes on with the finding of the part before.

use std::{collections::BTreeMap, sync::Arc};

use tapio_schemas::{
    entity::EntityKey,
    ids::EventId,
    observation::Observation,
    units::{Micros, TimeInterval, UnixMicros},
};

use crate::rule::Rule;

/// Occurrences that follow each other for longer than this are cut at multiples of it.
pub(super) const LENGTH_MAX: Micros = Micros::from_secs(600);
/// The most observations of one fault: the next one begins another.
const ITEMS_MAX: usize = 1_024;

/// Which fault: the rule, its first occurrence's time and event, its entity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GroupKey {
    pub(super) rule: usize,
    pub(super) at: UnixMicros,
    pub(super) event: EventId,
    pub(super) entity: EntityKey,
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
    fn new(entity: &EntityKey, item: &Arc<Observation>) -> Self {
        Self { entity: entity.clone(), items: vec![Arc::clone(item)], first: item.time, last: item.time }
    }

    fn push(&mut self, item: &Arc<Observation>) {
        self.last = self.last.max(item.time);
        self.items.push(Arc::clone(item));
    }

    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.items.len() == other.items.len()
            && self.items.iter().zip(&other.items).all(|(a, b)| a.id == b.id)
    }

    /// Its key as one of a rule.
    pub(super) fn key(&self, rule: usize) -> GroupKey {
        let event = self.items.first().map(|item| item.id).unwrap_or_default();
        GroupKey { rule, at: self.first.earliest, event, entity: self.entity.clone() }
    }
}

/// The faults of one entity, of what is ordered by time.
pub(super) fn groups<'a>(
    rule: &Rule,
    entity: &EntityKey,
    items: impl Iterator<Item = &'a Arc<Observation>>,
) -> Vec<AnchorGroup> {
    let within = rule.merged_within();
    let mut chains: Vec<AnchorGroup> = Vec::new();
    for item in items {
        match chains.last_mut() {
            Some(chain) if item.time.earliest <= chain.last.latest.plus(within) => chain.push(item),
            _ => chains.push(AnchorGroup::new(entity, item)),
        }
    }
    chains.into_iter().flat_map(|chain| cut(entity, chain)).collect()
}

/// The parts of a chain that is too long. Where it is cut does not depend on where it begins: what was long ago is
/// forgotten.
fn cut(entity: &EntityKey, chain: AnchorGroup) -> Vec<AnchorGroup> {
    let is_long = chain.last.latest.since(chain.first.earliest) > LENGTH_MAX;
    if !is_long && chain.items.len() <= ITEMS_MAX {
        return vec![chain];
    }
    let part_of = |item: &Observation| if is_long { item.time.earliest.0 / LENGTH_MAX.0.max(1) } else { 0 };
    let mut parts: BTreeMap<u64, Vec<AnchorGroup>> = BTreeMap::new();
    for item in &chain.items {
        let parts = parts.entry(part_of(item)).or_default();
        match parts.last_mut() {
            Some(part) if part.items.len() < ITEMS_MAX => part.push(item),
            _ => parts.push(AnchorGroup::new(entity, item)),
        }
    }
    parts.into_values().flatten().collect()
}
