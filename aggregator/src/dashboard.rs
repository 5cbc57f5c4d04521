//! The dashboard: one page for people, what it shows as JSON, and what changes as server-sent events.
//!
//! Plain HTTP on loopback, where only names of this machine are answered (a page elsewhere must not read findings by
//! letting its own name point here); HTTPS anywhere else, and on loopback where it has a certificate. It answers from
//! [`crate::recent`], [`crate::chains`] and [`crate::nodes`] and must never ask the store: history is central's.
//! Connections, streams and answers are bounded; nobody is waited for. [`crate::run`] starts it.

mod grouping;
mod page;
mod problem;
mod snapshot;
mod updates;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, middleware, routing::get};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::Serialize;
use tapio_daemon::{Health, Progress};
use tapio_schemas::{
    ids::{ClusterId, RuleSetVersion, TenantId},
    units::UnixMicros,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    chains::Chains,
    connections::{Connections, Stream},
    engine::Watermark,
    metrics::DashboardMetrics,
    nodes::Nodes,
    recent::Recent,
};

/// A client that has not sent a request's head by then is dropped, also between two requests.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request's head, and of what waits to be sent.
const BUFFER_BYTES_MAX: usize = 64 << 10;

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
    /// Browsers hold the name that they asked by against the certificate; without one, only loopback's are answered.
    is_encrypted: bool,
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
        is_encrypted,
    };
    let refused = parts.metrics.connections_refused.clone();
    let connections = Connections::new("the dashboard", tls, refused, parts.stop);
    let speaker = Speaker {
        connections: connections.clone(),
        router: router(Arc::new(shared)),
        metrics: parts.metrics,
    };
    let scheme = if is_encrypted { "https" } else { "http" };
    tracing::info!(%address, scheme, "the dashboard is served");
    parts.progress.idle();
    connections.serve(listener, &parts.progress, move |stream| speaker.clone().speak(stream)).await;
    parts.progress.finish();
}

/// What every connection is served with: HTTP/1.
#[derive(Clone)]
struct Speaker {
    connections: Connections,
    router: Router,
    metrics: DashboardMetrics,
}

impl Speaker {
    async fn speak(self, stream: Stream) {
        self.metrics.connections.inc();
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME_MAX)
            .max_buf_size(BUFFER_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.router));
        // The time for a request's head ends idle connections.
        let never = std::future::pending();
        self.connections.drive(connection, |connection| connection.graceful_shutdown(), never).await;
        self.metrics.connections.dec();
    }
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
