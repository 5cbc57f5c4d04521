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

use super::terminal::escaped;
use crate::api::rest::problem::Problem;

/// Where the API is below its address.
const PATH: &str = "/api/v1";
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
    /// What was named is no address of an API.
    #[error(
        "{base:?} is not where central's API can be (--api, TAPIO_API): {reason}, such as https://127.0.0.1:7443"
    )]
    Address {
        /// What was given.
        base: String,
        /// What is wrong with it, and what to write.
        reason: &'static str,
    },
    /// Something answers, and is not to be trusted.
    #[error("{url} cannot be trusted: {reason}; {remedy}")]
    Untrusted {
        /// What was asked.
        url: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: &'static str,
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
    /// There is an answer, and it says that the system is not to be trusted.
    #[error(
        "the system is not to be trusted now: that it says nothing means nothing; the reasons stand above"
    )]
    NoTrust,
    /// The answer cannot be written out.
    #[error("cannot write the answer: {0}")]
    Write(#[source] std::io::Error),
}

impl ClientError {
    /// The exit status of the process: 2 where what it was told is wrong.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Address { .. } | Self::ReadAuthority { .. } | Self::NoAuthority { .. } => 2,
            // Options that only the API knows to be wrong.
            Self::Refused(problem) if problem.status == 400 && !problem.errors.is_empty() => 2,
            _ => 1,
        }
    }

    /// Whether the same question may be answered a little later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused(problem) => problem.status >= 500 || problem.status == 429,
            _ => false,
        }
    }
}

fn refusal(problem: &Problem) -> String {
    let mut text = format!("{}: {}", escaped(&problem.title), escaped(&problem.detail));
    if let Some(id) = problem.request_id.as_deref().filter(|_| problem.status >= 500) {
        text.push_str(&format!(" (request {} in central's log)", escaped(id)));
    }
    for error in &problem.errors {
        text.push_str(&format!("\n  {}: {}", option_of(&error.parameter), escaped(&error.reason)));
    }
    text
}

/// What a person wrote for a parameter: an option, or a word of the command.
fn option_of(parameter: &str) -> String {
    match parameter {
        "container_id" => "--container".to_owned(),
        "trace_id" => "--trace".to_owned(),
        "cluster" | "intent" | "kind" | "limit" | "node" | "pod" | "severity_min" | "since" | "state"
        | "until" => {
            format!("--{}", parameter.replace('_', "-"))
        }
        other => escaped(other),
    }
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
    /// When `base` is no such address, or the authority's file cannot be used.
    pub fn new(base: &str, authority: Option<&Path>) -> Result<Self, ClientError> {
        let base = address(base)?;
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
        Ok(Self { agent, base: base.to_owned() })
    }

    /// The answer to `GET /api/v1<path>`.
    ///
    /// # Errors
    /// When the API does not answer, refuses, or answers something else than a `T`.
    pub fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, ClientError> {
        let url = format!("{}{PATH}{path}", self.base);
        let mut request = self.agent.get(&url);
        for (name, value) in query {
            request = request.query(name, value);
        }
        let unreachable = |error: ureq::Error| no_answer(&url, &error);
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

/// The API's address without what is added to it.
fn address(base: &str) -> Result<&str, ClientError> {
    let wrong = |reason| Err(ClientError::Address { base: base.to_owned(), reason });
    let base = base.trim();
    let address = base.trim_end_matches('/');
    let address = address.strip_suffix(PATH).unwrap_or(address).trim_end_matches('/');
    match base.split_once("://") {
        _ if base.is_empty() => wrong("write its address"),
        None => wrong("write https:// before the name"),
        Some((scheme, _)) if !scheme.eq_ignore_ascii_case("https") => {
            wrong("it speaks HTTPS only: write https://")
        }
        Some((_, host)) if host.starts_with('/') || host.is_empty() => {
            wrong("write a name or address behind https://")
        }
        Some(_) => Ok(address),
    }
}

fn no_answer(url: &str, error: &ureq::Error) -> ClientError {
    let (url, reason) = (url.to_owned(), error.to_string());
    match tls_fault(error) {
        Some(rustls::Error::InvalidCertificate(fault)) => {
            let remedy = match fault {
                rustls::CertificateError::UnknownIssuer => {
                    "name the authority that signed its certificate (--ca, TAPIO_CA)"
                }
                rustls::CertificateError::NotValidForName
                | rustls::CertificateError::NotValidForNameContext { .. } => {
                    "ask it by a name that stands in its certificate (--api, TAPIO_API)"
                }
                _ => "its certificate must be made anew, or the clocks of both machines do not agree",
            };
            ClientError::Untrusted { url, reason, remedy }
        }
        Some(_) => {
            let remedy = "what listens there does not speak TLS as central does (--api, TAPIO_API)";
            ClientError::Untrusted { url, reason, remedy }
        }
        None => ClientError::Unreachable { url, reason },
    }
}

fn tls_fault(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
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

    /// Scenario: addresses as people write them, right and wrong.
    /// Guarantees: what the command adds itself may stand there already; each mistake is named with what to write.
    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for right in ["https://central:7443", "https://central:7443/", "https://central:7443/api/v1/"] {
            assert_eq!(address(right).unwrap(), "https://central:7443");
        }
        for (wrong, expected) in [
            ("", "write its address"),
            ("central:7443", "write https:// before the name"),
            ("http://central:7443", "HTTPS only"),
            ("https://", "write a name"),
            ("https:///api/v1", "write a name"),
        ] {
            let error = address(wrong).unwrap_err();
            assert!(error.to_string().contains(expected) && error.exit_status() == 2, "{error}");
        }
    }

    /// Scenario: an id with a slash, a blank and a letter beyond ASCII.
    /// Guarantees: it stays one segment.
    #[test]
    fn segments_are_escaped() {
        assert_eq!(path_segment("f-71aa"), "f-71aa");
        assert_eq!(path_segment("../x ä"), "..%2Fx%20%C3%A4");
    }
}
