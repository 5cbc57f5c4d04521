//! The probes' numbers, their counters, and the map in which failing system calls are folded.

use crate::FailedSyscall;

/// Number of probes; the length of the counter map.
pub const PROBE_COUNT: u32 = 11;

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

/// What failing system calls are folded by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FoldKey {
    /// Thread group.
    pub tgid: u32,
    /// Number of the system call.
    pub number: u16,
    /// The error.
    pub errno: u16,
}

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
    /// The record of the key's first failure.
    pub sample: FailedSyscall,
}

// SAFETY: all of them are `repr(C)`, made of integers, and without padding, which the layout tests prove.
#[cfg(feature = "aya")]
unsafe impl aya::Pod for ProbeStats {}
// SAFETY: as above.
#[cfg(feature = "aya")]
unsafe impl aya::Pod for FoldKey {}
// SAFETY: as above.
#[cfg(feature = "aya")]
unsafe impl aya::Pod for FoldValue {}
// SAFETY: as above.
#[cfg(feature = "aya")]
unsafe impl aya::Pod for crate::Owner {}
