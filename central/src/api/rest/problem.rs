//! Errors as problem documents (RFC 9457), with every parameter at fault in `errors`.

use axum::{
    Json,
    extract::{path::ErrorKind, rejection::PathRejection},
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use tapio_store::migrations::MigrationError;

use super::openapi;
use crate::history::HistoryError;

/// Of a path that leads nowhere, at most this much is repeated.
const PATH_CHARS_MAX: usize = 200;

/// A problem document (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// Which kind of problem: a closed set of `urn:tapio:problem:<name>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What exactly is wrong and what to do.
    pub detail: String,
    /// The parameters at fault, each with its reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ParameterError>,
    /// The request that it answers, as central's log names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Box<str>>,
}

/// One parameter at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ParameterError {
    /// The query or path parameter.
    pub parameter: String,
    /// Why it is refused and what would be accepted.
    pub reason: String,
    /// All that would be accepted, where that is a closed set: of a value its names, of an unknown parameter the known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<String>,
}

impl ParameterError {
    /// The fault of `parameter`.
    #[must_use]
    pub fn new(parameter: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { parameter: parameter.into(), reason: reason.into(), allowed: Vec::new() }
    }
}

impl Problem {
    fn new(status: StatusCode, name: &str, title: &str, detail: String) -> Self {
        Self {
            kind: format!("urn:tapio:problem:{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail,
            errors: Vec::new(),
            request_id: None,
        }
    }

    /// Parameters that cannot be used; all of them at once.
    #[must_use]
    pub fn parameters(errors: Vec<ParameterError>) -> Self {
        let names: Vec<_> = errors.iter().map(|error| error.parameter.as_str()).collect();
        let detail = format!("see errors for each parameter: {}", names.join(", "));
        Self {
            errors,
            ..Self::new(StatusCode::BAD_REQUEST, "invalid-parameter", "a parameter cannot be used", detail)
        }
    }

    /// A document cannot be written as JSON.
    pub(crate) fn unwritable(error: &serde_json::Error) -> Self {
        let (name, title) = ("unwritable-answer", "the answer cannot be written");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, name, title, error.to_string())
    }

    /// Nothing has this id.
    #[must_use]
    pub fn not_found(what: &str, id: &str) -> Self {
        let detail = format!("no {what} is called {id:?}; it may have passed its retention");
        Self::new(StatusCode::NOT_FOUND, "not-found", "not found", detail)
    }

    /// An abbreviated id fits several things.
    #[must_use]
    pub fn ambiguous(what: &str, id: &str, candidates: &[String]) -> Self {
        let detail =
            format!("{id:?} fits several {what}s, among them {}; give more of the id", candidates.join(", "));
        Self::new(StatusCode::CONFLICT, "ambiguous-id", "the abbreviated id is ambiguous", detail)
    }
}

impl From<HistoryError> for Problem {
    fn from(error: HistoryError) -> Self {
        tracing::warn!(%error, "a query failed");
        match &error {
            HistoryError::Row { .. } => {
                let detail = format!("{error}; an aggregator of another version may have written it");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "unreadable-row",
                    "a stored row cannot be read",
                    detail,
                )
            }
            HistoryError::Schema(MigrationError::Newer { .. } | MigrationError::Older { .. }) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "store-of-another-version",
                "the store's schema is not this version's",
                error.to_string(),
            ),
            HistoryError::Busy { .. } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too-many-queries",
                "too many queries at once",
                error.to_string(),
            ),
            HistoryError::Store(refused) if refused.is_too_costly() => {
                let detail = format!(
                    "{refused}; ask for less: a later since, an earlier until, a cluster, or a lower limit"
                );
                Self::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "query-too-costly",
                    "the question costs more than one query may",
                    detail,
                )
            }
            HistoryError::Store(_) | HistoryError::Schema(_) | HistoryError::Connection { .. } => {
                let detail = format!("{error}; check the aggregator's health and try again");
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "store-unavailable",
                    "the store did not answer",
                    detail,
                )
            }
        }
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        let reason = format!("it cannot be read: {}", rejection.body_text());
        let parameter = match rejection {
            PathRejection::FailedToDeserializePathParams(failed) => match failed.into_kind() {
                ErrorKind::InvalidUtf8InPathParam { key } => key,
                _ => "path".to_owned(),
            },
            _ => "path".to_owned(),
        };
        Self::parameters(vec![ParameterError::new(parameter, reason)])
    }
}

impl IntoResponse for Problem {
    /// The document also goes along as an extension: [`super::exchange`] writes it again with the request's id.
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (status, kind, Json(&self)).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

pub(crate) async fn unknown_route(uri: Uri) -> Problem {
    let detail = format!(
        "{} is no resource; there are {}, and the page to try them at /api/v1/docs",
        uri.path().chars().take(PATH_CHARS_MAX).collect::<String>(),
        openapi::paths().collect::<Vec<_>>().join(", "),
    );
    Problem::new(StatusCode::NOT_FOUND, "unknown-route", "no such resource", detail)
}

pub(crate) async fn unknown_method(method: Method, uri: Uri) -> Problem {
    let method = method.as_str().chars().take(32).collect::<String>();
    let detail = format!("{} is only read: use GET, not {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this API only reads", detail)
}
