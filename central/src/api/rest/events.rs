//! `GET /events` and `GET /events/{id}`.

use std::sync::Arc;

use axum::extract::{Path, State, rejection::PathRejection};
use tapio_schemas::{
    ids::EventId,
    intent::{EventKind, Severity},
    units::Micros,
};

use super::{
    answer::Answer,
    page::List,
    params::Params,
    problem::{ParameterError, Problem},
};
use crate::{
    api::ApiState,
    history::events::{EventFilter, key},
};

/// The list's name in cursors.
pub(crate) const LIST: &str = "events";

/// Hexadecimal digits of a trace's id, and how many of them are enough.
const TRACE_DIGITS_MAX: usize = 32;
const TRACE_DIGITS_MIN: usize = 4;

/// Without `since`, the list of events reaches back this far.
const SINCE_DEFAULT: Micros = Micros::from_secs(3_600);

pub(crate) async fn list(State(state): State<Arc<ApiState>>, mut params: Params) -> Result<Answer, Problem> {
    let page = params.page(LIST);
    if page.cursor.as_ref().is_some_and(|cursor| cursor.id.parse::<EventId>().is_err()) {
        params.refuse("cursor", "it names no event; use next_cursor of the page before, unchanged");
    }
    let filter = EventFilter {
        cluster: params.text("cluster"),
        node: params.text("node"),
        intent: params.text("intent"),
        kind: params.one_of("kind", EventKind::ALL, EventKind::as_str).map(EventKind::code),
        severity_min: params.one_of("severity_min", Severity::ALL, Severity::as_str).map(Severity::code),
        container_id: params.text("container_id"),
        pod: params.text("pod"),
        pod_uid: params.text("pod_uid"),
        trace_id: trace_id(&mut params),
        since: params.time("since").unwrap_or_else(|| params.now().minus(SINCE_DEFAULT)),
        until: params.time("until"),
    };
    params.finish()?;
    let events = state.history.events(&filter, &page).await?;
    Answer::page(&List::of(LIST, events, &page, key))
}

/// A trace's id, or enough of its beginning.
fn trace_id(params: &mut Params) -> Option<String> {
    let id = params.text("trace_id")?.to_ascii_lowercase();
    let is_hex = id.bytes().all(|digit| digit.is_ascii_hexdigit());
    if id.len() == TRACE_DIGITS_MAX && id.bytes().all(|digit| digit == b'0') {
        params.refuse("trace_id", "all zeros stand for no trace");
        return None;
    }
    if is_hex && (TRACE_DIGITS_MIN..=TRACE_DIGITS_MAX).contains(&id.len()) {
        return Some(id);
    }
    params.refuse(
        "trace_id",
        format_args!(
            "it is no trace's id: write its {TRACE_DIGITS_MAX} hexadecimal digits, or the first {TRACE_DIGITS_MIN} or more"
        ),
    );
    None
}

pub(crate) async fn one(
    State(state): State<Arc<ApiState>>,
    id: Result<Path<String>, PathRejection>,
    params: Params,
) -> Result<Answer, Problem> {
    let now = params.now();
    params.finish()?;
    let Path(id) = id?;
    let parsed: EventId = id.parse().map_err(|error: tapio_schemas::ids::ParseIdError| {
        Problem::parameters(vec![ParameterError::new("id", error.to_string())])
    })?;
    let event = state.history.event(parsed, now).await?.ok_or_else(|| Problem::not_found("event", &id))?;
    Answer::whole(&event)
}
