//! `GET /events` and `GET /events/{id}`.

use std::collections::BTreeSet;

use tapio_central::history::events::StoredEvent;
use tapio_schemas::{
    event::{Entity, Trace, UnifiedEvent},
    field::{Cell, CellType, FIELDS},
    ids::{EventId, TraceId},
    intent::{EventKind, Severity},
    units::{Micros, UnixMicros},
};

use crate::{
    rows::{EntityRow, EventRow},
    samples::{event, event_id},
    world::{Query, World, now, rfc3339},
};

fn ids(events: &[StoredEvent]) -> Vec<EventId> {
    events.iter().map(|stored| stored.event.id).collect()
}

/// Every field filled with a value that only it has, the largest that fits where it matters.
fn full(id: EventId, at: UnixMicros) -> UnifiedEvent {
    let mut event = UnifiedEvent { id, ..UnifiedEvent::default() };
    for spec in FIELDS {
        let number = u64::from(spec.id);
        let text = format!("{}: it's \\ \"quoted\"\t\n🦀 {number}", spec.column);
        let cell = match (spec.cell, spec.clickhouse) {
            (CellType::Unsigned, "UInt64") => Cell::Unsigned(u64::MAX - number),
            (CellType::Unsigned, "UInt32") => Cell::Unsigned(u64::from(u32::MAX) - number),
            (CellType::Unsigned, "UInt16") => Cell::Unsigned(u64::from(u16::MAX) - number),
            (CellType::Unsigned, "UInt8") => Cell::Unsigned(1),
            (CellType::Unsigned, _) => Cell::Unsigned(at.0),
            (CellType::Signed, _) => Cell::Signed(-1),
            (CellType::Float, _) => Cell::Float(0.1 + f64::from(spec.id)),
            (CellType::Sixteen, _) => Cell::Sixteen([u8::try_from(number).unwrap(); 16]),
            (CellType::Symbol, _) => Cell::Symbol(&text),
        };
        assert!(event.set(spec.layer, spec.id, cell), "{}", spec.column);
    }
    event
}

/// Scenario: an event with every field filled, to its type's limits, and one with almost none.
/// Guarantees: both come back field by field, from the list and by id; absent layers stay absent.
#[test]
fn every_field_comes_back() {
    let Some(mut world) = World::start() else { return };
    let at = now().minus(Micros::from_secs(60));
    let id = event_id(0xff, u64::MAX, u64::MAX - 1, u32::MAX);
    let rich = EventRow { event: full(id, at), ..event(id, at) };
    let bare = event(event_id(1, 2, 3, 4), at.minus(Micros(1)));
    world.insert_events(&[rich.clone(), bare.clone()]);

    let expected: Vec<StoredEvent> = [rich, bare]
        .map(|row| StoredEvent { cluster: row.cluster, node: row.node, pod: None, event: row.event })
        .into();
    assert_eq!(world.items::<StoredEvent>("/events", &[]), expected);
    for stored in &expected {
        let path = format!("/events/{}", stored.event.id);
        assert_eq!(world.api.get::<StoredEvent>(&path, &[]).unwrap(), *stored);
    }
    let answer = world.ask("GET", &format!("/api/v1/events/{}", expected[1].event.id));
    let json: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    let names: BTreeSet<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from(["cluster", "count", "id", "node", "time_micros"]));
}

/// Scenario: events that differ in one property each; every filter alone and two together.
/// Guarantees: each filter selects exactly its events, `severity_min` is a lower bound, times are [since, until), and
/// without `since` the list reaches back an hour.
#[test]
fn each_filter_selects() {
    let Some(mut world) = World::start() else { return };
    let start = now().minus(Micros::from_secs(600));
    let at = |seconds| start.plus(Micros::from_secs(seconds));
    let mut rows: Vec<EventRow> = (0..9).map(|n| event(event_id(1, 1, n, 0), at(n))).collect();
    rows[1].cluster = "c2".to_owned();
    rows[2].node = "n2.example".to_owned();
    rows[3].event.core.intent = "oom-kill".to_owned();
    rows[4].event.core.kind = EventKind::Memory;
    rows[5].event.core.severity = Severity::Warning;
    rows[6].event.core.severity = Severity::Critical;
    let entity = Entity {
        container_id: "ab".repeat(32),
        pod_uid: "6f1c5a9e-0000-4000-8000-000000000001".to_owned(),
        ..Entity::default()
    };
    rows[7].event.entity = Some(entity.clone());
    let trace_id = TraceId([0x4b, 0xf9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
    rows[8].event.trace = Some(Trace { trace_id, ..Trace::default() });
    world.insert_events(&rows);
    world.insert_events(&[event(event_id(1, 1, 100, 0), now().minus(Micros::from_secs(3_700)))]);

    let trace = trace_id.to_string();
    let (third, fourth) = (rfc3339(at(3)), rfc3339(at(4)));
    let cases: &[(Query<'_>, &[usize])] = &[
        (&[], &[8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (&[("cluster", "c2")], &[1]),
        (&[("node", "n2.example")], &[2]),
        (&[("intent", "oom-kill")], &[3]),
        (&[("kind", "memory")], &[4]),
        (&[("severity_min", "warning")], &[6, 5]),
        (&[("severity_min", "critical")], &[6]),
        (&[("severity_min", "info"), ("node", "n2.example")], &[2]),
        (&[("container_id", &entity.container_id)], &[7]),
        (&[("pod_uid", &entity.pod_uid)], &[7]),
        (&[("trace_id", &trace)], &[8]),
        (&[("trace_id", "4BF900")], &[8]),
        (&[("trace_id", "4bf901")], &[]),
        (&[("trace_id", "0000")], &[]),
        (&[("trace_id", "00000000000000000000000000000001")], &[]),
        (&[("since", &third)], &[8, 7, 6, 5, 4, 3]),
        (&[("until", &third)], &[2, 1, 0]),
        (&[("since", &third), ("until", &fourth)], &[3]),
        (&[("since", &third), ("until", &fourth), ("kind", "memory")], &[]),
        (&[("since", "9999-12-31T23:59:59Z")], &[]),
    ];
    for (query, expected) in cases {
        let expected: Vec<EventId> = expected.iter().map(|index| rows[*index].event.id).collect();
        assert_eq!(ids(&world.items("/events", query)), expected, "{query:?}");
    }
    let ever = [("since", "1970-01-01T00:00:00Z"), ("until", "9999-12-31T23:59:59Z")];
    assert_eq!(world.items::<StoredEvent>("/events", &ever).len(), 10);
}

/// Scenario: the same uid in two clusters, and two pods of one name in two namespaces; one of them has had no name at
/// first.
/// Guarantees: an event says what its own cluster's pod is called, and nothing where that is not known; `pod` selects by
/// name, by namespace and name, and by the beginning of the uid, and no other event.
#[test]
fn pods_are_named_and_found_by_name() {
    let Some(mut world) = World::start() else { return };
    let start = now().minus(Micros::from_secs(600));
    let about = |row: u64, cluster: &str, uid: &str| {
        let mut about = event(event_id(1, 1, row, 0), start.plus(Micros(row)));
        about.cluster = cluster.to_owned();
        about.event.entity = Some(Entity { pod_uid: uid.to_owned(), ..Entity::default() });
        about
    };
    let rows =
        [about(0, "c1", "u-1"), about(1, "c2", "u-1"), about(2, "c1", "u-2"), about(3, "c1", "web-1-uid")];
    world.insert_events(&rows);
    world.insert_events(&[event(event_id(1, 1, 4, 0), start.plus(Micros(4)))]);
    let pod = |id: &str, names: &[(&'static str, &'static str)], until| EntityRow {
        cluster: "c1".to_owned(),
        kind: "pod",
        id: id.to_owned(),
        names: names.to_vec(),
        since: start,
        until,
    };
    let (shop, games) =
        ([("namespace", "shop"), ("pod", "web-1")], [("namespace", "games"), ("pod", "web-1")]);
    world.insert_entities(&[pod("u-1", &[], start.plus(Micros(9))), pod("u-2", &games, start)]);
    world.insert_entities(&[pod("u-1", &shop, start.plus(Micros(9)))]);

    let stored: Vec<StoredEvent> = world.items("/events", &[]);
    let names: Vec<Option<&str>> = stored.iter().map(|stored| stored.pod.as_deref()).collect();
    assert_eq!(names, [None, None, Some("games/web-1"), None, Some("shop/web-1")]);
    let one: StoredEvent = world.api.get(&format!("/events/{}", rows[0].event.id), &[]).unwrap();
    assert_eq!(one.pod.as_deref(), Some("shop/web-1"));
    for (pod, expected) in [
        ("web-1", &[3, 2, 0][..]),
        ("shop/web-1", &[0]),
        ("games/web-1", &[2]),
        ("u-1", &[1, 0]),
        ("web-2", &[]),
        ("/", &[]),
        ("' OR 1=1 --", &[]),
    ] {
        let expected: Vec<EventId> = expected.iter().map(|index| rows[*index].event.id).collect();
        assert_eq!(ids(&world.items("/events", &[("pod", pod)])), expected, "{pod:?}");
    }
}

/// Scenario: twenty-four events in two microseconds, of several sources, incarnations, frames and rows (numbers whose
/// order as text would differ), read with many page sizes; once more while events arrive between pages.
/// Guarantees: each that existed at the start comes exactly once, in one order for all page sizes.
#[test]
fn pages_hold_each_event_once() {
    let Some(mut world) = World::start() else { return };
    let start = now().minus(Micros::from_secs(600));
    let mut rows = Vec::new();
    for source in [1, 0xfe] {
        for (incarnation, sequence) in [(9, 10), (10, 9), (10, u64::MAX)] {
            for row in [2, 10] {
                let id = event_id(source, incarnation, sequence, row);
                rows.push(event(id, start));
                rows.push(event(EventId { row: row + 100, ..id }, start.plus(Micros(1))));
            }
        }
    }
    for part in rows.chunks(5) {
        world.insert_events(part);
    }
    let mut expected: Vec<(u64, EventId)> =
        rows.iter().map(|row| (row.event.core.time_micros, row.event.id)).collect();
    expected.sort_unstable();
    let expected: Vec<EventId> = expected.into_iter().rev().map(|(_at, id)| id).collect();
    for limit in [1, 2, 3, 5, 7, 11, 12, 13, 23, 24, 25] {
        let seen: Vec<StoredEvent> = world.walk("/events", &[], limit, |_world, _page| {});
        assert_eq!(ids(&seen), expected, "pages of {limit}");
    }

    let existing: BTreeSet<EventId> = expected.iter().copied().collect();
    for limit in [1, 4, 7] {
        let seen: Vec<StoredEvent> = world.walk("/events", &[("since", "15m")], limit, |world, page| {
            let sequence = (limit * 1_000 + page) as u64;
            let times = [start.minus(Micros(1)), start, start.plus(Micros(1)), start.plus(Micros(2))];
            let arrived: Vec<EventRow> = times
                .into_iter()
                .zip(0..)
                .map(|(at, row)| event(event_id(0x80, 1, sequence, row), at))
                .collect();
            world.insert_events(&arrived);
        });
        let unique: BTreeSet<EventId> = ids(&seen).into_iter().collect();
        assert_eq!(unique.len(), seen.len(), "pages of {limit} repeat an event");
        let kept: Vec<EventId> = ids(&seen).into_iter().filter(|id| existing.contains(id)).collect();
        assert_eq!(kept, expected, "pages of {limit}");
    }
}

/// Scenario: an event's id with one part changed at a time, and texts that are no ids.
/// Guarantees: only the exact id finds it; an id of nothing is not found; what is no id names the parameter.
#[test]
fn one_event_by_its_id() {
    let Some(mut world) = World::start() else { return };
    let id = event_id(7, 2, 3, 4);
    world.insert_events(&[event(id, now().minus(Micros::from_secs(20 * 24 * 3_600)))]);
    assert_eq!(world.api.get::<StoredEvent>(&format!("/events/{id}"), &[]).unwrap().event.id, id);
    for other in [event_id(8, 2, 3, 4), event_id(7, 1, 3, 4), event_id(7, 2, 4, 4), event_id(7, 2, 3, 5)] {
        let unknown = world.refused(&format!("/events/{other}"));
        assert_eq!((unknown.status, unknown.kind.as_str()), (404, "urn:tapio:problem:not-found"));
    }
    let source = "07".repeat(16);
    let bad = ["1", "%FF", "f-71aa", &format!("{source}-2-3"), &format!("{source}-2-3-4-5")];
    let out_of_range = [format!("{source}-2-3-4294967296"), format!("{source}-2-18446744073709551616-4")];
    for text in bad.into_iter().chain(out_of_range.iter().map(String::as_str)) {
        let problem = world.refused(&format!("/events/{text}"));
        assert_eq!((problem.status, problem.errors.len()), (400, 1), "{text}");
        assert_eq!(problem.errors[0].parameter, "id", "{text}");
    }
}
