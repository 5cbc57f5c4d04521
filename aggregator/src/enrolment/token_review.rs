//! Asks Kubernetes who a service account's token is of: one `TokenReview` for each request, over HTTPS.
//!
//! The API server answers 201 for good and for bad tokens: what counts is in the answer, and all of it is looked at. The
//! audience is always sent: without it the ordinary API token of any pod would pass. Answers repeat the token: their
//! bytes are never logged.

use std::{collections::HashMap, fs, path::PathBuf, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tapio_daemon::with_causes;
use tapio_identity::https::{self, HttpsError};
use thiserror::Error;
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::TlsConnector;

use super::Refusal;
use crate::config::KubernetesEnrolment;

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// How long the API server may take.
const REVIEW_TIME_MAX: Duration = Duration::from_secs(10);
/// Questions at a time; others wait, as long as one may take.
const REVIEWS_MAX: usize = 16;
/// No answer is longer.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// The own token has some kilobytes.
const OWN_TOKEN_BYTES_MAX: usize = 64 << 10;
/// Letters of the API server's words that are told on.
const SAID_MAX: usize = 300;

/// Why TokenReview cannot be asked for.
#[derive(Debug, Error)]
pub enum TokenReviewError {
    /// The API server's authorities cannot be used.
    #[error(transparent)]
    Https(#[from] HttpsError),
    /// The own token cannot be read.
    #[error("cannot read the own token {}", path.display())]
    OwnToken {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The own token is none.
    #[error("{} holds no token", path.display())]
    NoOwnToken {
        /// Its file.
        path: PathBuf,
    },
    /// The API server cannot be reached.
    #[error("the API server cannot be reached")]
    Connect(#[source] std::io::Error),
    /// It does not speak HTTP.
    #[error("the API server cannot be asked")]
    Http(#[source] hyper::Error),
    /// It did not answer in time.
    #[error("the API server does not answer")]
    Silent,
    /// It refuses the question.
    #[error(
        "the API server refuses TokenReview ({status}): {said}; see the rights of this aggregator's account"
    )]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it said.
        said: String,
    },
    /// Its answer cannot be read.
    #[error("the API server's answer cannot be read: {0}")]
    Answer(String),
}

/// Asks for reviews.
pub(super) struct TokenReviews {
    host: String,
    port: u16,
    server_name: ServerName<'static>,
    token: PathBuf,
    tls: TlsConnector,
    audience: String,
    username: String,
    under_way: Semaphore,
}

/// Who a token is of.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) node: String,
    pub(super) node_uid: String,
    pub(super) pod: String,
    pub(super) pod_uid: String,
}

#[derive(Serialize)]
struct Question<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    spec: Spec<'a>,
}

#[derive(Serialize)]
struct Spec<'a> {
    token: &'a str,
    audiences: [&'a str; 1],
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    audiences: Vec<String>,
    #[serde(default)]
    user: User,
    #[serde(default)]
    error: String,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: HashMap<String, Vec<String>>,
}

/// What the API server says when it refuses the question itself.
#[derive(Default, Deserialize)]
struct ApiError {
    #[serde(default)]
    message: String,
}

impl TokenReviews {
    pub(super) fn new(config: &KubernetesEnrolment) -> Result<Self, TokenReviewError> {
        let reviews = Self {
            host: config.host.clone(),
            port: config.port,
            server_name: config.server_name.clone(),
            token: config.token.clone(),
            tls: TlsConnector::from(https::client_config(&config.authority)?),
            audience: config.audience.clone(),
            username: config.username.clone(),
            under_way: Semaphore::new(REVIEWS_MAX),
        };
        // A fault of the file shall be told at the start, not by the first node.
        reviews.own_token()?;
        Ok(reviews)
    }

    /// Who a token is of, if it is one of an agent's pod.
    pub(super) async fn review(&self, token: &str) -> Result<Claims, Refusal> {
        let asked = timeout(REVIEW_TIME_MAX, async {
            let _place = self.under_way.acquire().await;
            self.ask(token).await
        });
        let status = asked.await.unwrap_or(Err(TokenReviewError::Silent));
        let status = status.map_err(|error| Refusal::Unavailable(with_causes(&error)))?;
        self.check(status)
    }

    fn check(&self, status: Status) -> Result<Claims, Refusal> {
        let Status { authenticated, audiences, user, error } = status;
        if !authenticated {
            return Err(Refusal::TokenRefused { said: cut(&error) });
        }
        if !audiences.contains(&self.audience) {
            return Err(Refusal::WrongAudience { expected: self.audience.clone() });
        }
        if user.username != self.username {
            let (found, expected) = (cut(&user.username), self.username.clone());
            return Err(Refusal::WrongServiceAccount { found, expected });
        }
        let extra =
            |key: &str| match user.extra.get(&format!("authentication.kubernetes.io/{key}"))?.as_slice() {
                [value] if !value.is_empty() => Some(value.clone()),
                _ => None,
            };
        let (Some(pod), Some(pod_uid)) = (extra("pod-name"), extra("pod-uid")) else {
            return Err(Refusal::NoPod);
        };
        let (Some(node), Some(node_uid)) = (extra("node-name"), extra("node-uid")) else {
            return Err(Refusal::NoNode);
        };
        Ok(Claims { node, node_uid, pod, pod_uid })
    }

    async fn ask(&self, token: &str) -> Result<Status, TokenReviewError> {
        let spec = Spec { token, audiences: [&self.audience] };
        let question = Question { api_version: "authentication.k8s.io/v1", kind: "TokenReview", spec };
        let body =
            serde_json::to_vec(&question).map_err(|error| TokenReviewError::Answer(error.to_string()))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(PATH)
            .header(HOST, format!("{}:{}", self.host, self.port))
            .header(AUTHORIZATION, self.own_token()?)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| TokenReviewError::Answer(error.to_string()))?;
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, self.port)).await.map_err(TokenReviewError::Connect)?;
        let stream = self.tls.connect(self.server_name.clone(), stream).await;
        let stream = TokioIo::new(stream.map_err(TokenReviewError::Connect)?);
        let (mut sender, connection) = http1::handshake(stream).await.map_err(TokenReviewError::Http)?;
        let asking = async {
            let answer = sender.send_request(request).await.map_err(TokenReviewError::Http)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| TokenReviewError::Answer(error.to_string()))?;
            Ok::<_, TokenReviewError>((status, body.to_bytes()))
        };
        let mut asking = std::pin::pin!(asking);
        let (status, body) = tokio::select! {
            answered = &mut asking => answered?,
            // The connection may have ended behind the answer.
            ended = connection => match ended {
                Ok(()) => asking.await?,
                Err(error) => return Err(TokenReviewError::Http(error)),
            },
        };
        if status != StatusCode::CREATED && status != StatusCode::OK {
            let ApiError { message } = serde_json::from_slice(&body).unwrap_or_default();
            return Err(TokenReviewError::Refused { status: status.as_u16(), said: cut(&message) });
        }
        let answer: Result<Answer, _> = serde_json::from_slice(&body);
        // Its text may quote the answer, which repeats the token.
        let answer = answer.map_err(|error| {
            TokenReviewError::Answer(format!(
                "no TokenReview at line {}, column {}",
                error.line(),
                error.column()
            ))
        });
        Ok(answer?.status)
    }

    /// The own token, read each time: it is replaced every hour.
    fn own_token(&self) -> Result<HeaderValue, TokenReviewError> {
        let path = || self.token.clone();
        let text = fs::read_to_string(&self.token)
            .map_err(|source| TokenReviewError::OwnToken { path: path(), source })?;
        let text = text.trim();
        let value = (!text.is_empty() && text.len() <= OWN_TOKEN_BYTES_MAX)
            .then(|| HeaderValue::from_str(&format!("Bearer {text}")).ok())
            .flatten();
        let mut value = value.ok_or_else(|| TokenReviewError::NoOwnToken { path: path() })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Words of another program, for people.
fn cut(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(SAID_MAX).collect()
}

#[cfg(test)]
mod tests;
