//! Sessions of ClickHouse's HTTP interface, as a fence: an insert that names a session is refused unless it is open.
//!
//! The server looks when an insert begins, holds the session until it has ended, and closes none that is held
//! (`session_check`, `close_session`; ClickHouse documentation, "HTTP interface", sessions). So once a session is closed,
//! no insert that names it runs or ever will, however long it was under way. Sessions belong to one server and one
//! account; a restarted server has none.

use std::time::Duration;

use super::{ClientError, Endpoint, ReadLimits, Reader};

/// A session that nobody used for so long is closed by the server: the most that it grants by default.
pub const SESSION_TIME_MAX: Duration = Duration::from_secs(3_600);

/// The longest name.
const NAME_BYTES_MAX: usize = 200;

/// A session's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionId(String);

impl SessionId {
    /// A name of printable ASCII without blanks.
    ///
    /// # Errors
    /// [`ClientError::Request`] when it is empty, too long or holds other characters.
    pub fn new(name: impl Into<String>) -> Result<Self, ClientError> {
        let name = name.into();
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
        if fits {
            Ok(Self(name))
        } else {
            Err(ClientError::Request(format!("the session {name:?} is empty, too long or not plain text")))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Opens and closes sessions.
#[derive(Debug, Clone)]
pub struct Sessions {
    reader: Reader,
}

impl Sessions {
    /// Sessions at `endpoint`.
    #[must_use]
    pub fn new(endpoint: &Endpoint, limits: ReadLimits) -> Self {
        Self { reader: Reader::new(endpoint, limits) }
    }

    /// Opens a session, or keeps it open.
    ///
    /// # Errors
    /// [`ClientError`]: the server's refusal or the network's.
    pub async fn open(&self, session: &SessionId) -> Result<(), ClientError> {
        let timeout = SESSION_TIME_MAX.as_secs().to_string();
        let settings = [("session_id", session.as_str()), ("session_timeout", timeout.as_str())];
        self.reader.execute_with("SELECT 1 FORMAT Null", &settings).await
    }

    /// Closes a session: no insert that names it runs any more when this returns, and none will.
    ///
    /// # Errors
    /// [`ClientError`] with the advice to retry while an insert in it still runs; else the server's refusal or the
    /// network's.
    pub async fn close(&self, session: &SessionId) -> Result<(), ClientError> {
        let settings = [("session_id", session.as_str()), ("session_check", "1"), ("close_session", "1")];
        match self.reader.execute_with("SELECT 1 FORMAT Null", &settings).await {
            Err(error) if error.is_session_closed() => Ok(()),
            closed => closed,
        }
    }
}
