//! `GET /entities`.

use std::collections::{BTreeMap, BTreeSet};

use tapio_central::history::entities::StoredEntity;
use tapio_schemas::units::{Micros, UnixMicros};

use crate::{
    rows::EntityRow,
    world::{Query, World, now, rfc3339},
};

fn row(kind: &'static str, id: &str, since: UnixMicros, until: UnixMicros) -> EntityRow {
    EntityRow { cluster: "c1".to_owned(), kind, id: id.to_owned(), names: Vec::new(), since, until }
}

fn ids(entities: &[StoredEntity]) -> Vec<&str> {
    entities.iter().map(|entity| entity.id.as_str()).collect()
}

/// Scenario: entities that differ in one property each; one that was gone and came back; one last known long ago.
/// Guarantees: each filter selects exactly its entities, those that are younger first; `since` is about when one was
/// last known and never shortens the life that is told.
#[test]
fn each_filter_selects() {
    let Some(mut world) = World::start() else { return };
    let hours = |hours: u64| now().minus(Micros::from_secs(hours * 3_600));
    let [long_ago, before, recent, last] = [hours(24 * 9), hours(24 * 8), hours(3), hours(1)];
    let mut elsewhere = row("pod", "p-2", recent.plus(Micros(2)), last);
    elsewhere.cluster = "c2".to_owned();
    world.insert_entities(&[
        row("pod", "p-1", recent, last),
        elsewhere,
        row("container", "k-1", recent.plus(Micros(1)), last),
        row("pod", "gone", long_ago, before),
        row("pod", "back", long_ago, before),
    ]);
    world.insert_entities(&[row("pod", "back", recent, last.plus(Micros(5)))]);

    let cases: &[(Query<'_>, &[&str])] = &[
        (&[], &["p-2", "k-1", "p-1", "back"]),
        (&[("cluster", "c2")], &["p-2"]),
        (&[("cluster", "c1"), ("kind", "pod")], &["p-1", "back"]),
        (&[("kind", "container")], &["k-1"]),
        (&[("kind", "service")], &[]),
        (&[("id", "p-1")], &["p-1"]),
        (&[("id", "gone")], &[]),
        (&[("since", &rfc3339(last.plus(Micros(1))))], &["back"]),
        (&[("since", "30d")], &["p-2", "k-1", "p-1", "gone", "back"]),
    ];
    for (query, expected) in cases {
        assert_eq!(ids(&world.items("/entities", query)), *expected, "{query:?}");
    }
    let back: Vec<StoredEntity> = world.items("/entities", &[("id", "back")]);
    let expected = StoredEntity {
        cluster: "c1".to_owned(),
        kind: "pod".to_owned(),
        id: "back".to_owned(),
        first_seen: long_ago,
        last_seen: last.plus(Micros(5)),
        names: BTreeMap::new(),
    };
    assert_eq!(back, [expected]);
}

/// Scenario: an entity is stored, its names come later and are stored with the same interval, then they change; many
/// rows of others stand between.
/// Guarantees: the names are those that were stored last, however the rows lie in the table.
#[test]
fn names_that_come_later_count() {
    let Some(mut world) = World::start() else { return };
    let (since, until) = (now().minus(Micros::from_secs(60)), now());
    let nameless: Vec<EntityRow> =
        (0..50).map(|number| row("pod", &format!("p-{number}"), since, until)).collect();
    for name in [None, Some("old"), Some("new")] {
        let named = nameless.iter().map(|row| EntityRow {
            names: name.map(|name| vec![("service", name), ("namespace", "default")]).unwrap_or_default(),
            ..row.clone()
        });
        world.insert_entities(&named.collect::<Vec<_>>());
        let expected = name.map(|name| {
            BTreeMap::from([
                ("service".to_owned(), name.to_owned()),
                ("namespace".to_owned(), "default".to_owned()),
            ])
        });
        for entity in world.items::<StoredEntity>("/entities", &[]) {
            assert_eq!(entity.names, expected.clone().unwrap_or_default(), "{}", entity.id);
        }
    }
}

/// Scenario: entities of which several begin in the same microsecond, with every character in their ids that a cursor
/// could stumble over, read with every page size; once more while, between pages, all of them are seen again and new
/// ones come.
/// Guarantees: each that existed at the start comes exactly once, in one order for all page sizes.
#[test]
fn pages_hold_each_entity_once() {
    let Some(mut world) = World::start() else { return };
    let start = now().minus(Micros::from_secs(600));
    let names = [
        "n1/42/123456789",
        "default/Deployment/shop",
        "n1|127.0.0.1:8080",
        "[::1]:80",
        "with blank",
        "it's",
        "back\\slash",
        "50%",
        "a~b",
        "a+b&c=d",
        "ä🦀",
    ];
    let all: Vec<EntityRow> = names
        .iter()
        .zip(0..)
        .map(|(name, number)| row("endpoint", name, start.plus(Micros(number / 4)), start.plus(Micros(9))))
        .collect();
    world.insert_entities(&all);
    let mut expected = all.clone();
    expected.sort_by(|a, b| (b.since, &b.id).cmp(&(a.since, &a.id)));
    let expected: Vec<&str> = expected.iter().map(|row| row.id.as_str()).collect();
    for limit in 1..=12 {
        let seen: Vec<StoredEntity> = world.walk("/entities", &[], limit, |_world, _page| {});
        assert_eq!(ids(&seen), expected, "pages of {limit}");
    }

    let existing: BTreeSet<&str> = expected.iter().copied().collect();
    for limit in [1, 3] {
        let seen: Vec<StoredEntity> = world.walk("/entities", &[("since", "15m")], limit, |world, page| {
            let seen_again = all.iter().map(|row| EntityRow { until: now(), ..row.clone() });
            let times = [start.minus(Micros(1)), start.plus(Micros(1)), now()];
            let came =
                times.map(|since| row("endpoint", &format!("new-{limit}-{page}-{}", since.0), since, now()));
            world.insert_entities(&seen_again.chain(came).collect::<Vec<_>>());
        });
        let unique: BTreeSet<&str> = ids(&seen).into_iter().collect();
        assert_eq!(unique.len(), seen.len(), "pages of {limit} repeat an entity");
        let kept: Vec<&str> = ids(&seen).into_iter().filter(|id| existing.contains(id)).collect();
        assert_eq!(kept, expected, "pages of {limit}");
    }
}
