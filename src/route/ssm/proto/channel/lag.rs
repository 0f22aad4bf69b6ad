//! How far what arrives is behind what the agent does: the time that it has waited in queues on its way.
//!
//! On a slow line everything waits behind the data that is before the bottleneck, acknowledgements and the answers to
//! pings included: that is no sign of trouble, and no limit may count it. Every message of an agent carries its date of
//! creation. How long ago that was says nothing by itself, as the agent has another clock, but the least of late says
//! how long an empty way takes, and what is more than that is queue.
//!
//! A repeat has the date of the first transmission, so only acknowledgements count, and messages with a higher number than
//! all before them on this transport which were made since it is there. What is not younger than the last says nothing
//! new, and what seems to be much older comes from a clock that has been set back.
//!
//! Source: `CreatedDate`, milliseconds since the Unix epoch, which both official programs fill in when they make a message
//! (`agentmessage.go` of amazon-ssm-agent 3.3.1142.0); neither reads it.

use std::time::Duration;

/// For how long at least, and at most twice as long, the least age counts. It has to be forgotten, as clocks drift and
/// are set; a queue that stands for longer passes for the way itself.
const LEAST_SPAN: Duration = Duration::from_secs(600);

/// The longest lag that is believed: a clock may have been set.
const MAX_LAG: Duration = Duration::from_secs(300);

/// How much older than what came before it something may seem without its clock having been set back, in milliseconds:
/// an agent's tasks overtake each other.
const DISORDER_MS: u64 = 1000;

/// How long it takes until half of a variation is forgotten.
const VARIATION_HALF_LIFE: Duration = Duration::from_secs(10);

/// What arrives, and how far it is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// How long the last message waited in queues, at most five minutes.
    pub behind: Duration,
    /// By how much messages have been held up lately, from one to the next.
    pub variation: Duration,
    /// The age of the last message by the two clocks, in milliseconds. Only differences mean something.
    pub age_ms: i64,
}

/// Measures the [`Lag`] of one session.
#[derive(Debug, Default)]
pub(super) struct LagMeter {
    lag: Lag,
    /// The least age of the present span and of the one before it, in milliseconds.
    least: Option<i64>,
    least_before: Option<i64>,
    span_ends: Duration,
    sampled_at: Duration,
    attached_at: Duration,
    /// The highest number on this transport, and the latest date.
    highest: i64,
    latest_ms: u64,
    /// How far the agent's clock has been set back on this transport, in milliseconds.
    set_back_ms: u64,
}

impl LagMeter {
    pub(super) fn new(now: Duration) -> Self {
        Self { span_ends: now + LEAST_SPAN, attached_at: now, highest: -1, ..Self::default() }
    }

    /// Takes note of a sequenced message.
    pub(super) fn message(&mut self, number: i64, created_ms: u64, now: Duration) {
        if number > self.highest {
            self.highest = number;
            self.sample(created_ms, now);
        }
    }

    /// Takes note of an acknowledgement. Returns its age by the two clocks, in milliseconds, if it has a date.
    pub(super) fn acknowledgement(&mut self, created_ms: u64, now: Duration) -> Option<i64> {
        self.sample(created_ms, now);
        age(created_ms, now)
    }

    fn sample(&mut self, created_ms: u64, now: Duration) {
        if created_ms > 0 && created_ms.saturating_add(self.set_back_ms).saturating_add(DISORDER_MS) < self.latest_ms {
            self.set_back_ms = self.latest_ms - created_ms;
        }
        let created_ms = if created_ms > 0 { created_ms.saturating_add(self.set_back_ms) } else { 0 };
        let Some(age_ms) = age(created_ms, now).filter(|_| created_ms > self.latest_ms) else { return };
        self.latest_ms = created_ms;
        if now >= self.span_ends {
            self.least_before = self.least.take();
            self.span_ends = now + LEAST_SPAN;
        }
        let least = self.least.map_or(age_ms, |least| least.min(age_ms));
        self.least = Some(least);
        let usual = self.least_before.map_or(least, |before| before.min(least));
        let behind = millis(age_ms.saturating_sub(usual)).min(MAX_LAG);
        if now < self.attached_at + behind {
            // It was made before this transport was there, which is why it is late.
            return;
        }
        let passed = now.saturating_sub(self.sampled_at).as_secs_f64() / VARIATION_HALF_LIFE.as_secs_f64();
        let held_up = behind.saturating_sub(self.lag.behind);
        let variation = self.lag.variation.mul_f64((-passed).exp2()).max(held_up);
        self.lag = Lag { behind, variation, age_ms };
        self.sampled_at = now;
    }

    /// Takes note that another transport is used from now on, in which nothing waits yet.
    pub(super) fn reattached(&mut self, now: Duration) {
        self.attached_at = now;
        (self.highest, self.latest_ms, self.set_back_ms) = (-1, 0, 0);
        self.lag.age_ms -= i64::try_from(self.lag.behind.as_millis()).unwrap_or_default();
        self.lag.behind = Duration::ZERO;
    }

    /// Returns what has been measured.
    pub(super) fn lag(&self) -> Lag {
        self.lag
    }
}

/// Age by the two clocks, in milliseconds; `None` for what has no date, as messages of the service.
fn age(created_ms: u64, now: Duration) -> Option<i64> {
    let created_ms = i64::try_from(created_ms).ok().filter(|created| *created > 0)?;
    let now_ms = i64::try_from(now.as_millis()).ok()?;
    Some(now_ms.saturating_sub(created_ms))
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What an agent's clock reads when ours reads 0, in milliseconds.
    const AGENT: u64 = 1_700_000_000_000;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A message of each 10 ms, from the first to the last, that takes so long.
    fn feed(meter: &mut LagMeter, numbers: std::ops::Range<u64>, takes: impl Fn(u64) -> u64) -> Vec<Lag> {
        let mut lags = Vec::new();
        for number in numbers {
            let created = 10 * number;
            meter.message(number as i64, AGENT + created, at(created + takes(number)));
            lags.push(meter.lag());
        }
        lags
    }

    #[test]
    fn a_queue_that_builds_up_and_drains_is_seen() {
        let mut meter = LagMeter::new(at(0));
        let lags = feed(&mut meter, 0..300, |n| 40 + if n < 150 { 50 * n } else { 50 * (300 - n) });
        assert_eq!(lags[0].behind, at(0));
        assert_eq!(lags[149].behind, at(50 * 149));
        assert_eq!(lags[299].behind, at(50));
        assert_eq!(lags[149].variation, at(50), "as much more each time, and no more");
    }

    #[test]
    fn a_stop_is_variation_which_is_forgotten() {
        let mut meter = LagMeter::new(at(0));
        // Nothing gets through from 1000 ms to 3000 ms, and then all at once.
        let lags = feed(&mut meter, 0..310, |n| if (100..300).contains(&n) { 3040 - 10 * n } else { 40 });
        assert_eq!(lags[100].behind, at(2000));
        assert_eq!(lags[100].variation, at(2000));
        assert_eq!(lags[309].behind, at(0));
        let later = feed(&mut meter, 310..3310, |_| 40).pop().unwrap();
        assert!((at(200)..at(300)).contains(&later.variation), "{later:?}");
    }

    #[test]
    fn repeats_and_what_was_made_before_the_transport_say_nothing() {
        let mut meter = LagMeter::new(at(0));
        feed(&mut meter, 0..100, |_| 40);
        meter.message(5, AGENT + 50, at(5000));
        assert_eq!(meter.lag().behind, at(0));
        meter.reattached(at(6000));
        // Lost with the last transport, and repeated on this one.
        meter.message(100, AGENT + 1000, at(6100));
        assert_eq!(meter.lag().behind, at(0));
        meter.message(101, AGENT + 6400, at(6500));
        assert_eq!(meter.lag().behind, at(60));
        assert_eq!(meter.acknowledgement(AGENT + 6450, at(6900)), Some(450 - AGENT as i64));
        assert_eq!(meter.lag().behind, at(410));
        meter.reattached(at(7000));
        assert_eq!(meter.lag().behind, at(0), "nothing waits in a new one");
    }

    #[test]
    fn what_has_no_date_is_ignored() {
        let mut meter = LagMeter::new(at(0));
        meter.message(0, 0, at(100));
        assert_eq!(meter.lag(), Lag::default());
        meter.message(1, u64::MAX, at(100));
        assert_eq!(meter.lag(), Lag::default());
    }

    #[test]
    fn clocks_that_are_set_or_stand_still_are_no_lag() {
        let mut meter = LagMeter::new(at(0));
        feed(&mut meter, 0..1000, |_| 40);
        for number in 1000..20_000_u64 {
            // A minute back; then a minute ahead.
            let set = if number < 10_000 { -60_000 } else { 60_000 };
            meter.message(number as i64, (AGENT + 10 * number).saturating_add_signed(set), at(10 * number + 40));
            assert!(meter.lag().behind <= at(10), "{number}: {:?}", meter.lag());
        }
        let mut meter = LagMeter::new(at(0));
        for number in 0..1000 {
            meter.message(number, 1, at(1000 * number as u64));
            assert_eq!(meter.lag().behind, at(0));
        }
    }

    #[test]
    fn drift_is_forgotten() {
        let mut meter = LagMeter::new(at(0));
        for second in 0..1_000_000_u64 {
            // 100 ppm too slow, for eleven days.
            meter.message(second as i64, AGENT + 1000 * second - second / 10, at(1000 * second + 40));
            assert!(meter.lag().behind <= at(121), "{:?}", meter.lag());
        }
    }

    proptest! {
        #[test]
        fn is_bounded_whatever_a_peer_says(
            steps in proptest::collection::vec((any::<i64>(), any::<u64>(), 0_u64..100_000, any::<bool>()), 1..100),
        ) {
            let mut meter = LagMeter::new(at(0));
            let mut now = 0;
            for (number, created, passed, reattached) in steps {
                now += passed;
                if reattached {
                    meter.reattached(at(now));
                }
                meter.message(number, created, at(now));
                let lag = meter.lag();
                prop_assert!(lag.behind <= MAX_LAG && lag.variation <= MAX_LAG);
            }
        }
    }
}
