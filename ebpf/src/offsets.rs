//! Globals that the agent sets at load: field offsets of the running kernel, and what else differs per host.
//! The agent's `probes/layout.rs` fills every name here; a zero means "not told" only where the comment says so.

use aya_ebpf::Global;

macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident: $type:ty),+ $(,)?) => { $(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub static $name: Global<$type> = Global::new(0);
    )+ };
}

globals! {
    TASK_PID: u32,
    TASK_TGID: u32,
    TASK_COMM: u32,
    TASK_GROUP_LEADER: u32,
    TASK_REAL_PARENT: u32,
    TASK_START_BOOTTIME: u32,
    TASK_EXIT_CODE: u32,
    TASK_SIGNAL: u32,
    /// Where the task's `struct pid` is; 0 = not told.
    TASK_THREAD_PID: u32,
    PID_LEVEL: u32,
    /// Where the ids are, of the machine's own pid namespace first.
    PID_NUMBERS: u32,
    TASK_MM: u32,
    TASK_CGROUPS: u32,
    TASK_FILES: u32,
    TASK_CRED: u32,
    /// `thread_info.status` within the task.
    TASK_THREAD_STATUS: u32,
    /// Bits of it that mean a 32-bit system call, whose numbers are others; 0 = this architecture has none.
    THREAD_STATUS_COMPAT: u32,
    SIGNAL_LIVE: u32,
    SIGNAL_FLAGS: u32,
    SIGNAL_GROUP_EXIT_CODE: u32,
    SIGNAL_OOM_SCORE_ADJ: u32,
    CRED_UID: u32,
    /// Where in `css_set` the pointer is that leads to the cgroup.
    CSS_SET_POINTER: u32,
    /// 1: that pointer is a `cgroup_subsys_state` (v1 memory controller); 0: the cgroup itself (v2).
    CSS_SET_INDIRECT: u32,
    CSS_CGROUP: u32,
    CGROUP_KN: u32,
    CGROUP_SELF: u32,
    CSS_PARENT: u32,
    KN_ID: u32,
    MM_TOTAL_VM: u32,
    MM_ARG_START: u32,
    MM_ARG_END: u32,
    /// First resident-set counter within `mm_struct`.
    MM_RSS: u32,
    /// Bytes from one such counter to the next.
    MM_RSS_STRIDE: u32,
    PAGE_BYTES: u32,
    BPRM_FILENAME: u32,
    SIGINFO_CODE: u32,
    SIGINFO_FIELDS: u32,
    SKC_FAMILY: u32,
    /// Where the socket's network namespace is; 0 = not told.
    SKC_NET: u32,
    NET_INUM: u32,
    SKC_STATE: u32,
    SKC_DADDR: u32,
    SKC_RCV_SADDR: u32,
    SKC_DPORT: u32,
    SKC_NUM: u32,
    SKC_V6_DADDR: u32,
    SKC_V6_RCV_SADDR: u32,
    SK_ERR: u32,
    INET_SPORT: u32,
    SK_PROTOCOL: u32,
    SKB_HEAD: u32,
    SKB_NETWORK_HEADER: u32,
    SKB_TRANSPORT_HEADER: u32,
    FILES_FDT: u32,
    FDT_MAX_FDS: u32,
    FDT_FD: u32,
    FILE_PRIVATE_DATA: u32,
    FILE_INODE: u32,
    INODE_MODE: u32,
    SOCKET_SK: u32,
    REGS_NUMBER: u32,
    REGS_FIRST: u32,
    REGS_SECOND: u32,
    REGS_THIRD: u32,
    /// 1: `mark_victim` hands over the task; 0: its pid.
    OOM_TASK_ARGUMENT: u32,
    /// 1: `sched_process_exit` says whether the whole group is dead.
    EXIT_GROUP_DEAD_ARGUMENT: u32,
    /// 1: `tcp_send_reset` hands over a reason.
    RESET_REASON_ARGUMENT: u32,
    /// Mixed into socket keys, so that kernel addresses stay in the kernel.
    SOCK_KEY_MASK: u64,
    /// Shortest time between two records of one folded failure.
    FOLD_INTERVAL_NANOS: u64,
}
