//! `GET /clusters` and `GET /clusters/{cluster}`.

use std::sync::Arc;

use axum::extract::{Path, State, rejection::PathRejection};
use tapio_schemas::{ids::ClusterId, units::UnixMicros};

use super::{
    answer::Answer,
    findings::SINCE_DEFAULT,
    page::{List, Page},
    params::Params,
    problem::Problem,
};
use crate::{
    api::ApiState,
    history::clusters::{ClusterFilter, key},
};

/// The list's name in cursors.
pub(crate) const LIST: &str = "clusters";

pub(crate) async fn list(State(state): State<Arc<ApiState>>, mut params: Params) -> Result<Answer, Problem> {
    let now = params.now();
    let page = params.page(LIST);
    let since = params.time("since").unwrap_or_else(|| params.now().minus(SINCE_DEFAULT));
    params.finish()?;
    let clusters = state
        .history
        .clusters(&ClusterFilter { cluster: None, heard_since: since, since, now }, &page)
        .await?;
    Answer::page(&List::of(LIST, clusters, &page, key))
}

/// One cluster, whenever it was last heard; `since` says from when on a node counts that is not heard any more.
pub(crate) async fn one(
    State(state): State<Arc<ApiState>>,
    path: Result<Path<String>, PathRejection>,
    mut params: Params,
) -> Result<Answer, Problem> {
    let now = params.now();
    let since = params.time("since").unwrap_or_else(|| now.minus(SINCE_DEFAULT));
    let Path(cluster) = path?;
    if let Err(error) = cluster.parse::<ClusterId>() {
        params.refuse("cluster", error);
    }
    params.finish()?;
    let filter = ClusterFilter { cluster: Some(cluster.clone()), heard_since: UnixMicros(0), since, now };
    let clusters = state.history.clusters(&filter, &Page::first(1, now)).await?;
    Answer::whole(clusters.first().ok_or_else(|| Problem::not_found("cluster", &cluster))?)
}
