//! Measures a source's clock against its aggregator's over the session, as NTP does (RFC 5905, sections 8 and 10).
//!
//! Four timestamps make a sample: the source sends at t1, the aggregator receives at t2 and answers at t3, the source
//! receives at t4. Offset is `((t2 - t1) + (t3 - t4)) / 2`, and it is wrong by at most half the round trip
//! `(t4 - t1) - (t3 - t2)`, plus what the aggregator's own clock may be wrong. Of a bounded window of samples the one
//! with the least error counts; a sample's error grows with its age. A sample whose interval does not meet the newest
//! one's is of the time before one of the clocks was set, and is forgotten. (A step smaller than the errors of both is
//! not seen; it is then no greater than they are.)

use std::collections::VecDeque;

use tapio_schemas::units::{Micros, UnixMicros};

/// How many samples are kept, as NTP's clock filter does.
const SAMPLES_MAX: usize = 8;

/// How fast two clocks drift apart at worst, in parts per million. NTP assumes 15 for a disciplined clock; a virtual
/// machine's undisciplined one drifts more.
const DRIFT_PARTS_PER_MILLION: u64 = 50;

/// What an instant is: the clock that timers run on, and the wall clock at the same moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Microseconds of a clock that never steps, from any origin.
    pub monotonic: Micros,
    /// The wall clock.
    pub unix: UnixMicros,
}

/// Where the aggregator's clock stands against the source's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockEstimate {
    /// Microseconds to add to the source's Unix time to get the aggregator's.
    pub offset_micros: i64,
    /// How wrong the offset may be.
    pub error: Micros,
}

/// The four timestamps of one exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// When the source sent, by its clock.
    pub sent: UnixMicros,
    /// When the aggregator received, by its clock.
    pub received: UnixMicros,
    /// When the aggregator answered, by its clock.
    pub answered: UnixMicros,
    /// When the source had the answer, by its clock.
    pub returned: UnixMicros,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    estimate: ClockEstimate,
    taken: Micros,
}

impl Sample {
    /// What the sample says at `now`: its error has grown by what the clocks may have drifted apart since.
    fn aged(&self, now: Now) -> ClockEstimate {
        let age = now.monotonic.0.saturating_sub(self.taken.0);
        let drift = age.saturating_mul(DRIFT_PARTS_PER_MILLION).div_ceil(1_000_000);
        ClockEstimate { error: Micros(self.estimate.error.0.saturating_add(drift)), ..self.estimate }
    }
}

/// The best of the last samples.
#[derive(Clone, Debug, Default)]
pub struct ClockFilter {
    samples: VecDeque<Sample>,
}

impl ClockFilter {
    /// Takes a sample. One whose timestamps contradict each other (a clock stepped meanwhile) is not taken.
    ///
    /// `peer_error` is how wrong the aggregator's own clock may be. Returns whether the sample was taken.
    pub fn add(&mut self, exchange: Exchange, peer_error: Micros, now: Now) -> bool {
        let Exchange { sent, received, answered, returned } = exchange;
        let (Some(whole), Some(held)) = (returned.0.checked_sub(sent.0), answered.0.checked_sub(received.0))
        else {
            return false;
        };
        let Some(round_trip) = whole.checked_sub(held) else { return false };
        let there = i128::from(received.0) - i128::from(sent.0);
        let back = i128::from(answered.0) - i128::from(returned.0);
        let Ok(offset_micros) = i64::try_from((there + back) / 2) else { return false };
        // Half a round trip, rounded up, and one more for the microsecond that the offset's division lost.
        let error = Micros((round_trip.div_ceil(2) + 1).saturating_add(peer_error.0));
        let estimate = ClockEstimate { offset_micros, error };
        self.samples.retain(|sample| {
            let aged = sample.aged(now);
            aged.offset_micros.abs_diff(offset_micros) <= aged.error.0.saturating_add(error.0)
        });
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { estimate, taken: now.monotonic });
        true
    }

    /// The estimate as of `now`: the sample that is least wrong, its error grown by its age.
    #[must_use]
    pub fn estimate(&self, now: Now) -> Option<ClockEstimate> {
        self.samples.iter().map(|sample| sample.aged(now)).min_by_key(|estimate| estimate.error)
    }

    /// Forgets all samples, because one of the clocks stepped or the aggregator is another.
    pub fn clear(&mut self) {
        self.samples.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Scenario: exchanges over a road whose two directions take different times, between clocks that differ, one
        /// of which is set now and then.
        /// Guarantees: after each exchange the true offset lies within the stated error of the stated offset.
        #[test]
        fn the_truth_lies_within_the_error(
            first in -5_000_000_i64..5_000_000,
            trips in prop::collection::vec(
                (0_u64..200_000, 0_u64..50_000, 0_u64..200_000, prop::option::weighted(0.2, any::<bool>()), 2_000_000_i64..9_000_000),
                1..20,
            ),
        ) {
            let mut filter = ClockFilter::default();
            let mut time = 1_700_000_000_000_000_u64;
            let mut truth = first;
            for (there, held, back, step, size) in trips {
                // Greater than both errors together, which is what can be seen.
                truth += step.map_or(0, |ahead| if ahead { size } else { -size });
                let peer = |time: u64| UnixMicros(time.checked_add_signed(truth).unwrap());
                let sent = UnixMicros(time);
                let (received, answered) = (peer(time + there), peer(time + there + held));
                time += there + held + back;
                let returned = UnixMicros(time);
                let now = Now { monotonic: Micros(time), unix: returned };
                let taken = filter.add(Exchange { sent, received, answered, returned }, Micros(7), now);
                prop_assert!(taken);
                let estimate = filter.estimate(now).unwrap();
                prop_assert!(estimate.offset_micros.abs_diff(truth) <= estimate.error.0);
            }
        }
    }

    /// Scenario: the source's clock steps back between sending and receiving, then a good sample gets old.
    /// Guarantees: the contradiction is not taken, and an old sample's error grows.
    #[test]
    fn steps_are_refused_and_age_counts() {
        let mut filter = ClockFilter::default();
        let exchange = |sent, received, answered, returned| Exchange {
            sent: UnixMicros(sent),
            received: UnixMicros(received),
            answered: UnixMicros(answered),
            returned: UnixMicros(returned),
        };
        assert!(!filter.add(exchange(1_000, 1_010, 1_020, 900), Micros(0), Now::default()));
        assert_eq!(filter.estimate(Now::default()), None);
        assert!(filter.add(exchange(1_000, 1_110, 1_120, 1_030), Micros(0), Now::default()));
        let fresh = filter.estimate(Now::default()).unwrap();
        assert_eq!((fresh.offset_micros, fresh.error), (100, Micros(11)));
        let hour = Now { monotonic: Micros::from_secs(3_600), unix: UnixMicros(0) };
        assert_eq!(filter.estimate(hour).unwrap().error, Micros(11 + 180_000));
    }
}
