//! Holds the code to ARCHITECTURE.md: which crate may import which, where things live, what is deliberately absent.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "this whole file is tests: a helper that fails is a test that fails"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Each of our crates with its folder and the crates of ours that it imports (tests' imports left out).
fn crates() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut crates = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let folder = Path::new(&text(&package["manifest_path"])).parent().unwrap().to_owned();
        let folder = folder.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let imports = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|dependency| dependency["kind"] != "dev")
            .map(|dependency| text(&dependency["name"]))
            .filter(|name| name.starts_with("tapio-"))
            .collect();
        crates.insert(text(&package["name"]), (folder, imports));
    }
    crates
}

/// Every Rust file below `folder`, build output left out.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !name.starts_with("target") && name != "fuzz" {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The text of a source file up to its inline tests; nothing of a file that holds tests alone.
fn production_code(path: &Path) -> String {
    let test_files = ["tests", "allocations"];
    let is_tests = |name: &std::ffi::OsStr| test_files.iter().any(|test| name == *test);
    if path.file_stem().is_some_and(is_tests) || path.parent().is_some_and(|folder| folder.ends_with("tests"))
    {
        return String::new();
    }
    let text = fs::read_to_string(path).unwrap();
    text.split("\n#[cfg(test)]").next().unwrap_or_default().to_owned()
}

/// Scenario: somebody adds a dependency between our crates.
/// Guarantees: arrows point down: foundations import nothing, libraries import the language, tiers never each other.
#[test]
fn arrows_point_down() {
    let language = ["tapio-schemas"];
    let allowed: BTreeMap<&str, Vec<&str>> = BTreeMap::from([
        ("tapio-kernel-abi", vec![]),
        ("tapio-spool", vec![]),
        ("tapio-daemon", vec![]),
        ("tapio-schemas", vec!["tapio-kernel-abi"]),
        ("tapio-wire", language.to_vec()),
        ("tapio-proto", language.to_vec()),
        ("tapio-generator", vec![]),
        ("tapio-protocols", language.to_vec()),
        ("tapio-identity", language.to_vec()),
        ("tapio-store", language.to_vec()),
        ("tapio-ui", vec![]),
        ("tapio-correlation", vec!["tapio-schemas", "tapio-baseline"]),
        ("tapio-compiler", vec!["tapio-schemas", "tapio-correlation"]),
        ("tapio-recording", vec!["tapio-schemas", "tapio-correlation", "tapio-wire"]),
    ]);
    let tiers = ["tapio-edge-agent", "tapio-aggregator", "tapio-central"];
    for (name, (_, imports)) in crates() {
        for import in &imports {
            let fits = match allowed.get(name.as_str()) {
                Some(allowed) => allowed.contains(&import.as_str()),
                None if tiers.contains(&name.as_str()) => {
                    !tiers.contains(&import.as_str()) && import != "tapio-loadtest"
                }
                None => name == "tapio-loadtest",
            };
            assert!(fits, "{name} must not import {import}: see the invariants of ARCHITECTURE.md");
        }
    }
}

/// Scenario: the agent, or anything that it links, comes to depend on what reads rule files, or on Kubernetes.
/// Guarantees: the node's binary holds no parser of rules and no Kubernetes client, however indirectly.
#[test]
fn the_node_stays_small() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--package",
            "tapio-edge-agent",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let linked: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(linked.contains("tapio-correlation") && linked.contains("aya"), "{linked:?}");
    for absent in ["tapio-compiler", "cel", "serde-saphyr", "serde_yaml", "kube", "k8s-openapi"] {
        assert!(!linked.contains(absent), "the node links {absent}: see the invariants of ARCHITECTURE.md");
    }
}

/// Scenario: somebody adds or renames a crate.
/// Guarantees: a crate is called after its folder, and no name says nothing.
#[test]
fn crates_are_named_after_their_folders() {
    for (name, (folder, _)) in crates() {
        let last = folder.rsplit('/').next().unwrap();
        assert_eq!(name, format!("tapio-{last}"), "{folder}");
        for empty in ["common", "core", "util", "utils", "shared", "types", "helpers", "misc"] {
            assert_ne!(last, empty, "{folder}: name it for what it knows");
        }
    }
    for path in sources(&root()) {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert_ne!(stem, "mod", "{}: write foo.rs beside foo/", path.display());
        for empty in ["common", "util", "utils", "helpers", "types", "manager", "misc"] {
            assert_ne!(stem, empty, "{}: name the module for what it knows", path.display());
        }
    }
}

/// Scenario: somebody takes the easy form of an event on the hot path.
/// Guarantees: the owned event type does not occur in the aggregator's intake and pipeline.
#[test]
fn the_hot_path_owns_no_events() {
    let aggregator = root().join("aggregator/src");
    let mut scanned = 0;
    for path in sources(&aggregator) {
        let inside = path.strip_prefix(&aggregator).unwrap().to_string_lossy().into_owned();
        if inside.starts_with("intake") || inside.starts_with("pipeline") {
            scanned += 1;
            let code = production_code(&path);
            assert!(!code.contains("UnifiedEvent"), "{inside} names UnifiedEvent: read the batch in place");
        }
    }
    assert!(scanned >= 2, "intake and pipeline were not found: the scan proves nothing");
}

/// Scenario: somebody reads a clock, spawns or does I/O where results must be the same every time.
/// Guarantees: the language, the wire and the engine take time and bytes as arguments.
#[test]
fn the_core_is_sans_io() {
    let forbidden = [
        "SystemTime::now",
        "Instant::now",
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "tokio::",
        "thread::spawn",
    ];
    for folder in [
        "schemas/src",
        "schemas/wire/src",
        "aggregator/correlation/src",
        "aggregator/correlation/recording/src",
        "edge-agent/protocols/src",
    ] {
        for path in sources(&root().join(folder)) {
            let code = production_code(&path);
            for word in forbidden {
                assert!(!code.contains(word), "{}: {word} has no place in a sans-IO crate", path.display());
            }
        }
    }
}

/// The arguments of the macro call whose opening parenthesis stands at `open`, split at its own commas; strings are kept
/// whole.
fn arguments(code: &str, open: usize) -> Vec<String> {
    let (mut depth, mut in_string, mut escaped) = (0_u32, false, false);
    let mut arguments = vec![String::new()];
    for character in code[open..].chars() {
        let is_own = depth == 1 && !in_string;
        match character {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            '(' | '[' | '{' if !in_string => depth += 1,
            ')' | ']' | '}' if !in_string => depth -= 1,
            ',' if is_own => {
                arguments.push(String::new());
                continue;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
        arguments.last_mut().unwrap().push(character);
    }
    arguments.iter().map(|argument| argument.trim_start_matches('(').trim().to_owned()).collect()
}

/// Scenario: somebody writes a value into the message of a log line.
/// Guarantees: every message is one literal without a place for values, so that equal events have equal messages; what
/// differs is in fields.
#[test]
fn logs_have_constant_messages() {
    let levels = ["trace", "debug", "info", "warn", "error"];
    let mut calls = 0;
    for folder in ["schemas", "edge-agent", "aggregator", "central"] {
        for path in sources(&root().join(folder)) {
            let code = production_code(&path);
            for level in levels {
                let call = format!("tracing::{level}!");
                for (at, _) in code.match_indices(&call) {
                    calls += 1;
                    let arguments = arguments(&code, at + call.len());
                    let message = arguments.iter().rev().find(|argument| !argument.is_empty()).unwrap();
                    let place = format!("{}: {call}({message})", path.display());
                    assert!(
                        message.starts_with('"') && message.ends_with('"'),
                        "{place}: no literal message"
                    );
                    assert!(!message.contains('{'), "{place}: put the value into a field");
                }
            }
        }
    }
    assert!(calls > 100, "{calls} calls were found: the scan proves little");
}

/// Scenario: somebody opens `unsafe` in a new place.
/// Guarantees: it is opened only where ARCHITECTURE.md says.
#[test]
fn unsafe_is_where_it_is_allowed() {
    let allowed = [
        "ebpf/",
        "schemas/kernel-abi/",
        "edge-agent/src/probes",
        "edge-agent/src/clock.rs",
        "central/store/src/bin/tapio-clickhouse-engine",
    ];
    for path in sources(&root()) {
        let inside = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        if allowed.iter().any(|place| inside.starts_with(place)) || inside.contains("/tests/") {
            continue;
        }
        let code = production_code(&path);
        for word in ["unsafe {", "unsafe fn", "unsafe impl"] {
            assert!(!code.contains(word), "{inside} opens unsafe: see the invariants of ARCHITECTURE.md");
        }
    }
}

/// Scenario: a rule or the engine learns the demo's names.
/// Guarantees: no name from which the workload draws occurs in rules or in product code.
#[test]
fn no_product_code_knows_the_demo() {
    let names = tapio_loadtest::scenario::names::SERVICES;
    assert!(names.len() >= 40, "the pool of names is small enough to guess");
    // Words that the demo draws and that the system has of its own.
    let own =
        ["ledger", "identity", "audit", "sessions", "search", "reports", "routing", "imports", "exports"];
    let names: Vec<_> = names.into_iter().filter(|name| !own.contains(name)).collect();
    let mut scanned = 0;
    let mut check = |path: &Path, text: &str| {
        scanned += 1;
        for name in &names {
            let quoted = format!("\"{name}\"");
            assert!(!text.contains(&quoted), "{} names the demo's {name}", path.display());
        }
    };
    for folder in
        ["edge-agent/src", "aggregator/src", "aggregator/correlation/src", "central/src", "central/store/src"]
    {
        for path in sources(&root().join(folder)) {
            check(&path, &production_code(&path));
        }
    }
    for entry in fs::read_dir(root().join("aggregator/correlation/rules")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for name in &names {
            let word = |text: &str| {
                text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| word == *name)
            };
            assert!(!word(&text), "{} names the demo's {name}", path.display());
        }
    }
    assert!(scanned > 20);
}
