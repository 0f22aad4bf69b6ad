//! When to ping a transport, and when to take it for dead.
//!
//! Pure: times go in, a decision comes out. A transport is dead when nothing at all has come for a
//! while after a ping, or, on a transport that has answered pings before, when the answers stay away
//! although data comes: then the way out is broken and only the way in is not.
//!
//! An idle transport may take its time. One on which an acknowledgement has not come for a moment is asked at
//! once, so that whoever uses the tunnel does not wait for the next round of pings.

use std::time::Duration;

use crate::proto::Now;

/// How often a ping goes out. Middleboxes drop connections that are idle for a minute.
const PING_INTERVAL: Duration = Duration::from_secs(25);

/// How long a ping may go without any sign of life: with the interval, 45 s at most to find a dead link.
const SILENCE_LIMIT: Duration = Duration::from_secs(19);

/// The same for a ping that is sent because something speaks for a dead link: an acknowledgement that stays
/// away, or clocks that say that the machine has slept.
const SUSPECT_LIMIT: Duration = Duration::from_secs(5);

/// How long an acknowledgement may stay away before the transport is suspected. Round trips take a second at most,
/// queues included.
const QUIET_LIMIT: Duration = Duration::from_secs(3);

/// How long the answer to a ping may stay away while other things come. Answers queue behind data.
const PONG_LIMIT: Duration = Duration::from_secs(60);

/// The same once an acknowledgement stays away as well: together they say that nothing gets out.
const MUTE_LIMIT: Duration = Duration::from_secs(10);

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
    /// Send a ping: an acknowledgement stays away.
    Suspect,
    /// Send a ping: the machine has slept.
    Slept,
    /// Give the transport up: nothing has been heard for this long.
    Silent(Duration),
    /// Give the transport up: a ping has gone unanswered for this long, though other things come.
    Mute(Duration),
}

/// Keeps watch over one transport.
#[derive(Debug)]
pub(super) struct Liveness {
    heard_at: Duration,
    pinged_at: Duration,
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
            pinged_at: now.mono,
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

    /// Returns what is due. A ping counts as sent. `waiting_since` says since when an acknowledgement has
    /// been waited for, if it is.
    pub(super) fn poll(&mut self, now: Now, waiting_since: Option<Duration>) -> Due {
        let offset = now.wall.saturating_sub(now.mono);
        let slept = offset > self.offset + SLEEP_THRESHOLD;
        self.offset = offset;
        if slept {
            self.asked = Some((now.mono, SUSPECT_LIMIT));
            self.pinged(now);
            return Due::Slept;
        }
        if self.dead_at(waiting_since).is_some_and(|at| at <= now.mono) {
            let unanswered = self.unanswered.filter(|_| self.asked.is_none());
            return match unanswered {
                Some(since) => Due::Mute(now.mono.saturating_sub(since)),
                None => Due::Silent(now.mono.saturating_sub(self.heard_at)),
            };
        }
        if self.suspect_at(waiting_since).is_some_and(|at| at <= now.mono) {
            self.asked.get_or_insert((now.mono, SUSPECT_LIMIT));
            self.pinged(now);
            return Due::Suspect;
        }
        if self.next_ping <= now.mono {
            self.asked.get_or_insert((now.mono, SILENCE_LIMIT));
            self.pinged(now);
            return Due::Ping;
        }
        Due::Nothing
    }

    fn pinged(&mut self, now: Now) {
        self.pinged_at = now.mono;
        self.next_ping = now.mono + PING_INTERVAL;
        self.unanswered.get_or_insert(now.mono);
    }

    /// When the transport is to be asked, as an acknowledgement stays away; a ping under way asks already.
    fn suspect_at(&self, waiting_since: Option<Duration>) -> Option<Duration> {
        let waiting_since = waiting_since?;
        let quiet = self.asked.is_none().then(|| waiting_since.max(self.heard_at) + QUIET_LIMIT);
        let mute = self.unanswered.is_none().then(|| waiting_since.max(self.pinged_at) + QUIET_LIMIT);
        [quiet, mute].into_iter().flatten().min()
    }

    fn dead_at(&self, waiting_since: Option<Duration>) -> Option<Duration> {
        // From when on an acknowledgement that stays away shortens the limits.
        let doubt = waiting_since.map(|since| since + QUIET_LIMIT);
        let within = |at: Duration, limit: Duration, in_doubt: Duration| {
            doubt.map_or(at + limit, |doubt| (at.max(doubt) + in_doubt).min(at + limit))
        };
        let silent = self.asked.map(|(at, limit)| within(at, limit, SUSPECT_LIMIT));
        let mute = self.unanswered.filter(|_| self.answers).map(|at| within(at, PONG_LIMIT, MUTE_LIMIT));
        [silent, mute].into_iter().flatten().min()
    }

    /// Returns when [`poll`](Self::poll) has something to say at the latest.
    pub(super) fn deadline(&self, waiting_since: Option<Duration>) -> Duration {
        let early = [self.dead_at(waiting_since), self.suspect_at(waiting_since)].into_iter().flatten();
        early.fold(self.next_ping, Duration::min)
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
        assert_eq!(liveness.poll(at(0.0), None), Due::Ping);
        liveness.answered(at(0.1));
        assert_eq!(liveness.poll(at(24.9), None), Due::Nothing);
        assert_eq!(liveness.deadline(None), Duration::from_secs(25));
        assert_eq!(liveness.poll(at(25.0), None), Due::Ping);
    }

    #[test]
    fn finds_a_dead_link_within_45_seconds() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), None), Due::Ping);
        liveness.answered(at(0.0));
        assert_eq!(liveness.poll(at(25.0), None), Due::Ping);
        assert_eq!(liveness.deadline(None), Duration::from_secs(44));
        assert_eq!(liveness.poll(at(43.9), None), Due::Nothing);
        assert_eq!(liveness.poll(at(44.0), None), Due::Silent(Duration::from_secs(44)));
    }

    #[test]
    fn anything_that_comes_is_a_sign_of_life() {
        let mut liveness = Liveness::new(at(0.0));
        for second in 0..200 {
            assert!(
                !matches!(liveness.poll(at(f64::from(second)), None), Due::Silent(_) | Due::Mute(_)),
                "a peer that never answers pings"
            );
            liveness.heard(at(f64::from(second)));
        }
    }

    #[test]
    fn answers_that_stay_away_behind_data_are_the_end_of_it() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), None), Due::Ping);
        liveness.answered(at(0.0));
        let dead = (1..200).find(|second| {
            let due = liveness.poll(at(f64::from(*second)), None);
            liveness.heard(at(f64::from(*second)));
            matches!(due, Due::Mute(_))
        });
        assert_eq!(dead, Some(85));
    }

    #[test]
    fn sleep_is_followed_by_a_ping_with_a_short_limit() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), None), Due::Ping);
        liveness.answered(at(0.0));
        let woken = |mono: f64| Now { wall: Duration::from_secs_f64(30_000.0 + mono), ..at(mono) };
        assert_eq!(liveness.poll(woken(3.0), None), Due::Slept);
        assert_eq!(liveness.poll(woken(3.1), None), Due::Nothing);
        assert_eq!(liveness.poll(woken(8.0), None), Due::Silent(Duration::from_secs(8)));
    }

    #[test]
    fn an_acknowledgement_that_stays_away_is_reason_to_ask() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), None), Due::Ping);
        liveness.answered(at(0.1));
        let waiting = Some(Duration::from_secs(2));
        assert_eq!(liveness.deadline(waiting), Duration::from_secs(5));
        assert_eq!(liveness.poll(at(4.9), waiting), Due::Nothing);
        assert_eq!(liveness.poll(at(5.0), waiting), Due::Suspect);
        assert_eq!(liveness.poll(at(9.9), waiting), Due::Nothing, "asked once");
        assert_eq!(liveness.deadline(waiting), Duration::from_secs(10));
        assert!(matches!(liveness.poll(at(10.0), waiting), Due::Silent(_)));
    }

    #[test]
    fn a_link_on_which_nothing_gets_out_is_given_up_though_data_comes() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), None), Due::Ping);
        liveness.answered(at(0.1));
        let waiting = Some(Duration::from_secs(20));
        let mut dues = Vec::new();
        for tenth in 200..400 {
            let now = at(f64::from(tenth) / 10.0);
            let due = liveness.poll(now, waiting);
            if due != Due::Nothing {
                dues.push((tenth / 10, due));
            }
            liveness.heard(now);
        }
        assert_eq!(dues[0], (23, Due::Suspect));
        assert!(matches!(dues[1], (33, Due::Mute(_))), "{dues:?}");
    }

    #[test]
    fn a_ping_under_way_answers_the_question() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), None), Due::Ping);
        liveness.answered(at(0.1));
        assert_eq!(liveness.poll(at(25.0), None), Due::Ping);
        let waiting = Some(Duration::from_secs(26));
        assert_eq!(liveness.poll(at(29.0), waiting), Due::Nothing, "asked already");
        assert_eq!(liveness.deadline(waiting), Duration::from_secs(34));
        assert_eq!(liveness.poll(at(33.9), waiting), Due::Nothing);
        assert!(matches!(liveness.poll(at(34.0), waiting), Due::Silent(_)));
    }

    #[test]
    fn a_slow_agent_behind_a_link_that_answers_is_not_the_links_fault() {
        let mut liveness = Liveness::new(at(0.0));
        let waiting = Some(Duration::ZERO);
        let mut pings = 0;
        for tenth in 0..3000 {
            let now = at(f64::from(tenth) / 10.0);
            match liveness.poll(now, waiting) {
                Due::Nothing => {}
                Due::Slept => panic!("nobody sleeps"),
                Due::Ping | Due::Suspect => {
                    pings += 1;
                    liveness.answered(now);
                }
                Due::Silent(after) | Due::Mute(after) => panic!("dead after {after:?}"),
            }
        }
        assert_eq!(pings, 100, "every three seconds");
    }

    #[test]
    fn a_clock_that_is_set_back_means_nothing() {
        let mut liveness = Liveness::new(at(100.0));
        assert_eq!(liveness.poll(at(100.0), None), Due::Ping);
        assert_eq!(liveness.poll(Now { wall: Duration::ZERO, ..at(101.0) }, None), Due::Nothing);
        assert_eq!(liveness.poll(Now { wall: Duration::from_secs(3), ..at(102.0) }, None), Due::Nothing);
    }
}
