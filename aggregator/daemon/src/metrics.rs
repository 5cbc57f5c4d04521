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

/// What a scraper reads. Prometheus asks for the newer one; its checker, and older scrapers, know the other alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Exposition {
    /// The one that fits the `Accept` of a request; the older, where it names neither.
    #[must_use]
    pub fn accepted_by(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    /// Its media type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

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

    /// All metrics as OpenMetrics.
    ///
    /// # Errors
    /// When a metric refuses to be written.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.lock())?;
        Ok(text)
    }

    /// All metrics as a scraper reads them.
    ///
    /// # Errors
    /// When a metric refuses to be written.
    pub fn expose(&self, exposition: Exposition) -> Result<String, fmt::Error> {
        let text = self.encode()?;
        Ok(match exposition {
            Exposition::OpenMetrics => text,
            Exposition::Text => to_text_format(&text),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text format's version of a text in OpenMetrics: there a counter's help and type carry its full name, with
/// `_total`, and there are neither units nor an end.
fn to_text_format(metrics: &str) -> String {
    let mut text = String::with_capacity(metrics.len());
    let mut lines = metrics.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, says) = help.split_once(' ').unwrap_or((help, ""));
            let is_counter = lines
                .peek()
                .and_then(|next| next.strip_prefix("# TYPE "))
                .and_then(|next| next.split_once(' '))
                .is_some_and(|next| next == (name, "counter"));
            let total = if is_counter { "_total" } else { "" };
            text.push_str(&format!("# HELP {name}{total} {says}\n"));
        } else if let Some(name) = line.strip_prefix("# TYPE ").and_then(|kind| kind.strip_suffix(" counter"))
        {
            text.push_str(&format!("# TYPE {name}_total counter\n"));
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
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
        let text = registry.expose(Exposition::Text).expect("written");
        for line in [
            "# HELP tapio_spool_records_total Records appended.",
            "# TYPE tapio_spool_records_total counter",
            "tapio_spool_records_total 3",
            "# HELP tapio_spool_used_bytes Bytes of all segments.",
            "# TYPE tapio_uplink_ack_seconds histogram",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is missing from\n{text}");
        }
        assert!(!text.contains("EOF"), "{text}");
    }

    /// Scenario: what Prometheus, its older versions and curl send.
    /// Guarantees: OpenMetrics goes only to those who say that they read it.
    #[test]
    fn scrapers_get_what_they_read() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(Exposition::accepted_by(prometheus), Exposition::OpenMetrics);
        for accept in ["text/plain;version=0.0.4;q=1,*/*;q=0.1", "*/*", ""] {
            assert_eq!(Exposition::accepted_by(accept), Exposition::Text);
        }
    }
}
