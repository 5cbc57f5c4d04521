//! What every request and its answer go through, whichever resource answers: a request id, the log, the counters, and
//! conditions on what the client has already.
//!
//! The id is the client's `x-request-id`, if it is one, else made here. It stands in the answer's headers, in the body
//! of a problem, and in every line that is logged meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::{
    Json,
    body::Body,
    extract::{MatchedPath, Request},
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::Instrument;

use super::{answer, problem::Problem};
use crate::api::ApiState;

/// The header that carries a request's id, both ways.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// No id is longer: it is repeated in every line of the log.
const ID_CHARS_MAX: usize = 64;

/// Answers `request`.
pub(crate) async fn pass(state: Arc<ApiState>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let asked = answer::asked(request.headers());
    // The route, not the path, so that the label set stays closed.
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!("request", id);
    async {
        let method = request.method().clone();
        let response = answer::unless_known(&asked, next.run(request).await);
        let mut response = name_in_problem(response, &id);
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        let (status, micros) = (response.status().as_u16(), started.elapsed().as_micros());
        if response.status().is_server_error() {
            tracing::warn!(%method, route, status, micros, "a request failed");
        } else {
            tracing::info!(%method, route, status, micros, "a request was answered");
        }
        let class = format!("{}xx", status / 100);
        state.requests.get_or_create(&vec![("route", route), ("status", class)]).inc();
        response
    }
    .instrument(span)
    .await
}

/// A problem is written again, with the id of its request.
fn name_in_problem(mut response: Response, id: &str) -> Response {
    let Some(mut problem) = response.extensions_mut().remove::<Problem>() else { return response };
    problem.request_id = Some(id.into());
    let body = Json(problem).into_response().into_body();
    let (mut parts, _without_id): (_, Body) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, body)
}

fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    given.filter(|text| is_id(text)).map_or_else(make_id, str::to_owned)
}

/// Nothing that could break a line of the log or a document.
fn is_id(text: &str) -> bool {
    (1..=ID_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn make_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // Without random numbers the ids are unique in this process only.
    let number = getrandom::u64().unwrap_or_else(|_none| COUNT.fetch_add(1, Ordering::Relaxed));
    format!("{number:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: requests with an id, without, and with texts that would break a log.
    /// Guarantees: only a plain, short text is taken over; every other request gets an id of its own.
    #[test]
    fn ids_are_taken_or_made() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(text.as_bytes()).unwrap());
            request_id(&headers)
        };
        assert_eq!(of("b7ad6b71-69.Z_"), "b7ad6b71-69.Z_");
        for text in ["", "a b", "\u{e4}", "a\"b", "a,b", &"a".repeat(ID_CHARS_MAX + 1)] {
            let made = of(text);
            assert!(made != text && made.len() == 16 && is_id(&made), "{text:?}: {made}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
