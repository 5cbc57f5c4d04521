//! The nodes as they are now: connected or not, what they can see, what they lost, how wrong their clocks may be.
//!
//! Told by the sessions, read by [`crate::dashboard`]. Must never be asked for history, which is the store's. Bounded:
//! so many nodes as sources, of each the last [`ACTIVITY_SECS`] seconds in steps.

mod activity;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tapio_schemas::{
    capability::{ProbeCapability, ProbeState},
    ids::Incarnation,
    ledger::LedgerEntry,
    observation::SourceProgress,
    units::{Micros, UnixMicros},
};

use self::activity::Activity;
pub(crate) use self::activity::{ACTIVITY_SECS, Step};
use crate::{pipeline::positions::SOURCES_MAX, source::Announcement};

/// A node that said nothing for so long is silent: agents send something every second.
pub(crate) const SILENT_AFTER: Micros = Micros::from_secs(10);

/// The nodes. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nodes {
    inner: Arc<Mutex<BTreeMap<String, Node>>>,
}

#[derive(Debug, Default)]
struct Node {
    /// Sessions that are open: two for a moment, when a newer one takes over.
    sessions: u32,
    session_since: UnixMicros,
    announcement: Announcement,
    /// When its last frame arrived; zero if none did since this aggregator's start.
    heard_at: UnixMicros,
    /// The event time up to which it has told everything.
    heard_until: UnixMicros,
    clock_error: Micros,
    activity: Activity,
}

/// A node's session; the node is no longer connected when its last one is dropped.
#[derive(Debug)]
pub(crate) struct Connected {
    nodes: Nodes,
    node: String,
}

/// How it stands with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NodeState {
    /// Its session is open and frames come.
    Live,
    /// Its session is open, and nothing came for [`SILENT_AFTER`].
    Silent,
    /// It has no session.
    Disconnected,
}

/// A node at one moment, as APIs give it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NodeStatus {
    pub(crate) node: String,
    pub(crate) state: NodeState,
    /// Since when its session is open; zero without one.
    pub(crate) session_since: UnixMicros,
    /// Which of the agent's lives.
    pub(crate) incarnation: Incarnation,
    pub(crate) agent_version: String,
    pub(crate) kernel_release: String,
    pub(crate) architecture: String,
    /// What its configuration allows the agent, by name.
    pub(crate) limits: BTreeMap<String, u64>,
    pub(crate) capability: Vec<ProbeCapability>,
    pub(crate) heard_at: UnixMicros,
    pub(crate) heard_until: UnixMicros,
    pub(crate) clock_error: Micros,
    /// Records and losses of the last [`ACTIVITY_SECS`] seconds.
    pub(crate) records: u64,
    pub(crate) lost: u64,
    /// The losses by stage and reason, the most first.
    pub(crate) losses: Vec<LedgerEntry>,
    /// The same over time, the oldest first.
    pub(crate) steps: Vec<Step>,
}

/// How it stands with a node, in short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    pub(crate) state: NodeState,
    pub(crate) records: u64,
    pub(crate) lost: u64,
    pub(crate) has_failed_probes: bool,
}

impl Nodes {
    /// Notes what a node said of itself before this aggregator started.
    pub(crate) fn remember(&self, node: &str, announcement: &Announcement) {
        if let Some(known) = entry(&mut self.lock(), node) {
            known.announcement = announcement.clone();
        }
    }

    /// Notes that a node's session is open.
    pub(crate) fn connected(
        &self,
        node: &str,
        announcement: &Announcement,
        now: UnixMicros,
    ) -> Option<Connected> {
        let mut nodes = self.lock();
        let known = entry(&mut nodes, node)?;
        known.sessions += 1;
        known.session_since = now;
        known.announcement = announcement.clone();
        Some(Connected { nodes: self.clone(), node: node.to_owned() })
    }

    /// Notes what a frame says of its node.
    pub(crate) fn heard(&self, progress: &SourceProgress, now: UnixMicros) {
        let mut nodes = self.lock();
        let Some(known) = nodes.get_mut(&progress.node) else { return };
        known.heard_at = now;
        known.heard_until = known.heard_until.max(progress.ledger.until);
        known.clock_error = progress.clock_error;
        known.activity.add(&progress.ledger, now);
    }

    /// All nodes, those with something to look after first.
    pub(crate) fn status(&self, now: UnixMicros) -> Vec<NodeStatus> {
        let mut all: Vec<_> = self.lock().iter().map(|(name, node)| node.status(name, now)).collect();
        let is_blind = |probe: &&ProbeCapability| matches!(probe.state, ProbeState::Failed { .. });
        let trouble =
            |node: &NodeStatus| (node.state, node.lost, node.capability.iter().filter(is_blind).count());
        all.sort_by_key(|node| std::cmp::Reverse(trouble(node)));
        all
    }

    /// In short how it stands with each node.
    pub(crate) fn summaries(&self, now: UnixMicros) -> Vec<Summary> {
        let nodes = self.lock();
        let summary = |node: &Node| {
            let (records, lost) = node.activity.totals(now);
            let has_failed_probes = node.announcement.capability.iter().any(|line| line.contains("=failed:"));
            Summary { state: node.state(now), records, lost, has_failed_probes }
        };
        nodes.values().map(summary).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Node>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    /// Notes what the node said of itself since.
    pub(crate) fn described(&self, announcement: &Announcement) {
        if let Some(known) = self.nodes.lock().get_mut(&self.node) {
            known.announcement = announcement.clone();
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        if let Some(known) = self.nodes.lock().get_mut(&self.node) {
            known.sessions = known.sessions.saturating_sub(1);
        }
    }
}

/// The node of that name; where there are too many, one that is gone makes room. The intake accepts no more sources
/// than fit.
fn entry<'a>(nodes: &'a mut BTreeMap<String, Node>, node: &str) -> Option<&'a mut Node> {
    if !nodes.contains_key(node) && nodes.len() >= SOURCES_MAX {
        let gone = nodes.iter().filter(|(_name, known)| known.sessions == 0);
        let oldest = gone.min_by_key(|(_name, known)| known.heard_at).map(|(name, _known)| name.clone())?;
        nodes.remove(&oldest);
    }
    Some(nodes.entry(node.to_owned()).or_default())
}

impl Node {
    fn state(&self, now: UnixMicros) -> NodeState {
        if self.sessions == 0 {
            NodeState::Disconnected
        } else if now.since(self.heard_at.max(self.session_since)) > SILENT_AFTER {
            NodeState::Silent
        } else {
            NodeState::Live
        }
    }

    fn status(&self, name: &str, now: UnixMicros) -> NodeStatus {
        let told = &self.announcement;
        let (records, lost) = self.activity.totals(now);
        NodeStatus {
            node: name.to_owned(),
            state: self.state(now),
            session_since: if self.sessions == 0 { UnixMicros(0) } else { self.session_since },
            incarnation: told.incarnation,
            agent_version: told.agent_version.clone(),
            kernel_release: told.kernel_release.clone(),
            architecture: told.architecture.clone(),
            limits: told.limits.clone(),
            // What is no capability was refused or counted elsewhere; here there is nothing to show of it.
            capability: told.capability.iter().filter_map(|line| line.parse().ok()).collect(),
            heard_at: self.heard_at,
            heard_until: self.heard_until,
            clock_error: self.clock_error,
            records,
            lost,
            losses: self.activity.losses(now),
            steps: self.activity.steps(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use tapio_schemas::ledger::{Fate, Ledger, Stage};

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn progress(lost: u64) -> SourceProgress {
        let mut ledger = Ledger { until: UnixMicros(7), ..Ledger::default() };
        ledger.add(Stage::Kernel, Fate::Carried, "tcp_state", "", 10);
        ledger.add(Stage::Kernel, Fate::Lost, "tcp_state", "ring-full", lost);
        SourceProgress {
            id: Default::default(),
            source: Default::default(),
            node: "n1".to_owned(),
            ledger,
            clock_error: Micros(40),
            missing_probes: Vec::new(),
        }
    }

    /// Scenario: a node connects, sends frames, is superseded by its own newer session, falls silent, and goes.
    /// Guarantees: each state is told as it is; records and losses add up, and are forgotten when their time is over.
    #[test]
    fn a_node_is_told_as_it_is() {
        let nodes = Nodes::default();
        let announcement =
            Announcement { capability: vec!["exit=working".to_owned()], ..Announcement::default() };
        nodes.heard(&progress(0), UnixMicros(SECOND));
        assert!(nodes.status(UnixMicros(SECOND)).is_empty(), "nobody is made up by a frame");
        let at = |seconds: u64| UnixMicros(1_000 * SECOND + seconds * SECOND);
        let first = nodes.connected("n1", &announcement, at(0)).unwrap();
        nodes.heard(&progress(0), at(1));
        nodes.heard(&progress(3), at(2));
        let state = |seconds| nodes.status(at(seconds)).remove(0).state;
        assert_eq!(state(2), NodeState::Live);
        let status = nodes.status(at(3)).remove(0);
        assert_eq!((status.records, status.lost), (23, 3));
        assert_eq!((status.losses.len(), status.losses[0].reason.as_str()), (1, "ring-full"));
        assert_eq!((status.clock_error, status.capability.len()), (Micros(40), 1));
        let second = nodes.connected("n1", &announcement, at(4)).unwrap();
        drop(first);
        assert_eq!((state(5), state(15)), (NodeState::Live, NodeState::Silent));
        drop(second);
        assert_eq!(state(5), NodeState::Disconnected);
        let later = nodes.status(at(ACTIVITY_SECS + 60)).remove(0);
        assert_eq!((later.records, later.lost, later.losses.len()), (0, 0, 0));
    }
}
