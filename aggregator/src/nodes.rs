//! The nodes as they are now: connected or not, what they can see, what they lost, how wrong their clocks may be.
//!
//! Told by the sessions, read by [`crate::dashboard`]. Must never be asked for history, which is the store's. Bounded:
//! so many nodes as sources, of each the last [`ACTIVITY_SECS`] seconds in steps.
//!
//! Sessions must not wait for readers: the table is locked to find nodes only, and whoever reads then locks one node
//! after the other, never the table behind a node.

mod activity;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tapio_schemas::{
    capability::ProbeCapability,
    ids::Incarnation,
    ledger::LedgerEntry,
    observation::SourceProgress,
    units::{Micros, UnixMicros},
};

use self::activity::Activity;
pub(crate) use self::activity::{ACTIVITY_SECS, STEP_SECS, Step};
use crate::{pipeline::positions::SOURCES_MAX, source::Announcement};

/// A node that said nothing for so long is silent: agents send something every second.
pub(crate) const SILENT_AFTER: Micros = Micros::from_secs(10);

/// So old a summary still serves: every stream asks for one every few seconds.
const SUMMARY_AGE_MAX: Micros = Micros::from_secs(1);

/// The nodes. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nodes {
    table: Arc<Mutex<Table>>,
    /// When it was made, and what it says.
    summary: Arc<Mutex<Option<(UnixMicros, Summary)>>>,
}

type Table = BTreeMap<String, Arc<Mutex<Node>>>;

#[derive(Debug, Default)]
struct Node {
    /// Sessions that are open: two for a moment, when a newer one takes over.
    sessions: u32,
    session_since: UnixMicros,
    announcement: Announcement,
    /// What it announced of its probes, read.
    capability: Vec<ProbeCapability>,
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

/// How it stands with all nodes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) counts: Counts,
    /// Records and losses of the last [`ACTIVITY_SECS`] seconds.
    pub(crate) records: u64,
    pub(crate) lost: u64,
}

/// How many nodes there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) known: usize,
    pub(crate) live: usize,
    pub(crate) silent: usize,
    pub(crate) disconnected: usize,
    /// Nodes that lost something in the last [`ACTIVITY_SECS`] seconds.
    pub(crate) with_losses: usize,
    /// Nodes on which a probe was refused.
    pub(crate) with_failed_probes: usize,
}

impl Nodes {
    /// Notes what a node said of itself before this aggregator started.
    pub(crate) fn remember(&self, node: &str, announcement: &Announcement) {
        if let Some(known) = entry(&mut lock(&self.table), node) {
            lock(&known).describe(announcement);
        }
    }

    /// Notes that a node's session is open.
    pub(crate) fn connected(
        &self,
        node: &str,
        announcement: &Announcement,
        now: UnixMicros,
    ) -> Option<Connected> {
        let mut table = lock(&self.table);
        let known = entry(&mut table, node)?;
        // With the table locked: a node without a session may make room for another.
        let mut known = lock(&known);
        known.sessions += 1;
        known.session_since = now;
        known.describe(announcement);
        Some(Connected { nodes: self.clone(), node: node.to_owned() })
    }

    /// Notes what a frame says of its node.
    pub(crate) fn heard(&self, progress: &SourceProgress, now: UnixMicros) {
        self.change(&progress.node, |known| {
            known.heard_at = now;
            known.heard_until = known.heard_until.max(progress.ledger.until);
            known.clock_error = progress.clock_error;
            known.activity.add(&progress.ledger, now);
        });
    }

    /// At most `nodes_max` nodes, those with something to look after first, and how many more there are.
    pub(crate) fn status(&self, now: UnixMicros, nodes_max: usize) -> (Vec<NodeStatus>, usize) {
        let mut all: Vec<_> = self
            .all()
            .into_iter()
            .map(|(name, node)| {
                let trouble = lock(&node).trouble(now);
                (std::cmp::Reverse(trouble), name, node)
            })
            .collect();
        let left_out = all.len().saturating_sub(nodes_max);
        all.sort_by(|(trouble, name, _), (other, others_name, _)| (trouble, name).cmp(&(other, others_name)));
        all.truncate(nodes_max);
        (all.into_iter().map(|(_trouble, name, node)| lock(&node).status(name, now)).collect(), left_out)
    }

    /// In short how it stands with all nodes, at most [`SUMMARY_AGE_MAX`] ago.
    pub(crate) fn summary(&self, now: UnixMicros) -> Summary {
        let mut kept = lock(&self.summary);
        match *kept {
            Some((at, summary)) if at <= now && now.since(at) < SUMMARY_AGE_MAX => summary,
            _ => {
                let summary = self.sum(now);
                *kept = Some((now, summary));
                summary
            }
        }
    }

    fn sum(&self, now: UnixMicros) -> Summary {
        let mut sum = Summary::default();
        let counts = &mut sum.counts;
        for (_name, node) in self.all() {
            let (state, lost, failed) = {
                let mut node = lock(&node);
                let (records, lost) = node.activity.totals(now);
                sum.records += records;
                (node.state(now), lost, node.failed_probes())
            };
            sum.lost += lost;
            counts.known += 1;
            match state {
                NodeState::Live => counts.live += 1,
                NodeState::Silent => counts.silent += 1,
                NodeState::Disconnected => counts.disconnected += 1,
            }
            counts.with_losses += usize::from(lost > 0);
            counts.with_failed_probes += usize::from(failed > 0);
        }
        sum
    }

    fn all(&self) -> Vec<(String, Arc<Mutex<Node>>)> {
        lock(&self.table).iter().map(|(name, node)| (name.clone(), Arc::clone(node))).collect()
    }

    fn change(&self, node: &str, change: impl FnOnce(&mut Node)) {
        let known = lock(&self.table).get(node).map(Arc::clone);
        if let Some(known) = known {
            change(&mut lock(&known));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connected {
    /// Notes what the node said of itself since.
    pub(crate) fn described(&self, announcement: &Announcement) {
        self.nodes.change(&self.node, |known| known.describe(announcement));
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.nodes.change(&self.node, |known| known.sessions = known.sessions.saturating_sub(1));
    }
}

/// The node of that name; where there are too many, one that is gone makes room. The intake accepts no more sources
/// than fit.
fn entry(table: &mut Table, node: &str) -> Option<Arc<Mutex<Node>>> {
    if !table.contains_key(node) && table.len() >= SOURCES_MAX {
        let gone = table.iter().filter_map(|(name, known)| {
            let known = lock(known);
            (known.sessions == 0).then_some((known.heard_at, name))
        });
        let oldest = gone.min().map(|(_heard_at, name)| name.clone())?;
        table.remove(&oldest);
    }
    Some(Arc::clone(table.entry(node.to_owned()).or_default()))
}

impl Node {
    fn describe(&mut self, announcement: &Announcement) {
        self.announcement = announcement.clone();
        self.capability =
            announcement.capability.iter().map(|line| ProbeCapability::announced(line)).collect();
    }

    fn failed_probes(&self) -> usize {
        self.capability.iter().filter(|probe| probe.has_failed()).count()
    }

    /// The more of it, the sooner a person should look.
    fn trouble(&mut self, now: UnixMicros) -> (NodeState, u64, usize) {
        (self.state(now), self.activity.totals(now).1, self.failed_probes())
    }

    fn state(&self, now: UnixMicros) -> NodeState {
        if self.sessions == 0 {
            NodeState::Disconnected
        } else if now.since(self.heard_at.max(self.session_since)) > SILENT_AFTER {
            NodeState::Silent
        } else {
            NodeState::Live
        }
    }

    fn status(&mut self, name: String, now: UnixMicros) -> NodeStatus {
        let (records, lost) = self.activity.totals(now);
        let told = &self.announcement;
        NodeStatus {
            node: name,
            state: self.state(now),
            session_since: if self.sessions == 0 { UnixMicros(0) } else { self.session_since },
            incarnation: told.incarnation,
            agent_version: told.agent_version.clone(),
            kernel_release: told.kernel_release.clone(),
            architecture: told.architecture.clone(),
            limits: told.limits.clone(),
            capability: self.capability.clone(),
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
        assert!(nodes.status(UnixMicros(SECOND), 9).0.is_empty(), "nobody is made up by a frame");
        let at = |seconds: u64| UnixMicros(1_000 * SECOND + seconds * SECOND);
        let first = nodes.connected("n1", &announcement, at(0)).unwrap();
        nodes.heard(&progress(0), at(1));
        nodes.heard(&progress(3), at(2));
        let told = |seconds| nodes.status(at(seconds), 9).0.remove(0);
        let state = |seconds| told(seconds).state;
        assert_eq!(state(2), NodeState::Live);
        let status = told(3);
        assert_eq!((status.records, status.lost), (23, 3));
        assert_eq!((status.losses.len(), status.losses[0].reason.as_str()), (1, "ring-full"));
        assert_eq!((status.clock_error, status.capability.len()), (Micros(40), 1));
        let second = nodes.connected("n1", &announcement, at(4)).unwrap();
        drop(first);
        assert_eq!((state(5), state(15)), (NodeState::Live, NodeState::Silent));
        drop(second);
        assert_eq!(state(5), NodeState::Disconnected);
        let later = told(ACTIVITY_SECS + 60);
        assert_eq!((later.records, later.lost, later.losses.len()), (0, 0, 0));
    }

    /// Scenario: more nodes than are asked for: one that lost records, one with a probe in a state that this version does
    /// not know, and others; then the second connects anew and its probes work.
    /// Guarantees: those to look after come first, then by name, and the others are counted; a state that is not known is
    /// a failure; the summary counts all, and is made again only when it is old.
    #[test]
    fn those_to_look_after_come_first() {
        let nodes = Nodes::default();
        let at = |millis: u64| UnixMicros(1_000 * SECOND + millis * 1_000);
        let announced =
            |line: &str| Announcement { capability: vec![line.to_owned()], ..Announcement::default() };
        let working = announced("exit=working");
        let mut open: Vec<_> = ["n5", "n4", "n3", "n1"]
            .into_iter()
            .map(|node| nodes.connected(node, &working, at(0)).unwrap())
            .collect();
        open.push(nodes.connected("n2", &announced("exit=resting"), at(0)).unwrap());
        nodes.heard(&progress(0), at(1));
        nodes.heard(&SourceProgress { node: "n4".to_owned(), ..progress(3) }, at(1));
        let (told, left_out) = nodes.status(at(2), 3);
        let names: Vec<_> = told.iter().map(|node| node.node.as_str()).collect();
        assert_eq!((names, left_out), (vec!["n4", "n2", "n1"], 2));
        assert!(told[1].capability[0].has_failed(), "{:?}", told[1].capability);
        let summary = nodes.summary(at(2));
        assert_eq!((summary.records, summary.lost), (23, 3));
        let counts = summary.counts;
        assert_eq!((counts.known, counts.live, counts.with_losses, counts.with_failed_probes), (5, 5, 1, 1));
        open.push(nodes.connected("n2", &working, at(3)).unwrap());
        assert_eq!(nodes.summary(at(900)).counts, counts, "it is kept");
        assert_eq!(nodes.summary(at(1_100)).counts.with_failed_probes, 0);
    }
}
