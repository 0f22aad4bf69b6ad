//! How much may be sent before it is acknowledged: what the path carries, and hardly any queue.
//!
//! Whatever is sent faster than the path takes it waits somewhere: in the buffers of a slow uplink, at the service, at
//! the agent. Requests of other streams, and the acknowledgements of a download, wait behind it. The time that
//! acknowledgements take shows such a queue, so the window grows while they come about as fast as they ever have, and
//! shrinks when they take [`QUEUE_TARGET`] longer. Losses change nothing: they say nothing about a queue here, since
//! the transport is reliable and only replaced ones lose anything.
//!
//! The official client sends one message a millisecond, whatever the acknowledgements say.

use std::time::Duration;

/// How much longer than the shortest round trip an acknowledgement may take before the window shrinks: what a burst of
/// [`INITIAL`] takes at the full message rate, and little enough for somebody who waits behind it.
const QUEUE_TARGET: Duration = Duration::from_millis(100);

/// What the window starts with, in bytes: enough for the full message rate on most paths.
const INITIAL: usize = 64 << 10;

/// What the window never falls below, in bytes.
const MIN: usize = 16 << 10;

/// By how much the window grows in a round trip, in bytes, once it has been too large.
const STEP: usize = 8 << 10;

/// The window, in bytes of payload.
#[derive(Debug, Clone)]
pub(super) struct Window {
    size: usize,
    limit: usize,
    /// It has been too large before: from then on it grows in steps.
    found: bool,
    /// The shortest round trip on this transport. It does not age: what is always queued would pass for the path then.
    base: Option<Duration>,
    /// No further cut before this time, when acknowledgements show the effect of the last one.
    cut_until: Duration,
}

impl Window {
    /// Starts a window that never exceeds `limit`.
    pub(super) fn new(limit: usize) -> Self {
        Self { size: INITIAL.min(limit), limit, found: false, base: None, cut_until: Duration::ZERO }
    }

    /// Returns the window's size in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Takes note that `len` bytes were acknowledged after `round_trip`, while `in_flight` bytes, these included, were
    /// not. To be called for messages that were sent once.
    pub(super) fn acknowledged(&mut self, len: usize, round_trip: Duration, in_flight: usize, now: Duration) {
        let base = self.base.map_or(round_trip, |shortest| shortest.min(round_trip));
        self.base = Some(base);
        let excess = round_trip.saturating_sub(base + QUEUE_TARGET);
        if !excess.is_zero() {
            self.found = true;
            if self.cut_until <= now {
                // As much less as took too long, down to a half.
                let share = excess.as_secs_f64() / round_trip.as_secs_f64();
                let size = self.size.min(in_flight.max(MIN)) as f64 * (1.0 - share.min(0.5));
                self.size = (size as usize).max(MIN).min(self.limit);
                self.cut_until = now + round_trip;
            }
        } else if in_flight >= self.size / 2 {
            // What is not used shows nothing, and does not grow.
            let growth = if self.found { STEP * len / self.size.max(1) } else { len };
            self.size = (self.size + growth.max(1)).min(self.limit);
        }
    }

    /// Takes note that another transport is used from now on: what was known of the path is void.
    pub(super) fn reattached(&mut self) {
        self.base = None;
        self.cut_until = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const PAYLOAD: usize = 1024;

    /// A path that takes a message after another, each `1 / rate` seconds, and answers after `delay`.
    struct Path {
        rate: f64,
        delay: Duration,
        busy_until: Duration,
        /// When each message is acknowledged, and when it was sent.
        answers: VecDeque<(Duration, Duration)>,
    }

    impl Path {
        fn send(&mut self, now: Duration) {
            self.busy_until = self.busy_until.max(now) + Duration::from_secs_f64(1.0 / self.rate);
            self.answers.push_back((self.busy_until + self.delay, now));
        }
    }

    /// Sends as much as the window takes; returns the bytes delivered, and the longest queue in the second half.
    fn run(window: &mut Window, path: &mut Path, start: Duration, time: Duration) -> (usize, Duration) {
        let mut now = start;
        let (mut delivered, mut longest) = (0, Duration::ZERO);
        while now < start + time {
            while path.answers.len() * PAYLOAD < window.size() {
                path.send(now);
            }
            let Some((at, sent)) = path.answers.pop_front() else { break };
            now = at;
            window.acknowledged(PAYLOAD, at - sent, (path.answers.len() + 1) * PAYLOAD, now);
            delivered += PAYLOAD;
            if now > start + time / 2 {
                longest = longest.max(at - sent - path.delay);
            }
        }
        (delivered, longest)
    }

    fn path(rate: f64, delay_ms: u64) -> Path {
        let delay = Duration::from_millis(delay_ms);
        Path { rate, delay, busy_until: Duration::ZERO, answers: VecDeque::new() }
    }

    #[test]
    fn a_path_is_used_whatever_its_delay() {
        for delay in [1, 20, 80, 250] {
            let mut window = Window::new(256 << 10);
            let (delivered, _) = run(&mut window, &mut path(900.0, delay), Duration::ZERO, Duration::from_secs(20));
            // 256 KiB in 250 ms are still 900 messages a second.
            assert!(delivered > 850 * 20 * PAYLOAD, "{delivered} bytes in 20 s at {delay} ms");
        }
    }

    #[test]
    fn a_slow_path_gets_no_long_queue() {
        for (rate, delay) in [(100.0, 30), (300.0, 5), (50.0, 100)] {
            let mut window = Window::new(256 << 10);
            let (delivered, longest) =
                run(&mut window, &mut path(rate, delay), Duration::ZERO, Duration::from_secs(60));
            // What is never undershot, 16 KiB, takes so long.
            let least = Duration::from_secs_f64((MIN / PAYLOAD) as f64 / rate);
            let limit = least.max(2 * QUEUE_TARGET);
            assert!(longest <= limit, "{longest:?} at {rate}/s, at most {limit:?}");
            assert!(delivered as f64 > 0.9 * 60.0 * rate * PAYLOAD as f64, "{delivered} bytes at {rate}/s");
        }
    }

    #[test]
    fn follows_a_path_that_changes() {
        let mut window = Window::new(256 << 10);
        let (mut slow, time) = (path(50.0, 20), Duration::from_secs(30));
        run(&mut window, &mut slow, Duration::ZERO, time);
        assert_eq!(window.size(), MIN);
        window.reattached();
        let mut fast = path(5000.0, 20);
        let (delivered, _) = run(&mut window, &mut fast, 2 * time, time);
        assert!(delivered > 4000 * 30 * PAYLOAD, "{delivered}");
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(
            limit in 1_usize..1 << 20,
            acks in proptest::collection::vec((1_usize..70_000, 0_u64..10_000, 0_usize..1 << 20, 0_u64..1000), 1..200),
        ) {
            let mut window = Window::new(limit);
            let mut now = Duration::ZERO;
            for (len, round_trip, in_flight, pause) in acks {
                now += Duration::from_millis(pause);
                window.acknowledged(len, Duration::from_millis(round_trip), in_flight, now);
                prop_assert!(window.size() <= limit && window.size() >= MIN.min(limit));
            }
        }
    }
}
