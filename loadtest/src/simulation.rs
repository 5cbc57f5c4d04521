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
/// What is stored twice, in part or not at all, or told wrongly; or that nothing moves any more.
pub fn run(seed: u64, faults: Faults) -> anyhow::Result<Sums> {
    World::new(seed, faults)?.run()
}
