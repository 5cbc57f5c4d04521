//! Talking to ClickHouse over HTTP: where it is, who we are there, inserts of blocks, and bounded reads.
//!
//! One code path for the embedded engine, one server, or a cluster. [`insert`] sends `Native` blocks with a
//! deduplication token; [`read`] runs SELECTs and DDL through the `clickhouse` crate. Neither retries: the caller
//! owns its queue and decides with [`ClientError::advice`].

pub mod error;
pub mod insert;
pub mod read;
pub mod session;

pub use error::{Advice, ClientError};
pub use insert::{BlockWriter, DeduplicationToken, Inserted};
pub use read::{Parameter, ReadLimits, Reader};
pub use session::SessionId;

use std::fmt;

/// The database that holds everything.
pub const DATABASE: &str = "tapio";

/// A user of ClickHouse. `Debug` hides the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Where ClickHouse's HTTP interface is and who we are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    url: String,
    credentials: Credentials,
}

impl Endpoint {
    /// An endpoint at `url`, `http://host:port` with nothing behind it.
    ///
    /// # Errors
    /// [`ClientError::Url`] says what is wrong with the URL.
    pub fn new(url: &str, credentials: Credentials) -> Result<Self, ClientError> {
        let fault = |reason| Err(ClientError::Url { url: without_user(url), reason });
        let trimmed = url.strip_suffix('/').unwrap_or(url);
        if trimmed.starts_with("https://") {
            return fault(
                "TLS to ClickHouse is not built in; put a local proxy before the server and use http://",
            );
        }
        let Some(authority) = trimmed.strip_prefix("http://") else {
            return fault("it must start with http://");
        };
        if authority.contains('@') {
            return fault("give user and password separately, not inside the URL");
        }
        if authority.contains(['/', '?', '#']) {
            return fault("it must end after host and port");
        }
        if authority.parse::<hyper::http::uri::Authority>().is_err() {
            return fault("host and port are not valid");
        }
        Ok(Self { url: trimmed.to_owned(), credentials })
    }

    /// The URL without a trailing slash.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Who we are there.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }
}

/// A URL as it may be shown: without user and password, wherever somebody put them.
fn without_user(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let Some((_user, host)) = rest.rsplit_once('@') else { return url.to_owned() };
    if scheme.is_empty() { format!("***@{host}") } else { format!("{scheme}://***@{host}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a user and a password inside a URL, which is refused.
    /// Guarantees: the error names the place and shows neither, whatever stands in the password.
    #[test]
    fn a_password_is_not_repeated() {
        let credentials = || Credentials { user: "u".to_owned(), password: String::new() };
        for url in ["http://me:sesame@host:8123", "https://me:ses@me@host:8123", "me:sesame@host:8123"] {
            let error = Endpoint::new(url, credentials()).unwrap_err().to_string();
            assert!(error.contains("***@host:8123") && !error.contains("ses"), "{error}");
        }
    }
}
