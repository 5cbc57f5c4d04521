//! From a record of the ring to events: attribution, interpretation, scope.
//!
//! Owns all state that interprets records, on one thread, with time as an argument; everything that a record can
//! become is decided here, and every record's fate is told to the [`Tally`]. Called by [`crate::capture`].

mod exits;
mod network;
mod process;

use std::{collections::HashMap, sync::Arc};

use tapio_kernel_abi::{Owner, ProbeId, ProbeStats, RecordRef};
use tapio_schemas::{
    intent::{self, EventKind, Severity},
    ledger::{Fate, Stage},
};

use self::exits::HeldExits;
use crate::{
    attribute::{Attribution, Change, Container, Host, Place, Processes, Running},
    config::Scope,
    connections::{Connections, Endpoints, Existing, Listening},
    event::{Event, MetricPart, ProcessPart},
    fold::Fold,
    memory::{Growth, Memory, Sample},
    probes::{ProbeCounters, Resume},
    requests::{Exchange, Requests},
    sampler::Reading,
    tally::Tally,
};

/// The source of what is read from control groups, as capabilities name it.
pub(crate) const MEMORY_SOURCE: &str = "memory";
/// The source of what attribution tells.
const CONTAINER_SOURCE: &str = "container";
/// Why the ring had no room while no agent read it.
pub(crate) const NO_AGENT: &str = "no-agent";
/// Why records are lost that an agent had taken and not told when it was killed.
pub(crate) const AGENT_KILLED: &str = "agent-killed";
/// Why nothing is known of what probes of another version saw.
const EARLIER_VERSION: &str = "earlier-version";
/// Why failures are lost that the kernel had folded: they stand for no record.
pub(crate) const READING_DROPPED: &str = "reading-dropped";
/// Processes that are kept.
const PROCESSES_MAX: usize = 65_536;
/// How often what is over is forgotten.
const SWEEP_NANOS: u64 = 5_000_000_000;
/// The probes that remember a socket's owner in the kernel.
const OWNERS_OF: [ProbeId; 2] = [ProbeId::TcpState, ProbeId::Payload];
/// So long after the kernel had no room for an owner, a socket without one counts as lost: those that found no room may
/// still be open.
const OWNERS_FULL_KEPT_NANOS: u64 = 60_000_000_000;

/// Everything that interprets records.
pub(crate) struct Pipeline<H> {
    host: H,
    scope: Scope,
    attribution: Attribution,
    processes: Processes,
    requests: Requests,
    connections: Connections,
    endpoints: Endpoints,
    memory: Memory,
    pub(crate) fold: Fold,
    pub(crate) tally: Tally,
    exchanges: Vec<Exchange>,
    exits: HeldExits,
    /// When the agent began to observe.
    began_nanos: u64,
    kernel: HashMap<ProbeId, (ProbeStats, u64)>,
    /// When the kernel last found no room for a socket's owner.
    owners_full_nanos: Option<u64>,
    /// When records of sockets were last found to be lost: who listened before may have stopped, unseen.
    sockets_lost_nanos: u64,
    containers_changed: bool,
    swept_nanos: u64,
    heard_nanos: u64,
    records: u64,
}

impl<H: Host> Pipeline<H> {
    pub(crate) fn new(host: H, scope: Scope) -> Self {
        Self {
            host,
            scope,
            attribution: Attribution::default(),
            processes: Processes::new(PROCESSES_MAX),
            requests: Requests::default(),
            connections: Connections::default(),
            endpoints: Endpoints::default(),
            memory: Memory::default(),
            fold: Fold::default(),
            tally: Tally::default(),
            exchanges: Vec::new(),
            exits: HeldExits::default(),
            began_nanos: 0,
            kernel: HashMap::new(),
            owners_full_nanos: None,
            sockets_lost_nanos: 0,
            containers_changed: true,
            swept_nanos: 0,
            heard_nanos: 0,
            records: 0,
        }
    }

    /// Learns what is there already.
    pub(crate) fn begin(&mut self, now_nanos: u64, running: &[Running], existing: &[Existing]) {
        self.began_nanos = now_nanos;
        self.attribution.scan(&self.host, now_nanos);
        self.processes.adopt(running);
        for one in existing {
            let place = self.place(one.owner.cgroup_id, one.owner.tgid, now_nanos);
            let container = place.container().cloned();
            let user = Listening { container, owner: one.owner, comm: one.comm, since_nanos: now_nanos };
            self.endpoints.adopt(one, user);
        }
        self.tell_containers(now_nanos, true);
    }

    /// One record of the ring.
    pub(crate) fn record(&mut self, record: &RecordRef<'_>) {
        self.records += 1;
        match record {
            RecordRef::Fork(fork) => self.forked(fork),
            RecordRef::Exec(exec) => self.executed(exec),
            RecordRef::Exit(exit) => self.exited(exit),
            RecordRef::OomVictim(victim) => self.out_of_memory(victim),
            RecordRef::FatalSignal(signal) => self.signalled(signal),
            RecordRef::FailedSyscall(failed) => self.call_failed(failed),
            RecordRef::TcpState(state) => self.tcp_state(state),
            RecordRef::TcpReset(reset) => self.tcp_reset(reset),
            RecordRef::TcpRetransmit(again) => self.tcp_retransmit(again),
            RecordRef::Payload(head, bytes) => self.payload(head, bytes),
        }
        self.tell_containers(record.header().time_nanos, false);
    }

    /// What the sampler read.
    pub(crate) fn reading(&mut self, reading: Reading, now_nanos: u64) {
        match reading {
            Reading::Memory(container, sample) => self.sampled(&container, sample),
            Reading::Gone(container) => {
                if self.attribution.gone(&container, now_nanos) {
                    self.containers_changed = true;
                    self.memory.gone(&container);
                }
            }
            Reading::Folded(record) => {
                // The kernel has counted it as folded: it stands for no record of the ring.
                self.folded_failures(&record);
            }
            Reading::Drained { began_nanos, .. } => self.release_exits(began_nanos, now_nanos),
            Reading::Counters(counters) => self.count_kernel(&counters, now_nanos, "ring-full"),
        }
        self.tell_containers(now_nanos, false);
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now_nanos: u64) {
        self.requests.tick(now_nanos, &mut self.exchanges);
        self.tell_exchanges(now_nanos);
        self.release_exits(0, now_nanos);
        if now_nanos.saturating_sub(self.swept_nanos) >= SWEEP_NANOS {
            self.swept_nanos = now_nanos;
            self.attribution.expire(now_nanos);
            self.connections.sweep(now_nanos);
            self.endpoints.sweep(now_nanos);
        }
        self.count_requests();
    }

    /// The agent ends: what waits for more is told, or counted.
    pub(crate) fn finish(&mut self, now_nanos: u64) {
        self.requests.finish(now_nanos, &mut self.exchanges);
        self.tell_exchanges(now_nanos);
        self.release_exits(u64::MAX, u64::MAX);
        self.count_requests();
    }

    /// Exits of before `until_nanos`: whatever their processes failed to do is told, or waits in the fold.
    fn release_exits(&mut self, until_nanos: u64, now_nanos: u64) {
        let is_over = |container: &Container| self.host.is_over(&container.group);
        for event in self.exits.release(until_nanos, now_nanos, is_over) {
            self.fold.push_behind(event, &mut self.tally);
        }
    }

    fn count_requests(&mut self) {
        let counts = self.requests.take_counts();
        for (reason, count) in counts.filtered() {
            self.tally.add(Fate::Filtered, ProbeId::Payload.name(), reason, count);
        }
        for (reason, count) in counts.lost() {
            self.tally.add(Fate::Lost, ProbeId::Payload.name(), reason, count);
        }
    }

    /// Every record of before `until_nanos` was taken.
    pub(crate) fn heard(&mut self, until_nanos: u64) {
        self.heard_nanos = self.heard_nanos.max(until_nanos);
    }

    /// The time up to which everything that happened was heard and is not held back.
    pub(crate) fn told_until(&self) -> u64 {
        let untold = self.requests.untold_since().unwrap_or(u64::MAX);
        let held = self.exits.since().unwrap_or(u64::MAX);
        self.fold.told_until(self.heard_nanos.min(untold).min(held))
    }

    /// An event of the agent's own.
    pub(crate) fn push_own(&mut self, event: Event) {
        self.push(event);
    }

    /// A container that lives, by its id.
    pub(crate) fn container(&self, id: &str) -> Option<Arc<Container>> {
        self.attribution.containers().find(|container| container.id == id).cloned()
    }

    /// The containers to be sampled, if that changed since the last call.
    pub(crate) fn changed_containers(&mut self) -> Option<Vec<Arc<Container>>> {
        std::mem::take(&mut self.containers_changed).then(|| self.attribution.containers().cloned().collect())
    }

    /// Records taken from the ring.
    pub(crate) const fn records(&self) -> u64 {
        self.records
    }

    /// Sizes of the tables, by name, for the metrics.
    pub(crate) fn sizes(&self) -> [(&'static str, u64); 5] {
        let size = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
        [
            ("containers", size(self.attribution.containers().count())),
            ("connections", size(self.connections.sizes().0)),
            ("conversations", size(self.requests.sizes().0)),
            ("routes", size(self.requests.sizes().1)),
            ("memory-series", size(self.memory.sizes().0)),
        ]
    }

    /// What could not be kept or named, by reason, since the start.
    pub(crate) fn shortfalls(&self) -> [(&'static str, u64); 8] {
        [
            ("map-full", self.kernel.values().map(|(stats, _)| stats.map_full).sum()),
            ("head-cut", self.requests.heads_cut()),
            ("unknown-group", self.attribution.counts().unknown),
            ("group-table-full", self.attribution.counts().forgotten),
            ("process-table-full", self.processes.refused()),
            ("connection-table-full", self.connections.sizes().1),
            ("endpoint-table-full", self.endpoints.refused()),
            ("memory-table-full", self.memory.sizes().1),
        ]
    }

    fn place(&mut self, cgroup_id: u64, pid: u32, now_nanos: u64) -> Place {
        self.attribution.place(&self.host, cgroup_id, pid, now_nanos)
    }

    fn owner_place(&mut self, owner: &Owner, now_nanos: u64) -> Option<Place> {
        owner.is_known().then(|| self.place(owner.cgroup_id, owner.tgid, now_nanos))
    }

    /// Whether only containers are wanted, and this is none.
    fn is_out_of_scope(&self, place: &Place) -> bool {
        self.scope == Scope::Containers && *place == Place::Host
    }

    /// A record whose socket is nobody's: by nature, or because the kernel had no room to remember whose.
    fn without_owner(&mut self, probe: ProbeId, now_nanos: u64) {
        let is_full =
            self.owners_full_nanos.is_some_and(|at| now_nanos.saturating_sub(at) < OWNERS_FULL_KEPT_NANOS);
        if is_full {
            self.tally.add(Fate::Lost, probe.name(), "owner-map-full", 1);
        } else {
            self.filtered(probe, "no-owner");
        }
    }

    fn push(&mut self, event: Event) {
        self.fold.push(event, &mut self.tally);
    }

    fn filtered(&mut self, probe: ProbeId, reason: &'static str) {
        self.tally.add(Fate::Filtered, probe.name(), reason, 1);
    }

    fn merged(&mut self, probe: ProbeId) {
        self.tally.add(Fate::Folded, probe.name(), "told-by-another", 1);
    }

    fn tell_containers(&mut self, now_nanos: u64, is_start: bool) {
        for change in self.attribution.take_changes() {
            self.containers_changed = true;
            let (container, intent) = match change {
                Change::Seen(container) => (container, intent::CONTAINER_SEEN),
                Change::Gone(container) => (container, intent::CONTAINER_GONE),
            };
            let event = Event {
                severity: Severity::Notice,
                container: Some(container),
                attributes: is_start.then(|| Box::from("present-at-start=true")),
                ..Event::new(now_nanos, intent, EventKind::Container, CONTAINER_SOURCE)
            };
            self.push(event);
        }
    }

    fn sampled(&mut self, container: &Arc<Container>, sample: Sample) {
        let told = self.memory.sampled(container, sample);
        if let Some(sample) = told.sample {
            let event = Event {
                container: Some(Arc::clone(container)),
                process: Some(ProcessPart {
                    size_bytes: sample.used_bytes,
                    limit_bytes: sample.limit_bytes,
                    ..ProcessPart::default()
                }),
                metric: Some(MetricPart {
                    name: "memory.usage",
                    unit: "By",
                    value: float(sample.used_bytes),
                }),
                ..Event::new(sample.time_nanos, intent::MEMORY_SAMPLE, EventKind::Metric, MEMORY_SOURCE)
            };
            self.push(event);
        }
        if let Some(growth) = told.growth {
            self.grew(container, growth);
        }
    }

    fn grew(&mut self, container: &Arc<Container>, growth: Growth) {
        let event = Event {
            severity: Severity::Warning,
            duration_nanos: growth.last_nanos.saturating_sub(growth.onset_nanos),
            container: Some(Arc::clone(container)),
            process: Some(ProcessPart {
                size_bytes: growth.used_bytes,
                limit_bytes: growth.limit_bytes,
                ..ProcessPart::default()
            }),
            metric: Some(MetricPart { name: "memory.growth", unit: "By/s", value: growth.bytes_per_second }),
            ..Event::new(growth.onset_nanos, intent::MEMORY_GROWTH, EventKind::Memory, MEMORY_SOURCE)
        };
        self.push(event);
    }

    /// Goes on with a ring where an agent before ended: what the kernel counted since that was last told is told now, and
    /// what that agent had taken and nobody told is lost.
    pub(crate) fn resume(&mut self, resume: &Resume, counters: &[ProbeCounters], now_nanos: u64) {
        for (probe, told) in ProbeId::ALL.into_iter().zip(resume.mark.kernel) {
            self.kernel.insert(probe, (told.stats, told.missed));
        }
        self.count_kernel(counters, now_nanos, NO_AGENT);
        for (probe, lost) in ProbeId::ALL.into_iter().zip(resume.lost) {
            self.tally.add(Fate::Lost, probe.name(), AGENT_KILLED, lost);
        }
    }

    /// What probes of another version recorded and counted cannot be read: how much that is is not known, it counts as one.
    pub(crate) fn unreadable_version(&mut self) {
        self.tally.add_at(Stage::Kernel, Fate::Lost, "probes", EARLIER_VERSION, 1);
    }

    /// The kernel's own part of the ledger: what changed since the counters were last read. Hits without room in the ring
    /// are lost for the reason `ring_full`.
    fn count_kernel(&mut self, counters: &[ProbeCounters], now_nanos: u64, ring_full: &'static str) {
        for counter in counters {
            let name = counter.probe.name();
            let (before, missed_before) = self.kernel.get(&counter.probe).copied().unwrap_or_default();
            // What two programs count is not read at one moment: what seems to be less is no news.
            let missed = counter.run.map_or(0, |run| run.recursion_misses).max(missed_before);
            self.kernel.insert(counter.probe, (counter.stats, missed));
            let now = counter.stats;
            if OWNERS_OF.contains(&counter.probe) && now.map_full > before.map_full {
                self.owners_full_nanos = Some(now_nanos);
            }
            let lost = |stats: ProbeStats, missed: u64| stats.ring_full + stats.unreadable + missed;
            if counter.probe == ProbeId::TcpState && lost(now, missed) > lost(before, missed_before) {
                self.sockets_lost_nanos = now_nanos;
            }
            let mut add = |fate, reason, now: u64, before: u64| {
                self.tally.add_at(Stage::Kernel, fate, name, reason, now.saturating_sub(before));
            };
            add(Fate::Carried, "", now.emitted, before.emitted);
            add(Fate::Folded, "", now.folded, before.folded);
            add(Fate::Filtered, "", now.filtered, before.filtered);
            add(Fate::Lost, ring_full, now.ring_full, before.ring_full);
            add(Fate::Lost, "unreadable", now.unreadable, before.unreadable);
            add(Fate::Lost, "recursion", missed, missed_before);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a metric's value is a double")]
const fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests;
