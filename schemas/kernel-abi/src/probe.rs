//! The probes' numbers, their counters, and the map in which failing system calls are folded.

use crate::{FailedSyscall, VANISHED_MAX};

/// Number of probes.
pub const PROBE_COUNT: u32 = 11;

/// The second program of [`ProbeId::TcpState`], for the state changes that come while the first one runs on that
/// processor: a softirq interrupts a task anywhere, and the kernel runs no program twice at once there.
pub const TCP_STATE_AGAIN: &str = "on_tcp_again";

/// The counters of that program.
pub const TCP_STATE_AGAIN_SLOT: u32 = PROBE_COUNT;

/// Places in the map that tells the programs who the agent is, and an agent what the one before it chose: its thread
/// group, 0 = nobody is hidden.
pub const AGENT_TGID: u32 = 0;
/// When it started at the earliest, `CLOCK_BOOTTIME` in nanoseconds, 0 = not told.
pub const AGENT_START: u32 = 1;
/// What socket keys are mixed with; the programs have it as a global.
pub const AGENT_SOCK_KEY_MASK: u32 = 2;
/// The length of that map.
pub const AGENT_PLACES: u32 = 3;
/// The agent started less than this after [`AGENT_START`]: procfs tells hundredths of a second.
pub const AGENT_START_ERROR_NANOS: u64 = 10_000_000;

/// The length of the counter map: one place per program.
pub const STATS_SLOTS: u32 = PROBE_COUNT + 1;

/// Every program that asks the kernel something. The number indexes the counter map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProbeId {
    /// Processes that were made.
    Fork = 0,
    /// Programs that were started.
    Exec = 1,
    /// Processes that ended.
    Exit = 2,
    /// Processes that the kernel killed for memory.
    OomVictim = 3,
    /// TCP state changes.
    TcpState = 4,
    /// TCP resets that were sent.
    TcpResetSent = 5,
    /// TCP resets that were received.
    TcpResetReceived = 6,
    /// TCP segments that were sent again.
    TcpRetransmit = 7,
    /// System calls that failed.
    FailedSyscall = 8,
    /// Signals that end processes.
    FatalSignal = 9,
    /// Plaintext of requests and responses.
    Payload = 10,
}

impl ProbeId {
    /// All probes, in the order of their numbers.
    pub const ALL: [Self; PROBE_COUNT as usize] = [
        Self::Fork,
        Self::Exec,
        Self::Exit,
        Self::OomVictim,
        Self::TcpState,
        Self::TcpResetSent,
        Self::TcpResetReceived,
        Self::TcpRetransmit,
        Self::FailedSyscall,
        Self::FatalSignal,
        Self::Payload,
    ];

    /// The name that capabilities, metrics and the eBPF program itself use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fork => "fork",
            Self::Exec => "exec",
            Self::Exit => "exit",
            Self::OomVictim => "oom_victim",
            Self::TcpState => "tcp_state",
            Self::TcpResetSent => "tcp_reset_sent",
            Self::TcpResetReceived => "tcp_reset_recv",
            Self::TcpRetransmit => "tcp_retransmit",
            Self::FailedSyscall => "syscall_failure",
            Self::FatalSignal => "fatal_signal",
            Self::Payload => "payload",
        }
    }

    /// The name of the eBPF program; the kernel shows its first 15 bytes.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Fork => "on_fork",
            Self::Exec => "on_exec",
            Self::Exit => "on_exit",
            Self::OomVictim => "on_oom_victim",
            Self::TcpState => "on_tcp_state",
            Self::TcpResetSent => "on_rst_sent",
            Self::TcpResetReceived => "on_rst_received",
            Self::TcpRetransmit => "on_retransmit",
            Self::FailedSyscall => "on_sys_failure",
            Self::FatalSignal => "on_fatal_signal",
            Self::Payload => "on_payload",
        }
    }
}

/// What one probe did on one processor. Every hit ends in exactly one of `emitted`, `folded`, `filtered`,
/// `ring_full` and `unreadable`; their sum equals `hits`. One cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ProbeStats {
    /// The hook fired.
    pub hits: u64,
    /// A record was sent for the hit.
    pub emitted: u64,
    /// The hit was added to a count that a later record carries.
    pub folded: u64,
    /// The hit was of no interest.
    pub filtered: u64,
    /// Lost: the ring buffer was full.
    pub ring_full: u64,
    /// Lost: kernel memory that the record needs could not be read.
    pub unreadable: u64,
    /// Not a loss of the hit: a map was full, so the record has no owner, or was not folded.
    pub map_full: u64,
    /// Zero.
    pub reserved: u64,
}

impl ProbeStats {
    /// Adds another processor's counters.
    pub fn add(&mut self, other: &Self) {
        self.hits = self.hits.wrapping_add(other.hits);
        self.emitted = self.emitted.wrapping_add(other.emitted);
        self.folded = self.folded.wrapping_add(other.folded);
        self.filtered = self.filtered.wrapping_add(other.filtered);
        self.ring_full = self.ring_full.wrapping_add(other.ring_full);
        self.unreadable = self.unreadable.wrapping_add(other.unreadable);
        self.map_full = self.map_full.wrapping_add(other.map_full);
    }

    /// The sum of all ends of a hit; equal to `hits` unless a program is running at this moment.
    #[must_use]
    pub const fn accounted(&self) -> u64 {
        self.emitted
            .wrapping_add(self.folded)
            .wrapping_add(self.filtered)
            .wrapping_add(self.ring_full)
            .wrapping_add(self.unreadable)
    }
}

/// Length of the map of [`SyscallRule`]s; larger numbers are of no interest.
pub const SYSCALL_COUNT: u32 = 512;
/// The call's arguments are not looked at.
pub const SHAPE_NONE: u16 = 0;
/// The first argument is a path.
pub const SHAPE_PATH_FIRST: u16 = 1;
/// The first argument is a directory's descriptor, the second a path.
pub const SHAPE_PATH_SECOND: u16 = 2;
/// The first argument is a descriptor, the second a socket address.
pub const SHAPE_ADDRESS: u16 = 3;
/// The first argument is a descriptor.
pub const SHAPE_DESCRIPTOR: u16 = 4;
/// The call moves bytes of the buffer in the second argument.
pub const FORM_BUFFER: u8 = 1;
/// The second argument is an array of buffers.
pub const FORM_VECTOR: u8 = 2;
/// The second argument is a message header, which names an array of buffers.
pub const FORM_MESSAGE: u8 = 3;

/// The call opens no file.
pub const OPENS_NONE: u8 = 0;
/// The call opens a file, the second argument says how.
pub const OPENS_SECOND: u8 = 1;
/// The call opens a file, the third argument says how.
pub const OPENS_THIRD: u8 = 2;
/// The call opens a file, the third argument points to a `struct open_how`.
pub const OPENS_HOW: u8 = 3;

/// A process starts for so long: what it opens then is what it needs, or looks for, to run at all.
pub const STARTING_NANOS: u64 = 30_000_000_000;
/// Bytes of a command line that are looked at.
pub const COMMAND_LINE_BYTES: usize = 128;
/// Of these so many tell programs of a pod apart, the first that are no digits: ports, numbers of processes and times may
/// be others at each start, and of other lengths.
pub const COMMAND_LINE_CHARS: u64 = 96;
/// Starts that a file is missing at follow each other sooner than this where it is why they fail: who was not restarted
/// for longer did without it. (Kubernetes waits for at most five minutes before it restarts a container.)
pub const LIVED_NANOS: u64 = 600_000_000_000;
/// Files that are remembered of one pod; beyond, its later ones are not.
pub const POD_FILES_MAX: u64 = 1024;
/// The pod's programs always found the file.
pub const FILE_FOUND: u64 = 1;
/// The file may be absent: a program of the pod looked for it in vain before anybody found it, or made it.
pub const FILE_OPTIONAL: u64 = 2;

/// What the kernel remembers of files that programs look for when they start; the value is [`FILE_FOUND`],
/// [`FILE_OPTIONAL`], or when a file that was always found was missed last.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// kernfs id of the cgroup above the program's: a container's is below its pod's.
    pub pod: u64,
    /// Hash of the program's command line and of the path, as it spelled it.
    pub file: u64,
}

/// What is wanted of one system call, by its number on this architecture. The agent fills the map at load, so that
/// numbers and policy are in one place and the programs know neither.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SyscallRule {
    /// Bit n: errno n is a failure worth a record.
    pub errnos_low: u64,
    /// Bit n: errno 64 + n is.
    pub errnos_high: u64,
    /// One of the `SHAPE_` constants.
    pub shape: u16,
    /// `DIRECTION_READ`, `DIRECTION_WRITE`, or 0 when the call moves no bytes.
    pub direction: u8,
    /// One of the `FORM_` constants.
    pub form: u8,
    /// One of the `OPENS_` constants.
    pub opens: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// What failing system calls are folded by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FoldKey {
    /// Thread group.
    pub tgid: u32,
    /// Number of the system call, and [`KEY_VANISHED`].
    pub number: u16,
    /// The error.
    pub errno: u16,
}

/// In a key's number: of files that are gone. Numbers are below [`SYSCALL_COUNT`].
pub const KEY_VANISHED: u16 = 0x8000;

/// The failures of one key that no record carries yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldValue {
    /// Failures since the last record.
    pub pending: u64,
    /// When a record was last sent, `CLOCK_BOOTTIME`.
    pub emitted_at_nanos: u64,
    /// When the last failure happened, `CLOCK_BOOTTIME`.
    pub last_at_nanos: u64,
    /// Hash of the path and address in `sample`.
    pub detail: u64,
    /// 1 once a failure had another path or address than the one before; it stays so while the key lives.
    pub mixed: u64,
    /// 1 while a processor writes `sample`.
    pub writing: u64,
    /// Of files that are gone: the hashes of those that had a record of their own, 0 = none.
    pub told: [u64; VANISHED_MAX],
    /// The record of the key's last failure, as far as path and address go: a failure that is like the one before is
    /// not written again. Of several at the same moment it is one.
    pub sample: FailedSyscall,
}

// SAFETY: all of them are `repr(C)`, made of integers, and without padding, which the layout tests prove.
#[cfg(feature = "aya")]
unsafe impl aya::Pod for ProbeStats {}
// SAFETY: as above.
#[cfg(feature = "aya")]
unsafe impl aya::Pod for SyscallRule {}
// SAFETY: as above.
#[cfg(feature = "aya")]
unsafe impl aya::Pod for FoldKey {}
// SAFETY: as above.
#[cfg(feature = "aya")]
unsafe impl aya::Pod for FoldValue {}
// SAFETY: as above.
#[cfg(feature = "aya")]
unsafe impl aya::Pod for crate::Owner {}
