//! How far each source's frames have come: accepted, received (on this disk) and stored (in every table).
//!
//! Shared by the sessions, which answer duplicates and wait for acknowledgements here, the spooler and the feeder.
//! Must never be locked across an await. A source's frames are accepted under its lock together with their place in
//! the spool's queue, so that "received up to" is true whatever sessions come and go.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tapio_schemas::ids::SourceId;
use tapio_wire::Position;
use tokio::sync::Notify;

/// Sources that are known at a time, twice what one aggregator is meant to serve.
pub(crate) const SOURCES_MAX: usize = 16_384;

/// The positions of all sources.
#[derive(Debug, Default)]
pub(crate) struct Positions {
    sources: Mutex<HashMap<SourceId, Arc<SourcePosition>>>,
}

/// The position of one source.
#[derive(Debug, Default)]
pub(crate) struct SourcePosition {
    marks: Mutex<Marks>,
    changed: Notify,
}

/// The last frame that came so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Handed to the spooler.
    pub(crate) accepted: Position,
    /// On this disk.
    pub(crate) received: Position,
    /// In every table.
    pub(crate) stored: Position,
    /// A frame that was refused for what is in it. When it comes again, its source has nothing better to send.
    pub(crate) refused: Position,
}

impl Positions {
    /// The position of a source; `None` when too many sources are known already.
    pub(crate) fn of(&self, source: SourceId) -> Option<Arc<SourcePosition>> {
        let mut sources = self.lock();
        if let Some(position) = sources.get(&source) {
            return Some(Arc::clone(position));
        }
        if sources.len() >= SOURCES_MAX {
            // Who never sent a frame and is gone leaves nothing behind.
            sources.retain(|_, position| {
                Arc::strong_count(position) > 1 || position.marks().accepted != Position::START
            });
        }
        (sources.len() < SOURCES_MAX).then(|| Arc::clone(sources.entry(source).or_default()))
    }

    /// Says that a source's frames up to `position` are stored.
    pub(crate) fn stored(&self, source: SourceId, position: Position) {
        if let Some(of_source) = self.of(source) {
            of_source.advance(|marks| {
                marks.stored = marks.stored.max(position);
                marks.received = marks.received.max(position);
                marks.accepted = marks.accepted.max(position);
            });
        }
    }

    /// Says that a source's frames up to `position` are on this disk.
    pub(crate) fn received(&self, source: SourceId, position: Position) {
        if let Some(of_source) = self.of(source) {
            of_source.received(position);
        }
    }

    /// Forgets a source that has no session, and no frame that is not stored; false when it has.
    pub(crate) fn forget(&self, source: SourceId) -> bool {
        let mut sources = self.lock();
        let is_idle = sources.get(&source).is_none_or(|position| {
            let marks = position.marks();
            Arc::strong_count(position) == 1 && marks.accepted == marks.stored
        });
        if is_idle {
            sources.remove(&source);
        }
        is_idle
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SourceId, Arc<SourcePosition>>> {
        // Nothing that holds the lock can panic half way through a change.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SourcePosition {
    /// Takes a frame, and calls `hand_over` with the lock held if it is new, so that frames reach the spooler in the
    /// order in which they were accepted. Returns whether it was new.
    pub(crate) fn accept(&self, position: Position, hand_over: impl FnOnce()) -> bool {
        let mut marks = self.lock();
        let new = position > marks.accepted;
        if new {
            marks.accepted = position;
            hand_over();
        }
        new
    }

    /// Notes that a frame is refused for what is in it; returns whether it was refused before.
    pub(crate) fn refuse(&self, position: Position) -> bool {
        std::mem::replace(&mut self.lock().refused, position) == position
    }

    /// Says that frames up to `position` are on this disk.
    pub(crate) fn received(&self, position: Position) {
        self.advance(|marks| {
            marks.received = marks.received.max(position);
            marks.accepted = marks.accepted.max(position);
        });
    }

    /// How far its frames have come.
    pub(crate) fn marks(&self) -> Marks {
        *self.lock()
    }

    /// Waits until a mark moved since the last call. Cancel-safe: a move that nobody waited for wakes the next call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn advance(&self, change: impl FnOnce(&mut Marks)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a source sends 1, 2, 2 again, then 5; two reach the disk; its next life begins with frame 2.
    /// Guarantees: a repeat is handed over once, lives do not mix, a frame counts as refused before only if it was.
    #[test]
    fn a_frame_is_handed_over_once() {
        let positions = Positions::default();
        let id = SourceId([1; 16]);
        let source = positions.of(id).unwrap();
        let mut handed = Vec::new();
        for (incarnation, sequence, new) in
            [(7, 1, true), (7, 2, true), (7, 2, false), (7, 5, true), (8, 2, true), (7, 6, false)]
        {
            let accepted =
                source.accept(Position::new(incarnation, sequence), || handed.push((incarnation, sequence)));
            assert_eq!(accepted, new, "{incarnation}-{sequence}");
        }
        assert_eq!(handed, [(7, 1), (7, 2), (7, 5), (8, 2)]);
        source.received(Position::new(7, 2));
        assert_eq!(source.marks().received, Position::new(7, 2));
        let last = Position::new(8, 2);
        positions.stored(id, last);
        assert_eq!((source.marks().received, source.marks().stored), (last, last));
        assert!(!source.refuse(Position::new(8, 3)) && source.refuse(Position::new(8, 3)));
    }

    /// Scenario: a source has a session, then a frame that is not stored, then neither.
    /// Guarantees: only then it may be forgotten.
    #[test]
    fn only_an_idle_source_is_forgotten() {
        let positions = Positions::default();
        let id = SourceId([1; 16]);
        let source = positions.of(id).unwrap();
        assert!(!positions.forget(id));
        source.received(Position::new(1, 1));
        drop(source);
        assert!(!positions.forget(id));
        positions.stored(id, Position::new(1, 1));
        assert!(positions.forget(id));
        assert_eq!(positions.of(id).unwrap().marks(), Marks::default());
    }

    /// Scenario: as many sources as there is room for come, most of them without a frame, and go; one more comes.
    /// Guarantees: it gets a place; those with a history and those with a session keep theirs.
    #[test]
    fn sources_without_history_make_room() {
        let positions = Positions::default();
        let id = |number: usize| SourceId((number as u128).to_be_bytes());
        let held = positions.of(id(0)).unwrap();
        positions.stored(id(1), Position::new(1, 1));
        for number in 2..SOURCES_MAX {
            positions.of(id(number)).unwrap();
        }
        assert!(positions.of(id(SOURCES_MAX)).is_some());
        assert_eq!(positions.lock().len(), 3);
        assert_eq!(positions.of(id(1)).unwrap().marks().stored, Position::new(1, 1));
        drop(held);
    }
}
