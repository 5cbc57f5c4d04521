//! The findings that live questions are answered from: the latest revision of each, bounded, the oldest dropped first.
//!
//! Must never be asked for history; that is the store's. Written by the engine's thread, read by whoever embeds the
//! aggregator.

use std::{
    collections::HashMap,
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tapio_schemas::finding::Finding;

/// The recent findings. Clones share them.
#[derive(Clone, Debug)]
pub struct Recent {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    findings_max: usize,
    by_id: HashMap<String, Arc<Finding>>,
    /// Ids in the order of their first announcement.
    order: VecDeque<String>,
}

impl Recent {
    pub(crate) fn new(findings_max: usize) -> Self {
        let inner = Inner { findings_max, by_id: HashMap::new(), order: VecDeque::new() };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Takes a revision; one that is older than what is known is ignored.
    pub(crate) fn put(&self, finding: Arc<Finding>) {
        let mut inner = self.lock();
        match inner.by_id.get(&finding.id) {
            Some(known) if known.revision > finding.revision => return,
            Some(_) => {}
            None => inner.order.push_back(finding.id.clone()),
        }
        inner.by_id.insert(finding.id.clone(), finding);
        while inner.order.len() > inner.findings_max {
            if let Some(oldest) = inner.order.pop_front() {
                inner.by_id.remove(&oldest);
            }
        }
    }

    /// The findings, the first announced first.
    #[must_use]
    pub fn findings(&self) -> Vec<Arc<Finding>> {
        let inner = self.lock();
        inner.order.iter().filter_map(|id| inner.by_id.get(id).map(Arc::clone)).collect()
    }

    /// The latest revision of one finding.
    #[must_use]
    pub fn finding(&self, id: &str) -> Option<Arc<Finding>> {
        self.lock().by_id.get(id).map(Arc::clone)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
