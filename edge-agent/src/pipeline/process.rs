//! Records of processes: begins, ends, kills, signals, failing calls.

use std::sync::Arc;

use tapio_kernel_abi::{
    Exec, Exit, FLAG_ADDRESS, FLAG_MIXED, FLAG_PATH, FLAG_TCP, FLAG_VANISHED, FailedSyscall, FatalSignal,
    Fork, OOM_LAYOUT_TASK, OomVictim, Owner, ProbeId, SockTuple,
};
use tapio_schemas::{
    intent::{self, EventKind, Severity},
    ledger::Fate,
};

use super::Pipeline;
use crate::{
    attribute::{Container, Host, Process},
    connections::Holder,
    event::{Direction, Event, NetworkPart, ProcessPart},
    syscalls,
};

const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;
const EADDRINUSE: u16 = 98;
/// Holders of one address that are told: several listen on addresses of their own where the wildcard was wanted.
const HOLDERS_TOLD_MAX: usize = 8;
/// Since when a holder listens is told up to here: whoever looks for events by their beginnings looks no further back.
const HELD_NANOS_MAX: u64 = 60_000_000_000;

impl<H: Host> Pipeline<H> {
    pub(super) fn forked(&mut self, fork: &Fork) {
        let process = Process {
            start_nanos: fork.child_start_nanos,
            parent_pid: fork.header.tgid,
            cgroup_id: fork.child_cgroup_id,
        };
        self.processes.began(fork.child_tgid, process);
        let time = fork.header.time_nanos;
        let place = self.place(fork.child_cgroup_id, fork.child_tgid, time);
        if self.is_out_of_scope(&place) {
            self.filtered(ProbeId::Fork, "host");
            return;
        }
        self.push(Event {
            container: place.container().cloned(),
            process: Some(ProcessPart {
                pid: fork.child_tgid,
                tid: fork.child_tid,
                parent_pid: fork.header.tgid,
                start_nanos: fork.child_start_nanos,
                cgroup_id: fork.child_cgroup_id,
                comm: fork.header.comm,
                ..ProcessPart::default()
            }),
            ..Event::new(time, intent::PROCESS_STARTED, EventKind::Process, ProbeId::Fork.name())
        });
    }

    pub(super) fn executed(&mut self, exec: &Exec) {
        let header = &exec.header;
        let process = Process {
            start_nanos: header.start_nanos,
            parent_pid: exec.parent_tgid,
            cgroup_id: header.cgroup_id,
        };
        self.processes.began(header.tgid, process);
        let place = self.place(header.cgroup_id, header.tgid, header.time_nanos);
        if self.is_out_of_scope(&place) {
            self.filtered(ProbeId::Exec, "host");
            return;
        }
        self.push(Event {
            severity: Severity::Notice,
            container: place.container().cloned(),
            process: Some(ProcessPart {
                parent_pid: exec.parent_tgid,
                uid: exec.uid,
                path: Some(text(exec.path())),
                ..ProcessPart::of_header(header)
            }),
            ..Event::new(
                header.time_nanos,
                intent::PROCESS_EXECUTED,
                EventKind::Process,
                ProbeId::Exec.name(),
            )
        });
    }

    pub(super) fn exited(&mut self, exit: &Exit) {
        let header = &exit.header;
        let now = header.time_nanos;
        let known = self.processes.ended(header.tgid, header.start_nanos);
        let in_order = (exit.signal, exit.exit_code) == (0, 0);
        let exchanges = &mut self.exchanges;
        self.requests.process_ended(header.tgid, header.start_nanos, in_order, now, exchanges);
        self.tell_exit(exit, known);
        // Behind it, so that whoever reads in order has the end before what it led to.
        self.tell_exchanges(now);
    }

    fn tell_exit(&mut self, exit: &Exit, known: Option<Process>) {
        let header = &exit.header;
        let place = self.place(header.cgroup_id, header.tgid, header.time_nanos);
        if self.is_out_of_scope(&place) {
            self.filtered(ProbeId::Exit, "host");
            return;
        }
        let (intent, severity) = match (exit.signal, exit.exit_code) {
            (0, 0) => (intent::PROCESS_EXITED, Severity::Info),
            (0, _) => (intent::PROCESS_FAILED, Severity::Notice),
            // Somebody asked it to end, and it did.
            (SIGTERM | 1 | 2, _) => (intent::PROCESS_KILLED, Severity::Notice),
            _ => (intent::PROCESS_KILLED, Severity::Error),
        };
        let event = Event {
            severity,
            container: place.container().cloned(),
            process: Some(ProcessPart {
                parent_pid: known.map_or(0, |known| known.parent_pid),
                signal: exit.signal,
                exit_code: exit.exit_code,
                ..ProcessPart::of_header(header)
            }),
            ..Event::new(header.time_nanos, intent, EventKind::Process, ProbeId::Exit.name())
        };
        if let Some(container) = place.container() {
            self.exits.saw(container, exit);
        }
        if intent != intent::PROCESS_FAILED {
            self.push(event);
        } else if let Some(earliest) = self.exits.hold(event, exit.namespace) {
            self.push(earliest);
        }
    }

    pub(super) fn out_of_memory(&mut self, victim: &OomVictim) {
        let time = victim.header.time_nanos;
        let mut process = ProcessPart {
            pid: victim.victim_tgid,
            tid: victim.victim_tgid,
            signal: SIGKILL,
            sender_pid: victim.header.tgid,
            ..ProcessPart::default()
        };
        if victim.layout == OOM_LAYOUT_TASK {
            process.start_nanos = victim.victim_start_nanos;
            process.cgroup_id = victim.victim_cgroup_id;
            process.comm = victim.victim_comm;
            process.uid = victim.uid;
            // Mapped files are left out: their pages may be charged to whoever read them first, so that a victim with
            // them can be "larger" than the limit that it was killed at.
            process.size_bytes = victim.anon_rss_bytes.saturating_add(victim.shmem_rss_bytes);
        } else if let Some(known) = self.processes.get(victim.victim_tgid) {
            // This kernel names the victim by its pid only.
            process.start_nanos = known.start_nanos;
            process.cgroup_id = known.cgroup_id;
        }
        let place = self.place(process.cgroup_id, process.pid, time);
        let container = place.container().cloned();
        if let Some(last) = container.as_ref().and_then(|container| self.memory.last(container)) {
            process.limit_bytes = last.limit_bytes;
        }
        // The cause first, so that whoever reads in order has it when the fault comes.
        if let Some(container) = &container
            && let Some(growth) = self.memory.killed(container, time)
        {
            self.grew(container, growth);
        }
        self.push(Event {
            severity: Severity::Critical,
            container,
            process: Some(process),
            ..Event::new(time, intent::OOM_KILL, EventKind::Memory, ProbeId::OomVictim.name())
        });
    }

    pub(super) fn signalled(&mut self, signal: &FatalSignal) {
        let time = signal.header.time_nanos;
        let parent_pid =
            self.processes.saw(signal.target_tgid, signal.target_start_nanos, signal.target_cgroup_id);
        let place = self.place(signal.target_cgroup_id, signal.target_tgid, time);
        if self.is_out_of_scope(&place) {
            self.filtered(ProbeId::FatalSignal, "host");
            return;
        }
        let severity = if signal.signal == SIGTERM { Severity::Notice } else { Severity::Warning };
        self.push(Event {
            severity,
            container: place.container().cloned(),
            process: Some(ProcessPart {
                pid: signal.target_tgid,
                tid: signal.target_tid,
                parent_pid,
                start_nanos: signal.target_start_nanos,
                cgroup_id: signal.target_cgroup_id,
                comm: signal.target_comm,
                signal: signal.signal,
                sender_pid: signal.header.tgid,
                ..ProcessPart::default()
            }),
            ..Event::new(time, intent::FATAL_SIGNAL, EventKind::Signal, ProbeId::FatalSignal.name())
        });
    }

    pub(super) fn call_failed(&mut self, failed: &FailedSyscall) {
        self.failures(failed, 1);
    }

    /// Failures that were counted in the kernel and that no record has carried.
    pub(super) fn folded_failures(&mut self, failed: &FailedSyscall) {
        self.failures(failed, 0);
    }

    /// Who listens on the address that a container's process could not have, also where it is in none: that one's
    /// failure is what this tells of.
    fn tell_holders(&mut self, wanted: &Event) {
        let (Some(container), Some(network), Some(process)) =
            (&wanted.container, &wanted.network, &wanted.process)
        else {
            return;
        };
        let now = wanted.time.0;
        let is_other = |owner: &Owner| {
            let is_start_known = owner.start_nanos != 0 && process.start_nanos != 0;
            owner.tgid != process.pid || is_start_known && owner.start_nanos != process.start_nanos
        };
        // What may be wrong is not told: a listener's end may be among the records that were lost since.
        let is_sure = |since_nanos: u64| since_nanos > self.sockets_lost_nanos;
        let holders = self.endpoints.holders(&network.tuple);
        let holders = holders.filter(|it| is_other(&it.user.owner) && is_sure(it.user.since_nanos));
        let held: Vec<Event> = holders
            .take(HOLDERS_TOLD_MAX)
            .map(|Holder { address, user }| Event {
                severity: Severity::Notice,
                duration_nanos: now.saturating_sub(user.since_nanos).min(HELD_NANOS_MAX),
                records: 0,
                container: user.container.clone(),
                peer: Some(Arc::clone(container)),
                process: Some(ProcessPart { comm: user.comm, ..ProcessPart::of_owner(&user.owner) }),
                network: Some(NetworkPart {
                    tuple: SockTuple { local_address: address, ..network.tuple },
                    protocol: "tcp",
                    direction: Direction::In,
                    ..NetworkPart::default()
                }),
                ..Event::new(
                    user.since_nanos.max(now.saturating_sub(HELD_NANOS_MAX)),
                    intent::ADDRESS_HELD,
                    EventKind::Network,
                    ProbeId::TcpState.name(),
                )
            })
            .collect();
        for event in held {
            self.push(event);
        }
    }

    fn failures(&mut self, failed: &FailedSyscall, records: u32) {
        let header = &failed.header;
        let place = self.place(header.cgroup_id, header.tgid, header.time_nanos);
        if self.is_out_of_scope(&place) {
            self.tally.add(Fate::Filtered, ProbeId::FailedSyscall.name(), "host", u64::from(records));
            return;
        }
        let count = u32::try_from(failed.count).unwrap_or(u32::MAX).max(1);
        let event = described(failed, count, records, place.container().cloned());
        // What was only counted was told of before; who holds the address by now may be another.
        if event.intent == intent::ADDRESS_IN_USE && records > 0 {
            self.tell_holders(&event);
        }
        if failed.flags & FLAG_MIXED == 0 {
            self.push(event);
            return;
        }
        // They had several paths or addresses: that of the record is told of the last of them.
        if count > 1 {
            self.push(nameless(&event, count - 1));
        }
        self.push(Event { count: 1, ..event });
    }
}

/// The failures of a record, with what it says of them.
fn described(failed: &FailedSyscall, count: u32, records: u32, container: Option<Arc<Container>>) -> Event {
    let header = &failed.header;
    let is_local = is_bind(failed.number);
    let intent = match failed.errno {
        EADDRINUSE if is_local => intent::ADDRESS_IN_USE,
        _ if failed.flags & FLAG_VANISHED != 0 => intent::FILE_VANISHED,
        _ if failed.flags & FLAG_PATH != 0 => intent::FILE_ACCESS_FAILED,
        _ => intent::SYSCALL_FAILED,
    };
    let network = (failed.flags & FLAG_ADDRESS != 0).then(|| NetworkPart {
        tuple: address(failed, is_local),
        protocol: if failed.flags & FLAG_TCP == 0 { "" } else { "tcp" },
        direction: if is_local { Direction::In } else { Direction::Out },
        ..NetworkPart::default()
    });
    let path = failed.path();
    // Only a failure that is told alone is known to be its thread's.
    let is_alone = records > 0 && (count == 1 || failed.flags & FLAG_MIXED != 0);
    Event {
        severity: Severity::Notice,
        count,
        records,
        container,
        process: Some(ProcessPart {
            tid: if is_alone { header.tid } else { 0 },
            syscall: syscalls::name(failed.number),
            errno: failed.errno,
            path: (!path.is_empty()).then(|| text(path)),
            ..ProcessPart::of_header(header)
        }),
        network,
        ..Event::new(header.time_nanos, intent, EventKind::Syscall, ProbeId::FailedSyscall.name())
    }
}

/// `count` failures as `event`, of which neither path, address nor thread is known.
fn nameless(event: &Event, count: u32) -> Event {
    // A local path or a network address: which of them it was is not known either.
    let syscall = event.process.as_ref().map_or("", |process| process.syscall);
    let intent = match event.intent {
        intent::FILE_ACCESS_FAILED if matches!(syscall, "connect" | "bind") => intent::SYSCALL_FAILED,
        intent => intent,
    };
    let process = event.process.clone().map(|process| ProcessPart { tid: 0, path: None, ..process });
    Event { intent, count, records: 0, process, network: None, ..event.clone() }
}

/// Whether the call names an address of this end.
fn is_bind(number: u16) -> bool {
    matches!(i64::from(number), libc::SYS_bind | libc::SYS_listen)
}

fn address(failed: &FailedSyscall, is_local: bool) -> SockTuple {
    let FailedSyscall { network, address, port, .. } = *failed;
    if is_local {
        SockTuple { network, local_address: address, local_port: port, ..SockTuple::default() }
    } else {
        SockTuple { network, remote_address: address, remote_port: port, ..SockTuple::default() }
    }
}

fn text(bytes: &[u8]) -> Arc<str> {
    Arc::from(&*String::from_utf8_lossy(bytes))
}
