//! What can go wrong with ClickHouse, sorted by what the caller should do about it.

use std::time::Duration;

use crate::native::BlockError;

/// What the caller should do with a failed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Send the same request again after a pause; for inserts with the same token.
    Retry,
    /// The server merges slower than it is fed: send the same block again after a longer pause, and fewer, larger ones.
    SlowDown,
    /// The same request will fail again; somebody has to change something.
    Stop,
}

/// A failed request to ClickHouse.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL cannot be used.
    #[error("the ClickHouse URL {url} cannot be used: {reason}")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The server could not be reached, or the connection broke. An insert may or may not have happened.
    #[error("ClickHouse at {url} cannot be reached: {reason}")]
    Network {
        /// Where it should be.
        url: String,
        /// What the connection said.
        reason: String,
    },
    /// No answer in time. An insert may or may not have happened.
    #[error("ClickHouse at {url} did not answer within {} s", limit.as_secs_f32())]
    Timeout {
        /// Where it is.
        url: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The server refused, and says so with a code of its own.
    #[error("ClickHouse refused (code {code}): {message}")]
    Server {
        /// ClickHouse's error code.
        code: u32,
        /// Its message, cut to a bounded length.
        message: String,
    },
    /// An answer that ClickHouse does not give; probably something else listens there.
    #[error("the answer of {url} is not ClickHouse's: HTTP {status}: {body}")]
    NotClickHouse {
        /// Who answered.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of its body.
        body: String,
    },
    /// The server reports that it read other rows than were sent: the block was misread.
    #[error(
        "{table}: {sent} rows were sent and ClickHouse read {read}; the block's columns do not match the table"
    )]
    RowsDiffer {
        /// The table.
        table: String,
        /// Rows in the block.
        sent: u64,
        /// Rows that the server counted.
        read: u64,
    },
    /// The block was wrong before it was sent.
    #[error("the block for {table} was not sent")]
    Block {
        /// The table.
        table: String,
        /// What is wrong with it.
        #[source]
        source: BlockError,
    },
    /// The answer is larger than the caller allowed.
    #[error("the answer is larger than {limit_bytes} bytes; ask for less")]
    AnswerTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The answer does not have the shape that was asked for.
    #[error("a row of the answer cannot be read as {expected}: {reason}")]
    Shape {
        /// The Rust type.
        expected: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// The request could not be put together.
    #[error("the request is not valid: {0}")]
    Request(String),
}

/// ClickHouse's `SESSION_NOT_FOUND`.
const SESSION_NOT_FOUND: u32 = 372;
/// ClickHouse's `TOO_MANY_PARTS`.
const TOO_MANY_PARTS: u32 = 252;

/// Codes of `src/Common/ErrorCodes.cpp` that pass by themselves: overload, timeouts, a table that is read-only for
/// a while, missing quorum, a full disk, an unknown outcome. Everything else needs somebody.
const PASSING: &[u32] = &[
    159, // TIMEOUT_EXCEEDED
    160, // TOO_SLOW
    201, // QUOTA_EXCEEDED
    202, // TOO_MANY_SIMULTANEOUS_QUERIES
    203, // NO_FREE_CONNECTION
    209, // SOCKET_TIMEOUT
    210, // NETWORK_ERROR
    225, // NO_ZOOKEEPER
    236, // ABORTED
    241, // MEMORY_LIMIT_EXCEEDED
    242, // TABLE_IS_READ_ONLY
    243, // NOT_ENOUGH_SPACE
    279, // ALL_CONNECTION_TRIES_FAILED
    285, // TOO_FEW_LIVE_REPLICAS
    286, // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
    289, // REPLICA_IS_NOT_IN_QUORUM
    319, // UNKNOWN_STATUS_OF_INSERT
    373, // SESSION_IS_LOCKED
    394, // QUERY_WAS_CANCELLED
    439, // CANNOT_SCHEDULE_TASK
    473, // DEADLOCK_AVOIDED
    734, // QUERY_WAS_CANCELLED_BY_CLIENT
    999, // KEEPER_EXCEPTION
];

/// Codes with which a read ends that asked for more than its limits allow.
const COSTLY: &[u32] = &[
    158, // TOO_MANY_ROWS
    159, // TIMEOUT_EXCEEDED
    160, // TOO_SLOW
    241, // MEMORY_LIMIT_EXCEEDED
    307, // TOO_MANY_BYTES
    396, // TOO_MANY_ROWS_OR_BYTES
];

impl ClientError {
    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Network { .. } | Self::Timeout { .. } => Advice::Retry,
            Self::Server { code, .. } if *code == TOO_MANY_PARTS => Advice::SlowDown,
            Self::Server { code, .. } if PASSING.contains(code) => Advice::Retry,
            // A proxy's 502 to 504 while the server behind it restarts.
            Self::NotClickHouse { status: 502..=504, .. } => Advice::Retry,
            Self::Url { .. }
            | Self::Server { .. }
            | Self::NotClickHouse { .. }
            | Self::RowsDiffer { .. }
            | Self::Block { .. }
            | Self::AnswerTooLarge { .. }
            | Self::Shape { .. }
            | Self::Request(_) => Advice::Stop,
        }
    }
}

impl ClientError {
    /// Whether the session of the request is not open: it was closed, was idle for too long, or the server was restarted.
    #[must_use]
    pub const fn is_session_closed(&self) -> bool {
        matches!(self, Self::Server { code: SESSION_NOT_FOUND, .. })
    }

    /// Whether a read asked for more than one may cost: less of it would be answered.
    #[must_use]
    pub fn is_too_costly(&self) -> bool {
        match self {
            Self::AnswerTooLarge { .. } => true,
            Self::Server { code, .. } => COSTLY.contains(code),
            _ => false,
        }
    }
}

/// The longest server message that is kept.
const MESSAGE_BYTES_MAX: usize = 2_000;

/// `text` cut to a length that fits a log line.
pub(crate) fn cut(text: &str) -> String {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().trim().to_owned()
}

/// The code in a message like `Code: 60. DB::Exception: ...`.
pub(crate) fn code_in(message: &str) -> Option<u32> {
    let digits = message.split_once("Code: ")?.1;
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the server answers with codes of each kind, and with a message that holds its code.
    /// Guarantees: too many parts asks to slow down, overload to retry, an unknown table to stop.
    #[test]
    fn codes_are_sorted_by_what_to_do() {
        let server = |code| ClientError::Server { code, message: String::new() };
        assert_eq!(server(252).advice(), Advice::SlowDown);
        assert_eq!(server(241).advice(), Advice::Retry);
        assert_eq!(server(60).advice(), Advice::Stop);
        assert_eq!(code_in("Code: 60. DB::Exception: Table"), Some(60));
        assert_eq!(code_in("hello"), None);
    }

    /// Scenario: a message whose cut would fall inside a character.
    /// Guarantees: cutting never splits a character.
    #[test]
    fn cutting_respects_characters() {
        let text = "ä".repeat(MESSAGE_BYTES_MAX);
        assert!(cut(&text).len() <= MESSAGE_BYTES_MAX);
    }
}
