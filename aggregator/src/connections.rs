//! Connections of the servers: so many at a time, each with TLS where that is spoken, until stopped, and the end of all.
//!
//! What is spoken over a connection is the caller's: [`crate::grpc`] and [`crate::dashboard`]. Nobody is left hanging: a
//! connection that is one too many is closed at once, one that does not finish its handshake in time too, and each is
//! counted by reason.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use tapio_daemon::{Progress, metrics::Drops, shutdown};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{either::Either, sync::CancellationToken};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 256;
/// A client that has not finished its handshake by then is dropped.
pub(crate) const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// A client that takes nothing of what it is sent for so long is gone: its place is somebody else's.
const UNSENT_MILLIS_MAX: u32 = 30_000;
/// How long open requests may take to end once they were told to.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// How long to wait when the system has no more file descriptors, instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes in both directions.
pub(crate) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// What every connection of a server is made with. Clones share it.
#[derive(Clone)]
pub(crate) struct Connections {
    /// Named in the log.
    what: &'static str,
    tls: Option<TlsAcceptor>,
    refused: Drops,
    stop: CancellationToken,
}

impl Connections {
    pub(crate) fn new(
        what: &'static str,
        tls: Option<Arc<rustls::ServerConfig>>,
        refused: Drops,
        stop: CancellationToken,
    ) -> Self {
        Self { what, tls: tls.map(TlsAcceptor::from), refused, stop }
    }

    /// Serves until stopped; then what is open has [`DRAIN_TIME_MAX`] to end.
    pub(crate) async fn serve<F>(
        &self,
        listener: TcpListener,
        progress: &Progress,
        serve: impl Fn(Stream) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut open = JoinSet::new();
        loop {
            // Both branches are cancel-safe: a connection is lost by neither.
            let accepted = tokio::select! {
                () = self.stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            while open.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _peer)) => {
                    progress.tick();
                    progress.idle();
                    progress.clear();
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        self.refuse("too-many", &format_args!("{CONNECTIONS_MAX} are open"));
                        continue;
                    };
                    let (this, serve) = (self.clone(), serve.clone());
                    open.spawn(async move {
                        if let Some(stream) = this.secure(stream).await {
                            serve(stream).await;
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, what = self.what, "cannot accept a connection");
                    progress.fault(format!("connections cannot be accepted: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        shutdown::drain(&mut open, DRAIN_TIME_MAX).await;
    }

    async fn secure(&self, stream: TcpStream) -> Option<Stream> {
        // What is told is small and shall not wait for the acknowledgement of what was told before.
        let set = stream.set_nodelay(true).map_err(|error| error.to_string()).and_then(|()| {
            rustix::net::sockopt::set_tcp_user_timeout(&stream, UNSENT_MILLIS_MAX)
                .map_err(|error| error.to_string())
        });
        if let Err(error) = set {
            self.refuse("socket", &error);
            return None;
        }
        let Some(acceptor) = &self.tls else { return Some(Either::Left(stream)) };
        match timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => return Some(Either::Right(stream)),
            Ok(Err(error)) => self.refuse("handshake", &error),
            Err(elapsed) => self.refuse("handshake-timeout", &elapsed),
        }
        None
    }

    /// Counts a connection that is not served.
    pub(crate) fn refuse(&self, reason: &'static str, error: &dyn fmt::Display) {
        self.refused.add(reason, 1);
        tracing::debug!(%error, reason, what = self.what, "a connection was not made");
    }

    /// Works on a connection until it has ended; it is told to `end` when the server stops, or when `idle` is over.
    pub(crate) async fn drive<C, E>(
        &self,
        connection: C,
        end: fn(Pin<&mut C>),
        idle: impl Future<Output = ()>,
    ) where
        C: Future<Output = Result<(), E>>,
        E: fmt::Display,
    {
        tokio::pin!(connection, idle);
        let mut is_ending = false;
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, what = self.what, "a connection ended badly");
                    }
                    return;
                }
                () = self.stop.cancelled(), if !is_ending => {}
                () = idle.as_mut(), if !is_ending => {}
            }
            is_ending = true;
            end(connection.as_mut());
        }
    }
}
