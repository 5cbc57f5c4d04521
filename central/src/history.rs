//! What is stored, read back: findings, events, entities, ledgers, nodes, clusters. Only this module knows the tables.
//!
//! Every value reaches the store as a query parameter, never as part of the SQL text; every query is bounded in rows
//! and time.

pub mod clusters;
mod connection;
pub mod entities;
pub mod events;
pub mod findings;
pub mod ledger;
pub mod nodes;
pub mod sources;
pub mod status;

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::{sync::Semaphore, time::timeout};

use tapio_store::{
    client::{ClientError, Parameter},
    migrations::{self, MigrationError},
};

use self::connection::Connection;
use crate::config::StoreAccess;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The store did not answer, or refused.
    #[error("the store did not answer the query: {0}")]
    Store(#[from] ClientError),
    /// The store's schema is not this version's.
    #[error("the store cannot be read: {0}")]
    Schema(#[source] MigrationError),
    /// A stored row is not what this version writes.
    #[error("a stored {what} cannot be read: {reason}")]
    Row {
        /// What the row holds.
        what: &'static str,
        /// Why it cannot be read.
        reason: String,
    },
    /// Other queries hold all places.
    #[error("{places} queries are under way already, and none ended within {} s; ask again later", waited.as_secs())]
    Busy {
        /// How many may be under way.
        places: usize,
        /// How long this one waited.
        waited: Duration,
    },
    /// The account file cannot be used.
    #[error("the store's connection file {path} (store.connection) cannot be used: {reason}")]
    Connection {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl From<MigrationError> for HistoryError {
    fn from(error: MigrationError) -> Self {
        match error {
            // The store's own fault says more than that the schema could not be looked at.
            MigrationError::Bookkeeping(fault) => Self::Store(fault),
            other => Self::Schema(other),
        }
    }
}

/// Queries under way at once. The embedded engine's account may run 16; the rest is left to people with SQL.
const QUERIES_MAX: usize = 12;
/// A query that finds no place waits this long for one.
const PLACE_WAIT_MAX: Duration = Duration::from_secs(5);

/// One row, as the store gives it.
pub(crate) type Row = Map<String, Value>;

/// Read access to the store.
pub struct History {
    connection: Connection,
    tenant: String,
    places: Semaphore,
}

impl History {
    /// Read access to what `tenant` has in the store that `access` names. The store need not answer yet.
    #[must_use]
    pub fn new(access: &StoreAccess, tenant: String) -> Self {
        Self { connection: Connection::new(access), tenant, places: Semaphore::new(QUERIES_MAX) }
    }

    /// Whether the connection file, where there is one, says what a connection needs. Asks no store.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(access: &StoreAccess) -> Result<(), HistoryError> {
        Connection::new(access).check()
    }

    /// Whether the store answers, with a schema that this version reads.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn probe(&self) -> Result<(), HistoryError> {
        let reader = self.connection.reader()?;
        migrations::check(&reader).await?;
        self.connection.schema_checked();
        Ok(())
    }

    /// `SELECT columns FROM source`, of the own tenant's rows.
    fn select(&self, columns: &str, source: &str) -> Select {
        let mut select = Select::new(columns, source);
        select.and("tenant = ?", "String", &self.tenant);
        select
    }

    /// The rows of a query that [`Select::build`] gave.
    async fn rows(&self, (sql, values): (String, Values)) -> Result<Vec<Row>, HistoryError> {
        let place = timeout(PLACE_WAIT_MAX, self.places.acquire()).await;
        let busy = HistoryError::Busy { places: QUERIES_MAX, waited: PLACE_WAIT_MAX };
        let Ok(Ok(_place)) = place else { return Err(busy) };
        let reader = self.connection.reader()?;
        if self.connection.is_schema_due() {
            migrations::check(&reader).await?;
            self.connection.schema_checked();
        }
        let parameters: Vec<_> = values.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        Ok(reader.rows(&sql, &parameters).await?)
    }
}

/// The values of a query, by the names of their placeholders.
pub(crate) type Values = Vec<(String, Parameter)>;

/// A query being put together: text with placeholders, and the values for them.
pub(crate) struct Select {
    sql: String,
    conditions: Vec<String>,
    values: Values,
}

impl Select {
    /// `SELECT columns FROM source`.
    pub(crate) fn new(columns: &str, source: &str) -> Self {
        Self { sql: format!("SELECT {columns} FROM {source}"), conditions: Vec::new(), values: Vec::new() }
    }

    /// Adds a condition in which `?` stands for `value` of ClickHouse's type `kind`.
    pub(crate) fn and(&mut self, condition: &str, kind: &str, value: impl ToString) -> &mut Self {
        let placeholder = self.bind(kind, value);
        self.conditions.push(condition.replacen('?', &placeholder, 1));
        self
    }

    /// As [`Select::and`], if there is a value.
    pub(crate) fn and_some(
        &mut self,
        condition: &str,
        kind: &str,
        value: Option<impl ToString>,
    ) -> &mut Self {
        if let Some(value) = value {
            self.and(condition, kind, value);
        }
        self
    }

    /// Adds a condition without a value.
    pub(crate) fn and_plain(&mut self, condition: String) -> &mut Self {
        self.conditions.push(condition);
        self
    }

    /// The placeholder of a value of ClickHouse's type `kind`.
    pub(crate) fn bind(&mut self, kind: &str, value: impl ToString) -> String {
        self.bind_parameter(kind, Parameter::Text(value.to_string()))
    }

    /// The placeholder of a list of texts.
    pub(crate) fn bind_texts(&mut self, values: Vec<String>) -> String {
        self.bind_parameter("Array(String)", Parameter::Texts(values))
    }

    fn bind_parameter(&mut self, kind: &str, value: Parameter) -> String {
        let name = format!("p{}", self.values.len());
        let placeholder = format!("{{{name}:{kind}}}");
        self.values.push((name, value));
        placeholder
    }

    /// The whole text, with what follows the conditions, and the values.
    pub(crate) fn build(self, rest: &str) -> (String, Values) {
        let filter = if self.conditions.is_empty() {
            String::new()
        } else {
            format!(" WHERE {}", self.conditions.join(" AND "))
        };
        (format!("{}{filter} {rest}", self.sql), self.values)
    }
}

/// The text in a row's column; absent reads as empty.
pub(crate) fn text<'a>(row: &'a Row, column: &str) -> &'a str {
    row.get(column).and_then(Value::as_str).unwrap_or_default()
}

/// The whole number in a row's column, whichever way JSON carries it; absent reads as zero.
pub(crate) fn number(row: &Row, column: &str) -> u64 {
    match row.get(column) {
        Some(Value::Number(number)) => number.as_u64().unwrap_or_default(),
        Some(Value::String(text)) => text.parse().unwrap_or_default(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a filter value that would be SQL if it were pasted into the text.
    /// Guarantees: the text holds placeholders only; the value travels beside it.
    #[test]
    fn values_never_become_text() {
        let mut select = Select::new("x", "t");
        select.and("node = ?", "String", "a' OR 1=1 --").and_some("n > ?", "UInt64", Some(7));
        select.and_some("m > ?", "UInt64", None::<u64>);
        let (sql, values) = select.build("LIMIT 3");
        assert_eq!(sql, "SELECT x FROM t WHERE node = {p0:String} AND n > {p1:UInt64} LIMIT 3");
        assert_eq!(values, [("p0".into(), "a' OR 1=1 --".into()), ("p1".into(), "7".into())]);
    }
}
