//! Memory of containers over time: samples, and the growth that ends at a limit.
//!
//! Growth is announced only where it is steady, material, above everything seen before, and on its way to the limit;
//! a plateau, a sawtooth and a warm-up are not. When the kernel kills for memory, the container's series is judged
//! at once. Sans-IO: samples and times are arguments ([`crate::sampler`] reads them); series are bounded in number
//! and length.

mod trend;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::attribute::Container;
pub(crate) use trend::Growth;

/// Samples of one container that are kept: a minute at the default interval.
pub(crate) const SAMPLES_MAX: usize = 120;
/// Containers whose memory is followed.
pub(crate) const SERIES_MAX: usize = 4_096;
/// A sample is shipped at least this often.
const SHIP_INTERVAL_NANOS: u64 = 15_000_000_000;
/// A growth that goes on is told again after this.
const GROWTH_INTERVAL_NANOS: u64 = 5_000_000_000;
/// A change of this part of the limit is shipped at once.
const SHIP_CHANGE_DIVISOR: u64 = 10;
/// The least change that is shipped at once, for containers without a limit.
const SHIP_CHANGE_BYTES_MIN: u64 = 64 << 20;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) time_nanos: u64,
    /// What the group is charged, less what the kernel would give back at once (inactive file pages).
    pub(crate) used_bytes: u64,
    /// The lowest limit above it, zero = none.
    pub(crate) limit_bytes: u64,
}

/// What a sample leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Told {
    /// The sample is to be shipped.
    pub(crate) sample: Option<Sample>,
    /// Growth was found, or goes on.
    pub(crate) growth: Option<Growth>,
}

#[derive(Debug)]
struct Series {
    samples: VecDeque<Sample>,
    shipped: Option<Sample>,
    growth_told_nanos: Option<u64>,
}

/// The memory of all containers.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    series: HashMap<String, Series>,
    refused: u64,
}

impl Memory {
    /// A reading of a container.
    pub(crate) fn sampled(&mut self, container: &Arc<Container>, sample: Sample) -> Told {
        if self.series.len() >= SERIES_MAX && !self.series.contains_key(&container.group) {
            self.refused += 1;
            return Told::default();
        }
        let series = self.series.entry(container.group.clone()).or_insert_with(|| Series {
            samples: VecDeque::with_capacity(SAMPLES_MAX),
            shipped: None,
            growth_told_nanos: None,
        });
        if series.samples.back().is_some_and(|last| last.time_nanos >= sample.time_nanos) {
            return Told::default();
        }
        if series.samples.len() >= SAMPLES_MAX {
            series.samples.pop_front();
        }
        series.samples.push_back(sample);
        Told { sample: series.ship(sample), growth: series.growth(sample.time_nanos) }
    }

    /// The kernel killed in the container: what led there, as far as samples show it. The series begins anew.
    pub(crate) fn killed(&mut self, container: &Arc<Container>, time_nanos: u64) -> Option<Growth> {
        let series = self.series.get_mut(&container.group)?;
        // A sample that was taken while the victim died already says nothing about what led there.
        let before = |sample: &&Sample| sample.time_nanos <= time_nanos;
        let samples: Vec<Sample> = series.samples.iter().filter(before).copied().collect();
        series.samples.retain(|sample| sample.time_nanos > time_nanos);
        series.growth_told_nanos = None;
        trend::before_kill(&samples)
    }

    /// The last reading of a container.
    pub(crate) fn last(&self, container: &Arc<Container>) -> Option<Sample> {
        self.series.get(&container.group)?.samples.back().copied()
    }

    /// The container is gone.
    pub(crate) fn gone(&mut self, container: &Arc<Container>) {
        self.series.remove(&container.group);
    }

    /// Series that are kept, and samples of containers for which there was no room.
    pub(crate) fn sizes(&self) -> (usize, u64) {
        (self.series.len(), self.refused)
    }
}

impl Series {
    fn ship(&mut self, sample: Sample) -> Option<Sample> {
        let is_due = self.shipped.is_none_or(|shipped| {
            let step = if sample.limit_bytes > 0 {
                sample.limit_bytes / SHIP_CHANGE_DIVISOR
            } else {
                SHIP_CHANGE_BYTES_MIN
            };
            sample.time_nanos.saturating_sub(shipped.time_nanos) >= SHIP_INTERVAL_NANOS
                || sample.used_bytes.abs_diff(shipped.used_bytes) >= step.max(1)
                || sample.limit_bytes != shipped.limit_bytes
        });
        is_due.then(|| *self.shipped.insert(sample))
    }

    fn growth(&mut self, now_nanos: u64) -> Option<Growth> {
        let told = self.growth_told_nanos;
        if told.is_some_and(|at| now_nanos.saturating_sub(at) < GROWTH_INTERVAL_NANOS) {
            return None;
        }
        let growth = trend::towards_limit(self.samples.make_contiguous())?;
        self.growth_told_nanos = Some(now_nanos);
        Some(growth)
    }
}

#[cfg(test)]
mod tests;
