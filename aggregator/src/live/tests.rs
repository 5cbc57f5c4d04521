use tapio_daemon::Registry;
use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder, BatchView},
    event::{Core, Entity, Kernel, Trace, UnifiedEvent},
    ids::{SourceId, TraceId},
    intent::{EventKind, Severity},
};
use tapio_wire::{
    Position,
    frame::{FrameEncoder, FrameLimits, FrameMeta},
};

use super::{filter::Scratch, *};
use crate::{clock::now, metrics::Metrics};

const SOURCE: SourceId = SourceId([3; 16]);

fn parts() -> (Live, Tap, Distributor, LiveMetrics) {
    let metrics = Metrics::register(&Registry::new()).live;
    let (live, tap, distributor) = live("demo", metrics.clone()).unwrap();
    (live, tap, distributor, metrics)
}

/// Events that differ in everything that a filter looks at; each has its number as its process.
fn events(numbers: std::ops::Range<u32>) -> Vec<UnifiedEvent> {
    let event = |number: u32| UnifiedEvent {
        core: Core {
            time_micros: now().0,
            kind: EventKind::from_code(u8::try_from(number % 5).unwrap()),
            severity: Severity::from_code(u8::try_from(number % 7).unwrap()),
            count: 1,
            ..Core::default()
        },
        trace: number.is_multiple_of(3).then(|| Trace {
            trace_id: TraceId([u8::try_from(number % 4).unwrap() + 1; 16]),
            ..Trace::default()
        }),
        entity: number.is_multiple_of(2).then(|| Entity {
            container_id: format!("{:064x}", number % 11),
            pod_uid: format!("pod-{}", number % 13),
            ..Entity::default()
        }),
        kernel: Some(Kernel { pid: number, ..Kernel::default() }),
        ..UnifiedEvent::default()
    };
    numbers.map(event).collect()
}

fn batch(events: &[UnifiedEvent]) -> AlignedVec {
    let mut batch = BatchBuilder::default();
    for event in events {
        batch.push_event(event).unwrap();
    }
    let mut bytes = AlignedVec::new();
    batch.finish(&mut bytes).unwrap();
    bytes
}

fn frame(sequence: u64, events: &[UnifiedEvent]) -> (FrameId, Bytes) {
    let id = Position::new(1, sequence).of_source(SOURCE);
    let rows = u32::try_from(events.len()).unwrap();
    let mut out = Vec::new();
    let mut encoder = FrameEncoder::new(FrameLimits::default()).unwrap();
    encoder.encode(FrameMeta::new(id, rows), &batch(events), &mut out).unwrap();
    (id, out.into())
}

fn offer(tap: &Tap, sequence: u64, events: &[UnifiedEvent]) {
    let (id, bytes) = frame(sequence, events);
    tap.offer(id, "n1", bytes, u32::try_from(events.len()).unwrap());
}

fn wants(filter: &EventFilter, event: &UnifiedEvent) -> bool {
    let entity = event.entity.clone().unwrap_or_default();
    (filter.kinds.is_empty() || filter.kinds.contains(&event.core.kind))
        && event.core.severity >= filter.severity_min
        && (filter.container_ids.is_empty() || filter.container_ids.contains(&entity.container_id))
        && (filter.pod_uids.is_empty() || filter.pod_uids.contains(&entity.pod_uid))
        && (filter.trace_ids.is_empty()
            || event.trace.as_ref().is_some_and(|trace| filter.trace_ids.contains(&trace.trace_id)))
}

/// Scenario: batches of different sizes and every combination of filters, also ones that nothing meets.
/// Guarantees: the rows that are found in the columns are those whose events meet the filter.
#[test]
fn columns_are_filtered_as_events_would_be() {
    let all = events(0..500);
    let (mut scratch, mut rows, mut found) = (Scratch::default(), Vec::new(), 0);
    for size in [0, 1, 63, 500] {
        let events = &all[..size];
        let bytes = batch(events);
        let view = BatchView::open(&bytes).unwrap();
        for choice in 0..64_u32 {
            let has = |bit: u32| choice >> bit & 1 == 1;
            let filter = EventFilter {
                nodes: if has(5) { vec!["n3".parse().unwrap(), "n1".parse().unwrap()] } else { Vec::new() },
                kinds: if has(0) { vec![EventKind::Memory, EventKind::Network] } else { Vec::new() },
                severity_min: if has(1) { Severity::Warning } else { Severity::Info },
                container_ids: if has(2) { [4, 7].map(|it| format!("{it:064x}")).into() } else { Vec::new() },
                pod_uids: if has(3) { ["pod-4", "pod-9"].map(str::to_owned).into() } else { Vec::new() },
                trace_ids: if has(4) { vec![TraceId([1; 16]), TraceId([9; 16])] } else { Vec::new() },
            };
            filter.select(&view, "n1", &mut scratch, &mut rows);
            let expected: Vec<u32> = (0..)
                .zip(events)
                .filter(|(_row, event)| wants(&filter, event))
                .map(|(row, _event)| row)
                .collect();
            assert_eq!(rows, expected, "{filter:?} of {size}");
            found += rows.len();
            filter.select(&view, "n2", &mut scratch, &mut rows);
            assert_eq!(rows.len(), if has(5) { 0 } else { expected.len() });
        }
    }
    assert!(found > 1_000, "{found}");
}

/// Scenario: nobody subscribes; then somebody does to one node, somebody else to all, and both go again.
/// Guarantees: a frame is wanted only in between, and while only one node is subscribed to, only one of that node.
#[test]
fn nothing_is_wanted_without_a_subscriber() {
    let (live, tap, _distributor, _metrics) = parts();
    let wanted = || ["n1", "n2"].map(|node| tap.is_wanted(node));
    assert_eq!(wanted(), [false, false]);
    let one = live.subscribe(EventFilter { nodes: vec!["n1".parse().unwrap()], ..EventFilter::default() });
    assert_eq!(wanted(), [true, false]);
    let all = live.subscribe(EventFilter::default());
    assert_eq!(wanted(), [true, true]);
    drop(all);
    assert_eq!(wanted(), [true, false]);
    drop(one);
    assert_eq!(wanted(), [false, false]);
}

/// Scenario: far more comes than fits into a subscriber's queue; it takes a little, more comes, it takes all.
/// Guarantees: what it gets is in order, and wherever something is left out it is told before what follows how much;
/// told and missed together are all. The distributor waited for nobody.
#[test]
fn a_slow_subscriber_is_told_what_it_missed() {
    let (live, tap, mut distributor, metrics) = parts();
    let mut slow = live.subscribe(EventFilter::default());
    let all = events(0..60_000);
    let mut frames = (1..).zip(all.chunks(1_000));
    let (mut next, mut told, mut missed) = (0, 0, 0);
    for (arriving, taken) in [(40, 5), (20, usize::MAX)] {
        for (sequence, events) in frames.by_ref().take(arriving) {
            offer(&tap, sequence, events);
        }
        distributor.work_off();
        for delivery in std::iter::from_fn(|| slow.try_next()).take(taken) {
            assert_eq!(delivery.missed.server_busy, 0);
            next += delivery.missed.slow_subscriber;
            missed += delivery.missed.slow_subscriber;
            for event in delivery.events {
                // The first has no process: zero is absent.
                assert_eq!(u64::from(event.kernel.unwrap_or_default().pid), next);
                (next, told) = (next + 1, told + 1);
            }
        }
    }
    assert_eq!(next, 60_000);
    assert!(told > 1_000 && missed > 1_000, "{told} {missed}");
    assert_eq!(metrics.missed.get("slow-subscriber"), missed);
}

/// Scenario: more frames are offered than may wait while the distributor does nothing; then it does its work.
/// Guarantees: nobody waits; what was not taken is told to the subscriber as the server's fault, and nothing else is
/// missing.
#[test]
fn a_busy_server_tells_what_it_left_out() {
    let (live, tap, mut distributor, metrics) = parts();
    let mut subscription = live.subscribe(EventFilter::default());
    let events = events(0..10);
    for sequence in 1..=FRAMES_WAITING_MAX as u64 + 5 {
        offer(&tap, sequence, &events);
    }
    distributor.work_off();
    let (mut told, mut missed) = (0, Missed::default());
    while let Some(delivery) = subscription.try_next() {
        assert_eq!(
            missed.server_busy, 0,
            "what was left out is told in its place, behind all that was taken"
        );
        told += delivery.events.len();
        missed.server_busy += delivery.missed.server_busy;
        missed.slow_subscriber += delivery.missed.slow_subscriber;
    }
    assert_eq!((missed.server_busy, metrics.missed.get("server-busy")), (50, 50));
    assert_eq!(told + usize::try_from(missed.slow_subscriber).unwrap(), FRAMES_WAITING_MAX * 10);
}

/// Scenario: an event with the largest texts, many times.
/// Guarantees: no message is larger than a client accepts by default.
#[test]
fn messages_stay_below_what_clients_accept() {
    use prost::Message;
    let (live, tap, mut distributor, _metrics) = parts();
    let mut subscription = live.subscribe(EventFilter::default());
    let text = |letter: char| letter.to_string().repeat(tapio_schemas::batch::TEXT_BYTES_MAX);
    let large = UnifiedEvent {
        raw: Some(tapio_schemas::event::Raw { format: text('f'), body: text('b') }),
        application: Some(tapio_schemas::event::Application {
            logger: text('l'),
            message_template: text('m'),
            parameters: text('p'),
            error_type: text('e'),
            stack_trace: text('s'),
        }),
        ..events(0..1).remove(0)
    };
    offer(&tap, 1, &vec![large; 100]);
    distributor.work_off();
    let mut sizes = Vec::new();
    while let Some(delivery) = subscription.try_next() {
        sizes.push(delivery.events.iter().map(Message::encoded_len).sum::<usize>());
    }
    assert!(sizes.len() > 1 && sizes.iter().all(|size| *size < 4 << 20), "{sizes:?}");
}
