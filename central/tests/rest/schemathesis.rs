//! Schemathesis against a real central over the real engine: requests drawn from the OpenAPI document, right and wrong
//! ones, and every answer held to the document.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tapio_schemas::{
    event::UnifiedEvent,
    field::{Cell, CellType, FIELDS},
    ids::{EventId, TraceId},
    units::Micros,
};

use crate::{
    nodes::host,
    rows::{EntityRow, LedgerRow},
    samples::{event, finding},
    world::{World, now},
};

/// Drawn requests for each resource, beside those that the document's limits alone ask for.
const EXAMPLES: &str = "25";
/// No run takes longer, whatever the machine has to do meanwhile; nextest gives it ten minutes.
const DEADLINE: Duration = Duration::from_secs(560);

/// The program, installed if it is not there; `None` where it may be missing and is.
fn program() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/fetch-schemathesis");
    let output = Command::new(script).output().unwrap();
    if output.status.success() {
        return Some(String::from_utf8(output.stdout).unwrap().trim().into());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
    assert!(allowed.split(',').any(|name| name.trim() == "schemathesis"), "{reason}");
    println!("not proven: schemathesis: {}", reason.lines().last().unwrap_or_default());
    None
}

/// An event in which every field of every layer is filled.
fn full_event(id: EventId) -> UnifiedEvent {
    let mut event = UnifiedEvent { id, ..UnifiedEvent::default() };
    for spec in FIELDS {
        let cell = match spec.cell {
            CellType::Unsigned => Cell::Unsigned(1),
            CellType::Signed => Cell::Signed(1),
            CellType::Float => Cell::Float(0.5),
            CellType::Sixteen => Cell::Sixteen([0x4b; 16]),
            CellType::Symbol => Cell::Symbol("some \u{e4} \"text\""),
        };
        assert!(event.set(spec.layer, spec.id, cell), "{}", spec.column);
    }
    event.core.time_micros = now().minus(Micros::from_secs(60)).0;
    event
}

/// Something of everything, among it what the document's examples name.
fn fill(world: &mut World) {
    let ago = |seconds| now().minus(Micros::from_secs(seconds));
    let named: EventId = "4bf92f3577b34da6a3ce929d0e0e4736-1-1-0".parse().unwrap();
    let mut row = event(named, ago(60));
    row.event = full_event(named);
    let mut rows = vec![row];
    rows.extend((1..150).map(|number| event(named.frame.row(number), ago(u64::from(number)))));
    rows[1].event.trace.get_or_insert_default().trace_id = TraceId([7; 16]);
    world.insert_events(&rows);
    let mut findings: Vec<_> =
        (0..5).map(|number| finding(0x71aa_0000_0000_0001 + number, ago(300))).collect();
    findings[4].lines.clear();
    world.insert_findings(&findings);
    world.insert_entities(&[EntityRow {
        cluster: "eu-1".to_owned(),
        kind: "pod",
        id: "0a1b".to_owned(),
        names: vec![("pod", "payment-0"), ("namespace", "default")],
        since: ago(900),
        until: ago(1),
    }]);
    // It stays live for as long as this may take.
    world.insert_hosts(&[host("eu-1", "node-1", 0), host("eu-1", "node-2", 700), host("c1", "n1", 9_000)]);
    world.insert_ledger(&[LedgerRow {
        cluster: "eu-1".to_owned(),
        node: "node-1".to_owned(),
        until: ago(30),
        stage: "kernel",
        fate: "lost",
        subject: "tcp_state".to_owned(),
        reason: "ring-full",
        count: 7,
    }]);
}

/// Scenario: schemathesis reads `openapi.json` and sends what it allows and what it does not: limits and one beyond,
/// wrong types, unknown methods, headers, drawn values; the store holds something of everything.
/// Guarantees: what the document allows is answered, what it does not is refused; each answer has a status, a media
/// type, headers and a shape that the document names; nothing is a server error.
#[test]
fn schemathesis_finds_nothing() {
    let Some(program) = program() else { return };
    let Some(mut world) = World::start() else { return };
    fill(&mut world);
    let seed = std::env::var("TAPIO_SEED").unwrap_or_else(|_| "1".to_owned());
    println!("TAPIO_SEED={seed}");
    let mut child = Command::new(program)
        .arg("run")
        .arg(format!("{}/api/v1/openapi.json", world.base))
        .arg("--tls-verify")
        .arg(&world.authority)
        .args(["--seed", &seed, "--max-examples", EXAMPLES, "--phases", "examples,coverage,fuzzing"])
        .args(["--checks", "all", "--exclude-checks", "ignored_auth"])
        .args(["--generation-database", "none", "--continue-on-failure", "--no-shrink", "--no-color"])
        // One worker: several change Python's recursion limit under each other's feet.
        .args(["--request-timeout", "30", "--workers", "1"])
        .env("PYTHONWARNINGS", "ignore")
        .current_dir(world.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut said = String::new();
        stdout.read_to_string(&mut said).unwrap();
        said
    });
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if started.elapsed() > DEADLINE {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let said = reader.join().unwrap();
    println!("{said}");
    let status = status.unwrap_or_else(|| panic!("it was still running after {DEADLINE:?}"));
    assert!(status.success(), "{status}, seed {seed}");
    // A run that tried nothing proves nothing.
    let resources = said.lines().filter_map(|line| line.trim().strip_prefix("Tested: ")?.parse::<u32>().ok());
    assert_eq!(resources.collect::<Vec<_>>(), [12], "not every resource was tried");
}
