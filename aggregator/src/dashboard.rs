//! The dashboard: one page for people, what it shows as JSON, and what changes as server-sent events.
//!
//! Plain HTTP on loopback, where only names of this machine are answered (a page elsewhere must not read findings by
//! letting its own name point here); HTTPS anywhere else. It answers from [`crate::recent`], [`crate::chains`] and
//! [`crate::nodes`] and must never ask the store: history is central's. Connections, streams and answers are bounded;
//! nobody is waited for. [`crate::run`] starts it.

mod connection;
mod page;
mod problem;
mod snapshot;
mod updates;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, middleware, routing::get};
use serde::Serialize;
use tapio_daemon::{Health, Progress, shutdown};
use tapio_schemas::{
    ids::{ClusterId, RuleSetVersion, TenantId},
    units::UnixMicros,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use self::connection::Connections;
use crate::{
    accept::accept, chains::Chains, engine::Watermark, metrics::DashboardMetrics, nodes::Nodes,
    recent::Recent,
};

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// How long open requests may take to end once they were told to.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// What never changes while the aggregator runs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct About {
    pub(crate) aggregator: String,
    pub(crate) cluster: ClusterId,
    pub(crate) tenant: TenantId,
    pub(crate) rule_set: RuleSetVersion,
    pub(crate) started_at: UnixMicros,
}

/// What the dashboard is made of.
pub(crate) struct Parts {
    pub(crate) listener: TcpListener,
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    pub(crate) streams_max: usize,
    pub(crate) about: About,
    pub(crate) recent: Recent,
    pub(crate) chains: Chains,
    pub(crate) nodes: Nodes,
    pub(crate) watermark: Watermark,
    pub(crate) health: Health,
    pub(crate) progress: Progress,
    pub(crate) metrics: DashboardMetrics,
    /// Cancelled when nothing new comes any more: streams end.
    pub(crate) stop: CancellationToken,
}

/// What every answer is made of.
#[derive(Debug)]
struct Shared {
    about: About,
    recent: Recent,
    chains: Chains,
    nodes: Nodes,
    watermark: Watermark,
    health: Health,
    metrics: DashboardMetrics,
    streams: Arc<Semaphore>,
    streams_max: usize,
    stop: CancellationToken,
    /// Other machines' names are answered too.
    is_public: bool,
}

/// Serves until stopped, and until every request has ended or its time is over.
pub(crate) async fn serve(parts: Parts) {
    let Parts { listener, address, tls, streams_max, about, recent, chains, nodes, watermark, .. } = parts;
    let is_encrypted = tls.is_some();
    let shared = Shared {
        about,
        recent,
        chains,
        nodes,
        watermark,
        health: parts.health,
        metrics: parts.metrics.clone(),
        streams: Arc::new(Semaphore::new(streams_max)),
        streams_max,
        stop: parts.stop.clone(),
        is_public: !address.ip().is_loopback(),
    };
    let connections = Connections::new(tls, router(Arc::new(shared)), parts.metrics, parts.stop.clone());
    let scheme = if is_encrypted { "https" } else { "http" };
    tracing::info!(%address, scheme, "the dashboard is served");
    parts.progress.idle();
    let serve = |stream| connections.clone().serve(stream);
    let mut open =
        accept(listener, CONNECTIONS_MAX, "the dashboard", &parts.progress, &parts.stop, serve).await;
    shutdown::drain(&mut open, DRAIN_TIME_MAX).await;
    parts.progress.finish();
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/{*path}", get(page::asset))
        .route("/api/v1/status", get(snapshot::status))
        .route("/api/v1/incidents", get(snapshot::incidents))
        .route("/api/v1/nodes", get(snapshot::nodes))
        .route("/api/v1/updates", get(updates::updates))
        .method_not_allowed_fallback(problem::only_get)
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), page::guard))
        .with_state(shared)
}
