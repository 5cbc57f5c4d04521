//! Sources, an aggregator and a store on a road that fails, from one seed; and the law that holds in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::{bail, ensure};
use tapio_schemas::ids::Incarnation;
use tapio_wire::{
    Position,
    session::{AggregatorEvent, AggregatorSession, EdgeEvent},
};

use super::{
    Faults, Sums,
    aggregator::{Aggregator, StoreSide},
    link::{Connection, Lane},
    source::{AHEAD_MICROS_MAX, Outcome, Source},
};
use crate::random::Draw;

const SOURCES: u8 = 3;
/// Frames that all sources make together, at least.
const FRAMES: usize = 90;
/// Far more steps than any seed takes: a world that needs them is stuck.
const STEPS_MAX: u64 = 200_000;
/// What the spool of a node may lose when its power is cut: what is younger than its interval between syncs, and its
/// thread's turn.
const POWER_CUT_MICROS: u64 = 1_600_000;
/// A first moment that leaves room for events that are late.
const START_MICROS: u64 = 1_700_000_000_000_000;

/// The world.
pub(super) struct World {
    draw: Draw,
    faults: Faults,
    base: Instant,
    start: u64,
    time: u64,
    sources: Vec<Source>,
    aggregator: Aggregator,
    side: StoreSide,
    connections: Vec<Connection>,
    is_healing: bool,
    sums: Sums,
}

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> anyhow::Result<Self> {
        let mut draw = Draw::labelled(seed, "world");
        let sources = (0..SOURCES).map(|number| Source::new(number, &mut draw)).collect::<Result<_, _>>()?;
        let aggregator = Aggregator::new(0, &mut draw);
        Ok(Self {
            draw,
            faults,
            base: Instant::now(),
            start: START_MICROS,
            time: 0,
            sources,
            aggregator,
            side: StoreSide::default(),
            connections: Vec::new(),
            is_healing: false,
            sums: Sums::default(),
        })
    }

    /// The monotonic clock that all machines share, each with a wall clock of its own.
    fn now(&self) -> u64 {
        self.start + self.time
    }

    /// Lives until everything is stored, and judges.
    pub(super) fn run(mut self) -> anyhow::Result<Sums> {
        // Instants begin where the machines' clocks do: only differences matter.
        self.base = self.base.checked_sub(std::time::Duration::ZERO).unwrap_or(self.base);
        for _step in 0..STEPS_MAX {
            self.time += match self.draw.between(0, 9) {
                0..=5 => self.draw.between(0, 2_000),
                6..=8 => self.draw.between(0, 20_000),
                _ => self.draw.between(0, 150_000),
            };
            let made: usize = self.sources.iter().map(|source| source.made.len()).sum();
            if made < FRAMES {
                self.make_trouble();
            } else if !self.is_healing {
                self.heal();
            }
            self.live()?;
            if self.is_healing && self.is_settled() {
                self.judge()?;
                return Ok(self.sums);
            }
        }
        let left: Vec<u64> = self
            .sources
            .iter()
            .map(|source| source.life.as_ref().map_or(0, |life| life.shelf.frames()))
            .collect();
        let not_stored = self.aggregator.life.as_ref().map(|life| life.road.not_stored());
        bail!("stuck: {left:?} frames on the shelves, {not_stored:?} records not stored")
    }

    fn hits(&mut self, thousandths: u64) -> bool {
        self.draw.between(1, 1_000) <= thousandths
    }

    fn make_trouble(&mut self) {
        let now = self.now();
        for index in 0..self.sources.len() {
            if self.hits(self.faults.source_dies) {
                self.with_source(index, |source| source.die());
            }
            if self.hits(self.faults.source_power) {
                self.with_source(index, |source| source.lose_power(now, POWER_CUT_MICROS));
            }
            if self.hits(self.faults.source_disk) {
                self.with_source(index, Source::lose_disk);
            }
        }
        if self.hits(self.faults.breaks) {
            self.break_one();
        }
        if self.hits(self.faults.cuts) {
            let until = now + self.draw.between(0, 3_000_000);
            let count = self.connections.len();
            if let Some(index) = count.checked_sub(1).map(|last| self.draw.between(0, last as u64))
                && let Some(connection) =
                    usize::try_from(index).ok().and_then(|at| self.connections.get_mut(at))
            {
                connection.cut_until = until;
                self.sums.cuts += 1;
            }
        }
        let dies = self.hits(self.faults.aggregator_dies);
        let (power, disk) = (self.hits(self.faults.aggregator_power), self.hits(self.faults.aggregator_disk));
        if dies || power || disk {
            self.kill_aggregator();
            if power {
                self.aggregator.disk.cut_power();
            }
            if disk {
                self.aggregator.disk.lose();
                self.sums.disks_lost += 1;
            }
        }
        if self.hits(self.faults.rot) && self.aggregator.disk.rot(".seg", 48) {
            self.sums.rotten += 1;
        }
        if self.hits(self.faults.full) {
            let used = self.aggregator.disk.used_bytes();
            self.aggregator.disk.set_capacity(used + self.draw.between(0, 6 << 10));
        } else if self.hits(30) {
            self.aggregator.disk.set_capacity(4 << 20);
        }
        if self.hits(self.faults.clock) {
            let step = self.draw.between(0, AHEAD_MICROS_MAX);
            match self.draw.between(0, u64::from(SOURCES)) {
                0 => self.aggregator.ahead_micros = step,
                number => {
                    let index = usize::try_from(number - 1).unwrap_or(0);
                    if let Some(source) = self.sources.get_mut(index) {
                        source.ahead_micros = step;
                    }
                }
            }
        }
        for disk in self.sources.iter().map(|source| &source.disk).chain([&self.aggregator.disk]) {
            disk.set_sync_failures(self.faults.syncs);
        }
    }

    fn heal(&mut self) {
        self.is_healing = true;
        self.faults = Faults::default();
        for disk in self.sources.iter().map(|source| &source.disk).chain([&self.aggregator.disk]) {
            disk.set_sync_failures(0);
            disk.set_capacity(4 << 20);
        }
        self.connections.iter_mut().for_each(|connection| connection.cut_until = 0);
    }

    fn with_source(&mut self, index: usize, work: impl FnOnce(&mut Source)) {
        if let Some(source) = self.sources.get_mut(index) {
            work(source);
            self.sums.source_deaths += 1;
        }
        self.leave(index);
    }

    /// The source's end of its connection is gone; bytes that it had sent may still arrive.
    fn leave(&mut self, source: usize) {
        for connection in &mut self.connections {
            if connection.source == source && connection.has_source {
                connection.has_source = false;
                self.sums.breaks += 1;
                let keep = self.draw.between(0, connection.to_aggregator.len() as u64);
                connection.to_aggregator.truncate(usize::try_from(keep).unwrap_or(0));
                connection.to_source.truncate(0);
            }
        }
        if let Some(life) = self.sources.get_mut(source).and_then(|source| source.life.as_mut()) {
            life.session.disconnect();
        }
    }

    fn break_one(&mut self) {
        let source = self.draw.between(0, u64::from(SOURCES) - 1);
        self.leave(usize::try_from(source).unwrap_or(0));
    }

    fn kill_aggregator(&mut self) {
        if self.aggregator.life.is_none() {
            return;
        }
        let now = self.now();
        self.aggregator.die(now, &mut self.side);
        self.sums.aggregator_deaths += 1;
        for connection in &mut self.connections {
            connection.session = None;
            connection.to_aggregator.truncate(0);
            // What it had sent may still arrive.
            let keep = self.draw.between(0, connection.to_source.len() as u64);
            connection.to_source.truncate(usize::try_from(keep).unwrap_or(0));
        }
    }

    fn live(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        self.side.arrive(now);
        if self.aggregator.life.is_none() && self.draw.percent(10) {
            self.aggregator.start(now, self.base_at());
        }
        for index in 0..self.sources.len() {
            self.live_source(index)?;
        }
        self.deliver_to_aggregator()?;
        let base = self.base_at();
        if !self.aggregator.drive(now, base, &mut self.side, &self.faults, &mut self.sums)? {
            self.sums.restarts += 1;
            self.kill_aggregator();
        }
        self.answer()?;
        self.connections.retain(|connection| !connection.is_over());
        Ok(())
    }

    /// The instant at which the machines' clocks stood at zero.
    fn base_at(&self) -> Instant {
        self.base.checked_sub(std::time::Duration::from_micros(self.start)).unwrap_or(self.base)
    }

    fn live_source(&mut self, index: usize) -> anyhow::Result<()> {
        let (now, base) = (self.now(), self.base_at());
        let Some(source) = self.sources.get_mut(index) else { return Ok(()) };
        if source.life.is_none() {
            if self.draw.percent(10) {
                source.start(now, base)?;
            }
            return Ok(());
        }
        if !self.is_healing && self.draw.percent(8) {
            source.make(now, base, &mut self.draw)?;
        }
        let at = source.now(now);
        let node = source.node.clone();
        let (id, Some(life)) = (source.id, &mut source.life) else { return Ok(()) };
        if self.draw.percent(10) {
            // A disk that fails is opened again by the shelf itself.
            drop(life.shelf.tend(base + std::time::Duration::from_micros(now)));
        }
        let found = self
            .connections
            .iter()
            .position(|connection| connection.source == index && connection.has_source);
        let Some(place) = found else {
            if self.aggregator.life.is_some() && self.draw.percent(20) {
                life.session.connect(life.oldest(), at)?;
                let there = self.aggregator.now(now);
                self.connections.push(Connection {
                    source: index,
                    session: Some(AggregatorSession::new(id, Aggregator::session_config(), there)),
                    to_aggregator: Lane::default(),
                    to_source: Lane::default(),
                    has_source: true,
                    detour_micros: self.draw.between(0, 20_000),
                    cut_until: 0,
                });
            }
            return Ok(());
        };
        let Some(connection) = self.connections.get_mut(place) else { return Ok(()) };
        let mut goes_on = life.session.handle_timeout(at).is_ok();
        while now >= connection.cut_until
            && let Some(bytes) = connection.to_source.arrive(now)
        {
            goes_on &= life.session.handle_bytes(&bytes, at).is_ok();
        }
        // A connection whose other end is gone ends when all that it had sent has arrived.
        goes_on &= connection.session.is_some() || connection.to_source.len() > 0;
        while let Some(event) = life.session.poll_event() {
            match event {
                EdgeEvent::Welcomed { stored, .. } => {
                    check_stored(&self.side, id, stored)?;
                    life.shelf.stored(stored);
                    life.feed.begin();
                }
                EdgeEvent::Stored(stored) => {
                    check_stored(&self.side, id, stored)?;
                    life.shelf.stored(stored);
                }
                EdgeEvent::Received(_) => {}
                EdgeEvent::RuleSet(_) => bail!("{node}: a rule set that nobody pushed"),
                EdgeEvent::Refused { .. } | EdgeEvent::Draining(_) | EdgeEvent::Silent => goes_on = false,
            }
        }
        goes_on &= life.feed.offer(&life.shelf, &mut life.session).is_ok();
        while let Some(bytes) = life.session.poll_output() {
            for piece in cut(bytes, &mut self.draw) {
                let at = now + connection.detour_micros + self.draw.between(0, 8_000);
                connection.to_aggregator.send(piece, at);
            }
        }
        if !goes_on {
            self.leave(index);
        }
        Ok(())
    }

    fn deliver_to_aggregator(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        for place in 0..self.connections.len() {
            while let Some(connection) = self.connections.get_mut(place) {
                if now < connection.cut_until || connection.session.is_none() {
                    break;
                }
                let Some(bytes) = connection.to_aggregator.arrive(now) else { break };
                let there = self.aggregator.now(now);
                let Some(session) = &mut connection.session else { break };
                let taken = session.handle_bytes(&bytes, there);
                self.take_events(place)?;
                if taken.is_err()
                    && let Some(connection) = self.connections.get_mut(place)
                {
                    connection.session = None;
                }
            }
        }
        Ok(())
    }

    fn take_events(&mut self, place: usize) -> anyhow::Result<()> {
        let now = self.now();
        let there = self.aggregator.now(now);
        let Some(life) = &mut self.aggregator.life else { return Ok(()) };
        let mut supersedes = false;
        let Some(connection) = self.connections.get_mut(place) else { return Ok(()) };
        let Some(source) = self.sources.get(connection.source) else { return Ok(()) };
        let mut ends = false;
        if let Some(session) = &mut connection.session {
            while let Some(event) = session.poll_event() {
                match event {
                    AggregatorEvent::Hello(hello) => {
                        ensure!(hello.node == source.node, "a hello of {}", hello.node);
                        let known = life.road.known(source.id).unwrap_or_default();
                        if known.accepted.incarnation > Incarnation(hello.incarnation) {
                            ends = true;
                            break;
                        }
                        session.welcome(known, there)?;
                        supersedes = true;
                    }
                    AggregatorEvent::Frame { header, bytes } => {
                        let position = Position::from(header.meta.id);
                        if !life.road.accept(source.id, position, &source.node, there.unix, bytes) {
                            self.sums.duplicates += 1;
                        }
                    }
                    AggregatorEvent::Silent => ends = true,
                    AggregatorEvent::Gap { .. } => self.sums.gaps += 1,
                    AggregatorEvent::Heartbeat(_)
                    | AggregatorEvent::RuleSetApplied(_)
                    | AggregatorEvent::Host(_)
                    | AggregatorEvent::Draining(_) => {}
                }
            }
            self.sums.duplicates += session.take_counts().duplicate_frames;
        }
        if ends {
            connection.session = None;
        }
        let source = connection.source;
        if supersedes {
            // The newest session of a source is the one that counts.
            for (other, connection) in self.connections.iter_mut().enumerate() {
                if other != place && connection.source == source {
                    connection.session = None;
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        let there = self.aggregator.now(now);
        for place in 0..self.connections.len() {
            let Some(connection) = self.connections.get_mut(place) else { break };
            if let (Some(session), Some(life), Some(source)) =
                (&mut connection.session, &self.aggregator.life, self.sources.get(connection.source))
            {
                let known = life.road.known(source.id).unwrap_or_default();
                session.received(known.received, there);
                session.stored(known.stored, there);
                let _ended = session.handle_timeout(there);
                while let Some(bytes) = session.poll_output() {
                    let at = now + connection.detour_micros + self.draw.between(0, 8_000);
                    connection.to_source.send(bytes, at);
                }
            }
            self.take_events(place)?;
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        let aggregator = self
            .aggregator
            .life
            .as_ref()
            .is_some_and(|life| life.road.waiting() == 0 && life.road.not_stored() == 0);
        let sources = self
            .sources
            .iter()
            .all(|source| source.life.as_ref().is_some_and(|life| life.shelf.frames() == 0));
        aggregator && sources && self.side.is_quiet()
    }

    /// Everything that was made is stored once, or counted as lost.
    fn judge(&mut self) -> anyhow::Result<()> {
        let store = &self.side.store;
        let mut minutes: BTreeMap<(String, u64), (u64, u64)> = BTreeMap::new();
        for (frame, times) in &store.frames {
            ensure!(*times == 1, "frame {} of {} is stored {times} times", frame.1, frame.0);
        }
        for ((frame, row), event) in &store.events {
            let times = event.times;
            ensure!(times == 1, "row {row} of frame {} of {} is stored {times} times", frame.1, frame.0);
            let sum = minutes.entry(event.minute()).or_default();
            *sum = (sum.0 + event.count, sum.1 + 1);
            // Who has lost its disk cannot complete what the aggregator lost too.
            let made = self.sources.iter().find(|source| source.id == frame.0);
            let made = made.and_then(|source| source.made.get(&frame.1)).map(|made| made.outcome);
            ensure!(
                store.frames.contains_key(frame) || matches!(made, Some(Outcome::Gone { .. })),
                "frame {} of {} is stored in part",
                frame.1,
                frame.0
            );
        }
        for (line, (times, _)) in &store.ledger {
            ensure!(
                *times == 1,
                "a line of frame {}'s ledger is stored {times} times: {line:?}",
                line.frame.1
            );
        }
        let known: BTreeSet<_> = self.sources.iter().map(|source| source.id).collect();
        for (source, position) in store.frames.keys() {
            ensure!(known.contains(source), "frame {position} of nobody");
        }
        for source in &mut self.sources {
            let (mut lost, mut unknown) = (0, 0);
            for (position, made) in &source.made {
                let frame = (source.id, *position);
                self.sums.frames += 1;
                if store.frames.contains_key(&frame) {
                    for (row, count) in made.rows.iter().enumerate() {
                        let stored = store.events.get(&(frame, row as u64));
                        ensure!(
                            stored.is_some_and(|event| event.count == *count),
                            "row {row} of {position}: {stored:?}"
                        );
                    }
                    continue;
                }
                self.sums.lost += 1;
                let rows = made.rows.len() as u64;
                match made.outcome {
                    Outcome::Shelved(_) | Outcome::Refused => lost += rows,
                    Outcome::Gone { was_received } => {
                        // What was received must be stored, unless the aggregator's disk went or rotted too.
                        let is_excused = self.sums.disks_lost + self.sums.rotten > 0;
                        ensure!(
                            !was_received || is_excused,
                            "frame {position} was received, and is not stored"
                        );
                        unknown += rows;
                    }
                }
            }
            let told: u64 = store
                .ledger
                .iter()
                .filter(|(line, _)| {
                    line.frame.0 == source.id
                        && line.stage == "edge-spool"
                        && line.fate == "lost"
                        && line.subject == "events"
                })
                .map(|(_, (_, sum))| sum)
                .sum();
            let told = told + source.losses_untold();
            ensure!(
                told >= lost && told <= lost + unknown,
                "{}: {lost} events are lost ({unknown} more may be, unknown to it), and {told} are told",
                source.node
            );
        }
        for (minute, (events, rows)) in &minutes {
            let stored = store.minutes.get(minute).copied().unwrap_or_default();
            ensure!(
                (stored.events, stored.rows) == (*events, *rows),
                "minute {minute:?}: {stored:?} in the roll-up, {events} events in {rows} rows stored"
            );
        }
        ensure!(store.minutes.len() == minutes.len(), "the roll-up has minutes of nothing");
        self.sums.repeated += store.repeated;
        self.sums.reconciled += store.reconciled;
        self.sums.fenced += store.fenced;
        Ok(())
    }
}

/// A source may forget only what is stored.
fn check_stored(
    side: &StoreSide,
    source: tapio_schemas::ids::SourceId,
    stored: Position,
) -> anyhow::Result<()> {
    let is_there = stored == Position::START || side.store.frames.contains_key(&(source, stored));
    ensure!(is_there, "{source} is told that {stored} is stored, and it is not");
    Ok(())
}

/// The road cuts where it likes.
fn cut(mut bytes: bytes::Bytes, draw: &mut Draw) -> Vec<bytes::Bytes> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let length = draw.between(1, bytes.len() as u64);
        pieces.push(bytes.split_to(usize::try_from(length).unwrap_or(bytes.len())));
    }
    pieces
}
