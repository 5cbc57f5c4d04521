//! What came or went since drafts were last brought up to date: of which kind, when, about whom.

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::{entity::EntityKey, units::UnixMicros};

type Times = BTreeSet<UnixMicros>;

/// What is fresh of one kind.
#[derive(Clone, Debug, Default)]
struct OfKind {
    times: Times,
    of: BTreeMap<EntityKey, Times>,
}

/// What is fresh, by kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Fresh(BTreeMap<usize, OfKind>);

fn is_any(times: &Times, (from, until): (UnixMicros, UnixMicros)) -> bool {
    from <= until && times.range(from..=until).next().is_some()
}

impl Fresh {
    pub(super) fn note(&mut self, kind: usize, at: UnixMicros, subject: &EntityKey) {
        let kind = self.0.entry(kind).or_default();
        kind.times.insert(at);
        if let Some(times) = kind.of.get_mut(subject) {
            times.insert(at);
        } else {
            kind.of.insert(subject.clone(), Times::from([at]));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether anything of a kind began within a window.
    pub(super) fn has(&self, kind: usize, window: (UnixMicros, UnixMicros)) -> bool {
        self.0.get(&kind).is_some_and(|kind| is_any(&kind.times, window))
    }

    /// The same of what is about one of `subjects`.
    pub(super) fn has_of(
        &self,
        kind: usize,
        window: (UnixMicros, UnixMicros),
        subjects: &BTreeSet<EntityKey>,
    ) -> bool {
        let Some(kind) = self.0.get(&kind).filter(|kind| is_any(&kind.times, window)) else { return false };
        let of = |subject: &EntityKey| kind.of.get(subject).is_some_and(|times| is_any(times, window));
        if subjects.len() <= kind.of.len() {
            subjects.iter().any(of)
        } else {
            kind.of.keys().any(|subject| subjects.contains(subject) && of(subject))
        }
    }

    pub(super) fn forget_before(&mut self, horizon: UnixMicros) {
        self.0.retain(|_kind, fresh| {
            fresh.times = fresh.times.split_off(&horizon);
            fresh.of.retain(|_subject, times| {
                *times = times.split_off(&horizon);
                !times.is_empty()
            });
            !fresh.times.is_empty()
        });
    }
}
