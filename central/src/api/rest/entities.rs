//! `GET /entities`.

use std::sync::Arc;

use axum::{Json, extract::State};
use tapio_schemas::entity::EntityKind;

use super::{findings::SINCE_DEFAULT, page::List, params::Params, problem::Problem};
use crate::{
    api::ApiState,
    history::entities::{EntityFilter, StoredEntity, key},
};

/// The list's name in cursors.
const LIST: &str = "entities";

pub(crate) async fn list(
    State(state): State<Arc<ApiState>>,
    mut params: Params,
) -> Result<Json<List<StoredEntity>>, Problem> {
    let page = params.page(LIST);
    let filter = EntityFilter {
        cluster: params.text("cluster"),
        kind: params.one_of("kind", EntityKind::ALL, EntityKind::as_str).map(EntityKind::as_str),
        id: params.text("id"),
        since: params.time("since").unwrap_or_else(|| params.now().minus(SINCE_DEFAULT)),
    };
    params.finish()?;
    let entities = state.history.entities(&filter, &page).await?;
    Ok(Json(List::of(LIST, entities, &page, key)))
}
