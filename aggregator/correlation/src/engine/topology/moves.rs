//! What changed in the topology since drafts were last brought up to date, as coarsely as drafts need to know it.
//!
//! Every batch confirms relations, which moves their ends; only what an answer can depend on is noted, by port and by
//! container. Bounded by the number of ports, and of containers: beyond, everything may have changed.

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::{entity::EntityKey, units::UnixMicros};

type Range = Option<(UnixMicros, UnixMicros)>;

/// What changed at one port.
#[derive(Clone, Copy, Debug, Default)]
struct Move {
    /// Who owns its endpoints, or something that is not worth telling apart.
    whole: bool,
    /// Over which time new calls were seen.
    calls: Range,
    /// Over which time the beginnings of calls moved.
    begins: Range,
    /// Over which time the ends of calls moved.
    ends: Range,
}

/// The changes, by port; what has none is told as port 0.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct Moves {
    ports: BTreeMap<u16, Move>,
    /// Containers that came to a pod, or went from one.
    containers: BTreeSet<EntityKey>,
    /// Those pods.
    pods: BTreeSet<EntityKey>,
    all_homes: bool,
    all: bool,
}

fn widen(range: &mut Range, from: UnixMicros, until: UnixMicros) {
    *range = Some(range.map_or((from, until), |(low, high)| (low.min(from), high.max(until))));
}

/// The most containers whose moves are told apart.
const CONTAINERS_MAX: usize = 65_536;

impl Moves {
    /// Any answer may have changed.
    pub(super) const fn everything(&mut self) {
        self.all = true;
    }

    pub(super) fn home(&mut self, container: &EntityKey, pod: &EntityKey) {
        if self.containers.len() >= CONTAINERS_MAX {
            self.all_homes = true;
            return;
        }
        self.containers.insert(container.clone());
        self.pods.insert(pod.clone());
    }

    pub(super) fn owners(&mut self, port: u16) {
        self.ports.entry(port).or_default().whole = true;
    }

    pub(super) fn call_added(&mut self, port: u16, since: UnixMicros, until: UnixMicros) {
        widen(&mut self.ports.entry(port).or_default().calls, since, until);
    }

    pub(super) fn call_begins(&mut self, port: u16, now: UnixMicros, before: UnixMicros) {
        widen(&mut self.ports.entry(port).or_default().begins, now, before);
    }

    pub(super) fn call_ends(&mut self, port: u16, before: UnixMicros, now: UnixMicros) {
        widen(&mut self.ports.entry(port).or_default().ends, before, now);
    }

    /// Whether one of these containers or pods may have come to another, or gone from one.
    pub(in crate::engine) fn concern_homes(&self, of: &BTreeSet<EntityKey>) -> bool {
        let mut moved = self.containers.iter().chain(&self.pods);
        let is_fewer = self.containers.len() + self.pods.len() < of.len();
        self.all_homes
            || if is_fewer {
                moved.any(|one| of.contains(one))
            } else {
                of.iter().any(|one| self.containers.contains(one) || self.pods.contains(one))
            }
    }

    /// The containers whose pods may have changed; `None` if that may be any.
    pub(in crate::engine) fn containers(&self) -> Option<&BTreeSet<EntityKey>> {
        (!self.all_homes).then_some(&self.containers)
    }

    pub(in crate::engine) fn is_empty(&self) -> bool {
        !self.all && self.ports.is_empty()
    }

    pub(super) const fn is_everything(&self) -> bool {
        self.all
    }

    /// Whether who calls an endpoint at `port` within `[from, until]` may have changed.
    pub(super) fn concern(&self, port: u16, from: UnixMicros, until: UnixMicros) -> bool {
        let Some(moved) = self.ports.get(&port) else { return false };
        let overlaps = |range: Range| range.is_some_and(|(low, high)| low <= until && high >= from);
        let begins = moved.begins.is_some_and(|(now, before)| now <= until && until < before);
        let ends = moved.ends.is_some_and(|(before, now)| before < from && from <= now);
        moved.whole || overlaps(moved.calls) || begins || ends
    }
}
