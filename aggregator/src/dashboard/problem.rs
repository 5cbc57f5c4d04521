//! Errors as problem documents (RFC 9457).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// A problem document.
#[derive(Debug, Serialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}

/// What is wrong, and what to do.
pub(super) fn problem(
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
) -> Response {
    let mut response =
        (status, Json(Problem { kind, title, status: status.as_u16(), detail })).into_response();
    let content_type = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

pub(super) fn not_found() -> Response {
    problem(
        StatusCode::NOT_FOUND,
        "urn:tapio:problem:not-found",
        "not found",
        "there are /, /api/v1/status, /api/v1/incidents, /api/v1/nodes and /api/v1/updates".to_owned(),
    )
}

pub(super) async fn only_get() -> Response {
    problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "urn:tapio:problem:method-not-allowed",
        "the method is not allowed",
        "the dashboard only shows: use GET".to_owned(),
    )
}
