//! An aggregator: takes frames, commits them to its spool, writes them to the store, dies and comes back.
//!
//! Its road (spool, marks, writer) and its sessions are the aggregator's own.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tapio_aggregator::road::{Road, RoadConfig, Step};
use tapio_schemas::{
    ids::SourceId,
    units::{Micros, UnixMicros},
};
use tapio_spool::{QuotaPolicy, SpoolConfig, SpoolError, SyncPolicy};
use tapio_wire::session::{AggregatorConfig, Now};

use super::{
    Faults, Sums,
    disk::SimulatedDisk,
    store::{Insert, Store},
};
use crate::random::Draw;

const SPOOL: SpoolConfig = SpoolConfig {
    segment_bytes_max: 8 << 10,
    quota_bytes: 64 << 10,
    quota_policy: QuotaPolicy::Refuse,
    reserve_bytes: 4 << 10,
    sync: SyncPolicy::ByCaller,
};
/// How long what is stored stays in the spool.
const REPLAY_WINDOW: Duration = Duration::from_secs(1);
/// How long the store is away when it is.
const STORE_AWAY_MICROS: u64 = 800_000;
/// An insert that nobody waits for any more may arrive this much later.
const LATE_MICROS: u64 = 3_000_000;

/// An insert that is under way.
struct UnderWay {
    insert: Insert,
    /// When it is answered.
    at: u64,
    /// How much of it is carried out then.
    steps: usize,
    /// Whether the answer is that it is in.
    is_answered: bool,
}

/// The life of a process.
pub(super) struct Life {
    pub(super) road: Road,
    under_way: Option<UnderWay>,
    /// In which its inserts are.
    session: u64,
    /// Nothing is asked of the writer before this.
    next_step: u64,
}

/// The store, and what is on its way there from processes that are gone.
#[derive(Default)]
pub(super) struct StoreSide {
    pub(super) store: Store,
    away_until: u64,
    late: Vec<(u64, Insert, usize)>,
}

impl StoreSide {
    /// Carries out what arrives late.
    pub(super) fn arrive(&mut self, now: u64) {
        let (due, later) = std::mem::take(&mut self.late).into_iter().partition(|(at, ..)| *at <= now);
        self.late = later;
        let due: Vec<(u64, Insert, usize)> = due;
        due.iter().for_each(|(_, insert, steps)| self.store.insert(insert, *steps));
    }

    /// Whether nothing is on its way any more.
    pub(super) fn is_quiet(&self) -> bool {
        self.late.is_empty()
    }
}

/// An aggregator.
pub(super) struct Aggregator {
    pub(super) disk: SimulatedDisk,
    pub(super) life: Option<Life>,
    pub(super) ahead_micros: u64,
    source: SourceId,
    draw: Draw,
    lives: u64,
}

impl Aggregator {
    pub(super) fn new(number: u8, draw: &mut Draw) -> Self {
        Self {
            disk: SimulatedDisk::new(Draw::labelled(draw.next_u64(), "disk"), 4 << 20),
            life: None,
            ahead_micros: draw.between(0, 2_000_000),
            source: SourceId([200 + number; 16]),
            draw: Draw::labelled(draw.next_u64(), "aggregator"),
            lives: 0,
        }
    }

    /// What every session of it is granted.
    pub(super) fn session_config() -> AggregatorConfig {
        AggregatorConfig {
            credit_frames: 6,
            ack_delay: Micros::from_millis(5),
            heartbeat_interval: Micros::from_millis(200),
            ..AggregatorConfig::default()
        }
    }

    /// What time it is there.
    pub(super) fn now(&self, now: u64) -> Now {
        Now { monotonic: Micros(now), unix: UnixMicros(now + self.ahead_micros) }
    }

    /// The process starts. False when its disk does not let it.
    pub(super) fn start(&mut self, now: u64, base: Instant) -> bool {
        self.lives += 1;
        let draw = &mut self.draw;
        let mut random = || u128::from(draw.next_u64()) << 64 | u128::from(draw.next_u64());
        let config = RoadConfig {
            disk: Arc::new(self.disk.clone()),
            root: PathBuf::from("/aggregator"),
            spool: SPOOL,
            replay_window: REPLAY_WINDOW,
            source: self.source,
            random: &mut random,
        };
        let unix = UnixMicros(now + self.ahead_micros);
        let opened = Road::open(config, base + Duration::from_micros(now), unix);
        self.life = opened.ok().map(|road| Life { road, under_way: None, session: self.lives, next_step: 0 });
        self.life.is_some()
    }

    /// The process dies; what is on its way to the store may arrive, now, later, or never.
    pub(super) fn die(&mut self, now: u64, side: &mut StoreSide) {
        let Some(under_way) = self.life.take().and_then(|life| life.under_way) else { return };
        let UnderWay { insert, .. } = under_way;
        let steps = usize::try_from(self.draw.between(0, insert.steps() as u64)).unwrap_or(0);
        if self.draw.percent(50) {
            side.late.push((now + self.draw.between(0, LATE_MICROS), insert, steps));
        } else {
            side.store.insert(&insert, steps);
        }
    }

    /// Commits what waits, lets go, and writes to the store; false when the process cannot go on.
    pub(super) fn drive(
        &mut self,
        now: u64,
        base: Instant,
        side: &mut StoreSide,
        faults: &Faults,
        sums: &mut Sums,
    ) -> anyhow::Result<bool> {
        let Some(life) = &mut self.life else { return Ok(true) };
        let instant = base + Duration::from_micros(now);
        if life.road.waiting() > 0 && self.draw.percent(40) {
            match life.road.commit() {
                Ok(()) => {}
                Err(SpoolError::Full { .. } | SpoolError::DiskFull { .. }) => sums.full += 1,
                Err(_failed) => return Ok(false),
            }
        }
        if self.draw.percent(5) && life.road.trim(instant).is_err() {
            return Ok(false);
        }
        self.write(now, instant, side, faults, sums)
    }

    fn write(
        &mut self,
        now: u64,
        instant: Instant,
        side: &mut StoreSide,
        faults: &Faults,
        sums: &mut Sums,
    ) -> anyhow::Result<bool> {
        let unix = UnixMicros(now + self.ahead_micros);
        let Some(life) = &mut self.life else { return Ok(true) };
        if let Some(under_way) = life.under_way.take_if(|under_way| under_way.at <= now) {
            side.store.insert(&under_way.insert, under_way.steps);
            if under_way.is_answered {
                life.road.inserted();
                sums.blocks += 1;
            } else {
                sums.unanswered += 1;
                life.next_step = now + self.draw.between(0, 300_000);
            }
        }
        if life.under_way.is_some() || now < life.next_step {
            return Ok(true);
        }
        let is_away = now < side.away_until;
        let step = match life.road.step(instant, unix) {
            Ok(step) => step,
            // Full or broken, it starts again: a disk that is full has room some time later.
            Err(_failed) => return Ok(false),
        };
        match step {
            Step::Wait(wait) => {
                life.next_step = now + u64::try_from(wait.as_micros()).unwrap_or(0).min(20_000);
            }
            Step::Fence
            | Step::AskLastFrames
            | Step::AskFramesOfCut(_)
            | Step::AskFragments
            | Step::Reconcile(_)
                if is_away =>
            {
                life.next_step = now + 100_000;
            }
            Step::Fence => {
                side.store.fence(life.session);
                life.road.fenced();
            }
            Step::AskFragments => {
                let fragments = side.store.fragments();
                sums.fragments += fragments.len() as u64;
                life.road.gathered(fragments);
            }
            Step::Reconcile(fragments) => {
                side.store.reconcile(fragments);
                life.road.reconciled();
            }
            Step::AskLastFrames => {
                sums.asked += 1;
                life.road.learned(side.store.last_frames(), unix);
            }
            Step::AskFramesOfCut(cut) => {
                sums.asked += 1;
                life.road.checked(&side.store.frames_of_cut(cut))?;
            }
            Step::Insert { table, block, token } => {
                if is_away {
                    life.next_step = now + 50_000;
                    return Ok(true);
                }
                let insert = Insert::read(table, block.bytes(), token.as_str(), life.session)?;
                let all = insert.steps();
                let at = now + self.draw.between(0, 20_000);
                // It is refused, or carried out and not answered, or the store dies in the middle of it.
                let fails = self.draw.between(1, 1_000) <= faults.store;
                let steps = if fails { self.draw.between(0, all as u64) } else { all as u64 };
                let steps = usize::try_from(steps)?;
                if fails && self.draw.percent(30) {
                    side.away_until = now + self.draw.between(0, STORE_AWAY_MICROS);
                }
                life.under_way = Some(UnderWay { insert, at, steps, is_answered: !fails });
            }
            Step::Stored | Step::Drained => {}
        }
        Ok(true)
    }
}
