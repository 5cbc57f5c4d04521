//! The agent's own metrics.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use tapio_daemon::Registry;
use tapio_schemas::ledger::{Fate, Stage};

use crate::{attribute::Host, pipeline::Pipeline, probes::ProbeCounters, tally::Tally};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Table {
    table: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Which probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Probe {
    pub(crate) probe: &'static str,
}

/// A line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Line {
    stage: &'static str,
    fate: &'static str,
    subject: &'static str,
    reason: &'static str,
}

/// Which probes work.
pub(crate) fn probe_gauges(registry: &Registry) -> Family<Probe, Gauge<u64, AtomicU64>> {
    let help = "Whether a probe works (1), or was refused or disabled (0)";
    registry.subsystem("probes").register("working", help, Family::default())
}

/// What the capture thread counts.
#[derive(Clone)]
pub(crate) struct Metrics {
    ledger: Family<Line, Counter>,
    records: Counter,
    events: Counter,
    frames: Counter,
    lost: Counter,
    clock_steps: Gauge<u64, AtomicU64>,
    tables: Family<Table, Gauge<u64, AtomicU64>>,
    shortfalls: Family<Reason, Gauge<u64, AtomicU64>>,
    hits: Family<Probe, Counter>,
    kernel_runs: Family<Probe, Counter>,
    kernel_seconds: Family<Probe, Counter<f64, AtomicU64>>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let ledger = registry.subsystem("ledger").register(
            "items",
            "What each stage carried on, folded, filtered and lost, as the ledger tells it",
            Family::default(),
        );
        let probes = registry.subsystem("probe");
        let registry = registry.subsystem("agent");
        Self {
            ledger,
            hits: probes.register("hits", "Times that the probe's hook fired", Family::default()),
            kernel_runs: probes.register(
                "kernel_runs",
                "Runs of the probe that the kernel timed; it does so only where kernel.bpf_stats_enabled is 1",
                Family::default(),
            ),
            kernel_seconds: probes.register(
                "kernel_seconds",
                "Time that these runs took in the kernel",
                Family::default(),
            ),
            records: registry.counter("records", "Records taken from the kernel's ring"),
            events: registry.counter("events", "Events shipped, after folding"),
            frames: registry.counter("frames", "Frames made"),
            lost: registry.counter("lost_records", "Records that the agent's own stages lost"),
            clock_steps: registry.register(
                "clock_steps",
                "How often the node's clock was set",
                Gauge::default(),
            ),
            tables: registry.register("table_entries", "Entries of the agent's tables", Family::default()),
            shortfalls: registry.register(
                "shortfalls",
                "What could not be kept or named since the start, by reason",
                Family::default(),
            ),
        }
    }

    pub(crate) fn update<H: Host>(&self, pipeline: &Pipeline<H>, readings_dropped: u64, clock_steps: u64) {
        self.clock_steps.set(clock_steps);
        for (table, size) in pipeline.sizes() {
            self.tables.get_or_create(&Table { table }).set(size);
        }
        for (reason, count) in pipeline.shortfalls() {
            self.shortfalls.get_or_create(&Reason { reason }).set(count);
        }
        self.shortfalls.get_or_create(&Reason { reason: "reading-dropped" }).set(readings_dropped);
    }

    /// Records were taken, `records` since the start.
    pub(crate) fn records(&self, records: u64) {
        raise(&self.records, records);
    }

    /// What the kernel counted of the probes since they were loaded.
    pub(crate) fn probes(&self, counters: &[ProbeCounters]) {
        for counter in counters {
            let probe = Probe { probe: counter.probe.name() };
            raise(&self.hits.get_or_create(&probe), counter.stats.hits);
            if let Some(run) = counter.run {
                raise(&self.kernel_runs.get_or_create(&probe), run.runs);
                let seconds = self.kernel_seconds.get_or_create(&probe);
                let now = Duration::from_nanos(run.run_nanos).as_secs_f64();
                seconds.inc_by((now - seconds.get()).max(0.0));
            }
        }
    }

    pub(crate) fn frame(&self, rows: u32) {
        self.frames.inc();
        self.events.inc_by(u64::from(rows));
        self.line(Stage::Batch, Fate::Carried, "events", "", u64::from(rows));
    }

    /// Counts what is about to be told in a ledger.
    pub(crate) fn told(&self, tally: &Tally) {
        self.lost.inc_by(tally.lost());
        for ((stage, fate, subject, reason), count) in tally.lines() {
            self.line(stage, fate, subject, reason, count);
        }
    }

    fn line(&self, stage: Stage, fate: Fate, subject: &'static str, reason: &'static str, count: u64) {
        let line = Line { stage: stage.as_str(), fate: fate.as_str(), subject, reason };
        self.ledger.get_or_create(&line).inc_by(count);
    }
}

/// A counter up to what was counted elsewhere.
fn raise(counter: &Counter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}
