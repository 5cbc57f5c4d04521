//! `GET /clusters` and `GET /clusters/{cluster}`.

use tapio_central::history::clusters::{NodeCounts, StoredCluster};
use tapio_schemas::{
    finding::{Finding, FindingState},
    intent::Severity,
    units::Micros,
};

use crate::{
    nodes::host,
    rows::EventRow,
    samples::{event, event_id, finding},
    world::{World, now},
};

/// Scenario: two clusters; one with a live and two silent nodes, events, open findings of two severities, a resolved
/// and a superseded one, and one that is open since too long; the other with a node alone; a third was heard days ago.
/// Guarantees: each adds up what its own nodes report, to the event; what is not there is zero or absent.
#[test]
fn clusters_add_up_their_nodes() {
    let Some(mut world) = World::start() else { return };
    world.insert_hosts(&[
        host("c1", "n1", 1),
        host("c1", "n1", 700),
        host("c1", "n2", 120),
        host("c1", "n3", 4_000),
        host("c2", "n1", 2),
        host("c3", "n1", 3 * 86_400),
    ]);
    let newest = now().minus(Micros::from_secs(90));
    let events: Vec<EventRow> = (0..5)
        .map(|number| event(event_id(1, 1, 1, number), newest.minus(Micros(u64::from(number) * 40_000_000))))
        .collect();
    world.insert_events(&events);
    let at = now().minus(Micros::from_secs(3_600));
    let with = |number, severity, state| {
        let mut one = finding(number, at);
        (one.verdict.severity, one.state) = (severity, state);
        one
    };
    let resolved = Finding { revision: 2, state: FindingState::Resolved, ..finding(3, at) };
    world.insert_findings(&[
        with(1, Severity::Critical, FindingState::Open),
        with(2, Severity::Error, FindingState::Open),
        with(3, Severity::Critical, FindingState::Open),
        with(4, Severity::Critical, FindingState::Superseded),
        finding(5, now().minus(Micros::from_secs(31 * 86_400))),
        with(6, Severity::Critical, FindingState::Open),
    ]);
    world.insert_findings(&[resolved]);

    let clusters: Vec<StoredCluster> = world.items("/clusters", &[("since", "1h")]);
    let [first, second] = &clusters[..] else { panic!("{clusters:?}") };
    assert_eq!((first.cluster.as_str(), second.cluster.as_str()), ("c1", "c2"));
    assert_eq!(first.nodes, NodeCounts { live: 1, silent: 1 });
    assert_eq!(second.nodes, NodeCounts { live: 1, silent: 0 });
    assert_eq!((first.last_event, second.last_event), (Some(newest), None));
    let open: Vec<_> = first.open_findings.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(open, [("critical", 2), ("error", 1), ("info", 0), ("notice", 0), ("warning", 0)]);
    assert!(second.open_findings.values().all(|count| *count == 0));

    let day: StoredCluster = world.api.get("/clusters/c1", &[]).unwrap();
    assert_eq!(day.nodes, NodeCounts { live: 1, silent: 2 });
    assert!(now().since(day.last_seen) < Micros::from_secs(30));
    let gone: StoredCluster = world.api.get("/clusters/c3", &[("since", "7d")]).unwrap();
    assert_eq!((gone.nodes, gone.last_event), (NodeCounts { live: 0, silent: 1 }, None));
    let silent: StoredCluster = world.api.get("/clusters/c3", &[]).unwrap();
    assert_eq!((silent.nodes, silent.last_seen), (NodeCounts::default(), gone.last_seen));
    assert_eq!(world.refused("/clusters/c4").status, 404);

    for limit in 1..=3 {
        let seen: Vec<StoredCluster> = world.walk("/clusters", &[("since", "7d")], limit, |world, _page| {
            world.insert_hosts(&[host("c1", "n9", 1), host("c0", "n1", 1), host("c2", "n2", 1)]);
        });
        let mut names: Vec<_> = seen.iter().map(|cluster| cluster.cluster.as_str()).collect();
        names.retain(|name| *name != "c0");
        assert_eq!(names, ["c1", "c2", "c3"], "pages of {limit}");
    }
}
