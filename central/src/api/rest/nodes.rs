//! `GET /nodes` and `GET /nodes/{cluster}/{node}`.

use std::sync::Arc;

use axum::extract::{Path, State, rejection::PathRejection};
use tapio_schemas::{
    ids::{ClusterId, NodeId},
    units::UnixMicros,
};

use super::{
    answer::Answer,
    findings::SINCE_DEFAULT,
    page::{List, Page},
    params::Params,
    problem::Problem,
};
use crate::{
    api::ApiState,
    history::nodes::{NodeFilter, NodeState, key},
};

/// The list's name in cursors.
pub(crate) const LIST: &str = "nodes";

pub(crate) async fn list(State(state): State<Arc<ApiState>>, mut params: Params) -> Result<Answer, Problem> {
    let now = params.now();
    let page = params.page(LIST);
    let (cluster, node) = (params.text("cluster"), params.text("node"));
    let state_wanted = params.one_of("state", NodeState::ALL, NodeState::as_str);
    let since = params.time("since").unwrap_or_else(|| losses_since(params.now()));
    let filter =
        NodeFilter { cluster, node, state: state_wanted, heard_since: since, losses_since: since, now };
    params.finish()?;
    let nodes = state.history.nodes(&filter, &page).await?;
    Answer::page(&List::of(LIST, nodes, &page, key))
}

/// A day before the minute of `now`, so that what did not change has the same tag for a minute.
fn losses_since(now: UnixMicros) -> UnixMicros {
    const MINUTE: u64 = 60_000_000;
    UnixMicros(now.0 / MINUTE * MINUTE).minus(SINCE_DEFAULT)
}

/// One node, whenever it was last heard; `since` says from when its losses are counted.
pub(crate) async fn one(
    State(state): State<Arc<ApiState>>,
    path: Result<Path<(String, String)>, PathRejection>,
    mut params: Params,
) -> Result<Answer, Problem> {
    let now = params.now();
    let since = params.time("since").unwrap_or_else(|| losses_since(now));
    let Path((cluster, node)) = path?;
    if let Err(error) = cluster.parse::<ClusterId>() {
        params.refuse("cluster", error);
    }
    if let Err(error) = node.parse::<NodeId>() {
        params.refuse("node", error);
    }
    params.finish()?;
    let filter = NodeFilter {
        cluster: Some(cluster.clone()),
        node: Some(node.clone()),
        state: None,
        heard_since: UnixMicros(0),
        losses_since: since,
        now,
    };
    let nodes = state.history.nodes(&filter, &Page::first(1, now)).await?;
    let found = nodes.first().ok_or_else(|| Problem::not_found("node", &format!("{cluster}/{node}")))?;
    Answer::whole(found)
}
