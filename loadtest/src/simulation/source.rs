//! A node: makes frames, shelves them on its disk, ships them, dies and comes back.
//!
//! Shelf, losses, incarnation and session are the agent's own; only what is in the frames is made up here.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

use anyhow::{Context as _, anyhow};
use tapio_edge_agent::shelf::{Feed, Losses, Room, Shelf};
use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder},
    field::column,
    ids::{Incarnation, SourceId},
    ledger::{Fate, LedgerEntry, Stage},
    units::{Micros, UnixMicros},
};
use tapio_spool::incarnation;
use tapio_wire::{
    Position,
    frame::{FrameEncoder, FrameLimits, FrameMeta},
    session::{EdgeConfig, EdgeSession, Now},
};

use super::disk::SimulatedDisk;
use crate::random::Draw;

/// Frames that a session holds for the aggregator.
const WINDOW_FRAMES: usize = 9;
/// What a shelf may hold: little, so that its quota is met.
const ROOM: Room = Room { segment_bytes_max: 6 << 10, quota_bytes: 40 << 10 };
const DIRECTORY: &str = "/node";
/// How far a wall clock is ahead at most.
pub(super) const AHEAD_MICROS_MAX: u64 = 4_000_000;

/// What became of a frame at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was shelved at this time, and may have been on the disk since.
    Shelved(u64),
    /// The shelf did not take it, and counted it.
    Refused,
    /// It was shelved, and the node's disk or power went: it may be gone.
    Gone {
        /// Whether an aggregator had acknowledged it as received.
        was_received: bool,
    },
}

/// A frame that was made.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) outcome: Outcome,
    /// By row: how many it stands for.
    pub(super) rows: Vec<u64>,
}

/// The life of an agent.
pub(super) struct Life {
    pub(super) shelf: Shelf,
    losses: Arc<Losses>,
    pub(super) session: EdgeSession,
    pub(super) feed: Feed,
    incarnation: u64,
    sequence: u64,
    since: u64,
}

/// A node.
pub(super) struct Source {
    pub(super) id: SourceId,
    pub(super) node: String,
    pub(super) disk: SimulatedDisk,
    pub(super) life: Option<Life>,
    pub(super) made: BTreeMap<Position, Made>,
    /// Events whose loss was counted and told by nobody, because the agent died before.
    pub(super) untold: u64,
    /// Its wall clock is so far ahead.
    pub(super) ahead_micros: u64,
    /// Its disk was lost, and it was not started since.
    is_wiped: bool,
    frames: FrameEncoder,
}

impl Source {
    pub(super) fn new(number: u8, draw: &mut Draw) -> anyhow::Result<Self> {
        Ok(Self {
            id: SourceId([number + 1; 16]),
            node: format!("node-{number}"),
            disk: SimulatedDisk::new(Draw::labelled(draw.next_u64(), "disk"), 1 << 20),
            life: None,
            made: BTreeMap::new(),
            untold: 0,
            ahead_micros: draw.between(0, 2_000_000),
            is_wiped: false,
            frames: FrameEncoder::new(FrameLimits::default())?,
        })
    }

    /// The agent starts. False when its disk does not let it.
    pub(super) fn start(&mut self, now: u64, base: Instant) -> anyhow::Result<bool> {
        let directory = Path::new(DIRECTORY);
        let unix = now + self.ahead_micros;
        // What its disk knew of its lives only its clock can know now: where that was set back too, it is refused.
        let least = if self.is_wiped { unix.max(now + AHEAD_MICROS_MAX) } else { unix };
        let Ok(incarnation) = incarnation::next_at_least(&self.disk, directory, least) else {
            return Ok(false);
        };
        let newest = self.made.keys().next_back().map_or(0, |position| position.incarnation.0);
        self.is_wiped = false;
        anyhow::ensure!(incarnation > newest, "{}: incarnation {incarnation} after {newest}", self.node);
        let losses = Arc::new(Losses::default());
        let disk = Arc::new(self.disk.clone());
        let instant = base + std::time::Duration::from_micros(now);
        let spool = directory.join("spool");
        let Ok(shelf) = Shelf::open(disk, &spool, ROOM, self.id, Arc::clone(&losses), instant) else {
            return Ok(false);
        };
        let config = EdgeConfig {
            window_frames_max: WINDOW_FRAMES,
            ..EdgeConfig::new(Incarnation(incarnation), &self.node)
        };
        let (session, feed) = (EdgeSession::new(config), Feed::default());
        self.life = Some(Life { shelf, losses, session, feed, incarnation, sequence: 0, since: unix });
        Ok(true)
    }

    /// What time it is there.
    pub(super) fn now(&self, now: u64) -> Now {
        Now { monotonic: Micros(now), unix: UnixMicros(now + self.ahead_micros) }
    }

    /// The agent dies; its disk stays as it is.
    pub(super) fn die(&mut self) {
        if let Some(life) = self.life.take() {
            self.untold += life.untold();
        }
    }

    /// The machine loses its power.
    pub(super) fn lose_power(&mut self, now: u64, sync_micros: u64) {
        let received = self.received();
        self.die();
        self.disk.cut_power();
        for (position, made) in &mut self.made {
            if let Outcome::Shelved(at) = made.outcome
                && at + sync_micros >= now
            {
                // It may be there all the same.
                made.outcome = Outcome::Gone { was_received: *position <= received };
            }
        }
    }

    /// The disk is gone, and with it what is not stored.
    pub(super) fn lose_disk(&mut self) {
        let received = self.received();
        self.die();
        self.disk.lose();
        self.is_wiped = true;
        for (position, made) in &mut self.made {
            if let Outcome::Shelved(_) = made.outcome {
                made.outcome = Outcome::Gone { was_received: *position <= received };
            }
        }
    }

    fn received(&self) -> Position {
        self.life.as_ref().map_or(Position::START, |life| life.session.received())
    }

    /// Makes a frame of some events and shelves it.
    pub(super) fn make(&mut self, now: u64, base: Instant, draw: &mut Draw) -> anyhow::Result<()> {
        let Some(life) = &mut self.life else { return Ok(()) };
        life.sequence += 1;
        let position = Position::new(life.incarnation, life.sequence);
        let unix = (now + self.ahead_micros).max(life.since);
        let mut batch = BatchBuilder::default();
        let mut rows = Vec::new();
        for _row in 0..draw.between(0, 4) {
            // Some are late: they lie in a minute, and now and then on a day, that is over.
            let late = if draw.percent(10) { draw.between(0, 90_000_000) } else { draw.between(0, 200_000) };
            let time = unix - late.min(unix);
            let count = draw.between(1, 9);
            let mut row = batch.begin_row().map_err(|refusal| anyhow!("{refusal}"))?;
            row.unsigned(column::core::time_micros, time).unsigned(column::core::count, count);
            row.commit().map_err(|refusal| anyhow!("{refusal}"))?;
            rows.push(count);
        }
        let events = u32::try_from(rows.len())?;
        let ledger = batch.ledger_mut();
        (ledger.since, ledger.until) = (UnixMicros(life.since), UnixMicros(unix));
        for (subject, reason, count) in life.losses.take() {
            ledger.add(Stage::EdgeSpool, Fate::Lost, subject, reason, count);
        }
        for LedgerEntry { stage, fate, subject, reason, count } in life.losses.take_untold() {
            ledger.add(stage, fate, &subject, &reason, count);
        }
        let told = ledger.entries.clone();
        ledger.add(Stage::Batch, Fate::Carried, "events", "", events.into());
        let mut bytes = AlignedVec::new();
        batch.finish(&mut bytes).context("a batch")?;
        let mut frame = Vec::new();
        let meta = FrameMeta::new(position.of_source(self.id), events);
        self.frames.encode(meta, &bytes, &mut frame)?;
        life.since = unix;
        let instant = base + std::time::Duration::from_micros(now);
        let shelved = life.shelf.append(position, events, &frame, instant);
        if shelved.is_err() {
            life.losses.tell_again(told);
        }
        // Whatever fails here is tried again with the next frame.
        drop(life.shelf.tend(instant));
        let outcome = if shelved.is_ok() { Outcome::Shelved(now) } else { Outcome::Refused };
        self.made.insert(position, Made { outcome, rows });
        Ok(())
    }

    /// Events whose loss is counted and not yet told.
    pub(super) fn losses_untold(&mut self) -> u64 {
        self.untold + self.life.as_mut().map_or(0, |life| life.untold())
    }
}

impl Life {
    fn untold(&self) -> u64 {
        let counted: u64 =
            self.losses.take().filter(|(subject, ..)| *subject == "events").map(|(_, _, count)| count).sum();
        let told: u64 =
            self.losses.take_untold().iter().filter(|line| is_loss(line)).map(|line| line.count).sum();
        counted + told
    }

    /// The frame that the aggregator is told to be the oldest.
    pub(super) fn oldest(&self) -> Position {
        self.shelf.oldest_or_next(Incarnation(self.incarnation))
    }
}

/// Whether a line of a ledger tells of events that the spool of a node lost.
fn is_loss(line: &LedgerEntry) -> bool {
    line.stage == Stage::EdgeSpool && line.fate == Fate::Lost && line.subject == "events"
}
