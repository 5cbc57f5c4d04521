//! gRPC as a program in another language finds it: Python's grpcio, which learns everything through reflection.

use std::{env, path::PathBuf, process::Stdio, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tapio_wire::Position;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::{Instant, timeout},
};

use super::{
    findings::story,
    support::{PATIENCE, World, frame, now},
};

/// The version that `scripts/lib/grpc-client` installs.
const GRPCIO: &str = "1.85.1";

/// The Python that has grpcio: named, or the one that the script made. Where there is none, and that is allowed, says
/// what is not proven.
fn python() -> Option<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || {
        variable("TAPIO_CACHE_DIR")
            .or_else(|| variable("XDG_CACHE_HOME").map(|path| path.join("tapio")))
            .or_else(|| variable("HOME").map(|path| path.join(".cache/tapio")))
    };
    let installed = || Some(cache()?.join(format!("grpc-client-{GRPCIO}/bin/python")));
    let found = variable("TAPIO_GRPC_PYTHON").or_else(installed).filter(|path| path.exists());
    if found.is_none() {
        let allowed = env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
        assert!(
            allowed.split(',').any(|name| name == "grpc-python"),
            "there is no Python with grpcio: run scripts/lib/grpc-client, or name one in TAPIO_GRPC_PYTHON"
        );
        println!("not proven: grpc-python: a client in another language, through reflection");
    }
    found
}

/// What the client prints.
#[derive(Debug, Deserialize)]
struct Seen {
    services: Vec<String>,
    serving: Value,
    refusals: Value,
    events: Vec<Value>,
    cursor: String,
    resumed: String,
    pages: Vec<Vec<String>>,
    finding: Value,
}

/// Scenario: a Python program that has none of our definitions asks by reflection, subscribes, makes wrong requests,
/// and waits for a finding, which a node's story becomes.
/// Guarantees: services, health, refusals with the field's name, filtered events, the finding with its chain, pages and
/// the place to resume are there for it, and are what the aggregator itself knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_learns_everything_through_reflection() {
    let Some(python) = python() else { return };
    let world = World::new();
    let running = world.without_store().await;
    let mut node = world.node(&running, "n1", 1).await;
    let mut client = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/road/grpc_client.py"))
        .arg(format!("localhost:{}", running.grpc_addr.port()))
        .arg(world.grpc_files().authority)
        .arg("n1")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let ready = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
    assert_eq!(ready.as_deref(), Some("ready"), "the client ended early; its own words are above");

    node.offer(&frame(node.source, Position::new(1, 1), &story(now()))).await;
    let deadline = Instant::now() + PATIENCE;
    let mut sequence = 1;
    let line = loop {
        assert!(Instant::now() < deadline, "the client did not end");
        sequence += 1;
        node.offer(&frame(node.source, Position::new(1, sequence), &[])).await;
        node.step().await;
        if let Ok(line) = timeout(Duration::from_millis(50), lines.next_line()).await {
            break line.unwrap();
        }
    };
    assert!(client.wait().await.unwrap().success());
    let seen: Seen = serde_json::from_str(&line.unwrap()).unwrap();

    let health = "grpc.health.v1.Health";
    for service in ["tapio.v1.CorrelationService", "tapio.v1.EventService", health] {
        assert!(seen.services.iter().any(|known| known == service), "{service} in {:?}", seen.services);
    }
    let serving =
        json!({"": "SERVING", "tapio.v1.CorrelationService": "SERVING", "tapio.v1.EventService": "SERVING"});
    assert_eq!(seen.serving, serving);
    for (call, says) in [
        (
            "StreamEvents",
            vec!["severity_min: 99", "SEVERITY_CRITICAL", "trace_ids: ", "32 hexadecimal digits"],
        ),
        ("ListFindings", vec!["page_size: 5000", "1 to 1000"]),
        ("GetFinding", vec!["f-0000000000000000"]),
    ] {
        let refusal = seen.refusals[call].as_str().unwrap();
        assert!(says.iter().all(|part| refusal.contains(part)), "{refusal}");
    }
    let intents: Vec<_> = seen.events.iter().map(|event| event["intent"].as_str().unwrap()).collect();
    assert_eq!(intents, ["memory-growth", "oom-kill"]);
    assert_eq!(seen.events[1]["kernel"]["command"], "payment");
    assert_eq!(seen.events[1]["node"], "n1");

    let known = running.recent.finding(seen.finding["id"].as_str().unwrap()).unwrap();
    assert_eq!(seen.finding["title"], known.title);
    assert_eq!(seen.finding["verdict"]["cause"]["id"], known.verdict.cause.id);
    assert_eq!(seen.finding["verdict"]["cause"]["kind"], "ENTITY_KIND_CONTAINER");
    let lines: Vec<_> = seen.finding["lines"].as_array().unwrap().iter().map(|line| &line["text"]).collect();
    assert_eq!(lines, known.lines.iter().map(|line| &line.text).collect::<Vec<_>>());
    assert_eq!((&seen.resumed, seen.pages), (&known.id, vec![vec![known.id.clone()]]));
    assert!(seen.cursor.starts_with("r2."), "{}", seen.cursor);
    running.stop().await.unwrap();
}
