//! Which session each source has: one at a time, the newest life of the source winning.
//!
//! A life that comes back although a newer one is served belongs to a second agent with the same identity: an agent
//! that was started again does not come back. What is known of such pairs is kept here until they are quiet.
//!
//! Must never be locked across an await. Called by the sessions when they learn who they serve, and by the listener's
//! metrics.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tapio_schemas::ids::{Incarnation, SourceId};
use tokio_util::sync::CancellationToken;

/// Connections of one source at a time: the one that serves, and one that is about to take its place.
pub(crate) const CONNECTIONS_PER_SOURCE_MAX: usize = 2;

/// An older life that still comes after this long is no agent that is just ending.
const ENDING_TIME_MAX: Duration = Duration::from_secs(2);
/// One that has not come for this long is gone: agents try at least every ten seconds.
const QUIET_TIME_MIN: Duration = Duration::from_secs(30);
/// Nodes with two agents that are known at a time.
const RIVALS_MAX: usize = 256;

/// The sessions.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    sources: Mutex<HashMap<SourceId, Entry>>,
    rivals: Mutex<BTreeMap<String, Rivals>>,
    next: AtomicU64,
}

/// Two agents that use one identity.
#[derive(Clone, Copy, Debug)]
struct Rivals {
    refused: Incarnation,
    refused_from: SocketAddr,
    first: Instant,
    last: Instant,
}

#[derive(Debug, Default)]
struct Entry {
    connections: usize,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    session: u64,
    incarnation: Incarnation,
    superseded: CancellationToken,
}

/// A connection's place among those of its source; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    registry: Arc<Registry>,
    source: SourceId,
    session: u64,
    /// Cancelled when a newer session took over.
    pub(crate) superseded: CancellationToken,
}

/// A life of a source that is older than the one that is being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale {
    /// The life that is being served.
    pub(crate) serving: Incarnation,
}

impl Registry {
    /// Notes that an older life of `node` came from `from` and was refused.
    pub(crate) fn note_rival(&self, node: &str, refused: Incarnation, from: SocketAddr, now: Instant) {
        let mut rivals = self.rivals();
        rivals.retain(|_node, known| now.saturating_duration_since(known.last) < QUIET_TIME_MIN);
        if let Some(known) = rivals.get_mut(node) {
            *known = Rivals { refused, refused_from: from, last: now, ..*known };
        } else if rivals.len() < RIVALS_MAX {
            rivals.insert(node.to_owned(), Rivals { refused, refused_from: from, first: now, last: now });
        }
    }

    /// The nodes whose identity two agents use, each with the older agent's life and address.
    pub(crate) fn contested(&self, now: Instant) -> Vec<(String, Incarnation, SocketAddr)> {
        let mut rivals = self.rivals();
        rivals.retain(|_node, known| now.saturating_duration_since(known.last) < QUIET_TIME_MIN);
        let lasting = rivals.iter().filter(|(_node, known)| known.last - known.first >= ENDING_TIME_MAX);
        lasting.map(|(node, known)| (node.clone(), known.refused, known.refused_from)).collect()
    }

    fn rivals(&self) -> MutexGuard<'_, BTreeMap<String, Rivals>> {
        self.rivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a connection of `source`; `None` when it has too many already.
    pub(crate) fn enter(self: &Arc<Self>, source: SourceId) -> Option<Place> {
        let mut sources = self.lock();
        let entry = sources.entry(source).or_default();
        if entry.connections >= CONNECTIONS_PER_SOURCE_MAX {
            return None;
        }
        entry.connections += 1;
        let session = self.next.fetch_add(1, Ordering::Relaxed);
        let superseded = CancellationToken::new();
        Some(Place { registry: Arc::clone(self), source, session, superseded })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SourceId, Entry>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Whose place it is.
    pub(crate) const fn source(&self) -> SourceId {
        self.source
    }

    /// Serves life `incarnation` from now on; a session of the same or an older life is told that it is superseded.
    /// (The same life again is an agent that reconnected before its old connection timed out.)
    pub(crate) fn activate(&self, incarnation: Incarnation) -> Result<(), Stale> {
        let mut sources = self.registry.lock();
        let entry = sources.entry(self.source).or_default();
        if let Some(active) = &entry.active
            && active.session != self.session
        {
            if active.incarnation > incarnation {
                return Err(Stale { serving: active.incarnation });
            }
            active.superseded.cancel();
        }
        entry.active =
            Some(Active { session: self.session, incarnation, superseded: self.superseded.clone() });
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.registry.lock();
        let Some(entry) = sources.get_mut(&self.source) else { return };
        entry.connections = entry.connections.saturating_sub(1);
        if entry.active.as_ref().is_some_and(|active| active.session == self.session) {
            entry.active = None;
        }
        if entry.connections == 0 {
            sources.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: an older life comes twice while its agent ends; another comes for seconds; then both are quiet.
    /// Guarantees: only the second is told, with where it comes from, and no longer once it is quiet.
    #[test]
    fn only_a_lasting_rival_is_told() {
        let registry = Registry::default();
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let from: SocketAddr = "10.0.0.2:4000".parse().unwrap();
        for (node, after) in [("ending", 0), ("ending", 1), ("copied", 0), ("copied", 1), ("copied", 5)] {
            registry.note_rival(node, Incarnation(6), from, start + second * after);
        }
        let told = vec![("copied".to_owned(), Incarnation(6), from)];
        assert_eq!(registry.contested(start + second * 6), told);
        assert_eq!(registry.contested(start + second * 36), Vec::new());
    }

    /// Scenario: a source connects, reconnects with a newer life, then an older life comes, then a third connection.
    /// Guarantees: the newer life supersedes, the older is refused, places are bounded and given back.
    #[test]
    fn the_newest_life_is_served() {
        let registry = Arc::new(Registry::default());
        let source = SourceId([1; 16]);
        let first = registry.enter(source).unwrap();
        first.activate(Incarnation(1)).unwrap();
        let second = registry.enter(source).unwrap();
        assert!(registry.enter(source).is_none());
        second.activate(Incarnation(2)).unwrap();
        assert!(first.superseded.is_cancelled() && !second.superseded.is_cancelled());
        drop(first);
        let third = registry.enter(source).unwrap();
        assert_eq!(third.activate(Incarnation(1)), Err(Stale { serving: Incarnation(2) }));
        drop((second, third));
        assert!(registry.lock().is_empty());
    }
}
