//! `tapio events`, `tapio nodes` and `tapio completions`, as a person or a script runs them.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use tapio_central::history::events::StoredEvent;
use tapio_schemas::{
    event::{Entity, Kernel, Network},
    intent::{EventKind, Severity},
    units::Micros,
};

use crate::{
    command::tapio,
    nodes::host,
    rows::{EntityRow, EventRow, LedgerRow, SourceRow},
    samples::{event, event_id},
    world::{World, now},
};

/// A failed open, and a refused request a second later.
fn two_events() -> [EventRow; 2] {
    let mut open = event(event_id(1, 1, 1, 0), now().minus(Micros::from_secs(62)));
    open.event.core.kind = EventKind::Syscall;
    open.event.core.severity = Severity::Warning;
    open.event.core.intent = "file-access-failed".to_owned();
    open.event.core.count = 3;
    open.event.kernel = Some(Kernel {
        pid: 42,
        command: "pay\u{1b}[2Jment".to_owned(),
        syscall: "openat".to_owned(),
        errno: 2,
        path: "/etc/payment.toml".to_owned(),
        ..Kernel::default()
    });
    open.event.entity = Some(Entity { container_id: "f".repeat(64), ..Entity::default() });
    let mut request = event(event_id(1, 1, 1, 1), now().minus(Micros::from_secs(61)));
    request.node = "n2".to_owned();
    request.event.core.kind = EventKind::Request;
    request.event.core.severity = Severity::Error;
    request.event.network = Some(Network {
        method: "GET".to_owned(),
        route: "/orders/{id}".to_owned(),
        status: 500,
        remote_address: "10.0.0.1".parse().unwrap(),
        remote_port: 8_080,
        direction: "in".to_owned(),
        ..Network::default()
    });
    [open, request]
}

/// Scenario: `tapio events` with none stored, with two, with each option that chooses, as lines and as JSON; options
/// that the API refuses.
/// Guarantees: the newest stands last; each line says when, where, how bad and what, and steers no terminal; the JSON
/// is the API's own.
#[test]
fn events_are_lines() {
    let Some(mut world) = World::start() else { return };
    assert_eq!(world.printed(&["events"]), "no events\n");
    world.insert_events(&two_events());
    let said = world.printed(&["events"]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    for (line, expected) in [
        (lines[0], &["n1", "warning", "file-access-failed", " x3", "container=ffffffffffff ", "[42]"][..]),
        (lines[0], &["openat errno=2", "/etc/payment.toml", "pay\\u{1b}[2Jment"]),
        (lines[1], &["n2", "error", "request", "GET /orders/{id} 500", "from 10.0.0.1:8080"]),
    ] {
        assert!(expected.iter().all(|part| line.contains(part)), "{expected:?} is missing in {line:?}");
    }
    for (arguments, expected) in [
        (&["--node", "n2"][..], "n2"),
        (&["--intent", "file-access-failed"], "n1"),
        (&["--kind", "request"], "n2"),
        (&["--severity-min", "error"], "n2"),
        (&["--container", &"f".repeat(64)], "n1"),
    ] {
        let said = world.printed(&[&["events"], arguments].concat());
        assert!(
            said.lines().count() == 1 && said.contains(&format!(" {expected} ")),
            "{arguments:?}: {said}"
        );
    }
    for arguments in [&["--since", "30s"][..], &["--since", "2h", "--until", "1h"], &["--pod", "x"]] {
        assert_eq!(world.printed(&[&["events"], arguments].concat()), "no events\n", "{arguments:?}");
    }
    world.insert_sources(&[SourceRow {
        node: "n1",
        incarnation: 1,
        capability: "[]",
        last_seen: now().minus(Micros::from_secs(60)),
    }]);
    for (arguments, expected) in [
        (&["events", "--cluster", "c2"][..], "no cluster \"c2\" was ever heard"),
        (&["events", "--since", "5m", "--until", "10m"], "nothing lies between --since 5m and --until 10m"),
        (&["findings", "--cluster", "c2"], "no cluster \"c2\" was ever heard"),
        (&["nodes", "--cluster", "c 2"], "no cluster \"c 2\" was ever heard"),
        (&["events", "--intent", "oom-kil"], "\"oom-kil\" (--intent): did you mean oom-kill?"),
        (&["events", "--node", "n9"], "no node \"n9\" was heard in the last 30d"),
        (&["nodes", "--node", "n9"], "no node \"n9\" was heard in the last 30d"),
        (&["events", "--node", "n1", "--since", "1s"], ""),
    ] {
        let output = world.tapio(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        let listed = String::from_utf8(output.stdout).unwrap();
        assert_eq!((output.status.code(), listed), (Some(0), format!("no {}\n", arguments[0])), "{said}");
        assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{arguments:?}: {said}");
    }
    let newest = world.printed(&["events", "--limit", "1"]);
    assert!(newest.contains("there are older ones") && newest.contains(" n2 "), "{newest}");
    let json: serde_json::Value = serde_json::from_str(&world.printed(&["events", "--json"])).unwrap();
    assert_eq!(json["items"][0]["network"]["status"], 500);
    for (arguments, expected) in
        [(["--kind", "planet"], "kind: \"planet\" is none of"), (["--trace", "4bf"], "--trace: ")]
    {
        let output = world.tapio(&[&["events"], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stderr).unwrap().contains(expected), "{arguments:?}");
    }
}

/// Scenario: a call that nobody answered, made by a pod whose name is known; one by a pod whose name is not.
/// Guarantees: each line says which pod it was, by name where there is one, and that no answer came; `--pod` takes
/// what the line says.
#[test]
fn events_name_their_pods() {
    let Some(mut world) = World::start() else { return };
    let call = |row, pod_uid: &str| {
        let mut call = event(event_id(1, 1, 1, row), now().minus(Micros::from_secs(60 - u64::from(row))));
        call.event.core.kind = EventKind::Request;
        call.event.entity = Some(Entity { pod_uid: pod_uid.to_owned(), ..Entity::default() });
        call.event.network = Some(Network {
            method: "POST".to_owned(),
            route: "/pay".to_owned(),
            direction: "out".to_owned(),
            remote_address: "10.0.0.1".parse().unwrap(),
            remote_port: 8_080,
            ..Network::default()
        });
        call
    };
    world.insert_events(&[call(0, "6f1c5a9e-0000-4000"), call(1, "77777777-0000-4000")]);
    world.insert_entities(&[EntityRow {
        cluster: "c1".to_owned(),
        kind: "pod",
        id: "6f1c5a9e-0000-4000".to_owned(),
        names: vec![("namespace", "shop"), ("pod", "payment-1")],
        since: now().minus(Micros::from_secs(600)),
        until: now(),
    }]);
    let said = world.printed(&["events"]);
    let lines: Vec<&str> = said.lines().collect();
    for (line, pod) in [(lines[0], "pod=shop/payment-1"), (lines[1], "pod=77777777-000")] {
        let expected = format!(" {pod} POST /pay no answer to 10.0.0.1:8080");
        assert!(line.ends_with(&expected), "{expected:?} is missing in {line:?}");
    }
    for (pod, expected) in [("shop/payment-1", 0), ("payment-1", 0), ("77777777-000", 1)] {
        assert_eq!(world.printed(&["events", "--pod", pod]), format!("{}\n", lines[expected]));
    }
}

/// Ends the command however the test ends.
struct Following(Child);

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Scenario: `tapio events --follow --limit 1 --json` where more is stored already, while events are stored: new ones, some
/// that happened long before the last, and others that were asked to be left out; then the store is gone.
/// Guarantees: each comes once, as one line, soon after it is stored; what the limit left out does not come. Without the
/// store the command says so, and when it tries again, and goes on.
#[test]
fn events_are_followed() {
    let Some(mut world) = World::start() else { return };
    let at = |seconds| now().minus(Micros::from_secs(seconds));
    world.insert_events(&[event(event_id(1, 1, 0, 0), at(120)), event(event_id(1, 1, 1, 0), at(20))]);
    let mut command = tapio();
    command.args([
        "events",
        "--follow",
        "--limit",
        "1",
        "--json",
        "--node",
        "n1",
        "--api",
        &world.base,
        "--ca",
    ]);
    command.arg(&world.authority).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Following(command.spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<StoredEvent>(&lines.next().unwrap().unwrap()).unwrap().event.id;
    assert_eq!(next(), event_id(1, 1, 1, 0));
    world.insert_events(&[
        event(event_id(1, 1, 2, 0), at(1)),
        EventRow { node: "n2".to_owned(), ..event(event_id(1, 1, 2, 1), at(1)) },
    ]);
    assert_eq!(next(), event_id(1, 1, 2, 0));
    world.insert_events(&[event(event_id(1, 1, 3, 0), at(15))]);
    assert_eq!(next(), event_id(1, 1, 3, 0));
    world.insert_events(&[event(event_id(1, 1, 4, 0), at(400))]);
    assert_eq!(next(), event_id(1, 1, 4, 0));
    world.insert_events(&[event(event_id(1, 1, 5, 0), at(0))]);
    assert_eq!(next(), event_id(1, 1, 5, 0));
    world.stop_engine();
    let mut said = BufReader::new(child.0.stderr.take().unwrap()).lines();
    for seconds in [1, 2] {
        let line = said.next().unwrap().unwrap();
        assert!(
            line.starts_with("tapio: ") && line.ends_with(&format!("; trying again in {seconds} s")),
            "{line}"
        );
    }
    assert_eq!(child.0.try_wait().unwrap(), None);
}

/// Scenario: `tapio nodes` with none stored; with a live node that lost something and a silent one that says nothing of
/// itself; with each option; as JSON.
/// Guarantees: each node has a row with what it said, and below it what does not work and what was lost.
#[test]
fn nodes_are_a_table() {
    let Some(mut world) = World::start() else { return };
    assert_eq!(world.printed(&["nodes"]), "no nodes\n");
    world.insert_hosts(&[host("c1", "n1", 1)]);
    world.insert_sources(&[SourceRow {
        node: "n2",
        incarnation: 1,
        capability: r#"["exec=working"]"#,
        last_seen: now().minus(Micros::from_secs(500)),
    }]);
    world.insert_ledger(&[LedgerRow {
        cluster: "c1".to_owned(),
        node: "n1".to_owned(),
        until: now().minus(Micros::from_secs(10)),
        stage: "kernel",
        fate: "lost",
        subject: "tcp_state".to_owned(),
        reason: "ring-full",
        count: 1_204,
    }]);
    let said = world.printed(&["nodes"]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 6, "{said}");
    for (line, expected) in [
        (lines[1], &["n1", "c1", "live", "0.1.0", "6.1.0-44-cloud-amd64", "1/3", "1,204"][..]),
        (lines[2], &["probe tcp-state is turned off"]),
        (lines[3], &["probe exec does not work: attach: EPERM"]),
        (lines[4], &["lost 1,204 tcp_state at kernel: ring-full"]),
        (lines[5], &["n2", "silent", "8 min", " - ", "1/1"]),
    ] {
        assert!(expected.iter().all(|part| line.contains(part)), "{expected:?} is missing in {line:?}");
    }
    assert_eq!(world.printed(&["nodes", "--state", "silent"]).lines().count(), 2);
    assert_eq!(world.printed(&["nodes", "--since", "1m", "--limit", "1"]).lines().count(), 5);
    let json: serde_json::Value = serde_json::from_str(&world.printed(&["nodes", "--json"])).unwrap();
    assert_eq!(json["items"][0]["budget"]["limits"]["ring_bytes"], 1 << 20);
}

/// Scenario: completions for each shell, without an API, and for one that there is not.
/// Guarantees: each script names every command; bash reads its own without complaint.
#[test]
fn shells_complete() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tapio().args(["completions", shell]).output().unwrap();
        assert!(output.status.success(), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        for command in ["findings", "explain", "events", "nodes", "status", "severity-min"] {
            assert!(script.contains(command), "{shell}: {command} is missing");
        }
        if shell == "bash" {
            let checked = std::process::Command::new("bash").args(["-n", "-c", &script]).status().unwrap();
            assert!(checked.success());
        }
    }
    assert_eq!(tapio().args(["completions", "tcsh"]).output().unwrap().status.code(), Some(2));
}
