//! `GET /health`, and everything while the store is away.

use std::fs;

use tapio_central::{
    api::rest::health::HealthAnswer, cli::client::ClientError, history::events::StoredEvent,
};
use tapio_schemas::{capability::ProbeState, finding::Finding, units::Micros};

use crate::{
    rows::SourceRow,
    samples::{event, event_id, finding},
    world::{World, now},
};

impl World {
    fn health(&self) -> HealthAnswer {
        self.api.get("/health", &[]).unwrap()
    }
}

/// The kind and text of the problem with which `path` is refused.
fn refusal(world: &World, path: &str) -> (u16, String, String) {
    match world.api.get::<serde_json::Value>(path, &[]) {
        Err(ClientError::Refused(problem)) => (problem.status, problem.kind, problem.detail),
        other => panic!("{path} gave {other:?}"),
    }
}

/// Scenario: no source yet; one that is live with a probe turned off; it restarts and a probe fails; another is
/// silent; a third of a newer version announces what this one does not know; one was last heard two days ago.
/// Guarantees: health is degraded exactly for a reason, names it with its node, and shows each source as it last was.
#[test]
fn health_names_what_is_wrong() {
    let Some(mut world) = World::start() else { return };
    let nobody = world.health();
    assert_eq!((nobody.status.as_str(), nobody.sources.len()), ("degraded", 0));
    assert_eq!(nobody.reasons, ["no source was heard in the last day"]);
    assert_eq!(nobody.central, "central-test");
    assert!(!nobody.version.is_empty());

    let ago = |seconds| now().minus(Micros::from_secs(seconds));
    let source =
        |node, capability, seconds| SourceRow { node, incarnation: 1, capability, last_seen: ago(seconds) };
    world.insert_sources(&[
        source("n1", r#"["oom-victim=working","tcp-state=disabled"]"#, 2),
        source("old", r#"["oom-victim=failed:old"]"#, 2 * 24 * 3_600),
    ]);
    let healthy = world.health();
    assert_eq!((healthy.status.as_str(), &healthy.reasons), ("healthy", &vec![]));
    assert_eq!(healthy.sources.len(), 1);
    assert_eq!(healthy.sources[0].name, "spiffe://tapio.test/node/n1");
    assert_eq!(healthy.sources[0].capability[1].state, ProbeState::Disabled);

    let failed = r#"["oom-victim=failed:attach: EPERM: \"no\"","tcp-state=working"]"#;
    world.insert_sources(&[
        SourceRow { incarnation: 2, ..source("n1", failed, 1) },
        source("n2", "[]", 300),
        source("n3", r#"["oom-victim=resting"]"#, 3),
    ]);
    let degraded = world.health();
    assert_eq!(degraded.status, "degraded");
    let names: Vec<&str> = degraded.sources.iter().map(|source| source.node.as_str()).collect();
    assert_eq!(names, ["n1", "n3", "n2"]);
    let reasons = degraded.reasons.join("\n");
    assert_eq!(degraded.reasons.len(), 3, "{reasons}");
    for expected in [
        "n1: probe oom-victim does not work: attach: EPERM: \"no\"",
        "n2 was last heard 30",
        "n3: probe oom-victim",
    ] {
        assert!(reasons.contains(expected), "{expected:?} is missing in {reasons}");
    }
}

/// Scenario: the engine ends; everything is asked; it comes back on other ports with the same data.
/// Guarantees: every resource answers 503 with a problem that says the store is away, health says it and still answers,
/// and all of it recovers by itself.
#[test]
fn a_store_that_is_away_is_said_and_forgotten() {
    let Some(mut world) = World::start() else { return };
    let at = now().minus(Micros::from_secs(60));
    world.insert_findings(&[finding(0x71aa, at)]);
    world.insert_events(&[event(event_id(1, 1, 1, 0), at)]);
    let one_event = format!("/events/{}", event_id(1, 1, 1, 0));
    let one_finding = format!("/findings/{}", finding(0x71aa, at).id);
    world.api.get::<StoredEvent>(&one_event, &[]).unwrap();

    world.stop_engine();
    let mut paths = vec!["/findings", &one_finding, "/events", &one_event, "/entities", "/ledger"];
    paths.extend(["/clusters", "/clusters/c1", "/nodes", "/nodes/c1/n1"]);
    for path in paths {
        let (status, kind, detail) = refusal(&world, path);
        assert_eq!((status, kind.as_str()), (503, "urn:tapio:problem:store-unavailable"), "{path}");
        assert!(detail.contains("cannot be reached"), "{path}: {detail}");
    }
    let degraded = world.health();
    assert_eq!((degraded.status.as_str(), degraded.reasons.len()), ("degraded", 1));
    assert!(degraded.reasons[0].contains("the store did not answer"), "{:?}", degraded.reasons);
    // What is wrong with the request itself is said all the same.
    assert_eq!(world.refused("/events?limit=0").status, 400);

    world.start_engine();
    assert_eq!(world.health().reasons, ["no source was heard in the last day"]);
    assert_eq!(world.api.get::<Finding>(&one_finding, &[]).unwrap(), finding(0x71aa, at));
    assert_eq!(world.items::<StoredEvent>("/events", &[]).len(), 1);
    world.stop_central().unwrap();
}

/// Scenario: the connection file is missing, is no TOML, has an unknown key, another password, another server's
/// address; then it is right again.
/// Guarantees: each is a 503 that names what to mend and shows no password; it recovers without a restart.
#[test]
fn a_wrong_connection_file_is_named() {
    let Some(mut world) = World::start() else { return };
    world.insert_findings(&[finding(1, now().minus(Micros::from_secs(60)))]);
    let path = world.connection_file();
    let right = fs::read_to_string(&path).unwrap();
    let password = right.lines().last().unwrap().split('"').nth(1).unwrap();
    let another = right.replace(password, "another-password");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}", silent.local_addr().unwrap());
    drop(silent);
    let url = right.split('"').nth(1).unwrap();
    for (text, expected) in [
        (None, "connection.toml"),
        (Some("not = [toml".to_owned()), "connection.toml"),
        (Some(format!("{right}more = 1\n")), "more"),
        (Some(right.replace("http:", "https:")), "TLS"),
        (Some(another), "ClickHouse refused"),
        (Some(right.replace(url, &nobody)), "cannot be reached"),
    ] {
        match &text {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let (status, _kind, detail) = refusal(&world, "/findings");
        assert_eq!(status, 503, "{text:?}: {detail}");
        assert!(detail.contains(expected), "{text:?}: {detail}");
        assert!(!detail.contains(password) && !detail.contains("another-password"), "{detail}");
        let health = world.health();
        assert_eq!(health.status, "degraded", "{text:?}");
        assert!(health.reasons[0].contains(expected), "{text:?}: {:?}", health.reasons);
    }
    fs::write(&path, right).unwrap();
    assert_eq!(world.items::<Finding>("/findings", &[]).len(), 1);
}

/// Scenario: a newer aggregator brings the schema up; the rows of another tenant stand beside the own ones.
/// Guarantees: a schema that this version does not know is refused by name, not read as if it were known; what another
/// tenant stored is not shown.
#[test]
fn only_the_own_schema_and_tenant_are_read() {
    let Some(mut world) = World::start() else { return };
    let at = now().minus(Micros::from_secs(60));
    world.insert_findings(&[finding(1, at)]);
    assert_eq!(world.items::<Finding>("/findings", &[]).len(), 1);
    world.execute(
        "INSERT INTO tapio.findings SELECT * REPLACE ('other' AS tenant, 'f-0000000000000002' AS id) FROM tapio.findings",
    );
    assert_eq!(world.number("(SELECT count() FROM tapio.findings)"), 2);
    assert_eq!(world.items::<Finding>("/findings", &[]).len(), 1);

    world.execute(
        "INSERT INTO tapio.schema_migrations SELECT 9999, 'from-the-future', checksum, now64(3, 'UTC') \
         FROM tapio.schema_migrations LIMIT 1",
    );
    // A new connection looks at the schema at once; an old one within a minute.
    world.touch_connection();
    let (status, kind, detail) = refusal(&world, "/findings");
    assert_eq!((status, kind.as_str()), (503, "urn:tapio:problem:store-of-another-version"));
    assert!(detail.contains("from-the-future"), "{detail}");
    world.stop_central().unwrap();
}
