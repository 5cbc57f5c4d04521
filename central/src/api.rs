//! What people and programs ask central over HTTPS. One module per protocol; REST is the first.

pub mod rest;

use std::sync::Arc;

use axum::{Router, response::Redirect, routing::get};
use tapio_daemon::Registry;

use crate::history::History;

/// What every request handler reads.
pub struct ApiState {
    /// This central's name, for health.
    pub name: String,
    /// The store, read only.
    pub history: History,
    /// How many requests were answered, by route and status class.
    pub requests: RequestCounter,
}

/// Counts answered requests; labels are closed sets.
pub type RequestCounter = prometheus_client::metrics::family::Family<
    Vec<(&'static str, String)>,
    prometheus_client::metrics::counter::Counter,
>;

impl ApiState {
    /// The state of a central called `name`; its counters are put into `registry`.
    #[must_use]
    pub fn new(name: String, history: History, registry: &Registry) -> Self {
        let requests = registry.subsystem("central").register(
            "requests",
            "Requests answered, by route and status class",
            RequestCounter::default(),
        );
        Self { name, history, requests }
    }
}

/// All routes of the API.
pub fn router(state: Arc<ApiState>) -> Router {
    let routes = Router::new()
        .nest(rest::PATH, rest::routes())
        // Whoever opens the address in a browser is shown what can be asked.
        .route("/", get(|| async { Redirect::temporary(rest::DOCS) }))
        .route(rest::PATH, get(|| async { Redirect::temporary(rest::DOCS) }))
        .method_not_allowed_fallback(rest::problem::unknown_method)
        .fallback(rest::problem::unknown_route);
    rest::exchanged(routes, Arc::clone(&state)).with_state(state)
}
