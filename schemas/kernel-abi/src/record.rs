//! The layout of the ring buffer's records. One struct per kind; the first field is always [`Header`].

/// Length of a task's command name in the kernel (`TASK_COMM_LEN`).
pub const COMM_BYTES: usize = 16;
/// Longest path that a record carries; longer paths keep their beginning and are flagged [`FLAG_PATH_CUT`].
pub const PATH_BYTES: usize = 128;
/// Longest piece of plaintext that a [`PayloadHead`] is followed by.
pub const PAYLOAD_BYTES_MAX: usize = 384;
/// Different files that are gone which one process and call tells with a record each, between two drains; more of them
/// are counted.
pub const VANISHED_MAX: usize = 4;

/// `kind` of [`Fork`].
pub const KIND_FORK: u16 = 1;
/// `kind` of [`Exec`].
pub const KIND_EXEC: u16 = 2;
/// `kind` of [`Exit`].
pub const KIND_EXIT: u16 = 3;
/// `kind` of [`OomVictim`].
pub const KIND_OOM_VICTIM: u16 = 4;
/// `kind` of [`TcpState`].
pub const KIND_TCP_STATE: u16 = 5;
/// `kind` of [`TcpReset`].
pub const KIND_TCP_RESET: u16 = 6;
/// `kind` of [`TcpRetransmit`].
pub const KIND_TCP_RETRANSMIT: u16 = 7;
/// `kind` of [`FailedSyscall`].
pub const KIND_FAILED_SYSCALL: u16 = 8;
/// `kind` of [`FatalSignal`].
pub const KIND_FATAL_SIGNAL: u16 = 9;
/// `kind` of [`PayloadHead`].
pub const KIND_PAYLOAD: u16 = 10;

/// The path did not fit into [`PATH_BYTES`].
pub const FLAG_PATH_CUT: u16 = 1;
/// The path's memory could not be read (it was never touched, or the pointer was the failure).
pub const FLAG_PATH_UNREADABLE: u16 = 2;
/// The record carries an address.
pub const FLAG_ADDRESS: u16 = 4;
/// The record carries a path.
pub const FLAG_PATH: u16 = 8;
/// The failures that the record stands for differ in path or address: what it carries is that of the last of them.
pub const FLAG_MIXED: u16 = 16;
/// The call was made on a TCP socket.
pub const FLAG_TCP: u16 = 32;
/// The file is gone: a program of this command line and pod found it when it started before, and had never looked for it
/// in vain until it went.
pub const FLAG_VANISHED: u16 = 64;

/// The process was in the machine's own pid namespace, or that is not known.
pub const NAMESPACE_ROOT: u8 = 0;
/// The process was the first of its pid namespace, which ended with it.
pub const NAMESPACE_FIRST: u8 = 1;
/// The process was another one of its pid namespace.
pub const NAMESPACE_OTHER: u8 = 2;

/// The victim was named by its `task_struct`: tgid, cgroup, start and comm are the victim's own.
pub const OOM_LAYOUT_TASK: u16 = 1;
/// The victim was named by its pid alone (kernels before 6.8): only `victim_tgid` is known, and it may be a tid.
pub const OOM_LAYOUT_PID: u16 = 2;

/// A reset that this machine sent.
pub const RESET_SENT: u8 = 1;
/// A reset that this machine received.
pub const RESET_RECEIVED: u8 = 2;

/// The bytes were read (`read`, `recvfrom`, `recvmsg`, `readv`).
pub const DIRECTION_READ: u8 = 1;
/// The bytes were written (`write`, `sendto`, `sendmsg`, `writev`).
pub const DIRECTION_WRITE: u8 = 2;

/// The signal carries no faulting address.
pub const FAULT_NONE: u8 = 0;
/// The faulting address is in the first page: a null pointer was followed.
pub const FAULT_NULL: u8 = 1;
/// The faulting address is in user space, beyond the first page.
pub const FAULT_USER: u8 = 2;
/// The faulting address is in the kernel's half, or not canonical.
pub const FAULT_KERNEL: u8 = 3;

/// What every record begins with.
///
/// The task is the one that was running when the hook fired. For records of the network that may be any task that
/// a softirq interrupted: use [`Owner`] there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of the `KIND_` constants.
    pub kind: u16,
    /// Bytes of the whole record, this header included.
    pub record_bytes: u16,
    /// Processor that the hook fired on.
    pub cpu: u32,
    /// When the hook fired, `CLOCK_BOOTTIME`.
    pub time_nanos: u64,
    /// Thread group (what user space calls the pid) in the root pid namespace.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// kernfs id of the task's memory cgroup (hosts with the v1 memory controller) or v2 cgroup; it is the inode
    /// number of the cgroup's directory.
    pub cgroup_id: u64,
    /// Start of the thread group's leader, `CLOCK_BOOTTIME`: with `tgid` it identifies a process for ever.
    pub start_nanos: u64,
    /// Command name, padded with zero bytes.
    pub comm: [u8; COMM_BYTES],
}

/// Who opened, or last read or wrote, a socket. All zero when that is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Owner {
    /// Thread group, 0 = not known.
    pub tgid: u32,
    /// Thread.
    pub tid: u32,
    /// kernfs id of its cgroup.
    pub cgroup_id: u64,
    /// Start of the thread group's leader, `CLOCK_BOOTTIME`.
    pub start_nanos: u64,
}

/// The two ends of a TCP connection. IPv4 addresses are in their IPv6-mapped form (`::ffff:a.b.c.d`) so that one
/// connection has one spelling.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SockTuple {
    /// Inode number of the network namespace, in which the addresses mean what they mean; 0 = not known.
    pub network: u32,
    /// Port at this end, host byte order, 0 = not yet chosen.
    pub local_port: u16,
    /// Port at the other end, host byte order.
    pub remote_port: u16,
    /// Address at this end, network byte order.
    pub local_address: [u8; 16],
    /// Address at the other end, network byte order.
    pub remote_address: [u8; 16],
}

/// A process was made (threads are filtered). The header's task is the parent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The parent.
    pub header: Header,
    /// The child's thread group.
    pub child_tgid: u32,
    /// The child's first thread; equal to `child_tgid`.
    pub child_tid: u32,
    /// Start of the child, `CLOCK_BOOTTIME`.
    pub child_start_nanos: u64,
    /// kernfs id of the child's cgroup, which differs from the parent's for `CLONE_INTO_CGROUP`.
    pub child_cgroup_id: u64,
}

/// A process replaced its program. The header's comm is already the new one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    /// The process.
    pub header: Header,
    /// Real user id in the root user namespace.
    pub uid: u32,
    /// Thread group of the real parent.
    pub parent_tgid: u32,
    /// Bytes of `path` in use.
    pub path_bytes: u16,
    /// `FLAG_PATH*`.
    pub flags: u16,
    /// Zero.
    pub reserved: u32,
    /// The program as it was named, not resolved.
    pub path: [u8; PATH_BYTES],
}

/// The last thread of a process ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The process; the thread is the last one.
    pub header: Header,
    /// The status as `wait` returns it.
    pub wait_status: u32,
    /// Argument of `exit`, 0 when a signal ended the process.
    pub exit_code: u8,
    /// Signal that ended the process, 0 = none.
    pub signal: u8,
    /// 1 when a core was dumped.
    pub core_dumped: u8,
    /// One of the `NAMESPACE_` constants: its place in its pid namespace.
    pub namespace: u8,
}

/// The kernel chose a process to be killed for memory. The header's task is the one whose allocation failed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OomVictim {
    /// The task that needed the memory.
    pub header: Header,
    /// The victim.
    pub victim_tgid: u32,
    /// Real user id of the victim in the root user namespace.
    pub uid: u32,
    /// kernfs id of the victim's cgroup.
    pub victim_cgroup_id: u64,
    /// Start of the victim's leader, `CLOCK_BOOTTIME`.
    pub victim_start_nanos: u64,
    /// Size of its address space.
    pub total_vm_bytes: u64,
    /// Resident anonymous memory, as the kernel's approximate counter has it (up to 32 pages per processor low).
    pub anon_rss_bytes: u64,
    /// Resident file pages, same precision.
    pub file_rss_bytes: u64,
    /// Resident shared memory, same precision.
    pub shmem_rss_bytes: u64,
    /// `oom_score_adj` of the victim.
    pub oom_score_adj: i16,
    /// `OOM_LAYOUT_TASK` or `OOM_LAYOUT_PID`; under the latter only `victim_tgid` is known.
    pub layout: u16,
    /// Bytes of a page on this kernel.
    pub page_bytes: u32,
    /// Command name of the victim.
    pub victim_comm: [u8; COMM_BYTES],
}

/// A TCP socket changed its state. Only the transitions that mean something are sent: a connection attempt that
/// succeeded or failed, the peer's end of stream, the close, and a listener that came or went.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpState {
    /// The task that was running; rarely the owner.
    pub header: Header,
    /// Who uses the socket.
    pub owner: Owner,
    /// Names the socket while it lives; reused afterwards.
    pub sock_key: u64,
    /// Its two ends.
    pub tuple: SockTuple,
    /// State before, one of the kernel's `TCP_` states (1 = ESTABLISHED .. 12 = NEW_SYN_RECV).
    pub old_state: u8,
    /// State after.
    pub new_state: u8,
    /// Pending error of the socket (`sk_err`), 0 = none.
    pub sock_errno: u16,
    /// Zero.
    pub reserved: u32,
}

/// A TCP reset was sent or received.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpReset {
    /// The task that was running; rarely the owner.
    pub header: Header,
    /// Who uses the socket.
    pub owner: Owner,
    /// Names the socket while it lives, 0 = the packet found none.
    pub sock_key: u64,
    /// Its two ends.
    pub tuple: SockTuple,
    /// `RESET_SENT` or `RESET_RECEIVED`.
    pub direction: u8,
    /// The socket's state, 0 = no socket.
    pub state: u8,
    /// Zero.
    pub reserved: u16,
    /// `enum sk_rst_reason` where the kernel tells it (6.10 and later), 0 = not known.
    pub reason: u32,
}

/// A TCP segment was sent again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpRetransmit {
    /// The task that was running; rarely the owner.
    pub header: Header,
    /// Who uses the socket.
    pub owner: Owner,
    /// Names the socket while it lives.
    pub sock_key: u64,
    /// Its two ends.
    pub tuple: SockTuple,
    /// The socket's state.
    pub state: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

/// A system call failed, `count` times since the last record of the same process, call and errno.
///
/// Path and address are those of all these failures, unless [`FLAG_MIXED`] says otherwise: then they are of the last of
/// them, which is the one that sent the record, if one did. Files that are gone ([`FLAG_VANISHED`]) are told by
/// themselves, and each of the first [`VANISHED_MAX`] of a call with its own record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedSyscall {
    /// The caller; of several failures, the thread of one. In a drained record the time is that of the last failure and
    /// the thread that of one with the same path and address.
    pub header: Header,
    /// How many failures this record stands for.
    pub count: u64,
    /// Number of the system call on this architecture.
    pub number: u16,
    /// The error.
    pub errno: u16,
    /// File descriptor that the call was made on, -1 = none.
    pub fd: i32,
    /// `FLAG_PATH*`, `FLAG_ADDRESS`, `FLAG_TCP`, `FLAG_VANISHED` and `FLAG_MIXED`.
    pub flags: u16,
    /// Bytes of `path` in use.
    pub path_bytes: u16,
    /// `AF_INET` or `AF_INET6` of `address`, 0 = none.
    pub family: u16,
    /// Port of `address`, host byte order.
    pub port: u16,
    /// Address that was connected to or bound, IPv4 in mapped form.
    pub address: [u8; 16],
    /// Inode number of the network namespace of the TCP socket that was to have the address; 0 = not known.
    pub network: u32,
    /// Zero.
    pub reserved: u32,
    /// The path, as the caller spelled it.
    pub path: [u8; PATH_BYTES],
}

/// A signal whose default action ends a process was generated. The header's task is the sender.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FatalSignal {
    /// The sender; for faults the target itself.
    pub header: Header,
    /// Thread group that the signal is for.
    pub target_tgid: u32,
    /// Thread that it is for.
    pub target_tid: u32,
    /// kernfs id of the target's cgroup.
    pub target_cgroup_id: u64,
    /// Start of the target's leader, `CLOCK_BOOTTIME`.
    pub target_start_nanos: u64,
    /// Why, as `si_code` has it (`SI_USER`, `SI_KERNEL`, `SEGV_MAPERR`, ...).
    pub code: i32,
    /// Signal number.
    pub signal: u8,
    /// One of the `FAULT_` constants.
    pub fault: u8,
    /// 1 when the signal is for the whole process.
    pub group: u8,
    /// Zero.
    pub reserved: u8,
    /// Command name of the target.
    pub target_comm: [u8; COMM_BYTES],
}

/// The beginning of a plaintext HTTP/1 request or response; `captured_bytes` bytes follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadHead {
    /// The thread that read or wrote.
    pub header: Header,
    /// Names the socket while it lives.
    pub sock_key: u64,
    /// Its two ends.
    pub tuple: SockTuple,
    /// Bytes that the call moved.
    pub total_bytes: u32,
    /// File descriptor.
    pub fd: i32,
    /// Bytes that follow, at most [`PAYLOAD_BYTES_MAX`].
    pub captured_bytes: u16,
    /// Number of the system call.
    pub number: u16,
    /// `DIRECTION_READ` or `DIRECTION_WRITE`.
    pub direction: u8,
    /// Zero.
    pub reserved: [u8; 3],
}
