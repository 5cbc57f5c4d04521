//! `GET /status`: the whole fleet judged, whatever its size, and what is not known said.

use tapio_central::api::rest::status::{StatusAnswer, Trust};
use tapio_schemas::units::Micros;

use crate::world::{World, now};

impl World {
    fn status(&self) -> StatusAnswer {
        self.api.get("/status", &[]).unwrap()
    }

    /// Nodes of a cluster, all last heard as many seconds ago.
    fn insert_fleet(&self, cluster: &str, first: u64, count: u64, seconds_ago: u64) {
        let seen = now().minus(Micros::from_secs(seconds_ago)).0;
        self.execute(&format!(
            "INSERT INTO tapio.sources (tenant, cluster, node, spiffe_id, source_id, capability, last_seen) \
             SELECT 'default', '{cluster}', concat('n', toString(number)), '', \
             toFixedString(leftPad(toString(number), 16), 16), '[\"exec=working\"]', \
             fromUnixTimestamp64Micro(toInt64({seen})) FROM numbers({first}, {count})"
        ));
    }
}

/// Scenario: fifteen hundred nodes of which five hundred are silent and three hundred were taken away hours ago; a
/// cluster that ships although nothing of it is stored; then the store goes away.
/// Guarantees: all that is silent is counted, however many are heard; what is gone is not; a cluster's stuck road is told
/// beside others that are well; what cannot be asked is not called well, once and not five times.
#[test]
fn a_whole_fleet_is_judged() {
    let Some(mut world) = World::start() else { return };
    let nobody = world.status();
    assert_eq!(
        (nobody.trust, nobody.reasons),
        (Trust::No, vec!["no node was heard in the last day".to_owned()])
    );

    world.insert_fleet("large", 0, 1_000, 1);
    world.insert_fleet("large", 1_000, 499, 600);
    world.insert_fleet("large", 1_499, 1, 1_200);
    world.insert_fleet("large", 1_500, 300, 7_300);
    let status = world.status();
    let nodes = status.fleet.nodes.unwrap();
    assert_eq!((nodes.live, nodes.silent), (1_000, 500));
    let reasons = &status.reasons;
    assert_eq!((status.trust, reasons.len()), (Trust::No, 3), "{reasons:?}");
    assert_eq!(reasons[0], "nodes ship, but the newest stored event is old: large (none in a day)");
    assert_eq!(
        reasons[1],
        "500 of 1500 nodes are silent: n1499 (20 min), n1000 (10 min), n1001 (10 min), and 497 more"
    );
    assert_eq!(reasons[2], "no aggregator says how it is, in 1 cluster whose nodes ship: large");

    world.stop_engine();
    let status = world.status();
    assert_eq!((status.trust, status.reasons.len()), (Trust::No, 1), "{:?}", status.reasons);
    let said = "not known: clusters and nodes, aggregators, silent nodes, losses, open findings, the newest findings: ";
    assert!(status.reasons[0].starts_with(said), "{:?}", status.reasons);
    assert!(status.fleet.nodes.is_none() && status.fleet.open_findings.is_none());
}
