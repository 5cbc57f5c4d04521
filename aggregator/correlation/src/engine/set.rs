//! The set of observations: by event id, and by intent in the order of time.

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

/// When an observation ended: its start moved by its duration; of a folded one, by the mean duration.
pub(super) fn end_of(observation: &Observation) -> TimeInterval {
    let length = Micros(observation.duration.0 / observation.count.max(1));
    TimeInterval {
        earliest: observation.time.earliest.plus(length),
        latest: observation.time.latest.plus(length),
    }
}

/// The observations of one intent about one entity.
#[derive(Clone, Debug, Default)]
struct Line {
    keys: BTreeSet<(UnixMicros, EventId)>,
    /// The longest time from an earliest start to a latest end.
    reach: Micros,
}

/// The set.
#[derive(Clone, Debug, Default)]
pub(super) struct ObservationSet {
    by_id: BTreeMap<EventId, Arc<Observation>>,
    by_time: BTreeSet<(UnixMicros, EventId)>,
    by_intent: BTreeMap<String, BTreeMap<(UnixMicros, EventId), Arc<Observation>>>,
    by_subject: BTreeMap<EntityKey, BTreeMap<String, Line>>,
    /// The longest time from an observation's earliest start to its latest end; how far a search must reach back.
    reach: Micros,
    /// The latest observation that was evicted over budget: nothing at or before it is taken in again.
    floor: Option<(UnixMicros, EventId)>,
    evicted: u64,
}

impl ObservationSet {
    /// Takes an observation in; whether it is new. Over budget the oldest is evicted, whatever came last.
    pub(super) fn insert(&mut self, observation: Observation, most: usize) -> bool {
        self.insert_shared(Arc::new(observation), most)
    }

    fn insert_shared(&mut self, observation: Arc<Observation>, most: usize) -> bool {
        let key = (observation.time.earliest, observation.id);
        if self.by_id.contains_key(&observation.id) || self.floor.is_some_and(|floor| key <= floor) {
            return false;
        }
        let length = end_of(&observation).latest.since(observation.time.earliest);
        self.reach = self.reach.max(length);
        self.by_id.insert(observation.id, Arc::clone(&observation));
        self.by_time.insert(key);
        let of_subject = self.by_subject.entry(observation.subject.clone()).or_default();
        let line = of_subject.entry(observation.intent.clone()).or_default();
        line.keys.insert(key);
        line.reach = line.reach.max(length);
        self.by_intent.entry(observation.intent.clone()).or_default().insert(key, observation);
        while self.by_id.len() > most {
            let Some(oldest) = self.by_time.first().copied() else { break };
            self.remove(oldest);
            self.floor = self.floor.max(Some(oldest));
            self.evicted += 1;
        }
        true
    }

    fn remove(&mut self, key: (UnixMicros, EventId)) {
        self.by_time.remove(&key);
        let Some(observation) = self.by_id.remove(&key.1) else { return };
        if let Some(line) = self.by_intent.get_mut(&observation.intent) {
            line.remove(&key);
        }
        let Some(of_subject) = self.by_subject.get_mut(&observation.subject) else { return };
        if let Some(line) = of_subject.get_mut(&observation.intent) {
            line.keys.remove(&key);
            if line.keys.is_empty() {
                of_subject.remove(&observation.intent);
            }
        }
        if of_subject.is_empty() {
            self.by_subject.remove(&observation.subject);
        }
    }

    pub(super) fn merge(&mut self, other: &Self, most: usize) {
        for observation in other.by_id.values() {
            self.insert_shared(Arc::clone(observation), most);
        }
        self.floor = self.floor.max(other.floor);
        while let (Some(oldest), Some(floor)) = (self.by_time.first().copied(), self.floor) {
            if oldest > floor {
                break;
            }
            self.remove(oldest);
        }
    }

    /// Forgets what is older than any verdict looks back. That is no eviction.
    pub(super) fn forget_before(&mut self, horizon: UnixMicros) {
        while let Some(oldest) = self.by_time.first().copied() {
            if oldest.0 >= horizon {
                break;
            }
            self.remove(oldest);
        }
    }

    /// The observations of one intent whose earliest start lies within `[from, to]`, in the order of time.
    pub(super) fn range(
        &self,
        intent: &str,
        from: UnixMicros,
        to: UnixMicros,
    ) -> impl Iterator<Item = &Arc<Observation>> {
        let line = self.by_intent.get(intent).filter(|_line| from <= to);
        let last = EventId {
            frame: tapio_schemas::ids::FrameId {
                source: tapio_schemas::ids::SourceId([u8::MAX; 16]),
                incarnation: tapio_schemas::ids::Incarnation(u64::MAX),
                sequence: tapio_schemas::ids::Sequence(u64::MAX),
            },
            row: u32::MAX,
        };
        line.into_iter().flat_map(move |line| {
            line.range((from, EventId::default())..=(to, last)).map(|(_key, observation)| observation)
        })
    }

    /// The latest end, not after `until`, of the observations of these intents about `subject` that `fits` takes.
    pub(super) fn last_end(
        &self,
        intents: &[String],
        subject: &EntityKey,
        until: UnixMicros,
        fits: impl Fn(&Observation) -> bool,
    ) -> Option<UnixMicros> {
        let of_subject = self.by_subject.get(subject)?;
        let mut last: Option<UnixMicros> = None;
        for line in intents.iter().filter_map(|intent| of_subject.get(intent)) {
            for (start, id) in line.keys.iter().rev() {
                // What began so long before cannot have ended later.
                if last.is_some_and(|last| start.plus(line.reach) <= last) {
                    break;
                }
                let Some(item) = self.by_id.get(id) else { continue };
                let end = end_of(item);
                if end.earliest <= until && fits(item) {
                    last = last.max(Some(end.latest.min(until)));
                }
            }
        }
        last
    }

    /// How far a search by start must reach back to find what ended later.
    pub(super) const fn reach(&self) -> Micros {
        self.reach
    }

    /// The time up to which observations were evicted over budget.
    pub(super) fn evicted_until(&self) -> Option<UnixMicros> {
        self.floor.map(|floor| floor.0)
    }

    pub(super) const fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }
}
