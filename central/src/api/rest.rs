//! REST under `/api/v1`. Lists answer `{"items": [...], "next_cursor": text or null}`, newest first; errors are
//! problem documents (RFC 9457) that name each parameter at fault.

pub mod entities;
pub mod events;
pub mod findings;
pub mod health;
pub mod ledger;
pub mod page;
pub mod params;
pub mod problem;

use std::sync::Arc;

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};

use crate::api::ApiState;

pub(crate) fn routes() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/findings", get(findings::list))
        .route("/findings/{id}", get(findings::one))
        .route("/events", get(events::list))
        .route("/events/{id}", get(events::one))
        .route("/entities", get(entities::list))
        .route("/ledger", get(ledger::sums))
        .route("/health", get(health::health))
}

/// Counts each answered request under its route, not its path, so that the label set stays closed.
pub(crate) async fn count(State(state): State<Arc<ApiState>>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    let class = format!("{}xx", response.status().as_u16() / 100);
    state.requests.get_or_create(&vec![("route", route), ("status", class)]).inc();
    response
}

pub(crate) fn counted(routes: Router<Arc<ApiState>>, state: Arc<ApiState>) -> Router<Arc<ApiState>> {
    routes.route_layer(from_fn(move |request: Request, next: Next| {
        let state = State(Arc::clone(&state));
        count(state, request, next)
    }))
}
