//! From the rows of a real batch to inputs.

use std::net::Ipv4Addr;

use tapio_correlation::{SourceContext, observe::RELATIONS_PER_BATCH_MAX, observe_batch};
use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder, BatchLimits, BatchView},
    entity::RelationKind,
    field::column::{core, entity, kernel, network, trace},
    ids::{FrameId, Incarnation, Sequence},
    intent::LinkKind,
    ledger::{Fate, Stage},
    observation::{Input, Value},
    units::{Micros, UnixMicros},
};

use crate::story::{rules, source};

/// Scenario: a batch with a refused call, a served error, an OOM kill and a hundred rows that no rule needs.
/// Guarantees: three observations with their entity, peer, trace and fields; relations once each; the ledger.
#[test]
fn rows_become_inputs() {
    let mut builder = BatchBuilder::new(BatchLimits::default());
    let loopback = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
    for number in 0..100_u64 {
        let mut row = builder.begin_row().unwrap();
        row.unsigned(core::time_micros, 1_000 + number)
            .text(core::intent, "syscall-failed")
            .unsigned(core::count, 1);
        row.commit().unwrap();
    }
    for number in 0..2_u64 {
        let mut row = builder.begin_row().unwrap();
        row.unsigned(core::time_micros, 2_000 + number)
            .unsigned(core::time_error_micros, 3)
            .text(core::intent, "connection-refused")
            .unsigned(core::count, 5)
            .unsigned(core::duration_micros, 100)
            .text(core::probe, "tcp_state")
            .text(entity::container_id, "aa")
            .text(entity::pod_uid, "pod-a")
            .unsigned(kernel::pid, 7)
            .unsigned(kernel::start_boot_nanos, 8)
            .sixteen(network::remote_address, loopback)
            .unsigned(network::remote_port, 81)
            .text(network::direction, "out");
        row.commit().unwrap();
    }
    let mut row = builder.begin_row().unwrap();
    row.unsigned(core::time_micros, 3_000)
        .text(core::intent, "request-served-error")
        .text(entity::container_id, "bb")
        .sixteen(trace::trace_id, [5; 16])
        .unsigned(trace::link, u64::from(LinkKind::Observed.code()))
        .sixteen(network::local_address, Ipv4Addr::new(10, 0, 0, 9).to_ipv6_mapped().octets())
        .unsigned(network::local_port, 80)
        .unsigned(network::status, 500)
        .text(network::direction, "in");
    row.commit().unwrap();
    let ledger = builder.ledger_mut();
    ledger.since = UnixMicros(900);
    ledger.until = UnixMicros(4_000);
    ledger.add(Stage::Kernel, Fate::Carried, "tcp_state", "", 103);
    let mut bytes = AlignedVec::new();
    builder.finish(&mut bytes).unwrap();
    let view = BatchView::open(&bytes).unwrap();

    let frame = FrameId { source: source("node-a"), incarnation: Incarnation(2), sequence: Sequence(3) };
    let context = SourceContext { node: "node-a", clock_error: Micros(40), missing_probes: &[] };
    let (mut observations, mut relations, mut progress) = (Vec::new(), Vec::new(), Vec::new());
    let left_out = observe_batch(&view, frame, &context, &rules(), &mut |input| match input {
        Input::Observation(it) => observations.push(it),
        Input::Relation(it) => relations.push(it),
        Input::Progress(it) => progress.push(it),
    });
    assert_eq!((observations.len(), left_out), (3, 0));
    let refused = &observations[0];
    assert_eq!((refused.id, refused.count), (frame.row(100), 5));
    assert_eq!((refused.time.earliest, refused.time.latest), (UnixMicros(1_957), UnixMicros(2_043)));
    assert_eq!(refused.subject.to_string(), "container:aa");
    assert_eq!(refused.process.as_ref().unwrap().id, "node-a/7/8");
    assert_eq!(refused.peer.as_ref().unwrap().id, "node-a|127.0.0.1:81");
    let failed = &observations[2];
    assert_eq!(failed.attributes.get("network.status"), Some(&Value::Integer(500)));
    assert_eq!((failed.trace.unwrap().0, failed.trace_link), ([5; 16], LinkKind::Observed));
    let told: Vec<_> = relations.iter().map(|it| (it.kind, it.from.id.as_str(), it.to.id.as_str())).collect();
    assert_eq!(
        told,
        [
            (RelationKind::Listens, "bb", "10.0.0.9:80"),
            (RelationKind::Calls, "aa", "node-a|127.0.0.1:81"),
            (RelationKind::RunsIn, "aa", "pod-a"),
        ]
    );
    // Five calls took 100 µs together: one took 20.
    assert_eq!((relations[1].since, relations[1].until), (UnixMicros(2_000), UnixMicros(2_021)));
    assert_eq!((progress.len(), progress[0].ledger.until), (1, UnixMicros(4_000)));
}

/// Scenario: one batch in which a scanner calls a hundred endpoints more than a batch may tell.
/// Guarantees: the relations that are told are as many as may be, and the others are counted.
#[test]
fn relations_beyond_the_limit_are_counted() {
    let mut builder = BatchBuilder::new(BatchLimits::default());
    let count = RELATIONS_PER_BATCH_MAX + 100;
    for number in 0..count {
        let mut row = builder.begin_row().unwrap();
        row.unsigned(core::time_micros, 1_000)
            .text(core::intent, "connection-opened")
            .unsigned(core::count, 1)
            .text(entity::container_id, "aa")
            .sixteen(network::remote_address, Ipv4Addr::new(10, 0, 0, 9).to_ipv6_mapped().octets())
            .unsigned(network::remote_port, u64::try_from(number).unwrap() + 1)
            .text(network::direction, "out");
        row.commit().unwrap();
    }
    let mut bytes = AlignedVec::new();
    builder.finish(&mut bytes).unwrap();
    let view = BatchView::open(&bytes).unwrap();
    let frame = FrameId { source: source("node-a"), incarnation: Incarnation(2), sequence: Sequence(3) };
    let context = SourceContext { node: "node-a", clock_error: Micros(40), missing_probes: &[] };
    let mut relations = 0;
    let left_out = observe_batch(&view, frame, &context, &rules(), &mut |input| {
        relations += usize::from(matches!(input, Input::Relation(_)));
    });
    assert_eq!((relations, left_out), (RELATIONS_PER_BATCH_MAX, 100));
}
