//! Both ends of a session in one process, over a road that loses, reorders, delays and cuts, driven by a seed.
//!
//! Within one connection a road keeps order and loses nothing, as QUIC's streams do. What it loses is what was under way
//! when a connection broke; what it reorders is what went over different connections, each with a path of its own: late
//! bytes of a broken one arrive behind those of its successor. Each test asserts that both have happened.
//!
//! `TAPIO_SEED` is the first of the seeds that a test runs. A failure prints the one that failed; `TAPIO_PAIR_SEED` runs
//! that one alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and prints what it measured"
)]

#[path = "pair/world.rs"]
mod world;

use std::panic;

use world::{Faults, Sums, World};

const SEEDS: u64 = 3_000;

/// A number out of the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

fn run(name: &str, faults: Faults) {
    let alone = number("TAPIO_PAIR_SEED");
    let first = alone.or_else(|| number("TAPIO_SEED")).unwrap_or(0);
    let seeds = if alone.is_some() { 1 } else { SEEDS };
    let mut sum = Sums::default();
    let mut frames = 0;
    for seed in (0..seeds).map(|number| first.wrapping_add(number)) {
        let outcome = panic::catch_unwind(|| {
            let mut world = World::new(seed, faults);
            world.run();
            world
        });
        let world = outcome.unwrap_or_else(|_| panic!("{name}: failed with TAPIO_PAIR_SEED={seed}"));
        sum.add(&world.sums);
        frames += world.durable_frames();
    }
    println!("{name}: seeds from {first}: {frames} frames, {sum:?}");
    assert!(frames > 0);
    assert!(sum.gaps == 0 || faults.drops > 0);
    if faults.breaks == 0 {
        assert_eq!(sum, Sums::default());
    } else if alone.is_none() {
        // One seed may be lucky; so many are not.
        assert!(sum.breaks > 0 && sum.lost_bytes > 0 && sum.overtaken > 0 && sum.duplicates > 0, "{sum:?}");
        assert_eq!(sum.gaps > 0, faults.drops > 0, "{sum:?}");
    }
}

/// Scenario: a road that only delays, and cuts the bytes anywhere.
/// Guarantees: every frame arrives once, in order, and all are stored; nothing is sent twice.
#[test]
fn a_good_road() {
    run("good road", Faults::default());
}

/// Scenario: connections break at any byte, both ways; what was under way is lost, or arrives behind what its successor
/// brings.
/// Guarantees: every frame is durable exactly once, in order, and all are stored in the end.
#[test]
fn a_road_that_breaks() {
    run("breaks", Faults { breaks: 20, ..Faults::default() });
}

/// Scenario: besides, the aggregator dies with frames that are not durable, or loses its disk but not its store.
/// Guarantees: as above; frames between stored and received come again from the spool.
#[test]
fn an_aggregator_that_dies() {
    run("aggregator dies", Faults { breaks: 15, aggregator_dies: 8, disk_lost: 4, ..Faults::default() });
}

/// Scenario: besides, the source dies and begins a new life with its spool, and its quota drops frames.
/// Guarantees: as above; a frame that is not durable lies in a gap that was reported.
#[test]
fn a_source_that_dies() {
    let faults = Faults { breaks: 15, aggregator_dies: 5, disk_lost: 3, edge_dies: 6, drops: 6 };
    run("all faults", faults);
}
