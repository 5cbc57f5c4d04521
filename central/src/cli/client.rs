//! Asks central's REST API over HTTPS; errors carry what the API said.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;
use ureq::{
    Agent,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem},
};

use crate::api::rest::problem::Problem;

/// An answer takes at most this long.
const DEADLINE: Duration = Duration::from_secs(30);
/// An answer is at most this long.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The authority's file cannot be read.
    #[error("cannot read the certificate authority {} (--ca, TAPIO_CA): {source}", path.display())]
    ReadAuthority {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The authority's file holds no certificate.
    #[error("{} (--ca, TAPIO_CA) holds no certificate in PEM form", path.display())]
    NoAuthority {
        /// The file.
        path: PathBuf,
    },
    /// The API was not reached.
    #[error("no answer from {url}: {reason}; is central running there (--api, TAPIO_API)?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The API refused.
    #[error("{}", refusal(.0))]
    Refused(Box<Problem>),
    /// The API's answer is not what this version expects.
    #[error("{url} gave an answer that this version cannot read: {reason}")]
    Unreadable {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// There is an answer, and it says that this host is not fit.
    #[error("this host does not allow an agent everything; each MISSING above says what to do")]
    Unfit,
    /// The answer cannot be written out.
    #[error("cannot write the answer: {0}")]
    Write(#[source] std::io::Error),
}

fn refusal(problem: &Problem) -> String {
    let mut text = format!("{}: {}", problem.title, problem.detail);
    if let Some(id) = problem.request_id.as_deref().filter(|_| problem.status >= 500) {
        text.push_str(&format!(" (request {id} in central's log)"));
    }
    for error in &problem.errors {
        text.push_str(&format!("\n  {}: {}", error.parameter, error.reason));
    }
    text
}

/// A client of one API.
pub struct ApiClient {
    agent: Agent,
    base: String,
}

impl ApiClient {
    /// A client of the API at `base` (`https://host:port`), whose certificate `authority` signed.
    ///
    /// # Errors
    /// When the authority's file cannot be used.
    pub fn new(base: &str, authority: Option<&Path>) -> Result<Self, ClientError> {
        let roots = authority.map(read_authority).transpose()?;
        let tls =
            TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(roots.unwrap_or(RootCerts::WebPki));
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .timeout_global(Some(DEADLINE))
            .http_status_as_error(false)
            .https_only(true)
            .build()
            .new_agent();
        Ok(Self { agent, base: base.trim_end_matches('/').to_owned() })
    }

    /// The answer to `GET /api/v1<path>`.
    ///
    /// # Errors
    /// When the API does not answer, refuses, or answers something else than a `T`.
    pub fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, ClientError> {
        let url = format!("{}/api/v1{path}", self.base);
        let mut request = self.agent.get(&url);
        for (name, value) in query {
            request = request.query(name, value);
        }
        let unreachable =
            |error: ureq::Error| ClientError::Unreachable { url: url.clone(), reason: error.to_string() };
        let mut response = request.call().map_err(unreachable)?;
        let status = response.status();
        let body = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_string()
            .map_err(unreachable)?;
        let unreadable = |error: serde_json::Error| ClientError::Unreadable {
            url: url.clone(),
            reason: format!("status {status}: {error}"),
        };
        if status.is_success() {
            serde_json::from_str(&body).map_err(unreadable)
        } else {
            let problem: Problem = serde_json::from_str(&body).map_err(unreadable)?;
            Err(ClientError::Refused(Box::new(problem)))
        }
    }
}

fn read_authority(path: &Path) -> Result<RootCerts, ClientError> {
    let pem =
        fs::read(path).map_err(|source| ClientError::ReadAuthority { path: path.to_owned(), source })?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(ClientError::NoAuthority { path: path.to_owned() });
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// `text` as one segment of a path: whatever a person types, the request stays the one that was meant.
#[must_use]
pub fn path_segment(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: an id with a slash, a blank and a letter beyond ASCII.
    /// Guarantees: it stays one segment.
    #[test]
    fn segments_are_escaped() {
        assert_eq!(path_segment("f-71aa"), "f-71aa");
        assert_eq!(path_segment("../x ä"), "..%2Fx%20%C3%A4");
    }
}
