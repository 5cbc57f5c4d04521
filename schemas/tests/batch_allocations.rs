//! What batches cost the allocator: nothing to open and read, nothing per event to write.
//!
//! This file is a program of its own because a global allocator counts for the whole process.
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
#![expect(unsafe_code, reason = "a counting allocator must implement an unsafe trait")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
};

use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder, BatchView},
    field::column,
    ledger::{Fate, Stage},
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is handed to the system's allocator as it came; counting touches only a constant-initialised
// thread local, which does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on; the pointer came from `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(mut work: impl FnMut()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

fn write(builder: &mut BatchBuilder, rows: u64) {
    const ROUTES: [&str; 4] = ["/orders", "/orders/{id}", "/pay", "/health"];
    for number in 0..rows {
        let mut row = builder.begin_row().unwrap();
        row.unsigned(column::core::time_micros, 1_700_000_000_000_000 + number * 37)
            .unsigned(column::core::kind, 5)
            .text(column::core::probe, "http")
            .unsigned(column::network::status, 200 + number % 3 * 150)
            .text(column::network::route, ROUTES[usize::try_from(number % 4).unwrap()])
            .sixteen(column::network::remote_address, u128::from(number % 9 + 1).to_be_bytes());
        if number % 3 == 0 {
            row.sixteen(column::trace::trace_id, u128::from(number * 7_919 + 1).to_be_bytes());
        }
        row.commit().unwrap();
    }
}

/// Scenario: a batch of 2,000 rows is opened and all of its rows are read.
/// Guarantees: neither allocates, and neither does the refusal of a corrupt one.
#[test]
fn opening_and_reading_allocate_nothing() {
    let mut builder = BatchBuilder::default();
    write(&mut builder, 2_000);
    builder.ledger_mut().add(Stage::Kernel, Fate::Lost, "http", "ring-full", 3);
    let mut bytes = AlignedVec::new();
    builder.finish(&mut bytes).unwrap();
    let mut sum = 0;
    let read = allocations(|| {
        let view = BatchView::open(&bytes).unwrap();
        for row in view.iter() {
            sum += row.unsigned(column::network::status)
                + row.text(column::network::route).len() as u64
                + u64::from(row.sixteen(column::trace::trace_id)[15]);
        }
    });
    assert_eq!((read, black_box(sum) > 0), (0, true));
    let middle = bytes.len() / 20;
    bytes[middle] ^= 0x55;
    assert_eq!(allocations(|| drop(black_box(BatchView::open(&bytes)))), 0);
}

/// Scenario: batches are written one after the other with one builder and one buffer.
/// Guarantees: from the third on, nothing is allocated, neither per event nor per batch.
#[test]
fn writing_allocates_nothing_in_steady_state() {
    let mut builder = BatchBuilder::default();
    let mut bytes = AlignedVec::new();
    for _warm_up in 0..2 {
        write(&mut builder, 2_000);
        builder.finish(&mut bytes).unwrap();
    }
    let written = allocations(|| {
        for _batch in 0..3 {
            write(&mut builder, 2_000);
            builder.finish(&mut bytes).unwrap();
        }
    });
    assert_eq!(written, 0);
}
