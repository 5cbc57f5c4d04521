//! The intake: nodes' QUIC connections, one session each, and the check of every frame before it goes anywhere.
//!
//! A connection's certificate says who it is before its first byte; only nodes of this tenant and cluster are served,
//! and a frame that names another source is refused. Frames are opened and checked in place: nothing here makes an
//! owned event (the architecture test looks for it), and what the intake allocates does not grow with the events of a
//! frame, but for the signals among them, which the engine keeps. [`crate::run`] starts it.

pub(crate) mod check;
mod pace;
mod registry;
mod session;
mod standing;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::metrics::gauge::Gauge;
use quinn::{Endpoint, Incoming, VarInt};
use tapio_daemon::{Health, Progress};
use tapio_identity::{
    Expected, Name, NameKind, PeerError, RevocationList, peer,
    quic::{Refusal, Side},
};
use tapio_schemas::ids::Incarnation;
use tapio_wire::session::AggregatorConfig;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::{pace::Paces, registry::Registry, session::Session, standing::Standing};
use crate::{
    config::IntakeConfig,
    engine,
    live::Tap,
    losses::Losses,
    metrics::{IntakeMetrics, Waiting},
    nodes::Nodes,
    pipeline::{positions::Positions, spooler::Command},
    recording::Tape,
    rules::Rules,
};

/// Bytes of frames that may be under way to the disk, of all sources together.
const BYTES_UNDER_WAY_MAX: usize = 64 << 20;
/// The unit in which they are counted.
const ROOM_UNIT_BYTES: usize = 1 << 10;
/// How long an accepted connection may be without progress while it has work.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Handshakes at a time. They cost two signatures each, so more at once are only slower.
const HANDSHAKES_MAX: usize = 128;
/// How long a handshake may take.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);

/// How often it is looked for nodes whose identity two agents use, and at what waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Of how many such nodes the health tells.
const CONTESTED_TOLD_MAX: usize = 3;

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
    /// Certificates that are taken back.
    pub(crate) revocations: RevocationList,
    pub(crate) limits: IntakeConfig,
    pub(crate) positions: Arc<Positions>,
    pub(crate) spooler: mpsc::Sender<Command>,
    pub(crate) engine: engine::queue::Queue,
    pub(crate) tap: Tap,
    pub(crate) tape: Tape,
    pub(crate) rules: Arc<Rules>,
    pub(crate) losses: Arc<Losses>,
    pub(crate) nodes: Nodes,
    pub(crate) metrics: IntakeMetrics,
    pub(crate) health: Health,
    /// How often a session writes down what its source can see.
    pub(crate) announce_interval: Duration,
    /// Cancelled when no more connections are accepted and sessions are to end.
    pub(crate) accept: CancellationToken,
}

/// The intake.
pub(crate) struct Intake {
    endpoint: Endpoint,
    handshakes: Arc<Semaphore>,
    /// Says when two agents use one identity.
    identities: Progress,
    shared: Arc<Shared>,
}

/// What every session needs.
struct Shared {
    expected: Expected,
    revocations: RevocationList,
    registry: Arc<Registry>,
    positions: Arc<Positions>,
    spooler: mpsc::Sender<Command>,
    engine: engine::queue::Queue,
    tap: Tap,
    tape: Tape,
    rules: Arc<Rules>,
    losses: Arc<Losses>,
    nodes: Nodes,
    metrics: IntakeMetrics,
    progress: Progress,
    announce_interval: Duration,
    accept: CancellationToken,
    paces: Paces,
    /// What is granted to each session.
    grant: AggregatorConfig,
    /// Bytes that may be under way to the disk.
    room: Arc<Semaphore>,
    /// Connections that may be open, of peers whose certificate was checked.
    connections: Arc<Semaphore>,
}

/// A connection's place among all; given back when dropped.
struct Connected {
    _place: OwnedSemaphorePermit,
    open: Gauge,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Intake {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { endpoint, own, limits, positions, spooler, engine, tap, .. } = parts;
        let progress = parts.health.component("intake", SILENCE_MAX);
        progress.idle();
        let identities = parts.health.component("identities", SILENCE_MAX);
        identities.idle();
        let shared = Shared {
            expected: Expected::beside(&own, &[NameKind::Node]),
            revocations: parts.revocations,
            registry: Arc::new(Registry::default()),
            positions,
            spooler,
            engine,
            tap,
            tape: parts.tape,
            rules: parts.rules,
            losses: parts.losses,
            nodes: parts.nodes,
            metrics: parts.metrics,
            progress,
            announce_interval: parts.announce_interval,
            accept: parts.accept,
            paces: Paces::new(limits.source.bytes_per_second_max),
            grant: AggregatorConfig {
                credit_frames: limits.source.open_frames_max,
                credit_bytes: limits.source.open_bytes_max,
                ..AggregatorConfig::default()
            },
            room: Arc::new(Semaphore::new(BYTES_UNDER_WAY_MAX / ROOM_UNIT_BYTES)),
            connections: Arc::new(Semaphore::new(limits.connections_max)),
        };
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        Self { endpoint, handshakes, identities, shared: Arc::new(shared) }
    }

    /// Serves until told to end, and until every session has ended.
    pub(crate) async fn serve(self) {
        let mut sessions = JoinSet::new();
        let accept = self.shared.accept.clone();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Every branch is cancel-safe: a connection that is not accepted now is accepted at the next turn.
            let incoming = tokio::select! {
                () = accept.cancelled() => break,
                Some(ended) = sessions.join_next(), if !sessions.is_empty() => {
                    self.note_end(ended);
                    continue;
                }
                _ = looks.tick() => {
                    self.tell_contested();
                    self.measure_queues();
                    continue;
                }
                incoming = self.endpoint.accept() => incoming,
            };
            let Some(incoming) = incoming else { break };
            // Who does not answer at its address costs us nothing but one packet.
            if !incoming.remote_address_validated() && incoming.may_retry() {
                // It is allowed, so it does not fail; if it did, the peer would try again.
                drop(incoming.retry());
                continue;
            }
            let Ok(handshake) = Arc::clone(&self.handshakes).try_acquire_owned() else {
                self.shared.metrics.connections_refused.add("handshakes_full", 1);
                incoming.refuse();
                continue;
            };
            sessions.spawn(serve_connection(incoming, handshake, Arc::clone(&self.shared)));
        }
        while let Some(ended) = sessions.join_next().await {
            self.note_end(ended);
        }
        self.endpoint.close(CLOSE_ENDED, b"the aggregator ends");
        self.endpoint.wait_idle().await;
        self.identities.finish();
        // Sessions hold it too, and all have ended.
        if let Some(shared) = Arc::into_inner(self.shared) {
            shared.progress.finish();
        }
    }

    fn measure_queues(&self) {
        let Shared { spooler, engine, room, metrics, .. } = &*self.shared;
        let bytes = BYTES_UNDER_WAY_MAX / ROOM_UNIT_BYTES;
        let bytes_used = bytes.saturating_sub(room.available_permits()).saturating_mul(ROOM_UNIT_BYTES);
        let records = spooler.max_capacity();
        for (queue, depth, limit) in [
            ("spool-records", records.saturating_sub(spooler.capacity()), records),
            ("spool-bytes", bytes_used, BYTES_UNDER_WAY_MAX),
            ("engine-inputs", engine.depth(), engine::queue::INPUTS_MAX),
        ] {
            let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
            let queue = Waiting { queue };
            metrics.queue_depth.get_or_create(&queue).set(gauge(depth));
            metrics.queue_limit.get_or_create(&queue).set(gauge(limit));
        }
    }

    /// Says in health and metrics which nodes' identities are used by two agents.
    fn tell_contested(&self) {
        let contested = self.shared.registry.contested(std::time::Instant::now());
        self.shared.metrics.contested.set(i64::try_from(contested.len()).unwrap_or(i64::MAX));
        if contested.is_empty() {
            self.identities.clear();
            return;
        }
        let one = |(node, refused, from): &(String, Incarnation, SocketAddr)| {
            format!("{node} (the one at {from}, incarnation {}, is refused)", refused.0)
        };
        let nodes: Vec<String> = contested.iter().take(CONTESTED_TOLD_MAX).map(one).collect();
        let more = contested.len().saturating_sub(nodes.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        self.identities.fault(format!(
            "two agents use the identity of one node: {}{more}; stop one of the two, or give it a certificate of its own",
            nodes.join(", ")
        ));
    }

    /// Says and counts that a session ended by a fault of ours. Its peer connects again.
    fn note_end(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended
            && error.is_panic()
        {
            self.shared.metrics.sessions_panicked.inc();
            tracing::error!(%error, "a session ended by a fault of this program");
        }
    }
}

/// One connection, from its handshake to its end.
async fn serve_connection(incoming: Incoming, handshake: OwnedSemaphorePermit, shared: Arc<Shared>) {
    let from = incoming.remote_address();
    let connection = tokio::select! {
        () = shared.accept.cancelled() => return,
        connection = timeout(HANDSHAKE_TIME_MAX, incoming) => connection,
    };
    drop(handshake);
    let connection = match connection {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let refusal = Refusal::of(&error).filter(|refusal| refusal.side == Side::Own);
            let reason = refusal.map_or("handshake", |refusal| refusal.reason.label());
            shared.metrics.connections_refused.add(reason, 1);
            tracing::info!(%from, %error, "a connection was not made");
            return;
        }
        Err(_elapsed) => {
            shared.metrics.connections_refused.add("handshake_timeout", 1);
            tracing::info!(%from, "a connection was not made in time");
            return;
        }
    };
    let known = || -> Result<_, PeerError> {
        let chain = peer::chain_of(&connection)?;
        let name = peer::name_in_chain(Some(&chain))?;
        shared.expected.check(&name)?;
        Ok((name, Standing::of(&chain, &shared.revocations)?))
    };
    let (name, standing) = match known() {
        Ok(known) => known,
        Err(error) => {
            shared.metrics.connections_refused.add(error.label(), 1);
            tracing::warn!(%from, %error, "a peer is refused");
            connection.close(CLOSE_REFUSED, error.to_string().as_bytes());
            return;
        }
    };
    let full = |reason, text: &str| {
        shared.metrics.connections_refused.add(reason, 1);
        tracing::warn!(%from, %name, text, "a peer is refused");
        connection.close(CLOSE_FULL, text.as_bytes());
    };
    let Ok(place) = Arc::clone(&shared.connections).try_acquire_owned() else {
        return full("full", "this aggregator serves as many connections as intake.connections_max allows");
    };
    shared.metrics.connections.inc();
    let _connected = Connected { _place: place, open: shared.metrics.connections.clone() };
    let source = name.source_id();
    let Some(place) = shared.registry.enter(source) else {
        return full("source_full", "too many connections of this source");
    };
    let Some(position) = shared.positions.of(source) else {
        return full(
            "sources_full",
            "this aggregator knows as many sources as it can; those that are silent for two weeks make room",
        );
    };
    let Some(node) = name.node_id().map(|node| node.as_str().to_owned()) else { return };
    match Session::new(shared, connection, node, place, position, standing) {
        Ok(session) => session.run().await,
        Err(error) => tracing::error!(%error, "a session cannot be opened"),
    }
}
