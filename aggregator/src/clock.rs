//! The aggregator's clock: the machine's, except that it never goes back.
//!
//! Every node tells its times by this clock, verdicts are derived on it, and the engine forgets what is older than its
//! longest window. If it went back with the machine's clock, all that happens from then on would be older than what was
//! forgotten already. So it goes on as it was, and health says that the machine's clock stands behind; a clock that is
//! set forward is followed. A restart takes the machine's clock as it is.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use prometheus_client::metrics::gauge::Gauge;
use tapio_daemon::Progress;
use tapio_schemas::units::{Micros, UnixMicros};
use tokio_util::sync::CancellationToken;

use crate::run::RunError;

/// A clock that moves back by less between two readings is being disciplined, not set.
const STEP_BACK_MICROS_MIN: u64 = 100_000;
/// How often the machine's clock is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The relation to a clock that nobody sets.
#[derive(Clone, Copy, Debug)]
struct Steady {
    /// Unix time at the origin of the clock that nobody sets.
    origin_micros: u64,
    last_micros: u64,
    /// By how much the machine's clock stands behind.
    behind_micros: u64,
}

impl Steady {
    const fn new(unix_micros: u64) -> Self {
        Self { origin_micros: unix_micros, last_micros: unix_micros, behind_micros: 0 }
    }

    /// The time, where `elapsed_micros` passed since the origin and the machine's clock says `machine_micros`.
    fn read(&mut self, elapsed_micros: u64, machine_micros: u64) -> u64 {
        let origin = machine_micros.saturating_sub(elapsed_micros);
        let behind = self.origin_micros.saturating_sub(origin);
        if behind < STEP_BACK_MICROS_MIN {
            self.origin_micros = origin;
            self.behind_micros = 0;
        } else {
            self.behind_micros = behind;
        }
        self.last_micros = self.last_micros.max(self.origin_micros.saturating_add(elapsed_micros));
        self.last_micros
    }
}

fn read() -> (UnixMicros, Micros) {
    static CLOCK: OnceLock<(Instant, Mutex<Steady>)> = OnceLock::new();
    let machine = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    };
    let (origin, steady) = CLOCK.get_or_init(|| (Instant::now(), Mutex::new(Steady::new(machine()))));
    let mut steady = steady.lock().unwrap_or_else(PoisonError::into_inner);
    let elapsed = u64::try_from(origin.elapsed().as_micros()).unwrap_or(u64::MAX);
    let now = steady.read(elapsed, machine());
    (UnixMicros(now), Micros(steady.behind_micros))
}

/// The aggregator's time.
pub(crate) fn now() -> UnixMicros {
    read().0
}

/// Says in log, health and metrics when the machine's clock was set back.
pub(crate) async fn watch(
    progress: Progress,
    behind: Gauge,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let mut told = 0;
    loop {
        let seconds = read().1.0 / 1_000_000;
        behind.set(i64::try_from(seconds).unwrap_or(i64::MAX));
        if seconds != told {
            tell(seconds, told, &progress);
            told = seconds;
        }
        progress.tick();
        if tokio::time::timeout(LOOK_INTERVAL, stop.cancelled()).await.is_ok() {
            progress.finish();
            return Ok(());
        }
    }
}

fn tell(seconds: u64, told: u64, progress: &Progress) {
    if seconds == 0 {
        tracing::info!("this machine's clock is no longer behind");
        progress.clear();
        return;
    }
    if seconds.abs_diff(told) > 1 {
        tracing::error!(
            seconds,
            "this machine's clock was set back, times go on from before: if the new time is right, restart the aggregator"
        );
    }
    progress.fault(format!(
        "this machine's clock was set back by {seconds} s, times go on from before: if the new time is right, restart \
         the aggregator, else set the clock"
    ));
}

#[cfg(test)]
mod tests {
    use tapio_daemon::Health;

    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Scenario: the machine's clock runs, is disciplined by some milliseconds to and fro, is set forward by an hour, back
    /// by an hour, and forward again.
    /// Guarantees: the time never goes back, follows the clock forward, goes on at its pace while the clock is behind, and
    /// says by how much it is.
    #[test]
    fn the_time_never_goes_back() {
        let mut steady = Steady::new(100 * SECOND);
        let hour = 3_600 * SECOND;
        let mut at = |elapsed, machine| (steady.read(elapsed, machine), steady.behind_micros);
        assert_eq!(at(SECOND, 101 * SECOND), (101 * SECOND, 0));
        assert_eq!(at(SECOND, 101 * SECOND - 3_000), (101 * SECOND, 0));
        assert_eq!(at(2 * SECOND, 102 * SECOND - 3_000), (102 * SECOND - 3_000, 0));
        assert_eq!(at(3 * SECOND, hour + 103 * SECOND), (hour + 103 * SECOND, 0));
        assert_eq!(at(4 * SECOND, 104 * SECOND), (hour + 104 * SECOND, hour));
        assert_eq!(at(64 * SECOND, 164 * SECOND), (hour + 164 * SECOND, hour));
        assert_eq!(at(65 * SECOND, hour + 165 * SECOND), (hour + 165 * SECOND, 0));
    }

    /// Scenario: the machine's clock is an hour behind, and later no longer.
    /// Guarantees: health says by how much, what follows, and what to do, until it is right again.
    #[test]
    fn a_clock_that_is_behind_is_told() {
        let health = Health::new();
        let progress = health.component("clock", LOOK_INTERVAL);
        tell(3_600, 0, &progress);
        let told = health.status().reasons.join("\n");
        assert!(
            told.starts_with("clock: this machine's clock was set back by 3600 s, times go on"),
            "{told}"
        );
        assert!(told.contains("restart the aggregator, else set the clock"), "{told}");
        tell(0, 3_600, &progress);
        assert!(health.status().reasons.is_empty());
    }
}
