//! How far messages overtake each other, so that one that is only late is not sent again.
//!
//! The rule is that of RACK (RFC 8985), which TCP uses: a message is lost when one sent after it has arrived, and it has
//! had as long as that one took, and a tolerance. The tolerance is nothing until a repeat turns out to have been needless:
//! both it and the first message are acknowledged. From then on it doubles, once in a round trip, up to a whole one; without
//! further ones it halves again and again.
//!
//! Whether the service lets messages overtake each other, and how far, is not known; both official programs are made for it.

use std::{collections::VecDeque, time::Duration};

/// What the tolerance starts with.
const FIRST: Duration = Duration::from_millis(5);

/// The tolerance halves when no repeat has been needless for so long.
const MEMORY: Duration = Duration::from_secs(10);

/// How many messages are remembered that had been sent again and have arrived.
const REMEMBERED: usize = 256;

/// What is known of how messages overtake each other.
#[derive(Debug, Default)]
pub(super) struct Reordering {
    tolerance: Duration,
    /// Not before this time does it show what the last change did.
    grow_at: Duration,
    halve_at: Duration,
    /// Numbers of messages that were sent more than once and acknowledged once.
    repeated: VecDeque<i64>,
}

impl Reordering {
    /// Returns how much longer than others a message may take without counting as lost.
    pub(super) fn tolerance(&mut self, now: Duration) -> Duration {
        if self.halve_at <= now && !self.tolerance.is_zero() {
            self.tolerance = if self.tolerance > FIRST { self.tolerance / 2 } else { Duration::ZERO };
            self.halve_at = now + MEMORY;
        }
        self.tolerance
    }

    /// Takes note that a message which was sent more than once has been acknowledged.
    pub(super) fn acknowledged(&mut self, number: i64) {
        if self.repeated.len() == REMEMBERED {
            self.repeated.pop_front();
        }
        self.repeated.push_back(number);
    }

    /// Takes note of the acknowledgement of a message that had been acknowledged: if it was sent more than once, it has
    /// arrived more than once.
    pub(super) fn acknowledged_again(&mut self, number: i64, round_trip: Duration, now: Duration) {
        let Some(index) = self.repeated.iter().rposition(|repeated| *repeated == number) else { return };
        self.repeated.remove(index);
        self.halve_at = now + MEMORY;
        if self.grow_at <= now {
            self.tolerance = (self.tolerance * 2).max(FIRST).min(round_trip.max(FIRST));
            self.grow_at = now + round_trip;
        }
    }

    /// Takes note that everything is sent again on another transport, which says nothing.
    pub(super) fn reattached(&mut self) {
        self.repeated.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn grows_once_in_a_round_trip_up_to_one_and_is_forgotten() {
        let mut reordering = Reordering::default();
        assert_eq!(reordering.tolerance(ms(0)), ms(0));
        let mut needless = |number: i64, now: u64| {
            reordering.acknowledged(number);
            reordering.acknowledged_again(number, ms(30), ms(now));
            reordering.tolerance(ms(now)).as_millis()
        };
        assert_eq!(
            [(1, 0), (2, 29), (3, 30), (4, 60), (5, 90), (6, 120)].map(|(n, at)| needless(n, at)),
            [5, 5, 10, 20, 30, 30]
        );
        let later = [10_119, 10_120, 20_119, 20_120, 30_120, 40_120, 50_120].map(|at| reordering.tolerance(ms(at)));
        assert_eq!(later, [ms(30), ms(15), ms(15), ms(15) / 2, ms(15) / 4, ms(0), ms(0)]);
    }

    #[test]
    fn only_messages_that_were_sent_again_count() {
        let mut reordering = Reordering::default();
        reordering.acknowledged_again(7, ms(30), ms(0));
        reordering.acknowledged(8);
        reordering.reattached();
        reordering.acknowledged_again(8, ms(30), ms(0));
        assert_eq!(reordering.tolerance(ms(0)), ms(0));
        for number in 0..1000 {
            reordering.acknowledged(number);
        }
        assert_eq!(reordering.repeated.len(), REMEMBERED);
        reordering.acknowledged_again(1000 - REMEMBERED as i64 - 1, ms(30), ms(0));
        assert_eq!(reordering.tolerance(ms(0)), ms(0));
        reordering.acknowledged_again(1000 - REMEMBERED as i64, ms(30), ms(0));
        assert_eq!(reordering.tolerance(ms(0)), FIRST);
    }
}
