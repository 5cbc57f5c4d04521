//! What can be chosen when the probes are loaded.

use std::time::Duration;

use tapio_kernel_abi::ProbeId;

/// Choices for loading the probes.
#[derive(Clone, Debug)]
pub struct ProbesConfig {
    /// Size of the ring buffer; rounded up by the loader to a power of two of pages. Charged to the agent.
    pub ring_bytes: u32,
    /// Most TCP sockets whose owner is remembered.
    pub owners_max: u32,
    /// Most (process, system call, errno) combinations that are folded between two drains.
    pub folds_max: u32,
    /// Shortest time between two records of one folded failure.
    pub fold_interval: Duration,
    /// Probes that are not loaded.
    pub disabled: Vec<ProbeId>,
    /// Thread group that is never reported; 0 = none.
    pub ignored_tgid: u32,
    /// Attach points other than the built-in ones: for tests of what happens when a kernel refuses one.
    #[doc(hidden)]
    pub tracepoints: Vec<(ProbeId, String)>,
}

impl Default for ProbesConfig {
    fn default() -> Self {
        Self {
            ring_bytes: 4 << 20,
            owners_max: 32_768,
            folds_max: 4096,
            fold_interval: Duration::from_millis(100),
            disabled: Vec::new(),
            ignored_tgid: std::process::id(),
            tracepoints: Vec::new(),
        }
    }
}

impl ProbesConfig {
    /// The raw tracepoint that a probe attaches to.
    pub(super) fn tracepoint(&self, probe: ProbeId) -> &str {
        if let Some((_, name)) = self.tracepoints.iter().find(|(of, _)| *of == probe) {
            return name;
        }
        match probe {
            ProbeId::Fork => "sched_process_fork",
            ProbeId::Exec => "sched_process_exec",
            ProbeId::Exit => "sched_process_exit",
            ProbeId::OomVictim => "mark_victim",
            ProbeId::TcpState => "inet_sock_set_state",
            ProbeId::TcpResetSent => "tcp_send_reset",
            ProbeId::TcpResetReceived => "tcp_receive_reset",
            ProbeId::TcpRetransmit => "tcp_retransmit_skb",
            ProbeId::FailedSyscall | ProbeId::Payload => "sys_exit",
            ProbeId::FatalSignal => "signal_generate",
        }
    }
}
