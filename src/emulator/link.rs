//! One direction between a transport and the service: delay, loss, repetition and change of order.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::script::Link;

use crate::random::SplitMix64;

/// Most messages that are on their way.
pub(super) const MAX_IN_FLIGHT: usize = 20_000;

/// How much later a message that is overtaken arrives, at most.
const MAX_DETOUR: Duration = Duration::from_millis(20);

/// Chance from a seed, so that the same faults can be had again.
#[derive(Debug, Clone)]
pub(super) struct Random(SplitMix64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    pub(super) fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number from 0 up to, but not, 1.
    pub(super) fn fraction(&mut self) -> f64 {
        // The upper 32 bits are exact as a float.
        f64::from(u32::try_from(self.next_u64() >> 32).unwrap_or_default()) / 4_294_967_296.0
    }

    pub(super) fn happens(&mut self, fraction: f64) -> bool {
        fraction > 0.0 && self.fraction() < fraction
    }
}

/// Messages that are on their way in one direction.
#[derive(Debug)]
pub(super) struct Flight {
    random: Random,
    /// By time of arrival, then in the order in which they were sent.
    queue: BTreeMap<(Instant, u64), Bytes>,
    sent: u64,
}

impl Flight {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), queue: BTreeMap::new(), sent: 0 }
    }

    /// Takes a message; it comes back at once if nothing holds it up.
    pub(super) fn send(&mut self, link: &Link, now: Instant, message: Bytes) -> Option<Bytes> {
        if link.delay.is_zero() && !link.is_lossy() && self.queue.is_empty() {
            return Some(message);
        }
        if self.random.happens(link.loss) {
            return None;
        }
        let detour =
            if self.random.happens(link.reorder) { MAX_DETOUR.mul_f64(self.random.fraction()) } else { Duration::ZERO };
        if self.random.happens(link.duplicate) {
            let later = MAX_DETOUR.mul_f64(self.random.fraction());
            self.put(now + link.delay + later, message.clone());
        }
        self.put(now + link.delay + detour, message);
        None
    }

    fn put(&mut self, at: Instant, message: Bytes) {
        self.sent += 1;
        self.queue.insert((at, self.sent), message);
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// When the next message arrives.
    pub(super) fn next_arrival(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next message that has arrived.
    pub(super) fn arrived(&mut self, now: Instant) -> Option<Bytes> {
        self.queue.first_entry().filter(|entry| entry.key().0 <= now).map(|entry| entry.remove())
    }
}
