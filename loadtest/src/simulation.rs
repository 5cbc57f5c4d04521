//! The road under every fault, from one seed: the agent's shelf and session, the aggregator's session, spool, marks and
//! writer, on disks, links, clocks and a store that are simulated.
//!
//! The types are those that run in production; what is simulated is what they stand on. A schedule takes milliseconds, so
//! that thousands run in the gate. Called by the tests and by `tapio-loadtest simulate`.

mod aggregator;
pub mod disk;
mod link;
mod native;
mod source;
mod store;
mod world;

use std::panic;

use anyhow::{Context as _, anyhow};

use self::world::World;

/// How likely faults are, in thousandths per step of the schedule, while frames are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A connection breaks.
    pub breaks: u64,
    /// Nothing passes a link for a while; neither end is told.
    pub cuts: u64,
    /// An agent is killed.
    pub source_dies: u64,
    /// A node loses its power.
    pub source_power: u64,
    /// A node's disk is lost.
    pub source_disk: u64,
    /// The aggregator is killed.
    pub aggregator_dies: u64,
    /// The aggregator's machine loses its power.
    pub aggregator_power: u64,
    /// The aggregator's disk is lost.
    pub aggregator_disk: u64,
    /// A bit of the aggregator's spool flips.
    pub rot: u64,
    /// The aggregator's disk is filled up by others.
    pub full: u64,
    /// A wall clock is set.
    pub clock: u64,
    /// Of a thousand syncs so many fail.
    pub syncs: u64,
    /// Of a thousand inserts so many are refused, not answered, or carried out in part.
    pub store: u64,
}

/// Faults that are simulated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its name on the command line.
    pub name: &'static str,
    /// How likely each fault is.
    pub faults: Faults,
}

const NONE: Faults = Faults {
    breaks: 0,
    cuts: 0,
    source_dies: 0,
    source_power: 0,
    source_disk: 0,
    aggregator_dies: 0,
    aggregator_power: 0,
    aggregator_disk: 0,
    rot: 0,
    full: 0,
    clock: 0,
    syncs: 0,
    store: 0,
};

/// Nothing fails.
pub const A_GOOD_DAY: Plan = Plan { name: "good-day", faults: NONE };
/// Connections break at any byte; links are cut without either end being told.
pub const LINKS: Plan = Plan { name: "links", faults: Faults { breaks: 10, cuts: 5, ..NONE } };
/// The store refuses inserts, carries them out without an answer, dies in the middle of them, is away.
pub const STORE: Plan = Plan { name: "store", faults: Faults { store: 300, breaks: 3, ..NONE } };
/// Besides, processes are killed, and inserts of the dead arrive late.
pub const PROCESSES: Plan = Plan {
    name: "processes",
    faults: Faults { store: 200, breaks: 5, source_dies: 4, aggregator_dies: 8, ..NONE },
};
/// Besides, machines lose their power: what was not synced is torn, or gone.
pub const POWER: Plan = Plan {
    name: "power",
    faults: Faults { store: 200, breaks: 5, source_power: 4, aggregator_power: 8, ..NONE },
};
/// Disks are full, fail to sync, and rot.
pub const DISKS: Plan = Plan {
    name: "disks",
    faults: Faults { store: 100, breaks: 5, full: 8, syncs: 10, rot: 3, aggregator_dies: 4, ..NONE },
};
/// Disks are lost.
pub const LOST_DISKS: Plan = Plan {
    name: "lost-disks",
    faults: Faults { store: 200, breaks: 5, aggregator_disk: 5, source_disk: 1, ..NONE },
};
/// All of that in one schedule, and clocks that are set.
pub const EVERYTHING: Plan = Plan {
    name: "everything",
    faults: Faults {
        breaks: 6,
        cuts: 2,
        source_dies: 3,
        source_power: 1,
        source_disk: 1,
        aggregator_dies: 3,
        aggregator_power: 2,
        aggregator_disk: 1,
        rot: 1,
        full: 3,
        clock: 5,
        syncs: 3,
        store: 150,
    },
};
/// All plans.
pub const PLANS: [Plan; 8] = [A_GOOD_DAY, LINKS, STORE, PROCESSES, POWER, DISKS, LOST_DISKS, EVERYTHING];

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named for what it counts")]
pub struct Sums {
    pub frames: u64,
    pub lost: u64,
    pub breaks: u64,
    pub cuts: u64,
    pub source_deaths: u64,
    pub aggregator_deaths: u64,
    pub disks_lost: u64,
    pub rotten: u64,
    pub restarts: u64,
    pub full: u64,
    pub asked: u64,
    pub blocks: u64,
    pub unanswered: u64,
    pub duplicates: u64,
    pub gaps: u64,
    pub repeated: u64,
    pub fragments: u64,
    pub reconciled: u64,
    pub fenced: u64,
}

impl Sums {
    /// Adds what happened elsewhere.
    pub const fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.lost += other.lost;
        self.breaks += other.breaks;
        self.cuts += other.cuts;
        self.source_deaths += other.source_deaths;
        self.aggregator_deaths += other.aggregator_deaths;
        self.disks_lost += other.disks_lost;
        self.rotten += other.rotten;
        self.restarts += other.restarts;
        self.full += other.full;
        self.asked += other.asked;
        self.blocks += other.blocks;
        self.unanswered += other.unanswered;
        self.duplicates += other.duplicates;
        self.gaps += other.gaps;
        self.repeated += other.repeated;
        self.fragments += other.fragments;
        self.reconciled += other.reconciled;
        self.fenced += other.fenced;
    }
}

/// Runs the schedule of a seed to its end, and judges what is stored.
///
/// # Errors
/// What is stored twice, in part or not at all, or told wrongly; that nothing moves any more; or a panic.
pub fn run(seed: u64, plan: &Plan) -> anyhow::Result<Sums> {
    let judged = panic::catch_unwind(|| World::new(seed, plan.faults)?.run());
    judged.unwrap_or_else(|_panicked| Err(anyhow!("a panic, which standard error tells of")))
}

/// Runs the schedules of seeds from `first` on, one behind the other, for as long as `goes_on` says of how many were run.
///
/// # Errors
/// What is wrong with the first that fails, with its plan and seed.
pub fn run_many(plan: &Plan, first: u64, mut goes_on: impl FnMut(u64) -> bool) -> anyhow::Result<Sums> {
    let (mut sums, mut number) = (Sums::default(), 0);
    while goes_on(number) {
        let seed = first.wrapping_add(number);
        let one = run(seed, plan).with_context(|| format!("plan {}, seed {seed}", plan.name))?;
        sums.add(&one);
        number += 1;
    }
    Ok(sums)
}
