//! `tapio-edge-agent check-host`: what the host allows, as root, as somebody without rights, and without BTF.

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
    path::Path,
    process::{Command, Output},
};

use tapio_kernel_abi::ProbeId;

#[path = "agent/support.rs"]
mod support;

const AGENT: &str = env!("CARGO_BIN_EXE_tapio-edge-agent");

/// What was printed, by the word that each line begins with.
fn lines(output: &Output, word: &str) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().filter_map(|line| line.strip_prefix(word)?.strip_prefix(' ')).map(str::to_owned).collect()
}

fn excused(name: &str, what: &str) -> bool {
    let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
    let is_excused = allowed.split(',').any(|word| word.trim() == name);
    if is_excused {
        println!("not proven: {name}: {what}");
    }
    is_excused
}

/// Scenario: the agent is asked as root, on a host that allows everything.
/// Guarantees: every probe was tried and works, the control groups are found, the clock is told.
#[test]
fn everything_is_tried() {
    let output = Command::new(AGENT).arg("check-host").output().unwrap();
    let probes = lines(&output, "probe");
    assert_eq!(probes.len(), ProbeId::ALL.len(), "{probes:?}");
    assert_eq!(lines(&output, "clock").len(), 1);
    if !probes.iter().all(|probe| probe.ends_with("=working")) {
        assert!(excused("ebpf", "that every probe can be tried"), "{probes:?}");
        return;
    }
    let groups = lines(&output, "groups");
    assert!(groups.iter().any(|line| line.starts_with("v1 /") || line.starts_with("v2 /")), "{groups:?}");
}

/// Scenario: the same by a user without any right; and as root in a mount namespace that has no BTF.
/// Guarantees: each probe has failed, with the reason: what is not permitted, and which file is not there.
#[test]
fn what_is_missing_has_a_reason() {
    // Where the user may read it.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("agent");
    fs::copy(AGENT, &program).unwrap();
    let nobody = |program: &Path, arguments: &[&str]| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"])
            .arg(program)
            .args(arguments)
            .output()
            .unwrap()
    };
    let tried = nobody(Path::new("true"), &[]);
    if !tried.status.success() {
        assert!(excused("ebpf", "what an agent without rights says"), "{tried:?}");
        return;
    }
    let nobody = nobody(&program, &["check-host"]);
    let probes = lines(&nobody, "probe");
    assert_eq!(probes.len(), ProbeId::ALL.len());
    assert!(probes.iter().all(|probe| probe.contains("=failed:") && probe.contains("ermi")), "{probes:?}");

    if !support::may_mount("what an agent without BTF says") {
        return;
    }
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$1\" check-host";
    let blind = Command::new("unshare").args(["--mount", "sh", "-c", script, "sh", AGENT]).output().unwrap();
    let probes = lines(&blind, "probe");
    assert!(probes.iter().all(|probe| probe.contains("/sys/kernel/btf/vmlinux")), "{probes:?}");
}

/// Scenario: more words than the one, one of them for help.
/// Guarantees: help is shown and what is not known is refused by name with status 2; no probe is loaded for either.
#[test]
fn other_words_are_refused() {
    let help = Command::new(AGENT).args(["check-host", "--help"]).output().unwrap();
    let told = String::from_utf8(help.stdout).unwrap();
    assert!(help.status.success() && told.contains("Usage: tapio-edge-agent check-host"), "{told}");
    assert!(!told.contains("probe exec="), "{told}");
    let refused = Command::new(AGENT).args(["check-host", "--json"]).output().unwrap();
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(2), 0), "{told}");
    assert!(told.contains("--json") && told.contains("--help"), "{told}");
}
