//! What the kernel, its security modules and this process's rights allow; memory, disks and the engine's library.

use std::{fs, path::Path};

use rustix::fs::statvfs;
use tapio_store::engine::find_library;

use super::Check;

/// The oldest kernel that the probes are tested on.
const KERNEL_MIN: (u32, u32) = (6, 1);
/// Numbers of capabilities (capabilities(7), `linux/capability.h`).
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
/// What an agent is budgeted.
const AGENT_BYTES: u64 = 64 << 20;
/// What an agent may spool by default.
const SPOOL_BYTES: u64 = 256 << 20;

/// What an agent needs.
pub(super) fn checks() -> Vec<Check> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut checks =
        vec![kernel(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()), btf()];
    checks.extend(capabilities(&status));
    checks.push(seccomp(&status));
    checks.push(lockdown(&fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default()));
    checks.push(tracefs());
    checks.push(memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()));
    checks
}

/// What the other tiers need, and agents only for what they keep.
pub(super) fn checks_of_tiers(state: &Path) -> Vec<Check> {
    let engine = match find_library() {
        Ok(path) => Check::ok("engine", path.display().to_string()),
        Err(error) => Check::note(
            "engine",
            format!("{error}; only an aggregator with store.mode = \"embedded\" needs it"),
            "run scripts/lib/fetch-clickhouse, or name one with TAPIO_CLICKHOUSE_LIB",
        ),
    };
    vec![disk(state), engine]
}

fn kernel(release: &str) -> Check {
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_MIN => Check::ok("kernel", release),
        (Some(_), Some(_)) => {
            let (major, minor) = KERNEL_MIN;
            let found = format!("{release}: probes are tested on {major}.{minor} and later");
            Check::note("kernel", found, "see below which probes work, or take a newer kernel")
        }
        _ => Check::note("kernel", "its release cannot be read (/proc/sys/kernel/osrelease)", "mount /proc"),
    }
}

fn btf() -> Check {
    let path = "/sys/kernel/btf/vmlinux";
    match fs::File::open(path) {
        Ok(_) => Check::ok("kernel types", path),
        Err(error) => Check::missing(
            "kernel types",
            format!("{path}: {error}; the probes find the kernel's fields by it"),
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y; in a container, let it see the host's /sys/kernel/btf",
        ),
    }
}

fn capabilities(status: &str) -> Vec<Check> {
    let Some(held) = field(status, "CapEff").and_then(|text| u64::from_str_radix(text, 16).ok()) else {
        return vec![Check::note("privileges", "cannot be read (/proc/self/status)", "mount /proc")];
    };
    let has = |capability: u32| held >> capability & 1 == 1;
    let needed = [
        (CAP_BPF, "CAP_BPF", "to load BPF programs and make their maps"),
        (CAP_PERFMON, "CAP_PERFMON", "to attach to tracepoints and read kernel memory"),
    ];
    needed
        .into_iter()
        .map(|(capability, name, why)| {
            if has(capability) {
                Check::ok(name, why)
            } else if has(CAP_SYS_ADMIN) {
                Check::ok(name, format!("{why}; CAP_SYS_ADMIN stands for it"))
            } else {
                Check::missing(
                    name,
                    format!("not held by this process; needed {why}"),
                    "run this, and the agent, as root or with that capability (setpriv, systemd's AmbientCapabilities=, \
                     securityContext.capabilities)",
                )
            }
        })
        .collect()
}

fn seccomp(status: &str) -> Check {
    match field(status, "Seccomp") {
        Some("0") => Check::ok("seccomp", "no filter"),
        Some("2") => Check::note(
            "seccomp",
            "this process is filtered; a filter may refuse bpf(2), which the probes below would show",
            "where they do: allow bpf and perf_event_open in the profile",
        ),
        Some("1") => {
            Check::missing("seccomp", "strict: nothing but reading and writing is allowed", "take it off")
        }
        _ => Check::note("seccomp", "cannot be read (/proc/self/status)", ""),
    }
}

fn lockdown(text: &str) -> Check {
    let mode = text.split('[').nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("none");
    match mode {
        "confidentiality" => Check::missing(
            "lockdown",
            "confidentiality: BPF programs may not read kernel memory",
            "boot with lockdown=integrity, or without",
        ),
        mode => Check::ok("lockdown", mode),
    }
}

fn tracefs() -> Check {
    let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let found = places.into_iter().find(|place| Path::new(place).join("available_events").exists());
    match found {
        Some(place) => Check::ok("tracefs", place),
        None => Check::ok("tracefs", "not mounted, and not needed: the probes are raw tracepoints"),
    }
}

fn memory(meminfo: &str) -> Check {
    let kibibytes =
        field(meminfo, "MemAvailable").and_then(|text| text.strip_suffix(" kB")?.trim().parse().ok());
    let Some(available) = kibibytes.map(|kibibytes: u64| kibibytes << 10) else {
        return Check::note("memory", "cannot be read (/proc/meminfo)", "mount /proc");
    };
    let found = format!("{} MiB available; an agent is budgeted {} MiB", available >> 20, AGENT_BYTES >> 20);
    if available >= AGENT_BYTES {
        Check::ok("memory", found)
    } else {
        Check::missing("memory", found, "free some, or the kernel may end the agent")
    }
}

/// The nearest folder that exists: the state's own is made when a tier starts.
fn disk(state: &Path) -> Check {
    let existing = state.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let what = "disk";
    match statvfs(existing) {
        Ok(space) => {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            let found = format!(
                "{} MiB free under {} for {}; an agent spools up to {} MiB by default",
                free >> 20,
                existing.display(),
                state.display(),
                SPOOL_BYTES >> 20
            );
            if free >= SPOOL_BYTES {
                Check::ok(what, found)
            } else {
                Check::missing(
                    what,
                    found,
                    "free some, keep state elsewhere (--state), or lower spool.quota_bytes",
                )
            }
        }
        Err(error) => {
            Check::note(what, format!("{}: {error}", existing.display()), "name the folder with --state")
        }
    }
}

/// The value of `name: value` in a file of procfs.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    /// Scenario: releases, rights, filters and lockdown modes as kernels write them.
    /// Guarantees: what is missing is named with why and what to do; what stands for it counts.
    #[test]
    fn a_host_is_judged() {
        assert_eq!(kernel("6.1.0-44-cloud-amd64\n").verdict, Verdict::Ok);
        assert_eq!(kernel("5.15.0").verdict, Verdict::Note);
        assert_eq!(kernel("").verdict, Verdict::Note);
        let verdicts = |status: &str| -> Vec<Verdict> {
            capabilities(status).iter().map(|check| check.verdict).collect()
        };
        assert_eq!(verdicts("CapEff:\t000001ffffffffff\n"), [Verdict::Ok, Verdict::Ok]);
        assert_eq!(verdicts("CapEff:\t0000000000200000\n"), [Verdict::Ok, Verdict::Ok]);
        assert_eq!(verdicts("CapEff:\t0000008000000000\n"), [Verdict::Ok, Verdict::Missing]);
        assert_eq!(verdicts("CapEff:\t0000000000000000\n"), [Verdict::Missing, Verdict::Missing]);
        assert_eq!(seccomp("Seccomp:\t2\n").verdict, Verdict::Note);
        assert_eq!(lockdown("none integrity [confidentiality]\n").verdict, Verdict::Missing);
        assert_eq!(lockdown("[none] integrity confidentiality\n").found, "none");
        assert_eq!(lockdown("").verdict, Verdict::Ok);
        assert_eq!(memory("MemAvailable:   10240 kB\n").verdict, Verdict::Missing);
        assert_eq!(memory("MemAvailable:  204800 kB\n").verdict, Verdict::Ok);
    }
}
