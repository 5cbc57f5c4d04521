//! Who calls whom around each finding, with names, so that its chain can be shown as a picture.
//!
//! Bounded like [`crate::recent`], the oldest dropped first. Written by the engine's thread when it announces, read by
//! [`crate::dashboard`]. It decides nothing, and a finding may be without: one of before a restart is until its next
//! revision.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tapio_correlation::{Names, announce::named_entity, engine::Calls};
use tapio_schemas::{finding::NamedEntity, intent::LinkKind, units::UnixMicros};

/// The calls that lead to a finding's fault.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Chain {
    /// The nearest to the fault first.
    pub(crate) calls: Vec<NamedCall>,
    /// How many more are known.
    pub(crate) left_out: u64,
}

/// Somebody called somebody.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct NamedCall {
    pub(crate) from: NamedEntity,
    pub(crate) to: NamedEntity,
    pub(crate) link: LinkKind,
}

/// The chains of recent findings. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Chains {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    findings_max: usize,
    by_finding: HashMap<String, Arc<Chain>>,
    order: VecDeque<String>,
}

impl Chain {
    pub(crate) fn new(calls: Calls, at: UnixMicros, names: &dyn Names) -> Self {
        let Calls { calls, left_out } = calls;
        let named = |entity| named_entity(entity, at, names);
        let calls = calls.iter().map(|call| NamedCall {
            from: named(&call.from),
            to: named(&call.to),
            link: call.link,
        });
        Self { calls: calls.collect(), left_out }
    }
}

impl Chains {
    pub(crate) fn new(findings_max: usize) -> Self {
        let inner = Inner { findings_max, by_finding: HashMap::new(), order: VecDeque::new() };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Keeps what is known for a finding. What was known before stays where nothing is known any more: the engine
    /// forgets, a picture need not.
    pub(crate) fn put(&self, finding: &str, chain: Chain) {
        let mut inner = self.lock();
        if chain.calls.is_empty() && inner.by_finding.contains_key(finding) {
            return;
        }
        if inner.by_finding.insert(finding.to_owned(), Arc::new(chain)).is_none() {
            inner.order.push_back(finding.to_owned());
        }
        while inner.order.len() > inner.findings_max {
            if let Some(oldest) = inner.order.pop_front() {
                inner.by_finding.remove(&oldest);
            }
        }
    }

    /// What is known for a finding.
    pub(crate) fn get(&self, finding: &str) -> Option<Arc<Chain>> {
        self.lock().by_finding.get(finding).map(Arc::clone)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
