//! The leak: memory that requests allocate, touch and never give back.
//!
//! Owns the leaked blocks. The growth is tied to requests (a cache without eviction) and paced by the clock, so that
//! the drawn rate holds whatever the load is. Called by [`super::Service::plan`].

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most that one request adds: a pause in the load must not be made up for in one piece.
const BYTES_PER_REQUEST_MAX: u64 = 2 * 1024 * 1024;

/// A leak of a given rate that begins some time after the first request.
#[derive(Debug)]
pub struct Leak {
    bytes_per_second: u64,
    after: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    first_request: Option<Instant>,
    leaked_bytes: u64,
    blocks: Vec<Vec<u8>>,
}

impl Leak {
    /// Leaks `bytes_per_second`, starting `after` the first request.
    #[must_use]
    pub fn new(bytes_per_second: u64, after: Duration) -> Self {
        Self { bytes_per_second, after, state: Mutex::new(State::default()) }
    }

    /// Adds what is due since the last request.
    pub fn grow(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let first = *state.first_request.get_or_insert_with(Instant::now);
        let Some(leaking_for) = first.elapsed().checked_sub(self.after) else { return };
        let due = u128::from(self.bytes_per_second) * leaking_for.as_millis() / 1000;
        let missing = u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(state.leaked_bytes);
        let block_bytes = missing.min(BYTES_PER_REQUEST_MAX);
        if block_bytes == 0 {
            return;
        }
        // Every byte is written, so that the kernel has to charge every page.
        let mut value = state.leaked_bytes;
        let block = (0..block_bytes).map(|_| {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            value.to_be_bytes()[0]
        });
        let block = block.collect();
        state.blocks.push(block);
        state.leaked_bytes = state.leaked_bytes.saturating_add(block_bytes);
    }

    /// What was leaked so far.
    #[must_use]
    pub fn leaked_bytes(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).leaked_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{BYTES_PER_REQUEST_MAX, Leak};

    /// Scenario: a leak that is due, one that is not yet due, and a very fast one.
    /// Guarantees: nothing grows before its time, and one request adds at most the named limit.
    #[test]
    fn grows_when_due_and_in_bounded_steps() {
        let later = Leak::new(1 << 40, Duration::from_secs(3600));
        later.grow();
        assert_eq!(later.leaked_bytes(), 0);
        let fast = Leak::new(1 << 50, Duration::ZERO);
        while fast.leaked_bytes() == 0 {
            fast.grow();
        }
        assert_eq!(fast.leaked_bytes() % BYTES_PER_REQUEST_MAX, 0);
    }
}
