//! Delays between attempts: they double, have a cap, and differ from one tunnel to the next.

use std::time::Duration;

use crate::random::SplitMix64;

/// A delay that doubles with each failure.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The first.
    pub first: Duration,
    /// The longest.
    pub cap: Duration,
}

impl Backoff {
    /// Returns the delay after `failures` failures in a row: none after none, then between half of
    /// the doubling delay and all of it.
    pub fn delay(self, failures: u32, jitter: &mut Jitter) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let full = self.first.saturating_mul(1 << doublings.min(16)).min(self.cap);
        full / 2 + jitter.below(full / 2)
    }
}

/// Random delays from a seed.
#[derive(Debug, Clone)]
pub struct Jitter(SplitMix64);

impl Jitter {
    /// Creates a generator. Two with one seed give the same delays.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    /// Returns the next random number.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    fn below(&mut self, limit: Duration) -> Duration {
        let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.next_u64() % nanos.max(1))
    }
}
