//! `GET /nodes` and `GET /nodes/{cluster}/{node}`.

use std::collections::BTreeMap;

use tapio_central::history::nodes::{Budget, Loss, NodeState, StoredNode};
use tapio_schemas::{
    capability::ProbeState,
    units::{Micros, UnixMicros},
};

use crate::{
    rows::{HostRow, LedgerRow, SourceRow},
    world::{World, now},
};

/// A node that was heard so many seconds ago and says all of itself.
pub(crate) fn host(cluster: &'static str, node: &'static str, seconds: u64) -> HostRow {
    HostRow {
        cluster,
        source: SourceRow {
            node,
            incarnation: 3,
            capability: r#"["oom-victim=working","tcp-state=disabled","exec=failed:attach: EPERM"]"#,
            last_seen: now().minus(Micros::from_secs(seconds)),
        },
        agent_version: "0.1.0",
        kernel_release: "6.1.0-44-cloud-amd64",
        architecture: "x86_64",
        limits: r#"{"ring_bytes":1048576,"spool_bytes":268435456}"#,
    }
}

fn lost(node: &str, subject: &str, reason: &'static str, count: u64, until: UnixMicros) -> LedgerRow {
    LedgerRow {
        cluster: "c1".to_owned(),
        node: node.to_owned(),
        until,
        stage: "kernel",
        fate: "lost",
        subject: subject.to_owned(),
        reason,
        count,
    }
}

fn names(nodes: &[StoredNode]) -> Vec<String> {
    nodes.iter().map(|node| format!("{}/{}", node.cluster, node.node)).collect()
}

/// Scenario: a live node that says all of itself, restarted once; a silent one of an older agent that says nothing; one
/// that was heard two days ago; losses of two of them, some long ago, and lines of the ledger that are no losses.
/// Guarantees: each node is shown as it last was, with what it said and nothing made up, and with exactly its losses of
/// the time that was asked for, the most first.
#[test]
fn nodes_say_what_they_are() {
    let Some(mut world) = World::start() else { return };
    let old = HostRow { agent_version: "0.0.9", ..host("c1", "n1", 900) };
    world.insert_hosts(&[old, host("c1", "n1", 1), host("c2", "gone", 2 * 86_400)]);
    world.insert_sources(&[SourceRow {
        node: "n2",
        incarnation: u64::MAX,
        capability: "",
        last_seen: now().minus(Micros::from_secs(600)),
    }]);
    let recent = now().minus(Micros::from_secs(60));
    world.insert_ledger(&[
        lost("n1", "tcp_state", "ring-full", 4, recent),
        lost("n1", "tcp_state", "ring-full", 3, recent),
        lost("n1", "exec", "map-full", 900, recent),
        lost("n1", "exec", "map-full", 100_000, now().minus(Micros::from_secs(3 * 3_600))),
        LedgerRow { fate: "folded", ..lost("n1", "exec", "", 55, recent) },
        lost("n3", "exec", "map-full", 77, recent),
    ]);

    let nodes: Vec<StoredNode> = world.items("/nodes", &[("since", "1h")]);
    assert_eq!(names(&nodes), ["c1/n1", "c1/n2"]);
    assert_eq!(names(&world.items("/nodes", &[("node", "n2")])), ["c1/n2"]);
    let [first, second] = &nodes[..] else { unreachable!() };
    assert_eq!((first.state, second.state), (NodeState::Live, NodeState::Silent));
    assert_eq!((first.tenant.as_str(), first.name.as_str()), ("default", "spiffe://tapio.test/node/n1"));
    assert_eq!((first.incarnation, second.incarnation), (3, u64::MAX));
    assert_eq!(first.source.len(), 32);
    let said = [&first.agent_version, &first.kernel_release, &first.architecture].map(|said| said.as_deref());
    assert_eq!(said, [Some("0.1.0"), Some("6.1.0-44-cloud-amd64"), Some("x86_64")]);
    let states: Vec<_> = first.capability.iter().map(|probe| &probe.state).collect();
    let failed = ProbeState::Failed { reason: "attach: EPERM".to_owned() };
    assert_eq!(states, [&ProbeState::Working, &ProbeState::Disabled, &failed]);
    let limits = [("ring_bytes", 1 << 20), ("spool_bytes", 256 << 20)];
    let limits: BTreeMap<_, _> = limits.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    assert_eq!(first.budget, Some(Budget { limits }));
    let loss = |subject: &str, reason: &str, count| Loss {
        stage: "kernel".to_owned(),
        subject: subject.to_owned(),
        reason: reason.to_owned(),
        count,
    };
    assert_eq!(first.losses, [loss("exec", "map-full", 900), loss("tcp_state", "ring-full", 7)]);

    let json = world.ask("GET", "/api/v1/nodes/c1/n2").body;
    for absent in ["agent_version", "kernel_release", "architecture", "budget"] {
        assert!(!json.contains(absent), "{json}");
    }
    assert_eq!((second.capability.len(), second.losses.len()), (0, 0));
    let probe = &serde_json::from_str::<serde_json::Value>(&world.ask("GET", "/api/v1/nodes/c1/n1").body)
        .unwrap()["capability"][2];
    assert_eq!(*probe, serde_json::json!({"probe": "exec", "state": "failed", "reason": "attach: EPERM"}));

    for (state, expected) in [("live", "c1/n1"), ("silent", "c1/n2")] {
        assert_eq!(names(&world.items("/nodes", &[("state", state)])), [expected]);
    }
    assert_eq!(names(&world.items("/nodes", &[("since", "7d"), ("cluster", "c2")])), ["c2/gone"]);
    let one: StoredNode = world.api.get("/nodes/c2/gone", &[]).unwrap();
    assert_eq!((one.state, one.losses.len()), (NodeState::Silent, 0));
    let all_losses: StoredNode = world.api.get("/nodes/c1/n1", &[("since", "1d")]).unwrap();
    assert_eq!(all_losses.losses[0], loss("exec", "map-full", 100_900));
    for path in ["/nodes/c1/gone", "/nodes/c9/n1"] {
        assert_eq!(world.refused(path).status, 404, "{path}");
    }
}

/// Scenario: seven nodes of three clusters, read with every page size, and once more while others come and all are
/// heard again between the pages.
/// Guarantees: each that was there at the start comes exactly once, in one order.
#[test]
fn pages_hold_each_node_once() {
    let Some(mut world) = World::start() else { return };
    let all = [("a", "n"), ("a", "n-1"), ("a", "n.1"), ("a-b", "a"), ("a-b", "n"), ("b", "a.b"), ("b", "n")];
    let heard = |world: &mut World| {
        let rows: Vec<_> = all.iter().map(|(cluster, node)| host(cluster, node, 2)).collect();
        world.insert_hosts(&rows);
    };
    heard(&mut world);
    let mut expected: Vec<String> = all.iter().map(|(cluster, node)| format!("{cluster}/{node}")).collect();
    expected.sort();
    for limit in 1..=8 {
        let seen: Vec<StoredNode> = world.walk("/nodes", &[], limit, |_world, _page| {});
        assert_eq!(names(&seen), expected, "pages of {limit}");
    }
    for limit in [1, 2] {
        let seen: Vec<StoredNode> = world.walk("/nodes", &[("since", "15m")], limit, |world, _page| {
            heard(world);
            world.insert_hosts(&[host("a", "a", 1), host("c", "z", 1)]);
        });
        let mut kept = names(&seen);
        let before = kept.len();
        kept.dedup();
        assert_eq!(kept.len(), before, "pages of {limit} repeat a node");
        kept.retain(|name| expected.contains(name));
        assert_eq!(kept, expected, "pages of {limit}");
    }
}
