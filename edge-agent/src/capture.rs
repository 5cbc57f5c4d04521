//! The capture thread: takes records from the ring, time after time, and sends what became of them on its way.
//!
//! The only owner of the pipeline's state. It waits for nothing but records: disks, the network and what is sampled are
//! other threads' business. It reads only control groups: the name of one that is not known yet, because a container that
//! lives for a moment cannot be asked later ([`crate::attribute`] bounds what that costs), and once a second whether one
//! is empty whose process ended with an error.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use tapio_correlation::RuleSet;
use tapio_daemon::Progress;
use tapio_kernel_abi::ProbeId;
use tapio_schemas::{
    entity::EntityKind,
    ids::RuleSetVersion,
    intent::{self, EventKind},
    ledger::{Fate, Stage},
    units::BootNanos,
};

use crate::{
    attribute::{Container, Hierarchy},
    clock::{self, ClusterClock, NodeClock},
    event::{Event, VerdictPart},
    metrics::Metrics,
    outgoing::Outgoing,
    pipeline::Pipeline,
    precorrelate::{NodeVerdict, Precorrelate},
    probes::RingReader,
    sampler::{Reading, Watched},
    shelf::Losses,
};

/// Records that are taken before anything else is looked at.
const RECORDS_PER_TURN: usize = 4_096;
/// Readings that are taken per turn.
const READINGS_PER_TURN: usize = 8_192;
/// How long a turn waits for records.
const WAIT: Duration = Duration::from_millis(10);
/// How often the clocks are compared.
const CLOCK_NANOS: u64 = 1_000_000_000;
/// A record is stamped, and then it gets its place in the ring: what is stamped so much earlier has one.
const STAMP_NANOS_MAX: u64 = 1_000_000;
/// An urgent frame takes what is being folded along, but not more often than this.
const EARLY_CLOSE_NANOS: u64 = 100_000_000;

/// What the uplink and the spool's thread tell the capture thread, and the other way.
#[derive(Debug)]
pub(crate) struct Shared {
    /// A rule set that is to be run, with its generation.
    rules: Mutex<Option<(Arc<RuleSet>, u64)>>,
    has_rules: AtomicBool,
    in_force: Mutex<(RuleSetVersion, u64)>,
    /// Where the cluster's clock stands.
    pub(crate) cluster_clock: ClusterClock,
    /// Records taken.
    pub(crate) records: AtomicU64,
    /// What the spool could not keep.
    pub(crate) losses: Arc<Losses>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            rules: Mutex::default(),
            has_rules: AtomicBool::new(false),
            in_force: Mutex::default(),
            cluster_clock: ClusterClock::default(),
            records: AtomicU64::new(0),
            losses: Arc::default(),
        }
    }
}

impl Shared {
    /// Runs `rules` from the next turn on.
    pub(crate) fn set_rules(&self, rules: RuleSet, generation: u64) {
        *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = (rules.version(), generation);
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = Some((Arc::new(rules), generation));
        self.has_rules.store(true, Ordering::Release);
    }

    /// The rule set that is run, and its generation.
    pub(crate) fn rules_in_force(&self) -> (RuleSetVersion, u64) {
        *self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_rules(&self) -> Option<(Arc<RuleSet>, u64)> {
        if !self.has_rules.swap(false, Ordering::Acquire) {
            return None;
        }
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The capture thread.
pub(crate) struct Capture {
    pub(crate) node: String,
    pub(crate) ring: Option<RingReader>,
    pub(crate) pipeline: Pipeline<Hierarchy>,
    pub(crate) outgoing: Outgoing,
    pub(crate) clock: NodeClock,
    pub(crate) readings: Receiver<Reading>,
    pub(crate) watched: Arc<Watched>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) missing_probes: Vec<String>,
    pub(crate) metrics: Metrics,
    pub(crate) progress: Progress,
    pub(crate) precorrelate: Option<Precorrelate>,
}

impl Capture {
    /// Works until the sampler, which detaches the probes, is gone and the ring is empty.
    pub(crate) fn run(mut self, first: Vec<Event>) {
        for event in first {
            self.pipeline.push_own(event);
        }
        let (mut clock_read, mut closed_early) = (0, 0);
        loop {
            let taken = self.take_records();
            let is_end = self.take_readings();
            let now = clock::boot_nanos();
            if now.saturating_sub(clock_read) >= CLOCK_NANOS {
                clock_read = now;
                if let Some(by_nanos) = self.clock.refresh() {
                    self.tell_step(by_nanos);
                }
                self.metrics.update(&self.pipeline, self.watched.dropped(), self.clock.steps());
            }
            self.pipeline.tick(now);
            if let Some(containers) = self.pipeline.changed_containers() {
                self.watched.set(containers);
            }
            if let Some((rules, generation)) = self.shared.take_rules() {
                self.outgoing.rule_set = (rules.version(), generation);
                self.precorrelate = Precorrelate::new(&self.node, &rules);
            }
            self.write_ready(now);
            let is_due = self.outgoing.is_due(now);
            let is_early =
                is_due && self.outgoing.is_urgent() && now.saturating_sub(closed_early) >= EARLY_CLOSE_NANOS;
            if self.pipeline.fold.is_due(now) || is_early || is_end {
                closed_early = now;
                self.pipeline.fold.close(now, &mut self.pipeline.tally);
                self.write_ready(now);
            }
            if is_due || is_end {
                self.flush(now);
            }
            self.shared.records.store(self.pipeline.records(), Ordering::Relaxed);
            self.metrics.records(self.pipeline.records());
            self.progress.tick();
            if is_end && taken == 0 {
                break;
            }
        }
        let now = clock::boot_nanos();
        self.pipeline.heard(now);
        self.pipeline.finish(now);
        self.pipeline.fold.close(now, &mut self.pipeline.tally);
        self.write_ready(now);
        self.flush(now);
        // What the node's rules made of the last frame.
        self.write_ready(now);
        self.flush(now);
        self.outgoing.finish();
        self.progress.finish();
    }

    fn take_records(&mut self) -> usize {
        let Some(ring) = &mut self.ring else {
            std::thread::sleep(WAIT);
            self.pipeline.heard(clock::boot_nanos());
            return 0;
        };
        if let Err(error) = ring.poll(WAIT) {
            tracing::error!(%error, "the ring cannot be waited for any more, no records are taken");
            self.progress.fault("the ring cannot be waited for");
            self.ring = None;
            return 0;
        }
        let pipeline = &mut self.pipeline;
        let mut heard = clock::boot_nanos();
        let mut last = heard;
        let taken = ring.for_each(RECORDS_PER_TURN, |record| {
            last = record.header().time_nanos;
            pipeline.record(&record);
        });
        if taken == RECORDS_PER_TURN {
            // More may lie behind the last one.
            heard = heard.min(last);
        }
        pipeline.heard(heard.saturating_sub(STAMP_NANOS_MAX));
        pipeline.tally.add(Fate::Lost, "ring", "bad-record", ring.take_bad().total());
        taken
    }

    /// Returns whether the sampler has ended and nothing of it is left.
    fn take_readings(&mut self) -> bool {
        for _ in 0..READINGS_PER_TURN {
            match self.readings.try_recv() {
                Ok(reading) => {
                    if let Reading::Counters(counters) = &reading {
                        self.metrics.probes(counters);
                    }
                    self.pipeline.reading(reading, clock::boot_nanos());
                }
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
        false
    }

    fn clock_offset(&self) -> tapio_schemas::units::ClockOffset {
        self.clock.offset(&self.shared.cluster_clock, clock::boot_nanos())
    }

    fn tell_step(&self, by_nanos: i64) {
        let (by_millis, steps) = (by_nanos / 1_000_000, self.clock.steps());
        if self.shared.cluster_clock.is_known() {
            tracing::warn!(
                by_millis,
                steps,
                "the node's clock was set: times go on by the aggregator's clock"
            );
        } else {
            tracing::warn!(
                by_millis,
                steps,
                "the node's clock was set: times follow it, because no aggregator was reached since the start"
            );
        }
    }

    fn write_ready(&mut self, now: u64) {
        let clock = self.clock_offset();
        for event in std::mem::take(self.pipeline.fold.ready()) {
            if !self.outgoing.write(&event, clock, now, &mut self.pipeline.tally) {
                self.flush(now);
                self.outgoing.write(&event, clock, now, &mut self.pipeline.tally);
            }
        }
    }

    fn flush(&mut self, now: u64) {
        let clock = self.clock_offset();
        let until = BootNanos(self.pipeline.told_until()).to_unix(clock);
        let tally = &mut self.pipeline.tally;
        for (subject, reason, count) in self.shared.losses.take() {
            tally.add_at(Stage::EdgeSpool, Fate::Lost, subject, reason, count);
        }
        self.outgoing.tell_again(self.shared.losses.take_untold());
        let dropped = self.watched.take_dropped_failures();
        tally.add(Fate::Lost, ProbeId::FailedSyscall.name(), "reading-dropped", dropped);
        self.metrics.told(tally);
        let is_urgent = self.outgoing.is_urgent();
        let Some((frame, view)) = self.outgoing.flush(until, clock, now, tally) else { return };
        self.metrics.frame(view.rows());
        let Some(engine) = &mut self.precorrelate else { return };
        let unix = BootNanos(now).to_unix(clock);
        let verdicts = engine.batch(frame, &view, &self.missing_probes, unix, is_urgent);
        for verdict in verdicts {
            let container = self.container(&verdict);
            self.pipeline.push_own(Event {
                severity: verdict.severity,
                container,
                attributes: Some(verdict.attributes.into_boxed_str()),
                verdict: Some(VerdictPart { pattern: verdict.rule, root_cause: verdict.root_cause }),
                ..Event::new(now, intent::NODE_VERDICT, EventKind::Agent, "rules")
            });
        }
    }

    fn container(&self, verdict: &NodeVerdict) -> Option<Arc<Container>> {
        (verdict.cause.kind == EntityKind::Container)
            .then(|| self.pipeline.container(&verdict.cause.id))
            .flatten()
    }
}
