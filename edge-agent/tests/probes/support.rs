//! Loads the real probes for a test and collects what they record.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tapio_edge_agent::probes::{Capability, Probes, ProbesConfig, RingReader};
use tapio_kernel_abi::*;

/// A record that outlives the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Fork(Fork),
    Exec(Exec),
    Exit(Exit),
    OomVictim(OomVictim),
    TcpState(TcpState),
    TcpReset(TcpReset),
    TcpRetransmit(TcpRetransmit),
    FailedSyscall(FailedSyscall),
    FatalSignal(FatalSignal),
    Payload(PayloadHead, Vec<u8>),
}

impl Seen {
    fn of(record: RecordRef<'_>) -> Self {
        match record {
            RecordRef::Fork(record) => Self::Fork(*record),
            RecordRef::Exec(record) => Self::Exec(*record),
            RecordRef::Exit(record) => Self::Exit(*record),
            RecordRef::OomVictim(record) => Self::OomVictim(*record),
            RecordRef::TcpState(record) => Self::TcpState(*record),
            RecordRef::TcpReset(record) => Self::TcpReset(*record),
            RecordRef::TcpRetransmit(record) => Self::TcpRetransmit(*record),
            RecordRef::FailedSyscall(record) => Self::FailedSyscall(*record),
            RecordRef::FatalSignal(record) => Self::FatalSignal(*record),
            RecordRef::Payload(head, data) => Self::Payload(*head, data.to_vec()),
        }
    }

    /// Which probe's counter the record is in.
    pub(crate) fn probe(&self) -> ProbeId {
        match self {
            Self::Fork(_) => ProbeId::Fork,
            Self::Exec(_) => ProbeId::Exec,
            Self::Exit(_) => ProbeId::Exit,
            Self::OomVictim(_) => ProbeId::OomVictim,
            Self::TcpState(_) => ProbeId::TcpState,
            Self::TcpReset(record) if record.direction == RESET_SENT => ProbeId::TcpResetSent,
            Self::TcpReset(_) => ProbeId::TcpResetReceived,
            Self::TcpRetransmit(_) => ProbeId::TcpRetransmit,
            Self::FailedSyscall(_) => ProbeId::FailedSyscall,
            Self::FatalSignal(_) => ProbeId::FatalSignal,
            Self::Payload(..) => ProbeId::Payload,
        }
    }
}

/// The probes and all that they have recorded.
pub(crate) struct Watch {
    pub(crate) probes: Probes,
    pub(crate) capabilities: Vec<Capability>,
    pub(crate) seen: Vec<Seen>,
    ring: RingReader,
}

/// Everything, this process included.
pub(crate) fn everything() -> ProbesConfig {
    ProbesConfig { ignored_tgid: 0, ring_bytes: 16 << 20, ..ProbesConfig::default() }
}

/// Loads the probes. `None` only where the environment says that this need not be proven here.
pub(crate) fn watch(config: &ProbesConfig) -> Option<Watch> {
    let (mut probes, capabilities) = Probes::load(config);
    let Some(ring) = probes.take_ring() else {
        let excused = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
        assert!(
            excused.split(',').any(|name| name == "ebpf"),
            "the probes do not load, and TAPIO_NOT_PROVEN does not excuse ebpf: {capabilities:?}"
        );
        println!("not proven: ebpf: the probes do not load here");
        return None;
    };
    for capability in &capabilities {
        let expected = config.disabled.contains(&capability.probe)
            || config.tracepoints.iter().any(|(probe, _)| *probe == capability.probe)
            || capability.is_working();
        assert!(expected, "{capability:?}");
    }
    Some(Watch { probes, capabilities, seen: Vec::new(), ring })
}

impl Watch {
    /// Takes whatever is in the ring now.
    pub(crate) fn take(&mut self) {
        let seen = &mut self.seen;
        self.ring.for_each(usize::MAX, |record| seen.push(Seen::of(record)));
    }

    /// Reads records until `enough` is content; it must be so within ten seconds.
    pub(crate) fn until(&mut self, what: &str, mut enough: impl FnMut(&[Seen]) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            self.take();
            if enough(&self.seen) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "did not see {what}; last: {:#?}",
                self.seen.iter().rev().take(5)
            );
            self.ring.poll(Duration::from_millis(100)).expect("the ring can be polled");
        }
    }

    /// Detaches everything, reads what is left, and holds every counter to what was read.
    pub(crate) fn settle(&mut self) {
        self.probes.detach(&ProbeId::ALL).expect("probes come off");
        self.take();
        assert_eq!(self.ring.take_bad().total(), 0);
        for counters in self.probes.stats().expect("counters are readable") {
            let records = self.seen.iter().filter(|seen| seen.probe() == counters.probe).count() as u64;
            let stats = counters.stats;
            assert_eq!(stats.emitted, records, "{}: {stats:?}", counters.probe.name());
            assert_eq!(stats.hits, stats.accounted(), "{}: {stats:?}", counters.probe.name());
        }
    }
}

/// This test's executable again, as a process that does one thing: see each test file's `child`.
pub(crate) fn spawn(task: &str) -> Child {
    Command::new(std::env::current_exe().expect("the test has a path"))
        .args(["--exact", "child", "--nocapture"])
        .env("TAPIO_TEST_CHILD", task)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child starts")
}

/// Major and minor version of the kernel.
pub(crate) fn kernel_release() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the release is readable");
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next().and_then(Result::ok).expect("a release begins with two numbers");
    (next(), next())
}

/// Inode of the calling process's memory cgroup: the id that the records carry.
pub(crate) fn own_cgroup_id() -> u64 {
    cgroup_id(&own_cgroup())
}

/// Inode of a cgroup's directory.
pub(crate) fn cgroup_id(directory: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(directory).expect("the cgroup exists").ino()
}

/// Whether memory is counted by a v1 hierarchy, and where the hierarchy that counts it is mounted.
pub(crate) fn memory_mount() -> (bool, std::path::PathBuf) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts are readable");
    let mount = |kind: &str, option: &str| {
        mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut right = right.split(' ');
            (right.next()? == kind && right.nth(1)?.split(',').any(|of| option.is_empty() || of == option))
                .then(|| left.split(' ').nth(4).map(std::path::PathBuf::from))?
        })
    };
    match mount("cgroup", "memory") {
        Some(path) => (true, path),
        None => (false, mount("cgroup2", "").expect("some hierarchy counts memory")),
    }
}

fn own_cgroup() -> std::path::PathBuf {
    let (is_v1, mount) = memory_mount();
    let lines = std::fs::read_to_string("/proc/self/cgroup").expect("own cgroup is readable");
    let path = lines
        .lines()
        .find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            let matches =
                if is_v1 { controllers.split(',').any(|of| of == "memory") } else { controllers.is_empty() };
            matches.then(|| parts.next())?
        })
        .expect("the process is in the hierarchy");
    mount.join(path.trim_start_matches('/'))
}
