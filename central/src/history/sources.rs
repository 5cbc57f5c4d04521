//! The sources that shipped, and when each was last heard.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tapio_schemas::{capability::ProbeCapability, units::UnixMicros};

use super::{History, HistoryError, number, text};

/// A source as it last introduced itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
        let mut select = self.select(
            "cluster, node, spiffe_id, toUnixTimestamp64Micro(max(last_seen)) AS seen, \
             argMax(capability, last_seen) AS newest",
            "tapio.sources",
        );
        select.and_plain("last_seen >= now64(6) - INTERVAL 1 DAY".to_owned());
        let rest = format!("GROUP BY cluster, node, spiffe_id ORDER BY seen DESC LIMIT {SOURCES_MAX}");
        let rows = self.rows(select.build(&rest)).await?;
        rows.iter()
            .map(|row| {
                Ok(StoredSource {
                    cluster: text(row, "cluster").to_owned(),
                    node: text(row, "node").to_owned(),
                    name: text(row, "spiffe_id").to_owned(),
                    last_seen: UnixMicros(number(row, "seen")),
                    capability: capability(text(row, "spiffe_id"), text(row, "newest"))?,
                })
            })
            .collect()
    }
}

/// What the source called `name` said that works there.
pub(super) fn capability(name: &str, document: &str) -> Result<Vec<ProbeCapability>, HistoryError> {
    if document.is_empty() {
        return Ok(Vec::new());
    }
    let lines: Vec<String> = serde_json::from_str(document)
        .map_err(|error| HistoryError::Row { what: "source", reason: format!("{name}: {error}") })?;
    Ok(lines.iter().map(|line| ProbeCapability::announced(line)).collect())
}
