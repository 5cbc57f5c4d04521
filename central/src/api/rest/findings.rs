//! `GET /findings` and `GET /findings/{id}`.

use std::sync::Arc;

use axum::extract::{Path, State, rejection::PathRejection};
use tapio_schemas::{
    finding::{Finding, FindingState},
    intent::Severity,
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
    history::findings::{FindingFilter, key},
};

/// Without `since`, a list reaches back this far.
pub(crate) const SINCE_DEFAULT: Micros = Micros::from_secs(24 * 3_600);

/// The list's name in cursors.
pub(crate) const LIST: &str = "findings";

/// An abbreviated id has at least this many characters: `f-` and two digits.
const PREFIX_CHARS_MIN: usize = 4;

pub(crate) async fn list(State(state): State<Arc<ApiState>>, mut params: Params) -> Result<Answer, Problem> {
    let page = params.page(LIST);
    let filter = FindingFilter {
        cluster: params.text("cluster"),
        state: params.one_of("state", FindingState::ALL, FindingState::as_str).map(FindingState::as_str),
        rule: params.text("rule"),
        severity: params.one_of("severity", Severity::ALL, Severity::as_str).map(Severity::as_str),
        incident_id: params.text("incident_id"),
        since: params.time("since").unwrap_or_else(|| params.now().minus(SINCE_DEFAULT)),
        until: params.time("until"),
    };
    params.finish()?;
    let findings = state.history.findings(&filter, &page).await?;
    Answer::page(&List::of(LIST, findings, &page, key))
}

/// One finding with its whole chain. The id may be abbreviated as long as it fits one finding only.
pub(crate) async fn one(
    State(state): State<Arc<ApiState>>,
    id: Result<Path<String>, PathRejection>,
    params: Params,
) -> Result<Answer, Problem> {
    params.finish()?;
    let Path(id) = id?;
    let plain = id.starts_with("f-") && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !plain || !(PREFIX_CHARS_MIN..=Finding::ID_CHARS).contains(&id.len()) {
        let reason = format!(
            "{:?} is no finding's id: write f- and up to 16 digits, at least two",
            id.chars().take(64).collect::<String>()
        );
        return Err(Problem::parameters(vec![ParameterError::new("id", reason)]));
    }
    let mut findings = state.history.findings_by_prefix(&id).await?;
    match findings.len() {
        0 => Err(Problem::not_found("finding", &id)),
        1 => Answer::whole(&findings.remove(0)),
        _ => {
            let candidates: Vec<_> = findings.into_iter().map(|finding| finding.id).collect();
            Err(Problem::ambiguous("finding", &id, &candidates))
        }
    }
}
