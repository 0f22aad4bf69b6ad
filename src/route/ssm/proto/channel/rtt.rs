//! The round-trip time estimate and the time after which a message is taken for lost.

use std::time::Duration;

/// Smoothed round-trip time, its variation, and the retransmission time-out.
///
/// Constants and formula: `config.go` and `streaming.go` (`calculateRetransmissionTimeout`) of
/// session-manager-plugin, which are those of RFC 6298. That has a ceiling of one second, which makes it repeat everything
/// on a path that takes longer; here it only ends the doubling, see [`MAX_TIMEOUT`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Rtt {
    smoothed: Duration,
    variation: Duration,
    timeout: Duration,
}

const INITIAL: Duration = Duration::from_millis(100);
const INITIAL_TIMEOUT: Duration = Duration::from_millis(200);
const GRANULARITY: Duration = Duration::from_millis(10);

/// Longest time before the oldest message is sent again once more, unless round trips take longer.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(1);

impl Rtt {
    pub(super) fn new() -> Self {
        Self { smoothed: INITIAL, variation: Duration::ZERO, timeout: INITIAL_TIMEOUT }
    }

    /// Takes the time between a message that was sent once and its acknowledgement.
    pub(super) fn sample(&mut self, round_trip: Duration) {
        let deviation = self.smoothed.abs_diff(round_trip);
        self.variation = self.variation * 3 / 4 + deviation / 4;
        self.smoothed = self.smoothed * 7 / 8 + round_trip / 8;
        self.timeout = self.smoothed + GRANULARITY.max(self.variation * 4);
    }

    pub(super) fn smoothed(&self) -> Duration {
        self.smoothed
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn follows_the_reference_formula() {
        let mut rtt = Rtt::new();
        assert_eq!(rtt.timeout(), Duration::from_millis(200));
        rtt.sample(Duration::from_millis(20));
        // variation = 3/4 * 0 + 1/4 * |100 - 20| = 20; smoothed = 7/8 * 100 + 1/8 * 20 = 90.
        assert_eq!(rtt.smoothed(), Duration::from_millis(90));
        assert_eq!(rtt.timeout(), Duration::from_millis(170));
    }

    proptest! {
        #[test]
        fn the_timeout_is_more_than_round_trips_take(samples in proptest::collection::vec(0_u64..100_000, 1..200)) {
            let mut rtt = Rtt::new();
            for sample in samples {
                rtt.sample(Duration::from_millis(sample));
                prop_assert!(rtt.timeout() <= Duration::from_secs(500));
                prop_assert!(rtt.timeout() >= rtt.smoothed() + GRANULARITY);
            }
        }
    }
}
