//! The findings that live questions are answered from: the latest revision of each, and the latest revisions of all in
//! the order in which they were announced. Both are bounded: the oldest goes first, of findings those that are over.
//!
//! Must never be asked for history; that is the store's. Written by the engine's thread, read by [`crate::grpc`] and by
//! whoever embeds the aggregator.

mod follow;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tapio_schemas::finding::{Finding, FindingState};
use tokio::sync::watch;

pub use self::follow::{Cursor, CursorError, Followed, Follower, Following};

/// Revisions that are kept for those who follow: a follower that is further behind misses the oldest.
const REVISIONS_MAX: usize = 1_024;

/// The recent findings. Clones share them.
#[derive(Clone, Debug)]
pub struct Recent {
    inner: Arc<Mutex<Inner>>,
    /// The place of the next revision, for those who wait for it.
    changed: Arc<watch::Sender<u64>>,
}

#[derive(Debug)]
struct Inner {
    findings_max: usize,
    /// Which numbering of places this is: no other state directory has the same.
    log: u64,
    by_id: HashMap<String, Arc<Finding>>,
    /// Ids in the order in which they came to be known.
    order: VecDeque<String>,
    /// The latest revisions with their places, ascending.
    revisions: VecDeque<(u64, Arc<Finding>)>,
    /// Revisions below this place are not kept.
    kept_from: u64,
    /// The place of the next revision.
    next: u64,
}

impl Recent {
    pub(crate) fn new(findings_max: usize) -> Self {
        let inner = Inner {
            findings_max,
            log: 0,
            by_id: HashMap::new(),
            order: VecDeque::new(),
            revisions: VecDeque::new(),
            kept_from: 0,
            next: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)), changed: Arc::new(watch::Sender::new(0)) }
    }

    /// Says which numbering of places this is: cursors of another are refused.
    pub(crate) fn of_log(&self, log: u64) {
        self.lock().log = log;
    }

    /// Says which places the revisions have that are known at the start: from `first` to before `next`.
    pub(crate) fn begin(&self, first: u64, next: u64) {
        let mut inner = self.lock();
        inner.kept_from = first;
        inner.next = next;
    }

    /// Takes the revision at `place`, which is above all before it. One of an older revision than what is known of the
    /// finding is only told to those who follow.
    pub(crate) fn put(&self, place: u64, finding: Arc<Finding>) {
        let next = {
            let mut inner = self.lock();
            inner.keep(Arc::clone(&finding));
            inner.revisions.push_back((place, finding));
            while inner.revisions.len() > REVISIONS_MAX {
                if let Some((place, _finding)) = inner.revisions.pop_front() {
                    inner.kept_from = place + 1;
                }
            }
            inner.next = inner.next.max(place + 1);
            inner.next
        };
        self.changed.send_replace(next);
    }

    /// The findings, the first announced first.
    #[must_use]
    pub fn findings(&self) -> Vec<Arc<Finding>> {
        self.lock().findings()
    }

    /// The latest revision of one finding.
    #[must_use]
    pub fn finding(&self, id: &str) -> Option<Arc<Finding>> {
        self.lock().by_id.get(id).map(Arc::clone)
    }

    /// The revisions of one finding that are still kept, the oldest first.
    pub(crate) fn revisions(&self, id: &str) -> Vec<Arc<Finding>> {
        let inner = self.lock();
        let is_of = |(_place, finding): &&(u64, Arc<Finding>)| finding.id == id;
        inner.revisions.iter().filter(is_of).map(|(_place, finding)| Arc::clone(finding)).collect()
    }

    /// How many findings are kept.
    pub(crate) fn findings_max(&self) -> usize {
        self.lock().findings_max
    }

    /// Forgets the ids of findings that are not kept any more.
    pub(crate) fn retain_known(&self, ids: &mut HashSet<String>) {
        let inner = self.lock();
        ids.retain(|id| inner.by_id.contains_key(id));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn keep(&mut self, finding: Arc<Finding>) {
        match self.by_id.get(&finding.id) {
            Some(known) if known.revision > finding.revision => return,
            Some(_) => {}
            None => self.order.push_back(finding.id.clone()),
        }
        self.by_id.insert(finding.id.clone(), finding);
        while self.order.len() > self.findings_max {
            let over = self
                .order
                .iter()
                .position(|id| self.by_id.get(id).is_none_or(|finding| finding.state != FindingState::Open));
            // What is still open goes only where there is nothing else.
            if let Some(forgotten) = self.order.remove(over.unwrap_or(0)) {
                self.by_id.remove(&forgotten);
            }
        }
    }

    fn findings(&self) -> Vec<Arc<Finding>> {
        self.order.iter().filter_map(|id| self.by_id.get(id).map(Arc::clone)).collect()
    }

    /// The first kept revision at `place` or behind it.
    fn revision_from(&self, place: u64) -> Option<&(u64, Arc<Finding>)> {
        self.revisions.get(self.revisions.partition_point(|(at, _finding)| *at < place))
    }
}

#[cfg(test)]
pub(crate) mod tests;
