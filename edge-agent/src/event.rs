//! An event on its way through the agent: what was captured, attributed, and not yet a row of a batch.
//!
//! Small, made of numbers and shared texts, so that making one costs little; only the events that leave the node
//! become rows ([`Event::write`]), and no owned event of the schemas is ever made. Made by the modules that
//! interpret records, folded by [`crate::fold`], written by [`crate::outgoing`].

use std::sync::Arc;

use tapio_kernel_abi::{COMM_BYTES, Header, Owner, SockTuple};
use tapio_protocols::trace_context::TraceParent;
use tapio_schemas::{
    batch::{BatchBuilder, RowRefusal},
    field::column,
    intent::{EventKind, LinkKind, Severity},
    units::{BootNanos, ClockOffset, coarse},
};

use crate::attribute::Container;

/// How wrong the kernel's own stamp may be: what lies between the hook and the reading of the clock. The node's
/// clock error stands in the frame's header, because all of the node's events share it.
const STAMP_ERROR_MICROS: u64 = 2;

/// One event, or several equal ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Event {
    /// When it happened; its start, where it lasted.
    pub(crate) time: BootNanos,
    /// How long it lasted; of several, the sum.
    pub(crate) duration_nanos: u64,
    /// What happened.
    pub(crate) intent: &'static str,
    pub(crate) kind: EventKind,
    /// The probe or source that saw it, as capabilities name it.
    pub(crate) probe: &'static str,
    pub(crate) severity: Severity,
    /// How many equal occurrences it stands for.
    pub(crate) count: u32,
    /// How many records of the ring it stands for: what the ledger counts.
    pub(crate) records: u32,
    pub(crate) trace: Option<TraceLink>,
    pub(crate) container: Option<Arc<Container>>,
    pub(crate) peer: Option<Arc<Container>>,
    pub(crate) attributes: Option<Box<str>>,
    pub(crate) process: Option<ProcessPart>,
    pub(crate) network: Option<NetworkPart>,
    pub(crate) metric: Option<MetricPart>,
    pub(crate) verdict: Option<VerdictPart>,
}

/// How an event belongs to a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceLink {
    /// All zero where the link is inferred and names nobody.
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: u64,
    pub(crate) parent_span_id: u64,
    pub(crate) flags: u8,
    pub(crate) link: LinkKind,
}

impl TraceLink {
    /// Several requests may have caused it: the link names none of them.
    pub(crate) const UNDECIDED: Self =
        Self { trace_id: [0; 16], span_id: 0, parent_span_id: 0, flags: 0, link: LinkKind::Inferred };

    /// Of a request that was served: the caller's span is the parent.
    pub(crate) const fn served(parent: TraceParent) -> Self {
        Self {
            trace_id: parent.trace_id,
            span_id: 0,
            parent_span_id: parent.parent_id,
            flags: parent.flags,
            link: LinkKind::Observed,
        }
    }

    /// Of a call: the span that it carries is its own.
    pub(crate) const fn called(parent: TraceParent) -> Self {
        Self {
            trace_id: parent.trace_id,
            span_id: parent.parent_id,
            parent_span_id: 0,
            flags: parent.flags,
            link: LinkKind::Observed,
        }
    }
}

/// What the kernel said of a process, a file, a size.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProcessPart {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) parent_pid: u32,
    pub(crate) start_nanos: u64,
    pub(crate) cgroup_id: u64,
    pub(crate) comm: [u8; COMM_BYTES],
    pub(crate) syscall: &'static str,
    pub(crate) errno: u16,
    pub(crate) signal: u8,
    pub(crate) exit_code: u8,
    pub(crate) sender_pid: u32,
    pub(crate) path: Option<Arc<str>>,
    pub(crate) size_bytes: u64,
    pub(crate) limit_bytes: u64,
    pub(crate) uid: u32,
}

impl ProcessPart {
    /// The task of a header.
    pub(crate) fn of_header(header: &Header) -> Self {
        Self {
            pid: header.tgid,
            tid: header.tid,
            start_nanos: header.start_nanos,
            cgroup_id: header.cgroup_id,
            comm: header.comm,
            ..Self::default()
        }
    }

    /// A socket's owner.
    pub(crate) fn of_owner(owner: &Owner) -> Self {
        Self {
            pid: owner.tgid,
            tid: owner.tid,
            start_nanos: owner.start_nanos,
            cgroup_id: owner.cgroup_id,
            ..Self::default()
        }
    }
}

/// Which way a connection or request went, seen from the process that the event is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    /// Not known.
    #[default]
    Unknown,
    /// Accepted or served.
    In,
    /// Connected or called.
    Out,
}

impl Direction {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// Addresses, protocol, request.
#[derive(Clone, Debug, Default)]
pub(crate) struct NetworkPart {
    pub(crate) tuple: SockTuple,
    pub(crate) protocol: &'static str,
    pub(crate) direction: Direction,
    pub(crate) method: Option<Arc<str>>,
    pub(crate) route: Option<Arc<str>>,
    pub(crate) target: Option<Arc<str>>,
    pub(crate) status: u16,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) old_state: &'static str,
    pub(crate) new_state: &'static str,
}

/// A measured value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MetricPart {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
}

/// What the node's own engine said.
#[derive(Clone, Debug)]
pub(crate) struct VerdictPart {
    pub(crate) pattern: String,
    pub(crate) root_cause: String,
}

impl Event {
    /// Of `records` records; everything else as for one occurrence of nothing.
    pub(crate) fn new(time: u64, intent: &'static str, kind: EventKind, probe: &'static str) -> Self {
        Self { time: BootNanos(time), intent, kind, probe, count: 1, records: 1, ..Self::default() }
    }

    /// Microseconds, coarse where nothing is wrong. An event ends at its time plus its duration, and when something
    /// failed the end is what is held against other events: there every microsecond counts.
    const fn shipped_duration_micros(&self) -> u64 {
        let exact = self.duration_nanos / 1_000;
        if matches!(self.severity, Severity::Info) { coarse(exact) } else { exact }
    }

    /// Writes the event as the next row of a batch; returns the row.
    pub(crate) fn write(&self, batch: &mut BatchBuilder, clock: ClockOffset) -> Result<u32, RowRefusal> {
        use column::{core, correlation, entity, metric, trace};
        let mut row = batch.begin_row()?;
        row.unsigned(core::time_micros, self.time.to_unix(clock).0)
            .unsigned(core::time_error_micros, STAMP_ERROR_MICROS)
            .unsigned(core::kind, self.kind.code().into())
            .text(core::probe, self.probe)
            .unsigned(core::severity, self.severity.code().into())
            .unsigned(core::count, self.count.into())
            .unsigned(core::duration_micros, self.shipped_duration_micros())
            .text(core::intent, self.intent);
        if let Some(link) = &self.trace {
            row.sixteen(trace::trace_id, link.trace_id)
                .unsigned(trace::span_id, link.span_id)
                .unsigned(trace::parent_span_id, link.parent_span_id)
                .unsigned(trace::flags, link.flags.into())
                .unsigned(trace::link, link.link.code().into());
        }
        if let Some(container) = &self.container {
            row.text(entity::container_id, &container.id).text(entity::pod_uid, &container.pod_uid);
        }
        if let Some(peer) = &self.peer {
            row.text(entity::peer_container_id, &peer.id).text(entity::peer_pod_uid, &peer.pod_uid);
        }
        if let Some(attributes) = &self.attributes {
            row.text(entity::attributes, attributes);
        }
        if let Some(process) = &self.process {
            process.write(&mut row);
        }
        if let Some(network) = &self.network {
            network.write(&mut row);
        }
        if let Some(measured) = &self.metric {
            row.text(metric::name, measured.name)
                .text(metric::unit, measured.unit)
                .float(metric::value, measured.value);
        }
        if let Some(verdict) = &self.verdict {
            row.text(correlation::pattern, &verdict.pattern)
                .text(correlation::root_cause, &verdict.root_cause);
        }
        row.commit()
    }
}

impl ProcessPart {
    fn write(&self, row: &mut tapio_schemas::batch::RowWriter<'_>) {
        use column::kernel;
        let comm = self.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        row.unsigned(kernel::pid, self.pid.into())
            .unsigned(kernel::tid, self.tid.into())
            .unsigned(kernel::parent_pid, self.parent_pid.into())
            .unsigned(kernel::start_boot_nanos, self.start_nanos)
            .unsigned(kernel::cgroup_id, self.cgroup_id)
            .text(kernel::command, &String::from_utf8_lossy(comm))
            .text(kernel::syscall, self.syscall)
            .unsigned(kernel::errno, self.errno.into())
            .unsigned(kernel::signal, self.signal.into())
            .unsigned(kernel::exit_code, self.exit_code.into())
            .unsigned(kernel::sender_pid, self.sender_pid.into())
            .text(kernel::path, self.path.as_deref().unwrap_or_default())
            .unsigned(kernel::size_bytes, self.size_bytes)
            .unsigned(kernel::limit_bytes, self.limit_bytes)
            .unsigned(kernel::uid, self.uid.into());
    }
}

impl NetworkPart {
    fn write(&self, row: &mut tapio_schemas::batch::RowWriter<'_>) {
        use column::network;
        row.sixteen(network::local_address, self.tuple.local_address)
            .sixteen(network::remote_address, self.tuple.remote_address)
            .unsigned(network::local_port, self.tuple.local_port.into())
            .unsigned(network::remote_port, self.tuple.remote_port.into())
            .text(network::protocol, self.protocol)
            .text(network::direction, self.direction.as_str())
            .text(network::method, self.method.as_deref().unwrap_or_default())
            .text(network::route, self.route.as_deref().unwrap_or_default())
            .text(network::target, self.target.as_deref().unwrap_or_default())
            .unsigned(network::status, self.status.into())
            .unsigned(network::received_bytes, coarse(self.received_bytes))
            .unsigned(network::sent_bytes, coarse(self.sent_bytes))
            .text(network::old_state, self.old_state)
            .text(network::new_state, self.new_state);
    }
}
