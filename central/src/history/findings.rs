//! Stored findings: each row is a revision; the newest revision is the finding.

use tapio_schemas::{finding::Finding, units::UnixMicros};

use super::{History, HistoryError, Row, Select, Values, text};
use crate::api::rest::page::Page;

/// Which findings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FindingFilter {
    /// Of this cluster.
    pub cluster: Option<String>,
    /// In this state now.
    pub state: Option<&'static str>,
    /// Of this rule.
    pub rule: Option<String>,
    /// Of this severity now.
    pub severity: Option<&'static str>,
    /// Of this incident now.
    pub incident_id: Option<String>,
    /// Announced not before.
    pub since: UnixMicros,
    /// Announced before.
    pub until: Option<UnixMicros>,
}

/// How many findings an abbreviated id may fit before the answer only says "several".
const CANDIDATES_MAX: u32 = 8;

impl History {
    /// The page of findings that `filter` wants, last announced first, and one more if another page follows.
    ///
    /// # Errors
    /// When the store does not answer or holds a document that cannot be read.
    pub async fn findings(&self, filter: &FindingFilter, page: &Page) -> Result<Vec<Finding>, HistoryError> {
        // Documents are large: which ones are wanted is told without them.
        let mut newest = self.select(
            "id, max(revision) AS last_revision, any(announced_at) AS announced, \
             argMax(state, revision) AS newest_state, argMax(severity, revision) AS newest_severity, \
             argMax(incident_id, revision) AS newest_incident",
            "tapio.findings",
        );
        newest
            .and("announced_at >= fromUnixTimestamp64Micro(?)", "Int64", filter.since.0)
            .and_some(
                "announced_at < fromUnixTimestamp64Micro(?)",
                "Int64",
                filter.until.map(|until| until.0),
            )
            .and_some("cluster = ?", "String", filter.cluster.as_ref())
            .and_some("rule = ?", "String", filter.rule.as_ref());
        // What a revision may change is asked of the newest one only.
        let mut having = Vec::new();
        if let Some(incident) = &filter.incident_id {
            having.push(format!("newest_incident = {}", newest.bind("String", incident)));
        }
        if let Some(state) = filter.state {
            having.push(format!("newest_state = {}", newest.bind("String", state)));
        }
        if let Some(severity) = filter.severity {
            having.push(format!("newest_severity = {}", newest.bind("String", severity)));
        }
        if let Some(cursor) = &page.cursor {
            let at = newest.bind("Int64", cursor.at.0);
            let id = newest.bind("String", &cursor.id);
            // A finding is announced once, so that all its revisions are on one side.
            newest.and_plain(format!(
                "announced_at <= fromUnixTimestamp64Micro({at}) AND \
                 (announced_at, id) < (fromUnixTimestamp64Micro({at}), {id})"
            ));
        }
        let having =
            if having.is_empty() { String::new() } else { format!("HAVING {}", having.join(" AND ")) };
        let limit = u64::from(page.limit) + 1;
        let (newest, values) =
            newest.build(&format!("GROUP BY id {having} ORDER BY announced DESC, id DESC LIMIT {limit}"));
        self.documents(&newest, values, filter.since).await
    }

    /// The documents of what `newest` selects as `id` and `last_revision`, announced not before `since`: the last
    /// announced first.
    async fn documents(
        &self,
        newest: &str,
        values: Values,
        since: UnixMicros,
    ) -> Result<Vec<Finding>, HistoryError> {
        let mut select = Select {
            values,
            ..Select::new(
                "id, document",
                &format!(
                    "tapio.findings PREWHERE (id, revision) IN (SELECT id, last_revision FROM ({newest}))"
                ),
            )
        };
        select.and("tenant = ?", "String", &self.tenant);
        select.and("announced_at >= fromUnixTimestamp64Micro(?)", "Int64", since.0);
        let rows = self.rows(select.build("ORDER BY announced_at DESC, id DESC LIMIT 1 BY id")).await?;
        rows.iter().map(read).collect()
    }

    /// The newest revisions of the findings whose id begins with `prefix`: several if it is ambiguous.
    ///
    /// # Errors
    /// As [`History::findings`].
    pub async fn findings_by_prefix(&self, prefix: &str) -> Result<Vec<Finding>, HistoryError> {
        let mut newest = self.select("id, max(revision) AS last_revision", "tapio.findings");
        // Only a whole id has an index.
        let condition = if prefix.len() < Finding::ID_CHARS { "startsWith(id, ?)" } else { "id = ?" };
        newest.and(condition, "String", prefix);
        let (newest, values) = newest.build(&format!("GROUP BY id ORDER BY id LIMIT {CANDIDATES_MAX}"));
        self.documents(&newest, values, UnixMicros(0)).await
    }
}

/// What orders findings: neither changes when a finding is revised.
#[must_use]
pub fn key(finding: &Finding) -> (UnixMicros, String) {
    (finding.announced_at, finding.id.clone())
}

fn read(row: &Row) -> Result<Finding, HistoryError> {
    serde_json::from_str(text(row, "document")).map_err(|error| HistoryError::Row {
        what: "finding",
        reason: format!("{}: {error}", text(row, "id")),
    })
}
