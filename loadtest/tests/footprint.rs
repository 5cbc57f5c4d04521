//! `tapio-loadtest footprint`, small: that it measures what it says, and leaves nothing. The figures that count are those
//! of `scripts/verify footprint`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "this whole file is tests: a helper that fails is a test that fails"
)]

use std::process::Command;

use tapio_loadtest::footprint::measure::Report;

#[path = "support/proof.rs"]
mod proof;

/// Scenario: ten pods, 500 records a second, ten seconds, the agent of this build, which has its symbols.
/// Guarantees: everything that can be measured here has a value of the right size; what cannot has a reason and no
/// value; nothing of the run is left.
#[test]
fn a_small_node_is_measured() {
    if proof::not_proven("what the agent costs is measured") {
        return;
    }
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let state = folder.path().join("state");
    let output = Command::new(env!("CARGO_BIN_EXE_tapio-loadtest"))
        // The programs of this build are there.
        .env_remove("CARGO")
        .args(["footprint", "--json", "--pods", "10", "--records-per-second", "500", "--seconds", "10"])
        .arg("--state-dir")
        .arg(&state)
        .arg("--timings")
        .arg(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("unclean") && !state.exists(), "{said}");
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    let of = |name: &str| report.measures.iter().find(|measure| measure.name == name).unwrap();
    for (name, least, most) in [
        ("agent_memory", 2.0, 128.0),
        ("agent_cpu", 0.01, 100.0),
        ("kernel_time_per_hit", 5.0, 100_000.0),
        ("bytes_per_record", 0.01, 1_000.0),
        ("bytes_per_event", 1.0, 1_000.0),
        ("bytes_per_record_as_shipped", 0.01, 1_000.0),
    ] {
        let measure = of(name);
        let value = measure.value.unwrap_or_else(|| panic!("{name} was not measured: {}", measure.note));
        assert!((least..=most).contains(&value), "{name}: {value} {}", measure.unit);
    }
    assert!(
        of("agent_binary").value.unwrap() > 1.0 && of("agent_binary").note.contains("scripts/build-agent")
    );
    assert!(of("demo_cold").value.is_none() && of("ci").value.is_none());
}
