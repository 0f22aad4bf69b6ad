//! How much may be sent before it is acknowledged: what the path carries, and hardly any queue.
//!
//! Whatever is sent faster than the path takes it waits somewhere: in the buffers of a slow uplink, at the service, at
//! the agent. Requests of other streams, and the acknowledgements of a download, wait behind it. The time that messages
//! take to the agent shows such a queue, so the window grows while they get there about as fast as they ever have, and
//! shrinks when they take [`QUEUE_TARGET`] longer. Losses change nothing: they say nothing about a queue here, since
//! the transport is reliable and only replaced ones lose anything.
//!
//! Acknowledgements that wait in a queue on their way back, behind a download, say nothing of the way there. How long
//! they did is known by their dates, as far as clocks go: what takes longer by the round trip and by the dates as well
//! has taken longer on its way there. What was acknowledged in that time, but is not known to be, comes on top of the
//! window: the agent has it.
//!
//! The official client sends one message a millisecond, whatever the acknowledgements say.

use std::time::Duration;

/// How much longer than the shortest time a message may take before the window shrinks: what a burst of
/// [`INITIAL`] takes at the full message rate, and little enough for somebody who waits behind it.
const QUEUE_TARGET: Duration = Duration::from_millis(100);

/// The same as a part of what acknowledgements wait on their way back, if that is more: what is waited for is hardly later
/// then, and what a change of the window does is only seen so much later.
pub(super) const QUEUE_SHARE: u32 = 8;

/// What the window starts with, in bytes: enough for the full message rate on most paths.
const INITIAL: usize = 64 << 10;

/// What the window never falls below, in bytes.
const MIN: usize = 16 << 10;

/// By how much the window grows in a round trip once it has been too large: so many bytes, or this part of it if that is
/// more. A large one would take minutes to find a path again by steps of the same size.
const STEP: usize = 8 << 10;
const STEP_SHARE: usize = 16;

/// Most that may be on its way on top of the window, in bytes: what a copy has to be kept of.
pub(in super::super) const MAX_RETURNING: usize = 8 << 20;

/// The least time by the agent's clock over which its rate is measured, in milliseconds.
const RATE_SPAN_MS: i64 = 250;

/// How many measurements of the rate count.
const RATES: usize = 2;

/// How much more than was acknowledged in the time that acknowledgements wait may be on its way: what is measured is what
/// was sent, so it would never become more otherwise.
const RETURNING_GAIN: f64 = 1.25;

/// An acknowledgement of a message that was sent once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// Bytes of payload.
    pub(super) len: usize,
    pub(super) round_trip: Duration,
    /// Bytes of payload that were not acknowledged, these included.
    pub(super) in_flight: usize,
    /// The age of the acknowledgement by the two clocks, in milliseconds.
    pub(super) age_ms: Option<i64>,
    /// How long it has waited in queues on its way back.
    pub(super) lag: Duration,
}

/// The window, in bytes of payload.
#[derive(Debug, Clone)]
pub(super) struct Window {
    size: usize,
    limit: usize,
    /// It has been too large before: from then on it grows in steps.
    found: bool,
    /// The shortest round trip on this transport. It does not age: what is always queued would pass for the path then.
    base: Option<Duration>,
    /// The same to the agent only, by the two clocks, in milliseconds.
    base_there: Option<i64>,
    /// The least excess of the present round trip, and when that ends. A segment that TCP has to repeat holds up all that
    /// is behind it for a moment, which is no queue: that is what even the quickest message waits in.
    least_excess: Option<Duration>,
    /// How far excesses are from each other, smoothed: what a lossy path holds up varies, and a queue does not.
    swing: Duration,
    last_excess: Duration,
    judged_at: Duration,
    rate: Rate,
    /// What has been acknowledged and is not known to be.
    returning: usize,
}

/// How much the agent acknowledges a second, by its own clock: that does not depend on queues on the way back.
///
/// The most of the last few measurements counts: one that is too small would leave the path idle, and be true by that.
#[derive(Debug, Clone, Default)]
struct Rate {
    /// When the present measurement began, in milliseconds of the agent's clock, and what has been acknowledged since.
    since: Option<i64>,
    bytes: usize,
    /// In bytes a second.
    measured: [f64; RATES],
}

impl Rate {
    /// Takes note of an acknowledgement that was made at this time of the agent's clock, in milliseconds. A measurement
    /// takes so long.
    fn acknowledged(&mut self, created_ms: i64, len: usize, span_ms: i64) {
        let since = *self.since.get_or_insert(created_ms);
        self.bytes += len;
        let passed = created_ms.saturating_sub(since);
        if passed >= span_ms || passed < 0 {
            if passed > 0 {
                self.measured.rotate_right(1);
                self.measured[0] = self.bytes as f64 * 1000.0 / passed as f64;
            }
            (self.since, self.bytes) = (Some(created_ms), 0);
        }
    }

    fn bytes_per_second(&self) -> f64 {
        self.measured.into_iter().fold(0.0, f64::max)
    }
}

impl Window {
    /// Starts a window that never exceeds `limit`.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            size: INITIAL.min(limit),
            limit,
            found: false,
            base: None,
            base_there: None,
            least_excess: None,
            swing: Duration::ZERO,
            last_excess: Duration::ZERO,
            judged_at: Duration::ZERO,
            rate: Rate::default(),
            returning: 0,
        }
    }

    /// The window's limit: more where much is on its way back, as how much is only known about.
    fn limit(&self) -> usize {
        self.limit + self.returning / QUEUE_SHARE as usize
    }

    /// Returns how many bytes may be unacknowledged.
    pub(super) fn size(&self) -> usize {
        self.size + self.returning
    }

    /// Takes note of an acknowledgement.
    pub(super) fn acknowledged(&mut self, arrival: &Arrival, now: Duration) {
        let Arrival { len, round_trip, in_flight, age_ms, lag } = *arrival;
        let base = self.base.map_or(round_trip, |shortest| shortest.min(round_trip));
        self.base = Some(base);
        let mut excess = round_trip.saturating_sub(base);
        if let Some(age_ms) = age_ms {
            let there = i64::try_from(round_trip.as_millis()).unwrap_or(i64::MAX).saturating_sub(age_ms);
            let base_there = self.base_there.map_or(there, |shortest| shortest.min(there));
            self.base_there = Some(base_there);
            let longer = u64::try_from(there.saturating_sub(base_there)).unwrap_or_default();
            excess = excess.min(Duration::from_millis(longer));
            let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
            let span = i64::try_from((lag / QUEUE_SHARE).as_millis()).unwrap_or(i64::MAX).max(RATE_SPAN_MS);
            self.rate.acknowledged(now_ms.saturating_sub(age_ms), len, span);
        }
        self.returning =
            ((self.rate.bytes_per_second() * RETURNING_GAIN * lag.as_secs_f64()) as usize).min(MAX_RETURNING);
        let on_its_way = in_flight.saturating_sub(self.returning);
        self.swing = self.swing * 31 / 32 + self.last_excess.abs_diff(excess) / 32;
        self.last_excess = self.last_excess * 7 / 8 + excess / 8;
        let excess = excess.saturating_sub(QUEUE_TARGET.max(lag / QUEUE_SHARE) + 4 * self.swing);
        let least = self.least_excess.map_or(excess, |least| least.min(excess));
        self.least_excess = Some(least);
        if self.judged_at <= now {
            self.judged_at = now + round_trip;
            self.least_excess = None;
            if !least.is_zero() {
                self.found = true;
                // As much less as took too long, down to a half.
                let share = least.as_secs_f64() / round_trip.saturating_sub(lag).max(least).as_secs_f64();
                let size = self.size.min(on_its_way.max(MIN)) as f64 * (1.0 - share.min(0.5));
                self.size = (size as usize).max(MIN).min(self.limit());
                return;
            }
        }
        if excess.is_zero() && on_its_way >= self.size / 2 {
            // What is not used shows nothing, and does not grow.
            let growth = if self.found { (STEP * len / self.size.max(1)).max(len / STEP_SHARE) } else { len };
            self.size = (self.size + growth.max(1)).min(self.limit());
        }
    }

    /// Takes note that another transport is used from now on: what was known of the path is void.
    pub(super) fn reattached(&mut self) {
        self.base = None;
        self.base_there = None;
        self.least_excess = None;
        self.judged_at = Duration::ZERO;
        self.returning = 0;
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
            let arrival = Arrival {
                len: PAYLOAD,
                round_trip: at - sent,
                in_flight: (path.answers.len() + 1) * PAYLOAD,
                age_ms: None,
                lag: Duration::ZERO,
            };
            window.acknowledged(&arrival, now);
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

    /// What a path of 50 MB/s holds at 80 ms is sixteen times 256 KiB.
    #[test]
    fn a_fast_path_is_used_from_far_away_and_found_again_when_it_was_slow() {
        let mut window = Window::new(8 << 20);
        let time = Duration::from_secs(10);
        let (delivered, longest) = run(&mut window, &mut path(50_000.0, 80), Duration::ZERO, time);
        assert!(delivered > 45_000 * 10 * PAYLOAD, "{delivered} bytes in 10 s");
        assert!(longest < 3 * QUEUE_TARGET, "{longest:?}");
        run(&mut window, &mut path(500.0, 80), time, 3 * time);
        assert!(window.size() < 128 << 10, "{}", window.size());
        // By steps of 8 KiB in a round trip it would take a minute.
        let (delivered, _) = run(&mut window, &mut path(50_000.0, 80), 4 * time, 2 * time);
        assert!(delivered > 35_000 * 20 * PAYLOAD, "{delivered} bytes in 20 s");
    }

    #[test]
    fn a_slow_path_gets_no_long_queue() {
        for (rate, delay) in [(100.0, 30), (300.0, 5), (50.0, 100)] {
            let mut window = Window::new(256 << 10);
            let (delivered, longest) =
                run(&mut window, &mut path(rate, delay), Duration::ZERO, Duration::from_secs(60));
            // What is never undershot, 16 KiB, takes so long.
            let least = Duration::from_secs_f64((MIN / PAYLOAD) as f64 / rate);
            let limit = least.max(3 * QUEUE_TARGET);
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

    /// Acknowledgements of a path to the agent wait behind a download on their way back.
    #[test]
    fn a_queue_on_the_way_back_changes_nothing() {
        let (rate, delay) = (100.0, Duration::from_millis(30));
        for wait in [Duration::ZERO, Duration::from_secs(5), Duration::from_secs(30)] {
            let mut window = Window::new(256 << 10);
            let mut there = path(rate, 30);
            let mut back: VecDeque<(Duration, Duration, Duration)> = VecDeque::new();
            let (mut now, mut delivered, mut longest) = (Duration::ZERO, 0, Duration::ZERO);
            // The queue builds up within ten seconds, by and by.
            let lag_at = |made: Duration| wait.mul_f64((made.as_secs_f64() / 10.0).min(1.0));
            while now < Duration::from_secs(200) {
                while (there.answers.len() + back.len()) * PAYLOAD < window.size() {
                    there.send(now);
                    let (made, sent) = there.answers.pop_back().expect("it has just been sent");
                    back.push_back((made, sent, made + lag_at(made)));
                }
                let Some((made, sent, at)) = back.pop_front() else { break };
                now = at;
                let arrival = Arrival {
                    len: PAYLOAD,
                    round_trip: at - sent,
                    in_flight: (back.len() + 1) * PAYLOAD,
                    age_ms: Some((at - made).as_millis() as i64 - 1_700_000_000_000),
                    lag: at - made,
                };
                window.acknowledged(&arrival, now);
                if now > Duration::from_secs(100) {
                    delivered += PAYLOAD;
                    longest = longest.max(made - sent - delay);
                }
            }
            assert!(delivered as f64 > 0.9 * 100.0 * rate * PAYLOAD as f64, "{delivered} bytes with {wait:?}");
            assert!(longest < Duration::from_secs(1) + wait / 3, "{longest:?} with {wait:?}");
        }
    }

    #[test]
    fn an_agent_whose_clock_is_set_is_no_reason_to_shrink() {
        for jump in [-60_000_i64, 60_000] {
            let mut window = Window::new(256 << 10);
            let mut path = path(900.0, 20);
            let (mut now, mut delivered) = (Duration::ZERO, 0);
            while now < Duration::from_secs(20) {
                while path.answers.len() * PAYLOAD < window.size() {
                    path.send(now);
                }
                let Some((at, sent)) = path.answers.pop_front() else { break };
                now = at;
                let age_ms = 10 - if now > Duration::from_secs(5) { jump } else { 0 };
                let in_flight = (path.answers.len() + 1) * PAYLOAD;
                let arrival = Arrival {
                    len: PAYLOAD,
                    round_trip: at - sent,
                    in_flight,
                    age_ms: Some(age_ms),
                    lag: Duration::ZERO,
                };
                window.acknowledged(&arrival, now);
                delivered += PAYLOAD;
            }
            assert!(delivered > 850 * 20 * PAYLOAD, "{delivered} bytes with {jump} ms");
        }
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds(
            limit in 1_usize..1 << 20,
            acks in proptest::collection::vec(
                (1_usize..70_000, 0_u64..10_000, 0_usize..1 << 20, 0_u64..1000, any::<Option<i64>>(), 0_u64..300_000),
                1..200,
            ),
        ) {
            let mut window = Window::new(limit);
            let mut now = Duration::ZERO;
            for (len, round_trip, in_flight, pause, age_ms, lag) in acks {
                now += Duration::from_millis(pause);
                let (round_trip, lag) = (Duration::from_millis(round_trip), Duration::from_millis(lag));
                window.acknowledged(&Arrival { len, round_trip, in_flight, age_ms, lag }, now);
                prop_assert!(window.size <= limit && window.size >= MIN.min(limit));
                prop_assert!(window.size() <= limit + MAX_RETURNING);
            }
        }
    }
}
