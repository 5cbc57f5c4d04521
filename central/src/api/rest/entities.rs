//! `GET /entities`.

use std::sync::Arc;

use axum::extract::State;
use tapio_schemas::entity::EntityKind;

use super::{answer::Answer, findings::SINCE_DEFAULT, page::List, params::Params, problem::Problem};
use crate::{
    api::ApiState,
    history::entities::{EntityFilter, key},
};

/// The list's name in cursors.
pub(crate) const LIST: &str = "entities";

pub(crate) async fn list(State(state): State<Arc<ApiState>>, mut params: Params) -> Result<Answer, Problem> {
    let page = params.page(LIST);
    let filter = EntityFilter {
        cluster: params.text("cluster"),
        kind: params.one_of("kind", EntityKind::ALL, EntityKind::as_str).map(EntityKind::as_str),
        id: params.text("id"),
        since: params.time("since").unwrap_or_else(|| params.now().minus(SINCE_DEFAULT)),
    };
    params.finish()?;
    let entities = state.history.entities(&filter, &page).await?;
    Answer::page(&List::of(LIST, entities, &page, key))
}
