//! Requests that cannot be answered: every fault named, as problem documents (RFC 9457).

use tapio_central::api::rest::page::List;
use tapio_schemas::{finding::Finding, units::Micros};

use crate::{
    samples::{event, event_id, finding},
    world::{World, now, problem},
};

/// Scenario: each parameter of each resource with a value that it cannot have; unknown, repeated and empty ones; two
/// and more mistakes in one request.
/// Guarantees: 400 with a problem that names exactly the parameters at fault, in `errors` and in `detail`, each with a
/// reason; nothing is answered partly.
#[test]
fn each_parameter_at_fault_is_named() {
    let Some(world) = World::start() else { return };
    let long = format!("/events?node={}", "x".repeat(1_025));
    let cases: &[(&str, &[&str])] = &[
        ("/findings?colour=red", &["colour"]),
        ("/findings?Cluster=c1", &["Cluster"]),
        ("/findings?node=n1", &["node"]),
        ("/findings?limit=0", &["limit"]),
        ("/findings?limit=1001", &["limit"]),
        ("/findings?limit=-1", &["limit"]),
        ("/findings?limit=ten", &["limit"]),
        ("/findings?limit=1.5", &["limit"]),
        ("/findings?limit=99999999999999999999", &["limit"]),
        ("/findings?limit=", &["limit"]),
        ("/findings?limit", &["limit"]),
        ("/findings?limit=1&limit=2", &["limit"]),
        ("/findings?cluster=", &["cluster"]),
        ("/findings?cluster=%ff", &["cluster"]),
        ("/findings?state=OPEN", &["state"]),
        ("/findings?severity=high", &["severity"]),
        ("/findings?since=yesterday", &["since"]),
        ("/findings?since=-5m", &["since"]),
        ("/findings?since=2026-02-30T00:00:00Z", &["since"]),
        ("/findings?since=2026-01-31", &["since"]),
        ("/findings?since=1969-12-31T23:59:60", &["since"]),
        ("/findings?since=99999999999999999999d", &["since"]),
        ("/findings?since=%2B5m", &["since"]),
        ("/findings?limit=%2B5", &["limit"]),
        ("/findings?until=%00", &["until"]),
        ("/findings?cursor=x", &["cursor"]),
        ("/findings?cursor=findings.1.1.1.", &["cursor"]),
        ("/findings?cursor=findings.9.1.1.f-71aa", &["cursor"]),
        ("/findings?cursor=findings.1.1.ffffffffffffffff.f-71aa", &["cursor"]),
        ("/findings?cursor=findings.1.1.1.f'--", &["cursor"]),
        ("/findings?cursor=events.1.1.1.f-71aa", &["cursor"]),
        ("/findings/f-71aa?limit=1", &["limit"]),
        ("/events?kind=5", &["kind"]),
        ("/events?severity_min=bad", &["severity_min"]),
        ("/events?severity=error", &["severity"]),
        ("/events?trace_id=4bf", &["trace_id"]),
        ("/events?trace_id=00000000000000000000000000000000", &["trace_id"]),
        ("/events?trace_id=%2700000000000000000000000000000001", &["trace_id"]),
        ("/events?cursor=events.1.1.1.f-71aa", &["cursor"]),
        ("/events?%00=1", &["\0"]),
        (&long, &["node"]),
        ("/entities?kind=planet", &["kind"]),
        ("/entities?until=1h", &["until"]),
        ("/entities?cursor=findings.1.1.1.f-71aa", &["cursor"]),
        ("/nodes?state=dead", &["state"]),
        ("/nodes?name=n1", &["name"]),
        ("/nodes?cursor=clusters.1.1.0.c1", &["cursor"]),
        ("/nodes/C1/n1", &["cluster"]),
        ("/nodes/c_1/n_1?since=x", &["since", "cluster", "node"]),
        ("/nodes/c1/n1?limit=1", &["limit"]),
        ("/clusters?cluster=c1", &["cluster"]),
        ("/clusters/-?colour=red", &["cluster", "colour"]),
        ("/openapi.json?pretty=1", &["pretty"]),
        ("/docs?dark=1", &["dark"]),
        ("/ledger?limit=1", &["limit"]),
        ("/ledger?since=1w", &["since"]),
        ("/health?deep=1", &["deep"]),
        ("/findings?limit=0&state=on", &["limit", "state"]),
        (
            "/events?a=1&since=x&until=y&limit=x&cursor=x&kind=x",
            &["limit", "cursor", "kind", "since", "until", "a"],
        ),
    ];
    for (path, parameters) in cases {
        let problem = world.refused(path);
        assert_eq!(
            (problem.status, problem.kind.as_str()),
            (400, "urn:tapio:problem:invalid-parameter"),
            "{path}"
        );
        let named: Vec<&str> = problem.errors.iter().map(|error| error.parameter.as_str()).collect();
        assert_eq!(named, *parameters, "{path}");
        assert!(parameters.iter().all(|name| problem.detail.contains(name)), "{path}: {}", problem.detail);
        assert!(problem.errors.iter().all(|error| !error.reason.is_empty()), "{path}");
        assert!(problem.request_id.is_some(), "{path}");
    }
}

/// Scenario: a value that is none of a closed set, and a parameter that a resource does not have.
/// Guarantees: the problem lists what would be accepted, for programs as for people.
#[test]
fn what_would_be_accepted_is_listed() {
    let Some(world) = World::start() else { return };
    let problem = world.refused("/nodes?state=dead&colour=red");
    let allowed: Vec<_> = problem.errors.iter().map(|error| error.allowed.join(" ")).collect();
    assert_eq!(allowed, ["live silent", "limit cursor cluster node state since"]);
    assert!(world.refused("/nodes?since=x").errors[0].allowed.is_empty());
}

/// Scenario: the cursors of two lists, each given to the other and with one character changed.
/// Guarantees: a foreign cursor is refused by name; a changed one is refused or starts somewhere else, never fails.
#[test]
fn foreign_and_broken_cursors_are_refused() {
    let Some(mut world) = World::start() else { return };
    let at = now().minus(Micros::from_secs(60));
    world.insert_findings(&[finding(1, at), finding(2, at), finding(3, at)]);
    world.insert_events(&[event(event_id(1, 1, 1, 0), at), event(event_id(1, 1, 1, 1), at)]);
    let cursor = |path| {
        let list: List<serde_json::Value> = world.api.get(path, &[("limit", "1")]).unwrap();
        list.next_cursor.unwrap()
    };
    let (of_findings, of_events) = (cursor("/findings"), cursor("/events"));
    for (path, foreign) in [("/findings", &of_events), ("/events", &of_findings), ("/entities", &of_findings)]
    {
        let problem = world.refused(&format!("{path}?cursor={foreign}"));
        assert_eq!((problem.status, problem.errors[0].parameter.as_str()), (400, "cursor"), "{path}");
        assert!(problem.errors[0].reason.contains("this list"), "{}", problem.errors[0].reason);
    }
    for position in 0..of_findings.len() {
        let mut changed = of_findings.clone();
        changed.replace_range(position..=position, "z");
        let answer = world.ask("GET", &format!("/api/v1/findings?cursor={changed}"));
        match answer.status {
            200 => assert!(serde_json::from_str::<List<Finding>>(&answer.body).is_ok(), "{changed}"),
            _ => assert_eq!(problem(&answer, &changed).errors[0].parameter, "cursor", "{changed}"),
        }
    }
}

/// Scenario: methods that would write, resources that do not exist, and a HEAD request.
/// Guarantees: 405 with what is allowed, 404 with what there is, each a problem; nothing else than reading works.
#[test]
fn other_methods_and_paths_are_refused() {
    let Some(world) = World::start() else { return };
    for path in [
        "/findings",
        "/findings/f-71aa",
        "/events",
        "/events/x",
        "/entities",
        "/clusters",
        "/clusters/c1",
        "/nodes",
        "/nodes/c1/n1",
        "/ledger",
        "/health",
        "/status",
        "/openapi.json",
        "/docs",
    ] {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let answer = world.ask(method, &format!("/api/v1{path}"));
            let what = format!("{method} {path}");
            let problem = problem(&answer, &what);
            assert_eq!(
                (answer.status, problem.kind.as_str()),
                (405, "urn:tapio:problem:method-not-allowed"),
                "{what}"
            );
            assert_eq!(answer.allow, "GET,HEAD", "{what}");
            assert!(problem.detail.contains(method), "{}", problem.detail);
        }
    }
    for path in [
        "/api",
        "/api/v1/",
        "/api/v2/findings",
        "/api/v1/findings/",
        "/api/v1/findings/f-71aa/lines",
        "/api/v1/Findings",
        "/api/v1/%2e%2e/findings",
        "/api/v1/findings%00",
        "//api/v1/findings",
        "/metrics",
    ] {
        for method in ["GET", "POST"] {
            let answer = world.ask(method, path);
            let problem = problem(&answer, path);
            assert_eq!(
                (answer.status, problem.kind.as_str()),
                (404, "urn:tapio:problem:unknown-route"),
                "{path}"
            );
            assert!(problem.detail.contains("/api/v1/findings"), "{}", problem.detail);
        }
    }
    for path in ["/", "/api/v1"] {
        let page = world.ask("GET", path);
        assert!(page.status == 200 && page.body.contains("<title>Tapio API</title>"), "{path}: {page:?}");
        assert_eq!(problem(&world.ask("POST", path), path).kind, "urn:tapio:problem:method-not-allowed");
    }
    let head = world.ask("HEAD", "/api/v1/health");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

/// Scenario: a stored finding whose document this version cannot read, beside one that it can.
/// Guarantees: the answer is a 500 that names the finding; the store is not blamed; the other one is still given.
#[test]
fn an_unreadable_row_is_named() {
    let Some(mut world) = World::start() else { return };
    let at = now().minus(Micros::from_secs(60));
    world.insert_findings(&[finding(1, at)]);
    world.insert_damaged_finding("f-00000000000000ff", at);
    for path in ["/findings", "/findings/f-00000000000000ff"] {
        let problem = world.refused(path);
        assert_eq!(
            (problem.status, problem.kind.as_str()),
            (500, "urn:tapio:problem:unreadable-row"),
            "{path}"
        );
        assert!(problem.detail.contains("f-00000000000000ff"), "{}", problem.detail);
    }
    assert_eq!(world.api.get::<Finding>("/findings/f-0000000000000001", &[]).unwrap(), finding(1, at));
}
