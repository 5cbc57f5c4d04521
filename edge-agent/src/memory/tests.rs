use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 64 * MIB;
const HALF_SECOND: u64 = 500_000_000;

fn container() -> Arc<Container> {
    Arc::new(Container { id: "a".into(), pod_uid: String::new(), group: "/a".into() })
}

/// Feeds readings half a second apart; returns the growths that were told.
fn feed(memory: &mut Memory, readings: impl IntoIterator<Item = u64>) -> Vec<Growth> {
    let container = container();
    let start = memory.last(&container).map_or(0, |last| last.time_nanos);
    let told = readings.into_iter().enumerate().filter_map(|(index, used_bytes)| {
        let time_nanos = start + (index as u64 + 1) * HALF_SECOND;
        memory.sampled(&container, Sample { time_nanos, used_bytes, limit_bytes: LIMIT }).growth
    });
    told.collect()
}

/// Scenario: a service idles, then leaks 3 MiB each second.
/// Guarantees: growth is told before the limit is near, with its onset and its rate, and not at every sample.
#[test]
fn a_leak_is_told_in_time() {
    let mut memory = Memory::default();
    assert!(feed(&mut memory, (0..20).map(|step| 10 * MIB + step % 3 * 10_000)).is_empty());
    let growths = feed(&mut memory, (1..30).map(|step| 10 * MIB + step * 3 * MIB / 2));
    let first = growths.first().unwrap();
    assert!((2.8..3.2).contains(&(first.bytes_per_second / MIB as f64)), "{first:?}");
    assert!(first.onset_nanos.abs_diff(20 * HALF_SECOND) <= 4 * HALF_SECOND, "{first:?}");
    assert!(first.used_bytes < LIMIT / 2);
    assert!(growths.len() <= 3, "{growths:?}");
}

/// Scenario: a leak of 40 MiB each second meets the limit before a growth could be told; the kernel kills.
/// Guarantees: the kill finds the growth, and the time after it begins anew.
#[test]
fn a_fast_leak_is_found_at_the_kill() {
    let mut memory = Memory::default();
    let leak = [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 28, 48, 63].map(|mib| mib * MIB);
    assert!(feed(&mut memory, leak).is_empty());
    let growth = memory.killed(&container(), 14 * HALF_SECOND).unwrap();
    assert!((35.0..42.0).contains(&(growth.bytes_per_second / MIB as f64)), "{growth:?}");
    assert_eq!(memory.last(&container()), None);
    assert!(feed(&mut memory, [5 * MIB; 30]).is_empty());
    assert_eq!(memory.killed(&container(), u64::MAX), None);
}

/// Scenario: a plateau with noise, a sawtooth that collects garbage, a warm-up that runs out, a leak too slow to
/// matter, a single allocation.
/// Guarantees: none of them is growth.
#[test]
fn what_stays_within_its_bounds_is_no_growth() {
    let plateau = (0..200_u64).map(|step| 40 * MIB + step * 7_919 % 500_000);
    let sawtooth = (0..200_u64).map(|step| (8 + step % 25 * 2) * MIB);
    let warm_up = (0..200_u64).map(|step| 30 * MIB - 25 * MIB / (1 + step / 2));
    let slow = (0..200_u64).map(|step| 10 * MIB + step * 2_000);
    let jump = (0..200_u64).map(|step| if step < 100 { 10 * MIB } else { 50 * MIB });
    let name = ["plateau", "sawtooth", "warm-up", "slow", "jump"];
    let series: [Vec<u64>; 5] =
        [plateau.collect(), sawtooth.collect(), warm_up.collect(), slow.collect(), jump.collect()];
    for (name, readings) in name.iter().zip(series) {
        let growths = feed(&mut Memory::default(), readings);
        // The first tooth has no other before it: it cannot be told from a leak until it falls.
        let growths: Vec<_> = growths
            .into_iter()
            .filter(|growth| *name != "sawtooth" || growth.last_nanos > 25 * HALF_SECOND)
            .collect();
        assert!(growths.is_empty(), "{name}: {growths:?}");
    }
}

/// Scenario: a quiet container over a minute, then one that changes.
/// Guarantees: samples are shipped every fifteen seconds and at a change of a tenth of the limit.
#[test]
fn samples_are_shipped_rarely() {
    let mut memory = Memory::default();
    let container = container();
    let mut shipped = 0;
    for step in 0..120 {
        let used_bytes = if step < 100 { 10 * MIB } else { 20 * MIB };
        let sample = Sample { time_nanos: (step + 1) * HALF_SECOND, used_bytes, limit_bytes: LIMIT };
        shipped += u32::from(memory.sampled(&container, sample).sample.is_some());
    }
    assert_eq!(shipped, 5);
    memory.gone(&container);
    assert_eq!(memory.sizes(), (0, 0));
}

proptest! {
    /// Scenario: any stationary readings below half of the limit.
    /// Guarantees: no growth is told, whatever the noise.
    #[test]
    fn noise_is_no_growth(readings in prop::collection::vec(0..LIMIT / 2, 1..300)) {
        // A random walk upwards by chance over five seconds needs at least nine rising steps of ten.
        let growths = feed(&mut Memory::default(), readings);
        prop_assert!(growths.is_empty(), "{:?}", growths);
    }

    /// Scenario: a leak of any rate that meets the limit within half a minute to ten, with some noise.
    /// Guarantees: it is told before the limit is reached, and the rate is right within a fifth.
    #[test]
    fn a_leak_is_always_told(
        seconds in 15_u64..120,
        idle in 1_u64..40,
        noise in prop::collection::vec(0_u64..50_000, 400),
    ) {
        let steps = seconds * 2;
        let rate = 54 * MIB / steps;
        let mut noise = noise.into_iter().cycle();
        let mut with_noise = |base: u64| base + noise.next().unwrap_or(0);
        let mut readings: Vec<u64> = (0..idle).map(|_| with_noise(10 * MIB)).collect();
        readings.extend((1..=steps).map(|step| with_noise(10 * MIB + step * rate)));
        let growths = feed(&mut Memory::default(), readings);
        prop_assert!(!growths.is_empty());
        let rate = rate as f64 * 2.0;
        for growth in growths {
            prop_assert!((growth.bytes_per_second / rate - 1.0).abs() < 0.2, "{:?} {}", growth, rate);
        }
    }

    /// Scenario: any readings and kills.
    /// Guarantees: no panic, and what is told lies within the readings.
    #[test]
    fn any_readings_are_survived(readings in prop::collection::vec(any::<u64>(), 0..200), kill: u64) {
        let mut memory = Memory::default();
        for growth in feed(&mut memory, readings) {
            prop_assert!(growth.onset_nanos <= growth.last_nanos && growth.bytes_per_second > 0.0);
        }
        memory.killed(&container(), kill);
    }
}
