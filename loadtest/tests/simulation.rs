//! The road under every fault: see `tapio_loadtest::simulation`.
//!
//! `TAPIO_SEED` is the first of the seeds that a test runs. A failure prints the one that failed;
//! `TAPIO_SIMULATION_SEED` runs that one alone.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

use tapio_loadtest::simulation::{self, Faults, Sums};

const SEEDS: u64 = 1_500;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

fn run(name: &str, faults: Faults) -> Sums {
    let alone = number("TAPIO_SIMULATION_SEED");
    let first = alone.or_else(|| number("TAPIO_SEED")).unwrap_or(0);
    let seeds = if alone.is_some() { 1 } else { number("TAPIO_SIMULATION_SEEDS").unwrap_or(SEEDS) };
    let mut sums = Sums::default();
    for seed in (0..seeds).map(|number| first.wrapping_add(number)) {
        match std::panic::catch_unwind(|| simulation::run(seed, faults)) {
            Ok(Ok(one)) => sums.add(&one),
            Ok(Err(fault)) => panic!("{name}: TAPIO_SIMULATION_SEED={seed}: {fault:#}"),
            Err(_panicked) => panic!("{name}: TAPIO_SIMULATION_SEED={seed}: a panic"),
        }
    }
    println!("{name}: seeds from {first}: {sums:?}");
    sums
}

/// Scenario: nothing fails.
/// Guarantees: everything is stored once, and nothing is sent or asked twice.
#[test]
fn a_good_day() {
    let sums = run("a good day", Faults::default());
    assert_eq!((sums.lost, sums.restarts, sums.duplicates, sums.repeated), (0, 0, 0, 0));
}

/// Scenario: connections break at any byte; links are cut without either end being told, for up to seconds.
/// Guarantees: nothing is lost, and all of it is stored once, in the events, the ledger and the roll-up.
#[test]
fn links_fail() {
    let sums = run("links", Faults { breaks: 10, cuts: 5, ..Faults::default() });
    assert_eq!(sums.lost, 0);
    assert!(sums.breaks > 0 && sums.cuts > 0 && sums.duplicates > 0, "{sums:?}");
}

/// Scenario: the store refuses inserts, carries them out without an answer, dies in the middle of them, is away.
/// Guarantees: as above.
#[test]
fn the_store_fails() {
    let sums = run("store", Faults { store: 300, breaks: 3, ..Faults::default() });
    assert_eq!(sums.lost, 0);
    assert!(sums.unanswered > 0 && sums.repeated > 0, "{sums:?}");
}

/// Scenario: besides, agents and the aggregator are killed at any step; inserts of the dead arrive late.
/// Guarantees: as above: a killed process loses nothing.
#[test]
fn processes_die() {
    let faults = Faults { store: 200, breaks: 5, source_dies: 4, aggregator_dies: 8, ..Faults::default() };
    let sums = run("processes", faults);
    assert_eq!(sums.lost, 0);
    assert!(sums.source_deaths > 0 && sums.aggregator_deaths > 0 && sums.fenced > 0, "{sums:?}");
}

/// Scenario: machines lose their power: what was not synced is torn, or gone.
/// Guarantees: what was received is stored once; of the rest no more is lost than was younger than the interval between
/// two syncs.
#[test]
fn power_is_cut() {
    let faults = Faults { store: 200, breaks: 5, source_power: 4, aggregator_power: 8, ..Faults::default() };
    let sums = run("power", faults);
    assert!(sums.source_deaths > 0 && sums.aggregator_deaths > 0, "{sums:?}");
}

/// Scenario: disks are full, fail to sync, and rot where the aggregator's spool is.
/// Guarantees: everything that nodes kept is stored once, and what their quota forced out is counted.
#[test]
fn disks_fail() {
    let faults =
        Faults { store: 100, breaks: 5, full: 8, syncs: 10, rot: 3, aggregator_dies: 4, ..Faults::default() };
    let sums = run("disks", faults);
    assert!(sums.full > 0 && sums.restarts > 0 && sums.rotten > 0 && sums.fragments > 0, "{sums:?}");
}

/// Scenario: the aggregator's disk is lost again and again, and now and then a node's, with blocks that reached some tables.
/// Guarantees: what nodes still have is stored once, roll-ups included.
#[test]
fn disks_are_lost() {
    let faults = Faults { store: 200, breaks: 5, aggregator_disk: 5, source_disk: 1, ..Faults::default() };
    let sums = run("lost disks", faults);
    assert!(sums.disks_lost > 0 && sums.fragments > 0 && sums.reconciled > 0, "{sums:?}");
}

/// Scenario: all of that in one schedule, and clocks that are set.
/// Guarantees: as each.
#[test]
fn everything_fails() {
    let faults = Faults {
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
    };
    run("everything", faults);
}
