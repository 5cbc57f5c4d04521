//! Each tier is killed with SIGKILL under load, as processes of their own: what was acknowledged is there once, what was
//! not seen is not invented, and everybody says what happened.
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
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{STORED_WAIT_MAX, assert_all_stored, not_proven, seed, stored, told};
use tapio_central::api::rest::{page::List, status::StatusAnswer};
use tapio_loadtest::{
    processes::{Kind, Processes},
    run_record::RunRecord,
    scenario::{self, Pace, Scenario},
    workload::{Account, Surroundings, Workload},
};
use tapio_spool::{Item, Spool, SpoolConfig};
use tapio_wire::frame::FrameHeader;

#[path = "support/stored.rs"]
mod support;

/// How long the load goes on between two faults.
const LOAD: Duration = Duration::from_secs(2);

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + STORED_WAIT_MAX;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {STORED_WAIT_MAX:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Runs a healthy workload, and `meanwhile` under its load.
fn under_load(scenario: &Scenario, folder: &Path, meanwhile: impl FnOnce()) -> Account {
    let record = RunRecord::create(&folder.join("record")).unwrap();
    let logs = folder.join(format!("workload-{}", scenario.seed));
    fs::create_dir(&logs).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_tapio-workload"));
    let workload =
        Workload::start(scenario, Surroundings { program, folder: &logs, record: &record }).unwrap();
    std::thread::sleep(LOAD);
    meanwhile();
    std::thread::sleep(LOAD);
    let account = workload.stop().unwrap();
    record.close().unwrap();
    account
}

/// Service name to container id.
fn containers(scenario: &Scenario) -> BTreeMap<String, String> {
    scenario.pods().map(|pod| (pod.service.clone(), pod.container_id.clone())).collect()
}

fn draw(label: &str) -> Scenario {
    Scenario::draw(scenario::Kind::Healthy, seed(label), Pace::Test)
}

/// A folder that the engine's user may pass, and three tiers in it.
fn start(scenario: &Scenario) -> (tempfile::TempDir, Processes) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let identities = folder.path().join("identities.json");
    fs::write(&identities, serde_json::to_vec(&scenario.identity()).unwrap()).unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_tapio-workload")).parent().unwrap();
    let tiers = Processes::start(folder.path(), programs, &scenario.node, &identities).unwrap();
    (folder, tiers)
}

fn rows(tiers: &Processes, sql: &str) -> Vec<Value> {
    tiers.rows(sql).unwrap()
}

fn assert_nothing_is_stored_twice(tiers: &Processes) {
    let sql = "SELECT count() - uniqExact(source_id, incarnation, sequence, row) AS twice FROM tapio.events";
    assert_eq!(rows(tiers, sql)[0]["twice"], 0);
}

/// A line of the ledger: stage, fate, subject, reason.
type Line = [String; 4];

/// The agent's ledger as its metrics have it.
fn metered(tiers: &Processes) -> BTreeMap<Line, u64> {
    let (_, metrics) = tiers.telemetry(Kind::EdgeAgent, "/metrics").unwrap();
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("tapio_ledger_items_total{"));
    lines
        .map(|line| {
            let (labels, value) = line.split_once("} ").unwrap();
            let value_of = |label: &str| {
                let (_, rest) = labels.split_once(&format!("{label}=\"")).unwrap();
                rest.split_once('"').unwrap().0.to_owned()
            };
            (["stage", "fate", "subject", "reason"].map(value_of), value.parse().unwrap())
        })
        .collect()
}

/// The agent's ledger as it is stored.
fn ledger(tiers: &Processes, node: &str) -> BTreeMap<Line, u64> {
    let sql = format!(
        "SELECT stage, fate, subject, reason, sum(count) AS n FROM tapio.ledger WHERE node = '{node}' GROUP BY ALL"
    );
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let line = |row: &Value| ["stage", "fate", "subject", "reason"].map(|name| text(row, name));
    rows(tiers, &sql).iter().map(|row| (line(row), row["n"].as_u64().unwrap())).collect()
}

/// What the metrics count is what the ledger tells: the stored one lies between two scrapes around it.
fn assert_metrics_are_the_ledger(tiers: &Processes, node: &str) {
    let before = metered(tiers);
    assert!(before.len() > 10, "{before:?}");
    let stored = wait_for("the ledger that the metrics have", || {
        let stored = ledger(tiers, node);
        before.iter().all(|(line, count)| stored.get(line).unwrap_or(&0) >= count).then_some(stored)
    });
    let after = metered(tiers);
    for (line, count) in stored {
        assert!(after.get(&line).is_some_and(|metered| count <= *metered), "{line:?}: {count} are stored");
    }
}

/// Scenario: three services call each other under load; central, the engine, and the aggregator with its engine are
/// killed one after the other, and started again where nobody does that for them.
/// Guarantees: every request that the services tell of is stored, exactly once; logs say what died and that data waits;
/// every tier is healthy again, and whoever asks central learns it; nobody announces a finding about it; the agent's metrics are the ledger that is stored.
#[test]
fn tiers_that_are_killed_under_load_lose_nothing() {
    if not_proven("kill -9 of central, the engine and the aggregator loses nothing") {
        return;
    }
    let scenario = draw("faults-tiers");
    let (folder, mut tiers) = start(&scenario);
    let account = under_load(&scenario, folder.path(), || {
        tiers.kill(Kind::Central).unwrap();
        assert!(tiers.api.get::<Value>("/health", &[]).is_err());
        tiers.begin(Kind::Central).unwrap();

        let engine = tiers.engine().unwrap();
        kill_process(Pid::from_raw(i32::try_from(engine).unwrap()).unwrap(), Signal::KILL).unwrap();
        wait_for("another engine", || tiers.engine().ok().filter(|pid| *pid != engine));
        std::thread::sleep(LOAD);

        tiers.kill(Kind::Aggregator).unwrap();
        std::thread::sleep(LOAD);
        tiers.begin(Kind::Aggregator).unwrap();
    });
    assert_all_stored(&account, &containers(&scenario), |sql| rows(&tiers, sql));
    assert_nothing_is_stored_twice(&tiers);
    assert_metrics_are_the_ledger(&tiers, &scenario.node);

    let said = [
        (Kind::Aggregator, "the embedded engine died and will be started again"),
        (Kind::Aggregator, "the engine has seen again what the spool holds"),
        (Kind::EdgeAgent, "no road to the aggregator, frames stay in the spool"),
    ];
    for (kind, message) in said {
        let log = tiers.log(kind).unwrap();
        assert!(log.contains(message), "{message}: {log}");
    }
    for kind in [Kind::EdgeAgent, Kind::Aggregator, Kind::Central] {
        let mut last = String::new();
        wait_for(&format!("{kind:?} to be healthy"), || {
            let (status, health) = tiers.telemetry(kind, "/healthz").unwrap();
            if health != last {
                println!("{kind:?}: {status} {health}");
                last = health;
            }
            (status == 200).then_some(())
        });
    }
    assert_eq!(tiers.api.get::<List<Value>>("/findings", &[]).unwrap().items, Vec::<Value>::new());
    wait_for("the aggregator's own word", || {
        let status = tiers.api.get::<StatusAnswer>("/status", &[]).unwrap();
        let aggregators = status.fleet.aggregators.unwrap_or_default();
        (aggregators.len() == 1 && aggregators[0].status == "healthy").then_some(())
    });
    tiers.stop().unwrap();
}

/// The frames in an agent's spool: incarnation and sequence.
fn spooled(directory: &Path) -> BTreeSet<(u64, u64)> {
    let (spool, _) = Spool::open(directory, SpoolConfig::default()).unwrap();
    let mut reader = spool.read_from(spool.first());
    let mut frames = BTreeSet::new();
    while let Some(item) = reader.next_item().unwrap() {
        if let Item::Record { payload, .. } = item {
            let id = FrameHeader::parse(payload).unwrap().meta.id;
            frames.insert((id.incarnation.0, id.sequence.0));
        }
    }
    frames
}

/// The middle of the time for which nobody watched, microseconds since 1970.
fn now_micros() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// Scenario: the agent is killed under load, and started again a second later.
/// Guarantees: every frame that was in its spool is stored, nothing twice, and nothing is stored that did not happen; the
/// new life has a higher number and its start is an event; no ledger claims to know of the time between the two.
#[test]
fn an_agent_that_is_killed_under_load_is_honest() {
    if not_proven("kill -9 of the agent loses nothing that it had spooled") {
        return;
    }
    let scenario = draw("faults-agent");
    let (folder, mut tiers) = start(&scenario);
    let node = scenario.node.clone();
    let copy = folder.path().join("spool");
    let mut unseen = 0;
    let account = under_load(&scenario, folder.path(), || {
        tiers.kill(Kind::EdgeAgent).unwrap();
        fs::create_dir(&copy).unwrap();
        for file in fs::read_dir(tiers.agent_state().join("spool")).unwrap().flatten() {
            fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
        std::thread::sleep(LOAD / 4);
        unseen = now_micros();
        std::thread::sleep(LOAD / 4);
        tiers.begin(Kind::EdgeAgent).unwrap();
        let lives = format!(
            "SELECT incarnation FROM tapio.events WHERE node = '{node}' AND intent = 'agent-started' ORDER BY incarnation"
        );
        wait_for("the new life's first event", || (rows(&tiers, &lives).len() == 2).then_some(()));
    });

    let kept = spooled(&copy);
    assert!(!kept.is_empty(), "the killed agent's spool was empty");
    let sql = format!("SELECT incarnation, sequence FROM tapio.frames WHERE node = '{node}'");
    wait_for("the frames that were in the spool", || {
        let number = |row: &Value, name: &str| row[name].as_u64().unwrap();
        let is_there: BTreeSet<_> = rows(&tiers, &sql)
            .iter()
            .map(|row| (number(row, "incarnation"), number(row, "sequence")))
            .collect();
        kept.is_subset(&is_there).then_some(())
    });
    std::thread::sleep(LOAD);
    assert_nothing_is_stored_twice(&tiers);
    let containers = containers(&scenario);
    let (told, stored) = (told(&account, &containers), stored(|sql| rows(&tiers, sql), &containers));
    for (request, count) in &stored {
        assert!(
            told.get(request).is_some_and(|told| count <= told),
            "{request:?}: {count} are stored, {told:?}"
        );
    }
    let (all, seen) = (told.values().sum::<u64>(), stored.values().sum::<u64>());
    println!("{seen} of {all} requests were seen over both lives");
    assert!(seen > all / 4 && seen < all, "{seen} of {all} requests are stored");
    let covers = format!(
        "SELECT count() AS n FROM tapio.ledger WHERE node = '{node}' AND toUnixTimestamp64Micro(since) <= {unseen} \
         AND toUnixTimestamp64Micro(until) >= {unseen}"
    );
    assert_eq!(rows(&tiers, &covers)[0]["n"], 0, "a ledger speaks of a time when no agent ran");
    tiers.stop().unwrap();
}
