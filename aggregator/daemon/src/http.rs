//! `/metrics` and `/healthz` for this machine: plain HTTP, so on loopback only.
//!
//! Small on purpose: one request per connection, a few connections at a time, and nobody can hold one
//! for longer than [`CONNECTION_TIME_MAX`].

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::health::{Health, Verdict};
use crate::metrics::{Exposition, Registry};

/// Connections served at a time; more wait in the listener's queue.
pub const CONNECTIONS_MAX: usize = 16;
/// A connection is closed after this, whatever it is doing.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// A request's header must have arrived within this.
pub const HEADER_TIME_MAX: Duration = Duration::from_secs(5);

/// How long to wait when the system has no more file descriptors, instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The listener can be reached from other machines, and what is served is not encrypted.
    #[error(
        "metrics and health are served without encryption, so on loopback only: {address} is not, use 127.0.0.1 or [::1]"
    )]
    NotLoopback {
        /// The listener's address.
        address: SocketAddr,
    },
    /// The listener has no address.
    #[error("cannot tell the listener's address")]
    Listener(#[source] io::Error),
}

/// Serves until `token` is cancelled, then ends what is under way.
///
/// # Errors
/// When the listener is not on loopback.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    health: Health,
    token: CancellationToken,
) -> Result<(), HttpError> {
    let address = listener.local_addr().map_err(HttpError::Listener)?;
    if !address.ip().is_loopback() {
        return Err(HttpError::NotLoopback { address });
    }
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        // Every branch is cancel-safe: a permit or a connection is lost by none of them.
        let permit = tokio::select! {
            () = token.cancelled() => break,
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        let accepted = tokio::select! {
            () = token.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (registry, health) = (registry.clone(), health.clone());
                connections.spawn(async move {
                    serve_connection(stream, registry, health).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    connections.shutdown().await;
    Ok(())
}

async fn serve_connection(stream: TcpStream, registry: Registry, health: Health) {
    let service = service_fn(move |request| {
        let response = answer(&request, &registry, &health);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIME_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection ended early"),
        Err(_elapsed) => tracing::debug!("a connection took too long"),
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry, health: &Health) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => {
            let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
            let exposition = Exposition::accepted_by(accept.unwrap_or_default());
            match registry.expose(exposition) {
                Ok(body) => text(StatusCode::OK, exposition.content_type(), body),
                Err(_unwritable) => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "text/plain",
                    "a metric cannot be written\n".to_owned(),
                ),
            }
        }
        "/healthz" => {
            let status = health.status();
            let code = match status.status {
                Verdict::Healthy => StatusCode::OK,
                Verdict::Degraded => StatusCode::SERVICE_UNAVAILABLE,
            };
            match serde_json::to_string_pretty(&status) {
                Ok(body) => text(code, "application/json", body + "\n"),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "text/plain", "there are /metrics and /healthz\n".to_owned()),
    }
}

fn text(code: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
