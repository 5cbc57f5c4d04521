//! What a workload told of itself against what is stored, key by key.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

pub(crate) use proof::not_proven;
use serde_json::Value;
use tapio_loadtest::{random::Draw, truth_log::Role, workload::Account};

#[path = "proof.rs"]
mod proof;

/// What is captured reaches the store after the agent's fold window, its flush and one block: seconds at most.
pub(crate) const STORED_WAIT_MAX: Duration = Duration::from_secs(30);

/// The seed of a test, from the one of the whole run.
pub(crate) fn seed(label: &str) -> u64 {
    let printed = std::env::var("TAPIO_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let seed = Draw::labelled(printed, label).next_u64() % 1_000_000;
    println!("{label}: TAPIO_SEED={printed}, scenario seed {seed}");
    seed
}

/// Requests by (container, direction, method, status).
pub(crate) type Counts = BTreeMap<(String, &'static str, String, u64), u64>;

/// What the processes of `containers` (by service) say that they answered and were answered.
pub(crate) fn told(account: &Account, containers: &BTreeMap<String, String>) -> Counts {
    let mut counts = Counts::new();
    for line in &account.lines {
        let (Some(container), Some(status)) = (containers.get(&line.service), line.status) else { continue };
        let direction = match line.role {
            Role::Received => "in",
            Role::Sent => "out",
        };
        *counts.entry((container.clone(), direction, line.method.clone(), u64::from(status))).or_default() +=
            1;
    }
    counts
}

/// What is stored of `containers`.
pub(crate) fn stored(rows: impl Fn(&str) -> Vec<Value>, containers: &BTreeMap<String, String>) -> Counts {
    let rows = rows(
        "SELECT entity_container_id AS container, network_direction AS direction, network_method AS method, \
         network_status AS status, sum(count) AS total FROM tapio.events \
         WHERE intent LIKE 'request-%' AND network_status > 0 \
         GROUP BY container, direction, method, status",
    );
    let mut counts = Counts::new();
    for row in rows {
        let container = row["container"].as_str().unwrap().to_owned();
        if !containers.values().any(|known| *known == container) {
            continue;
        }
        let direction = if row["direction"] == "in" { "in" } else { "out" };
        let method = row["method"].as_str().unwrap().to_owned();
        counts.insert(
            (container, direction, method, row["status"].as_u64().unwrap()),
            row["total"].as_u64().unwrap(),
        );
    }
    counts
}

/// Waits until what is stored equals what was told, and shows the difference where it never does.
pub(crate) fn assert_all_stored(
    account: &Account,
    containers: &BTreeMap<String, String>,
    rows: impl Fn(&str) -> Vec<Value>,
) {
    let told = told(account, containers);
    assert!(
        told.values().sum::<u64>() > 100,
        "the workload made too few requests to prove anything: {told:?}"
    );
    let deadline = Instant::now() + STORED_WAIT_MAX;
    let mut found = stored(&rows, containers);
    while found != told && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(250));
        found = stored(&rows, containers);
    }
    let keys: BTreeSet<_> = told.keys().chain(found.keys()).collect();
    let differences: Vec<_> = keys
        .into_iter()
        .filter(|key| told.get(*key) != found.get(*key))
        .map(|key| format!("{key:?}: told {:?}, stored {:?}", told.get(key), found.get(key)))
        .collect();
    let lost = "SELECT stage, fate, subject, reason, sum(count) AS n FROM tapio.ledger WHERE fate = 'lost' GROUP BY ALL";
    assert!(differences.is_empty(), "{}\nlosses: {:?}", differences.join("\n"), rows(lost));
}
