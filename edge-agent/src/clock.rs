//! The node's clocks: what relates the kernel records' clock to Unix time, and how wrong that may be.
//!
//! The relation is measured anew each second; when somebody sets the clock, records after it follow the new one.

use rustix::time::{ClockId, Timespec, clock_gettime};
use tapio_schemas::units::{ClockOffset, Micros, UnixMicros};
use tapio_wire::clock::Now;

/// An offset that moves by more between two measurements is a step, not a drift.
const STEP_NANOS_MIN: u64 = 10_000_000;
/// Readings per measurement; the one that took least time counts.
const READINGS: u32 = 5;

/// Nanoseconds of the kernel records' clock.
pub(crate) fn boot_nanos() -> u64 {
    nanos(clock_gettime(ClockId::Boottime))
}

/// Both clocks as the session wants them.
pub(crate) fn now() -> Now {
    Now {
        monotonic: Micros(boot_nanos() / 1_000),
        unix: UnixMicros(nanos(clock_gettime(ClockId::Realtime)) / 1_000),
    }
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// The relation of the two clocks.
#[derive(Debug)]
pub(crate) struct NodeClock {
    offset_nanos: u64,
    measured_error_nanos: u64,
    steps: u64,
}

impl NodeClock {
    pub(crate) fn new() -> Self {
        let (offset_nanos, measured_error_nanos) = measure();
        Self { offset_nanos, measured_error_nanos, steps: 0 }
    }

    /// Measures again; returns whether the clock was set meanwhile.
    pub(crate) fn refresh(&mut self) -> bool {
        let (offset, error) = measure();
        let is_step = offset.abs_diff(self.offset_nanos) >= STEP_NANOS_MIN;
        self.offset_nanos = offset;
        self.measured_error_nanos = error;
        self.steps += u64::from(is_step);
        is_step
    }

    /// The offset, with `session_error_micros`, the error against the cluster's clock as the session measured it,
    /// or, without a session, the kernel's own bound of the error against true time.
    pub(crate) fn offset(&self, session_error_micros: Option<u64>) -> ClockOffset {
        let own = self.measured_error_nanos.div_ceil(1_000);
        let error = session_error_micros.unwrap_or_else(kernel_error_micros);
        ClockOffset { boot_to_unix_nanos: self.offset_nanos, error_micros: error.saturating_add(own) }
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

    /// Scenario: the relation of the clocks on this machine.
    /// Guarantees: it gives the present Unix time within its error, and is stable.
    #[test]
    fn boot_time_becomes_unix_time() {
        let mut clock = NodeClock::new();
        let offset = clock.offset(Some(0));
        let read = now();
        let unix = tapio_schemas::units::BootNanos(boot_nanos()).to_unix(offset);
        assert!(unix.0 >= read.unix.0 - 1_000 && unix.0 < read.unix.0 + 1_000_000, "{unix:?} {read:?}");
        assert!(!clock.refresh() && clock.steps() == 0);
        assert!(clock.offset(None).error_micros > 0);
    }
}
