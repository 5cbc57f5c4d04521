//! The agent's own metrics.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use tapio_daemon::Registry;

use crate::{attribute::Host, pipeline::Pipeline};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Table {
    table: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// What the capture thread counts.
#[derive(Clone)]
pub(crate) struct Metrics {
    records: Counter,
    events: Counter,
    frames: Counter,
    lost: Counter,
    clock_steps: Gauge<u64, AtomicU64>,
    tables: Family<Table, Gauge<u64, AtomicU64>>,
    shortfalls: Family<Reason, Gauge<u64, AtomicU64>>,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let registry = registry.subsystem("agent");
        Self {
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
        self.records.inc_by(pipeline.records().saturating_sub(self.records.get()));
        self.clock_steps.set(clock_steps);
        for (table, size) in pipeline.sizes() {
            self.tables.get_or_create(&Table { table }).set(size);
        }
        for (reason, count) in pipeline.shortfalls() {
            self.shortfalls.get_or_create(&Reason { reason }).set(count);
        }
        self.shortfalls.get_or_create(&Reason { reason: "reading-dropped" }).set(readings_dropped);
    }

    pub(crate) fn frame(&self, rows: u32) {
        self.frames.inc();
        self.events.inc_by(u64::from(rows));
    }

    pub(crate) fn lost(&self, records: u64) {
        self.lost.inc_by(records);
    }
}
