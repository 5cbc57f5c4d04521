//! Whether a series of readings grows towards its limit: onset, slope, and the conditions under which it counts.
//!
//! The slope is the median of the slopes of all pairs (Theil 1950, Sen 1968), so that a few odd readings, whatever
//! their size, do not move it.

use super::Sample;

/// Readings that a growth must have.
const SAMPLES_MIN: usize = 5;
/// Readings that a growth must have when the kernel has killed: a leak may need two seconds for all of it.
const SAMPLES_BEFORE_KILL_MIN: usize = 3;
/// A growth must last so long before it is told without a kill: a warm-up is shorter.
const NANOS_MIN: u64 = 5_000_000_000;
/// The part of the limit that must have been gained.
const GAIN_OF_LIMIT: f64 = 0.05;
/// The part of the steps that must go up, or not down.
const RISING_MIN: f64 = 0.8;
/// A step down of this part of the limit ends what was before it.
const DROP_OF_LIMIT: f64 = 0.01;
/// Without a gain of [`FLAT_OF_LIMIT`] over so many steps, growth had not begun.
const FLAT_STEPS: usize = 8;
/// See [`FLAT_STEPS`].
const FLAT_OF_LIMIT: f64 = 0.004;
/// A first step below this part of the mean step is still idling.
const IDLING_OF_MEAN: f64 = 0.25;
/// The slope of the last third must be at least this part of the whole's: growth that runs out is no leak.
const LATE_SLOPE_MIN: f64 = 0.5;
/// The limit must be reached within this.
const HORIZON_SECONDS: f64 = 600.0;

/// A steady growth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Growth {
    /// When it began.
    pub(crate) onset_nanos: u64,
    /// The last reading that it rests on.
    pub(crate) last_nanos: u64,
    pub(crate) bytes_per_second: f64,
    /// The last reading.
    pub(crate) used_bytes: u64,
    pub(crate) limit_bytes: u64,
}

/// The growth that a living container shows.
pub(super) fn towards_limit(samples: &[Sample]) -> Option<Growth> {
    let growth = judge(samples, SAMPLES_MIN)?;
    let left = growth.limit_bytes.saturating_sub(growth.used_bytes);
    let lasts = growth.last_nanos.saturating_sub(growth.onset_nanos);
    (lasts >= NANOS_MIN && float(left) <= growth.bytes_per_second * HORIZON_SECONDS).then_some(growth)
}

/// The growth that led to a kill: the kernel itself has said that the limit was reached.
pub(super) fn before_kill(samples: &[Sample]) -> Option<Growth> {
    judge(samples, SAMPLES_BEFORE_KILL_MIN)
}

fn judge(samples: &[Sample], least: usize) -> Option<Growth> {
    let last = samples.last()?;
    if last.limit_bytes == 0 || samples.len() < least {
        return None;
    }
    let limit = float(last.limit_bytes);
    let (before, rise) = samples.split_at_checked(onset(samples, limit))?;
    let first = rise.first()?;
    // A sawtooth has been as high before: only what exceeds its teeth is growth.
    let peak = before.iter().map(|sample| sample.used_bytes).max().unwrap_or(0).max(first.used_bytes);
    let gain = float(last.used_bytes) - float(peak);
    if rise.len() < least || gain < limit * GAIN_OF_LIMIT || !is_rising(rise) {
        return None;
    }
    let slope = slope(rise)?;
    let late = rise.get(rise.len() - (rise.len() / 3).max(2)..)?;
    let seconds = float(last.time_nanos.saturating_sub(first.time_nanos)) / 1e9;
    let mean = (float(last.used_bytes) - float(first.used_bytes)) / seconds;
    // A warm-up takes most of its memory at its beginning, which the median passes over and the mean does not.
    if slope <= 0.0 || self::slope(late)? < slope.max(mean) * LATE_SLOPE_MIN {
        return None;
    }
    Some(Growth {
        onset_nanos: first.time_nanos,
        last_nanos: last.time_nanos,
        bytes_per_second: slope,
        used_bytes: last.used_bytes,
        limit_bytes: last.limit_bytes,
    })
}

/// Where the rise that ends at the last reading began: behind the last drop, or where it was flat before.
fn onset(samples: &[Sample], limit: f64) -> usize {
    let mut start = samples.len().saturating_sub(1);
    while let (Some(earlier), Some(here)) =
        (start.checked_sub(1).and_then(|at| samples.get(at)), samples.get(start))
    {
        if float(earlier.used_bytes) - float(here.used_bytes) > limit * DROP_OF_LIMIT {
            break;
        }
        let flat_start = start.checked_sub(FLAT_STEPS).and_then(|at| samples.get(at));
        if flat_start
            .is_some_and(|flat| float(here.used_bytes) - float(flat.used_bytes) < limit * FLAT_OF_LIMIT)
        {
            break;
        }
        start -= 1;
    }
    behind_idling(samples, start)
}

/// Leaves out a short idling at the beginning: steps far below the mean of those that follow.
fn behind_idling(samples: &[Sample], mut start: usize) -> usize {
    let Some(last) = samples.last() else { return start };
    while let (Some(first), Some(second)) = (samples.get(start), samples.get(start + 1)) {
        let seconds = |sample: &Sample| float(sample.time_nanos.saturating_sub(first.time_nanos)) / 1e9;
        let gain = |sample: &Sample| float(sample.used_bytes) - float(first.used_bytes);
        let expected = gain(last) / seconds(last) * seconds(second);
        if gain(second) >= expected * IDLING_OF_MEAN || seconds(last) <= 0.0 {
            break;
        }
        start += 1;
    }
    start
}

fn is_rising(rise: &[Sample]) -> bool {
    let steps = rise.len().saturating_sub(1);
    let rising =
        rise.windows(2).filter(|pair| matches!(pair, [a, b] if b.used_bytes >= a.used_bytes)).count();
    ratio(rising, steps) >= RISING_MIN
}

/// Bytes per second.
fn slope(samples: &[Sample]) -> Option<f64> {
    let mut slopes = Vec::with_capacity(samples.len() * samples.len() / 2);
    for (index, a) in samples.iter().enumerate() {
        for b in samples.iter().skip(index + 1) {
            let seconds = float(b.time_nanos.saturating_sub(a.time_nanos)) / 1e9;
            if seconds > 0.0 {
                slopes.push((float(b.used_bytes) - float(a.used_bytes)) / seconds);
            }
        }
    }
    let middle = slopes.len() / 2;
    (!slopes.is_empty()).then(|| *slopes.select_nth_unstable_by(middle, f64::total_cmp).1)
}

#[expect(clippy::cast_precision_loss, reason = "sizes and times need no more than 53 bits here")]
const fn float(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "there are at most as many as a series has samples")]
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
