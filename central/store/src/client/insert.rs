//! Inserts of encoded blocks: one HTTP request per block, acknowledged only when it is in every destination table.
//!
//! The token makes a repeated block harmless, also in tables that a materialised view feeds. Asynchronous inserts
//! are off and the server's answer comes after the data is written (and synced, by the tables' settings), so that
//! `Ok` means stored. Nothing is retried here.

use std::fmt::Write as _;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::error::{ClientError, code_in, cut};
use super::session::{SESSION_TIME_MAX, SessionId};
use super::{DATABASE, Endpoint};
use crate::native::EncodedBlock;

/// The longest error body that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long an idle connection is kept: less than the embedded engine keeps it (3 s), so that none is used while the
/// server closes it.
const IDLE_TIME_MAX: Duration = Duration::from_secs(2);
/// Idle connections kept to the server.
const IDLE_CONNECTIONS_MAX: usize = 4;

/// Names a block for ever: the same token with the same table is inserted once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeduplicationToken(String);

impl DeduplicationToken {
    /// The longest token.
    pub const BYTES_MAX: usize = 256;

    /// A token of printable ASCII without blanks, such as `cut-7-frames`.
    ///
    /// # Errors
    /// [`ClientError::Request`] when it is empty, too long or holds other characters. An empty token would turn
    /// deduplication into a comparison of contents, which is not what any caller means.
    pub fn new(token: impl Into<String>) -> Result<Self, ClientError> {
        let token = token.into();
        let fits =
            (1..=Self::BYTES_MAX).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic());
        if fits {
            Ok(Self(token))
        } else {
            Err(ClientError::Request(format!(
                "the deduplication token {token:?} is empty, too long or not plain text"
            )))
        }
    }

    /// The token as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the server said about an insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// Rows in the block.
    pub rows: u64,
    /// Rows that the server wrote, those of materialised views included.
    pub rows_written: u64,
    /// Bytes that were sent.
    pub bytes: u64,
}

/// Sends blocks. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct BlockWriter {
    endpoint: Endpoint,
    session: Option<SessionId>,
    client: Client<HttpConnector, Full<Bytes>>,
    timeout: Duration,
}

impl BlockWriter {
    /// A writer that waits at most `timeout` for each answer.
    #[must_use]
    pub fn new(endpoint: Endpoint, timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_TIME_MAX)
            .build(connector);
        Self { endpoint, session: None, client, timeout }
    }

    /// The same writer inside a session: where that is not open, the server refuses every insert.
    #[must_use]
    pub fn in_session(&self, session: SessionId) -> Self {
        Self { session: Some(session), ..self.clone() }
    }

    /// Inserts `block` into `table` of the database `tapio`.
    ///
    /// # Errors
    /// [`ClientError`]; its `advice` says whether to send the same block with the same token again.
    pub async fn insert(
        &self,
        table: &str,
        block: &EncodedBlock,
        token: &DeduplicationToken,
    ) -> Result<Inserted, ClientError> {
        let request = self.request(table, block, token)?;
        match tokio::time::timeout(self.timeout, self.send(table, block, request)).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                Err(ClientError::Timeout { url: self.endpoint.url().to_owned(), limit: self.timeout })
            }
        }
    }

    fn request(
        &self,
        table: &str,
        block: &EncodedBlock,
        token: &DeduplicationToken,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut statement = format!("INSERT INTO {DATABASE}.{} (", identifier(table)?);
        for (index, column) in block.columns().iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(statement, "{separator}{}", identifier(column)?).map_err(request_fault)?;
        }
        statement.push_str(") FORMAT Native");

        let mut uri = format!("{}/?query=", self.endpoint.url());
        percent_encode(&mut uri, &statement);
        uri.push_str("&insert_deduplication_token=");
        percent_encode(&mut uri, token.as_str());
        // `min_insert_block_size_*=0` keeps one block one part: a block that the server joined or cut would be
        // deduplicated under another name. `wait_end_of_query` holds the status back until all is written.
        uri.push_str(
            "&async_insert=0&insert_deduplicate=1&deduplicate_blocks_in_dependent_materialized_views=1\
             &min_insert_block_size_rows=0&min_insert_block_size_bytes=0&wait_end_of_query=1\
             &throw_on_max_partitions_per_insert_block=0&input_format_null_as_default=0&input_format_skip_unknown_fields=0",
        );
        if let Some(session) = &self.session {
            uri.push_str("&session_check=1&session_id=");
            percent_encode(&mut uri, session.as_str());
            write!(uri, "&session_timeout={}", SESSION_TIME_MAX.as_secs()).map_err(request_fault)?;
        }
        let credentials = self.endpoint.credentials();
        Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header("X-ClickHouse-User", &credentials.user)
            .header("X-ClickHouse-Key", &credentials.password)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Full::new(block.bytes().clone()))
            .map_err(request_fault)
    }

    async fn send(
        &self,
        table: &str,
        block: &EncodedBlock,
        request: Request<Full<Bytes>>,
    ) -> Result<Inserted, ClientError> {
        let network = |reason: String| ClientError::Network { url: self.endpoint.url().to_owned(), reason };
        let response = self.client.request(request).await.map_err(|error| network(chain(&error)))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| network(error.to_string()))?;
        let body = body.to_bytes();
        let text = String::from_utf8_lossy(&body);
        if let Some(code) = exception_code(&head.headers).or_else(|| code_in(&text)) {
            return Err(ClientError::Server { code, message: cut(&text) });
        }
        let summary = summary(&head.headers);
        let Some(summary) = summary.filter(|_| head.status == StatusCode::OK) else {
            return Err(ClientError::NotClickHouse {
                url: self.endpoint.url().to_owned(),
                status: head.status.as_u16(),
                body: cut(&text),
            });
        };
        let sent = block.rows() as u64;
        if !rows_agree(sent, summary.read_rows) {
            return Err(ClientError::RowsDiffer { table: table.to_owned(), sent, read: summary.read_rows });
        }
        Ok(Inserted { rows: sent, rows_written: summary.written_rows, bytes: block.bytes().len() as u64 })
    }
}

#[derive(Debug, Deserialize)]
struct RawSummary {
    #[serde(default)]
    read_rows: String,
    #[serde(default)]
    written_rows: String,
}

#[derive(Debug, Clone, Copy)]
struct Summary {
    read_rows: u64,
    written_rows: u64,
}

/// Whether the server read the rows that were sent: each once for the table and once more for every view behind it.
/// The server takes bytes behind a block's last cell for another block, which this would show.
const fn rows_agree(sent: u64, read: u64) -> bool {
    read >= sent && read.is_multiple_of(sent)
}

fn summary(headers: &HeaderMap) -> Option<Summary> {
    let raw: RawSummary = serde_json::from_slice(headers.get("X-ClickHouse-Summary")?.as_bytes()).ok()?;
    Some(Summary { read_rows: raw.read_rows.parse().ok()?, written_rows: raw.written_rows.parse().ok()? })
}

fn exception_code(headers: &HeaderMap) -> Option<u32> {
    headers.get("X-ClickHouse-Exception-Code")?.to_str().ok()?.parse().ok()
}

/// A table's or column's name, which is only ever letters, digits, `_` and `.` here.
fn identifier(name: &str) -> Result<&str, ClientError> {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    plain.then_some(name).ok_or_else(|| ClientError::Request(format!("{name:?} is not a plain identifier")))
}

fn request_fault(error: impl std::fmt::Display) -> ClientError {
    ClientError::Request(error.to_string())
}

/// RFC 3986 percent-encoding of everything but unreserved characters.
pub(crate) fn percent_encode(out: &mut String, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 15] {
                out.push(HEX.get(usize::from(digit)).copied().map_or('0', char::from));
            }
        }
    }
}

/// An error with its sources: the outer one alone only says that connecting failed.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: names and tokens as they could come from a mistake.
    /// Guarantees: nothing but plain identifiers reaches a statement, and an empty token is refused.
    #[test]
    fn names_and_tokens_are_plain() {
        assert!(identifier("frames").is_ok());
        assert!(identifier("frames; DROP").is_err());
        assert!(identifier("").is_err());
        assert!(DeduplicationToken::new("").is_err());
        assert!(DeduplicationToken::new("a b").is_err());
        assert!(DeduplicationToken::new("cut-7/frames").is_ok());
    }

    /// Scenario: the server counts as many rows as were sent, twice as many (a view), fewer, more (surplus bytes).
    /// Guarantees: only whole multiples agree.
    #[test]
    fn rows_agree_in_whole_multiples() {
        assert!(rows_agree(3, 3) && rows_agree(3, 6));
        assert!(!rows_agree(3, 0) && !rows_agree(3, 2) && !rows_agree(3, 9 - 1) && !rows_agree(3, 4));
    }

    /// Scenario: a statement with blanks, brackets and UTF-8.
    /// Guarantees: every byte that is not unreserved is encoded.
    #[test]
    fn percent_encoding_covers_all_bytes() {
        let mut out = String::new();
        percent_encode(&mut out, "a (ä)&");
        assert_eq!(out, "a%20%28%C3%A4%29%26");
    }
}
