//! The nodes that shipped: what each said of itself, and what was lost on its way.

use std::collections::{BTreeMap, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tapio_schemas::{
    capability::ProbeCapability,
    units::{Micros, UnixMicros},
};

use super::{History, HistoryError, Row, number, sources, text};
use crate::api::rest::page::Page;

/// A node of which nothing was stored for this long is called silent.
pub const SILENT_AFTER: Micros = Micros::from_secs(30);

/// Which nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFilter {
    /// Of this cluster.
    pub cluster: Option<String>,
    /// With this name.
    pub node: Option<String>,
    /// In this state.
    pub state: Option<NodeState>,
    /// Last heard not before.
    pub heard_since: UnixMicros,
    /// Losses are counted from then.
    pub losses_since: UnixMicros,
    /// The time at which states are told.
    pub now: UnixMicros,
}

/// Whether a node is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Frames of it arrive.
    Live,
    /// None was stored for a while.
    Silent,
}

impl NodeState {
    /// All states.
    pub const ALL: &[Self] = &[Self::Live, Self::Silent];

    /// The name in APIs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Silent => "silent",
        }
    }
}

/// A node as it last introduced itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredNode {
    /// The tenant.
    pub tenant: String,
    /// The cluster.
    pub cluster: String,
    /// The node's name.
    pub node: String,
    /// The name that its agent's certificate carries.
    pub name: String,
    /// The source id that stands in the ids of its events.
    pub source: String,
    /// The present life of its agent.
    pub incarnation: u64,
    /// Whether it is heard.
    pub state: NodeState,
    /// When a frame of it was last stored.
    pub last_seen: UnixMicros,
    /// The version of its agent; absent until it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// The release of its kernel; absent until it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
    /// The architecture of its machine; absent until it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// What works there, and why the rest does not.
    pub capability: Vec<ProbeCapability>,
    /// What its agent may use; absent until it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// What was lost of it since `losses_since`, at every stage; empty if nothing was.
    pub losses: Vec<Loss>,
    /// From when losses are counted.
    pub losses_since: UnixMicros,
}

/// What an agent may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Budget {
    /// What its configuration allows, by name; the unit stands at the name's end.
    pub limits: BTreeMap<String, u64>,
}

/// Events that were not carried on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    /// Where.
    pub stage: String,
    /// The probe or lane that they belong to.
    pub subject: String,
    /// Why.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// The columns of a node; each is of the newest row.
const COLUMNS: &str = "cluster, node, toUnixTimestamp64Micro(max(last_seen)) AS seen, \
    argMax(spiffe_id, last_seen) AS newest_name, lower(hex(argMax(source_id, last_seen))) AS newest_source, \
    argMax(incarnation, last_seen) AS newest_life, argMax(capability, last_seen) AS newest_capability, \
    argMax(agent_version, last_seen) AS newest_version, argMax(kernel_release, last_seen) AS newest_kernel, \
    argMax(architecture, last_seen) AS newest_architecture, argMax(limits, last_seen) AS newest_limits";

/// What orders nodes, in SQL; [`key`] says the same of a [`StoredNode`].
const PATH: &str = "concat(cluster, '/', node)";

/// A node shows so many different losses at most; what is beyond is left out, the smallest first.
const LOSSES_MAX: u32 = 32;

impl History {
    /// The page of nodes that `filter` wants, by cluster and name, and one more if another page follows.
    ///
    /// # Errors
    /// When the store does not answer or holds what cannot be read.
    pub async fn nodes(&self, filter: &NodeFilter, page: &Page) -> Result<Vec<StoredNode>, HistoryError> {
        let mut select = self.select(COLUMNS, "tapio.sources");
        select
            .and("last_seen >= fromUnixTimestamp64Micro(?)", "Int64", filter.heard_since.0)
            .and_some("cluster = ?", "String", filter.cluster.as_ref())
            .and_some("node = ?", "String", filter.node.as_ref())
            .and_some(&format!("{PATH} > ?"), "String", page.cursor.as_ref().map(|cursor| &cursor.id));
        let having = filter.state.map_or_else(String::new, |state| {
            let live_since = select.bind("Int64", filter.now.minus(SILENT_AFTER).0);
            let comparison = if state == NodeState::Live { ">=" } else { "<" };
            format!("HAVING seen {comparison} {live_since}")
        });
        let rest =
            format!("GROUP BY cluster, node {having} ORDER BY {PATH} LIMIT {}", u64::from(page.limit) + 1);
        let rows = self.rows(select.build(&rest)).await?;
        let mut nodes = Vec::with_capacity(rows.len());
        for row in &rows {
            nodes.push(self.read_node(row, filter)?);
        }
        self.add_losses(&mut nodes, filter.losses_since).await?;
        Ok(nodes)
    }

    fn read_node(&self, row: &Row, filter: &NodeFilter) -> Result<StoredNode, HistoryError> {
        let said = |column| Some(text(row, column).to_owned()).filter(|text| !text.is_empty());
        let name = text(row, "newest_name");
        let limits = said("newest_limits").map(|document| serde_json::from_str(&document)).transpose();
        let limits: Option<BTreeMap<String, u64>> = limits
            .map_err(|error| HistoryError::Row { what: "source", reason: format!("{name}: {error}") })?;
        let last_seen = UnixMicros(number(row, "seen"));
        let live = filter.now.since(last_seen) <= SILENT_AFTER;
        Ok(StoredNode {
            tenant: self.tenant.clone(),
            cluster: text(row, "cluster").to_owned(),
            node: text(row, "node").to_owned(),
            name: name.to_owned(),
            source: text(row, "newest_source").to_owned(),
            incarnation: number(row, "newest_life"),
            state: if live { NodeState::Live } else { NodeState::Silent },
            last_seen,
            agent_version: said("newest_version"),
            kernel_release: said("newest_kernel"),
            architecture: said("newest_architecture"),
            capability: sources::capability(name, text(row, "newest_capability"))?,
            budget: limits.filter(|limits| !limits.is_empty()).map(|limits| Budget { limits }),
            losses: Vec::new(),
            losses_since: filter.losses_since,
        })
    }

    /// Adds to each of `nodes` what was lost of it since `since`, the most first.
    async fn add_losses(&self, nodes: &mut [StoredNode], since: UnixMicros) -> Result<(), HistoryError> {
        let (Some(first), Some(last)) = (nodes.first(), nodes.last()) else { return Ok(()) };
        let mut select =
            self.select("cluster, node, stage, subject, reason, sum(count) AS total", "tapio.ledger");
        // The clusters are in the table's key; the paths choose among their nodes.
        select
            .and("until >= fromUnixTimestamp64Micro(?)", "Int64", since.0)
            .and_plain("fate = 'lost'".to_owned())
            .and("cluster >= ?", "String", &first.cluster)
            .and("cluster <= ?", "String", &last.cluster)
            .and(&format!("{PATH} >= ?"), "String", key(first).1)
            .and(&format!("{PATH} <= ?"), "String", key(last).1);
        let (most, values) = select.build(&format!(
            "GROUP BY cluster, node, stage, subject, reason \
             ORDER BY total DESC, stage, subject, reason LIMIT {LOSSES_MAX} BY cluster, node"
        ));
        // One row for a node, however many losses: an answer of more rows than a read may have is refused.
        let sql = format!(
            "SELECT cluster, node, groupArray((stage, subject, reason, total)) AS losses FROM ({most}) \
             GROUP BY cluster, node"
        );
        let mut losses: HashMap<String, Vec<Loss>> = HashMap::new();
        for mut row in self.rows((sql, values)).await? {
            let path = path(text(&row, "cluster"), text(&row, "node"));
            losses.insert(path, read_losses(row.remove("losses").unwrap_or_default())?);
        }
        for node in nodes {
            node.losses = losses.remove(&key(node).1).unwrap_or_default();
        }
        Ok(())
    }
}

/// The losses of one node, the most first.
fn read_losses(document: serde_json::Value) -> Result<Vec<Loss>, HistoryError> {
    let losses: Vec<(String, String, String, u64)> = serde_json::from_value(document)
        .map_err(|error| HistoryError::Row { what: "loss", reason: error.to_string() })?;
    let mut losses: Vec<_> = losses
        .into_iter()
        .map(|(stage, subject, reason, count)| Loss { stage, subject, reason, count })
        .collect();
    losses.sort_by(|a, b| {
        let text = |loss: &Loss| (loss.stage.clone(), loss.subject.clone(), loss.reason.clone());
        b.count.cmp(&a.count).then_with(|| text(a).cmp(&text(b)))
    });
    Ok(losses)
}

/// What orders nodes: their names alone, which never change.
#[must_use]
pub fn key(node: &StoredNode) -> (UnixMicros, String) {
    (UnixMicros(0), path(&node.cluster, &node.node))
}

fn path(cluster: &str, node: &str) -> String {
    format!("{cluster}/{node}")
}
