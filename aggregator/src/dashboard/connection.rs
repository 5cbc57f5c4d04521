//! Connections: HTTP/1, with or without TLS, and the end of both.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::metrics::DashboardMetrics;

/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// A client that has not sent a request's head by then is dropped.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes of a request's head, and of what waits to be sent.
const BUFFER_BYTES_MAX: usize = 64 << 10;
/// A client that takes nothing of what it is sent for so long is gone: its place is somebody else's.
const UNSENT_MILLIS_MAX: u32 = 30_000;

/// What every connection is served with.
#[derive(Clone)]
pub(super) struct Connections {
    acceptor: Option<TlsAcceptor>,
    router: Router,
    metrics: DashboardMetrics,
    stop: CancellationToken,
}

impl Connections {
    pub(super) fn new(
        tls: Option<Arc<rustls::ServerConfig>>,
        router: Router,
        metrics: DashboardMetrics,
        stop: CancellationToken,
    ) -> Self {
        Self { acceptor: tls.map(TlsAcceptor::from), router, metrics, stop }
    }

    pub(super) async fn serve(self, stream: TcpStream) {
        let refused = |reason, error: &dyn std::fmt::Display| {
            self.metrics.connections_refused.add(reason, 1);
            tracing::debug!(%error, reason, "a connection of the dashboard was not made");
        };
        // Updates are small and shall not wait for the acknowledgement of the ones before.
        if let Err(error) = stream.set_nodelay(true) {
            return refused("socket", &error);
        }
        if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, UNSENT_MILLIS_MAX) {
            return refused("socket", &error);
        }
        match &self.acceptor {
            None => self.serve_requests(stream).await,
            Some(acceptor) => match timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => self.serve_requests(stream).await,
                Ok(Err(error)) => refused("handshake", &error),
                Err(elapsed) => refused("handshake-timeout", &elapsed),
            },
        }
    }

    async fn serve_requests(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        self.metrics.connections.inc();
        let service = TowerToHyperService::new(self.router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME_MAX)
            .max_buf_size(BUFFER_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut is_stopping = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection of the dashboard ended badly");
                    }
                    break;
                }
                () = self.stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
        self.metrics.connections.dec();
    }
}
