//! The source's side. It outlives connections: what was sent and not received is sent again on the next one.

mod terms;

use std::collections::VecDeque;

use bytes::Bytes;
use tapio_schemas::{
    batch::BATCH_VERSION,
    ids::{Incarnation, RuleSetVersion, Sequence},
    units::{Micros, UnixMicros},
};

pub use self::terms::{EdgeConfig, EdgeEvent, EdgeStatus, OfferRefusal};
use super::{Now, SessionFault, outbox::Outbox};
use crate::{
    Position,
    clock::{ClockEstimate, ClockFilter, Exchange},
    message::{
        Ack, Drain, Heartbeat, HeartbeatReply, Hello, Kind, Message, MessageReader, PROTOCOL_VERSIONS,
        RuleSetApplied, Welcome,
    },
};

/// After so many heartbeat intervals without a byte the aggregator counts as silent.
const SILENT_INTERVALS: u64 = 3;

/// How long a hello may wait for its answer.
const WELCOME_WAIT: Micros = Micros::from_secs(10);

/// The shortest and longest heartbeat interval that a source accepts.
const HEARTBEAT_MICROS: (u64, u64) = (10_000, 600_000_000);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Disconnected,
    /// The hello is sent, or about to be.
    Greeting,
    Open,
    /// Refused or faulty: nothing more is sent or taken on this connection.
    Ended,
}

#[derive(Debug)]
struct Held {
    position: Position,
    frame: Bytes,
}

/// The source's side of its session.
#[derive(Debug)]
pub struct EdgeSession {
    config: EdgeConfig,
    state: State,
    status: EdgeStatus,
    reader: MessageReader,
    outbox: Outbox,
    events: VecDeque<EdgeEvent>,
    /// Frames that are not known to be received, in order.
    window: VecDeque<Held>,
    window_bytes: usize,
    /// How many of the window were sent on this connection.
    sent: usize,
    /// The last frame that was sent on any connection.
    sent_up_to: Position,
    /// The last frame that was put into the window, or that the aggregator already had.
    offered: Position,
    received: Position,
    stored: Position,
    credit_frames: u64,
    credit_bytes: u64,
    heartbeat_interval: Micros,
    heartbeat_due: Micros,
    silent_at: Micros,
    clock: ClockFilter,
    peer_clock_error: Micros,
}

impl EdgeSession {
    /// A session that is not yet connected.
    #[must_use]
    pub fn new(config: EdgeConfig) -> Self {
        Self {
            config,
            state: State::Disconnected,
            status: EdgeStatus::default(),
            reader: MessageReader::default(),
            outbox: Outbox::default(),
            events: VecDeque::new(),
            window: VecDeque::new(),
            window_bytes: 0,
            sent: 0,
            sent_up_to: Position::START,
            offered: Position::START,
            received: Position::START,
            stored: Position::START,
            credit_frames: 0,
            credit_bytes: 0,
            heartbeat_interval: Micros(0),
            heartbeat_due: Micros(0),
            silent_at: Micros(0),
            clock: ClockFilter::default(),
            peer_clock_error: Micros(0),
        }
    }

    /// A connection stands: introduces the source. `oldest` is the oldest frame that the spool still has, or the next
    /// one that will be made if it has none.
    ///
    /// # Errors
    /// [`SessionFault::Message`] if what the source says of itself is too long.
    pub fn connect(&mut self, oldest: Position, now: Now) -> Result<(), SessionFault> {
        self.disconnect();
        self.state = State::Greeting;
        self.silent_at = Micros(now.monotonic.0.saturating_add(WELCOME_WAIT.0));
        self.outbox.push(&Message::Hello(Hello {
            protocol_oldest: PROTOCOL_VERSIONS.0,
            protocol_newest: PROTOCOL_VERSIONS.1,
            batch_version: BATCH_VERSION,
            agent_version: self.config.agent_version.clone(),
            node: self.config.node.clone(),
            incarnation: self.config.incarnation.0,
            oldest_incarnation: oldest.incarnation.0,
            oldest_sequence: oldest.sequence.0,
            capabilities: self.config.capabilities.clone(),
            sent_micros: now.unix.0,
        }))
    }

    /// The connection is gone. Frames that are not known to be received stay held.
    pub fn disconnect(&mut self) {
        self.state = State::Disconnected;
        self.reader = MessageReader::default();
        self.outbox.clear();
        self.events.clear();
        self.sent = 0;
        self.credit_frames = 0;
        self.credit_bytes = 0;
        // The next connection may lead to another aggregator, whose clock is another.
        self.clock.clear();
    }

    /// Whether the session is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// The last frame that is durable at the aggregator, as far as is known.
    #[must_use]
    pub const fn received(&self) -> Position {
        self.received
    }

    /// The last frame that is stored, as far as is known.
    #[must_use]
    pub const fn stored(&self) -> Position {
        self.stored
    }

    /// How many messages of unknown kinds were skipped on this connection.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.reader.skipped()
    }

    /// Where the aggregator's clock stands against the own one.
    #[must_use]
    pub fn clock(&self, now: Now) -> Option<ClockEstimate> {
        self.clock.estimate(now)
    }

    /// What the next heartbeats say.
    pub const fn set_status(&mut self, status: EdgeStatus) {
        self.status = status;
    }

    /// What the next hello says of the node's capabilities.
    pub fn set_capabilities(&mut self, capabilities: Vec<String>) {
        self.config.capabilities = capabilities;
    }

    /// If a frame is wanted: the frame behind which it stands. Offer the first one that the spool has after it.
    #[must_use]
    pub fn offer_after(&self) -> Option<Position> {
        (self.state == State::Open && self.has_room(0)).then_some(self.offered)
    }

    /// Takes a frame to send. It is held until it is received, and sent as soon as there is credit.
    ///
    /// # Errors
    /// Why it was not taken; nothing changed.
    pub fn offer(&mut self, position: Position, frame: Bytes) -> Result<(), OfferRefusal> {
        if self.state != State::Open {
            return Err(OfferRefusal::NotOpen);
        }
        if position <= self.offered {
            return Err(OfferRefusal::OutOfOrder { after: self.offered });
        }
        if frame.len() > Kind::Frame.body_bytes_max() {
            return Err(OfferRefusal::TooLarge);
        }
        if !self.has_room(frame.len()) {
            return Err(OfferRefusal::WindowFull);
        }
        self.offered = position;
        self.window_bytes += frame.len();
        self.window.push_back(Held { position, frame });
        Ok(())
    }

    fn has_room(&self, bytes: usize) -> bool {
        let full = self.window.len() >= self.config.window_frames_max
            || self.window_bytes.saturating_add(bytes) > self.config.window_bytes_max;
        self.window.is_empty() || !full
    }

    /// Says that the source runs a rule set from now on.
    ///
    /// # Errors
    /// [`SessionFault::OutputFull`] if the aggregator does not read.
    pub fn rule_set_applied(&mut self, version: RuleSetVersion) -> Result<(), SessionFault> {
        self.status.rule_set = version;
        if self.state != State::Open {
            return Ok(());
        }
        self.outbox.push(&Message::RuleSetApplied(RuleSetApplied { version: version.0 }))
    }

    /// Says that the source will end the session.
    ///
    /// # Errors
    /// [`SessionFault::OutputFull`] if the aggregator does not read.
    pub fn drain(&mut self, reason: &str) -> Result<(), SessionFault> {
        if self.state != State::Open {
            return Ok(());
        }
        self.outbox.push(&Message::Drain(Drain { reason: reason.to_owned() }))
    }

    /// The next piece to send.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        if self.outbox.is_empty() && self.state == State::Open {
            self.send_frame();
        }
        self.outbox.pop()
    }

    fn send_frame(&mut self) {
        let Some(held) = self.window.get(self.sent) else { return };
        let (position, bytes) = (held.position, held.frame.len() as u64);
        if self.credit_frames == 0 || self.credit_bytes < bytes {
            return;
        }
        // The length was checked when the frame was offered, and the outbox is empty: this cannot fail.
        if self.outbox.push(&Message::Frame(held.frame.clone())).is_ok() {
            self.credit_frames -= 1;
            self.credit_bytes -= bytes;
            self.sent += 1;
            self.sent_up_to = self.sent_up_to.max(position);
        }
    }

    /// What happened since the last call.
    pub fn poll_event(&mut self) -> Option<EdgeEvent> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called, by the monotonic clock.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        match self.state {
            State::Disconnected | State::Ended => None,
            State::Greeting => Some(self.silent_at),
            State::Open => Some(self.heartbeat_due.min(self.silent_at)),
        }
    }

    /// Time has passed.
    ///
    /// # Errors
    /// [`SessionFault::OutputFull`] if the aggregator does not read; the session has then ended.
    pub fn handle_timeout(&mut self, now: Now) -> Result<(), SessionFault> {
        if !matches!(self.state, State::Greeting | State::Open) {
            return Ok(());
        }
        if now.monotonic >= self.silent_at {
            self.state = State::Ended;
            self.events.push_back(EdgeEvent::Silent);
        } else if self.state == State::Open && now.monotonic >= self.heartbeat_due {
            self.heartbeat_due = Micros(now.monotonic.0.saturating_add(self.heartbeat_interval.0));
            let EdgeStatus { rule_set, generation, progress, spooled_frames } = self.status;
            let heartbeat = Heartbeat {
                sent_micros: now.unix.0,
                rule_set: rule_set.0,
                generation,
                progress,
                spooled_frames,
            };
            let pushed = self.outbox.push(&Message::Heartbeat(heartbeat));
            return self.ended_by(pushed);
        }
        Ok(())
    }

    /// Bytes have arrived.
    ///
    /// # Errors
    /// The session has ended: disconnect, and connect again later.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Now) -> Result<(), SessionFault> {
        if !matches!(self.state, State::Greeting | State::Open) {
            return Err(SessionFault::Ended);
        }
        self.reader.push(bytes);
        if self.state == State::Open {
            self.alive(now);
        }
        let handled = self.handle_messages(now);
        self.ended_by(handled)
    }

    fn ended_by(&mut self, result: Result<(), SessionFault>) -> Result<(), SessionFault> {
        if result.is_err() {
            self.state = State::Ended;
        }
        result
    }

    fn alive(&mut self, now: Now) {
        let patience = self.heartbeat_interval.0.saturating_mul(SILENT_INTERVALS);
        self.silent_at = Micros(now.monotonic.0.saturating_add(patience));
    }

    fn handle_messages(&mut self, now: Now) -> Result<(), SessionFault> {
        while let Some(message) = self.reader.next_message()? {
            match (self.state, message) {
                (State::Ended, _) => break,
                (_, Message::Refused(refused)) => {
                    self.state = State::Ended;
                    self.events.push_back(EdgeEvent::Refused { code: refused.code, text: refused.text });
                }
                (State::Greeting, Message::Welcome(welcome)) => self.welcomed(&welcome, now)?,
                (State::Open, Message::Ack(ack)) => self.acknowledged(ack)?,
                (State::Open, Message::Credit(credit)) => {
                    self.credit_frames = self.credit_frames.saturating_add(u64::from(credit.frames));
                    self.credit_bytes = self.credit_bytes.saturating_add(credit.bytes);
                }
                (State::Open, Message::RuleSet(rule_set)) => {
                    self.events.push_back(EdgeEvent::RuleSet(rule_set));
                }
                (State::Open, Message::HeartbeatReply(reply)) => self.measured(reply, now),
                (State::Open, Message::Drain(drain)) => {
                    self.events.push_back(EdgeEvent::Draining(drain.reason));
                }
                (_, other) => return Err(SessionFault::Unexpected(other.kind() as u8)),
            }
        }
        Ok(())
    }

    fn measured(&mut self, reply: HeartbeatReply, now: Now) {
        let exchange = Exchange {
            sent: UnixMicros(reply.heartbeat_sent_micros),
            received: UnixMicros(reply.received_micros),
            answered: UnixMicros(reply.sent_micros),
            returned: now.unix,
        };
        self.clock.add(exchange, self.peer_clock_error, now);
    }

    fn welcomed(&mut self, welcome: &Welcome, now: Now) -> Result<(), SessionFault> {
        let (oldest, newest) = PROTOCOL_VERSIONS;
        if !(oldest..=newest).contains(&welcome.protocol) {
            return Err(SessionFault::NoCommonVersion { oldest: welcome.protocol, newest: welcome.protocol });
        }
        let stored = Position::new(welcome.stored_incarnation, welcome.stored_sequence);
        let received = Position::new(welcome.received_incarnation, welcome.received_sequence).max(stored);
        if received.incarnation > self.config.incarnation {
            let (theirs, ours) = (received.incarnation.0, self.config.incarnation.0);
            return Err(SessionFault::NewerIncarnation { theirs, ours });
        }
        if received < self.received {
            // The aggregator lost what it had, or is another: what is between comes from the spool again.
            self.window.clear();
            self.window_bytes = 0;
            self.offered = received;
        }
        self.received = received;
        self.offered = self.offered.max(received);
        self.stored = stored.max(self.stored);
        self.forget_received();
        self.sent = 0;
        self.credit_frames = u64::from(welcome.credit_frames);
        self.credit_bytes = welcome.credit_bytes;
        let (shortest, longest) = HEARTBEAT_MICROS;
        self.heartbeat_interval = Micros(welcome.heartbeat_interval_micros.clamp(shortest, longest));
        self.heartbeat_due = Micros(now.monotonic.0.saturating_add(self.heartbeat_interval.0));
        self.peer_clock_error = Micros(welcome.clock_error_micros);
        self.state = State::Open;
        self.alive(now);
        self.measured(
            HeartbeatReply {
                heartbeat_sent_micros: welcome.hello_sent_micros,
                received_micros: welcome.hello_received_micros,
                sent_micros: welcome.sent_micros,
            },
            now,
        );
        self.events.push_back(EdgeEvent::Welcomed { received, stored: self.stored });
        match &self.config.host {
            Some(host) => self.outbox.push(&Message::Host(host.clone())),
            None => Ok(()),
        }
    }

    fn acknowledged(&mut self, ack: Ack) -> Result<(), SessionFault> {
        let stored = Position {
            incarnation: Incarnation(ack.stored_incarnation),
            sequence: Sequence(ack.stored_sequence),
        };
        let received = Position {
            incarnation: Incarnation(ack.received_incarnation),
            sequence: Sequence(ack.received_sequence),
        }
        .max(stored);
        // What an earlier life sent, or an earlier connection of this one, may become durable only now.
        if received.incarnation >= self.config.incarnation && received > self.sent_up_to {
            return Err(SessionFault::NotSent { acknowledged: received, sent: self.sent_up_to });
        }
        if received > self.received {
            self.received = received;
            self.offered = self.offered.max(received);
            self.forget_received();
            self.events.push_back(EdgeEvent::Received(received));
        }
        if stored > self.stored {
            self.stored = stored;
            self.events.push_back(EdgeEvent::Stored(stored));
        }
        Ok(())
    }

    fn forget_received(&mut self) {
        while self.window.front().is_some_and(|held| held.position <= self.received) {
            if let Some(held) = self.window.pop_front() {
                self.window_bytes -= held.frame.len();
                self.sent = self.sent.saturating_sub(1);
            }
        }
    }
}
