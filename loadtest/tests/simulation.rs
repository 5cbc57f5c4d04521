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
/// Guarantees: everything is stored once.
#[test]
fn a_good_day() {
    let sums = run("a good day", Faults::default());
    assert_eq!((sums.lost, sums.restarts, sums.duplicates), (0, 0, 0));
}

/// Scenario: connections break and are cut.
#[test]
fn links_fail() {
    run("links", Faults { breaks: 10, cuts: 5, ..Faults::default() });
}

#[test]
fn the_store_fails() {
    run("store", Faults { store: 300, breaks: 3, ..Faults::default() });
}

#[test]
fn processes_die() {
    run(
        "processes",
        Faults { store: 200, breaks: 5, source_dies: 4, aggregator_dies: 8, ..Faults::default() },
    );
}

#[test]
fn power_is_cut() {
    run("power", Faults { store: 200, breaks: 5, source_power: 4, aggregator_power: 8, ..Faults::default() });
}

#[test]
fn disks_fail() {
    run(
        "disks",
        Faults { store: 100, breaks: 5, full: 8, syncs: 10, rot: 3, aggregator_dies: 4, ..Faults::default() },
    );
}

#[test]
fn disks_are_lost() {
    run(
        "lost disks",
        Faults { store: 200, breaks: 5, aggregator_disk: 5, source_disk: 1, ..Faults::default() },
    );
}

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
