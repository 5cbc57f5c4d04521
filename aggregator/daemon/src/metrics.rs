//! The process's metrics, in Prometheus' text format.
//!
//! Names are `tapio_<subsystem>_<noun>_<unit>`; the format adds `_total` to counters. Label sets are
//! closed: no pod, no trace id, no path.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry as Inner};

/// What the text that [`Registry::encode`] returns is, for an HTTP answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The label of everything that is dropped: a reason out of a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// Why it was dropped.
    pub reason: &'static str,
}

/// What was dropped, per reason.
#[derive(Debug, Clone, Default)]
pub struct Drops(Family<Reason, Counter>);

impl Drops {
    /// Counts `count` more that were dropped for `reason`.
    pub fn add(&self, reason: &'static str, count: u64) {
        self.0.get_or_create(&Reason { reason }).inc_by(count);
    }

    /// How many were dropped for `reason`.
    #[must_use]
    pub fn get(&self, reason: &'static str) -> u64 {
        self.0.get_or_create(&Reason { reason }).get()
    }
}

/// The metrics of one process. Clones share them.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
    subsystem: &'static str,
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Registry").field("subsystem", &self.subsystem).finish_non_exhaustive()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// A registry without metrics.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Arc::new(Mutex::new(Inner::default())), subsystem: "" }
    }

    /// The same registry; what is registered through it is named `tapio_<subsystem>_...`.
    #[must_use]
    pub fn subsystem(&self, subsystem: &'static str) -> Self {
        Self { inner: Arc::clone(&self.inner), subsystem }
    }

    /// Registers a counter; its name is without `_total`.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.register(name, help, Counter::default())
    }

    /// Registers a gauge.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(name, help, Gauge::default())
    }

    /// Registers a histogram with the given upper bounds.
    #[must_use]
    pub fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> Histogram {
        self.register(name, help, Histogram::new(bounds.iter().copied()))
    }

    /// Registers a counter with a `reason`, for what is dropped.
    #[must_use]
    pub fn drops(&self, name: &str, help: &str) -> Drops {
        Drops(self.register(name, help, Family::default()))
    }

    /// Registers any metric, such as a `Family` with labels of its own.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        let name = match self.subsystem {
            "" => format!("tapio_{name}"),
            subsystem => format!("tapio_{subsystem}_{name}"),
        };
        // The format ends every help text with a full stop of its own.
        self.lock().register(name, help.trim_end_matches('.'), metric.clone());
        metric
    }

    /// Registers what computes its metrics when they are read. It names them in full.
    pub fn collector(&self, collector: impl Collector) {
        self.lock().register_collector(Box::new(collector));
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// When a metric refuses to be written.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.lock())?;
        Ok(text)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a metric of every kind, registered through two subsystems.
    /// Guarantees: names follow the rule, drops carry their reason, and the text is complete.
    #[test]
    fn metrics_are_written_with_their_names_and_reasons() {
        let registry = Registry::new();
        let spool = registry.subsystem("spool");
        spool.counter("records", "Records appended.").inc_by(3);
        spool.gauge("used_bytes", "Bytes of all segments").set(7);
        let drops = spool.drops("dropped_records", "Records not carried on");
        drops.add("quota", 2);
        registry.subsystem("uplink").histogram("ack_seconds", "Time to an ack", &[0.1, 1.0]).observe(0.5);
        let text = registry.encode().expect("written");
        for line in [
            "# HELP tapio_spool_records Records appended.",
            "tapio_spool_records_total 3",
            "tapio_spool_used_bytes 7",
            "tapio_spool_dropped_records_total{reason=\"quota\"} 2",
            "tapio_uplink_ack_seconds_bucket{le=\"1.0\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is missing from\n{text}");
        }
        assert_eq!(drops.get("quota"), 2);
    }
}
