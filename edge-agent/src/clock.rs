//! The node's clocks: what relates the kernel records' clock to Unix time, and how wrong that may be.
//!
//! All nodes of a cluster tell their times by one clock, the aggregator's: the session measures it against a clock of
//! this node that nobody sets, and what was measured holds on while the road is cut, its error growing. So it does not
//! matter who sets the node's own clock, and when. Before the first session there is only the node's own clock; when that
//! is set, records after it follow.

use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::time::{ClockId, Timespec, clock_gettime};
use tapio_schemas::units::{ClockOffset, Micros, UnixMicros};
use tapio_wire::clock::{ClockEstimate, Now};

/// An offset that moves by more between two measurements is a step, not a drift.
const STEP_NANOS_MIN: u64 = 10_000_000;
/// Readings per measurement; the one that took least time counts.
const READINGS: u32 = 5;
/// How fast the node's clock and the aggregator's drift apart at worst, in parts per million.
const DRIFT_PARTS_PER_MILLION: u64 = 50;

/// Nanoseconds of the kernel records' clock.
pub(crate) fn boot_nanos() -> u64 {
    nanos(clock_gettime(ClockId::Boottime))
}

/// Both clocks as the session wants them. The Unix time is the one that the node's clock had when this was first asked
/// for, and goes on from there: it is not set with the node's clock.
pub(crate) fn now() -> Now {
    let boot = boot_nanos();
    Now { monotonic: Micros(boot / 1_000), unix: UnixMicros(boot.saturating_add(steady_nanos()) / 1_000) }
}

/// What makes a boot time a steady Unix time.
fn steady_nanos() -> u64 {
    static STEADY: OnceLock<u64> = OnceLock::new();
    *STEADY.get_or_init(|| measure().0)
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Where the aggregator's clock stands, as the uplink measured it last.
#[derive(Debug, Default)]
pub(crate) struct ClusterClock(Mutex<Option<Held>>);

/// What is to be added to the steady Unix time, and how wrong that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    offset_micros: i64,
    error_micros: u64,
    measured: Micros,
}

impl ClusterClock {
    /// Takes a measurement. An offset that agrees with it is kept, so that times do not jump to and fro by what
    /// measurements err.
    pub(crate) fn measured(&self, estimate: ClockEstimate, now: Micros) {
        let ClockEstimate { offset_micros, error } = estimate;
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = held.map_or(0, |held| held.offset_micros);
        let apart = before.abs_diff(offset_micros);
        let agrees = apart <= error.0;
        *held = Some(Held {
            offset_micros: if agrees { before } else { offset_micros },
            error_micros: if agrees { error.0.saturating_add(apart) } else { error.0 },
            measured: now,
        });
    }

    /// Whether it was ever measured.
    pub(crate) fn is_known(&self) -> bool {
        self.held().is_some()
    }

    fn held(&self) -> Option<Held> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The relation of the kernel records' clock to Unix time.
#[derive(Debug)]
pub(crate) struct NodeClock {
    steady_nanos: u64,
    offset_nanos: u64,
    measured_error_nanos: u64,
    steps: u64,
}

impl NodeClock {
    pub(crate) fn new() -> Self {
        let (offset_nanos, measured_error_nanos) = measure();
        Self { steady_nanos: steady_nanos(), offset_nanos, measured_error_nanos, steps: 0 }
    }

    /// Measures again; returns by how many nanoseconds the clock was set meanwhile, if it was.
    pub(crate) fn refresh(&mut self) -> Option<i64> {
        self.follow(measure())
    }

    fn follow(&mut self, (offset, error): (u64, u64)) -> Option<i64> {
        let step = i64::try_from(i128::from(offset) - i128::from(self.offset_nanos)).unwrap_or(i64::MAX);
        self.offset_nanos = offset;
        self.measured_error_nanos = error;
        let is_step = step.unsigned_abs() >= STEP_NANOS_MIN;
        self.steps += u64::from(is_step);
        is_step.then_some(step)
    }

    /// The relation to the aggregator's clock, with its error; before that was ever measured the one to the node's own
    /// clock, with the kernel's own bound of the error against true time.
    pub(crate) fn offset(&self, cluster: &ClusterClock, now_nanos: u64) -> ClockOffset {
        let Some(held) = cluster.held() else {
            let own = self.measured_error_nanos.div_ceil(1_000);
            let error_micros = kernel_error_micros().saturating_add(own);
            return ClockOffset { boot_to_unix_nanos: self.offset_nanos, error_micros };
        };
        let age = (now_nanos / 1_000).saturating_sub(held.measured.0);
        let drift = age.saturating_mul(DRIFT_PARTS_PER_MILLION).div_ceil(1_000_000);
        ClockOffset {
            boot_to_unix_nanos: self
                .steady_nanos
                .saturating_add_signed(held.offset_micros.saturating_mul(1_000)),
            error_micros: held.error_micros.saturating_add(drift),
        }
    }

    /// How often the clock was set.
    pub(crate) const fn steps(&self) -> u64 {
        self.steps
    }
}

/// The offset, and how wrong its measurement may be: half the time between the readings around it.
fn measure() -> (u64, u64) {
    let reading = || {
        let before = boot_nanos();
        let unix = nanos(clock_gettime(ClockId::Realtime));
        let after = boot_nanos();
        let span = after.saturating_sub(before);
        (span, unix.saturating_sub(before.saturating_add(span / 2)))
    };
    let best = (0..READINGS).map(|_| reading()).min().unwrap_or_default();
    (best.1, best.0.div_ceil(2))
}

/// The kernel's bound of its clock's error, microseconds; of a clock that nothing disciplines it is 16 seconds.
fn kernel_error_micros() -> u64 {
    kernel_clock().1
}

/// Whether something disciplines the kernel's clock, and its `maxerror` in microseconds (adjtimex(2)).
#[allow(unsafe_code, reason = "adjtimex has no safe wrapper")]
pub(crate) fn kernel_clock() -> (bool, u64) {
    // SAFETY: all-zero is a valid `timex`, and with `modes` zero the call only writes to it.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid for the call.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    (state >= 0 && state != libc::TIME_ERROR, u64::try_from(timex.maxerror).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the relation of the clocks on this machine, before there was a session.
    /// Guarantees: it gives the present Unix time within its error, and is stable.
    #[test]
    fn boot_time_becomes_unix_time() {
        let mut clock = NodeClock::new();
        let offset = clock.offset(&ClusterClock::default(), boot_nanos());
        let read = now();
        let unix = tapio_schemas::units::BootNanos(boot_nanos()).to_unix(offset);
        assert!(unix.0 >= read.unix.0 - 1_000 && unix.0 < read.unix.0 + 1_000_000, "{unix:?} {read:?}");
        assert!(clock.refresh().is_none() && clock.steps() == 0);
        assert!(offset.error_micros > 0);
    }

    const HOUR_NANOS: u64 = 3_600_000_000_000;

    /// Scenario: the node's clock is set back an hour, before the first session and after it; then the road is cut.
    /// Guarantees: each step is counted and told with its size; before the session times follow it, after it they go on
    /// as they were, with the session's error, which grows while nothing is measured.
    #[test]
    fn a_clock_that_is_set_back_moves_no_time_of_a_session() {
        let cluster = ClusterClock::default();
        let mut clock =
            NodeClock { steady_nanos: 0, offset_nanos: 5 * HOUR_NANOS, measured_error_nanos: 0, steps: 0 };
        clock.steady_nanos = clock.offset_nanos;
        assert_eq!(clock.follow((4 * HOUR_NANOS, 100)), Some(-3_600_000_000_000));
        assert_eq!(clock.offset(&cluster, 0).boot_to_unix_nanos, 4 * HOUR_NANOS);

        // The clock was an hour ahead of the aggregator's when the agent started.
        let second = 1_000_000;
        let ahead = ClockEstimate { offset_micros: -3_600 * 1_000_000, error: Micros(200) };
        cluster.measured(ahead, Micros(second));
        let before = clock.offset(&cluster, second * 1_000);
        assert_eq!((before.boot_to_unix_nanos, before.error_micros), (4 * HOUR_NANOS, 200));
        assert_eq!(clock.follow((3 * HOUR_NANOS, 100)), Some(-3_600_000_000_000));
        let after = clock.offset(&cluster, 2 * second * 1_000);
        assert_eq!((after.boot_to_unix_nanos, after.error_micros), (4 * HOUR_NANOS, 250));
        let later = clock.offset(&cluster, 3_601 * second * 1_000);
        assert_eq!((later.boot_to_unix_nanos, later.error_micros), (4 * HOUR_NANOS, 180_200));
        assert_eq!(clock.steps(), 2);
    }

    /// Scenario: measurements that differ by less than they err, then the aggregator's clock is set.
    /// Guarantees: times do not jump with each measurement, their error covers the difference; a real move is followed.
    #[test]
    fn times_do_not_jump_with_each_measurement() {
        let (cluster, clock) = (ClusterClock::default(), NodeClock::new());
        let relation = |offset_micros, error| {
            cluster.measured(ClockEstimate { offset_micros, error: Micros(error) }, Micros(0));
            let ClockOffset { boot_to_unix_nanos, error_micros } = clock.offset(&cluster, 0);
            (i128::from(boot_to_unix_nanos) - i128::from(clock.steady_nanos), error_micros)
        };
        assert_eq!(relation(80, 100), (0, 180));
        assert_eq!(relation(-30, 100), (0, 130));
        assert_eq!(relation(5_000, 100), (5_000_000, 100));
        assert_eq!(relation(4_950, 100), (5_000_000, 150));
    }
}
