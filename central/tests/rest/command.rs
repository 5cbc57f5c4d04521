//! The `tapio` command, as people run it.

use std::process::{Command, Output, Stdio};

use tapio_central::api::rest::page::List;
use tapio_schemas::{
    finding::{Finding, FindingState},
    units::Micros,
};

use crate::{
    rows::{LedgerRow, SourceRow},
    samples::finding,
    world::{World, now},
};

/// The command without any setting of whoever runs this test.
pub(crate) fn tapio() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tapio"));
    command.env_remove("TAPIO_API").env_remove("TAPIO_CA").stdin(Stdio::null());
    command
}

impl World {
    pub(crate) fn tapio(&self, arguments: &[&str]) -> Output {
        tapio().args(arguments).args(["--api", &self.base, "--ca"]).arg(&self.authority).output().unwrap()
    }

    /// What the command prints, when it succeeds and says nothing else.
    pub(crate) fn printed(&self, arguments: &[&str]) -> String {
        let output = self.tapio(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// What a command that fails says; nothing may stand on stdout.
fn failure(output: &Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn seen(world: &mut World) -> Vec<Finding> {
    let start = now().minus(Micros::from_secs(600));
    let mut findings: Vec<Finding> =
        (1..=3).map(|number| finding(number << 60, start.plus(Micros::from_secs(number)))).collect();
    findings[0].state = FindingState::Resolved;
    findings[1].cluster = "c2".parse().unwrap();
    world.insert_findings(&findings);
    findings
}

/// Scenario: `tapio findings` with none stored, with three, with each option, as a table and as JSON.
/// Guarantees: the table has a row per finding, newest first; the JSON is the API's own.
#[test]
fn findings_are_listed() {
    let Some(mut world) = World::start() else { return };
    assert_eq!(world.printed(&["findings"]), "no findings\n");
    let findings = seen(&mut world);

    let table = world.printed(&["findings"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[0].starts_with("ID"), "{table}");
    for (line, finding) in lines[1..].iter().zip(findings.iter().rev()) {
        assert!(line.starts_with(&finding.id[..10]) && line.ends_with(&finding.title), "{line}");
        assert!(line.contains(finding.state.as_str()) && line.contains("critical"), "{line}");
    }
    let cut = world.printed(&["findings", "--limit", "2"]);
    assert_eq!(cut.lines().count(), 4, "{cut}");
    assert!(cut.lines().last().unwrap().starts_with("there are more"), "{cut}");

    let json = |arguments: &[&str]| {
        let arguments = [&["findings", "--json"], arguments].concat();
        serde_json::from_str::<List<Finding>>(&world.printed(&arguments)).unwrap().items
    };
    assert_eq!(json(&[]), [2, 1, 0].map(|index: usize| findings[index].clone()));
    assert_eq!(json(&["--state", "resolved"]), [findings[0].clone()]);
    assert_eq!(json(&["--cluster", "c2"]), [findings[1].clone()]);
    assert_eq!(json(&["--limit", "1"]), [findings[2].clone()]);
    assert_eq!(json(&["--since", "5m"]), []);

    let mut with_environment = tapio();
    with_environment.env("TAPIO_API", &world.base).env("TAPIO_CA", &world.authority).arg("findings");
    assert_eq!(with_environment.output().unwrap().status.code(), Some(0));
}

/// Scenario: `tapio explain` of a finding by a part of its id, as a story and as JSON; a title and a line in which a
/// program hid sequences for terminals.
/// Guarantees: the story has the title, every line of the chain with its role, what is missing, what was lost and what
/// to do; nothing steers the terminal; the JSON is the finding, unchanged.
#[test]
fn a_finding_is_explained() {
    let Some(mut world) = World::start() else { return };
    let mut hostile = finding(0x71aa_0000_0000_0000, now().minus(Micros::from_secs(60)));
    hostile.title = "payment\u{1b}[2J was\nkilled\u{9b}\u{202e}".to_owned();
    world.insert_findings(std::slice::from_ref(&hostile));

    let story = world.printed(&["explain", "f-71aa"]);
    assert!(story.starts_with("payment\\u{1b}[2J was\\nkilled\\u{9b}\\u{202e}\n"), "{story}");
    assert!(story.chars().all(|character| character == '\n' || !character.is_control()), "{story:?}");
    let roles = ["cause", "fault", "effect", "symptom"];
    let chain = story.lines().skip_while(|line| !line.contains(" cause "));
    for (line, (role, shown)) in chain.clone().zip(roles.iter().zip(&hostile.lines)) {
        assert!(line.contains(role) && line.contains(&shown.text) && line.ends_with(&shown.basis), "{line}");
    }
    for expected in [
        "not found: retries (it was not there)",
        "evidence 4 of 5 expected · lost in the window: 3 of 18,204 records · clock error 40 µs",
        "without probes tcp-reset",
        "changed before: payment was started",
        "do: raise the limit, or find the leak",
        "found 0.6 s after the first symptom · tapio explain f-71aa0000",
    ] {
        assert!(story.contains(expected), "{expected:?} is missing in\n{story}");
    }
    let place = story.lines().nth(1).unwrap();
    assert!(place.starts_with("  cluster c1 · 20") && place.ends_with(" UTC"), "{place}");
    for pod in hostile.names.iter().filter_map(|named| named.pod.as_ref()) {
        let is_told = |line: &str| line.contains(&format!("is pod {}/{}", pod.namespace, pod.pod));
        assert!(story.lines().any(is_told), "{pod:?} is missing in\n{story}");
    }
    let at = chain.clone().next().unwrap().trim_start().split("  ").next().unwrap();
    assert!(at.len() == 10 && at.as_bytes()[2] == b':', "{at}");
    let json = world.printed(&["explain", "f-71aa", "--json"]);
    assert!(json.chars().all(|character| character == '\n' || !character.is_control()), "{json:?}");
    let json: Finding = serde_json::from_str(&json).unwrap();
    assert_eq!(json, hostile);
}

/// Scenario: `tapio status` with a live and a silent source, losses, and findings of which one is resolved.
/// Guarantees: the answer comes first, with the heaviest reason; the screen names them all and fits; the JSON too.
#[test]
fn status_is_one_screen() {
    let Some(mut world) = World::start() else { return };
    let findings = seen(&mut world);
    let ago = |seconds| now().minus(Micros::from_secs(seconds));
    let source = |node, last_seen| SourceRow {
        node,
        incarnation: 1,
        capability: r#"["exec=working","oom=disabled"]"#,
        last_seen,
    };
    world.insert_sources(&[source("n1", ago(1)), source("n2", ago(500))]);
    let line = |stage, fate, reason, count| LedgerRow {
        cluster: "c1".to_owned(),
        node: "n1".to_owned(),
        until: ago(10),
        stage,
        fate,
        subject: "tcp-state".to_owned(),
        reason,
        count,
    };
    world.insert_ledger(&[line("kernel", "carried", "", 18_000), line("kernel", "lost", "ring-full", 204)]);

    let output = world.tapio(&["status"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.contains("not to be trusted")), (Some(1), true), "{said}");
    let screen = String::from_utf8(output.stdout).unwrap();
    // Cut where the screen ends.
    let title: String = findings[2].title.chars().take(60).collect();
    for expected in [
        "trust: no\n",
        "1 of 2 nodes is silent: n2 (8 min)",
        "lost 204 of 18204 records in 5 minutes, most of them: n1 204 tcp-state at kernel",
        "central   central-test",
        "nodes     1 live, 1 silent",
        "records   18,204 in 5 minutes, 204 lost",
        "findings  2 open, of the last 30 days",
        &title,
    ] {
        let unwrapped = screen.replace("\n    ", " ");
        assert!(unwrapped.contains(expected), "{expected:?} is missing in\n{screen}");
    }
    let shown = |finding: &Finding| screen.contains(&finding.id[..10]);
    assert_eq!(findings.iter().map(shown).collect::<Vec<_>>(), [false, true, true], "{screen}");
    assert!(
        screen.lines().count() <= 24 && screen.lines().all(|line| line.chars().count() <= 80),
        "{screen}"
    );
    let answer = world.tapio(&["status", "--json"]);
    assert_eq!(answer.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    assert_eq!((&json["trust"], &json["nodes"]["silent"]), (&"no".into(), &1.into()));
    assert_eq!((&json["losses"]["lost_records"], &json["open_findings"]), (&204.into(), &2.into()));
}

/// Scenario: an unknown, an ambiguous and an impossible id; options that the API refuses; an API that is not there; one
/// whose store is gone; an authority's file that is missing or holds no certificate; wrong arguments.
/// Guarantees: status 1 (2 for wrong arguments), a sentence on stderr that says what and what to do, nothing on stdout.
#[test]
fn failures_say_what_to_do() {
    let Some(mut world) = World::start() else { return };
    let at = now().minus(Micros::from_secs(60));
    world.insert_findings(&[finding(0x71aa_0000_0000_0001, at), finding(0x71aa_0000_0000_0002, at)]);
    for (arguments, code, expected) in [
        (&["explain", "f-0bad"][..], 1, &["tapio: not found", "f-0bad"][..]),
        (&["explain", "f-0bad", "--json"], 1, &["tapio: not found"]),
        (&["explain", "f-71aa"], 1, &["ambiguous", "f-71aa000000000001", "f-71aa000000000002"]),
        (&["explain", "../events"], 2, &["id:", "is no finding's id"]),
        (&["explain", ".."], 2, &["id:", "is no finding's id"]),
        (&["explain", "f-71aa?limit=1"], 2, &["id:", "is no finding's id"]),
        (&["findings", "--limit", "5000"], 2, &["limit: \"5000\" is not a whole number from 1 to 1000"]),
        (
            &["findings", "--state", "on", "--since", "x"],
            2,
            &["state: ", "since: ", "open, resolved, superseded"],
        ),
    ] {
        let (status, said) = failure(&world.tapio(arguments));
        assert_eq!(status, Some(code), "{arguments:?}: {said}");
        assert!(expected.iter().all(|part| said.contains(part)), "{arguments:?}: {said}");
    }

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("https://{}", silent.local_addr().unwrap());
    drop(silent);
    let empty = world.folder().join("empty.pem");
    std::fs::write(&empty, "nothing").unwrap();
    let (missing, empty) = (world.folder().join("missing.pem"), empty.to_str().unwrap());
    for (arguments, expected) in [
        (["--api", &nobody, "--ca", world.authority.to_str().unwrap()], (1, "is central running there")),
        (["--api", &world.base, "--ca", missing.to_str().unwrap()], (2, "missing.pem")),
        (["--api", &world.base, "--ca", empty], (2, "holds no certificate")),
        // An empty name is none: then public authorities count.
        (
            ["--api", &world.base, "--ca", ""],
            (1, "name the authority that signed its certificate (--ca, TAPIO_CA)"),
        ),
        (["--api", "127.0.0.1:7443", "--ca", ""], (2, "write https:// before the name")),
    ] {
        let (code, expected) = expected;
        for command in [&["status"][..], &["findings"], &["explain", "f-71aa", "--json"]] {
            let (status, said) = failure(&tapio().args(command).args(arguments).output().unwrap());
            assert_eq!(status, Some(code), "{command:?} {said}");
            assert!(said.starts_with("tapio: ") && said.contains(expected), "{command:?} {said}");
        }
    }
    for arguments in
        [&[][..], &["explain"], &["explain", ""], &["findings", "--limit", "many"], &["nonsense"]]
    {
        assert_eq!(failure(&tapio().args(arguments).output().unwrap()).0, Some(2), "{arguments:?}");
    }
    world.stop_engine();
    let (status, said) = failure(&world.tapio(&["findings"]));
    assert_eq!(status, Some(1));
    assert!(said.contains("the store did not answer"), "{said}");
}
