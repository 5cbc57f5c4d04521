//! What the fleet looks like now, summed in the store whatever its size: of everything only the worst few are named.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tapio_schemas::{
    ledger::Stage,
    units::{Micros, UnixMicros},
};

use super::{
    History, HistoryError, Row, clusters::NodeCounts, ledger::LedgerSum, nodes::SILENT_AFTER, number, text,
};

/// A node that was not heard for longer than this is taken for gone, not for silent, as long as others of its cluster
/// are heard: fleets shrink.
pub const GONE_AFTER: Micros = Micros::from_secs(3_600);
/// A cluster of which nothing was heard for longer than this is taken for gone.
pub const CLUSTER_GONE_AFTER: Micros = Micros::from_secs(86_400);
/// Of nodes and losses so many are named, the worst first.
pub const NAMED_MAX: usize = 10;
/// Of losses so many of each side.
const LOSSES_NAMED_MAX: usize = NAMED_MAX / 2;
/// So many aggregators are looked at.
pub(crate) const TIERS_MAX: usize = 5_000;
/// Stages through which records go on a node: what is lost there is a part of what the kernel's hooks saw.
const NODE_STAGES: [Stage; 4] = [Stage::Kernel, Stage::Capture, Stage::Batch, Stage::EdgeSpool];

/// A cluster now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterStatus {
    /// The cluster's name.
    pub cluster: String,
    /// Its nodes of the last hour.
    pub nodes: NodeCounts,
    /// How many of them have probes that do not work.
    pub blind: u64,
    /// When a frame of any of its nodes was last stored.
    pub last_seen: UnixMicros,
    /// The time of its newest event; absent if there is none of the last day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<UnixMicros>,
}

/// A node that is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedNode {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: String,
    /// When a frame of it was last stored.
    pub last_seen: UnixMicros,
}

/// What was carried and lost in a span of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LossStatus {
    /// Records that the kernel's hooks wanted to hand on.
    pub records: u64,
    /// What was lost of them on nodes.
    pub lost_records: u64,
    /// What was lost behind the nodes, in the units of the stage that lost it.
    pub lost_behind: u64,
    /// The losses, the most first, those on nodes before the others.
    pub worst: Vec<LedgerSum>,
}

/// What an aggregator said of itself last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TierStatus {
    /// Of which cluster.
    pub cluster: String,
    /// The name that its certificate carries.
    pub name: String,
    /// The version of the software.
    pub version: String,
    /// `healthy` or `degraded`.
    pub status: String,
    /// Why it is degraded, each for a person.
    pub reasons: Vec<String>,
    /// When it said so.
    pub reported_at: UnixMicros,
}

/// Whether what this line counts was lost on a node.
pub(crate) fn is_on_node(line: &LedgerSum) -> bool {
    NODE_STAGES.iter().any(|stage| stage.as_str() == line.stage)
}

impl History {
    /// What every aggregator that was heard in the last hour said of itself last: the worst first, then by name.
    ///
    /// # Errors
    /// When the store does not answer or holds what cannot be read.
    pub async fn tiers(&self, now: UnixMicros) -> Result<Vec<TierStatus>, HistoryError> {
        let mut tiers = self.select(
            "cluster, name, argMax(version, reported_at) AS newest_version, \
             argMax(status, reported_at) AS newest_status, argMax(reasons, reported_at) AS newest_reasons, \
             toUnixTimestamp64Micro(max(reported_at)) AS reported",
            "tapio.tiers",
        );
        tiers.and("reported_at >= fromUnixTimestamp64Micro(?)", "Int64", now.minus(GONE_AFTER).0);
        let rest = format!(
            "GROUP BY cluster, tier, name ORDER BY newest_status = 'healthy', reported, cluster, name \
             LIMIT {TIERS_MAX}"
        );
        let read = |row: &Row| {
            let reasons = serde_json::from_str(text(row, "newest_reasons"));
            let reasons = reasons.map_err(|error: serde_json::Error| HistoryError::Row {
                what: "health of an aggregator",
                reason: format!("{}: {error}", text(row, "name")),
            })?;
            Ok(TierStatus {
                cluster: text(row, "cluster").to_owned(),
                name: text(row, "name").to_owned(),
                version: text(row, "newest_version").to_owned(),
                status: text(row, "newest_status").to_owned(),
                reasons,
                reported_at: UnixMicros(number(row, "reported")),
            })
        };
        self.rows(tiers.build(&rest)).await?.iter().map(read).collect()
    }

    /// Every cluster that was heard in the last day, by name.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn cluster_states(&self, now: UnixMicros) -> Result<Vec<ClusterStatus>, HistoryError> {
        let mut nodes = self.select(
            "cluster, node, toUnixTimestamp64Micro(max(last_seen)) AS seen, \
             argMax(capability, last_seen) AS newest_capability",
            "tapio.sources",
        );
        nodes.and("last_seen >= fromUnixTimestamp64Micro(?)", "Int64", now.minus(CLUSTER_GONE_AFTER).0);
        let live = nodes.bind("Int64", now.minus(SILENT_AFTER).0);
        let here = nodes.bind("Int64", now.minus(GONE_AFTER).0);
        let (nodes, values) = nodes.build("GROUP BY cluster, node");
        // A state that is not known counts as failed, as everywhere.
        let blind = "arrayExists(line -> NOT (endsWith(line, '=working') OR endsWith(line, '=disabled')), \
                     JSONExtract(newest_capability, 'Array(String)'))";
        let sql = format!(
            "SELECT cluster, countIf(seen >= {live}) AS live_nodes, \
             countIf(seen < {live} AND seen >= {here}) AS silent_nodes, \
             countIf(seen >= {here} AND {blind}) AS blind_nodes, max(seen) AS newest \
             FROM ({nodes}) GROUP BY cluster ORDER BY cluster"
        );
        let rows = self.rows((sql, values)).await?;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(Vec::new()) };
        let (first, last) = (text(first, "cluster"), text(last, "cluster"));
        let events = self.newest_events(first, last, now.minus(CLUSTER_GONE_AFTER)).await?;
        let newest_event = |cluster: &str| {
            let row = events.iter().find(|row| text(row, "cluster") == cluster)?;
            Some(UnixMicros(number(row, "newest")))
        };
        let state = |row: &Row| {
            let cluster = text(row, "cluster");
            ClusterStatus {
                cluster: cluster.to_owned(),
                nodes: NodeCounts { live: number(row, "live_nodes"), silent: number(row, "silent_nodes") },
                blind: number(row, "blind_nodes"),
                last_seen: UnixMicros(number(row, "newest")),
                last_event: newest_event(cluster),
            }
        };
        Ok(rows.iter().map(state).collect())
    }

    /// The nodes that are silent, the longest first; those of them that are named.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn longest_silent(&self, now: UnixMicros) -> Result<Vec<NamedNode>, HistoryError> {
        let mut nodes =
            self.select("cluster, node, toUnixTimestamp64Micro(max(last_seen)) AS seen", "tapio.sources");
        nodes.and("last_seen >= fromUnixTimestamp64Micro(?)", "Int64", now.minus(GONE_AFTER).0);
        let live = nodes.bind("Int64", now.minus(SILENT_AFTER).0);
        let rest = format!(
            "GROUP BY cluster, node HAVING seen < {live} ORDER BY seen, cluster, node LIMIT {NAMED_MAX}"
        );
        let rows = self.rows(nodes.build(&rest)).await?;
        let named = |row: &Row| NamedNode {
            cluster: text(row, "cluster").to_owned(),
            node: text(row, "node").to_owned(),
            last_seen: UnixMicros(number(row, "seen")),
        };
        Ok(rows.iter().map(named).collect())
    }

    /// What was carried and lost since `since`.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn losses(&self, since: UnixMicros) -> Result<LossStatus, HistoryError> {
        let of = |columns: &str| {
            let mut select = self.select(columns, "tapio.ledger");
            select.and("until >= fromUnixTimestamp64Micro(?)", "Int64", since.0);
            select
        };
        let on_node =
            format!("stage IN ({})", NODE_STAGES.map(|stage| format!("'{}'", stage.as_str())).join(", "));
        let totals = of(&format!(
            "sumIf(count, stage = 'kernel' AND fate IN ('carried', 'lost')) AS records, \
             sumIf(count, fate = 'lost' AND {on_node}) AS lost_records, \
             sumIf(count, fate = 'lost' AND NOT {on_node}) AS lost_behind"
        ));
        let totals = self.rows(totals.build("")).await?;
        let total = |column| totals.first().map_or(0, |row| number(row, column));
        let mut worst = of("cluster, node, stage, fate, subject, reason, sum(count) AS total");
        worst.and_plain("fate = 'lost'".to_owned());
        let rest = format!(
            "GROUP BY cluster, node, stage, fate, subject, reason \
             ORDER BY {on_node} DESC, total DESC, cluster, node, stage, subject, reason \
             LIMIT {LOSSES_NAMED_MAX} BY {on_node}"
        );
        let worst = self.rows(worst.build(&rest)).await?;
        Ok(LossStatus {
            records: total("records"),
            lost_records: total("lost_records"),
            lost_behind: total("lost_behind"),
            worst: worst.iter().map(super::ledger::read).collect(),
        })
    }

    /// How many findings of the last 30 days are open.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn open_count(&self, now: UnixMicros) -> Result<u64, HistoryError> {
        let mut newest = self.select("argMax(state, revision) AS newest_state", "tapio.findings");
        newest.and(
            "announced_at >= fromUnixTimestamp64Micro(?)",
            "Int64",
            now.minus(super::clusters::FINDINGS_SINCE).0,
        );
        let (newest, values) = newest.build("GROUP BY cluster, id HAVING newest_state = 'open'");
        let rows = self.rows((format!("SELECT count() AS findings FROM ({newest})"), values)).await?;
        Ok(rows.first().map_or(0, |row| number(row, "findings")))
    }
}
