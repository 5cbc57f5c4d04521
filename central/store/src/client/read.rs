//! Bounded reads and DDL, through the `clickhouse` crate.
//!
//! Values travel as server-side parameters (`{name:Type}` in the statement), never inside the statement's text.
//! Every read has a limit on rows, bytes, time and memory; the server enforces all but the bytes. Used by central's
//! API and by the aggregator when it looks up what is stored.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Endpoint;
use super::error::{ClientError, code_in, cut};

/// What one read may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// The most rows in an answer; more is an error, not a cut answer.
    pub rows_max: u64,
    /// The most bytes in an answer.
    pub answer_bytes_max: usize,
    /// The longest a query may run, in whole seconds.
    pub time_max: Duration,
    /// The most memory that the server may use for it.
    pub memory_bytes_max: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            rows_max: 10_000,
            answer_bytes_max: 32 * 1024 * 1024,
            time_max: Duration::from_secs(10),
            memory_bytes_max: 512 * 1024 * 1024,
        }
    }
}

/// A value for `{name:Type}` in a statement.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Parameter {
    /// For `String`, `UUID`, `IPv6`, `DateTime64` and the like, in their text form.
    Text(String),
    /// For unsigned integers.
    Unsigned(u64),
    /// For signed integers.
    Signed(i64),
    /// For floats.
    Float(f64),
    /// For `Array(String)`.
    Texts(Vec<String>),
}

impl From<&str> for Parameter {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<u64> for Parameter {
    fn from(value: u64) -> Self {
        Self::Unsigned(value)
    }
}

impl From<i64> for Parameter {
    fn from(value: i64) -> Self {
        Self::Signed(value)
    }
}

/// Reads, and runs DDL where its account may. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Reader {
    client: clickhouse::Client,
    url: String,
    limits: ReadLimits,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Reader")
            .field("url", &self.url)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// How much longer than the server the client waits, so that the server's own error arrives.
const GRACE: Duration = Duration::from_secs(2);

impl Reader {
    /// A reader at `endpoint` under `limits`.
    #[must_use]
    pub fn new(endpoint: &Endpoint, limits: ReadLimits) -> Self {
        let credentials = endpoint.credentials();
        let client = clickhouse::Client::default()
            .with_url(endpoint.url())
            .with_user(&credentials.user)
            .with_password(&credentials.password);
        Self { client, url: endpoint.url().to_owned(), limits }
    }

    /// The same reader under other limits.
    #[must_use]
    pub fn with_limits(&self, limits: ReadLimits) -> Self {
        Self { limits, ..self.clone() }
    }

    /// Runs a SELECT and reads each row into `T` by its columns' names (64-bit integers as numbers).
    ///
    /// # Errors
    /// [`ClientError`]: the server's refusal, the network's, or a limit of [`ReadLimits`].
    pub async fn rows<T: DeserializeOwned>(
        &self,
        statement: &str,
        parameters: &[(&str, Parameter)],
    ) -> Result<Vec<T>, ClientError> {
        let answer = self.answer(statement, parameters).await?;
        let mut rows = Vec::new();
        for row in serde_json::Deserializer::from_slice(&answer).into_iter() {
            rows.push(row.map_err(|error| ClientError::Shape {
                expected: std::any::type_name::<T>(),
                reason: error.to_string(),
            })?);
        }
        Ok(rows)
    }

    /// Runs a SELECT and gives the answer's bytes as `JSONEachRow`: one JSON object per line.
    ///
    /// # Errors
    /// As [`Reader::rows`].
    pub async fn answer(
        &self,
        statement: &str,
        parameters: &[(&str, Parameter)],
    ) -> Result<Vec<u8>, ClientError> {
        let seconds = self.limits.time_max.as_secs().max(1);
        let mut query = self
            .client
            .query_raw(statement)
            // 2 forbids writes and still allows the settings below.
            .with_setting("readonly", "2")
            .with_setting("max_result_rows", self.limits.rows_max.to_string())
            .with_setting("result_overflow_mode", "throw")
            .with_setting("max_execution_time", seconds.to_string())
            .with_setting("timeout_overflow_mode", "throw")
            .with_setting("max_memory_usage", self.limits.memory_bytes_max.to_string())
            .with_setting("cancel_http_readonly_queries_on_client_close", "1")
            .with_setting("output_format_json_quote_64bit_integers", "0")
            .with_setting("wait_end_of_query", "1");
        for (name, value) in parameters {
            query = query.param(name, value);
        }
        let limit = Duration::from_secs(seconds) + GRACE;
        let collected = async {
            let mut cursor = query.fetch_bytes("JSONEachRow").map_err(|error| self.fault(&error))?;
            let mut bytes = Vec::new();
            while let Some(chunk) = cursor.next().await.map_err(|error| self.fault(&error))? {
                if bytes.len() + chunk.len() > self.limits.answer_bytes_max {
                    return Err(ClientError::AnswerTooLarge { limit_bytes: self.limits.answer_bytes_max });
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes)
        };
        self.within(limit, collected).await
    }

    /// Runs a statement that gives no rows: DDL, or a small insert with parameters.
    ///
    /// # Errors
    /// [`ClientError`]: the server's refusal or the network's.
    pub async fn execute(
        &self,
        statement: &str,
        parameters: &[(&str, Parameter)],
    ) -> Result<(), ClientError> {
        let mut query = self.client.query_raw(statement).with_setting("wait_end_of_query", "1");
        for (name, value) in parameters {
            query = query.param(name, value);
        }
        let limit = self.limits.time_max + GRACE;
        self.within(limit, async { query.execute().await.map_err(|error| self.fault(&error)) }).await
    }

    /// Runs a statement that gives no rows with settings of the request.
    pub(super) async fn execute_with(
        &self,
        statement: &str,
        settings: &[(&str, &str)],
    ) -> Result<(), ClientError> {
        let mut query = self.client.query_raw(statement).with_setting("wait_end_of_query", "1");
        for (name, value) in settings {
            query = query.with_setting(*name, *value);
        }
        let limit = self.limits.time_max + GRACE;
        self.within(limit, async { query.execute().await.map_err(|error| self.fault(&error)) }).await
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(limit, work).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(ClientError::Timeout { url: self.url.clone(), limit }),
        }
    }

    fn fault(&self, error: &clickhouse::error::Error) -> ClientError {
        use clickhouse::error::Error;
        match error {
            Error::BadResponse(text) => match code_in(text) {
                Some(code) => ClientError::Server { code, message: cut(text) },
                None => ClientError::NotClickHouse { url: self.url.clone(), status: 0, body: cut(text) },
            },
            Error::Network(source) => {
                ClientError::Network { url: self.url.clone(), reason: super::insert::chain(source.as_ref()) }
            }
            other => ClientError::Request(other.to_string()),
        }
    }
}
