//! Connections: TLS, HTTP/2 with its limits, and the end of both.

use std::{future::Future, sync::Arc, time::Duration};

use hyper::{rt::Executor, server::conn::http2};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tapio_daemon::{Progress, shutdown};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{accept::accept, metrics::GrpcMetrics};

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// Calls that one connection may have open.
const CALLS_MAX: u32 = 64;
/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// A connection that is silent for this long is asked whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long the answer may take.
const KEEP_ALIVE_TIME_MAX: Duration = Duration::from_secs(20);
/// Bytes of a request's headers.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Bytes of answers that wait in a connection for each call, beside what its subscription holds.
const SEND_BYTES_MAX: usize = 64 << 10;

/// What every connection is served with.
#[derive(Clone)]
pub(super) struct Connections {
    acceptor: TlsAcceptor,
    routes: Routes,
    metrics: GrpcMetrics,
    stop: CancellationToken,
    calls: Calls,
}

/// Where calls run: none outlives the server.
#[derive(Clone, Debug, Default)]
struct Calls {
    tracker: TaskTracker,
    abort: CancellationToken,
}

impl<F> Executor<F> for Calls
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, call: F) {
        let abort = self.abort.clone();
        // Dropping the handle detaches nothing: the tracker is waited for.
        drop(self.tracker.spawn(async move { abort.run_until_cancelled(call).await }));
    }
}

impl Connections {
    pub(super) fn new(
        tls: Arc<rustls::ServerConfig>,
        routes: Routes,
        metrics: GrpcMetrics,
        stop: CancellationToken,
    ) -> Self {
        Self { acceptor: TlsAcceptor::from(tls), routes, metrics, stop, calls: Calls::default() }
    }

    /// Serves until stopped; then open calls have `drain_time_max` to end.
    pub(super) async fn serve(self, listener: TcpListener, progress: &Progress, drain_time_max: Duration) {
        let serve = |stream| self.clone().serve_connection(stream);
        let mut open = accept(listener, CONNECTIONS_MAX, "gRPC", progress, &self.stop, serve).await;
        shutdown::drain(&mut open, drain_time_max).await;
        self.calls.abort.cancel();
        self.calls.tracker.close();
        self.calls.tracker.wait().await;
    }

    async fn serve_connection(self, stream: TcpStream) {
        let refused = |reason, error: &dyn std::fmt::Display| {
            self.metrics.connections_refused.add(reason, 1);
            tracing::debug!(%error, reason, "a connection of gRPC was not made");
        };
        // Small messages shall not wait for the peer's acknowledgement of the ones before.
        if let Err(error) = stream.set_nodelay(true) {
            return refused("socket", &error);
        }
        let stream = match timeout(HANDSHAKE_TIME_MAX, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return refused("handshake", &error),
            Err(elapsed) => return refused("handshake-timeout", &elapsed),
        };
        self.metrics.connections.inc();
        let mut builder = http2::Builder::new(self.calls);
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIME_MAX)
            .max_concurrent_streams(CALLS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            .max_send_buf_size(SEND_BYTES_MAX);
        let service = TowerToHyperService::new(self.routes);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut is_stopping = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection of gRPC ended badly");
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
