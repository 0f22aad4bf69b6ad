//! Keeps a session below the message rate at which the service pauses and then closes it.
//!
//! What the service tolerates is a rate over some time: it was seen to pause sessions with more than about 1000 messages a
//! second for more than two seconds (gimlet), while the official client sends up to 1000 data messages a second and any
//! number of acknowledgements beside them. So what a quiet session has not used may be used later, at up to twice the rate,
//! and so little of it that no two seconds in a row have more than 1000; in the long run the rate holds.
//!
//! A pause says that even so it was too much: then nothing is saved up any more, the rate falls, and comes back step by
//! step.

use std::time::Duration;

/// A rate of messages that data waits for and acknowledgements only count against.
///
/// Acknowledgements never wait, so a fast download can spend the whole rate; data then still goes
/// out at [`FLOOR`] messages per second.
#[derive(Debug, Clone)]
pub(super) struct Pacer {
    all: Option<Rates>,
    floor: Bucket,
    /// When the rate next rises, if it has fallen.
    raise_at: Option<Duration>,
}

/// The rate of a moment, and that of the long run.
#[derive(Debug, Clone)]
struct Rates {
    moment: Bucket,
    run: Bucket,
    /// The rate of `run` while the service is content.
    full_rate: u32,
    /// What `run` may save up at most, in messages, then and after a pause.
    saved: [u32; 2],
}

/// Messages per second that data gets whatever acknowledgements take.
const FLOOR: u32 = 100;

/// What may be saved up, in milliseconds at the limit: 600 messages of 900 a second. With up to 678 of them, no two seconds in
/// a row have more than 1000, wherever they begin. At twice the rate they last for 0.6 s, and for four seconds with one
/// request after the other.
const SAVED_MS: u32 = 667;

/// How many times the limit any one second may have.
const PEAK: u32 = 2;

/// After a pause the rate rises at these intervals, each time by a twentieth of the full rate.
const RAISE_INTERVAL: Duration = Duration::from_secs(2);

impl Rates {
    fn new(limit: u32, now: Duration) -> Self {
        // What may go at once and what is refilled in a second add up to the limit.
        let burst = (limit / 18).max(1);
        let rate = |limit: u32| limit.saturating_sub(burst).max(1);
        let saved = limit.saturating_mul(SAVED_MS) / 1000;
        Self {
            moment: Bucket::new(rate(limit.saturating_mul(PEAK)), burst, now),
            run: Bucket::new(rate(limit), saved, now),
            full_rate: rate(limit),
            saved: [saved, burst],
        }
    }

    fn refill(&mut self, now: Duration) {
        self.moment.refill(now);
        self.run.refill(now);
    }

    fn has_token(&self) -> bool {
        self.moment.has_token() && self.run.has_token()
    }

    fn spend(&mut self) {
        self.moment.spend();
        self.run.spend();
    }

    fn ready_at(&self) -> Duration {
        self.moment.ready_at().max(self.run.ready_at())
    }

    /// Changes the rate of the long run. Below the full one nothing to speak of is saved up.
    fn set_rate(&mut self, rate: u32, now: Duration) {
        self.run.refill(now);
        self.run.rate = rate.min(self.full_rate);
        let [content, after_a_pause] = self.saved;
        self.run.hold(if rate < self.full_rate { after_a_pause } else { content });
    }
}

impl Pacer {
    /// Keeps to `messages_per_second` in the long run, and below twice as much in any one second; `None`: no limit.
    pub(super) fn new(messages_per_second: Option<u32>, now: Duration) -> Self {
        let floor = messages_per_second.unwrap_or(u32::MAX).min(FLOOR);
        let all = messages_per_second.map(|limit| Rates::new(limit, now));
        Self { all, floor: Bucket::new(floor, (floor / 10).max(1), now), raise_at: None }
    }

    /// Takes note that the service has paused the session: from now on three quarters of the present rate have to do,
    /// but never less than [`FLOOR`], and nothing is saved up. Without a limit there is nothing to lower.
    pub(super) fn paused(&mut self, now: Duration) {
        if let Some(all) = &mut self.all {
            all.set_rate((all.run.rate / 4 * 3).max(FLOOR.min(all.full_rate)), now);
            self.raise_at = Some(now + RAISE_INTERVAL);
        }
    }

    /// Raises the rate again, as far as it is time for it.
    fn recover(&mut self, now: Duration) {
        let Some(all) = &mut self.all else { return };
        while let Some(at) = self.raise_at.filter(|at| *at <= now) {
            all.set_rate(all.run.rate + (all.full_rate / 20).max(1), at);
            self.raise_at = (all.run.rate < all.full_rate).then_some(at + RAISE_INTERVAL);
        }
    }

    /// Counts a message that does not wait.
    pub(super) fn count(&mut self, now: Duration) {
        self.recover(now);
        if let Some(all) = &mut self.all {
            all.refill(now);
            all.spend();
        }
    }

    /// Takes leave to send one message, if there is any left.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        self.recover(now);
        let Some(all) = &mut self.all else { return true };
        all.refill(now);
        self.floor.refill(now);
        if !all.has_token() && !self.floor.has_token() {
            return false;
        }
        all.spend();
        if self.floor.has_token() {
            self.floor.spend();
        }
        true
    }

    /// Returns when [`take`](Self::take) will succeed; a time in the past if it would now.
    pub(super) fn ready_at(&self) -> Duration {
        match &self.all {
            Some(all) => all.ready_at().min(self.floor.ready_at()),
            None => Duration::ZERO,
        }
    }
}

/// A token bucket that counts in billionths of a token, so that nothing is lost to rounding.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    rate: u32,
    burst: i64,
    /// Billionths of a token; negative after messages that did not wait.
    tokens: i64,
    refilled_at: Duration,
}

const TOKEN: i64 = 1_000_000_000;

impl Bucket {
    /// Refills `rate` tokens per second up to `burst`, and starts full.
    pub(super) fn new(rate: u32, burst: u32, now: Duration) -> Self {
        let burst = i64::from(burst) * TOKEN;
        Self { rate, burst, tokens: burst, refilled_at: now }
    }

    /// Takes a token if there is one.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        self.refill(now);
        let taken = self.has_token();
        if taken {
            self.spend();
        }
        taken
    }

    /// Returns when there will be a token.
    pub(super) fn ready_at(&self) -> Duration {
        let missing = u64::try_from(TOKEN - self.tokens).unwrap_or(0);
        self.refilled_at + Duration::from_nanos(missing.div_ceil(u64::from(self.rate)))
    }

    fn refill(&mut self, now: Duration) {
        let elapsed = i64::try_from(now.saturating_sub(self.refilled_at).as_nanos()).unwrap_or(i64::MAX);
        self.tokens = self.tokens.saturating_add(elapsed.saturating_mul(i64::from(self.rate))).min(self.burst);
        self.refilled_at = self.refilled_at.max(now);
    }

    /// Changes what it holds at most.
    fn hold(&mut self, burst: u32) {
        self.burst = i64::from(burst) * TOKEN;
        self.tokens = self.tokens.min(self.burst);
    }

    fn has_token(&self) -> bool {
        self.tokens >= TOKEN
    }

    /// Spends a token, into debt if need be; a debt is never more than a second's worth.
    fn spend(&mut self) {
        self.tokens = (self.tokens - TOKEN).max(-i64::from(self.rate) * TOKEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sends as much data as the pacer lets through; returns the times of all messages.
    fn run(limit: u32, acks_per_second: u32, seconds: u64) -> (Vec<Duration>, usize) {
        let mut pacer = Pacer::new(Some(limit), Duration::ZERO);
        let (mut sent, mut data) = (Vec::new(), 0);
        let ack_gap = 1_000_000_000 / u64::from(acks_per_second.max(1));
        let mut next_ack = if acks_per_second == 0 { u64::MAX } else { 0 };
        let mut now = Duration::ZERO;
        while now < Duration::from_secs(seconds) {
            if Duration::from_nanos(next_ack) <= now {
                pacer.count(now);
                sent.push(now);
                next_ack += ack_gap;
            } else if pacer.take(now) {
                sent.push(now);
                data += 1;
            } else {
                let next = pacer.ready_at().min(Duration::from_nanos(next_ack));
                assert!(next > now, "waits for a time to come");
                now = next;
            }
        }
        (sent, data)
    }

    fn most_within(seconds: u64, times: &[Duration]) -> usize {
        let mut start = 0;
        let mut most = 0;
        for (end, time) in times.iter().enumerate() {
            while *time - times[start] >= Duration::from_secs(seconds) {
                start += 1;
            }
            most = most.max(end + 1 - start);
        }
        most
    }

    #[test]
    fn what_was_saved_is_used_and_then_the_rate_holds() {
        for acks in [0, 10, 400, 700] {
            let (times, data) = run(900, acks, 60);
            let most = most_within(1, &times);
            assert!(most <= 1452, "{most} messages in a second beside {acks} acks");
            for seconds in [2, 5, 10, 60] {
                let most = most_within(seconds, &times);
                assert!(most as u64 <= 602 + 850 * seconds, "{most} messages in {seconds} s beside {acks} acks");
            }
            let saved = times.iter().take_while(|at| **at < Duration::from_secs(2)).count();
            assert!(saved > 2250, "uses what is saved: {saved} in the first two seconds beside {acks} acks");
            let later: Vec<_> = times.into_iter().filter(|at| *at > Duration::from_secs(10)).collect();
            let most = most_within(1, &later);
            assert!(most <= 901, "{most} messages in a later second beside {acks} acks");
            assert!(later.len() > 840 * 50, "uses what it has: {} beside {acks} acks", later.len());
            assert!(data > 50 * 60, "{data}");
        }
    }

    #[test]
    fn a_quiet_session_saves_for_its_next_burst() {
        let mut pacer = Pacer::new(Some(900), Duration::ZERO);
        for second in 0..10 {
            assert!(in_a_second(&mut pacer, Duration::from_secs(second)) >= 840);
        }
        assert!(in_a_second(&mut pacer, Duration::from_secs(20)) >= 1440);
    }

    /// What the service was seen to pause, wherever in a second a burst begins.
    #[test]
    fn no_two_seconds_in_a_row_have_more_than_a_thousand() {
        for start_ms in (0..1000).step_by(10) {
            let mut pacer = Pacer::new(Some(900), Duration::ZERO);
            let (mut now, mut counts) = (Duration::from_millis(start_ms), [0; 5]);
            while now < Duration::from_secs(5) {
                if pacer.take(now) {
                    counts[now.as_secs() as usize] += 1;
                } else {
                    now = pacer.ready_at();
                }
            }
            assert!(counts.windows(2).all(|pair| pair[0].min(pair[1]) <= 1000), "{counts:?} from {start_ms} ms on");
        }
    }

    #[test]
    fn data_keeps_its_floor_beside_a_fast_download() {
        let (_, data) = run(900, 2000, 10);
        // What is saved at the start goes to acknowledgements, too.
        assert!((990..=1160).contains(&data), "{data}");
    }

    #[test]
    fn no_limit_never_waits() {
        let mut pacer = Pacer::new(None, Duration::ZERO);
        pacer.paused(Duration::ZERO);
        assert!((0..100_000).all(|_| pacer.take(Duration::ZERO)));
    }

    /// Sends as much data as the pacer lets through in one second.
    fn in_a_second(pacer: &mut Pacer, start: Duration) -> u32 {
        let mut now = start;
        let mut count = 0;
        while now < start + Duration::from_secs(1) {
            if pacer.take(now) {
                count += 1;
            } else {
                now = pacer.ready_at();
            }
        }
        count
    }

    #[test]
    fn a_pause_lowers_the_rate_for_a_while() {
        let mut pacer = Pacer::new(Some(900), Duration::ZERO);
        let second = |at| Duration::from_secs(at);
        assert!((1440..=1452).contains(&in_a_second(&mut pacer, second(0))));
        pacer.paused(second(1));
        let lowered = in_a_second(&mut pacer, second(1));
        assert!((610..=690).contains(&lowered), "three quarters of 850, and nothing that was saved: {lowered}");
        pacer.paused(second(2));
        pacer.paused(second(2));
        let lowered = in_a_second(&mut pacer, second(2));
        assert!((340..=380).contains(&lowered), "{lowered}");
        for at in 3..100 {
            let count = in_a_second(&mut pacer, second(at));
            assert!(count <= 901, "{count}");
        }
        assert!((845..=901).contains(&in_a_second(&mut pacer, second(100))));
        assert!(in_a_second(&mut pacer, second(103)) > 1400, "the service is content again");
        (0..100).for_each(|_| pacer.paused(second(104)));
        assert!(in_a_second(&mut pacer, second(105)) >= FLOOR);
    }

    proptest! {
        #[test]
        fn the_stated_time_is_when_it_succeeds(limit in 1_u32..5000, counts in 0_usize..3000) {
            let mut pacer = Pacer::new(Some(limit), Duration::ZERO);
            (0..counts).for_each(|_| pacer.count(Duration::ZERO));
            for _ in 0..200 {
                let ready = pacer.ready_at();
                prop_assert!(pacer.take(ready));
            }
        }
    }
}
