//! One session: bytes of a connection through the sans-IO session, and its frames onto the road.
//!
//! Every frame is checked, then handed at once to the spooler (which answers *received*) and, as what the engine needs
//! of it, to the engine (which waits for no disk). Both queues are bounded; when one is full the session waits, its
//! source runs out of credit, and keeps what it has. Called by [`super::serve_connection`].

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tapio_correlation::{SourceContext, observe_batch};
use tapio_schemas::{
    ids::SourceId,
    ledger::Stage,
    units::{Micros, UnixMicros},
};
use tapio_wire::{
    Position,
    frame::{FrameFault, FrameHeader},
    message::{Hello, refusal},
    session::{AggregatorConfig, AggregatorEvent, AggregatorSession, Now, SessionFault, SourceState},
};
use tokio::time::{Instant, timeout};

use super::{
    CLOSE_ENDED, ROOM_UNIT_BYTES, Shared,
    check::{Checker, Refusal},
    registry::Place,
};
use crate::{
    metrics::Outcome,
    pipeline::{
        positions::SourcePosition,
        record::{self, Kind},
        spooler::{Append, Command, Receipt},
    },
    run::now as unix_now,
    source::{Announcement, GivenUp, missing_probes},
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
    /// The probes that do not work on the node, as its hello said.
    missing_probes: Vec<String>,
    started: Instant,
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
    ) -> Result<Self, FrameFault> {
        let started = Instant::now();
        let source = place.source();
        let now = Now { monotonic: Micros(0), unix: unix_now() };
        Ok(Self {
            session: AggregatorSession::new(source, AggregatorConfig::default(), now),
            checker: Checker::new(source)?,
            missing_probes: Vec::new(),
            shared,
            connection,
            node,
            source,
            place,
            position,
            started,
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
    }

    async fn serve(&mut self, send: &mut SendStream, receive: &mut RecvStream) -> End {
        let accept = self.shared.accept.clone();
        let superseded = self.place.superseded.clone();
        loop {
            if !self.send(send).await {
                return End::Over;
            }
            let wake = self.session.next_timeout().map(|at| self.started + Duration::from_micros(at.0));
            // Cancel-safe: quinn keeps the bytes of a read that is dropped, the rest hold no state.
            let handled = tokio::select! {
                biased;
                () = superseded.cancelled() => {
                    self.session.refuse(refusal::SUPERSEDED, "a newer session of this source took over");
                    return End::Tell;
                }
                () = accept.cancelled() => {
                    self.acknowledge();
                    let told = self.session.flush().and_then(|()| self.session.drain("the aggregator ends"));
                    if told.is_ok() && self.send(send).await {
                        // Clears what waits, so it comes after the acknowledgements are out.
                        self.session.refuse(refusal::DRAINING, "the aggregator ends");
                    }
                    return End::Tell;
                }
                () = self.position.changed() => {
                    self.acknowledge();
                    Ok(())
                }
                chunk = receive.read_chunk(CHUNK_BYTES_MAX, true) => match chunk {
                    Ok(Some(chunk)) => self.session.handle_bytes(&chunk.bytes, self.now()),
                    Ok(None) | Err(_) => return End::Over,
                },
                () = sleep_until(wake) => self.session.handle_timeout(self.now()),
            };
            // Frames that came before a fault are sound: they are taken first.
            if let Err(end) = self.take_events().await {
                return end;
            }
            if let Err(fault) = handled {
                return self.ended_by(&fault);
            }
        }
    }

    fn ended_by(&self, fault: &SessionFault) -> End {
        tracing::warn!(node = self.node, %fault, fault_name = fault.name(), "a session is ended for what came");
        let metrics = &self.shared.metrics;
        metrics.refusals.add(fault.name(), 1);
        if let SessionFault::Frame(_) = fault {
            metrics.frames.get_or_create(&Outcome { outcome: "refused" }).inc();
        }
        End::Tell
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

    async fn take_events(&mut self) -> Result<(), End> {
        while let Some(event) = self.session.poll_event() {
            match event {
                AggregatorEvent::Hello(hello) => self.greeted(&hello).await?,
                AggregatorEvent::Frame { header, bytes } => self.framed(&header, bytes).await?,
                AggregatorEvent::Gap { after, before } => {
                    let skipped = before.sequence.0.saturating_sub(after.sequence.0).saturating_sub(1);
                    self.shared.metrics.sequences_skipped.inc_by(skipped);
                    // Their events are in the source's own ledger; here only the frames are missed.
                    self.shared.losses.lost(Stage::Intake, "frames", "never-sent", skipped);
                    tracing::warn!(node = self.node, %after, %before, "frames were given up by their source");
                }
                AggregatorEvent::RuleSetApplied(version) => {
                    tracing::info!(node = self.node, %version, "a node runs a rule set");
                }
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

    async fn greeted(&mut self, hello: &Hello) -> Result<(), End> {
        if hello.node != self.node {
            let text = format!("the hello names node {:?}, the certificate {:?}", hello.node, self.node);
            self.shared.metrics.refusals.add("wrong-node", 1);
            self.session.refuse(refusal::PROTOCOL, &text);
            return Err(End::Tell);
        }
        let incarnation = self.session.incarnation();
        if let Err(stale) = self.place.activate(incarnation) {
            let text = format!(
                "incarnation {} of this source is being served; this is {}",
                stale.serving.0, incarnation.0
            );
            self.shared.metrics.refusals.add("stale-incarnation", 1);
            tracing::error!(node = self.node, text, "two agents may share one identity");
            self.session.refuse(refusal::SUPERSEDED, &text);
            return Err(End::Tell);
        }
        let marks = self.position.marks();
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
        self.missing_probes = missing_probes(&hello.capabilities);
        let announcement =
            Announcement { source: self.source, incarnation, capability: hello.capabilities.clone() };
        let body = serde_json::to_vec(&announcement).unwrap_or_default();
        let append = Append {
            head: record::head(Kind::Source, unix_now(), &self.node),
            body: Bytes::from(body),
            receipt: None,
            room: None,
        };
        self.shared.spooler.send(Command::Append(append)).await.map_err(|_closed| End::Over)
    }

    /// Checks a frame and hands it on, or refuses it by name.
    async fn framed(&mut self, header: &FrameHeader, bytes: Bytes) -> Result<(), End> {
        let arrival = unix_now();
        let position = Position::from(header.meta.id);
        let (events, inputs) = match self.checker.open(&bytes, arrival) {
            Ok((header, view)) => {
                let context = SourceContext {
                    node: &self.node,
                    clock_error: Micros(header.meta.clock.error_micros),
                    missing_probes: &self.missing_probes,
                };
                let mut inputs = Vec::new();
                let rules = self.shared.rules.engine();
                observe_batch(&view, header.meta.id, &context, rules, &mut |input| inputs.push(input));
                (view.rows(), inputs)
            }
            Err(refusal) => return self.refused(header, position, &refusal, arrival).await,
        };
        let size = bytes.len();
        self.shared.progress.busy();
        let units = u32::try_from(size.div_ceil(ROOM_UNIT_BYTES)).unwrap_or(u32::MAX);
        // Not cancelled half way: all room is taken before anything is handed over, and the rest does not wait.
        let room = Arc::clone(&self.shared.room).acquire_many_owned(units).await;
        let (Ok(room), Ok(to_spool)) = (room, self.shared.spooler.reserve().await) else {
            return Err(End::Over);
        };
        let to_engine = if inputs.is_empty() {
            None
        } else {
            Some(self.shared.engine.reserve().await.map_err(|_closed| End::Over)?)
        };
        let append = Append {
            head: record::head(Kind::Frame, arrival, &self.node),
            body: bytes,
            receipt: Some(Receipt { source: Arc::clone(&self.position), position }),
            room: Some(room),
        };
        let new = self.position.accept(position, || to_spool.send(Command::Append(append)));
        self.shared.progress.tick();
        self.shared.progress.idle();
        let metrics = &self.shared.metrics;
        if !new {
            metrics.frames.get_or_create(&Outcome { outcome: "duplicate" }).inc();
            self.shared.losses.folded(Stage::Intake, "frames", "duplicate", 1);
            return Ok(());
        }
        if let Some(to_engine) = to_engine {
            to_engine.send(inputs);
        }
        metrics.frames.get_or_create(&Outcome { outcome: "accepted" }).inc();
        metrics.events.inc_by(u64::from(events));
        metrics.bytes.inc_by(size as u64);
        self.shared.losses.carried(Stage::Intake, "events", u64::from(events));
        Ok(())
    }

    /// Refuses a frame by name and ends the session, so that the source may send something better. When the same frame
    /// comes again it has nothing better: the frame is given up and counted, and what is behind it may pass.
    async fn refused(
        &mut self,
        header: &FrameHeader,
        position: Position,
        refusal: &Refusal,
        arrival: UnixMicros,
    ) -> Result<(), End> {
        let metrics = &self.shared.metrics;
        metrics.refusals.add(refusal.name(), 1);
        metrics.frames.get_or_create(&Outcome { outcome: "refused" }).inc();
        if !self.position.refuse(position) {
            tracing::warn!(node = self.node, frame = %position, fault = refusal.name(), %refusal, "a frame is refused");
            let version = matches!(refusal, Refusal::Frame(FrameFault::UnknownBatchVersion(_)));
            let code = if version { refusal::VERSION } else { refusal::PROTOCOL };
            self.session.refuse(code, &format!("{}: frame {position}: {refusal}", refusal.name()));
            return Err(End::Tell);
        }
        tracing::error!(node = self.node, frame = %position, fault = refusal.name(), "a frame is given up");
        let given_up = GivenUp {
            source: self.source,
            incarnation: position.incarnation.0,
            sequence: position.sequence.0,
            events: header.meta.events,
            fault: refusal.name().to_owned(),
        };
        let append = Append {
            head: record::head(Kind::GivenUp, arrival, &self.node),
            body: Bytes::from(serde_json::to_vec(&given_up).unwrap_or_default()),
            receipt: Some(Receipt { source: Arc::clone(&self.position), position }),
            room: None,
        };
        let to_spool = self.shared.spooler.reserve().await.map_err(|_closed| End::Over)?;
        let _new = self.position.accept(position, || to_spool.send(Command::Append(append)));
        Ok(())
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
