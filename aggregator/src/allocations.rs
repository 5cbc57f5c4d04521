//! What the hot path allocates per frame: a number that does not grow with the events of the frame.
#![allow(unsafe_code, reason = "counting allocations needs an allocator of one's own")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
};

use bytes::Bytes;
use tapio_daemon::Registry;
use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder},
    event::{Core, Entity, Kernel, Network, Trace, UnifiedEvent},
    ids::{SourceId, TraceId},
    intent::EventKind,
};
use tapio_wire::{
    Position,
    frame::{FrameEncoder, FrameLimits, FrameMeta},
};

use crate::{
    clock::now,
    context::Context,
    intake::check::Checker,
    live::{self, EventFilter},
    metrics::Metrics,
    pipeline::{
        cut::Fragments,
        encode::{Encoder, Own},
        record::{self, Kind, Record},
    },
    recording::{self, Tape},
};

/// Counts what each thread asks for, and leaves the rest to the system's allocator.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator as it came; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more, and nobody who reads it.
        let _ended = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and the memory came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ended = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `realloc`, and the memory came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

fn frame(source: SourceId, events: u32) -> Vec<u8> {
    let mut batch = BatchBuilder::default();
    for number in 0..events {
        let event = UnifiedEvent {
            core: Core {
                time_micros: now().0 + u64::from(number),
                kind: EventKind::Network,
                count: 1,
                intent: "connection-opened".to_owned(),
                ..Core::default()
            },
            trace: (number % 30 == 0).then(|| Trace { trace_id: TraceId([9; 16]), ..Trace::default() }),
            entity: Some(Entity { pod_uid: format!("pod-{}", number % 7), ..Entity::default() }),
            kernel: Some(Kernel { pid: number, path: format!("/tmp/{}", number % 5), ..Kernel::default() }),
            network: Some(Network { local_port: 80, ..Network::default() }),
            ..UnifiedEvent::default()
        };
        batch.push_event(&event).unwrap();
    }
    let mut bytes = AlignedVec::new();
    batch.finish(&mut bytes).unwrap();
    let meta = FrameMeta::new(Position::new(1, u64::from(events)).of_source(source), events);
    let mut out = Vec::new();
    FrameEncoder::new(FrameLimits::default()).unwrap().encode(meta, &bytes, &mut out).unwrap();
    out
}

/// Scenario: frames of 100 and of 10,000 events pass the check, in steady state.
/// Guarantees: neither allocates anything: bytes are opened and checked in buffers that are kept.
#[test]
fn checking_a_frame_allocates_nothing() {
    let source = SourceId([1; 16]);
    let mut checker = Checker::new(source).unwrap();
    let (small, large) = (frame(source, 100), frame(source, 10_000));
    let mut check = |frame: &[u8]| {
        count(|| {
            let (_header, view) = checker.open(frame, now()).unwrap();
            assert!(view.rows() > 0);
        })
    };
    check(&large);
    assert_eq!((check(&small), check(&large)), (0, 0));
}

/// Scenario: accepted frames of 100 and of 10,000 events are kept for a recording; then nothing is recorded.
/// Guarantees: a frame that is recorded costs the intake one allocation, whatever is in it; otherwise none.
#[test]
fn recording_costs_the_intake_little() {
    let (tape, _recorder, _source) = recording::recording();
    let (off, _recorder) = recording::nothing();
    let missing = Arc::from(["exit: failed".to_owned()]);
    let frames = [100, 10_000].map(|events| Bytes::from(frame(SourceId([1; 16]), events)));
    // As they arrive they are shared already: the spool has them too.
    let _shared = frames.clone();
    let keep = |tape: &Tape, frame| count(|| drop(tape.keep("n1", &missing, now(), frame)));
    assert_eq!(frames.each_ref().map(|frame| (keep(&tape, frame), keep(&off, frame))), [(1, 0); 2]);
}

/// Scenario: an accepted frame comes to where subscribers are fed, and there are none; then there is one.
/// Guarantees: without subscribers nothing is allocated; with one, what is allocated is of the frame, not of its events.
#[test]
fn subscribers_cost_the_intake_nothing_where_there_are_none() {
    let source = SourceId([1; 16]);
    let metrics = Metrics::register(&Registry::new()).live;
    let (live, tap, _distributor) = live::live("demo", metrics).unwrap();
    let (small, large) = (Bytes::from(frame(source, 100)), Bytes::from(frame(source, 10_000)));
    let offer = |bytes: &Bytes, events| {
        count(|| {
            // As the session does.
            if let Some(bytes) = tap.is_wanted("n1").then(|| bytes.clone()) {
                tap.offer(Position::new(1, 1).of_source(source), "n1", bytes, events);
            }
        })
    };
    offer(&small, 100);
    assert_eq!((offer(&small, 100), offer(&large, 10_000)), (0, 0));
    let _subscription = live.subscribe(EventFilter::default());
    offer(&small, 100);
    let (of_small, of_large) = (offer(&small, 100), offer(&large, 10_000));
    // The queue allocates a block now and then.
    assert!(of_small <= 4 && of_large <= 4, "{of_small} and {of_large} allocations");
}

/// Scenario: frames of 100 and of 10,000 events are encoded for the store, after a block of the same kind before.
/// Guarantees: what is allocated is the same small number for both: it is of the frame, not of its events.
#[test]
fn encoding_rows_allocates_per_frame_only() {
    let source = SourceId([1; 16]);
    let own = Own {
        tenant: "default".to_owned(),
        cluster: "demo".to_owned(),
        node_prefix: "spiffe://t/".to_owned(),
        name: "a".to_owned(),
        source,
    };
    let mut encoder = Encoder::new(own, Context::default()).unwrap();
    let record = |events| {
        let mut bytes = record::head(Kind::Frame, now(), "n1");
        bytes.extend_from_slice(&frame(source, events));
        bytes
    };
    let (small, large) = (record(100), record(10_000));
    let mut encode = |bytes: &[u8]| {
        encoder.begin(0);
        // Each block learns its dictionary once; the second frame of a block is the steady state.
        encoder.push(0, &Record::read(bytes).unwrap(), &Fragments::default()).unwrap();
        count(|| encoder.push(1, &Record::read(bytes).unwrap(), &Fragments::default()).unwrap())
    };
    encode(&large);
    encode(&large);
    let (of_small, of_large) = (encode(&small), encode(&large));
    assert!(of_small <= 16 && of_large <= of_small + 2, "{of_small} and {of_large} allocations");
}
