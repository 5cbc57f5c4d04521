//! The aggregator's side: one for each connection of a source. What it knows of a source outlives it as [`SourceState`].

use std::collections::VecDeque;

use bytes::Bytes;
use tapio_schemas::{
    batch::is_readable,
    ids::{Incarnation, RuleSetVersion, Sequence, SourceId},
    units::Micros,
};

use super::{Now, SessionFault, outbox::Outbox};
use crate::{
    Position,
    frame::{FrameFault, FrameHeader},
    message::{
        Ack, Credit, Drain, Heartbeat, HeartbeatReply, Hello, Host, Kind, Message, MessageReader,
        PROTOCOL_VERSIONS, Refused, RuleSet, Welcome, refusal,
    },
};

/// After so many heartbeat intervals without a byte the source counts as silent.
const SILENT_INTERVALS: u64 = 3;

/// How long a connection may take to say hello.
const HELLO_WAIT: Micros = Micros::from_secs(10);

/// What an aggregator grants to each session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AggregatorConfig {
    /// How many frames may be under way or not yet durable.
    pub credit_frames: u32,
    /// How many bytes of frames; at least the longest frame's.
    pub credit_bytes: u64,
    /// How often the source shall send heartbeats.
    pub heartbeat_interval: Micros,
    /// How long acknowledgements may be collected before they are sent.
    pub ack_delay: Micros,
    /// How wrong the own clock may be.
    pub clock_error: Micros,
}

impl Default for AggregatorConfig {
    fn default() -> Self {
        Self {
            credit_frames: 64,
            credit_bytes: 8 << 20,
            heartbeat_interval: Micros::from_secs(2),
            ack_delay: Micros::from_millis(20),
            clock_error: Micros(0),
        }
    }
}

/// How far a source's frames have come. Within one process it only ever goes up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// The last frame that a session has handed to the intake: none up to here is handed over again.
    pub accepted: Position,
    /// The last frame that is durable here, as all before it are.
    pub received: Position,
    /// The last frame that is stored, as all before it are.
    pub stored: Position,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AggregatorEvent {
    /// The source introduced itself. Answer with [`AggregatorSession::welcome`] or [`AggregatorSession::refuse`].
    Hello(Hello),
    /// A frame, exactly once for each position. Its header is checked, its payload is not yet looked at.
    Frame {
        /// Its header.
        header: FrameHeader,
        /// All of its bytes.
        bytes: Bytes,
    },
    /// The frames between these two will not come: the source no longer has them.
    ///
    /// Comes right behind the second's `Frame`. Who ends the session over that frame has not taken this, and is told
    /// again when the frame comes again: so a gap that is counted when it is taken is counted once.
    Gap {
        /// The last frame before the gap.
        after: Position,
        /// The first frame behind it.
        before: Position,
    },
    /// The source runs a rule set.
    RuleSetApplied(RuleSetVersion),
    /// What the source runs on.
    Host(Host),
    /// The source lives.
    Heartbeat(Heartbeat),
    /// The source will end the session.
    Draining(String),
    /// The source said nothing for too long: disconnect.
    Silent,
}

/// What a session met that is no event. See [`AggregatorSession::take_counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounts {
    /// Frames that came again although they had been handed over.
    pub duplicate_frames: u64,
    /// Messages of kinds that this version does not know.
    pub skipped_messages: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No hello yet.
    Waiting,
    /// The hello is to be answered.
    Greeted,
    Open,
    Ended,
}

/// The aggregator's side of one connection's session.
#[derive(Debug)]
pub struct AggregatorSession {
    config: AggregatorConfig,
    source: SourceId,
    state: State,
    reader: MessageReader,
    outbox: Outbox,
    events: VecDeque<AggregatorEvent>,
    known: SourceState,
    /// The source's present life, and the frame before the oldest one that it has.
    incarnation: Incarnation,
    before_oldest: Position,
    hello_sent_micros: u64,
    hello_received: Now,
    /// Frames that were handed over and are not yet durable, with their lengths.
    pending: VecDeque<(Position, u64)>,
    /// What the source may still send.
    credit: Credit,
    /// Credit to be given back with the next message.
    owed: Credit,
    acknowledged: (Position, Position),
    ack_due: Option<Micros>,
    silent_at: Micros,
    duplicates: u64,
    /// What [`Self::take_counts`] has given.
    counted: SessionCounts,
}

impl AggregatorSession {
    /// A session with `source`, as its certificate names it.
    #[must_use]
    pub fn new(source: SourceId, mut config: AggregatorConfig, now: Now) -> Self {
        config.credit_frames = config.credit_frames.max(1);
        config.credit_bytes = config.credit_bytes.max(Kind::Frame.body_bytes_max() as u64);
        Self {
            config,
            source,
            state: State::Waiting,
            reader: MessageReader::default(),
            outbox: Outbox::default(),
            events: VecDeque::new(),
            known: SourceState::default(),
            incarnation: Incarnation(0),
            before_oldest: Position::START,
            hello_sent_micros: 0,
            hello_received: now,
            pending: VecDeque::new(),
            credit: Credit::default(),
            owed: Credit::default(),
            acknowledged: (Position::START, Position::START),
            ack_due: None,
            silent_at: Micros(now.monotonic.0.saturating_add(HELLO_WAIT.0)),
            duplicates: 0,
            counted: SessionCounts::default(),
        }
    }

    /// The source.
    #[must_use]
    pub const fn source(&self) -> SourceId {
        self.source
    }

    /// The source's present life, as its hello said.
    #[must_use]
    pub const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// How far the source's frames have come: what the next session with it begins from.
    #[must_use]
    pub const fn source_state(&self) -> SourceState {
        self.known
    }

    /// How many frames came that had come before.
    #[must_use]
    pub const fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// How many messages of unknown kinds were skipped.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.reader.skipped()
    }

    /// What was counted since the last call, for metrics: to be added to their counters as often as one likes, and once
    /// when the session is over.
    pub const fn take_counts(&mut self) -> SessionCounts {
        let now =
            SessionCounts { duplicate_frames: self.duplicates, skipped_messages: self.reader.skipped() };
        let before = std::mem::replace(&mut self.counted, now);
        SessionCounts {
            duplicate_frames: now.duplicate_frames - before.duplicate_frames,
            skipped_messages: now.skipped_messages - before.skipped_messages,
        }
    }

    /// Accepts the session; `known` is how far this source's frames have come.
    ///
    /// # Errors
    /// [`SessionFault::Unexpected`] if no hello waits for an answer.
    pub fn welcome(&mut self, known: SourceState, now: Now) -> Result<(), SessionFault> {
        if self.state != State::Greeted {
            return Err(SessionFault::Unexpected(Kind::Welcome as u8));
        }
        let received = known.received.max(known.stored);
        self.known = SourceState { accepted: known.accepted.max(received), received, ..known };
        self.acknowledged = (received, known.stored);
        self.credit = Credit { frames: self.config.credit_frames, bytes: self.config.credit_bytes };
        self.state = State::Open;
        self.alive(now);
        self.outbox.push(&Message::Welcome(Welcome {
            protocol: PROTOCOL_VERSIONS.1,
            credit_frames: self.credit.frames,
            credit_bytes: self.credit.bytes,
            received_incarnation: received.incarnation.0,
            received_sequence: received.sequence.0,
            stored_incarnation: known.stored.incarnation.0,
            stored_sequence: known.stored.sequence.0,
            heartbeat_interval_micros: self.config.heartbeat_interval.0,
            clock_error_micros: self.config.clock_error.0,
            hello_sent_micros: self.hello_sent_micros,
            hello_received_micros: self.hello_received.unix.0,
            sent_micros: now.unix.0,
        }))
    }

    /// Does not accept the session, or ends it. Send what is left, then disconnect.
    pub fn refuse(&mut self, code: u16, text: &str) {
        if self.state == State::Ended {
            return;
        }
        self.state = State::Ended;
        // Whatever waited to be sent is of no use any more, so there is room.
        self.outbox.clear();
        let text = text.get(..text.floor_char_boundary(1_024)).unwrap_or_default().to_owned();
        // If not even this can be sent, the closed connection says it.
        let _too_long = self.outbox.push(&Message::Refused(Refused { code, text }));
    }

    /// All frames up to `position` are durable here. The acknowledgement follows within the delay, and credit with it.
    pub fn received(&mut self, position: Position, now: Now) {
        self.known.received = self.known.received.max(position);
        while self.pending.front().is_some_and(|(pending, _bytes)| *pending <= position) {
            if let Some((_position, bytes)) = self.pending.pop_front() {
                self.owe(bytes);
            }
        }
        self.acknowledge_soon(now);
    }

    /// All frames up to `position` are stored.
    pub fn stored(&mut self, position: Position, now: Now) {
        self.known.stored = self.known.stored.max(position);
        self.acknowledge_soon(now);
    }

    fn owe(&mut self, bytes: u64) {
        self.owed.frames = self.owed.frames.saturating_add(1);
        self.owed.bytes = self.owed.bytes.saturating_add(bytes);
    }

    fn acknowledge_soon(&mut self, now: Now) {
        let told = self.acknowledged == (self.known.received.max(self.known.stored), self.known.stored);
        if self.state != State::Open || (told && self.owed.frames == 0) {
            return;
        }
        // Half of the credit is much: the source may be waiting for it.
        let much = self.owed.frames >= self.config.credit_frames / 2
            || self.owed.bytes >= self.config.credit_bytes / 2;
        if self.owed.frames > 0 && much {
            self.ack_due = Some(now.monotonic);
        } else if self.ack_due.is_none() {
            self.ack_due = Some(Micros(now.monotonic.0.saturating_add(self.config.ack_delay.0)));
        }
    }

    /// Sends acknowledgements and credit that are due, without waiting for the delay.
    ///
    /// # Errors
    /// [`SessionFault::OutputFull`] if the source does not read.
    pub fn flush(&mut self) -> Result<(), SessionFault> {
        self.ack_due = None;
        if self.state != State::Open {
            return Ok(());
        }
        let (received, stored) = (self.known.received.max(self.known.stored), self.known.stored);
        if self.acknowledged != (received, stored) {
            self.outbox.push(&Message::Ack(Ack {
                received_incarnation: received.incarnation.0,
                received_sequence: received.sequence.0,
                stored_incarnation: stored.incarnation.0,
                stored_sequence: stored.sequence.0,
            }))?;
            self.acknowledged = (received, stored);
        }
        if self.owed.frames > 0 {
            let owed = std::mem::take(&mut self.owed);
            self.outbox.push(&Message::Credit(owed))?;
            self.credit.frames = self.credit.frames.saturating_add(owed.frames);
            self.credit.bytes = self.credit.bytes.saturating_add(owed.bytes);
        }
        Ok(())
    }

    /// Pushes a compiled rule set.
    ///
    /// # Errors
    /// [`SessionFault::Message`] if it is too large, [`SessionFault::OutputFull`] if the source does not read.
    pub fn push_rule_set(&mut self, rule_set: RuleSet) -> Result<(), SessionFault> {
        if self.state != State::Open {
            return Ok(());
        }
        self.outbox.push(&Message::RuleSet(rule_set))
    }

    /// Says that the aggregator goes away.
    ///
    /// # Errors
    /// [`SessionFault::OutputFull`] if the source does not read.
    pub fn drain(&mut self, reason: &str) -> Result<(), SessionFault> {
        if self.state != State::Open {
            return Ok(());
        }
        self.outbox.push(&Message::Drain(Drain { reason: reason.to_owned() }))
    }

    /// The next piece to send.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        self.outbox.pop()
    }

    /// What happened since the last call.
    pub fn poll_event(&mut self) -> Option<AggregatorEvent> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called, by the monotonic clock.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        match (self.state, self.ack_due) {
            (State::Ended, _) => None,
            (_, Some(ack_due)) => Some(ack_due.min(self.silent_at)),
            (_, None) => Some(self.silent_at),
        }
    }

    /// Time has passed.
    ///
    /// # Errors
    /// [`SessionFault::OutputFull`] if the source does not read; the session has then ended.
    pub fn handle_timeout(&mut self, now: Now) -> Result<(), SessionFault> {
        if self.state == State::Ended {
            return Ok(());
        }
        if now.monotonic >= self.silent_at {
            self.state = State::Ended;
            self.events.push_back(AggregatorEvent::Silent);
        } else if self.ack_due.is_some_and(|due| now.monotonic >= due) {
            let flushed = self.flush();
            return self.ended_by(flushed);
        }
        Ok(())
    }

    /// Bytes have arrived.
    ///
    /// # Errors
    /// The session has ended, and a refusal that says why waits to be sent: send it, then disconnect.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Now) -> Result<(), SessionFault> {
        if self.state == State::Ended {
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
        if let Err(fault) = &result {
            let version = matches!(
                fault,
                SessionFault::NoCommonVersion { .. }
                    | SessionFault::Frame(FrameFault::UnknownBatchVersion(_))
            );
            let code = if version { refusal::VERSION } else { refusal::PROTOCOL };
            self.refuse(code, &format!("{}: {fault}; {}", fault.name(), fault.advice()));
        }
        result
    }

    fn alive(&mut self, now: Now) {
        let patience = self.config.heartbeat_interval.0.saturating_mul(SILENT_INTERVALS);
        self.silent_at = Micros(now.monotonic.0.saturating_add(patience));
    }

    fn handle_messages(&mut self, now: Now) -> Result<(), SessionFault> {
        while let Some(message) = self.reader.next_message()? {
            match (self.state, message) {
                (State::Ended, _) => break,
                (State::Waiting, Message::Hello(hello)) => self.greeted(hello, now)?,
                (State::Open, Message::Frame(bytes)) => self.framed(bytes, now)?,
                (State::Open, Message::RuleSetApplied(applied)) => {
                    self.events.push_back(AggregatorEvent::RuleSetApplied(RuleSetVersion(applied.version)));
                }
                (State::Open, Message::Host(host)) => self.events.push_back(AggregatorEvent::Host(host)),
                (State::Open, Message::Heartbeat(heartbeat)) => {
                    self.outbox.push(&Message::HeartbeatReply(HeartbeatReply {
                        heartbeat_sent_micros: heartbeat.sent_micros,
                        received_micros: now.unix.0,
                        sent_micros: now.unix.0,
                    }))?;
                    self.events.push_back(AggregatorEvent::Heartbeat(heartbeat));
                }
                (State::Open, Message::Drain(drain)) => {
                    self.events.push_back(AggregatorEvent::Draining(drain.reason));
                }
                (_, other) => return Err(SessionFault::Unexpected(other.kind() as u8)),
            }
        }
        Ok(())
    }

    fn greeted(&mut self, hello: Hello, now: Now) -> Result<(), SessionFault> {
        let (oldest, newest) = (hello.protocol_oldest, hello.protocol_newest);
        if !(oldest..=newest).contains(&PROTOCOL_VERSIONS.1) {
            return Err(SessionFault::NoCommonVersion { oldest, newest });
        }
        if !is_readable(hello.batch_version) {
            return Err(FrameFault::UnknownBatchVersion(hello.batch_version).into());
        }
        self.incarnation = Incarnation(hello.incarnation);
        self.before_oldest = Position {
            incarnation: Incarnation(hello.oldest_incarnation),
            sequence: Sequence(hello.oldest_sequence.saturating_sub(1)),
        };
        self.hello_sent_micros = hello.sent_micros;
        self.hello_received = now;
        self.state = State::Greeted;
        self.events.push_back(AggregatorEvent::Hello(hello));
        Ok(())
    }

    fn framed(&mut self, bytes: Bytes, now: Now) -> Result<(), SessionFault> {
        let length = bytes.len() as u64;
        let (Some(frames_left), Some(bytes_left)) =
            (self.credit.frames.checked_sub(1), self.credit.bytes.checked_sub(length))
        else {
            return Err(SessionFault::CreditExceeded);
        };
        self.credit = Credit { frames: frames_left, bytes: bytes_left };
        let header = FrameHeader::parse(&bytes)?;
        let named = header.meta.id.source;
        if named != self.source {
            return Err(FrameFault::WrongSource { named, expected: self.source }.into());
        }
        if header.frame_bytes() != bytes.len() {
            return Err(FrameFault::LengthMismatch.into());
        }
        let position = Position::from(header.meta.id);
        if position.sequence.0 == 0 || position.incarnation > self.incarnation {
            return Err(SessionFault::Position(position));
        }
        if position <= self.known.accepted {
            self.duplicates += 1;
            self.owe(length);
            self.acknowledge_soon(now);
            return Ok(());
        }
        let gap = self.gap_before(position);
        self.known.accepted = position;
        self.pending.push_back((position, length));
        self.events.push_back(AggregatorEvent::Frame { header, bytes });
        self.events.extend(gap.map(|after| AggregatorEvent::Gap { after, before: position }));
        Ok(())
    }

    /// The frame behind which frames are missing, if some are missing before `position`.
    fn gap_before(&self, position: Position) -> Option<Position> {
        // Of a source without history only what it still has can be missing.
        let after =
            if self.known.accepted == Position::START { self.before_oldest } else { self.known.accepted };
        let last = if after.incarnation == position.incarnation { after.sequence.0 } else { 0 };
        let after = Position { incarnation: position.incarnation, sequence: Sequence(last) };
        (last.saturating_add(1) < position.sequence.0).then_some(after)
    }
}
