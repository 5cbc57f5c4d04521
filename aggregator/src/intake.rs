//! The intake: nodes' QUIC connections, one session each, and the check of every frame before it goes anywhere.
//!
//! A connection's certificate says who it is before its first byte; only nodes of this tenant and cluster are served,
//! and a frame that names another source is refused. Frames are opened and checked in place: nothing here makes an
//! owned event (the architecture test looks for it), and what the intake allocates does not grow with the events of a
//! frame, but for the signals among them, which the engine keeps. [`crate::run`] starts it.

pub(crate) mod check;
mod registry;
mod session;

use std::sync::Arc;

use quinn::{Endpoint, Incoming, VarInt};
use tapio_daemon::{Health, Progress};
use tapio_identity::{Expected, Name, NameKind, peer};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{registry::Registry, session::Session};
use crate::{
    engine,
    losses::Losses,
    metrics::IntakeMetrics,
    pipeline::{positions::Positions, spooler::Command},
    rules::Rules,
};

/// Bytes of frames that may be under way to the disk, of all sources together.
const BYTES_UNDER_WAY_MAX: usize = 64 << 20;
/// The unit in which they are counted.
const ROOM_UNIT_BYTES: usize = 1 << 10;
/// How long an accepted connection may be without progress while it has work.
const SILENCE_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// The connection is closed in order: the session said why.
const CLOSE_ENDED: VarInt = VarInt::from_u32(0);
/// The peer is not served here.
const CLOSE_REFUSED: VarInt = VarInt::from_u32(0x10);
/// There is no room for another connection.
const CLOSE_FULL: VarInt = VarInt::from_u32(0x11);

/// What the intake is made of.
pub(crate) struct Parts {
    pub(crate) endpoint: Endpoint,
    pub(crate) own: Name,
    pub(crate) connections_max: usize,
    pub(crate) positions: Arc<Positions>,
    pub(crate) spooler: mpsc::Sender<Command>,
    pub(crate) engine: mpsc::Sender<engine::Batch>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) losses: Arc<Losses>,
    pub(crate) metrics: IntakeMetrics,
    pub(crate) health: Health,
    /// Cancelled when no more connections are accepted and sessions are to end.
    pub(crate) accept: CancellationToken,
}

/// The intake.
pub(crate) struct Intake {
    endpoint: Endpoint,
    connections_max: usize,
    shared: Arc<Shared>,
}

/// What every session needs.
struct Shared {
    expected: Expected,
    registry: Arc<Registry>,
    positions: Arc<Positions>,
    spooler: mpsc::Sender<Command>,
    engine: mpsc::Sender<engine::Batch>,
    rules: Arc<Rules>,
    losses: Arc<Losses>,
    metrics: IntakeMetrics,
    progress: Progress,
    accept: CancellationToken,
    room: Arc<Semaphore>,
}

impl Intake {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { endpoint, own, connections_max, positions, spooler, engine, .. } = parts;
        let progress = parts.health.component("intake", SILENCE_MAX);
        progress.idle();
        let shared = Shared {
            expected: Expected::beside(&own, &[NameKind::Node]),
            registry: Arc::new(Registry::default()),
            positions,
            spooler,
            engine,
            rules: parts.rules,
            losses: parts.losses,
            metrics: parts.metrics,
            progress,
            accept: parts.accept,
            room: Arc::new(Semaphore::new(BYTES_UNDER_WAY_MAX / ROOM_UNIT_BYTES)),
        };
        Self { endpoint, connections_max, shared: Arc::new(shared) }
    }

    /// Serves until told to end, and until every session has ended.
    pub(crate) async fn serve(self) {
        let mut sessions = JoinSet::new();
        let accept = self.shared.accept.clone();
        loop {
            // Every branch is cancel-safe: a connection that is not accepted now is accepted at the next turn.
            let incoming = tokio::select! {
                () = accept.cancelled() => break,
                Some(_ended) = sessions.join_next(), if !sessions.is_empty() => {
                    self.note_connections(sessions.len());
                    continue;
                }
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            if sessions.len() >= self.connections_max {
                self.shared.metrics.connections_refused.add("full", 1);
                incoming.refuse();
                continue;
            }
            sessions.spawn(serve_connection(incoming, Arc::clone(&self.shared)));
            self.note_connections(sessions.len());
        }
        while sessions.join_next().await.is_some() {}
        self.note_connections(0);
        self.endpoint.close(CLOSE_ENDED, b"the aggregator ends");
        self.endpoint.wait_idle().await;
    }

    fn note_connections(&self, connections: usize) {
        self.shared.metrics.connections.set(i64::try_from(connections).unwrap_or(i64::MAX));
    }
}

/// One connection, from its handshake to its end.
async fn serve_connection(incoming: Incoming, shared: Arc<Shared>) {
    let from = incoming.remote_address();
    let connection = tokio::select! {
        () = shared.accept.cancelled() => return,
        connection = incoming => connection,
    };
    let connection = match connection {
        Ok(connection) => connection,
        Err(error) => {
            shared.metrics.connections_refused.add("handshake", 1);
            tracing::info!(%from, %error, "a connection was not made");
            return;
        }
    };
    let name = match peer::peer_name(&connection).and_then(|name| shared.expected.check(&name).map(|()| name))
    {
        Ok(name) => name,
        Err(error) => {
            shared.metrics.connections_refused.add(error.label(), 1);
            tracing::warn!(%from, %error, "a peer is refused");
            connection.close(CLOSE_REFUSED, error.to_string().as_bytes());
            return;
        }
    };
    let source = name.source_id();
    let (Some(place), Some(position)) = (shared.registry.enter(source), shared.positions.of(source)) else {
        shared.metrics.connections_refused.add("source_full", 1);
        connection.close(CLOSE_FULL, b"too many connections of this source, or too many sources");
        return;
    };
    let Some(node) = name.node_id().map(|node| node.as_str().to_owned()) else { return };
    match Session::new(shared, connection, node, place, position) {
        Ok(session) => session.run().await,
        Err(error) => tracing::error!(%error, "a session cannot be opened"),
    }
}
