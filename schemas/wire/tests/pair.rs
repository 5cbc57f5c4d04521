//! Both ends of a session in one process, over a road that breaks, delays and cuts, driven by a seed.
//!
//! `TAPIO_SEED` runs one seed and prints what happens; a failure prints its seed.
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

use world::{Faults, World};

const SEEDS: u64 = 3_000;

fn run(name: &str, faults: Faults) {
    let seeds = std::env::var("TAPIO_SEED").map_or(0..SEEDS, |seed| {
        let seed = seed.parse().expect("TAPIO_SEED is a number");
        seed..seed + 1
    });
    let (mut breaks, mut duplicates, mut gaps, mut frames) = (0, 0, 0, 0);
    for seed in seeds {
        let outcome = panic::catch_unwind(|| {
            let mut world = World::new(seed, faults);
            world.run();
            world
        });
        let world = outcome.unwrap_or_else(|_| panic!("{name}: failed with TAPIO_SEED={seed}"));
        breaks += world.breaks;
        duplicates += world.duplicates;
        gaps += world.gaps;
        frames += world.durable_frames();
    }
    println!("{name}: {frames} frames, {breaks} breaks, {duplicates} duplicates refused, {gaps} gaps");
    assert!(frames > 0);
    assert_eq!(breaks > 0, faults.breaks > 0);
    assert!(gaps == 0 || faults.drops > 0);
}

/// Scenario: a road that only delays, and cuts the bytes anywhere.
/// Guarantees: every frame arrives once, in order, and all are stored; nothing is sent twice.
#[test]
fn a_good_road() {
    run("good road", Faults::default());
}

/// Scenario: connections break at any byte, both ways; what was under way may still arrive, or not.
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
