//! Quantities with their unit in the type. No conversion between clocks exists without the offset that relates them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Nanoseconds since the machine booted, suspend included (`CLOCK_BOOTTIME`): the kernel records' clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootNanos(pub u64);

/// Microseconds since the Unix epoch, UTC: the clock of every event that leaves a node.
///
/// Microseconds, because no source knows its time better than that once a clock's error is counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct UnixMicros(pub u64);

/// A length of time in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Micros(pub u64);

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct ByteCount(pub u64);

/// What relates a node's boot clock to Unix time: `unix = boot + offset`, with the node's own error bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffset {
    /// Nanoseconds to add to a boot time to get Unix time.
    pub boot_to_unix_nanos: u64,
    /// How wrong the node's clock may be against the cluster's, in microseconds (kernel `maxerror` and half the
    /// round trip of the session's measurement).
    pub error_micros: u64,
}

impl BootNanos {
    /// The Unix time of this instant under `offset`.
    #[must_use]
    pub const fn to_unix(self, offset: ClockOffset) -> UnixMicros {
        UnixMicros(self.0.saturating_add(offset.boot_to_unix_nanos) / 1_000)
    }
}

impl UnixMicros {
    /// The time from `earlier` to this instant; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Micros {
        Micros(self.0.saturating_sub(earlier.0))
    }

    /// This instant moved later by `length`.
    #[must_use]
    pub const fn plus(self, length: Micros) -> Self {
        Self(self.0.saturating_add(length.0))
    }

    /// This instant moved earlier by `length`, not before the epoch.
    #[must_use]
    pub const fn minus(self, length: Micros) -> Self {
        Self(self.0.saturating_sub(length.0))
    }
}

impl Micros {
    /// A length of whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// A length of whole milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000))
    }
}

/// An instant that is known up to an error: it lies within `[earliest, latest]`.
///
/// Two intervals that overlap have no known order; only a message edge (a connect before its accept) orders them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TimeInterval {
    /// The earliest moment at which it can have happened.
    pub earliest: UnixMicros,
    /// The latest moment at which it can have happened.
    pub latest: UnixMicros,
}

impl TimeInterval {
    /// An instant measured as `at`, wrong by at most `error`.
    #[must_use]
    pub const fn around(at: UnixMicros, error: Micros) -> Self {
        Self { earliest: at.minus(error), latest: at.plus(error) }
    }

    /// Whether this certainly happened before `other`.
    #[must_use]
    pub fn certainly_before(&self, other: &Self) -> bool {
        self.latest < other.earliest
    }

    /// Whether this may have happened before or at the same time as `other`.
    #[must_use]
    pub fn possibly_before(&self, other: &Self) -> bool {
        self.earliest <= other.latest
    }

    /// The middle of the interval: the measured instant, for display.
    #[must_use]
    pub const fn middle(&self) -> UnixMicros {
        UnixMicros(self.earliest.0 + (self.latest.0.saturating_sub(self.earliest.0)) / 2)
    }
}

/// `value` rounded to the nearest of 32 steps per octave: wrong by at most 1/64, and exact below 64.
///
/// Durations and sizes that no rule compares exactly cost a byte less on the wire this way, each.
#[must_use]
pub const fn coarse(value: u64) -> u64 {
    const BITS: u32 = 6;
    let dropped = (u64::BITS - value.leading_zeros()).saturating_sub(BITS);
    if dropped == 0 {
        return value;
    }
    let half = 1 << (dropped - 1);
    // Near the top of the range there is no room to round up.
    (value.saturating_add(half) >> dropped) << dropped
}

impl fmt::Display for ByteCount {
    #[expect(clippy::cast_precision_loss, reason = "three significant digits are shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        for (unit, size) in UNITS {
            if self.0 >= size {
                let value = self.0 as f64 / size as f64;
                return if (value - value.round()).abs() < 0.05 {
                    write!(f, "{value:.0} {unit}")
                } else {
                    write!(f, "{value:.1} {unit}")
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: two instants, measured with an error each.
    /// Guarantees: order is claimed only where the intervals do not overlap.
    #[test]
    fn overlapping_intervals_have_no_order() {
        let a = TimeInterval::around(UnixMicros(1_000), Micros(50));
        let b = TimeInterval::around(UnixMicros(1_080), Micros(50));
        let c = TimeInterval::around(UnixMicros(1_200), Micros(50));
        assert!(!a.certainly_before(&b) && a.possibly_before(&b) && b.possibly_before(&a));
        assert!(a.certainly_before(&c) && !c.possibly_before(&a));
        assert_eq!(a.middle(), UnixMicros(1_000));
    }

    /// Scenario: values of all sizes are made coarse.
    /// Guarantees: small ones stay, none is wrong by more than 1/64, and doing it twice changes nothing.
    #[test]
    fn coarse_values_are_near() {
        for shift in 0..64 {
            for low in [0, 1, 5, 77, 1_000_003] {
                let value = (1_u64 << shift) | low;
                let rounded = coarse(value);
                assert!(rounded.abs_diff(value) <= value / 64, "{value} {rounded}");
                assert_eq!(coarse(rounded), rounded);
            }
        }
        assert!((0..64).all(|value| coarse(value) == value));
        assert_eq!((coarse(65), coarse(67), coarse(1_000)), (66, 68, 1_008));
    }

    /// Scenario: sizes as a person reads them.
    /// Guarantees: a binary unit, one decimal where it tells something.
    #[test]
    fn sizes_are_readable() {
        assert_eq!(ByteCount(64 << 20).to_string(), "64 MiB");
        assert_eq!(ByteCount(3_250_585).to_string(), "3.1 MiB");
        assert_eq!(ByteCount(17).to_string(), "17 B");
    }
}
