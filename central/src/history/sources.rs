//! The sources that shipped, and when each was last heard.

use serde::{Deserialize, Serialize};
use tapio_schemas::{capability::ProbeCapability, units::UnixMicros};

use super::{History, HistoryError, Select, number, text};

/// A source as it last introduced itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSource {
    /// The cluster.
    pub cluster: String,
    /// The node.
    pub node: String,
    /// The name that its certificate carries.
    pub name: String,
    /// When a frame of it was last stored.
    pub last_seen: UnixMicros,
    /// What works there.
    pub capability: Vec<ProbeCapability>,
}

/// How many sources health lists; the last heard come first.
const SOURCES_MAX: u32 = 1_000;

impl History {
    /// The sources heard in the last day, last heard first.
    ///
    /// # Errors
    /// When the store does not answer or holds a capability that cannot be read.
    pub async fn sources(&self) -> Result<Vec<StoredSource>, HistoryError> {
        let select = Select::new(
            "cluster, node, spiffe_id, toUnixTimestamp64Micro(max(last_seen)) AS seen, \
             argMax(capability, last_seen) AS newest",
            "tapio.sources",
        );
        let rest = format!(
            "WHERE last_seen >= now64(6) - INTERVAL 1 DAY GROUP BY cluster, node, spiffe_id ORDER BY seen DESC LIMIT {SOURCES_MAX}"
        );
        let rows = self.rows(select.build(&rest)).await?;
        rows.iter()
            .map(|row| {
                let document = text(row, "newest");
                let capability = if document.is_empty() {
                    Vec::new()
                } else {
                    serde_json::from_str(document).map_err(|error| HistoryError::Row {
                        what: "source",
                        reason: format!("{}: {error}", text(row, "spiffe_id")),
                    })?
                };
                Ok(StoredSource {
                    cluster: text(row, "cluster").to_owned(),
                    node: text(row, "node").to_owned(),
                    name: text(row, "spiffe_id").to_owned(),
                    last_seen: UnixMicros(number(row, "seen")),
                    capability,
                })
            })
            .collect()
    }
}
