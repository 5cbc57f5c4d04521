//! Everything that the programs are told about this host at load: where the kernel keeps what they read, which
//! arguments its tracepoints have, which cgroup hierarchy counts memory.
//!
//! A field that this kernel lacks costs only the probes that need it.

use std::hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState};

use tapio_kernel_abi::ProbeId;

use super::{
    ProbesConfig,
    btf::{Btf, BtfError},
};

/// Why nothing can be loaded here.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The kernel's types cannot be read.
    #[error("the kernel's types cannot be read")]
    Btf(#[from] BtfError),
    /// The cgroup hierarchy cannot be seen.
    #[error("/proc/self/mountinfo cannot be read")]
    Mounts(#[source] std::io::Error),
}

/// A global of the programs and its value on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    Word { name: &'static str, value: u32 },
    Long { name: &'static str, value: u64 },
}

pub(super) struct Layout {
    pub(super) globals: Vec<Global>,
    missing: Vec<(&'static [ProbeId], String)>,
}

const SOCK_KEY_MASK: &str = "SOCK_KEY_MASK";
const ALL: &[ProbeId] = &ProbeId::ALL;
const SOCKETS: &[ProbeId] = &[
    ProbeId::TcpState,
    ProbeId::TcpResetSent,
    ProbeId::TcpResetReceived,
    ProbeId::TcpRetransmit,
    ProbeId::Payload,
];
const SYSCALLS: &[ProbeId] = &[ProbeId::FailedSyscall, ProbeId::Payload];
const FAILURES: &[ProbeId] = &[ProbeId::FailedSyscall];
const EXEC: &[ProbeId] = &[ProbeId::Exec];
const EXIT: &[ProbeId] = &[ProbeId::Exit];
const OOM: &[ProbeId] = &[ProbeId::OomVictim];
const SIGNAL: &[ProbeId] = &[ProbeId::FatalSignal];
const PAYLOAD: &[ProbeId] = &[ProbeId::Payload];
const RESET_SENT: &[ProbeId] = &[ProbeId::TcpResetSent];
const NOBODY: &[ProbeId] = &[];

/// Global, struct, field, and who cannot do without it.
type Wanted = (&'static str, &'static str, &'static str, &'static [ProbeId]);

const FIELDS: &[Wanted] = &[
    ("TASK_PID", "task_struct", "pid", ALL),
    ("TASK_TGID", "task_struct", "tgid", ALL),
    ("TASK_COMM", "task_struct", "comm", ALL),
    ("TASK_GROUP_LEADER", "task_struct", "group_leader", ALL),
    ("TASK_START_BOOTTIME", "task_struct", "start_boottime", ALL),
    ("TASK_CGROUPS", "task_struct", "cgroups", ALL),
    ("CGROUP_KN", "cgroup", "kn", ALL),
    ("CGROUP_SELF", "cgroup", "self", FAILURES),
    ("CSS_PARENT", "cgroup_subsys_state", "parent", FAILURES),
    ("KN_ID", "kernfs_node", "id", ALL),
    ("TASK_REAL_PARENT", "task_struct", "real_parent", EXEC),
    ("BPRM_FILENAME", "linux_binprm", "filename", EXEC),
    ("TASK_CRED", "task_struct", "cred", &[ProbeId::Exec, ProbeId::OomVictim]),
    ("CRED_UID", "cred", "uid", &[ProbeId::Exec, ProbeId::OomVictim]),
    ("TASK_EXIT_CODE", "task_struct", "exit_code", EXIT),
    ("TASK_SIGNAL", "task_struct", "signal", &[ProbeId::Exit, ProbeId::OomVictim]),
    // Without it no process is known to be its namespace's first.
    ("TASK_THREAD_PID", "task_struct", "thread_pid", NOBODY),
    ("PID_LEVEL", "pid", "level", NOBODY),
    ("PID_NUMBERS", "pid", "numbers", NOBODY),
    ("SIGNAL_LIVE", "signal_struct", "live", EXIT),
    ("SIGNAL_FLAGS", "signal_struct", "flags", EXIT),
    ("SIGNAL_GROUP_EXIT_CODE", "signal_struct", "group_exit_code", EXIT),
    ("SIGNAL_OOM_SCORE_ADJ", "signal_struct", "oom_score_adj", OOM),
    ("TASK_MM", "task_struct", "mm", &[ProbeId::OomVictim, ProbeId::FailedSyscall]),
    ("MM_TOTAL_VM", "mm_struct", "total_vm", OOM),
    ("MM_ARG_START", "mm_struct", "arg_start", FAILURES),
    ("MM_ARG_END", "mm_struct", "arg_end", FAILURES),
    ("SIGINFO_CODE", "kernel_siginfo", "si_code", SIGNAL),
    ("SIGINFO_FIELDS", "kernel_siginfo", "_sifields", SIGNAL),
    ("SKC_FAMILY", "sock_common", "skc_family", SOCKETS),
    // Without it no container is claimed to be at a loopback address.
    ("SKC_NET", "sock_common", "skc_net.net", NOBODY),
    ("NET_INUM", "net", "ns.inum", NOBODY),
    ("SKC_STATE", "sock_common", "skc_state", SOCKETS),
    ("SKC_DADDR", "sock_common", "skc_daddr", SOCKETS),
    ("SKC_RCV_SADDR", "sock_common", "skc_rcv_saddr", SOCKETS),
    ("SKC_DPORT", "sock_common", "skc_dport", SOCKETS),
    ("SKC_NUM", "sock_common", "skc_num", SOCKETS),
    ("SKC_V6_DADDR", "sock_common", "skc_v6_daddr", SOCKETS),
    ("SKC_V6_RCV_SADDR", "sock_common", "skc_v6_rcv_saddr", SOCKETS),
    ("SK_ERR", "sock", "sk_err", &[ProbeId::TcpState]),
    ("INET_SPORT", "inet_sock", "inet_sport", SOCKETS),
    ("SK_PROTOCOL", "sock", "sk_protocol", &[ProbeId::TcpState, ProbeId::Payload]),
    ("SKB_HEAD", "sk_buff", "head", RESET_SENT),
    ("SKB_NETWORK_HEADER", "sk_buff", "network_header", RESET_SENT),
    ("SKB_TRANSPORT_HEADER", "sk_buff", "transport_header", RESET_SENT),
    ("TASK_FILES", "task_struct", "files", PAYLOAD),
    ("FILES_FDT", "files_struct", "fdt", PAYLOAD),
    ("FDT_MAX_FDS", "fdtable", "max_fds", PAYLOAD),
    ("FDT_FD", "fdtable", "fd", PAYLOAD),
    ("FILE_PRIVATE_DATA", "file", "private_data", PAYLOAD),
    ("FILE_INODE", "file", "f_inode", PAYLOAD),
    ("INODE_MODE", "inode", "i_mode", PAYLOAD),
    ("SOCKET_SK", "socket", "sk", PAYLOAD),
];

/// Where the system call's number and its first three arguments are once it returns.
#[cfg(target_arch = "x86_64")]
const REGISTERS: &[(&str, &str, u32)] = &[
    ("REGS_NUMBER", "orig_ax", 0),
    ("REGS_FIRST", "di", 0),
    ("REGS_SECOND", "si", 0),
    ("REGS_THIRD", "dx", 0),
];
/// The first argument's register is overwritten by the result there.
#[cfg(target_arch = "aarch64")]
const REGISTERS: &[(&str, &str, u32)] = &[
    ("REGS_NUMBER", "syscallno", 0),
    ("REGS_FIRST", "orig_x0", 0),
    ("REGS_SECOND", "regs", 8),
    ("REGS_THIRD", "regs", 16),
];

/// `TS_COMPAT` of `arch/x86/include/asm/thread_info.h`.
#[cfg(target_arch = "x86_64")]
const THREAD_STATUS_COMPAT: u32 = 2;
#[cfg(not(target_arch = "x86_64"))]
const THREAD_STATUS_COMPAT: u32 = 0;

impl Layout {
    pub(super) fn of_this_kernel(config: &ProbesConfig) -> Result<Self, LayoutError> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(LayoutError::Mounts)?;
        Ok(Self::new(&Btf::of_this_kernel()?, is_memory_on_v1(&mounts), config))
    }

    fn new(btf: &Btf, is_memory_on_v1: bool, config: &ProbesConfig) -> Self {
        let mut layout = Self { globals: Vec::with_capacity(64), missing: Vec::new() };
        for (name, structure, field, needed_by) in FIELDS {
            layout.take(name, needed_by, btf.field(structure, field).map(|field| field.offset));
        }
        for (name, field, beyond) in REGISTERS {
            layout.take(name, SYSCALLS, btf.field("pt_regs", field).map(|field| field.offset + beyond));
        }
        layout.take_cgroup(btf, is_memory_on_v1);
        layout.take_resident(btf);
        layout.take_arguments(btf);
        let status = btf
            .field("task_struct", "thread_info.status")
            .map_or((0, 0), |field| (field.offset, THREAD_STATUS_COMPAT));
        layout.word("TASK_THREAD_STATUS", status.0);
        layout.word("THREAD_STATUS_COMPAT", status.1);
        layout.word("PAGE_BYTES", u32::try_from(rustix::param::page_size()).unwrap_or(4096));
        let interval = u64::try_from(config.fold_interval.as_nanos()).unwrap_or(u64::MAX);
        layout.globals.push(Global::Long { name: "FOLD_INTERVAL_NANOS", value: interval });
        // A random value that nobody outside the kernel and this process knows.
        layout.set_mask(RandomState::new().hash_one(0u8));
        layout
    }

    /// What socket keys are mixed with.
    pub(super) fn mask(&self) -> u64 {
        let mask = |global: &Global| match global {
            Global::Long { name, value } if *name == SOCK_KEY_MASK => Some(*value),
            _ => None,
        };
        self.globals.iter().find_map(mask).unwrap_or(0)
    }

    /// Has socket keys mixed with what they were mixed with before.
    pub(super) fn set_mask(&mut self, mask: u64) {
        self.globals.retain(|global| !matches!(global, Global::Long { name, .. } if *name == SOCK_KEY_MASK));
        self.globals.push(Global::Long { name: SOCK_KEY_MASK, value: mask });
    }

    /// Tells apart what was made for other choices or another host. (A hash that changes with the compiler only has
    /// everything loaded anew.)
    pub(super) fn identity(&self, object: &str, config: &ProbesConfig) -> u64 {
        let mut hasher = DefaultHasher::new();
        object.hash(&mut hasher);
        (config.ring_bytes, config.owners_max, config.folds_max).hash(&mut hasher);
        for global in &self.globals {
            match global {
                Global::Long { name, .. } if *name == SOCK_KEY_MASK => {}
                Global::Word { name, value } => (name, u64::from(*value)).hash(&mut hasher),
                Global::Long { name, value } => (name, value).hash(&mut hasher),
            }
        }
        hasher.finish()
    }

    /// Why a probe cannot work on this kernel, if so.
    pub(super) fn missing_for(&self, probe: ProbeId) -> Option<String> {
        self.missing
            .iter()
            .find(|(needed_by, _)| needed_by.contains(&probe))
            .map(|(_, reason)| reason.clone())
    }

    fn word(&mut self, name: &'static str, value: u32) {
        self.globals.push(Global::Word { name, value });
    }

    fn take(&mut self, name: &'static str, needed_by: &'static [ProbeId], found: Result<u32, BtfError>) {
        match found {
            Ok(value) => self.word(name, value),
            Err(error) => {
                self.missing.push((needed_by, error.to_string()));
                self.word(name, 0);
            }
        }
    }

    /// Containers are told apart by the cgroup that counts their memory.
    fn take_cgroup(&mut self, btf: &Btf, is_memory_on_v1: bool) {
        let pointer = if is_memory_on_v1 {
            btf.field("css_set", "subsys").and_then(|field| {
                let memory = btf.enumerator("cgroup_subsys_id", "memory_cgrp_id")?;
                Ok(field.offset + memory * 8)
            })
        } else {
            btf.field("css_set", "dfl_cgrp").map(|field| field.offset)
        };
        self.take("CSS_SET_POINTER", ALL, pointer);
        self.word("CSS_SET_INDIRECT", u32::from(is_memory_on_v1));
        self.take("CSS_CGROUP", ALL, btf.field("cgroup_subsys_state", "cgroup").map(|field| field.offset));
    }

    /// Resident-set counters are an array of per-processor counters since Linux 6.2, plain numbers before.
    fn take_resident(&mut self, btf: &Btf) {
        let found = btf.field("mm_struct", "rss_stat").and_then(|stat| match btf.array_of_structs(stat) {
            Some((counter, stride)) => Ok((stat.offset + btf.field(&counter, "count")?.offset, stride)),
            None => Ok((stat.offset + btf.field("mm_rss_stat", "count")?.offset, 8)),
        });
        let stride = found.as_ref().map_or(8, |found| found.1);
        self.take("MM_RSS", OOM, found.map(|found| found.0));
        self.word("MM_RSS_STRIDE", stride);
    }

    /// What the tracepoints hand over differs between kernels.
    fn take_arguments(&mut self, btf: &Btf) {
        let victim = btf.tracepoint_arguments("mark_victim");
        self.take(
            "OOM_TASK_ARGUMENT",
            OOM,
            victim.map(|arguments| u32::from(arguments.first().is_some_and(|is_pointer| *is_pointer))),
        );
        let exit = btf.tracepoint_arguments("sched_process_exit");
        self.take("EXIT_GROUP_DEAD_ARGUMENT", EXIT, exit.map(|arguments| u32::from(arguments.len() >= 2)));
        let reset = btf.tracepoint_arguments("tcp_send_reset");
        self.take(
            "RESET_REASON_ARGUMENT",
            RESET_SENT,
            reset.map(|arguments| u32::from(arguments.len() >= 3)),
        );
    }
}

/// Whether the memory controller is mounted as a hierarchy of its own. `proc(5)` has the format: the filesystem's
/// type and options follow a lone dash.
fn is_memory_on_v1(mounts: &str) -> bool {
    mounts.lines().filter_map(|line| line.split_once(" - ")).any(|(_, right)| {
        let mut parts = right.split(' ');
        parts.next() == Some("cgroup")
            && parts.nth(1).is_some_and(|options| options.split(',').any(|option| option == "memory"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: mount tables of a v1, a hybrid and a v2 host.
    /// Guarantees: only a mounted v1 memory controller counts.
    #[test]
    fn the_hierarchy_that_counts_memory_is_found() {
        let v1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";
        let v2 =
            "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,memory_recursiveprot\n";
        let hybrid =
            "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n41 31 0:38 / /u rw - cgroup2 x rw\n";
        assert!(is_memory_on_v1(v1));
        assert!(!is_memory_on_v1(v2));
        assert!(!is_memory_on_v1(hybrid));
        assert!(is_memory_on_v1(&format!("{hybrid}{v1}")));
    }

    /// Scenario: the running kernel, with both hierarchies.
    /// Guarantees: no probe lacks anything here, and every global is set exactly once.
    #[test]
    fn this_kernel_has_all_fields() {
        let btf = Btf::of_this_kernel().unwrap();
        for is_v1 in [true, false] {
            let layout = Layout::new(&btf, is_v1, &ProbesConfig::default());
            for probe in ProbeId::ALL {
                assert_eq!(layout.missing_for(probe), None);
            }
            let mut names: Vec<_> = layout
                .globals
                .iter()
                .map(|global| match global {
                    Global::Word { name, .. } | Global::Long { name, .. } => *name,
                })
                .collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count);
            let is_told =
                |global: &Global| matches!(global, Global::Word { name: "SKC_NET", value } if *value > 0);
            assert!(layout.globals.iter().any(is_told), "network namespaces are told apart");
            let source = include_str!("../../../ebpf/src/offsets.rs");
            let declared = source.lines().filter(|line| line.ends_with(": u32,") || line.ends_with(": u64,"));
            assert_eq!(declared.count(), count, "the programs declare as many globals as the agent sets");
        }
    }
}
