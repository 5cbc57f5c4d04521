//! Single sessions: what each message does, and what ends a session, by name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use bytes::Bytes;
use proptest::prelude::*;
use tapio_schemas::{
    ids::{Incarnation, RuleSetVersion, SourceId},
    units::{Micros, UnixMicros},
};
use tapio_wire::{
    Position,
    frame::{FrameHeader, FrameMeta, HEADER_BYTES},
    message::{
        Ack, Credit, Drain, Heartbeat, HeartbeatReply, Hello, Host, Message, MessageFault, MessageReader,
        Refused, RuleSet, RuleSetApplied, Welcome, encode, refusal,
    },
    session::{
        AggregatorConfig, AggregatorEvent, AggregatorSession, EdgeConfig, EdgeEvent, EdgeSession, EdgeStatus,
        Now, OfferRefusal, SessionCounts, SessionFault, SourceState,
    },
};

const SOURCE: SourceId = SourceId([5; 16]);

fn at(millis: u64) -> Now {
    Now { monotonic: Micros::from_millis(millis), unix: UnixMicros(1_700_000_000_000_000 + millis * 1_000) }
}

fn bytes_of(message: &Message) -> Vec<u8> {
    let (head, body) = encode(message).unwrap();
    [head, body.unwrap_or_default()].concat()
}

fn frame_of(source: SourceId, position: Position, payload_bytes: usize) -> Bytes {
    let header = FrameHeader {
        meta: FrameMeta::new(position.of_source(source), 1),
        dictionary: 0,
        header_bytes: HEADER_BYTES,
        payload_bytes,
        batch_bytes: payload_bytes,
    };
    let mut bytes = header.to_bytes().unwrap().to_vec();
    bytes.resize(HEADER_BYTES + payload_bytes, 7);
    bytes.into()
}

fn frame(sequence: u64) -> Bytes {
    frame_of(SOURCE, Position::new(3, sequence), 100)
}

fn host() -> Host {
    Host {
        kernel_release: "6.1.0-44-amd64".into(),
        architecture: "x86_64".into(),
        limits: vec![("spool_bytes".into(), 1 << 30)],
    }
}

/// Both ends, connected and welcomed.
struct Both {
    edge: EdgeSession,
    aggregator: AggregatorSession,
}

impl Both {
    fn greeted(config: AggregatorConfig) -> Self {
        let mut edge = EdgeSession::new(EdgeConfig::new(Incarnation(3), "node-1"));
        edge.connect(Position::new(3, 1), at(0)).unwrap();
        let mut both = Self { edge, aggregator: AggregatorSession::new(SOURCE, config, at(0)) };
        both.carry(at(0)).unwrap();
        assert!(
            matches!(both.aggregator.poll_event(), Some(AggregatorEvent::Hello(hello)) if hello.incarnation == 3)
        );
        both
    }

    fn open(config: AggregatorConfig) -> Self {
        let mut both = Self::greeted(config);
        both.aggregator.welcome(SourceState::default(), at(1)).unwrap();
        both.carry(at(2)).unwrap();
        assert!(matches!(both.edge.poll_event(), Some(EdgeEvent::Welcomed { .. })));
        both
    }

    /// Carries everything both ways until nobody has anything to say.
    fn carry(&mut self, now: Now) -> Result<(), SessionFault> {
        loop {
            let mut quiet = true;
            while let Some(bytes) = self.edge.poll_output() {
                quiet = false;
                self.aggregator.handle_bytes(&bytes, now)?;
            }
            while let Some(bytes) = self.aggregator.poll_output() {
                quiet = false;
                self.edge.handle_bytes(&bytes, now)?;
            }
            if quiet {
                return Ok(());
            }
        }
    }

    fn edge_events(&mut self) -> Vec<EdgeEvent> {
        std::iter::from_fn(|| self.edge.poll_event()).collect()
    }

    fn aggregator_events(&mut self) -> Vec<AggregatorEvent> {
        std::iter::from_fn(|| self.aggregator.poll_event()).collect()
    }
}

fn every_message() -> Vec<Message> {
    vec![
        Message::Hello(Hello {
            node: "n".into(),
            capabilities: vec!["http=working".into()],
            ..Hello::default()
        }),
        Message::Welcome(Welcome { credit_bytes: 5, ..Welcome::default() }),
        Message::Refused(Refused { code: 3, text: "no".into() }),
        Message::Frame(frame(1)),
        Message::Ack(Ack { received_sequence: 9, ..Ack::default() }),
        Message::Credit(Credit { frames: 1, bytes: 2 }),
        Message::RuleSet(RuleSet {
            version: RuleSetVersion(8),
            generation: 4,
            bytes: Bytes::from_static(b"rules"),
        }),
        Message::RuleSetApplied(RuleSetApplied { version: 8 }),
        Message::Heartbeat(Heartbeat { progress: 5, ..Heartbeat::default() }),
        Message::HeartbeatReply(HeartbeatReply { sent_micros: 5, ..HeartbeatReply::default() }),
        Message::Drain(Drain { reason: "upgrade".into() }),
        Message::Host(host()),
    ]
}

/// Scenario: every kind of message, and some of unknown kinds between them, arrives byte by byte.
/// Guarantees: each comes back as it was; the unknown ones are skipped and counted.
#[test]
fn messages_come_back() {
    let mut stream = Vec::new();
    for message in every_message() {
        stream.extend(bytes_of(&message));
        stream.extend_from_slice(&[3, 0, 0, 0, 200, 1, 2, 3]);
        stream.extend_from_slice(&[0, 0, 0, 0, 0]);
    }
    for step in [1, 2, 7, stream.len()] {
        let (mut reader, mut found) = (MessageReader::default(), Vec::new());
        for piece in stream.chunks(step) {
            reader.push(piece);
            while let Some(message) = reader.next_message().unwrap() {
                found.push(message);
            }
        }
        assert_eq!(found, every_message());
        assert_eq!(reader.skipped(), 2 * found.len() as u64);
    }
}

/// Scenario: bodies that declare too much, or are not what their kind is.
/// Guarantees: the first are refused by their prefix alone, the second by name.
#[test]
fn faulty_messages_have_names() {
    let fault = |bytes: &[u8]| {
        let mut reader = MessageReader::default();
        reader.push(bytes);
        reader.next_message()
    };
    for kind in 0..=255 {
        let prefix = [&u32::MAX.to_le_bytes()[..], &[kind]].concat();
        assert!(matches!(fault(&prefix), Err(MessageFault::TooLarge { .. })), "{kind}");
    }
    for kind in [1, 2, 3, 5, 6, 7, 8, 9, 10, 11] {
        assert_eq!(fault(&[3, 0, 0, 0, kind, 1, 2, 3]), Err(MessageFault::Corrupt { kind }));
    }
}

/// Scenario: frames are offered, sent, made durable and stored.
/// Guarantees: acknowledgements come within the delay and in this order; the window and credit bound what is held.
#[test]
fn frames_are_acknowledged_twice() {
    let config = AggregatorConfig { credit_frames: 2, ..AggregatorConfig::default() };
    let mut both = Both::open(config);
    assert_eq!(both.edge.offer_after(), Some(Position::START));
    for sequence in 1..=64 {
        both.edge.offer(Position::new(3, sequence), frame(sequence)).unwrap();
    }
    assert_eq!(both.edge.offer_after(), None);
    assert_eq!(both.edge.offer(Position::new(3, 65), frame(65)), Err(OfferRefusal::WindowFull));
    let refused = both.edge.offer(Position::new(3, 64), frame(64));
    assert_eq!(refused, Err(OfferRefusal::OutOfOrder { after: Position::new(3, 64) }));
    both.carry(at(3)).unwrap();
    let events = both.aggregator_events();
    assert_eq!(events.len(), 2, "more than there was credit for: {events:?}");
    both.aggregator.received(Position::new(3, 2), at(4));
    assert_eq!(both.aggregator.next_timeout(), Some(Micros::from_millis(4)), "the source waits for credit");
    both.aggregator.handle_timeout(at(4)).unwrap();
    both.carry(at(5)).unwrap();
    assert_eq!(both.edge_events(), [EdgeEvent::Received(Position::new(3, 2))]);
    assert_eq!(both.aggregator_events().len(), 2);
    both.aggregator.stored(Position::new(3, 1), at(6));
    both.aggregator.stored(Position::new(3, 2), at(7));
    assert_eq!(
        both.aggregator.next_timeout(),
        Some(Micros::from_millis(26)),
        "acknowledgements are collected"
    );
    both.aggregator.handle_timeout(at(26)).unwrap();
    both.carry(at(26)).unwrap();
    assert_eq!(both.edge_events(), [EdgeEvent::Stored(Position::new(3, 2))]);
    assert_eq!(both.edge.offer_after(), Some(Position::new(3, 64)));
}

/// Scenario: heartbeats, a rule set, and drains, both ways.
/// Guarantees: each arrives as an event; heartbeats give the source a clock; silence is noticed by both.
#[test]
fn pushes_heartbeats_and_silence() {
    let mut both = Both::open(AggregatorConfig::default());
    let rules = RuleSet { version: RuleSetVersion(9), generation: 2, bytes: Bytes::from_static(b"compiled") };
    both.aggregator.push_rule_set(rules.clone()).unwrap();
    both.aggregator.drain("upgrade").unwrap();
    both.carry(at(3)).unwrap();
    assert_eq!(both.edge_events(), [EdgeEvent::RuleSet(rules), EdgeEvent::Draining("upgrade".into())]);
    both.edge.set_status(EdgeStatus { progress: 44, ..EdgeStatus::default() });
    both.edge.rule_set_applied(RuleSetVersion(9)).unwrap();
    let due = both.edge.next_timeout().unwrap();
    assert_eq!(due, Micros::from_millis(2_002));
    both.edge.handle_timeout(at(2_002)).unwrap();
    both.edge.drain("stop").unwrap();
    both.carry(at(2_003)).unwrap();
    let events = both.aggregator_events();
    assert_eq!(events[0], AggregatorEvent::RuleSetApplied(RuleSetVersion(9)));
    assert!(
        matches!(&events[1], AggregatorEvent::Heartbeat(beat) if beat.progress == 44 && beat.rule_set == 9)
    );
    assert_eq!(events[2], AggregatorEvent::Draining("stop".into()));
    let clock = both.edge.clock(at(2_003)).unwrap();
    assert!(clock.offset_micros.unsigned_abs() <= clock.error.0 && clock.error.0 < 2_000, "{clock:?}");
    both.edge.handle_timeout(at(60_000)).unwrap();
    both.aggregator.handle_timeout(at(60_000)).unwrap();
    assert_eq!(both.edge_events(), [EdgeEvent::Silent]);
    assert_eq!(both.aggregator_events(), [AggregatorEvent::Silent]);
    assert_eq!(both.edge.handle_bytes(&[], at(60_001)), Err(SessionFault::Ended));
}

/// Scenario: a source that says what it runs on connects, is cut off, and connects again.
/// Guarantees: the aggregator is told once for each connection, before anything else; a source that says nothing of it
/// sends nothing.
#[test]
fn a_source_says_what_it_runs_on() {
    let config = EdgeConfig { host: Some(host()), ..EdgeConfig::new(Incarnation(3), "node-1") };
    let mut edge = EdgeSession::new(config);
    for start in [0, 1_000] {
        edge.connect(Position::new(3, 1), at(start)).unwrap();
        let aggregator = AggregatorSession::new(SOURCE, AggregatorConfig::default(), at(start));
        let mut both = Both { edge, aggregator };
        both.carry(at(start)).unwrap();
        assert!(matches!(both.aggregator_events().as_slice(), [AggregatorEvent::Hello(_)]));
        both.aggregator.welcome(SourceState::default(), at(start)).unwrap();
        both.carry(at(start + 1)).unwrap();
        assert_eq!(both.aggregator_events(), [AggregatorEvent::Host(host())]);
        Both { edge, .. } = both;
    }
    assert_eq!(Both::open(AggregatorConfig::default()).aggregator_events(), []);
}

/// Scenario: the aggregator's session gets, after the welcome or before, what it must not get.
/// Guarantees: each ends the session by its name, and the source is told why.
#[test]
fn what_ends_the_aggregators_session() {
    let config = AggregatorConfig { credit_frames: 1, ..AggregatorConfig::default() };
    let frame_message = |frame: Bytes| bytes_of(&Message::Frame(frame));
    let mut flipped = frame(1).to_vec();
    flipped[41] ^= 1;
    let mut longer = frame(1).to_vec();
    longer.push(0);
    let hello = Message::Hello(Hello {
        protocol_oldest: 1,
        protocol_newest: 1,
        batch_version: 1,
        ..Hello::default()
    });
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("unexpected-message", bytes_of(&hello)),
        ("unexpected-message", bytes_of(&Message::Ack(Ack::default()))),
        ("message-corrupt", vec![1, 0, 0, 0, 9, 0]),
        ("message-too-large", vec![0, 0, 0, 255, 4]),
        ("header-checksum", frame_message(flipped.into())),
        ("length-mismatch", frame_message(longer.into())),
        ("bad-magic", frame_message(Bytes::from_static(b"nothing"))),
        ("wrong-source", frame_message(frame_of(SourceId([6; 16]), Position::new(3, 1), 9))),
        ("frame-position", frame_message(frame(0))),
        ("frame-position", frame_message(frame_of(SOURCE, Position::new(4, 1), 9))),
        ("credit-exceeded", [frame_message(frame(1)), frame_message(frame(2))].concat()),
    ];
    for (name, bytes) in cases {
        let mut both = Both::open(config);
        assert_eq!(both.aggregator.handle_bytes(&bytes, at(3)).unwrap_err().name(), name);
        assert_eq!(both.aggregator.handle_bytes(&[], at(3)), Err(SessionFault::Ended));
        while let Some(bytes) = both.aggregator.poll_output() {
            both.edge.handle_bytes(&bytes, at(4)).unwrap();
        }
        let events = both.edge_events();
        assert!(
            matches!(&events[..], [EdgeEvent::Refused { code: refusal::PROTOCOL, text }] if text.starts_with(name)),
            "{name}: {events:?}"
        );
    }
    for (hello, name) in [
        (
            Hello { protocol_oldest: 2, protocol_newest: 9, batch_version: 1, ..Hello::default() },
            "no-common-version",
        ),
        (
            Hello { protocol_oldest: 1, protocol_newest: 1, batch_version: 3, ..Hello::default() },
            "unknown-batch-version",
        ),
    ] {
        let mut session = AggregatorSession::new(SOURCE, config, at(0));
        let fault = session.handle_bytes(&bytes_of(&Message::Hello(hello)), at(0)).unwrap_err();
        assert_eq!(fault.name(), name);
        let mut reader = MessageReader::default();
        while let Some(bytes) = session.poll_output() {
            reader.push(&bytes);
        }
        let told = reader.next_message().unwrap();
        assert!(matches!(told, Some(Message::Refused(Refused { code: refusal::VERSION, .. }))), "{told:?}");
    }
}

/// Scenario: the source's session gets what no honest aggregator sends.
/// Guarantees: each ends the session by its name; nothing unsent counts as received.
#[test]
fn what_ends_the_sources_session() {
    let ack = |sequence| {
        Message::Ack(Ack { received_incarnation: 3, received_sequence: sequence, ..Ack::default() })
    };
    let cases: Vec<(&str, Message)> = vec![
        ("acknowledged-not-sent", ack(2)),
        (
            "acknowledged-not-sent",
            Message::Ack(Ack { stored_incarnation: 4, stored_sequence: 1, ..Ack::default() }),
        ),
        ("unexpected-message", Message::Welcome(Welcome::default())),
        ("unexpected-message", Message::Frame(frame(1))),
    ];
    for (name, message) in cases {
        let mut both = Both::open(AggregatorConfig::default());
        both.edge.offer(Position::new(3, 1), frame(1)).unwrap();
        both.carry(at(3)).unwrap();
        assert_eq!(both.edge.handle_bytes(&bytes_of(&message), at(4)).unwrap_err().name(), name);
        assert_eq!(both.edge.received(), Position::START);
    }
    let known =
        |incarnation| SourceState { received: Position::new(incarnation, 5), ..SourceState::default() };
    let mut both = Both::greeted(AggregatorConfig::default());
    both.aggregator.welcome(known(4), at(1)).unwrap();
    let fault = both.carry(at(2)).unwrap_err();
    assert_eq!(fault, SessionFault::NewerIncarnation { theirs: 4, ours: 3 });
    let mut both = Both::greeted(AggregatorConfig::default());
    both.aggregator.refuse(refusal::SUPERSEDED, "a newer life took over");
    both.carry(at(2)).unwrap();
    let text = "a newer life took over".to_owned();
    assert_eq!(both.edge_events(), [EdgeEvent::Refused { code: refusal::SUPERSEDED, text }]);
}

/// Scenario: the other side floods with heartbeats and never reads.
/// Guarantees: what waits to be sent is bounded, and the session ends by name.
#[test]
fn a_peer_that_does_not_read_is_cut_off() {
    let mut both = Both::open(AggregatorConfig::default());
    let beat = bytes_of(&Message::Heartbeat(Heartbeat::default()));
    let fault = (0..5_000).find_map(|_| both.aggregator.handle_bytes(&beat, at(3)).err());
    assert_eq!(fault, Some(SessionFault::OutputFull));
}

/// Scenario: frames 2 and 3 were given up by the source; the aggregator ends the session over frame 4, twice, and takes
/// it the third time; then frame 4 comes once more.
/// Guarantees: the gap comes behind the frame that shows it, so that who counts it when it is taken counts it once; what
/// came again is counted once.
#[test]
fn a_gap_is_told_behind_the_frame_that_shows_it() {
    let known = SourceState { accepted: Position::new(3, 1), ..SourceState::default() };
    let mut gaps = 0;
    for attempt in 0..3 {
        let mut both = Both::greeted(AggregatorConfig::default());
        both.aggregator.welcome(known, at(1)).unwrap();
        both.carry(at(2)).unwrap();
        both.edge.offer(Position::new(3, 4), frame(4)).unwrap();
        both.carry(at(3)).unwrap();
        assert!(matches!(both.aggregator.poll_event(), Some(AggregatorEvent::Frame { .. })));
        if attempt < 2 {
            both.aggregator.refuse(refusal::PROTOCOL, "the frame's batch is faulty");
            continue;
        }
        let gap = AggregatorEvent::Gap { after: Position::new(3, 1), before: Position::new(3, 4) };
        gaps += both.aggregator_events().iter().filter(|event| **event == gap).count();
        both.aggregator.handle_bytes(&bytes_of(&Message::Frame(frame(4))), at(4)).unwrap();
        both.aggregator.handle_bytes(&[3, 0, 0, 0, 200, 1, 2, 3], at(4)).unwrap();
        assert_eq!(both.aggregator_events(), []);
        let once = SessionCounts { duplicate_frames: 1, skipped_messages: 1 };
        assert_eq!(both.aggregator.take_counts(), once);
        assert_eq!(both.aggregator.take_counts(), SessionCounts::default());
    }
    assert_eq!(gaps, 1);
}

proptest! {
    /// Scenario: any bytes, or valid messages in any order with bits flipped, arrive at either end.
    /// Guarantees: nothing panics, and a source never believes in more than it sent.
    #[test]
    fn any_bytes_are_survived(
        picks in prop::collection::vec((0_usize..11, prop::option::weighted(0.2, any::<prop::sample::Index>())), 0..12),
        noise in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let messages = every_message();
        let mut stream = Vec::new();
        for (pick, flip) in picks {
            let mut bytes = bytes_of(&messages[pick]);
            if let Some(flip) = flip {
                let bit = flip.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            stream.extend(bytes);
        }
        stream.extend(noise);
        for mut both in [Both::open(AggregatorConfig::default()), Both::greeted(AggregatorConfig::default())] {
            let _ended = both.edge.handle_bytes(&stream, at(3));
            let _ended = both.aggregator.handle_bytes(&stream, at(3));
            prop_assert!(both.edge.received().incarnation <= Incarnation(3));
            both.edge_events();
            both.aggregator_events();
        }
    }
}
