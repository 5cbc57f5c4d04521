//! Values that would be SQL, escapes or commands if they were anything else than data.

use tapio_central::history::{entities::StoredEntity, events::StoredEvent};
use tapio_schemas::{event::Entity, finding::Finding, units::Micros};

use crate::{
    rows::{EntityRow, EventRow, LedgerRow},
    samples::{event, event_id, finding},
    world::{World, now},
};

/// Each is different from all others under every reading that must not happen.
const VALUES: &[&str] = &[
    "plain",
    "'",
    "''",
    "\"",
    "`",
    "\\",
    "\\\\",
    "\\'",
    "\\n",
    "\n",
    "\\N",
    "\\0",
    "\\t\t\r\n",
    "null\0byte",
    "\0",
    "a' OR '1'='1",
    "a\\' OR 1=1 --",
    "'; DROP TABLE tapio.events; --",
    "') UNION ALL SELECT * FROM system.users --",
    "{p0:String}",
    "{p1:UInt64}",
    "?",
    "$1",
    "%",
    "%00",
    "%27",
    "+",
    "a b",
    "a&cluster=c1",
    "#",
    "NULL",
    "🦀",
    "e\u{301}",
    "é",
    "\u{202e}abc",
    "\u{7f}\u{80}",
    "[]",
    "['plain']",
];

/// Scenario: every text filter of every list is given values with quotes, backslashes, control characters, NUL, emoji,
/// placeholders and SQL; rows hold exactly these values.
/// Guarantees: each value finds the one row that holds it and no other, and no row or table is touched.
#[test]
fn values_are_data() {
    let Some(mut world) = World::start() else { return };
    let at = now().minus(Micros::from_secs(60));
    let (mut events, mut entities, mut ledger, mut findings) = (vec![], vec![], vec![], vec![]);
    for (value, number) in VALUES.iter().zip(1..) {
        let mut row: EventRow = event(event_id(1, 1, number, 0), at);
        (row.cluster, row.node) = ((*value).to_owned(), (*value).to_owned());
        row.event.core.intent = (*value).to_owned();
        row.event.entity = Some(Entity {
            container_id: (*value).to_owned(),
            pod_uid: (*value).to_owned(),
            ..Entity::default()
        });
        events.push(row);
        entities.push(EntityRow {
            cluster: (*value).to_owned(),
            kind: "pod",
            id: (*value).to_owned(),
            names: Vec::new(),
            since: at,
            until: at,
        });
        ledger.push(LedgerRow {
            cluster: (*value).to_owned(),
            node: (*value).to_owned(),
            until: at,
            stage: "kernel",
            fate: "lost",
            subject: String::new(),
            reason: "",
            count: number,
        });
        let mut finding = finding(number, at);
        (finding.verdict.rule, finding.incident_id) = ((*value).to_owned(), (*value).to_owned());
        findings.push(finding);
    }
    world.insert_events(&events);
    world.insert_entities(&entities);
    world.insert_ledger(&ledger);
    world.insert_findings(&findings);

    for (index, value) in VALUES.iter().enumerate() {
        for name in ["cluster", "node", "intent", "container_id", "pod", "pod_uid"] {
            let found: Vec<StoredEvent> = world.items("/events", &[(name, value)]);
            // Of containers and pods the beginning is enough.
            let is_found = |of: &str| {
                of == *value || matches!(name, "container_id" | "pod" | "pod_uid") && of.starts_with(value)
            };
            let expected = VALUES.iter().filter(|of| is_found(of)).count();
            assert_eq!(found.len(), expected, "{name}={value:?}");
            assert!(found.iter().any(|one| one.event == events[index].event), "{name}={value:?}");
        }
        for name in ["cluster", "id"] {
            let found: Vec<StoredEntity> = world.items("/entities", &[(name, value)]);
            assert_eq!(found.len(), 1, "{name}={value:?}");
            assert_eq!(found[0].id, *value);
        }
        for name in ["rule", "incident_id"] {
            let found: Vec<Finding> = world.items("/findings", &[(name, value)]);
            assert_eq!(found, findings[index..=index], "{name}={value:?}");
        }
        for name in ["cluster", "node"] {
            let sums: tapio_central::api::rest::ledger::LedgerAnswer =
                world.api.get("/ledger", &[(name, value)]).unwrap();
            assert_eq!((sums.lost, sums.items.len()), (index as u64 + 1, 1), "{name}={value:?}");
        }
        assert_eq!(world.items::<Finding>("/findings", &[("cluster", value)]), [], "{value:?}");
    }
    let walked: Vec<StoredEntity> = world.walk("/entities", &[], 7, |_world, _page| {});
    assert_eq!(walked.len(), VALUES.len());
    for table in ["events", "entities", "ledger", "findings"] {
        assert_eq!(
            world.number(&format!("(SELECT count() FROM tapio.{table})")),
            VALUES.len() as u64,
            "{table}"
        );
    }
}
