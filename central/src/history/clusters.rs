//! Clusters, as what their nodes report adds up to.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tapio_schemas::{
    intent::Severity,
    units::{Micros, UnixMicros},
};

use super::{History, HistoryError, Row, Select, nodes::SILENT_AFTER, number, text};
use crate::api::rest::page::Page;

/// Which clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterFilter {
    /// With this name.
    pub cluster: Option<String>,
    /// A node of it was last heard not before.
    pub heard_since: UnixMicros,
    /// Nodes are counted, and the newest event is looked for, that were heard not before.
    pub since: UnixMicros,
    /// The time at which it is told which nodes are silent.
    pub now: UnixMicros,
}

/// A cluster now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredCluster {
    /// The tenant.
    pub tenant: String,
    /// The cluster's name.
    pub cluster: String,
    /// The nodes that are heard, and those that were heard since the time that was asked for.
    pub nodes: NodeCounts,
    /// When a frame of any of its nodes was last stored.
    pub last_seen: UnixMicros,
    /// The time of its newest event; absent if there is none since the time that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event: Option<UnixMicros>,
    /// How many findings of the last 30 days are open, by severity; each severity is named.
    pub open_findings: BTreeMap<String, u64>,
}

/// How many nodes are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeCounts {
    /// Frames of so many arrive.
    pub live: u64,
    /// So many were not heard for a while.
    pub silent: u64,
}

/// Open findings are looked for so far back.
pub const FINDINGS_SINCE: Micros = Micros::from_secs(30 * 86_400);

impl History {
    /// The page of clusters that `filter` wants, by name, and one more if another page follows.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn clusters(
        &self,
        filter: &ClusterFilter,
        page: &Page,
    ) -> Result<Vec<StoredCluster>, HistoryError> {
        let mut nodes =
            self.select("cluster, node, toUnixTimestamp64Micro(max(last_seen)) AS seen", "tapio.sources");
        nodes
            .and("last_seen >= fromUnixTimestamp64Micro(?)", "Int64", filter.heard_since.0)
            .and_some("cluster = ?", "String", filter.cluster.as_ref())
            .and_some("cluster > ?", "String", page.cursor.as_ref().map(|cursor| &cursor.id));
        let live = nodes.bind("Int64", filter.now.minus(SILENT_AFTER).0);
        let since = nodes.bind("Int64", filter.since.0);
        let (nodes, values) = nodes.build("GROUP BY cluster, node");
        let sql = format!(
            "SELECT cluster, countIf(seen >= {live}) AS live_nodes, \
             countIf(seen < {live} AND seen >= {since}) AS silent_nodes, \
             max(seen) AS newest FROM ({nodes}) GROUP BY cluster ORDER BY cluster LIMIT {}",
            u64::from(page.limit) + 1
        );
        let rows = self.rows((sql, values)).await?;
        let mut clusters: Vec<_> = rows.iter().map(|row| self.read_cluster(row)).collect();
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(clusters) };
        let (first, last) = (text(first, "cluster"), text(last, "cluster"));
        let newest = self.newest_events(first, last, filter.since).await?;
        let open = self.open_findings(first, last, filter.now.minus(FINDINGS_SINCE)).await?;
        for cluster in &mut clusters {
            let named = |row: &&Row| text(row, "cluster") == cluster.cluster;
            cluster.last_event = newest.iter().find(named).map(|row| UnixMicros(number(row, "newest")));
            for row in open.iter().filter(named) {
                cluster
                    .open_findings
                    .insert(text(row, "newest_severity").to_owned(), number(row, "findings"));
            }
        }
        Ok(clusters)
    }

    fn read_cluster(&self, row: &Row) -> StoredCluster {
        let severities = Severity::ALL.iter().map(|severity| (severity.as_str().to_owned(), 0));
        StoredCluster {
            tenant: self.tenant.clone(),
            cluster: text(row, "cluster").to_owned(),
            nodes: NodeCounts { live: number(row, "live_nodes"), silent: number(row, "silent_nodes") },
            last_seen: UnixMicros(number(row, "newest")),
            last_event: None,
            open_findings: severities.collect(),
        }
    }

    /// The time of the newest event of each cluster from `first` to `last`. The minutes' sums say in which minute it
    /// lies, so that one minute's events are read, not a day's.
    pub(super) async fn newest_events(
        &self,
        first: &str,
        last: &str,
        since: UnixMicros,
    ) -> Result<Vec<Row>, HistoryError> {
        let mut minutes = self.select("cluster, max(minute)", "tapio.events_per_minute");
        minutes.and("minute >= toStartOfMinute(fromUnixTimestamp64Micro(?))", "Int64", since.0);
        between(&mut minutes, first, last);
        let (minutes, values) = minutes.build("GROUP BY cluster");
        let mut events = Select {
            values,
            ..Select::new("cluster, toUnixTimestamp64Micro(max(time_micros)) AS newest", "tapio.events")
        };
        events.and("tenant = ?", "String", &self.tenant);
        events.and("time_micros >= fromUnixTimestamp64Micro(?)", "Int64", since.0);
        events
            .and_plain(format!("(cluster, toDateTime(toStartOfMinute(time_micros), 'UTC')) IN ({minutes})"));
        self.rows(events.build("GROUP BY cluster")).await
    }

    /// How many findings are open in each cluster from `first` to `last`, by severity.
    async fn open_findings(
        &self,
        first: &str,
        last: &str,
        since: UnixMicros,
    ) -> Result<Vec<Row>, HistoryError> {
        let mut newest = self.select(
            "cluster, id, argMax(state, revision) AS newest_state, argMax(severity, revision) AS newest_severity",
            "tapio.findings",
        );
        newest.and("announced_at >= fromUnixTimestamp64Micro(?)", "Int64", since.0);
        between(&mut newest, first, last);
        let (newest, values) = newest.build("GROUP BY cluster, id HAVING newest_state = 'open'");
        let sql = format!(
            "SELECT cluster, newest_severity, count() AS findings FROM ({newest}) GROUP BY cluster, newest_severity"
        );
        self.rows((sql, values)).await
    }
}

fn between(select: &mut Select, first: &str, last: &str) {
    select.and("cluster >= ?", "String", first).and("cluster <= ?", "String", last);
}

/// What orders clusters: their names alone, which never change.
#[must_use]
pub fn key(cluster: &StoredCluster) -> (UnixMicros, String) {
    (UnixMicros(0), cluster.cluster.clone())
}
