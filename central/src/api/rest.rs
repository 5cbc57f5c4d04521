//! REST under `/api/v1`. Lists answer `{"items": [...], "next_cursor": text or null}`; errors are problem documents
//! (RFC 9457) that name each parameter at fault.

mod answer;
pub mod clusters;
mod docs;
pub mod entities;
pub mod events;
mod exchange;
pub mod findings;
pub mod health;
pub mod ledger;
pub mod nodes;
mod openapi;
pub mod page;
pub mod params;
pub mod problem;
pub mod status;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    routing::get,
};

use crate::api::ApiState;

/// Where the resources are.
pub(crate) const PATH: &str = "/api/v1";
/// The page on which they can be tried.
pub(crate) const DOCS: &str = "/api/v1/docs";

pub(crate) fn routes() -> Router<Arc<ApiState>> {
    Router::new()
        .route("/findings", get(findings::list))
        .route("/findings/{id}", get(findings::one))
        .route("/events", get(events::list))
        .route("/events/{id}", get(events::one))
        .route("/entities", get(entities::list))
        .route("/clusters", get(clusters::list))
        .route("/clusters/{cluster}", get(clusters::one))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{cluster}/{node}", get(nodes::one))
        .route("/ledger", get(ledger::sums))
        .route("/health", get(health::health))
        .route("/status", get(status::status))
        .route("/openapi.json", get(openapi::openapi))
        .route("/docs", get(docs::page))
        .route("/docs.js", get(docs::script))
        .route("/docs.css", get(docs::style))
}

/// `routes` with what every request goes through, those that lead nowhere as well.
pub(crate) fn exchanged<S: Clone + Send + Sync + 'static>(
    routes: Router<S>,
    state: Arc<ApiState>,
) -> Router<S> {
    routes
        .layer(from_fn(move |request: Request, next: Next| exchange::pass(Arc::clone(&state), request, next)))
}
