//! The set of observations: by kind in the order of time, and by kind and subject.
//!
//! Over budget the kinds share it equally, and within a kind its subjects do: what goes is the oldest of the subject of
//! which most is held, in the kind of which most is held. So a noisy kind or a noisy pod evicts its own. What is kept
//! does not depend on the order of arrival: what was let go once would be let go again, whatever came since.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tapio_schemas::{
    entity::EntityKey,
    ids::{EventId, FrameId, Incarnation, Sequence, SourceId},
    observation::Observation,
    units::{Micros, TimeInterval, UnixMicros},
};

/// An observation's place in time.
pub(super) type Key = (UnixMicros, EventId);

/// When an observation ended: its start moved by its duration; of a folded one, by the mean duration.
pub(super) fn end_of(observation: &Observation) -> TimeInterval {
    let length = Micros(observation.duration.0 / observation.count.max(1));
    TimeInterval {
        earliest: observation.time.earliest.plus(length),
        latest: observation.time.latest.plus(length),
    }
}

/// The observations of one kind about one entity.
#[derive(Clone, Debug, Default)]
struct Line {
    keys: BTreeSet<Key>,
    /// The longest time from an earliest start to a latest end.
    reach: Micros,
    /// The latest that was evicted over budget: nothing at or before it is taken in again.
    evicted: Option<Key>,
}

/// The observations of one kind.
#[derive(Clone, Debug, Default)]
struct Kind {
    items: BTreeMap<Key, Arc<Observation>>,
    lines: BTreeMap<EntityKey, Line>,
    /// How many are held of each entity, and the oldest of them. Made when it is first needed.
    crowded: Option<BTreeSet<(usize, Reverse<Key>)>>,
    reach: Micros,
    /// The latest that was evicted as the last of its entity: of any entity, nothing at or before it is taken in again.
    evicted: Option<Key>,
    /// The latest that was evicted of any entity.
    evicted_any: Option<UnixMicros>,
    evictions: u64,
}

impl Line {
    fn crowd(&self) -> Option<(usize, Reverse<Key>)> {
        self.keys.first().map(|oldest| (self.keys.len(), Reverse(*oldest)))
    }
}

impl Kind {
    fn insert(&mut self, key: Key, observation: &Arc<Observation>) -> bool {
        let line = self.lines.get(&observation.subject);
        let evicted = line.and_then(|line| line.evicted).max(self.evicted);
        if evicted.is_some_and(|evicted| key <= evicted) || self.items.contains_key(&key) {
            return false;
        }
        let length = end_of(observation).latest.since(observation.time.earliest);
        self.reach = self.reach.max(length);
        let line = self.lines.entry(observation.subject.clone()).or_default();
        let before = line.crowd();
        line.keys.insert(key);
        line.reach = line.reach.max(length);
        recount(&mut self.crowded, before, line.crowd());
        self.items.insert(key, Arc::clone(observation));
        true
    }

    /// Removes one; what it was, and whether others of its entity are left.
    fn remove(&mut self, key: Key) -> Option<(Arc<Observation>, bool)> {
        let item = self.items.remove(&key)?;
        let mut is_any_left = false;
        if let Some(line) = self.lines.get_mut(&item.subject) {
            let before = line.crowd();
            line.keys.remove(&key);
            recount(&mut self.crowded, before, line.crowd());
            is_any_left = !line.keys.is_empty();
            if !is_any_left {
                self.lines.remove(&item.subject);
            }
        }
        Some((item, is_any_left))
    }

    /// Evicts the oldest of the entity of which most is held.
    fn evict(&mut self) -> Option<Arc<Observation>> {
        let lines = &self.lines;
        let crowded = self.crowded.get_or_insert_with(|| lines.values().filter_map(Line::crowd).collect());
        let (_count, Reverse(key)) = crowded.last().copied()?;
        let (item, is_any_left) = self.remove(key)?;
        if is_any_left && let Some(line) = self.lines.get_mut(&item.subject) {
            line.evicted = line.evicted.max(Some(key));
        } else {
            self.evicted = self.evicted.max(Some(key));
        }
        self.evicted_any = self.evicted_any.max(Some(key.0));
        self.evictions += 1;
        Some(item)
    }
}

fn recount(
    crowded: &mut Option<BTreeSet<(usize, Reverse<Key>)>>,
    before: Option<(usize, Reverse<Key>)>,
    now: Option<(usize, Reverse<Key>)>,
) {
    let Some(crowded) = crowded else { return };
    if let Some(before) = before {
        crowded.remove(&before);
    }
    crowded.extend(now);
}

/// An observation that came or went.
#[derive(Clone, Debug)]
pub(super) struct Changed {
    pub(super) kind: usize,
    pub(super) item: Arc<Observation>,
}

/// The set.
#[derive(Clone, Debug, Default)]
pub(super) struct ObservationSet {
    kinds: Vec<Kind>,
    held: usize,
    /// What came and what went since it was last asked, of the kinds that are watched.
    changed: Vec<Changed>,
    /// Whether there were too many of them to note.
    is_overfull: bool,
    /// What was evicted since it was last asked.
    let_go: Vec<Changed>,
    watched: BTreeSet<usize>,
}

/// The most that is noted of what comes and goes: beyond, everything is looked at anew.
const CHANGED_MAX: usize = 65_536;

impl ObservationSet {
    /// An empty set that notes what comes and goes of these kinds.
    pub(super) fn watching(kinds: impl IntoIterator<Item = usize>) -> Self {
        Self { watched: kinds.into_iter().collect(), ..Self::default() }
    }

    /// Takes an observation in as one of these kinds; gives those of which it is new. Over budget others go, by shares.
    pub(super) fn insert(
        &mut self,
        observation: Observation,
        kinds: impl Iterator<Item = usize>,
        most: usize,
    ) -> Vec<usize> {
        let kinds: Vec<usize> = kinds.collect();
        if kinds.is_empty() {
            return kinds;
        }
        let observation = Arc::new(observation);
        kinds.into_iter().filter(|kind| self.insert_shared(&observation, *kind, most)).collect()
    }

    fn insert_shared(&mut self, observation: &Arc<Observation>, kind: usize, most: usize) -> bool {
        if self.kinds.len() <= kind {
            self.kinds.resize_with(kind + 1, Kind::default);
        }
        let key = (observation.time.earliest, observation.id);
        let is_new = self.kinds.get_mut(kind).is_some_and(|line| line.insert(key, observation));
        if is_new {
            self.held += 1;
            self.note(kind, observation);
            self.keep_within(most);
        }
        is_new
    }

    fn note(&mut self, kind: usize, item: &Arc<Observation>) {
        if self.watched.contains(&kind) && self.changed.len() < CHANGED_MAX {
            self.changed.push(Changed { kind, item: Arc::clone(item) });
        } else if self.watched.contains(&kind) {
            self.is_overfull = true;
        }
    }

    fn keep_within(&mut self, most: usize) {
        while self.held > most {
            let largest =
                (0..).zip(&mut self.kinds).max_by_key(|(at, kind)| (kind.items.len(), Reverse(*at)));
            let Some((at, item)) = largest.and_then(|(at, kind)| Some((at, kind.evict()?))) else { return };
            self.held -= 1;
            self.note(at, &item);
            self.let_go.push(Changed { kind: at, item });
        }
    }

    /// What was evicted since this was last asked.
    pub(super) fn take_let_go(&mut self) -> Vec<Changed> {
        std::mem::take(&mut self.let_go)
    }

    pub(super) fn merge(&mut self, other: &Self, most: usize) {
        let mut removed = Vec::new();
        for (at, theirs) in other.kinds.iter().enumerate() {
            for item in theirs.items.values() {
                self.insert_shared(item, at, most);
            }
            let Some(own) = self.kinds.get_mut(at) else { continue };
            own.evicted = own.evicted.max(theirs.evicted);
            own.evicted_any = own.evicted_any.max(theirs.evicted_any);
            let mut gone: Vec<Key> = Vec::new();
            for (subject, line) in &mut own.lines {
                let their = theirs.lines.get(subject).and_then(|line| line.evicted);
                line.evicted = line.evicted.max(their);
                let floor = line.evicted.max(own.evicted);
                gone.extend(line.keys.iter().take_while(|key| Some(**key) <= floor));
            }
            for key in gone {
                removed.extend(own.remove(key).map(|(item, _left)| (at, item)));
            }
        }
        self.let_go(&removed);
    }

    fn let_go(&mut self, removed: &[(usize, Arc<Observation>)]) {
        self.held = self.held.saturating_sub(removed.len());
        for (kind, item) in removed {
            self.note(*kind, item);
        }
    }

    /// Forgets what is older than any verdict looks back. That is no eviction.
    pub(super) fn forget_before(&mut self, horizon: UnixMicros) {
        let mut removed = Vec::new();
        for (at, kind) in self.kinds.iter_mut().enumerate() {
            while let Some(oldest) = kind.items.keys().next().copied().filter(|oldest| oldest.0 < horizon) {
                removed.extend(kind.remove(oldest).map(|(item, _left)| (at, item)));
            }
        }
        self.let_go(&removed);
    }

    /// What came or went of the watched kinds since this was last asked.
    /// Then, whether there were more than could be noted.
    pub(super) fn take_changed(&mut self) -> (Vec<Changed>, bool) {
        (std::mem::take(&mut self.changed), std::mem::take(&mut self.is_overfull))
    }

    /// Whether it is held.
    pub(super) fn holds(&self, kind: usize, item: &Observation) -> bool {
        self.kinds.get(kind).is_some_and(|kind| kind.items.contains_key(&(item.time.earliest, item.id)))
    }

    /// The observations of one kind whose earliest start lies within `[from, to]`, in the order of time.
    pub(super) fn range(
        &self,
        kind: usize,
        from: UnixMicros,
        to: UnixMicros,
    ) -> impl Iterator<Item = &Arc<Observation>> {
        let kind = self.kinds.get(kind).filter(|_kind| from <= to);
        kind.into_iter().flat_map(move |kind| {
            kind.items.range((from, EventId::default())..=(to, LAST)).map(|(_key, item)| item)
        })
    }

    /// The observations of one kind about one entity whose earliest start lies within `[from, to]`.
    pub(super) fn of_subject<'a>(
        &'a self,
        kind: usize,
        subject: &EntityKey,
        (from, to): (UnixMicros, UnixMicros),
    ) -> impl Iterator<Item = &'a Arc<Observation>> {
        let kind = self.kinds.get(kind).filter(|_kind| from <= to);
        let line = kind.and_then(|kind| Some((kind, kind.lines.get(subject)?)));
        line.into_iter().flat_map(move |(kind, line)| {
            let keys = line.keys.range((from, EventId::default())..=(to, LAST));
            keys.filter_map(|key| kind.items.get(key))
        })
    }

    /// The latest end, not after `until`, of the observations of these kinds about `subject` that `fits` takes.
    pub(super) fn last_end(
        &self,
        kinds: &[usize],
        subject: &EntityKey,
        until: UnixMicros,
        fits: impl Fn(&Observation) -> bool,
    ) -> Option<UnixMicros> {
        let mut last: Option<UnixMicros> = None;
        for kind in kinds.iter().filter_map(|kind| self.kinds.get(*kind)) {
            let Some(line) = kind.lines.get(subject) else { continue };
            for key in line.keys.iter().rev() {
                // What began so long before cannot have ended later.
                if last.is_some_and(|last| key.0.plus(line.reach) <= last) {
                    break;
                }
                let Some(item) = kind.items.get(key) else { continue };
                let end = end_of(item);
                if end.earliest <= until && fits(item) {
                    last = last.max(Some(end.latest.min(until)));
                }
            }
        }
        last
    }

    /// How often the observations of these kinds about `subject` that `fits` takes happened, by what ended after `after`
    /// and not after `until`; and the latest of those ends.
    pub(super) fn count_ends(
        &self,
        kinds: &[usize],
        subject: &EntityKey,
        (after, until): (UnixMicros, UnixMicros),
        mut fits: impl FnMut(&Observation) -> bool,
    ) -> (u64, Option<UnixMicros>) {
        let mut count: u64 = 0;
        let mut last: Option<UnixMicros> = None;
        for kind in kinds.iter().filter_map(|kind| self.kinds.get(*kind)) {
            let Some(line) = kind.lines.get(subject).filter(|_line| after < until) else { continue };
            let from = (after.minus(line.reach), EventId::default());
            for item in line.keys.range(from..=(until, LAST)).filter_map(|key| kind.items.get(key)) {
                let end = end_of(item);
                if end.earliest > after && end.earliest <= until && fits(item) {
                    count = count.saturating_add(item.count);
                    last = last.max(Some(end.latest.min(until)));
                }
            }
        }
        (count, last)
    }

    /// How far a search by start among one kind must reach back to find what ended later.
    pub(super) fn reach(&self, kind: usize) -> Micros {
        self.kinds.get(kind).map(|kind| kind.reach).unwrap_or_default()
    }

    /// The time up to which evidence of a kind was evicted over budget, about one of `subjects` or about any.
    pub(super) fn evicted_until<'a>(
        &self,
        kind: usize,
        subjects: impl IntoIterator<Item = &'a EntityKey>,
    ) -> Option<UnixMicros> {
        let kind = self.kinds.get(kind).filter(|kind| kind.evicted_any.is_some())?;
        let lines = subjects.into_iter().filter_map(|subject| kind.lines.get(subject)?.evicted);
        lines.chain(kind.evicted).map(|key| key.0).max()
    }

    /// How many were evicted over budget since the start, by kind.
    pub(super) fn evictions(&self) -> impl Iterator<Item = (usize, u64)> {
        self.kinds.iter().map(|kind| kind.evictions).enumerate().filter(|(_kind, count)| *count > 0)
    }

    pub(super) const fn len(&self) -> usize {
        self.held
    }
}

/// Behind every event of a moment.
const LAST: EventId = EventId {
    frame: FrameId {
        source: SourceId([u8::MAX; 16]),
        incarnation: Incarnation(u64::MAX),
        sequence: Sequence(u64::MAX),
    },
    row: u32::MAX,
};
