//! How often certificates may be asked for: by one address, and by all together.
//!
//! Token buckets over a clock that the caller reads. The table of addresses is bounded: those whose bucket is full again
//! are forgotten, and where none is, nobody new is served. Called once per connection, before anything is read of it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Refusal;

/// Requests that an address may make at once, and how long it takes until another may follow.
const ADDRESS: Rate = Rate { burst: 10, refill: Duration::from_secs(1) };
/// The same of all together: each costs two signatures and a question to the API server.
const ALL: Rate = Rate { burst: 100, refill: Duration::from_millis(20) };
/// Addresses that are known at a time.
const ADDRESSES_MAX: usize = 4_096;

struct Rate {
    burst: u32,
    refill: Duration,
}

/// When a bucket will be full again (the generic cell rate algorithm, ITU-T I.371).
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    fn take(&mut self, rate: &Rate, now: Instant) -> bool {
        let begins = self.full_at.map_or(now, |full_at| full_at.max(now));
        if begins.saturating_duration_since(now) > rate.refill * rate.burst.saturating_sub(1) {
            return false;
        }
        self.full_at = Some(begins + rate.refill);
        true
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full_at| full_at <= now)
    }
}

/// Who asked how often.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    buckets: Mutex<(Bucket, HashMap<IpAddr, Bucket>)>,
}

impl Throttle {
    /// Takes one request of `address`.
    ///
    /// # Errors
    /// When it asked too often, or all together did.
    pub(super) fn take(&self, address: IpAddr, now: Instant) -> Result<(), Refusal> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, addresses) = &mut *buckets;
        let address = network(address);
        if !addresses.contains_key(&address) && addresses.len() >= ADDRESSES_MAX {
            addresses.retain(|_address, bucket| !bucket.is_full(now));
            if addresses.len() >= ADDRESSES_MAX {
                return Err(Refusal::Busy);
            }
        }
        if !addresses.entry(address).or_default().take(&ADDRESS, now) {
            return Err(Refusal::TooOften);
        }
        if all.take(&ALL, now) { Ok(()) } else { Err(Refusal::Busy) }
    }
}

/// Whoever has one IPv6 address has the network of 64 bits around it (RFC 4291, section 2.5.4).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(taken: Result<(), Refusal>) -> &'static str {
        taken.map_or_else(|refusal| refusal.name(), |()| "taken")
    }

    /// Scenario: one address asks without end, another once; then so many that the table is full; then time passes.
    /// Guarantees: the first is refused after its burst and the other is served; what is known is bounded; both may ask
    /// again later.
    #[test]
    fn who_asks_too_often_is_refused_alone() {
        let throttle = Throttle::default();
        let start = Instant::now();
        let noisy: IpAddr = "10.0.0.1".parse().unwrap();
        let quiet: IpAddr = "10.0.0.2".parse().unwrap();
        for _ in 0..ADDRESS.burst {
            assert_eq!(name(throttle.take(noisy, start)), "taken");
        }
        assert_eq!(name(throttle.take(noisy, start)), "too-often");
        assert_eq!(name(throttle.take(quiet, start)), "taken");
        let neighbours = ["2001:db8::1", "2001:db8::ffff:1"].map(|text| network(text.parse().unwrap()));
        assert_eq!(neighbours[0], neighbours[1]);

        let mut refused = 0;
        for host in 0..8_192_u32 {
            let address = IpAddr::V4((0x0b00_0000 + host).into());
            refused += usize::from(throttle.take(address, start).is_err());
        }
        assert!(refused > ADDRESSES_MAX, "{refused}");
        assert!(throttle.buckets.lock().unwrap().1.len() <= ADDRESSES_MAX);
        let later = start + ADDRESS.refill * (ADDRESS.burst + 1);
        assert_eq!(name(throttle.take(noisy, later)), "taken");
        assert_eq!(name(throttle.take("10.0.0.3".parse().unwrap(), later)), "taken");
    }
}
