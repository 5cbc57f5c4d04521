//! The agent where it is not allowed to look, or the kernel refuses: it runs on, says what it does not see, why, and what
//! to do, and what it still sees is as good as ever.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "what fails here fails the test, and says where"
)]

use std::{fs, path::Path};

use support::{Agent, Container, may_mount, not_proven, read_spool};
use tapio_kernel_abi::ProbeId;
use tapio_schemas::{
    event::UnifiedEvent,
    intent,
    ledger::{Fate, Stage},
};

#[path = "agent/support.rs"]
mod support;

const BTF: &str = "/sys/kernel/btf/vmlinux";

/// The probes that `events` tell of as failed, with the reasons.
fn told_failed(events: &[UnifiedEvent]) -> Vec<(String, String)> {
    let told = events.iter().filter(|event| event.core.intent == intent::PROBE_CAPABILITY);
    told.filter_map(|event| {
        let reason = event.entity.as_ref()?.attributes.strip_prefix("state=failed\nreason=")?;
        Some((event.core.probe.clone(), reason.to_owned()))
    })
    .collect()
}

/// Runs an agent that sees nothing, by `wrapper`, and holds all that it says of it to have all of `parts`.
fn sees_nothing(wrapper: &[&str], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(folder.path(), wrapper);
    let (status, health) = agent.get("/healthz");
    let (_, metrics) = agent.get("/metrics");
    assert!(agent.end().success(), "an agent that sees nothing still ends in order");
    let (events, _ledger) = read_spool(folder.path());
    let failed = told_failed(&events);
    assert_eq!(failed.len(), ProbeId::ALL.len(), "{failed:?}");
    assert_eq!(status, 503);
    assert!(health.contains("probes: no probe works, nothing of the kernel is seen: "), "{health}");
    let log = agent.log();
    for part in parts {
        assert!(health.contains(part), "{part}: {health}");
        assert!(log.contains(part), "{part}: {log}");
        assert!(failed.iter().all(|(_probe, reason)| reason.contains(part)), "{part}: {failed:?}");
    }
    assert!(log.contains("a probe does not work: what it would see is missing"), "{log}");
    for probe in ProbeId::ALL {
        let line = format!("tapio_probes_working{{probe=\"{}\"}} 0", probe.name());
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    assert!(events.iter().any(|event| event.core.intent == intent::AGENT_STARTED));
}

/// Scenario: the agent is started without any capability.
/// Guarantees: it runs, and ends in order; log, health, metrics and its own events name every probe, what the kernel
/// said, and which capabilities it needs.
#[test]
fn without_privileges_it_says_which_it_needs() {
    let wrapper = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"];
    sees_nothing(&wrapper, &["Operation not permitted", "as root, or give it CAP_BPF and CAP_PERFMON"]);
}

/// Scenario: the kernel does not describe its types.
/// Guarantees: as above, with the file that is missing and how such a kernel is built.
#[test]
fn without_btf_it_says_what_the_kernel_lacks() {
    if !may_mount("what the agent says where the kernel's types are missing") {
        return;
    }
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"];
    sees_nothing(&wrapper, &[BTF, "No such file", "must be built with CONFIG_DEBUG_INFO_BTF"]);
}

/// Scenario: the kernel lacks a field that one probe needs; a process in a container exits with 7.
/// Guarantees: health, log, metrics and events name that probe alone, and the field; what the other probes see is there.
#[test]
fn a_probe_that_is_refused_is_missed_alone() {
    if !Path::new(BTF).exists() {
        assert!(not_proven(true));
        return;
    }
    if !may_mount("what the agent says where the kernel's types are missing") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut types = fs::read(BTF).unwrap();
    let field = b"\0si_code\0";
    let at = types.windows(field.len()).position(|window| window == field).unwrap();
    types[at + 1..at + 3].copy_from_slice(b"no");
    let without = folder.path().join("types");
    fs::write(&without, types).unwrap();
    let script = format!("mount --bind {} {BTF} && exec \"$@\"", without.display());
    let mut agent = Agent::start(folder.path(), &["unshare", "--mount", "sh", "-c", &script, "sh"]);

    let group = Container::new(31);
    let mut exits = support::Process::role("exit", "7", &group);
    assert_eq!(exits.0.wait().unwrap().code(), Some(7));
    drop(exits);
    let (status, health) = agent.get("/healthz");
    let (_, metrics) = agent.get("/metrics");
    assert!(agent.end().success());

    let (events, _ledger) = read_spool(folder.path());
    let probe = ProbeId::FatalSignal.name();
    let failed = told_failed(&events);
    if not_proven(failed.len() > 1) {
        return;
    }
    assert!(
        failed[0].0 == probe && failed[0].1.contains("kernel_siginfo has no field si_code"),
        "{failed:?}"
    );
    assert_eq!(status, 503);
    let reason = format!("probes: {probe} not seen: ");
    assert!(health.contains(&reason) && health.contains("has no field si_code"), "{health}");
    let log = agent.log();
    assert!(log.contains("a probe does not work") && log.contains("has no field si_code"), "{log}");
    assert!(metrics.contains(&format!("tapio_probes_working{{probe=\"{probe}\"}} 0")), "{metrics}");
    assert!(metrics.contains("tapio_probes_working{probe=\"exit\"} 1"), "{metrics}");
    let exit = events.iter().find(|event| {
        event.core.intent == intent::CONTAINER_FAILED
            && event.entity.as_ref().is_some_and(|entity| entity.container_id == group.id)
    });
    assert_eq!(exit.and_then(|event| event.kernel.as_ref()).map(|kernel| kernel.exit_code), Some(7));
}

/// Runs a process in `group` that exits with `status`.
fn exit_in(group: &Container, status: &str) {
    let mut exits = support::Process::role("exit", status, group);
    assert_eq!(exits.0.wait().unwrap().code(), status.parse().ok());
}

/// Scenario: the disk under the agent's spool is filled to the last byte; a container's process fails; the disk has room
/// again, and another one fails.
/// Guarantees: the agent runs on; log and health say which disk, what it costs and what to do, as long as it is full and
/// no longer; what was lost is counted by reason in the metrics and in the ledger; before and after nothing is lost.
#[test]
fn a_full_disk_costs_what_it_says() {
    if !may_mount("what a full disk costs the agent") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    let script = format!("mount -t tmpfs -o size=24m none {} && exec \"$@\"", state.display());
    let group = Container::new(51);
    let mut agent = Agent::start(folder.path(), &["unshare", "--mount", "sh", "-c", &script, "sh"]);
    let inside = agent.root(&state);
    exit_in(&group, "11");
    // Where the probes do not load, nothing is told of it, which the spool says.
    let is_told = |status: u8, (events, _ledger): &(Vec<UnifiedEvent>, support::Sums)| {
        exits_in(&group, events).contains(&status) || !told_failed(events).is_empty()
    };
    support::wait_for("the first exit in the spool", || is_told(11, &spooled(&inside)).then_some(()));

    let ballast = inside.join("ballast");
    let filled = fs::write(&ballast, vec![7; 24 << 20]).unwrap_err();
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    let refused = "tapio_spool_lost_frames_total{reason=\"spool-refused\"}";
    support::wait_for("a frame that is refused", || (agent.metric(refused) > 0).then_some(()));
    exit_in(&group, "12");
    let before = agent.metric(refused);
    support::wait_for("more refused frames", || (agent.metric(refused) > before + 4).then_some(()));
    let (status, health) = agent.get("/healthz");
    assert_eq!(status, 503);
    let spool = state.join("spool");
    let parts = [
        "spool: the spool takes no frames, those that are made are lost and counted: no space left for spool ",
    ];
    for part in parts.into_iter().chain([spool.to_str().unwrap(), "free some on that file system"]) {
        assert!(health.contains(part), "{part}: {health}");
    }
    assert!(
        agent.log().contains("the spool's disk fails: frames that it does not take are lost"),
        "{}",
        agent.log()
    );

    fs::remove_file(&ballast).unwrap();
    support::wait_for("the spool to be well", || {
        (!agent.get("/healthz").1.contains("no frames")).then_some(())
    });
    assert!(agent.log().contains("the spool takes frames again"), "{}", agent.log());
    exit_in(&group, "13");
    // The disk goes with the agent, so that it is read before.
    let lost_in = |ledger: &support::Sums| {
        let lines = ledger.iter().filter(|((stage, fate, _, reason), _)| {
            *stage == Stage::EdgeSpool && *fate == Fate::Lost && reason == "spool-refused"
        });
        lines.map(|(_, events)| *events).sum::<u64>()
    };
    let (events, ledger) = support::wait_for("the last exit and what was lost in the spool", || {
        let told = spooled(&inside);
        (is_told(13, &told) && (lost_in(&told.1) > 0 || !told_failed(&told.0).is_empty())).then_some(told)
    });
    let lost_frames = agent.metric(refused);
    assert!(agent.end().success());

    if not_proven(!told_failed(&events).is_empty()) {
        return;
    }
    assert_eq!(
        exits_in(&group, &events),
        [11, 13],
        "what failed while the disk had room is there, and nothing else"
    );
    assert!(lost_in(&ledger) > 0 && lost_frames > 0, "{ledger:#?}");
}

/// What is in the spool under an agent's state directory now.
fn spooled(state: &Path) -> (Vec<UnifiedEvent>, support::Sums) {
    let copy = tempfile::tempdir().unwrap();
    let spool = copy.path().join("state/spool");
    fs::create_dir_all(&spool).unwrap();
    for file in fs::read_dir(state.join("spool")).unwrap().flatten() {
        // One that is gone by now was trimmed.
        drop(fs::copy(file.path(), spool.join(file.file_name())));
    }
    read_spool(copy.path())
}

/// How the processes of `group` that failed exited, in ascending order.
fn exits_in(group: &Container, events: &[UnifiedEvent]) -> Vec<u8> {
    let mut exits: Vec<_> = events
        .iter()
        .filter(|event| event.entity.as_ref().is_some_and(|entity| entity.container_id == group.id))
        .filter(|event| event.core.intent == intent::CONTAINER_FAILED)
        .map(|event| event.kernel.as_ref().unwrap().exit_code)
        .collect();
    exits.sort_unstable();
    exits
}

/// Scenario: none; what the other tests' processes run.
/// Guarantees: nothing by itself.
#[test]
fn role() {
    if std::env::var(support::ROLE).as_deref() == Ok("exit") {
        std::process::exit(std::env::var("TAPIO_TEST_ARGUMENT").unwrap().parse().unwrap());
    }
}
