//! gRPC for programs: findings as they are announced, events as they arrive, reflection and health, over TLS.
//!
//! [`serve`] owns the connections and how they end; the services answer from [`crate::recent`] and [`crate::live`] and
//! hold no state of their own. Connections, streams and what waits for each are bounded; nobody is waited for. Must
//! never ask the store: history is central's. [`crate::run`] starts it.

mod answers;
mod connection;
mod correlation;
mod event;
mod health;
mod refusal;
mod stream;

use std::{net::SocketAddr, sync::Arc};

use tapio_daemon::{Health, Progress};
use tapio_proto::v1::{
    correlation_service_server::CorrelationServiceServer, event_service_server::EventServiceServer,
};
use tapio_schemas::ids::ClusterId;
use thiserror::Error;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use self::{
    answers::Budget,
    connection::{Speaker, Tasks},
    correlation::Correlation,
    event::Events,
    stream::Streams,
};
use crate::{connections::Connections, live::Live, metrics::GrpcMetrics, recent::Recent};

/// Bytes of a request: none needs more than some names.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// Why gRPC cannot be served.
#[derive(Debug, Error)]
pub enum GrpcError {
    /// The descriptors that are built in cannot be read: a fault of this program.
    #[error("server reflection cannot be set up")]
    Reflection(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What gRPC is made of.
pub(crate) struct Parts {
    pub(crate) listener: TcpListener,
    pub(crate) address: SocketAddr,
    pub(crate) tls: Arc<rustls::ServerConfig>,
    /// Whether nodes and aggregators may read too, where clients show certificates.
    pub(crate) machines_may_read: bool,
    pub(crate) streams_max: usize,
    pub(crate) cluster: ClusterId,
    pub(crate) recent: Recent,
    pub(crate) live: Live,
    pub(crate) health: Health,
    pub(crate) progress: Progress,
    pub(crate) metrics: GrpcMetrics,
    /// Cancelled when the aggregator begins to end: health says so.
    pub(crate) ending: CancellationToken,
    /// Cancelled when nothing new comes any more: streams end.
    pub(crate) stop: CancellationToken,
}

/// Serves until stopped, and until every call has ended or its time is over.
///
/// # Errors
/// When the built-in descriptors cannot be read.
pub(crate) async fn serve(parts: Parts) -> Result<(), GrpcError> {
    let Parts { listener, address, streams_max, cluster, recent, live, health, progress, metrics, .. } =
        parts;
    let streams = Streams::new(streams_max, metrics.clone(), parts.stop.clone());
    let answers = Budget::new(metrics.calls_refused);
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let [reflection, reflection_alpha] = [(); 2].map(|()| {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tapio_proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    });
    let refused = |error| GrpcError::Reflection(Box::new(error));
    let correlation = Correlation::new(recent, streams.clone(), answers);
    let events = Events::new(live, cluster, streams);
    let routes =
        Routes::new(CorrelationServiceServer::new(correlation).max_decoding_message_size(REQUEST_BYTES_MAX))
            .add_service(EventServiceServer::new(events).max_decoding_message_size(REQUEST_BYTES_MAX))
            .add_service(health_service)
            .add_service(reflection.build_v1().map_err(refused)?)
            // What clients in several languages still ask for.
            .add_service(reflection_alpha.build_v1alpha().map_err(refused)?)
            .prepare();
    let mut tasks = JoinSet::new();
    tasks.spawn(health::report(reporter, health, parts.ending));
    let connections = Connections::new("gRPC", Some(parts.tls), metrics.connections_refused, parts.stop);
    let speaker = Speaker {
        connections: connections.clone(),
        routes,
        open: metrics.connections,
        machines_may_read: parts.machines_may_read,
        calls: Tasks::default(),
    };
    tracing::info!(%address, "gRPC is served");
    progress.idle();
    let calls = speaker.calls.clone();
    connections.serve(listener, &progress, move |stream| speaker.clone().speak(stream)).await;
    calls.end().await;
    tasks.shutdown().await;
    progress.finish();
    Ok(())
}
