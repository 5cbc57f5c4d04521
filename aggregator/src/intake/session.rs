//! One session: bytes of a connection through the sans-IO session, and its frames onto the road.
//!
//! Every frame is checked, then handed to the spooler (which answers *received*) and, as what the engine needs of it,
//! to the engine (which waits for no disk). Both queues are bounded; when one is full frames wait here, as many as
//! there is credit for, and their source keeps the rest. All waiting is done in one place, the loop of
//! [`Session::run`], so that a session that waits still answers heartbeats, acknowledges, is superseded and ends.
//! Called by [`super::serve_connection`].

mod frames;
mod handover;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tapio_schemas::{
    ids::{Incarnation, SourceId},
    ledger::Stage,
    units::Micros,
};
use tapio_wire::{
    Position,
    frame::{FrameFault, FrameHeader},
    message::{Hello, Host, refusal},
    session::{AggregatorEvent, AggregatorSession, Now, SessionFault, SourceState},
};
use tokio::time::{Instant, timeout};

use self::handover::{Content, Handover, Outgoing, Room};
use super::{
    CLOSE_ENDED, Shared,
    check::Checker,
    pace::Pace,
    registry::Place,
    standing::{Fallen, Standing},
};
use crate::{
    clock::now as unix_now,
    metrics::Outcome,
    nodes::Connected,
    pipeline::{
        positions::SourcePosition,
        record::{self, Kind},
    },
    source::{Announcement, missing_probes},
};

/// How long a connection may take to open its stream.
const STREAM_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the peer may take to read what it is sent.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a peer may take to end its connection after it was told why.
const LINGER_TIME_MAX: Duration = Duration::from_secs(1);
/// Bytes that are taken from the stream at a time.
const CHUNK_BYTES_MAX: usize = 256 << 10;

/// A session.
pub(super) struct Session {
    shared: Arc<Shared>,
    connection: Connection,
    node: String,
    source: SourceId,
    place: Place,
    position: Arc<SourcePosition>,
    session: AggregatorSession,
    checker: Checker,
    handover: Handover,
    /// Frames that wait for room, each with the number of those before it that its source gave up. Bounded by the
    /// credit, which is given back for what is durable.
    arrived: VecDeque<(FrameHeader, Bytes, u64)>,
    /// What was wrong with what came, while frames that came before it still wait to be taken.
    fault: Option<SessionFault>,
    /// Frames that came twice and messages of unknown kinds, as they were counted last.
    counted: (u64, u64),
    /// What the source said that it can see.
    announcement: Option<Announcement>,
    /// Its place among the nodes that people are shown.
    connected: Option<Connected>,
    /// When that is to be written down again, so that the spool always holds it.
    announce_at: Option<Instant>,
    /// The probes that do not work on the node, as its hello said.
    missing_probes: Arc<[String]>,
    started: Instant,
    /// Whether the peer's certificate still stands.
    standing: Standing,
    /// How fast the source may send.
    pace: Pace,
    /// Whether it was slowed down already.
    slowed: bool,
}

/// Why a session ends.
enum End {
    /// The peer went, or was told why it has to.
    Over,
    /// The peer is told why it has to go: what waits is sent first.
    Tell,
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        connection: Connection,
        node: String,
        place: Place,
        position: Arc<SourcePosition>,
        standing: Standing,
    ) -> Result<Self, FrameFault> {
        let started = Instant::now();
        let source = place.source();
        let now = Now { monotonic: Micros(0), unix: unix_now() };
        let (spooler, engine) = (shared.spooler.clone(), shared.engine.clone());
        Ok(Self {
            session: AggregatorSession::new(source, shared.grant, now),
            pace: shared.paces.of(source, started),
            slowed: false,
            checker: Checker::new(source)?,
            handover: Handover::new(spooler, engine, Arc::clone(&shared.room)),
            arrived: VecDeque::new(),
            fault: None,
            counted: (0, 0),
            announcement: None,
            connected: None,
            announce_at: None,
            missing_probes: Arc::default(),
            shared,
            connection,
            node,
            source,
            place,
            position,
            started,
            standing,
        })
    }

    pub(super) async fn run(mut self) {
        let stream = tokio::select! {
            () = self.shared.accept.cancelled() => return,
            stream = timeout(STREAM_TIME_MAX, self.connection.accept_bi()) => stream,
        };
        let Ok(Ok((mut send, mut receive))) = stream else {
            self.connection.close(CLOSE_ENDED, b"no stream was opened");
            return;
        };
        if let End::Tell = self.serve(&mut send, &mut receive).await {
            // What the session refused with is its last message; the peer then ends the connection, or is ended.
            let told = self.send(&mut send).await && send.finish().is_ok();
            if told {
                drop(timeout(LINGER_TIME_MAX, self.connection.closed()).await);
            }
        }
        self.connection.close(CLOSE_ENDED, b"");
        tracing::info!(node = self.node, "a session ended");
        let Self { shared, place, connected, mut handover, .. } = self;
        // The next session of the source need not wait for the engine.
        drop((place, connected));
        tokio::select! {
            // The next start takes it from the spool.
            () = shared.accept.cancelled() => {}
            () = handover.finish() => {}
        }
    }

    async fn serve(&mut self, send: &mut SendStream, receive: &mut RecvStream) -> End {
        let accept = self.shared.accept.clone();
        let superseded = self.place.superseded.clone();
        loop {
            // A refusal for what came would make the peer go before the frames in front of it are taken.
            if self.fault.is_none() && !self.send(send).await {
                return End::Over;
            }
            let paused = self.pace.pause(Instant::now());
            let reads = self.fault.is_none() && paused.is_none();
            let wake = self.session.next_timeout().map(|at| self.started + Duration::from_micros(at.0));
            let announce_at = self.announce_at.filter(|_| !self.handover.holds_a_record());
            // Cancel-safe: quinn keeps the bytes of a read that is dropped, what waits for room keeps its place, the
            // rest hold no state.
            let handled = tokio::select! {
                biased;
                () = superseded.cancelled() => {
                    self.session.refuse(refusal::SUPERSEDED, "a newer session of this source took over");
                    return End::Tell;
                }
                () = accept.cancelled() => return self.drained(send).await,
                fallen = self.standing.fallen() => {
                    self.fallen(&fallen);
                    return End::Tell;
                }
                () = self.position.changed() => {
                    self.acknowledge();
                    Ok(())
                }
                room = self.handover.room() => match room {
                    Room::Spool(outgoing, room) => {
                        self.hand_over(outgoing, room);
                        Ok(())
                    }
                    Room::Engine => Ok(()),
                    Room::Ended => return End::Over,
                },
                chunk = receive.read_chunk(CHUNK_BYTES_MAX, true), if reads => match chunk {
                    Ok(Some(chunk)) => {
                        self.charge(chunk.bytes.len());
                        self.session.handle_bytes(&chunk.bytes, self.now())
                    }
                    Ok(None) | Err(_) => return End::Over,
                },
                _ = self.connection.closed(), if !reads => {
                    if let Some(fault) = self.fault.take() {
                        self.ended_by(&fault);
                    }
                    return End::Over;
                }
                () = sleep_until(paused) => Ok(()),
                () = sleep_until(announce_at) => {
                    self.announce();
                    Ok(())
                }
                () = sleep_until(wake) => self.session.handle_timeout(self.now()),
            };
            self.count_session();
            if let Err(fault) = handled {
                self.fault.get_or_insert(fault);
            }
            if let Err(end) = self.take_events() {
                return end;
            }
            // Frames that came before a fault are sound: they are taken first.
            if let Err(end) = self.take_frames() {
                return end;
            }
            if self.arrived.is_empty()
                && !self.handover.holds_a_record()
                && let Some(fault) = self.fault.take()
            {
                return self.ended_by(&fault);
            }
        }
    }

    /// The aggregator ends: what is acknowledged is said, and why.
    async fn drained(&mut self, send: &mut SendStream) -> End {
        self.acknowledge();
        let told = self.session.flush().and_then(|()| self.session.drain("the aggregator ends"));
        if told.is_ok() && self.send(send).await {
            // Clears what waits, so it comes after the acknowledgements are out.
            self.session.refuse(refusal::DRAINING, "the aggregator ends");
        }
        End::Tell
    }

    /// Counts what came against what the source may send.
    fn charge(&mut self, bytes: usize) {
        if !self.pace.charge(bytes, Instant::now()) {
            return;
        }
        self.shared.metrics.slowed.inc();
        if !std::mem::replace(&mut self.slowed, true) {
            tracing::warn!(
                node = self.node,
                "a node sends more than intake.source_bytes_per_second_max and is slowed down"
            );
        }
    }

    /// Ends the session because of the peer's certificate.
    fn fallen(&mut self, fallen: &Fallen) {
        self.shared.metrics.sessions_refused.add(fallen.name(), 1);
        tracing::warn!(node = self.node, %fallen, "a session is ended for the node's certificate");
        self.session.refuse(refusal::PROTOCOL, &format!("{}: {fallen}", fallen.name()));
    }

    fn ended_by(&self, fault: &SessionFault) -> End {
        tracing::warn!(
            node = self.node,
            %fault,
            fault_name = fault.name(),
            advice = fault.advice(),
            "a session is ended for what came"
        );
        let metrics = &self.shared.metrics;
        if let SessionFault::Frame(_) = fault {
            metrics.refusals.add(fault.name(), 1);
            metrics.frames.get_or_create(&Outcome { outcome: "refused" }).inc();
        } else {
            metrics.sessions_refused.add(fault.name(), 1);
        }
        End::Tell
    }

    /// Counts what the session itself dropped since the last time.
    fn count_session(&mut self) {
        let (duplicates, skipped) = (self.session.duplicates(), self.session.skipped());
        let (were, skipped_before) = std::mem::replace(&mut self.counted, (duplicates, skipped));
        let metrics = &self.shared.metrics;
        metrics.messages_skipped.inc_by(skipped.saturating_sub(skipped_before));
        let repeated = duplicates.saturating_sub(were);
        if repeated > 0 {
            metrics.frames.get_or_create(&Outcome { outcome: "duplicate" }).inc_by(repeated);
            self.shared.losses.folded(Stage::Intake, "frames", "duplicate", repeated);
        }
    }

    /// Sends what waits; false when the peer does not take it.
    async fn send(&mut self, send: &mut SendStream) -> bool {
        while let Some(piece) = self.session.poll_output() {
            match timeout(WRITE_TIME_MAX, send.write_chunk(piece)).await {
                Ok(Ok(())) => {}
                Ok(Err(_closed)) => return false,
                Err(_elapsed) => {
                    tracing::warn!(node = self.node, "a node does not read what it is sent");
                    return false;
                }
            }
        }
        true
    }

    fn acknowledge(&mut self) {
        let (marks, now) = (self.position.marks(), self.now());
        self.session.received(marks.received, now);
        self.session.stored(marks.stored, now);
    }

    /// Takes what came; frames are put where they wait for room.
    fn take_events(&mut self) -> Result<(), End> {
        let mut gap = None;
        while let Some(event) = self.session.poll_event() {
            match event {
                AggregatorEvent::Hello(hello) => self.greeted(&hello)?,
                AggregatorEvent::Frame { header, bytes } => {
                    let position = Position::from(header.meta.id);
                    let missing =
                        gap.take_if(|(before, _)| *before == position).map_or(0, |(_, missing)| missing);
                    self.arrived.push_back((header, bytes, missing));
                }
                AggregatorEvent::Gap { after, before } => {
                    let missing = before.sequence.0.saturating_sub(after.sequence.0).saturating_sub(1);
                    // It counts with the frame behind it, whichever of the two is told first.
                    match self.arrived.back_mut() {
                        Some((header, _, known)) if Position::from(header.meta.id) == before => {
                            *known = missing
                        }
                        _ => gap = Some((before, missing)),
                    }
                    tracing::warn!(node = self.node, %after, %before, "frames were given up by their source");
                }
                AggregatorEvent::RuleSetApplied(version) => {
                    tracing::info!(node = self.node, %version, "a node runs a rule set");
                }
                AggregatorEvent::Host(host) => self.described(host),
                AggregatorEvent::Heartbeat(_) => {}
                AggregatorEvent::Draining(reason) => {
                    tracing::info!(node = self.node, reason, "a node will end its session");
                }
                AggregatorEvent::Silent => {
                    tracing::warn!(node = self.node, "a node is silent");
                    return Err(End::Over);
                }
            }
        }
        Ok(())
    }

    /// Takes frames that came, as long as there is room for what follows from them.
    fn take_frames(&mut self) -> Result<(), End> {
        while self.handover.has_room() {
            let Some((header, bytes, gap)) = self.arrived.pop_front() else { break };
            self.framed(&header, bytes, gap)?;
        }
        Ok(())
    }

    fn greeted(&mut self, hello: &Hello) -> Result<(), End> {
        if hello.node != self.node {
            let text = format!("the hello names node {:?}, the certificate {:?}", hello.node, self.node);
            self.shared.metrics.sessions_refused.add("wrong-node", 1);
            tracing::warn!(
                node = self.node,
                said = hello.node,
                from = %self.connection.remote_address(),
                "a session is refused: the agent's node.name is not the one in its certificate"
            );
            self.session.refuse(refusal::PROTOCOL, &text);
            return Err(End::Tell);
        }
        let incarnation = self.session.incarnation();
        let marks = self.position.marks();
        // Also when the newer one is away: what this one has cannot be told from what the newer one sent.
        let newer = marks.accepted.incarnation;
        let newer = (newer > incarnation).then_some(newer);
        let stale = newer.or_else(|| self.place.activate(incarnation).err().map(|stale| stale.serving));
        if let Some(newer) = stale {
            self.outdated(incarnation, newer);
            return Err(End::Tell);
        }
        let known = SourceState { accepted: marks.accepted, received: marks.received, stored: marks.stored };
        let rule_set = self.shared.rules.message();
        let opened =
            self.session.welcome(known, self.now()).and_then(|()| self.session.push_rule_set(rule_set));
        if let Err(fault) = opened {
            return Err(self.ended_by(&fault));
        }
        tracing::info!(
            node = self.node,
            incarnation = incarnation.0,
            agent = hello.agent_version,
            received = %marks.received,
            "a node's session is open"
        );
        self.missing_probes = missing_probes(&hello.capabilities).into();
        let announcement = Announcement {
            source: self.source,
            incarnation,
            capability: hello.capabilities.clone(),
            agent_version: hello.agent_version.clone(),
            ..Announcement::default()
        };
        self.connected = self.shared.nodes.connected(&self.node, &announcement, unix_now());
        self.announcement = Some(announcement);
        self.announce();
        Ok(())
    }

    /// Refuses an older life than the one that is or was served.
    fn outdated(&mut self, incarnation: Incarnation, newer: Incarnation) {
        let from = self.connection.remote_address();
        let text = format!(
            "another agent uses this node's identity: it is at incarnation {}, this one at {}; stop one of the two, or \
             give it a certificate of its own, and start this one again",
            newer.0, incarnation.0
        );
        self.shared.metrics.sessions_refused.add("stale-incarnation", 1);
        self.shared.registry.note_rival(&self.node, incarnation, from, std::time::Instant::now());
        tracing::error!(
            node = self.node,
            %from,
            incarnation = incarnation.0,
            newer = newer.0,
            "an older life of a node is refused: if it comes again, two agents share one identity"
        );
        self.session.refuse(refusal::SUPERSEDED, &text);
    }

    /// The source said what it runs on; the hello's announcement is written down once more, with that.
    fn described(&mut self, host: Host) {
        if let Some(announcement) = &mut self.announcement {
            announcement.kernel_release = host.kernel_release;
            announcement.architecture = host.architecture;
            announcement.limits = host.limits.into_iter().collect();
            if let Some(connected) = &self.connected {
                connected.described(announcement);
            }
            self.announce();
        }
    }

    /// Writes down what the source can see, now and again within each replay window: a restarted engine must know it
    /// however long ago the session was opened.
    fn announce(&mut self) {
        self.announce_at = Some(Instant::now() + self.shared.announce_interval);
        let Some(announcement) = &self.announcement else { return };
        let body = serde_json::to_vec(announcement).unwrap_or_default();
        self.offer(Outgoing {
            head: record::head(Kind::Source, unix_now(), &self.node),
            body: Bytes::from(body),
            content: Content::Announcement,
        });
    }

    fn now(&self) -> Now {
        let monotonic = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Now { monotonic: Micros(monotonic), unix: unix_now() }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
