//! How fast a source may send: bytes per second of its streams, whatever they are.
//!
//! Who sends more is not read for a moment, so that the transport's flow control and the session's credit slow it down;
//! others are not touched. What is known of a source outlives its connections as long as it is in debt: whoever comes
//! anew does not begin anew. Reads no clock itself. Called by the sessions for all that they read.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tapio_schemas::ids::SourceId;
use tokio::time::Instant;

/// What a source may send at once: as much as in this time.
const BURST: Duration = Duration::from_secs(1);

/// When a source will have paid for what it sent.
type PaidAt = Arc<Mutex<Option<Instant>>>;

/// The paces of all sources.
#[derive(Debug)]
pub(super) struct Paces {
    bytes_per_second_max: u64,
    sources: Mutex<HashMap<SourceId, PaidAt>>,
}

/// The pace of one source, for one of its connections.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second_max: u64,
    paid_at: PaidAt,
    /// Nothing is read before.
    resumes_at: Option<Instant>,
}

impl Paces {
    pub(super) fn new(bytes_per_second_max: u64) -> Self {
        Self { bytes_per_second_max: bytes_per_second_max.max(1), sources: Mutex::default() }
    }

    /// The pace of a source, which its connections share.
    pub(super) fn of(&self, source: SourceId, now: Instant) -> Pace {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        // Who has no connection and no debt is as good as new.
        sources.retain(|_source, paid_at| {
            Arc::strong_count(paid_at) > 1
                || paid_at.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at > now)
        });
        let paid_at = Arc::clone(sources.entry(source).or_default());
        Pace { bytes_per_second_max: self.bytes_per_second_max, paid_at, resumes_at: None }
    }
}

impl Pace {
    /// Counts what was read; true when reading has to pause for it.
    pub(super) fn charge(&mut self, bytes: usize, now: Instant) -> bool {
        let nanos = (bytes as u128).saturating_mul(1_000_000_000) / u128::from(self.bytes_per_second_max);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = paid_at.map_or(now, |at| at.max(now));
        let paid = begins.checked_add(cost).unwrap_or(begins);
        *paid_at = Some(paid);
        self.resumes_at = paid.checked_sub(BURST).filter(|at| *at > now);
        self.resumes_at.is_some()
    }

    /// Until when nothing is to be read, if that is not over.
    pub(super) fn pause(&self, now: Instant) -> Option<Instant> {
        self.resumes_at.filter(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a source sends three seconds' worth at once, goes and comes again; another sends a little.
    /// Guarantees: the first waits for two seconds, also over its next connection; the other does not; once the debt is
    /// paid nothing is known any more.
    #[test]
    fn who_sends_too_much_waits_alone() {
        let paces = Paces::new(1_000);
        let (noisy, quiet) = (SourceId([1; 16]), SourceId([2; 16]));
        let start = Instant::now();
        let mut pace = paces.of(noisy, start);
        assert!(!pace.charge(1_000, start) && pace.pause(start).is_none());
        assert!(pace.charge(2_000, start));
        let until = start + Duration::from_secs(2);
        assert_eq!(pace.pause(start), Some(until));
        assert_eq!(pace.pause(until), None);
        drop(pace);
        let mut again = paces.of(noisy, start);
        assert!(again.charge(1, start));
        assert!(!paces.of(quiet, start).charge(1_000, start));
        drop(again);
        let later = start + Duration::from_secs(60);
        drop(paces.of(quiet, later));
        assert_eq!(paces.sources.lock().unwrap().len(), 1);
    }
}
