//! The stored loss ledger: what each stage carried, folded, filtered and lost, summed.

use serde::{Deserialize, Serialize};
use tapio_schemas::units::UnixMicros;

use super::{History, HistoryError, Select, number, text};

/// Which part of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerFilter {
    /// Of this cluster.
    pub cluster: Option<String>,
    /// Of this node.
    pub node: Option<String>,
    /// Not before.
    pub since: UnixMicros,
    /// Before.
    pub until: Option<UnixMicros>,
}

/// A line of the ledger, summed over the time that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerSum {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: String,
    /// Where.
    pub stage: String,
    /// What became of them.
    pub fate: String,
    /// The probe or lane.
    pub subject: String,
    /// Why; empty where the fate says it all.
    pub reason: String,
    /// How many.
    pub count: u64,
}

/// A ledger has few distinct lines; this many are of a fleet.
const LINES_MAX: u32 = 10_000;

impl History {
    /// The sums that `filter` wants, ordered by cluster, node, stage, fate, subject, reason.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn ledger(&self, filter: &LedgerFilter) -> Result<Vec<LedgerSum>, HistoryError> {
        let mut select =
            Select::new("cluster, node, stage, fate, subject, reason, sum(count) AS total", "tapio.ledger");
        select
            .and("until >= fromUnixTimestamp64Micro(?)", "Int64", filter.since.0)
            .and_some("until < fromUnixTimestamp64Micro(?)", "Int64", filter.until.map(|until| until.0))
            .and_some("cluster = ?", "String", filter.cluster.as_ref())
            .and_some("node = ?", "String", filter.node.as_ref());
        let key = "cluster, node, stage, fate, subject, reason";
        let rows =
            self.rows(select.build(&format!("GROUP BY {key} ORDER BY {key} LIMIT {LINES_MAX}"))).await?;
        let sum = |row: &super::Row| LedgerSum {
            cluster: text(row, "cluster").to_owned(),
            node: text(row, "node").to_owned(),
            stage: text(row, "stage").to_owned(),
            fate: text(row, "fate").to_owned(),
            subject: text(row, "subject").to_owned(),
            reason: text(row, "reason").to_owned(),
            count: number(row, "total"),
        };
        Ok(rows.iter().map(sum).collect())
    }
}
