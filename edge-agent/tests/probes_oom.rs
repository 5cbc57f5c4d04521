//! What the probes say when the kernel kills for memory: a real kill in a real cgroup.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::too_many_lines,
    reason = "a test that cannot go on fails"
)]

#[path = "probes/support.rs"]
mod support;

use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use support::{Seen, cgroup_id, everything, memory_mount, watch};
use tapio_kernel_abi::*;

const LIMIT_BYTES: u64 = 32 << 20;

/// What the child of this file's test does: moves into a cgroup and takes memory until it is killed.
#[test]
fn child() {
    let Ok(cgroup) = std::env::var("TAPIO_TEST_CHILD") else { return };
    std::fs::write(Path::new(&cgroup).join("cgroup.procs"), std::process::id().to_string()).unwrap();
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1u8; 1 << 20]);
    }
}

/// A memory cgroup that is removed with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Option<Self> {
        let (is_v1, mount) = memory_mount();
        let path = mount.join(format!("tapio-probes-oom-{}", std::process::id()));
        std::fs::create_dir(&path).expect("root may make cgroups");
        let cgroup = Self(path);
        let limit = if is_v1 { "memory.limit_in_bytes" } else { "memory.max" };
        if let Err(error) = std::fs::write(cgroup.0.join(limit), LIMIT_BYTES.to_string()) {
            let excused = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
            assert!(excused.split(',').any(|name| name == "cgroup"), "no memory limit can be set: {error}");
            println!("not proven: cgroup: no memory limit can be set here");
            return None;
        }
        Some(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A killed process leaves its cgroup when it has been waited for, which the test does first.
        let _removed = std::fs::remove_dir(&self.0);
    }
}

/// Scenario: a process in a cgroup of 32 MiB takes memory until the kernel kills it.
/// Guarantees: the victim is named with its cgroup, start and size; the kernel's signal and the exit by it follow.
#[test]
fn a_kill_for_memory_is_seen_with_its_victim() {
    let Some(mut watch) = watch(&everything()) else { return };
    let Some(cgroup) = Cgroup::new() else { return };
    let id = cgroup_id(&cgroup.0);
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("TAPIO_TEST_CHILD", &cgroup.0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = process.id();
    assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGKILL));
    watch.until("the exit", |seen| {
        seen.iter().any(|seen| matches!(seen, Seen::Exit(exit) if exit.header.tgid == pid))
    });
    watch.settle();
    let victims: Vec<_> = watch
        .seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::OomVictim(victim) if victim.victim_tgid == pid => Some(*victim),
            _ => None,
        })
        .collect();
    assert_eq!(victims.len(), 1);
    let victim = victims[0];
    assert_eq!(victim.layout, OOM_LAYOUT_TASK, "on kernels before 6.8 only the pid is known");
    assert_eq!(victim.victim_cgroup_id, id);
    assert_eq!(victim.uid, rustix::process::getuid().as_raw());
    assert_eq!(victim.oom_score_adj, 0);
    let size = victim.anon_rss_bytes;
    // The pages that the process had before it moved are charged elsewhere.
    assert!(
        (LIMIT_BYTES * 3 / 4..=LIMIT_BYTES + (8 << 20)).contains(&size),
        "{size} bytes resident under {LIMIT_BYTES}"
    );
    assert!(victim.total_vm_bytes > size);
    let exit = watch.seen.iter().find_map(|seen| match seen {
        Seen::Exit(exit) if exit.header.tgid == pid => Some(*exit),
        _ => None,
    });
    let exit = exit.unwrap();
    assert_eq!((exit.signal, exit.header.cgroup_id), (9, id));
    assert_eq!(exit.header.start_nanos, victim.victim_start_nanos);
    assert!(watch.seen.iter().any(|seen| matches!(seen, Seen::FatalSignal(signal)
        if signal.target_tgid == pid && signal.signal == 9 && signal.code == 0x80 && signal.target_cgroup_id == id)));
}
