//! Errors as problem documents (RFC 9457), with every parameter at fault in `errors`.

use axum::{
    Json,
    extract::rejection::PathRejection,
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use tapio_store::migrations::MigrationError;

use crate::history::HistoryError;

/// A problem document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// One parameter at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterError {
    /// The query or path parameter.
    pub parameter: String,
    /// Why it is refused and what would be accepted.
    pub reason: String,
}

impl Problem {
    fn new(status: StatusCode, name: &str, title: &str, detail: String) -> Self {
        Self {
            kind: format!("urn:tapio:problem:{name}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail,
            errors: Vec::new(),
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

    /// Nothing has this id.
    #[must_use]
    pub fn not_found(what: &str, id: &str) -> Self {
        let detail = format!("no {what} has the id {id:?}; it may have passed its retention");
        Self::new(StatusCode::NOT_FOUND, "not-found", "not found", detail)
    }

    /// An abbreviated id fits several things.
    #[must_use]
    pub fn ambiguous(what: &str, id: &str, candidates: &[String]) -> Self {
        let detail = format!("{id:?} fits several {what}s: {}; give more of the id", candidates.join(", "));
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
        Self::parameters(vec![ParameterError { parameter: "id".to_owned(), reason }])
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(self)).into_response()
    }
}

pub(crate) async fn unknown_route(uri: Uri) -> Problem {
    let detail = format!(
        "{} is no resource; there are /api/v1/findings, /findings/{{id}}, /events, /events/{{id}}, /entities, \
         /ledger and /health",
        uri.path()
    );
    Problem::new(StatusCode::NOT_FOUND, "unknown-route", "no such resource", detail)
}

pub(crate) async fn unknown_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} is only read: use GET, not {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this API only reads", detail)
}
