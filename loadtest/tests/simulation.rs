//! The road under every fault: see `tapio_loadtest::simulation`.
//!
//! `TAPIO_SEED` is the first of the seeds that a test runs, `TAPIO_SIMULATION_SEEDS` how many. A failure prints plan and
//! seed, which `tapio-loadtest simulate --plan PLAN --seed SEED --count 1` runs again.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails by panicking")]

use tapio_loadtest::simulation::{self, Plan, Sums};

const SEEDS: u64 = 1_500;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

fn run(plan: &Plan) -> Sums {
    let first = number("TAPIO_SEED").unwrap_or(0);
    let seeds = number("TAPIO_SIMULATION_SEEDS").unwrap_or(SEEDS);
    match simulation::run_many(plan, first, |number| number < seeds) {
        Ok(sums) => {
            println!("{}: {seeds} seeds from {first}: {sums:?}", plan.name);
            sums
        }
        Err(fault) => panic!("{fault:#}"),
    }
}

/// Scenario: nothing fails.
/// Guarantees: everything is stored once, and nothing is sent or asked twice.
#[test]
fn a_good_day() {
    let sums = run(&simulation::A_GOOD_DAY);
    assert_eq!((sums.lost, sums.restarts, sums.duplicates, sums.repeated), (0, 0, 0, 0));
}

/// Scenario: connections break at any byte; links are cut without either end being told, for up to seconds.
/// Guarantees: nothing is lost, and all of it is stored once, in the events, the ledger and the roll-up.
#[test]
fn links_fail() {
    let sums = run(&simulation::LINKS);
    assert_eq!(sums.lost, 0);
    assert!(sums.breaks > 0 && sums.cuts > 0 && sums.duplicates > 0, "{sums:?}");
}

/// Scenario: the store refuses inserts, carries them out without an answer, dies in the middle of them, is away.
/// Guarantees: as above.
#[test]
fn the_store_fails() {
    let sums = run(&simulation::STORE);
    assert_eq!(sums.lost, 0);
    assert!(sums.unanswered > 0 && sums.repeated > 0, "{sums:?}");
}

/// Scenario: besides, agents and the aggregator are killed at any step; inserts of the dead arrive late.
/// Guarantees: as above: a killed process loses nothing.
#[test]
fn processes_die() {
    let sums = run(&simulation::PROCESSES);
    assert_eq!(sums.lost, 0);
    assert!(sums.source_deaths > 0 && sums.aggregator_deaths > 0 && sums.fenced > 0, "{sums:?}");
}

/// Scenario: machines lose their power: what was not synced is torn, or gone.
/// Guarantees: what was received is stored once; of the rest no more is lost than was younger than the interval between
/// two syncs.
#[test]
fn power_is_cut() {
    let sums = run(&simulation::POWER);
    assert!(sums.source_deaths > 0 && sums.aggregator_deaths > 0, "{sums:?}");
}

/// Scenario: disks are full, fail to sync, and rot where the aggregator's spool is.
/// Guarantees: everything that nodes kept is stored once, and what their quota forced out is counted.
#[test]
fn disks_fail() {
    let sums = run(&simulation::DISKS);
    assert!(sums.full > 0 && sums.restarts > 0 && sums.rotten > 0 && sums.fragments > 0, "{sums:?}");
}

/// Scenario: the aggregator's disk is lost again and again, and now and then a node's, with blocks that reached some tables.
/// Guarantees: what nodes still have is stored once, roll-ups included.
#[test]
fn disks_are_lost() {
    let sums = run(&simulation::LOST_DISKS);
    assert!(sums.disks_lost > 0 && sums.fragments > 0 && sums.reconciled > 0, "{sums:?}");
}

/// Scenario: all of that in one schedule, and clocks that are set.
/// Guarantees: as each.
#[test]
fn everything_fails() {
    let sums = run(&simulation::EVERYTHING);
    assert!(sums.disks_lost > 0 && sums.rotten > 0 && sums.fenced > 0, "{sums:?}");
}
