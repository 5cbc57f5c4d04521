//! The road to the aggregator: one QUIC connection, one stream, the session over it, and what is sent again.
//!
//! Reads frames from the shelf, never from the capture side, so that a cut road and a running one differ only in how
//! far the reader is. A frame leaves the shelf when it is stored at the other end. Must never lose one by itself, and
//! never decide what is in it. Runs as one task; every wait ends at shutdown. A connection lives no longer than the
//! certificates that it was made with; where there are newer ones in time, the session moves to a connection with those.

mod credentials;
mod ended;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use prometheus_client::metrics::counter::Counter;

use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use tapio_daemon::{Progress, Registry, metrics::Drops};
use tapio_identity::{Expected, NameKind, peer, quic};
use tapio_schemas::ids::Incarnation;
use tapio_wire::{
    message::{Host, RuleSet},
    session::{EdgeConfig, EdgeEvent, EdgeSession, EdgeStatus},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::credentials::OwnCredentials;
use self::{credentials::MadeWith, ended::Ended};
use crate::{
    capture::Shared,
    clock, precorrelate,
    shelf::{Feed, Shelf},
};

/// The first wait before connecting again; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest wait before connecting again.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A connection attempt may take this long.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// A write may take this long: an aggregator that reads nothing for so long is given up.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);
/// The end of the agent waits this long for its last frames to be received.
const LINGER: Duration = Duration::from_secs(3);
/// The end of a connection waits this long until the other side has what was written: a close discards it.
const GOODBYE: Duration = Duration::from_millis(200);
/// Bytes that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// What the uplink counts.
pub(crate) struct Metrics {
    sessions: Counter,
    ended: Drops,
    skipped_messages: Counter,
    sent_bytes: Counter,
    moved: Counter,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let registry = registry.subsystem("uplink");
        Self {
            sessions: registry.counter("sessions", "Sessions that the aggregator opened"),
            sent_bytes: registry
                .counter("sent_bytes", "Bytes sent to the aggregator in UDP datagrams, QUIC's own included"),
            moved: registry
                .counter("moved_sessions", "Sessions that went on over a connection with newer certificates"),
            ended: registry.drops("ended_connections", "Connections that ended, and attempts that failed"),
            skipped_messages: registry.counter(
                "skipped_messages",
                "Messages of the aggregator of kinds that this version does not know",
            ),
        }
    }
}

/// The uplink's task.
pub(crate) struct Uplink {
    pub(crate) aggregators: Vec<SocketAddr>,
    pub(crate) credentials: OwnCredentials,
    pub(crate) metrics: Metrics,
    pub(crate) incarnation: Incarnation,
    pub(crate) node: String,
    pub(crate) capabilities: Vec<String>,
    pub(crate) host: Host,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) progress: Progress,
    /// The last frame is in the spool.
    pub(crate) finished: CancellationToken,
}

/// One connection's state beside the session.
struct Road<'a> {
    session: &'a mut EdgeSession,
    feed: Feed,
    send: SendStream,
    connection: Connection,
    /// Bytes of the connection that are counted.
    counted_bytes: u64,
    made_with: MadeWith,
}

/// A connection that stands, and carries no session yet.
struct Opened {
    endpoint: Endpoint,
    connection: Connection,
    made_with: MadeWith,
    /// The connection whose session it takes over.
    left: Option<Left>,
}

/// A connection that carries no session any more.
struct Left {
    endpoint: Endpoint,
    connection: Connection,
    send: SendStream,
}

/// How a session ended that did not fail.
enum Leave {
    /// The agent ends.
    Finished,
    /// A connection with newer certificates stands.
    Moved(Box<Opened>),
}

impl Uplink {
    /// Connects, and connects again, until the agent has ended and its frames are received or the time is over.
    pub(crate) async fn run(self) {
        let mut session = EdgeSession::new(EdgeConfig {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: self.capabilities.clone(),
            host: Some(self.host.clone()),
            ..EdgeConfig::new(self.incarnation, &self.node)
        });
        let mut attempt = 0_usize;
        let mut backoff = BACKOFF_MIN;
        let mut moved: Option<Box<Opened>> = None;
        while !self.finished.is_cancelled() {
            let Some(address) = self.aggregators.get(attempt % self.aggregators.len().max(1)).copied() else {
                break;
            };
            let ended = match moved.take() {
                Some(opened) => self.connected(&mut session, address, *opened, &mut backoff).await,
                None => match self.open(address).await {
                    Ok(Some(opened)) => self.connected(&mut session, address, opened, &mut backoff).await,
                    Ok(None) => break,
                    Err(ended) => Err(ended),
                },
            };
            self.metrics.skipped_messages.inc_by(session.skipped());
            session.disconnect();
            match ended {
                Ok(Leave::Finished) => break,
                Ok(Leave::Moved(opened)) => {
                    self.metrics.moved.inc();
                    moved = Some(opened);
                    continue;
                }
                Err(ended) => {
                    self.metrics.ended.add(ended.name(), 1);
                    let error = tapio_daemon::with_causes(&ended);
                    tracing::warn!(%address, error, "no road to the aggregator, frames stay in the spool");
                    self.progress.fault(format!("no road to {address}: {error}"));
                }
            }
            attempt = attempt.wrapping_add(1);
            // Cancel-safe: both only wait.
            tokio::select! {
                () = tokio::time::sleep(jittered(backoff)) => {}
                () = self.finished.cancelled() => break,
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        self.progress.finish();
    }

    /// Makes a connection; none when the agent ends meanwhile. Cancel-safe: a connection that is dropped is none.
    async fn open(&self, address: SocketAddr) -> Result<Option<Opened>, Ended> {
        // On one machine nothing of the agent is to be seen from outside.
        let bind: SocketAddr = if address.ip().is_loopback() {
            (address.ip(), 0).into()
        } else if address.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let credentials = self.credentials.current();
        let endpoint = quic::client_endpoint(UdpSocket::bind(bind)?)?;
        let expected = Expected::beside(credentials.name(), &[NameKind::Aggregator]);
        let connecting = quic::connect(&endpoint, &credentials, address, &expected);
        let connection = tokio::select! {
            connected = tokio::time::timeout(CONNECT_TIME_MAX, connecting) => {
                connected.map_err(|_elapsed| Ended::ConnectTime)??.0
            }
            () = self.finished.cancelled() => return Ok(None),
        };
        let made_with = MadeWith {
            serial: credentials.serial().to_owned(),
            own_end: credentials.not_after(),
            their_end: peer::peer_not_after(&connection)?,
        };
        Ok(Some(Opened { endpoint, connection, made_with, left: None }))
    }

    /// Makes a connection with newer certificates than those of another, once there are some. Cancel-safe.
    async fn open_newer(&self, address: SocketAddr, made_with: MadeWith) -> Box<Opened> {
        let mut backoff = BACKOFF_MIN;
        loop {
            self.credentials.due(&made_with).await;
            match self.open(address).await {
                Ok(Some(opened)) if opened.made_with.is_newer_than(&made_with) => return Box::new(opened),
                Ok(Some(opened)) => opened.connection.close(VarInt::from_u32(0), b"nothing is newer"),
                Ok(None) => std::future::pending().await,
                // The session goes on over the connection that it has.
                Err(ended) => {
                    self.metrics.ended.add(ended.name(), 1);
                    let error = tapio_daemon::with_causes(&ended);
                    tracing::warn!(%address, error, "no connection with newer certificates yet");
                    tokio::time::sleep(jittered(backoff)).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    async fn connected(
        &self,
        session: &mut EdgeSession,
        address: SocketAddr,
        opened: Opened,
        backoff: &mut Duration,
    ) -> Result<Leave, Ended> {
        let Opened { endpoint, connection, made_with, left } = opened;
        let (send, receive) = connection.open_bi().await?;
        session.connect(self.shelf.oldest_or_next(self.incarnation), clock::now())?;
        let mut road = Road {
            session,
            feed: Feed::default(),
            send,
            connection: connection.clone(),
            counted_bytes: 0,
            made_with,
        };
        let close_left = async {
            if let Some(mut left) = left {
                close(&left.endpoint, &left.connection, &mut left.send).await;
            }
        };
        let (result, ()) = tokio::join!(self.converse(&mut road, address, receive, backoff), close_left);
        match result {
            Ok(Leave::Moved(mut opened)) => {
                opened.left = Some(Left { endpoint, connection, send: road.send });
                Ok(Leave::Moved(opened))
            }
            other => {
                close(&endpoint, &connection, &mut road.send).await;
                other
            }
        }
    }

    async fn converse(
        &self,
        road: &mut Road<'_>,
        address: SocketAddr,
        mut receive: RecvStream,
        backoff: &mut Duration,
    ) -> Result<Leave, Ended> {
        let mut lingering = None;
        let mut newer = pin!(self.open_newer(address, road.made_with.clone()));
        loop {
            self.events(road, backoff)?;
            road.feed.offer(&self.shelf, road.session)?;
            if lingering.is_none() && self.finished.is_cancelled() {
                lingering = Some(tokio::time::Instant::now() + LINGER);
                road.session.drain("the agent ends")?;
            }
            while let Some(bytes) = road.session.poll_output() {
                let written = tokio::time::timeout(WRITE_TIME_MAX, road.send.write_chunk(bytes)).await;
                written.map_err(|_elapsed| Ended::WriteTime)??;
                road.feed.offer(&self.shelf, road.session)?;
            }
            self.count_sent(road);
            let now = clock::now();
            if let Some(estimate) = road.session.clock(now) {
                self.shared.cluster_clock.measured(estimate, now.monotonic);
            }
            self.progress.tick();
            if let Some(until) = lingering
                && (self.is_all_received(road) || tokio::time::Instant::now() >= until)
            {
                return Ok(Leave::Finished);
            }
            let (until, whose) = road.made_with.until();
            let good_for =
                until.duration_since(SystemTime::now()).map_err(|_over| Ended::Expired { whose })?;
            let timeout = road.session.next_timeout().map_or(Duration::from_secs(1), |at| {
                Duration::from_micros(at.0.saturating_sub(clock::now().monotonic.0))
            });
            let timeout = timeout.min(good_for);
            let timeout = if lingering.is_some() { timeout.min(Duration::from_millis(50)) } else { timeout };
            // Cancel-safe: a chunk is read or not, the making of a connection goes on, the others only wait.
            tokio::select! {
                chunk = receive.read_chunk(READ_BYTES, true) => match chunk? {
                    Some(chunk) => road.session.handle_bytes(&chunk.bytes, clock::now())?,
                    None => return Err(Ended::Closed),
                },
                opened = &mut newer, if lingering.is_none() => return Ok(Leave::Moved(opened)),
                () = self.shelf.appended.notified() => {}
                () = tokio::time::sleep(timeout) => {
                    road.session.set_status(EdgeStatus {
                        progress: self.shared.records.load(Ordering::Relaxed),
                        spooled_frames: self.shelf.frames(),
                        ..self.status()
                    });
                    road.session.handle_timeout(clock::now())?;
                }
                () = self.finished.cancelled(), if lingering.is_none() => {}
            }
        }
    }

    fn count_sent(&self, road: &mut Road<'_>) {
        let sent = road.connection.stats().udp_tx.bytes;
        self.metrics.sent_bytes.inc_by(sent.saturating_sub(road.counted_bytes));
        road.counted_bytes = sent;
    }

    fn status(&self) -> EdgeStatus {
        let (rule_set, generation) = self.shared.rules_in_force();
        EdgeStatus { rule_set, generation, ..EdgeStatus::default() }
    }

    /// Whether every frame of the spool is at the other end. Nothing is appended any more.
    fn is_all_received(&self, road: &Road<'_>) -> bool {
        self.shelf.newest().is_none_or(|newest| road.session.received() >= newest)
    }

    fn events(&self, road: &mut Road<'_>, backoff: &mut Duration) -> Result<(), Ended> {
        while let Some(event) = road.session.poll_event() {
            match event {
                EdgeEvent::Welcomed { received, stored } => {
                    tracing::info!(%received, %stored, "session is open");
                    self.metrics.sessions.inc();
                    self.shelf.stored(stored);
                    if self.is_all_received(road) {
                        self.works(backoff);
                    }
                    road.feed.begin();
                }
                EdgeEvent::Received(_) => self.works(backoff),
                EdgeEvent::Stored(position) => self.shelf.stored(position),
                EdgeEvent::RuleSet(rules) => self.apply(road, &rules)?,
                EdgeEvent::Refused { code, text } => return Err(Ended::Refused { code, text }),
                EdgeEvent::Draining(reason) => return Err(Ended::Draining(reason)),
                EdgeEvent::Silent => return Err(Ended::Silent),
            }
        }
        Ok(())
    }

    /// The road works. A session that is only opened says nothing yet: it may be refused over its first frame, and would
    /// be at once again, for ever.
    fn works(&self, backoff: &mut Duration) {
        *backoff = BACKOFF_MIN;
        self.progress.clear();
    }

    fn apply(&self, road: &mut Road<'_>, pushed: &RuleSet) -> Result<(), Ended> {
        match precorrelate::validate(&pushed.bytes, pushed.version) {
            Ok(rules) => {
                tracing::info!(version = %pushed.version, rules = rules.rules().len(), "rule set is in force");
                self.shared.set_rules(rules, pushed.generation);
                road.session.rule_set_applied(pushed.version)?;
            }
            // The one in force stays; the aggregator sees from the heartbeats that this one does not run.
            Err(reason) => {
                tracing::error!(version = %pushed.version, reason, "the pushed rule set is not used")
            }
        }
        Ok(())
    }
}

async fn close(endpoint: &Endpoint, connection: &Connection, send: &mut SendStream) {
    // The other side may be gone already: then there is nobody to be polite to.
    if send.finish().is_ok() && connection.close_reason().is_none() {
        let _elapsed = tokio::time::timeout(GOODBYE, send.stopped()).await;
    }
    connection.close(VarInt::from_u32(0), b"end of session");
    let _elapsed = tokio::time::timeout(Duration::from_millis(500), endpoint.wait_idle()).await;
}

/// Between half and all of `wait`, so that the agents of a fleet do not come back together.
fn jittered(wait: Duration) -> Duration {
    let part = clock::boot_nanos() / 1_000 % 512;
    wait / 2 + wait / 2 * u32::try_from(part).unwrap_or(0) / 512
}

#[cfg(test)]
mod tests;
