//! `tapio doctor`, as people run it: with an agent that can do everything, with one that cannot, without one, without
//! rights and without BTF. The agent here is a script: what a real one says is tested beside it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "this whole file is tests: a helper that fails is a test that fails"
)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tapio_central::cli::doctor::{Diagnosis, Verdict};

const TAPIO: &str = env!("CARGO_BIN_EXE_tapio");
const ALL_WELL: &str =
    "probe exec=working\nprobe payload=working\ngroups v2 /sys/fs/cgroup\nclock synchronized 900\n";

/// A folder that everybody may read, with a script that answers as an agent does.
fn agent(answer: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("tapio-edge-agent");
    fs::write(&program, format!("#!/bin/sh\n[ \"$1\" = check-host ] || exit 2\ncat <<'END'\n{answer}END\n"))
        .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    (folder, program)
}

fn diagnosis(output: &Output) -> Diagnosis {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn doctor(agent: &Path) -> Output {
    Command::new(TAPIO).args(["doctor", "--json", "--agent"]).arg(agent).output().unwrap()
}

fn missing(diagnosis: &Diagnosis) -> Vec<&str> {
    let checks = diagnosis.checks.iter().filter(|check| check.verdict == Verdict::Missing);
    checks.map(|check| check.what.as_str()).collect()
}

/// Whether this test runs with the rights that it is about.
fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let is_root = status.contains("\nUid:\t0\t")
        && status.lines().any(|line| line.starts_with("CapEff:") && line.ends_with("ff"));
    if !is_root {
        let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
        assert!(allowed.split(',').any(|word| word.trim() == "ebpf"), "this test needs root");
        println!("not proven: ebpf: what the doctor says to root");
    }
    is_root
}

/// Whether this machine lets tests hide files from a process.
fn may_mount() -> bool {
    let tried = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if tried.is_ok_and(|output| output.status.success()) {
        return true;
    }
    let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
    assert!(allowed.split(',').any(|word| word.trim() == "mount"), "cannot mount in a namespace of its own");
    println!("not proven: mount: what the doctor says without BTF");
    false
}

/// Scenario: root asks on a host that allows everything; then the agent says that a probe does not work.
/// Guarantees: the first answer is that nothing is missing, with status 0; the second names the probe, its reason and
/// what to do, with status 1, for people and as JSON.
#[test]
fn the_answer_comes_first() {
    if !is_root() {
        return;
    }
    let (_folder, program) = agent(ALL_WELL);
    let output = doctor(&program);
    assert_eq!((output.status.code(), missing(&diagnosis(&output))), (Some(0), vec![]), "{output:?}");
    assert!(diagnosis(&output).fit);
    let (_folder, program) =
        agent(&ALL_WELL.replace("payload=working", "payload=failed:raw tracepoint: EINVAL"));
    let output = Command::new(TAPIO).args(["doctor", "--agent"]).arg(&program).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(said.lines().next(), Some("an agent cannot do everything here: 1 thing is missing"));
    let line = said.lines().find(|line| line.contains("probe payload")).unwrap();
    assert!(line.contains("MISSING") && line.contains("EINVAL"), "{line}");
    assert!(said.lines().any(|line| line.contains("do: ")), "{said}");
}

/// Scenario: there is no agent; one of another version; one that never answers is not waited for here.
/// Guarantees: the doctor says so and that no probe was tried, and goes on with everything else.
#[test]
fn without_an_agent_nothing_is_guessed() {
    let output =
        Command::new(TAPIO).args(["doctor", "--json", "--agent", "/nowhere/agent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let found = diagnosis(&output);
    let agent_line = found.checks.iter().find(|check| check.what == "agent").unwrap();
    assert!(agent_line.verdict == Verdict::Missing && agent_line.found.contains("no probe was tried"));
    assert!(found.checks.len() > 8 && !found.checks.iter().any(|check| check.what.starts_with("probe ")));

    let (folder, _) = agent("");
    let tapio = folder.path().join("bin").join("tapio");
    fs::create_dir(tapio.parent().unwrap()).unwrap();
    fs::copy(TAPIO, &tapio).unwrap();
    let alone = Command::new(&tapio).args(["doctor", "--json"]).env("PATH", "/nowhere").output().unwrap();
    assert!(
        diagnosis(&alone)
            .checks
            .iter()
            .any(|check| check.found.contains("neither beside this program nor on PATH"))
    );
    // The agent of this folder says nothing that an agent says.
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let strange = Command::new(&tapio).args(["doctor", "--json"]).env("PATH", path).output().unwrap();
    assert!(
        diagnosis(&strange)
            .checks
            .iter()
            .any(|check| check.what == "agent" && check.found.contains("without a word of probes"))
    );
}

/// Scenario: a user without any right asks; then root, in a mount namespace without BTF.
/// Guarantees: the capabilities that are missing are named one by one; so is BTF's file, with what to do.
#[test]
fn what_is_missing_is_named() {
    if !is_root() {
        return;
    }
    let (folder, program) = agent(ALL_WELL);
    let tapio = folder.path().join("tapio");
    fs::copy(TAPIO, &tapio).unwrap();
    let nobody = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"])
        .arg(&tapio)
        .args(["doctor", "--json", "--agent"])
        .arg(&program)
        .output()
        .unwrap();
    assert_eq!(missing(&diagnosis(&nobody)), ["CAP_BPF", "CAP_PERFMON"]);

    if !may_mount() {
        return;
    }
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$1\" doctor --json --agent \"$2\"";
    let blind = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh", TAPIO])
        .arg(&program)
        .output()
        .unwrap();
    let found = diagnosis(&blind);
    assert_eq!(missing(&found), ["kernel types"]);
    let line = found.checks.iter().find(|check| check.what == "kernel types").unwrap();
    assert!(
        line.found.contains("/sys/kernel/btf/vmlinux")
            && line.action.as_ref().unwrap().contains("CONFIG_DEBUG_INFO_BTF")
    );
}
