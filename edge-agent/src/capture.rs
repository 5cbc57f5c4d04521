//! The capture thread: takes records from the ring, time after time, and sends what became of them on its way.
//!
//! The only owner of the pipeline's state. It waits for nothing but records: disks, the network and what is sampled are
//! other threads' business. It reads only control groups: the name of one that is not known yet, because a container that
//! lives for a moment cannot be asked later ([`crate::attribute`] bounds what that costs), and once a second whether one
//! is empty whose process ended with an error.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use tapio_correlation::RuleSet;
use tapio_daemon::Progress;
use tapio_kernel_abi::{FailedSyscall, ProbeId};
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
    fold::fates,
    metrics::Metrics,
    outgoing::Outgoing,
    pipeline::{Pipeline, READING_DROPPED},
    precorrelate::{NodeVerdict, Precorrelate},
    probes::{ProbeCounters, Reached, Resume, RingReader},
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
/// How long a turn waits for more while records are held, of which the kernel tells nothing new.
const HELD_WAIT: Duration = Duration::from_millis(4);
/// This part of the ring may be held until a frame is made.
const HELD_DIVISOR: usize = 4;
/// Beyond this part of the ring, what is in frames is given back although they are not in the spool: a slow disk must
/// not cost the node its sight.
const UNSPOOLED_DIVISOR: usize = 2;

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
    /// Up to where the rings are told by what is in the spool.
    spooled: Mutex<Reached>,
    /// The last drain of folded failures that is.
    pub(crate) told_drain: Arc<AtomicU64>,
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
            spooled: Mutex::default(),
            told_drain: Arc::default(),
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

    /// What is in the spool tells so much.
    pub(crate) fn set_spooled(&self, reached: Reached) {
        *self.spooled.lock().unwrap_or_else(PoisonError::into_inner) = reached;
    }

    fn spooled(&self) -> Reached {
        *self.spooled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_rules(&self) -> Option<(Arc<RuleSet>, u64)> {
        if !self.has_rules.swap(false, Ordering::Acquire) {
            return None;
        }
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A ring that is gone on with where an agent before ended.
pub(crate) struct Continued {
    pub(crate) ring: RingReader,
    pub(crate) resume: Resume,
    /// What was counted beside it.
    pub(crate) counters: Vec<ProbeCounters>,
    /// Failed calls that no record carries, and the drain that they are.
    pub(crate) folded: Vec<FailedSyscall>,
    pub(crate) drained: u64,
}

/// The capture thread.
pub(crate) struct Capture {
    pub(crate) node: String,
    pub(crate) ring: Option<RingReader>,
    /// Rings that are read one after the other; all but the last come to an end.
    pub(crate) continued: VecDeque<Continued>,
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
    pub(crate) taking: Taking,
}

/// How records are taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taking {
    /// Whether the ring outlives the agent: then records stay in it until they are in the spool.
    is_pinned: bool,
    /// Whether probes go on at the end, for the next agent: then the ring need not become empty.
    pub(crate) keeps: bool,
    /// Whether there may be more than what the last turn took.
    is_behind: bool,
    /// Up to where records are in frames.
    framed: Reached,
    /// The last drain whose failures were all taken.
    drained: u64,
}

impl Taking {
    pub(crate) fn new(is_pinned: bool, keeps: bool) -> Self {
        Self { is_pinned, keeps, ..Self::default() }
    }
}

impl Capture {
    /// Works until the sampler, which detaches the probes, is gone and the ring is empty.
    pub(crate) fn run(mut self, first: Vec<Event>) {
        for event in first {
            self.pipeline.push_own(event);
        }
        let mut clock_read = 0;
        self.next_ring(0);
        loop {
            let taken = self.take_records();
            // What the sampler reads is of the last ring's probes.
            let is_end = self.continued.is_empty() && self.take_readings();
            let now = clock::boot_nanos();
            if taken == 0 && !self.continued.is_empty() {
                self.close(now);
                self.next_ring(self.taking.framed.ring + 1);
            }
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
            // A frame takes along what is being folded: so it tells all records that were taken before.
            if self.outgoing.is_due(now, self.pipeline.fold.rows()) || self.is_held_long() || is_end {
                self.close(now);
            }
            self.shared.records.store(self.pipeline.records(), Ordering::Relaxed);
            self.metrics.records(self.pipeline.records());
            self.progress.tick();
            if is_end && (taken == 0 || self.taking.keeps) {
                break;
            }
        }
        let now = clock::boot_nanos();
        if !self.taking.keeps {
            self.pipeline.heard(now);
        }
        self.pipeline.finish(now);
        self.close(now);
        // What the node's rules made of the last frame.
        self.close(now);
        self.outgoing.finish();
        self.progress.finish();
    }

    /// Goes on with the next ring.
    fn next_ring(&mut self, number: u32) {
        let Some(Continued { ring, resume, counters, folded, drained }) = self.continued.pop_front() else {
            return;
        };
        let now = clock::boot_nanos();
        self.pipeline.resume(&resume, &counters, now);
        for failed in folded {
            self.pipeline.reading(Reading::Folded(Box::new(failed)), now);
        }
        self.taking.framed = Reached { ring: number, ..resume.mark.reached };
        self.taking.drained = drained;
        self.ring = Some(ring);
    }

    fn take_records(&mut self) -> usize {
        let Some(ring) = &mut self.ring else {
            std::thread::sleep(WAIT);
            self.pipeline.heard(clock::boot_nanos());
            return 0;
        };
        release(ring, &self.taking, self.shared.spooled());
        if self.taking.is_behind {
            // What is there already is taken first.
        } else if ring.held_bytes() > 0 {
            std::thread::sleep(HELD_WAIT);
        } else if let Err(error) = ring.poll(WAIT) {
            tracing::error!(%error, "the ring cannot be waited for any more, no records are taken");
            self.progress.fault("the ring cannot be waited for");
            self.ring = None;
            return 0;
        }
        let (pipeline, outgoing) = (&mut self.pipeline, &self.outgoing);
        let mut heard = clock::boot_nanos();
        let (mut last, mut is_full) = (heard, false);
        let taken = ring.read(RECORDS_PER_TURN, |record| {
            last = record.header().time_nanos;
            pipeline.record(&record);
            is_full = outgoing.is_full(pipeline.fold.rows());
            !is_full
        });
        self.taking.is_behind = is_full || taken == RECORDS_PER_TURN;
        if self.taking.is_behind {
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
                    match &reading {
                        Reading::Counters(counters) => self.metrics.probes(counters),
                        Reading::Drained { number, .. } => self.taking.drained = *number,
                        _ => {}
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

    /// Whether so much of the ring is held that a frame should be made of it.
    fn is_held_long(&self) -> bool {
        let held = |ring: &RingReader| {
            let held = ring.place().position.saturating_sub(self.taking.framed.place.position);
            held > u64::try_from(ring.ring_bytes() / HELD_DIVISOR).unwrap_or(u64::MAX)
        };
        self.taking.is_pinned && self.ring.as_ref().is_some_and(held)
    }

    /// Makes a frame of everything that was taken.
    fn close(&mut self, now: u64) {
        self.pipeline.fold.close(now, &mut self.pipeline.tally);
        self.write_ready(now);
        self.taking.framed.drained = self.taking.drained;
        self.flush(now);
    }

    fn write_ready(&mut self, now: u64) {
        let clock = self.clock_offset();
        let mut events = std::mem::take(self.pipeline.fold.ready()).into_iter();
        while let Some(event) = events.next() {
            if self.outgoing.write(&event, clock, now, &mut self.pipeline.tally) {
                continue;
            }
            // This frame tells of no event that is not in it.
            let untold = || std::iter::once(&event).chain(events.as_slice());
            for (event, (fate, count)) in untold().flat_map(|event| fates(event).map(|fate| (event, fate))) {
                self.pipeline.tally.withhold(fate, event.probe, count);
            }
            self.flush(now);
            for (event, (fate, count)) in untold().flat_map(|event| fates(event).map(|fate| (event, fate))) {
                self.pipeline.tally.add(fate, event.probe, "", count);
            }
            self.outgoing.write(&event, clock, now, &mut self.pipeline.tally);
        }
    }

    fn flush(&mut self, now: u64) {
        if let Some(ring) = &self.ring {
            self.taking.framed.place = ring.place();
        }
        self.outgoing.reached = self.taking.framed;
        let clock = self.clock_offset();
        let until = BootNanos(self.pipeline.told_until()).to_unix(clock);
        let tally = &mut self.pipeline.tally;
        for (subject, reason, count) in self.shared.losses.take() {
            tally.add_at(Stage::EdgeSpool, Fate::Lost, subject, reason, count);
        }
        self.outgoing.tell_again(self.shared.losses.take_untold());
        let dropped = self.watched.take_dropped_failures();
        tally.add(Fate::Lost, ProbeId::FailedSyscall.name(), READING_DROPPED, dropped);
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

/// Gives back what is in the spool; of a ring that ends with the agent, and of one that waits for a slow disk, more.
fn release(ring: &mut RingReader, taking: &Taking, spooled: Reached) {
    if !taking.is_pinned {
        ring.release(ring.place().position);
        return;
    }
    if spooled.ring == taking.framed.ring {
        ring.release(spooled.place.position);
    }
    if ring.held_bytes() > ring.ring_bytes() / UNSPOOLED_DIVISOR
        && ring.place().position.saturating_sub(taking.framed.place.position) < ring.held_bytes() as u64
        && let Err(error) = ring.release_early(taking.framed.place)
    {
        tracing::debug!(%error, "records wait in the ring for the spool");
    }
}
