//! Who an event is about: process → control group → container → pod.
//!
//! Groups are looked up once and remembered while they live and for some minutes afterwards, because records of a
//! container arrive after its end. A group that nobody can name any more is counted, never guessed. Time is an
//! argument, the host is behind [`Host`]. Called by [`crate::pipeline`] for every record.

mod hierarchy;
mod path;
mod processes;

use std::{collections::HashMap, sync::Arc};

pub use hierarchy::HierarchyError;
pub(crate) use hierarchy::{Group, Hierarchy, Host, Running, Version};
use path::Named;
pub(crate) use processes::{Process, Processes};

/// Groups that are remembered, gone ones included.
const GROUPS_MAX: usize = 16_384;
/// How long a group that is gone is remembered.
const GONE_KEPT_NANOS: u64 = 300_000_000_000;
/// How long a group that could not be found is not looked for again.
const UNKNOWN_KEPT_NANOS: u64 = 1_000_000_000;
/// A walk over all groups happens at most this often for the sake of an unknown one,
const WALK_INTERVAL_NANOS: u64 = 250_000_000;
/// and the less often, the more groups there are: one costs some microseconds, so that walks take a tenth of the time
/// at most.
const WALK_INTERVAL_NANOS_PER_GROUP: u64 = 100_000;
/// Processes that are asked for their group between two walks.
const ASKED_MAX: u32 = 256;

/// A container and where its control group is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Container {
    /// As its runtime names it.
    pub(crate) id: String,
    /// Empty for a container without a pod.
    pub(crate) pod_uid: String,
    /// The container's own group; processes may be in groups below it.
    pub(crate) group: String,
}

/// Where a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a container.
    Container(Arc<Container>),
    /// On the host itself.
    Host,
    /// In a group that was gone before it could be looked up.
    Unknown,
}

impl Place {
    pub(crate) fn container(&self) -> Option<&Arc<Container>> {
        match self {
            Self::Container(container) => Some(container),
            Self::Host | Self::Unknown => None,
        }
    }
}

/// A container came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It was not known before.
    Seen(Arc<Container>),
    /// Its group is gone.
    Gone(Arc<Container>),
}

#[derive(Debug)]
struct Entry {
    place: Place,
    /// When the entry may be forgotten.
    until_nanos: u64,
}

/// What attribution counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttributionCounts {
    /// Lookups whose group was not found.
    pub(crate) unknown: u64,
    /// Walks over all groups.
    pub(crate) walks: u64,
    /// Groups that were forgotten for want of room.
    pub(crate) forgotten: u64,
}

/// The groups that are known.
#[derive(Debug, Default)]
pub(crate) struct Attribution {
    groups: HashMap<u64, Entry>,
    containers: HashMap<String, Arc<Container>>,
    changes: Vec<Change>,
    walked_at_nanos: Option<u64>,
    /// Groups that the last walk found.
    walked_groups: u64,
    /// Processes asked since [`Self::asked_since_nanos`].
    asked: u32,
    asked_since_nanos: u64,
    counts: AttributionCounts,
}

impl Attribution {
    /// Learns all groups that exist.
    pub(crate) fn scan(&mut self, host: &impl Host, now_nanos: u64) {
        self.walked_at_nanos = Some(now_nanos);
        self.counts.walks += 1;
        let groups = host.groups();
        self.walked_groups = u64::try_from(groups.len()).unwrap_or(u64::MAX);
        for group in groups {
            self.learn(&group, now_nanos);
        }
    }

    /// Where processes of group `cgroup_id` run. `pid` is one of them, if it still lives, or zero.
    pub(crate) fn place(&mut self, host: &impl Host, cgroup_id: u64, pid: u32, now_nanos: u64) -> Place {
        if cgroup_id == 0 {
            return Place::Unknown;
        }
        match self.groups.get(&cgroup_id) {
            Some(entry) if entry.place != Place::Unknown => return entry.place.clone(),
            Some(entry) if entry.until_nanos > now_nanos => {
                self.counts.unknown += 1;
                return Place::Unknown;
            }
            _ => {}
        }
        self.look_up(host, cgroup_id, pid, now_nanos)
    }

    fn look_up(&mut self, host: &impl Host, cgroup_id: u64, pid: u32, now_nanos: u64) -> Place {
        // One process's own answer is cheap, and right as long as the process has not moved on.
        let of_process = if pid == 0 { None } else { self.ask(host, pid, now_nanos) };
        if let Some(group) = of_process.filter(|group| group.id == cgroup_id) {
            return self.learn(&group, now_nanos);
        }
        let interval =
            WALK_INTERVAL_NANOS.max(self.walked_groups.saturating_mul(WALK_INTERVAL_NANOS_PER_GROUP));
        let may_walk = self.walked_at_nanos.is_none_or(|at| now_nanos.saturating_sub(at) >= interval);
        if may_walk {
            self.scan(host, now_nanos);
            if let Some(entry) = self.groups.get(&cgroup_id)
                && entry.place != Place::Unknown
            {
                return entry.place.clone();
            }
            let until_nanos = now_nanos.saturating_add(UNKNOWN_KEPT_NANOS);
            self.insert(cgroup_id, Entry { place: Place::Unknown, until_nanos }, now_nanos);
        }
        self.counts.unknown += 1;
        Place::Unknown
    }

    /// The group of a process, unless too many were asked of late.
    fn ask(&mut self, host: &impl Host, pid: u32, now_nanos: u64) -> Option<Group> {
        if now_nanos.saturating_sub(self.asked_since_nanos) >= WALK_INTERVAL_NANOS {
            (self.asked, self.asked_since_nanos) = (0, now_nanos);
        }
        if self.asked >= ASKED_MAX {
            return None;
        }
        self.asked += 1;
        host.group_of(pid)
    }

    fn learn(&mut self, group: &Group, now_nanos: u64) -> Place {
        if let Some(entry) = self.groups.get(&group.id).filter(|entry| entry.place != Place::Unknown) {
            return entry.place.clone();
        }
        let place = match Named::parse(&group.path) {
            None => Place::Host,
            Some(named) => Place::Container(self.container(named)),
        };
        self.insert(group.id, Entry { place: place.clone(), until_nanos: u64::MAX }, now_nanos);
        place
    }

    fn container(&mut self, named: Named<'_>) -> Arc<Container> {
        if let Some(container) = self.containers.get(named.group) {
            return Arc::clone(container);
        }
        let container = Arc::new(Container {
            id: named.container_id.to_owned(),
            pod_uid: named.pod_uid(),
            group: named.group.to_owned(),
        });
        self.containers.insert(named.group.to_owned(), Arc::clone(&container));
        self.changes.push(Change::Seen(Arc::clone(&container)));
        container
    }

    /// The group of `container` is no longer there; `false` when that was known already.
    pub(crate) fn gone(&mut self, container: &Arc<Container>, now_nanos: u64) -> bool {
        if self.containers.remove(&container.group).is_none() {
            return false;
        }
        let until_nanos = now_nanos.saturating_add(GONE_KEPT_NANOS);
        for entry in self.groups.values_mut() {
            if entry.place.container().is_some_and(|other| Arc::ptr_eq(other, container)) {
                entry.until_nanos = until_nanos;
            }
        }
        self.changes.push(Change::Gone(Arc::clone(container)));
        true
    }

    /// The containers that live, in no order.
    pub(crate) fn containers(&self) -> impl Iterator<Item = &Arc<Container>> {
        self.containers.values()
    }

    /// What came and went since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Forgets what is over.
    pub(crate) fn expire(&mut self, now_nanos: u64) {
        self.groups.retain(|_, entry| entry.until_nanos > now_nanos);
    }

    pub(crate) const fn counts(&self) -> AttributionCounts {
        self.counts
    }

    fn insert(&mut self, id: u64, entry: Entry, now_nanos: u64) {
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&id) {
            self.expire(now_nanos);
            if self.groups.len() >= GROUPS_MAX {
                // The one that is over first; among those that live, any: it is looked up again.
                let victim = self.groups.iter().min_by_key(|(_, entry)| entry.until_nanos).map(|(id, _)| *id);
                if let Some(victim) = victim {
                    self.groups.remove(&victim);
                    self.counts.forgotten += 1;
                }
            }
        }
        self.groups.insert(id, entry);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[derive(Default)]
    struct Fake {
        groups: Vec<Group>,
        processes: HashMap<u32, Group>,
        walks: Cell<u32>,
        asked: Cell<u32>,
    }

    impl Host for Fake {
        fn group_of(&self, pid: u32) -> Option<Group> {
            self.asked.set(self.asked.get() + 1);
            self.processes.get(&pid).cloned()
        }
        fn groups(&self) -> Vec<Group> {
            self.walks.set(self.walks.get() + 1);
            self.groups.clone()
        }
        fn is_over(&self, path: &str) -> bool {
            !self.groups.iter().any(|group| group.path == path)
        }
    }

    fn container_path(number: u8) -> String {
        format!("/kubepods/burstable/pod0d1f6b0e-8a54-4f6e-9f0b-1c2d3e4f5a{number:02x}/{:064x}", number)
    }

    fn group(id: u64, path: &str) -> Group {
        Group { id, path: path.to_owned() }
    }

    /// Scenario: records of a container, of a group inside it, and of the host.
    /// Guarantees: both groups are the same container, seen once; the host is the host; one walk serves all.
    #[test]
    fn groups_are_named_once() {
        let path = container_path(1);
        let host = Fake {
            groups: vec![group(1, "/"), group(7, &path), group(8, &format!("{path}/inner"))],
            ..Fake::default()
        };
        let mut attribution = Attribution::default();
        let outer = attribution.place(&host, 7, 0, SECOND);
        let inner = attribution.place(&host, 8, 0, SECOND);
        assert_eq!(outer, inner);
        assert_eq!(attribution.place(&host, 1, 0, SECOND), Place::Host);
        assert_eq!(host.walks.get(), 1);
        assert_eq!(attribution.take_changes(), vec![Change::Seen(outer.container().unwrap().clone())]);
        assert!(attribution.take_changes().is_empty());
    }

    /// Scenario: a storm of records from groups that no longer exist, then a new one that a process leads to.
    /// Guarantees: walks are limited, every unknown record is counted, and a living process needs no walk.
    #[test]
    fn unknown_groups_do_not_cost_a_walk_each() {
        let mut host = Fake::default();
        host.processes.insert(42, group(9, &container_path(2)));
        let mut attribution = Attribution::default();
        for step in 0..1_000 {
            let place = attribution.place(&host, 1_000 + step, 0, SECOND + step * 1_000_000);
            assert_eq!(place, Place::Unknown);
        }
        assert!(host.walks.get() <= 5, "{}", host.walks.get());
        assert_eq!(attribution.counts().unknown, 1_000);
        let walks = host.walks.get();
        assert!(attribution.place(&host, 9, 42, 3 * SECOND).container().is_some());
        assert_eq!(host.walks.get(), walks);
        // The process has moved on: its group says nothing about this record.
        assert_eq!(attribution.place(&host, 10, 42, 3 * SECOND), Place::Unknown);
    }

    /// Scenario: a host with ten thousand groups, and within ten seconds a hundred thousand records of processes that are
    /// gone, in groups that are gone.
    /// Guarantees: walks keep their distance, few processes are asked, and every record is counted.
    #[test]
    fn a_storm_of_the_gone_costs_little() {
        let groups = (1..=10_000).map(|id| group(id, &format!("/system.slice/{id}"))).collect();
        let host = Fake { groups, ..Fake::default() };
        let mut attribution = Attribution::default();
        for step in 0..100_000_u32 {
            let now = SECOND + u64::from(step) * 100_000;
            let id = 1_000_000 + u64::from(step);
            assert_eq!(attribution.place(&host, id, step + 2, now), Place::Unknown);
        }
        assert!(host.walks.get() <= 11, "{}", host.walks.get());
        assert!(host.asked.get() <= 41 * ASKED_MAX, "{}", host.asked.get());
        assert_eq!(attribution.counts().unknown, 100_000);
    }

    /// Scenario: a container ends, its last records arrive later, and later still a group that was unknown appears.
    /// Guarantees: late records are attributed, then forgotten; an unknown group is looked for again.
    #[test]
    fn a_container_outlives_its_group() {
        let mut host = Fake { groups: vec![group(7, &container_path(3))], ..Fake::default() };
        let mut attribution = Attribution::default();
        let place = attribution.place(&host, 7, 0, SECOND);
        let container = place.container().unwrap().clone();
        host.groups.clear();
        assert!(attribution.gone(&container, 2 * SECOND));
        assert!(!attribution.gone(&container, 2 * SECOND));
        attribution.expire(60 * SECOND);
        assert_eq!(attribution.place(&host, 7, 0, 60 * SECOND), place);
        attribution.expire(400 * SECOND);
        assert_eq!(attribution.place(&host, 7, 0, 400 * SECOND), Place::Unknown);
        host.groups.push(group(7, &container_path(3)));
        assert!(attribution.place(&host, 7, 0, 402 * SECOND).container().is_some());
    }
}
