//! Reads a tier's own metrics, as Prometheus does.
//!
//! Owns one plain HTTP request per reading and the sums over labels. Called by [`super::run`].

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};

const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// One reading: each series with its labels as they are written.
#[derive(Debug, Clone, Default)]
pub(super) struct Scrape {
    series: BTreeMap<String, f64>,
}

impl Scrape {
    /// Reads the metrics that are served at `address`.
    ///
    /// # Errors
    /// Nobody answers there, or not with metrics.
    pub(super) fn read(address: SocketAddr) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_WAIT_MAX)
            .with_context(|| format!("no metrics at {address}"))?;
        stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).context("the metrics cannot be read")?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{address} serves no metrics: {answer:.100}");
        Ok(Self::parse(&answer))
    }

    fn parse(text: &str) -> Self {
        let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self { series: series.collect() }
    }

    /// The sum of a metric over all its labels.
    pub(super) fn sum(&self, name: &str) -> f64 {
        let is_of = |series: &str| {
            series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
        };
        self.series.iter().filter(|(series, _)| is_of(series)).map(|(_, value)| value).sum()
    }

    /// A metric by the value of its one label.
    pub(super) fn by_label(&self, name: &str) -> BTreeMap<String, f64> {
        let of = |(series, value): (&String, &f64)| {
            let labels = series.strip_prefix(name)?.strip_prefix('{')?;
            Some((labels.split('"').nth(1)?.to_owned(), *value))
        };
        self.series.iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Scrape;

    /// Scenario: metrics with and without labels, one whose name begins like another's.
    /// Guarantees: sums are over one metric's labels alone.
    #[test]
    fn metrics_are_summed() {
        let scrape = Scrape::parse(
            "HTTP/1.1 200 OK\r\n\r\n# TYPE a_total counter\na_total{probe=\"x\"} 2\na_total{probe=\"y\"} 3\na_total_b 7\nc 1.5\n",
        );
        assert_eq!((scrape.sum("a_total"), scrape.sum("c"), scrape.sum("none")), (5.0, 1.5, 0.0));
        assert_eq!(scrape.by_label("a_total").get("y"), Some(&3.0));
    }
}
