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
        pod_uid: params.text("pod_uid"),
        trace_id: params.parse("trace_id", "a trace id of 32 hexadecimal digits"),
        since: params.time("since").unwrap_or_else(|| params.now().minus(SINCE_DEFAULT)),
        until: params.time("until"),
    };
    params.finish()?;
    let events = state.history.events(&filter, &page).await?;
    Answer::page(&List::of(LIST, events, &page, key))
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
