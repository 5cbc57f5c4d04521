//! The whole road: real processes in real cgroups, the real kernel, the three tiers, the real engine. What the
//! workload did, by its own account, is compared with what is stored, key by key.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "this whole file is tests: a helper that fails is a test that fails, and what it prints says with which seed"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use clap::Parser as _;
use serde_json::Value;
use support::{STORED_WAIT_MAX, assert_all_stored, not_proven, seed};
use tapio_central::{api::rest::page::List, cli};
use tapio_loadtest::{
    compare::{Outcome, judge},
    one_process::OneProcess,
    run_record::RunRecord,
    scenario::{Kind, Pace, Runtime, Scenario, Truth},
    truth_log::{Failure, Role, TruthLine},
    workload::{Account, Surroundings, Workload},
};

#[path = "support/stored.rs"]
mod support;

/// How long a finding may take after the first failed request.
const FINDING_WAIT_MAX: Duration = Duration::from_secs(30);

/// One run of a scenario through all tiers.
struct Run {
    scenario: Scenario,
    truth: Truth,
    tiers: OneProcess,
    account: Account,
    findings: Vec<Value>,
    // Kept until the end: the engine's files are in it.
    _folder: tempfile::TempDir,
}

fn run(kind: Kind, runtime: Runtime, label: &str) -> Run {
    let scenario = Scenario { runtime, ..Scenario::draw(kind, seed(label), Pace::Test) };
    let folder = tempfile::tempdir().unwrap();
    // The engine runs unprivileged and must be able to reach its own folder.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let identities = folder.path().join("identities.json");
    std::fs::write(&identities, serde_json::to_vec(&scenario.identity()).unwrap()).unwrap();
    let tiers = OneProcess::start(folder.path(), &scenario.node, &identities).unwrap();
    assert_eq!(tiers.failed_probes(), Vec::<String>::new(), "every probe works on this kernel");

    let record = RunRecord::create(&folder.path().join("record")).unwrap();
    let logs = folder.path().join("workload");
    std::fs::create_dir(&logs).unwrap();
    let surroundings = Surroundings {
        program: Path::new(env!("CARGO_BIN_EXE_tapio-workload")),
        folder: &logs,
        record: &record,
    };
    let mut workload = Workload::start(&scenario, surroundings).unwrap();
    let findings = match kind {
        Kind::Leak => {
            let wait_max = scenario.fault_after() + Duration::from_secs(45);
            assert!(workload.wait_for_first_failure(wait_max).is_some(), "the leak must make requests fail");
            await_finding(&tiers)
        }
        Kind::Healthy => {
            std::thread::sleep(scenario.fault_after() + Duration::from_secs(4));
            list_findings(&tiers)
        }
        Kind::PortInUse => {
            // The kubelet's part, until the third container: what it does later only happens again.
            let deadline = Instant::now() + scenario.fault_after() + Duration::from_secs(45);
            let mut starts: BTreeSet<u32> = BTreeSet::new();
            while starts.len() < 4 {
                assert!(Instant::now() < deadline, "the service must be restarted: {starts:?}");
                workload.supervise(surroundings).unwrap();
                starts.extend(
                    workload.services().iter().skip(scenario.restart.position).take(1).map(|it| it.pid()),
                );
                std::thread::sleep(Duration::from_millis(10));
            }
            await_finding(&tiers)
        }
        Kind::MissingConfig | Kind::Restart | Kind::WrongConfig | Kind::PortFree => {
            panic!("these are left to the demo")
        }
    };
    let truth = workload.truth();
    let account = workload.stop().unwrap();
    record.close().unwrap();
    Run { scenario, truth, tiers, account, findings, _folder: folder }
}

fn list_findings(tiers: &OneProcess) -> Vec<Value> {
    tiers.api.get::<List<Value>>("/findings", &[]).unwrap().items
}

/// The findings once there are some and their revisions have stopped for two seconds.
fn await_finding(tiers: &OneProcess) -> Vec<Value> {
    let deadline = Instant::now() + FINDING_WAIT_MAX;
    let mut settled_since: Option<(Instant, u64)> = None;
    while Instant::now() < deadline {
        let findings = list_findings(tiers);
        let revisions = findings.iter().filter_map(|finding| finding["revision"].as_u64()).sum();
        match settled_since {
            Some((since, seen)) if seen == revisions && since.elapsed() > Duration::from_secs(3) => {
                return findings;
            }
            Some((_, seen)) if seen == revisions => {}
            _ if findings.is_empty() => {}
            _ => settled_since = Some((Instant::now(), revisions)),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    list_findings(tiers)
}

/// Waits until what is stored equals what was told, and shows the difference where it never does.
fn assert_every_request_is_stored(run: &Run, survivors: &BTreeMap<String, String>) {
    assert_all_stored(&run.account, survivors, |sql| run.tiers.rows(sql).unwrap());
}

/// Traces of the stored events of `survivors` that meet a condition.
fn stored_traces(run: &Run, survivors: &BTreeMap<String, String>, condition: &str) -> BTreeSet<String> {
    let rows = run
        .tiers
        .rows(&format!(
            "SELECT DISTINCT entity_container_id AS container, trace_id FROM tapio.events WHERE {condition}"
        ))
        .unwrap();
    rows.iter()
        .filter(|row| survivors.values().any(|survivor| row["container"] == survivor.as_str()))
        .map(|row| row["trace_id"].as_str().unwrap().to_owned())
        .collect()
}

/// Traces of the lines of `survivors` that `choose` takes.
fn told_traces(
    run: &Run,
    survivors: &BTreeMap<String, String>,
    choose: impl Fn(&TruthLine) -> bool,
) -> BTreeSet<String> {
    let lines = run.account.lines.iter();
    lines
        .filter(|line| survivors.contains_key(&line.service) && choose(line))
        .filter_map(|line| line.trace_id.clone())
        .collect()
}

/// The traces of failed requests: of those that were answered with 500 or above by whoever called the dead service,
/// or, where nobody stands before it, of those that its death left without an answer.
fn assert_failed_traces_are_stored(run: &Run, survivors: &BTreeMap<String, String>) {
    let front = &run.scenario.chain[0].service;
    let front_died = run.scenario.truth().culprit.is_some_and(|culprit| culprit.service == *front);
    let (told, may_be, stored) = if front_died {
        let sent = |line: &TruthLine| line.role == Role::Sent && line.status.is_none();
        // A request that could not be written whole is one that the kernel never saw whole either.
        let unanswered = |line: &TruthLine| sent(line) && line.error == Some(Failure::Eof);
        let condition = "intent = 'request-unanswered' AND network_direction = 'out'";
        (
            told_traces(run, survivors, unanswered),
            told_traces(run, survivors, sent),
            stored_traces(run, survivors, condition),
        )
    } else {
        let failed =
            |line: &TruthLine| line.role == Role::Received && line.status.is_some_and(|status| status >= 500);
        let told = told_traces(run, survivors, failed);
        assert!(!told.is_empty(), "a leak must make some service answer 500");
        let condition = "intent = 'request-served-error' AND network_status >= 500";
        (told.clone(), told, stored_traces(run, survivors, condition))
    };
    let missing: Vec<_> = told.difference(&stored).collect();
    let invented: Vec<_> = stored.difference(&may_be).collect();
    assert!(missing.is_empty() && invented.is_empty(), "missing {missing:?}\ninvented {invented:?}");
}

/// Refused connections of `survivors` as they are stored.
fn stored_refusals(run: &Run, survivors: &BTreeMap<String, String>) -> BTreeMap<(String, u64), u64> {
    let rows = run
        .tiers
        .rows(
            "SELECT entity_container_id AS container, network_remote_port AS port, sum(count) AS total \
             FROM tapio.events WHERE intent = 'connection-refused' AND entity_container_id != '' \
             GROUP BY container, port",
        )
        .unwrap();
    rows.iter()
        .map(|row| {
            let key = (row["container"].as_str().unwrap().to_owned(), row["port"].as_u64().unwrap());
            (key, row["total"].as_u64().unwrap())
        })
        .filter(|((container, _), _)| survivors.values().any(|survivor| survivor == container))
        .collect()
}

/// Refused connections by caller's container and port, as told and as stored.
fn assert_refusals_are_stored(run: &Run, survivors: &BTreeMap<String, String>) {
    let mut told: BTreeMap<(String, u64), u64> = BTreeMap::new();
    for line in &run.account.lines {
        if let (Some(container), Some(Failure::Refused)) = (survivors.get(&line.service), line.error) {
            *told.entry((container.clone(), u64::from(line.peer_port))).or_default() += 1;
        }
    }
    assert!(!told.is_empty(), "calls to a dead service must be refused");
    let deadline = Instant::now() + STORED_WAIT_MAX;
    let mut stored = stored_refusals(run, survivors);
    while stored != told && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(250));
        stored = stored_refusals(run, survivors);
    }
    assert_eq!(stored, told, "refused connections by caller and port");
}

fn assert_nothing_is_stored_twice(run: &Run) {
    let twice = run
        .tiers
        .rows("SELECT count() - uniqExact(source_id, incarnation, sequence, row) AS twice FROM tapio.events")
        .unwrap();
    assert_eq!(twice[0]["twice"], 0);
}

/// Service name to container id, the killed service left out: the tail of its account died with it.
fn survivors(run: &Run) -> BTreeMap<String, String> {
    let culprit = run.scenario.truth().culprit.map(|culprit| culprit.container_id);
    run.scenario
        .pods()
        .filter(|pod| Some(&pod.container_id) != culprit.as_ref())
        .map(|pod| (pod.service.clone(), pod.container_id.clone()))
        .collect()
}

/// The recording, replayed by the people's command, gives what was live byte for byte, and what REST gave.
fn assert_replay_is_what_was_live(recordings: &Path, findings: &[Value]) {
    let words = ["tapio", "replay", recordings.to_str().unwrap(), "--json", "--compare"];
    let mut revisions = Vec::new();
    cli::run(&cli::Arguments::try_parse_from(words).unwrap(), &mut revisions).unwrap();
    let text = String::from_utf8(revisions).unwrap();
    let revisions: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for finding in findings {
        assert!(
            revisions.contains(finding),
            "the replay has no {} revision {}",
            finding["id"],
            finding["revision"]
        );
    }
}

fn leak(runtime: Runtime, label: &str) {
    if not_proven("a leak is found by its evidence, and what happened is what is stored") {
        return;
    }
    let run = run(Kind::Leak, runtime, label);
    let survivors = survivors(&run);
    assert_every_request_is_stored(&run, &survivors);
    assert_failed_traces_are_stored(&run, &survivors);
    assert_refusals_are_stored(&run, &survivors);
    assert_nothing_is_stored_twice(&run);
    let judgement = judge(&run.truth, &run.scenario.members(), &run.findings);
    assert!(judgement.right, "{}: {:#?}", judgement.wrong_because, run.findings);
    assert_replay_is_what_was_live(&run.tiers.stop().unwrap(), &run.findings);
}

/// The body of an HTTP answer.
fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{path} of {address}: {head}");
    body.to_owned()
}

/// Holds the metrics of every tier to Prometheus's own checker.
fn check_metrics(tiers: &OneProcess) {
    let promtool = std::env::var_os("TAPIO_PROMTOOL").unwrap_or_else(|| "promtool".into());
    if Command::new(&promtool).arg("--version").output().is_err() {
        let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
        assert!(
            allowed.split(',').any(|name| name == "promtool"),
            "{promtool:?} cannot be run: name one in TAPIO_PROMTOOL (./scripts/test fetches it), or list promtool in \
             TAPIO_NOT_PROVEN"
        );
        println!("not proven: promtool: that Prometheus takes every tier's metrics");
        return;
    }
    assert_eq!(tiers.telemetry.len(), 3);
    for (tier, address) in &tiers.telemetry {
        let metrics = http_get(*address, "/metrics");
        assert!(metrics.lines().any(|line| line.starts_with("tapio_")), "{tier}: {metrics}");
        let mut checker = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        checker.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
        let output = checker.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.trim().is_empty(), "{tier}: {said}\n{metrics}");
    }
}

/// Scenario: one of three services (one thread per request) leaks until the kernel kills it, under load.
/// Guarantees: the finding names the killed container; every request, failed trace and refused connection that the
/// processes tell of is stored, counts exact, nothing twice.
#[test]
fn a_leak_in_threads_is_found_and_everything_is_stored() {
    leak(Runtime::Threads, "end-to-end-threads");
}

/// Scenario: as above, on an async runtime that interleaves requests on few threads.
/// Guarantees: as above.
#[test]
fn a_leak_in_tasks_is_found_and_everything_is_stored() {
    leak(Runtime::Async, "end-to-end-async");
}

/// Scenario: a service is restarted, and a process that belongs to none has taken its port, wherever it runs and whatever
/// callers meet.
/// Guarantees: the finding names that process, by command, process id and container; nothing is stored twice.
#[test]
fn a_taken_port_is_found_with_who_has_it() {
    if not_proven("a taken port is found by its evidence") {
        return;
    }
    let run = run(Kind::PortInUse, Runtime::Threads, "end-to-end-port");
    assert_nothing_is_stored_twice(&run);
    let judgement = judge(&run.truth, &run.scenario.members(), &run.findings);
    assert!(judgement.right, "{}: {:#?}", judgement.wrong_because, run.findings);
    run.tiers.stop().unwrap();
}

/// Scenario: the same system, load and draw, and nothing is wrong.
/// Guarantees: no finding; every request is stored; Prometheus takes the metrics of every tier without a complaint.
#[test]
fn health_makes_no_finding() {
    if not_proven("a healthy run makes no finding") {
        return;
    }
    let run = run(Kind::Healthy, Runtime::Threads, "end-to-end-healthy");
    check_metrics(&run.tiers);
    assert_every_request_is_stored(&run, &survivors(&run));
    assert_nothing_is_stored_twice(&run);
    let judgement = judge(&run.truth, &run.scenario.members(), &run.findings);
    assert_eq!(judgement.outcome, Outcome::None, "{:#?}", run.findings);
    assert_replay_is_what_was_live(&run.tiers.stop().unwrap(), &run.findings);
}
