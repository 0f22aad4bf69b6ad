//! When to ping a transport, and when to take it for dead.
//!
//! Pure: times go in, a decision comes out. A transport is dead when nothing at all has come for a
//! while after a ping, or, on a transport that has answered pings before, when the answers stay away
//! although data comes: then the way out is broken and only the way in is not.

use std::time::Duration;

use crate::proto::Now;

/// How often a ping goes out. Middleboxes drop connections that are idle for a minute.
const PING_INTERVAL: Duration = Duration::from_secs(25);

/// How long a ping may go without any sign of life: with the interval, 45 s at most to find a dead link.
const SILENCE_LIMIT: Duration = Duration::from_secs(19);

/// The same for a ping that is sent because the clocks say that the machine has slept.
const WAKE_UP_LIMIT: Duration = Duration::from_secs(5);

/// How long the answer to a ping may stay away while other things come. Answers queue behind data.
const PONG_LIMIT: Duration = Duration::from_secs(60);

/// How far the wall clock may run ahead of the monotonic one, which stands still in sleep, before it
/// counts as sleep. Corrections of the clock are smaller, and a needless ping costs nothing.
const SLEEP_THRESHOLD: Duration = Duration::from_secs(5);

/// What is due on a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing yet.
    Nothing,
    /// Send a ping.
    Ping,
    /// Give the transport up: nothing has been heard for this long.
    Dead(Duration),
}

/// Keeps watch over one transport.
#[derive(Debug)]
pub(super) struct Liveness {
    heard_at: Duration,
    next_ping: Duration,
    /// When the oldest ping that nothing has followed was sent, and how long it may go unanswered.
    asked: Option<(Duration, Duration)>,
    /// When the oldest ping that no pong has answered was sent.
    unanswered: Option<Duration>,
    /// Whether the peer answers pings at all.
    answers: bool,
    /// The last difference of the clocks: wall minus monotonic.
    offset: Duration,
}

impl Liveness {
    /// Starts with a fresh transport. The first ping is due at once.
    pub(super) fn new(now: Now) -> Self {
        Self {
            heard_at: now.mono,
            next_ping: now.mono,
            asked: None,
            unanswered: None,
            answers: false,
            offset: now.wall.saturating_sub(now.mono),
        }
    }

    /// Takes note that something has come.
    pub(super) fn heard(&mut self, now: Now) {
        self.heard_at = now.mono;
        self.asked = None;
    }

    /// Takes note that a ping has been answered.
    pub(super) fn answered(&mut self, now: Now) {
        self.heard(now);
        self.answers = true;
        self.unanswered = None;
    }

    /// Returns what is due. [`Due::Ping`] counts as sent.
    pub(super) fn poll(&mut self, now: Now) -> Due {
        let offset = now.wall.saturating_sub(now.mono);
        let slept = offset > self.offset + SLEEP_THRESHOLD;
        self.offset = offset;
        if slept {
            self.asked = Some((now.mono, WAKE_UP_LIMIT));
            return self.ping(now);
        }
        if self.dead_at().is_some_and(|at| at <= now.mono) {
            return Due::Dead(now.mono.saturating_sub(self.heard_at));
        }
        if self.next_ping <= now.mono {
            self.asked.get_or_insert((now.mono, SILENCE_LIMIT));
            return self.ping(now);
        }
        Due::Nothing
    }

    fn ping(&mut self, now: Now) -> Due {
        self.next_ping = now.mono + PING_INTERVAL;
        self.unanswered.get_or_insert(now.mono);
        Due::Ping
    }

    fn dead_at(&self) -> Option<Duration> {
        let silent = self.asked.map(|(at, limit)| at + limit);
        let one_way = self.unanswered.filter(|_| self.answers).map(|at| at + PONG_LIMIT);
        [silent, one_way].into_iter().flatten().min()
    }

    /// Returns when [`poll`](Self::poll) has something to say at the latest.
    pub(super) fn deadline(&self) -> Duration {
        self.dead_at().map_or(self.next_ping, |at| at.min(self.next_ping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono: f64) -> Now {
        Now { mono: Duration::from_secs_f64(mono), wall: Duration::from_secs_f64(1000.0 + mono) }
    }

    #[test]
    fn pings_at_once_and_every_25_seconds() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0)), Due::Ping);
        liveness.answered(at(0.1));
        assert_eq!(liveness.poll(at(24.9)), Due::Nothing);
        assert_eq!(liveness.deadline(), Duration::from_secs(25));
        assert_eq!(liveness.poll(at(25.0)), Due::Ping);
    }

    #[test]
    fn finds_a_dead_link_within_45_seconds() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0)), Due::Ping);
        liveness.answered(at(0.0));
        assert_eq!(liveness.poll(at(25.0)), Due::Ping);
        assert_eq!(liveness.deadline(), Duration::from_secs(44));
        assert_eq!(liveness.poll(at(43.9)), Due::Nothing);
        assert_eq!(liveness.poll(at(44.0)), Due::Dead(Duration::from_secs(44)));
    }

    #[test]
    fn anything_that_comes_is_a_sign_of_life() {
        let mut liveness = Liveness::new(at(0.0));
        for second in 0..200 {
            assert!(!matches!(liveness.poll(at(f64::from(second))), Due::Dead(_)), "a peer that never answers pings");
            liveness.heard(at(f64::from(second)));
        }
    }

    #[test]
    fn answers_that_stay_away_behind_data_are_the_end_of_it() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0)), Due::Ping);
        liveness.answered(at(0.0));
        let dead = (1..200).find(|second| {
            let due = liveness.poll(at(f64::from(*second)));
            liveness.heard(at(f64::from(*second)));
            matches!(due, Due::Dead(_))
        });
        assert_eq!(dead, Some(85));
    }

    #[test]
    fn sleep_is_followed_by_a_ping_with_a_short_limit() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0)), Due::Ping);
        liveness.answered(at(0.0));
        let woken = |mono: f64| Now { wall: Duration::from_secs_f64(30_000.0 + mono), ..at(mono) };
        assert_eq!(liveness.poll(woken(3.0)), Due::Ping);
        assert_eq!(liveness.poll(woken(3.1)), Due::Nothing);
        assert_eq!(liveness.poll(woken(8.0)), Due::Dead(Duration::from_secs(8)));
    }

    #[test]
    fn a_clock_that_is_set_back_means_nothing() {
        let mut liveness = Liveness::new(at(100.0));
        assert_eq!(liveness.poll(at(100.0)), Due::Ping);
        assert_eq!(liveness.poll(Now { wall: Duration::ZERO, ..at(101.0) }), Due::Nothing);
        assert_eq!(liveness.poll(Now { wall: Duration::from_secs(3), ..at(102.0) }), Due::Nothing);
    }
}
