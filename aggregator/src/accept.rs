//! Accepting connections: so many at a time, until stopped, each as a task of its own.

use std::{future::Future, sync::Arc, time::Duration};

use tapio_daemon::Progress;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// How long to wait when the system has no more file descriptors, instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until stopped, `connections_max` at a time (more wait in the kernel's queue), and gives back what is still
/// open then. `what` is named in the log.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    connections_max: usize,
    what: &'static str,
    progress: &Progress,
    stop: &CancellationToken,
    serve: impl Fn(TcpStream) -> F,
) -> JoinSet<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(connections_max));
    let mut open = JoinSet::new();
    loop {
        // Every branch is cancel-safe: a permit or a connection is lost by none of them.
        let place = tokio::select! {
            () = stop.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let Ok(place) = place else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while open.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _peer)) => {
                progress.tick();
                progress.idle();
                progress.clear();
                let served = serve(stream);
                open.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, what, "cannot accept a connection");
                progress.fault(format!("connections cannot be accepted: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    open
}
