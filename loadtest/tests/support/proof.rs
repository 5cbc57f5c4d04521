//! What this machine cannot prove.

use std::path::Path;

use tapio_loadtest::cgroup::Hierarchy;

/// True where the machine cannot hold the test and the caller said that it may not.
pub(crate) fn not_proven(what: &str) -> bool {
    let lacks = [
        ("cgroup", Hierarchy::find().is_err() || !rustix::process::geteuid().is_root()),
        ("ebpf", !Path::new("/sys/kernel/btf/vmlinux").exists()),
        ("clickhouse", tapio_store::engine::find_library().is_err()),
    ];
    let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
    let mut skipped = false;
    for (name, lacking) in lacks {
        if lacking {
            assert!(
                allowed.split(',').any(|allowed| allowed == name),
                "cannot prove {what}: this machine lacks {name}"
            );
            println!("not proven: {name}: {what}");
            skipped = true;
        }
    }
    skipped
}
