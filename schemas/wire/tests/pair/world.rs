//! A source with its spool, a road, and an aggregator with its spool and store: all in memory, all from one seed.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tapio_schemas::{
    ids::{Incarnation, SourceId},
    units::{Micros, UnixMicros},
};
use tapio_wire::{
    Position,
    frame::{FrameHeader, FrameMeta, HEADER_BYTES},
    session::{
        AggregatorConfig, AggregatorEvent, AggregatorSession, EdgeConfig, EdgeEvent, EdgeSession, Now,
        SessionFault, SourceState,
    },
};

const SOURCE: SourceId = SourceId([5; 16]);
const CREDIT_FRAMES: u32 = 6;
/// How many frames the source makes.
const FRAMES: u64 = 60;
/// Far more steps than any seed takes: a world that needs them is stuck.
const STEPS_MAX: u64 = 60_000;
/// How far the aggregator's clock is ahead of the source's.
const CLOCK_AHEAD: u64 = 1_234_567;

/// How likely faults are, in thousandths per step, while frames are made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// The connection breaks.
    pub(crate) breaks: u64,
    /// The aggregator dies and starts again.
    pub(crate) aggregator_dies: u64,
    /// Besides, its spool is empty then.
    pub(crate) disk_lost: u64,
    /// The source dies and starts again with its spool.
    pub(crate) edge_dies: u64,
    /// The source's quota drops its oldest frame.
    pub(crate) drops: u64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // splitmix64 (Steele, Lea, Flood 2014): any seed will do.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }
    fn hits(&mut self, thousandths: u64) -> bool {
        self.below(1_000) < thousandths
    }
}

/// Bytes on their way.
struct Chunk {
    /// When they arrive.
    at: u64,
    /// When they were sent.
    sent: u64,
    bytes: Bytes,
}

/// Bytes under way in one direction of one connection, in order.
#[derive(Default)]
struct Lane(VecDeque<Chunk>);

impl Lane {
    fn send(&mut self, bytes: Bytes, sent: u64, at: u64) {
        let at = self.0.back().map_or(at, |last| at.max(last.at));
        self.0.push_back(Chunk { at, sent, bytes });
    }
    fn arrive(&mut self, now: u64) -> Option<Chunk> {
        self.0.front().is_some_and(|chunk| chunk.at <= now).then(|| self.0.pop_front().unwrap())
    }
    fn bytes(&self) -> u64 {
        self.0.iter().map(|chunk| chunk.bytes.len() as u64).sum()
    }
}

/// What happened in a world, or in many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Connections that broke.
    pub(crate) breaks: u64,
    /// Bytes that were under way when their connection broke, and did not arrive.
    pub(crate) lost_bytes: u64,
    /// Pieces that arrived behind others that were sent later, over another connection.
    pub(crate) overtaken: u64,
    /// Frames that came again, and were not handed over again.
    pub(crate) duplicates: u64,
    /// Gaps that the aggregator was told of.
    pub(crate) gaps: u64,
}

impl Sums {
    pub(crate) fn add(&mut self, other: &Self) {
        self.breaks += other.breaks;
        self.lost_bytes += other.lost_bytes;
        self.overtaken += other.overtaken;
        self.duplicates += other.duplicates;
        self.gaps += other.gaps;
    }
}

/// The aggregator's end of a connection. It may outlive the source's end for a while.
struct Accepted {
    session: AggregatorSession,
    to_aggregator: Lane,
    to_edge: Lane,
    /// The connection takes a path of its own, so much longer than the shortest.
    detour_micros: u64,
    /// The source's end is gone.
    orphaned: bool,
}

pub(crate) struct World {
    random: Random,
    faults: Faults,
    time: u64,
    incarnation: u64,
    made: u64,
    next_sequence: u64,
    /// The source's spool: frames that are not known to be stored.
    spool: BTreeMap<Position, Bytes>,
    all: BTreeMap<Position, Bytes>,
    dropped: Vec<Position>,
    reported: Vec<(Position, Position)>,
    /// The oldest frames that the source named to an aggregator without history, which cannot know of earlier ones.
    unknown_before: Vec<Position>,
    edge: EdgeSession,
    /// Newest last; at most the last has both ends.
    connections: Vec<Accepted>,
    known: SourceState,
    /// Handed over and not yet durable.
    pending: Vec<(Position, Bytes)>,
    durable: Vec<(Position, Bytes)>,
    /// When the latest of all pieces that have arrived at the aggregator was sent.
    latest_sent: u64,
    pub(crate) sums: Sums,
}

fn frame(position: Position, payload_bytes: usize) -> Bytes {
    let header = FrameHeader {
        meta: FrameMeta::new(position.of_source(SOURCE), 1),
        dictionary: 0,
        header_bytes: HEADER_BYTES,
        payload_bytes,
        batch_bytes: payload_bytes,
    };
    let mut bytes = header.to_bytes().unwrap().to_vec();
    bytes.resize(HEADER_BYTES + payload_bytes, position.sequence.0.to_le_bytes()[0]);
    bytes.into()
}

fn edge(incarnation: u64) -> EdgeSession {
    let config = EdgeConfig { window_frames_max: 9, ..EdgeConfig::new(Incarnation(incarnation), "node-1") };
    EdgeSession::new(config)
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        Self {
            random: Random(seed),
            faults,
            time: 1_000_000,
            incarnation: 1,
            made: 0,
            next_sequence: 1,
            spool: BTreeMap::new(),
            all: BTreeMap::new(),
            dropped: Vec::new(),
            reported: Vec::new(),
            unknown_before: Vec::new(),
            edge: edge(1),
            connections: Vec::new(),
            known: SourceState::default(),
            pending: Vec::new(),
            durable: Vec::new(),
            latest_sent: 0,
            sums: Sums::default(),
        }
    }

    pub(crate) fn durable_frames(&self) -> u64 {
        self.durable.len() as u64
    }

    fn edge_now(&self) -> Now {
        Now { monotonic: Micros(self.time), unix: UnixMicros(self.time) }
    }

    fn aggregator_now(&self) -> Now {
        Now { monotonic: Micros(self.time), unix: UnixMicros(self.time + CLOCK_AHEAD) }
    }

    pub(crate) fn run(&mut self) {
        for _step in 0..STEPS_MAX {
            self.time += self.random.below(3_000);
            if self.made < FRAMES {
                self.make_trouble();
                if self.random.hits(300) {
                    self.make_frame();
                }
            }
            self.drive_edge();
            self.deliver();
            self.drive_aggregator();
            if self.made == FRAMES && self.spool.is_empty() {
                self.check_end();
                return;
            }
        }
        panic!("stuck: {} frames left in the spool, known {:?}", self.spool.len(), self.known);
    }

    fn make_frame(&mut self) {
        let position = Position::new(self.incarnation, self.next_sequence);
        let length = usize::try_from(self.random.below(300)).unwrap();
        let frame = frame(position, length);
        self.spool.insert(position, frame.clone());
        self.all.insert(position, frame);
        self.next_sequence += 1;
        self.made += 1;
    }

    fn make_trouble(&mut self) {
        if self.random.hits(self.faults.breaks) {
            self.break_connection();
        }
        if self.random.hits(self.faults.aggregator_dies) {
            let disk_lost = self.random.hits(self.faults.disk_lost * 100);
            self.kill_aggregator(disk_lost);
        }
        if self.random.hits(self.faults.edge_dies) {
            self.break_connection();
            self.incarnation += 1;
            self.next_sequence = 1;
            self.edge = edge(self.incarnation);
        }
        if self.random.hits(self.faults.drops)
            && let Some((position, _frame)) = self.spool.pop_first()
        {
            self.dropped.push(position);
        }
    }

    /// The source's end is gone; bytes that it had sent may still arrive, as far as the road already has them.
    fn break_connection(&mut self) {
        if let Some(last) = self.connections.last_mut()
            && !last.orphaned
        {
            self.sums.breaks += 1;
            last.orphaned = true;
            let under_way = last.to_aggregator.bytes() + last.to_edge.bytes();
            let keep = self.random.below(last.to_aggregator.0.len() as u64 + 1);
            last.to_edge.0.clear();
            last.to_aggregator.0.truncate(usize::try_from(keep).unwrap());
            self.sums.lost_bytes += under_way - last.to_aggregator.bytes();
            self.edge.disconnect();
        }
    }

    fn kill_aggregator(&mut self, disk_lost: bool) {
        self.break_connection();
        self.connections.clear();
        self.pending.clear();
        if disk_lost {
            let stored = self.known.stored;
            self.durable.retain(|(position, _)| *position <= stored);
            self.known.received = stored;
        }
        self.known.accepted = self.known.received;
    }

    fn drive_edge(&mut self) {
        let now = self.edge_now();
        let connected = self.connections.last().is_some_and(|last| !last.orphaned);
        if !connected {
            if self.random.hits(200) {
                let next = Position::new(self.incarnation, self.next_sequence);
                let oldest = self.spool.keys().next().copied().unwrap_or(next);
                self.edge.connect(oldest, now).unwrap();
                self.connections.push(Accepted {
                    session: AggregatorSession::new(SOURCE, config(), self.aggregator_now()),
                    to_aggregator: Lane::default(),
                    to_edge: Lane::default(),
                    detour_micros: self.random.below(20_000),
                    orphaned: false,
                });
            }
            return;
        }
        self.edge.handle_timeout(now).unwrap();
        while let Some(after) = self.edge.offer_after() {
            let behind = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
            let Some((position, frame)) = self.spool.range(behind).next() else { break };
            match self.edge.offer(*position, frame.clone()) {
                Ok(()) => {}
                Err(refusal) => panic!("{refusal} although offer_after wanted a frame"),
            }
        }
        let last = self.connections.last_mut().unwrap();
        while let Some(mut bytes) = self.edge.poll_output() {
            // The road cuts where it likes.
            while !bytes.is_empty() {
                let cut = 1 + self.random.below(bytes.len() as u64);
                let at = self.time + last.detour_micros + self.random.below(8_000);
                last.to_aggregator.send(bytes.split_to(usize::try_from(cut).unwrap()), self.time, at);
            }
        }
    }

    fn deliver(&mut self) {
        let (edge_now, aggregator_now) = (self.edge_now(), self.aggregator_now());
        let mut index = 0;
        while index < self.connections.len() {
            while let Some(chunk) = self.connections[index].to_aggregator.arrive(self.time) {
                self.sums.overtaken += u64::from(chunk.sent < self.latest_sent);
                self.latest_sent = self.latest_sent.max(chunk.sent);
                self.connections[index].session.handle_bytes(&chunk.bytes, aggregator_now).unwrap();
                index = self.take_aggregator_events(index);
            }
            index += 1;
        }
        // An orphan whose bytes have all arrived is closed by its transport.
        self.connections.retain(|connection| !connection.orphaned || !connection.to_aggregator.0.is_empty());
        if let Some(last) = self.connections.last_mut().filter(|last| !last.orphaned) {
            while let Some(chunk) = last.to_edge.arrive(self.time) {
                self.edge.handle_bytes(&chunk.bytes, edge_now).unwrap();
            }
        }
        while let Some(event) = self.edge.poll_event() {
            match event {
                EdgeEvent::Welcomed { stored, .. } | EdgeEvent::Stored(stored) => {
                    assert!(stored <= self.known.stored, "the source believes more than is true");
                    self.spool.retain(|position, _frame| *position > stored);
                }
                EdgeEvent::Received(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        if let Some(estimate) = self.edge.clock(edge_now) {
            let wrong = estimate.offset_micros.abs_diff(i64::try_from(CLOCK_AHEAD).unwrap());
            assert!(wrong <= estimate.error.0, "{estimate:?} is wrong by {wrong}");
        }
    }

    /// Takes what the session at `index` gives; returns the index at which it stands then.
    fn take_aggregator_events(&mut self, mut index: usize) -> usize {
        let now = self.aggregator_now();
        while let Some(event) = self.connections[index].session.poll_event() {
            match event {
                AggregatorEvent::Hello(hello) => {
                    assert_eq!(hello.node, "node-1");
                    if self.known.accepted == Position::START {
                        let oldest = Position::new(hello.oldest_incarnation, hello.oldest_sequence);
                        self.unknown_before.push(oldest);
                    }
                    // The newest session of a source supersedes the others: their late bytes count no more.
                    self.connections.drain(..index);
                    index = 0;
                    self.connections[0].session.welcome(self.known, now).unwrap();
                }
                AggregatorEvent::Frame { header, bytes } => {
                    let position = Position::from(header.meta.id);
                    assert!(position > self.known.accepted, "{position} is handed over twice");
                    assert_eq!(self.all.get(&position), Some(&bytes));
                    self.known.accepted = position;
                    self.pending.push((position, bytes));
                    assert!(self.pending.len() <= CREDIT_FRAMES as usize * 2, "credit is exceeded");
                }
                AggregatorEvent::Gap { after, before } => {
                    self.sums.gaps += 1;
                    self.reported.push((after, before));
                }
                AggregatorEvent::Heartbeat(_) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        self.sums.duplicates += self.connections[index].session.take_counts().duplicate_frames;
        index
    }

    fn drive_aggregator(&mut self) {
        let now = self.aggregator_now();
        if !self.pending.is_empty() && self.random.hits(300) {
            let some = usize::try_from(1 + self.random.below(self.pending.len() as u64)).unwrap();
            self.durable.extend(self.pending.drain(..some));
            self.known.received = self.durable.last().unwrap().0;
        }
        if self.known.stored < self.known.received && self.random.hits(200) {
            let not_stored: Vec<_> = self
                .durable
                .iter()
                .map(|(position, _)| *position)
                .filter(|at| *at > self.known.stored)
                .collect();
            let some = self.random.below(not_stored.len() as u64);
            self.known.stored = not_stored[usize::try_from(some).unwrap()];
        }
        let (received, stored) = (self.known.received, self.known.stored);
        for connection in &mut self.connections {
            connection.session.received(received, now);
            connection.session.stored(stored, now);
            match connection.session.handle_timeout(now) {
                Ok(()) | Err(SessionFault::Ended) => {}
                Err(fault) => panic!("{fault}"),
            }
            while let Some(bytes) = connection.session.poll_output() {
                let at = self.time + connection.detour_micros + self.random.below(8_000);
                connection.to_edge.send(bytes, self.time, at);
            }
        }
    }

    fn check_end(&self) {
        let durable: BTreeMap<_, _> = self.durable.iter().cloned().collect();
        assert_eq!(durable.len(), self.durable.len(), "a frame is durable twice");
        assert!(self.durable.is_sorted_by_key(|(position, _)| *position));
        let last_of = |incarnation| durable.keys().rfind(|at| at.incarnation == incarnation).copied();
        for (position, frame) in &self.all {
            if let Some(found) = durable.get(position) {
                assert_eq!(found, frame);
                continue;
            }
            assert!(self.dropped.contains(position), "{position} is lost");
            let in_gap = self.reported.iter().any(|(after, before)| after < position && position < before);
            // The end of a life can be missing without a later frame of that life to show it.
            let at_end = last_of(position.incarnation).is_none_or(|last| last < *position);
            let unknown = self.unknown_before.iter().any(|oldest| position < oldest);
            assert!(in_gap || at_end || unknown, "{position} was dropped, and no gap was reported");
        }
    }
}

fn config() -> AggregatorConfig {
    AggregatorConfig {
        credit_frames: CREDIT_FRAMES,
        ack_delay: Micros::from_millis(5),
        heartbeat_interval: Micros::from_millis(50),
        ..AggregatorConfig::default()
    }
}
