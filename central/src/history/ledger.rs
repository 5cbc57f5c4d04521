//! The stored loss ledger: what each stage carried, folded, filtered and lost, summed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tapio_schemas::units::UnixMicros;

use super::{History, HistoryError, Row, Select, number, text};

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// The ledger of the time that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerSums {
    /// Records that the kernel's hooks wanted to hand on.
    pub records: u64,
    /// What was lost, at any stage, for any reason.
    pub lost: u64,
    /// The lines, ordered by cluster, node, stage, fate, subject, reason; at most [`LINES_MAX`].
    pub lines: Vec<LedgerSum>,
    /// Whether there are more lines. The totals are of all.
    pub cut: bool,
}

/// A node's ledger has a few dozen distinct lines; of a larger fleet the lines are asked for by cluster or node.
pub const LINES_MAX: usize = 5_000;

const KEY: &str = "cluster, node, stage, fate, subject, reason";

impl History {
    /// The sums that `filter` wants.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn ledger(&self, filter: &LedgerFilter) -> Result<LedgerSums, HistoryError> {
        let lines = self.ledger_lines(&format!("{KEY}, sum(count) AS total"), filter);
        let rest = format!("GROUP BY {KEY} ORDER BY {KEY} LIMIT {}", LINES_MAX + 1);
        let mut lines: Vec<_> = self.rows(lines.build(&rest)).await?.iter().map(read).collect();
        let total = |wanted: &dyn Fn(&LedgerSum) -> bool| {
            lines.iter().filter(|line| wanted(line)).map(|line| line.count).sum::<u64>()
        };
        if lines.len() <= LINES_MAX {
            let lost = total(&|line| line.fate == "lost");
            let records =
                total(&|line| line.stage == "kernel" && (line.fate == "carried" || line.fate == "lost"));
            return Ok(LedgerSums { records, lost, lines, cut: false });
        }
        lines.truncate(LINES_MAX);
        let totals = "sumIf(count, fate = 'lost') AS lost, \
                      sumIf(count, stage = 'kernel' AND fate IN ('carried', 'lost')) AS records";
        let totals = self.rows(self.ledger_lines(totals, filter).build("")).await?;
        let total = |column| totals.first().map_or(0, |row| number(row, column));
        Ok(LedgerSums { records: total("records"), lost: total("lost"), lines, cut: true })
    }

    fn ledger_lines(&self, columns: &str, filter: &LedgerFilter) -> Select {
        let mut select = self.select(columns, "tapio.ledger");
        select
            .and("until >= fromUnixTimestamp64Micro(?)", "Int64", filter.since.0)
            .and_some("until < fromUnixTimestamp64Micro(?)", "Int64", filter.until.map(|until| until.0))
            .and_some("cluster = ?", "String", filter.cluster.as_ref())
            .and_some("node = ?", "String", filter.node.as_ref());
        select
    }
}

pub(super) fn read(row: &Row) -> LedgerSum {
    LedgerSum {
        cluster: text(row, "cluster").to_owned(),
        node: text(row, "node").to_owned(),
        stage: text(row, "stage").to_owned(),
        fate: text(row, "fate").to_owned(),
        subject: text(row, "subject").to_owned(),
        reason: text(row, "reason").to_owned(),
        count: number(row, "total"),
    }
}
