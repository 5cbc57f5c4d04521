//! Serves the API over HTTPS: bounded connections, each with deadlines, drained at the end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tapio_daemon::{Health, Registry};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{CentralError, api::ApiState};

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1_024;
/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// A client that has not sent a request's head by then is dropped.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// A connection is asked to end after this time, so that a client that reads nothing holds no place for ever.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(120);
/// From then on, an answer under way may take this long.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// Open requests may finish for this long after the end was asked for.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// How often the store is asked whether it answers, and after how long without an answer that is a fault: a question
/// may take as long as a query may.
const STORE_PROBE_INTERVAL: Duration = Duration::from_secs(10);
const STORE_SILENCE_MAX: Duration = Duration::from_secs(60);
/// After an accept that failed for want of descriptors, wait before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests until `shutdown` is cancelled and the open ones are done or their deadline has passed.
pub(crate) async fn https(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    shutdown: &CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            () = shutdown.cancelled() => break,
            // Acquiring and joining are cancel-safe.
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let Ok(place) = place else { break };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _peer)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, router, shutdown) = (acceptor.clone(), router.clone(), shutdown.clone());
        connections.spawn(async move {
            let _place = place;
            let stream = match timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
                Err(_elapsed) => return tracing::debug!("a TLS handshake took too long"),
            };
            serve_connection(TokioIo::new(stream), router, shutdown).await;
        });
    }
    let drained = timeout(DRAIN_DEADLINE, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!(open = connections.len(), "requests were still open at the deadline");
    }
}

async fn serve_connection(
    io: TokioIo<tokio_rustls::server::TlsStream<tokio::net::TcpStream>>,
    router: Router,
    shutdown: CancellationToken,
) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    let connection = builder.serve_connection(io, TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = shutdown.cancelled() => None,
        () = tokio::time::sleep(CONNECTION_TIME_MAX) => None,
    };
    let ended = match ended {
        Some(ended) => Ok(ended),
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(ANSWER_TIME_MAX, connection).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection ended badly"),
        Err(_elapsed) => tracing::debug!("a client did not read its answer in time"),
    }
}

/// Asks the store again and again, so that the health of the process says whether it answers.
pub(crate) fn watch_store(
    state: Arc<ApiState>,
    health: &Health,
    shutdown: &CancellationToken,
) -> JoinHandle<()> {
    let progress = health.component("store", STORE_SILENCE_MAX);
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let mut told = None;
        loop {
            match state.history.probe().await {
                Ok(()) => {
                    if told.take().is_some() {
                        tracing::info!("the store answers");
                    }
                    progress.clear();
                    progress.tick();
                }
                Err(error) => {
                    let reason = error.to_string();
                    // Once for each reason, not each time that it is asked.
                    if told.as_ref() != Some(&reason) {
                        tracing::warn!(reason, "the store cannot be read; requests say so until it can");
                        told = Some(reason.clone());
                    }
                    progress.fault(reason);
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(STORE_PROBE_INTERVAL) => {}
            }
        }
        progress.finish();
    })
}

/// Serves metrics and health at `address`; gives the address it got and the task that serves.
pub(crate) async fn telemetry(
    address: SocketAddr,
    registry: Registry,
    health: Health,
    shutdown: &CancellationToken,
) -> Result<(SocketAddr, JoinHandle<()>), CentralError> {
    let failed = |source| CentralError::Telemetry { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let shutdown = shutdown.clone();
    let task = tokio::spawn(async move {
        if let Err(error) = tapio_daemon::http::serve(listener, registry, health, shutdown).await {
            tracing::error!(%error, "metrics and health are not served");
        }
    });
    Ok((bound, task))
}
