//! Keeps a session below the message rate at which the service pauses and then closes it.
//!
//! A pause says that even so it was too much, so the rate falls, and comes back step by step.

use std::time::Duration;

/// A rate of messages that data waits for and acknowledgements only count against.
///
/// Acknowledgements never wait, so a fast download can spend the whole rate; data then still goes
/// out at [`FLOOR`] messages per second.
#[derive(Debug, Clone)]
pub(super) struct Pacer {
    all: Option<Bucket>,
    floor: Bucket,
    /// The rate of `all` while the service is content.
    full_rate: u32,
    /// When the rate next rises, if it has fallen.
    raise_at: Option<Duration>,
}

/// Messages per second that data gets whatever acknowledgements take.
const FLOOR: u32 = 100;

/// After a pause the rate rises at these intervals, each time by a twentieth of the full rate.
const RAISE_INTERVAL: Duration = Duration::from_secs(2);

impl Pacer {
    /// Keeps below `messages_per_second` in any one second; `None`: no limit.
    pub(super) fn new(messages_per_second: Option<u32>, now: Duration) -> Self {
        // What may go at once and what is refilled in a second add up to the limit.
        let all = messages_per_second.map(|limit| {
            let burst = (limit / 18).max(1);
            Bucket::new(limit.saturating_sub(burst).max(1), burst, now)
        });
        let floor = messages_per_second.unwrap_or(u32::MAX).min(FLOOR);
        let full_rate = all.as_ref().map_or(0, |all| all.rate);
        Self { all, floor: Bucket::new(floor, (floor / 10).max(1), now), full_rate, raise_at: None }
    }

    /// Takes note that the service has paused the session: from now on three quarters of the present rate have to do,
    /// but never less than [`FLOOR`]. Without a limit there is nothing to lower.
    pub(super) fn paused(&mut self, now: Duration) {
        if let Some(all) = &mut self.all {
            all.refill(now);
            all.rate = (all.rate / 4 * 3).max(FLOOR.min(self.full_rate));
            self.raise_at = Some(now + RAISE_INTERVAL);
        }
    }

    /// Raises the rate again, as far as it is time for it.
    fn recover(&mut self, now: Duration) {
        let Some(all) = &mut self.all else { return };
        while let Some(at) = self.raise_at.filter(|at| *at <= now) {
            all.refill(at);
            all.rate = (all.rate + (self.full_rate / 20).max(1)).min(self.full_rate);
            self.raise_at = (all.rate < self.full_rate).then_some(at + RAISE_INTERVAL);
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

    fn most_in_a_second(times: &[Duration]) -> usize {
        let mut start = 0;
        let mut most = 0;
        for (end, time) in times.iter().enumerate() {
            while *time - times[start] >= Duration::from_secs(1) {
                start += 1;
            }
            most = most.max(end + 1 - start);
        }
        most
    }

    #[test]
    fn never_more_than_the_limit_in_any_second() {
        for acks in [0, 10, 400, 700] {
            let (times, data) = run(900, acks, 20);
            let most = most_in_a_second(&times);
            assert!(most <= 901, "{most} messages in a second beside {acks} acks");
            assert!(times.len() > 840 * 20, "uses what it has: {} beside {acks} acks", times.len());
            assert!(data > 50 * 20, "{data}");
        }
    }

    #[test]
    fn data_keeps_its_floor_beside_a_fast_download() {
        let (_, data) = run(900, 2000, 10);
        assert!((990..=1060).contains(&data), "{data}");
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
        assert!((890..=901).contains(&in_a_second(&mut pacer, second(0))));
        pacer.paused(second(1));
        let lowered = in_a_second(&mut pacer, second(1));
        assert!((610..=660).contains(&lowered), "three quarters of 850: {lowered}");
        pacer.paused(second(2));
        pacer.paused(second(2));
        let lowered = in_a_second(&mut pacer, second(2));
        assert!((340..=380).contains(&lowered), "{lowered}");
        for at in 3..100 {
            let count = in_a_second(&mut pacer, second(at));
            assert!(count <= 901, "{count}");
        }
        assert!((845..=901).contains(&in_a_second(&mut pacer, second(100))));
        (0..100).for_each(|_| pacer.paused(second(101)));
        assert!(in_a_second(&mut pacer, second(102)) >= FLOOR);
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
