//! When to ping a transport, and when to take it for dead.
//!
//! Pure: times go in, a decision comes out. A transport is dead when nothing at all has come for a
//! while after a ping, or, on a transport that has answered pings before, when the answers stay away
//! although data comes: then the way out is broken and only the way in is not.
//!
//! An idle transport may take its time. One on which an acknowledgement has not come for a moment is asked at
//! once, so that whoever uses the tunnel does not wait for the next round of pings.
//!
//! Answers wait behind the data that is on its way, which on a slow line is many seconds' worth. How long they would
//! take at present is known: the last one took as long as it did, and by the dates of messages what arrives is so much
//! later now than it was then. That time is no sign of anything, and is added to every limit.
//!
//! While data pours in, silence means something at once: the transport is asked after two round trips, and is dead if
//! nothing has come when an answer would have. How far messages have been held up lately is added to both.

use std::time::Duration;

use crate::route::ssm::proto::{Lag, Now};

/// How often a ping goes out. Middleboxes drop connections that are idle for a minute.
const PING_INTERVAL: Duration = Duration::from_secs(25);

/// How long a ping may go without any sign of life: with the interval, 45 s at most to find a dead link.
const SILENCE_LIMIT: Duration = Duration::from_secs(19);

/// The same for a ping that is sent because something speaks for a dead link: an acknowledgement that stays
/// away, or clocks that say that the machine has slept.
const SUSPECT_LIMIT: Duration = Duration::from_secs(5);

/// How long an acknowledgement may stay away before the transport is suspected. Round trips take a second at most.
const QUIET_LIMIT: Duration = Duration::from_secs(3);

/// How long the answer to a ping may stay away while other things come.
const PONG_LIMIT: Duration = Duration::from_secs(60);

/// The same once an acknowledgement stays away as well: together they say that nothing gets out.
const MUTE_LIMIT: Duration = Duration::from_secs(10);

/// How many messages have to have come one after the other for data to pour in, and how many of the usual pauses
/// between them are silence.
const POURING: u32 = 16;

/// What an answer is given at least: the lower bound that RFC 6298, 2.4, sets for time-outs. A segment of TCP that is lost
/// twice comes sooner.
const LEAST_ANSWER: Duration = Duration::from_secs(1);

/// How many times the variation a pause may last, as in the time-outs of RFC 6298.
const VARIATIONS: u32 = 4;

/// How far the wall clock may run ahead of the monotonic one, which stands still in sleep, before it
/// counts as sleep. Corrections of the clock are smaller, and a needless ping costs nothing.
const SLEEP_THRESHOLD: Duration = Duration::from_secs(5);

/// What is due on a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
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

/// What a session knows of its transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Signs {
    /// Since when an acknowledgement has been waited for, if it is.
    pub(super) waiting_since: Option<Duration>,
    /// How far what arrives is behind.
    pub(super) lag: Lag,
}

/// The answer to a ping.
#[derive(Debug, Clone, Copy)]
struct Answer {
    round_trip: Duration,
    /// The age of the last message before it, see [`Lag::age_ms`].
    age_ms: i64,
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
    /// The last answer to a ping, if the peer answers any.
    answer: Option<Answer>,
    /// The least that an answer has taken.
    shortest: Duration,
    /// How many messages have come since the last answer, at most [`POURING`], and the usual pause between them.
    poured: u32,
    pause: Duration,
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
            answer: None,
            shortest: Duration::MAX,
            poured: 0,
            pause: Duration::ZERO,
            offset: now.wall.saturating_sub(now.mono),
        }
    }

    /// Takes note that a message has come.
    pub(super) fn heard_message(&mut self, now: Now) {
        let pause = now.mono.saturating_sub(self.heard_at);
        self.pause = if self.poured == 0 { pause } else { self.pause * 7 / 8 + pause / 8 };
        self.poured = (self.poured + 1).min(POURING);
        self.heard(now);
    }

    /// Takes note that something has come.
    pub(super) fn heard(&mut self, now: Now) {
        self.heard_at = now.mono;
        self.asked = None;
    }

    /// Takes note that a ping has been answered, and of how far what arrives is behind.
    pub(super) fn answered(&mut self, now: Now, lag: Lag) {
        self.heard(now);
        if let Some(since) = self.unanswered.take() {
            let round_trip = now.mono.saturating_sub(since);
            self.answer = Some(Answer { round_trip, age_ms: lag.age_ms });
            self.shortest = self.shortest.min(round_trip);
        }
        // Whatever is silent now has been asked.
        self.poured = 0;
    }

    /// Takes note that nothing is read at present, so that nothing can be heard.
    pub(super) fn deafened(&mut self, now: Now) {
        (self.heard_at, self.asked, self.unanswered, self.poured) = (now.mono, None, None, 0);
    }

    /// Returns how much longer than over an empty way an answer would take at present.
    pub(super) fn lateness(&self, lag: Lag) -> Duration {
        let Some(Answer { round_trip, age_ms }) = self.answer else { return lag.behind };
        let later = u64::try_from(lag.age_ms.saturating_sub(age_ms)).unwrap_or_default();
        let by_answer = round_trip - self.shortest + Duration::from_millis(later);
        // Where dates say less, a queue has stood for so long that it passes for the way; where they say more, messages
        // wait at the service, where answers do not.
        by_answer.max(lag.behind)
    }

    /// Returns what is due. A ping counts as sent.
    pub(super) fn poll(&mut self, now: Now, signs: Signs) -> Due {
        let offset = now.wall.saturating_sub(now.mono);
        let slept = offset > self.offset + SLEEP_THRESHOLD;
        self.offset = offset;
        if slept {
            self.asked = Some((now.mono, SUSPECT_LIMIT));
            self.pinged(now);
            return Due::Slept;
        }
        if self.dead_at(signs).is_some_and(|at| at <= now.mono) {
            let unanswered = self.unanswered.filter(|_| self.asked.is_none());
            return match unanswered {
                Some(since) => Due::Mute(now.mono.saturating_sub(since)),
                None => Due::Silent(now.mono.saturating_sub(self.heard_at)),
            };
        }
        if self.suspect_at(signs).is_some_and(|at| at <= now.mono) {
            self.asked.get_or_insert((now.mono, SUSPECT_LIMIT));
            self.pinged(now);
            return Due::Suspect;
        }
        if let Some(silence) = self.silence(signs)
            && self.heard_at + silence <= now.mono
        {
            self.asked = Some((now.mono, silence.max(LEAST_ANSWER)));
            self.pinged(now);
            return Due::Ping;
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

    /// How long nothing may come while data pours in, if it does and the peer answers pings.
    fn silence(&self, signs: Signs) -> Option<Duration> {
        let pours = self.poured >= POURING && self.answer.is_some() && self.asked.is_none();
        pours.then(|| (2 * self.shortest).max(POURING * self.pause) + VARIATIONS * signs.lag.variation)
    }

    /// When the transport is to be asked, as an acknowledgement stays away; a ping under way asks already.
    fn suspect_at(&self, signs: Signs) -> Option<Duration> {
        let (waiting_since, limit) = (signs.waiting_since?, QUIET_LIMIT + self.lateness(signs.lag));
        let quiet = self.asked.is_none().then(|| waiting_since.max(self.heard_at) + limit);
        let mute = self.unanswered.is_none().then(|| waiting_since.max(self.pinged_at) + limit);
        [quiet, mute].into_iter().flatten().min()
    }

    fn dead_at(&self, signs: Signs) -> Option<Duration> {
        let late = self.lateness(signs.lag);
        // From when on an acknowledgement that stays away shortens the limits.
        let doubt = signs.waiting_since.map(|since| since + QUIET_LIMIT + late);
        let within = |at: Duration, limit: Duration, in_doubt: Duration| {
            doubt.map_or(at + limit, |doubt| (at.max(doubt) + in_doubt).min(at + limit)) + late
        };
        let silent = self.asked.map(|(at, limit)| within(at, limit, SUSPECT_LIMIT));
        let mute = self.unanswered.filter(|_| self.answer.is_some()).map(|at| within(at, PONG_LIMIT, MUTE_LIMIT));
        [silent, mute].into_iter().flatten().min()
    }

    /// Returns when [`poll`](Self::poll) has something to say at the latest.
    pub(super) fn deadline(&self, signs: Signs) -> Duration {
        let silence = self.silence(signs).map(|silence| self.heard_at + silence);
        let early = [self.dead_at(signs), self.suspect_at(signs), silence].into_iter().flatten();
        early.fold(self.next_ping, Duration::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn at(mono: f64) -> Now {
        Now { mono: Duration::from_secs_f64(mono), wall: Duration::from_secs_f64(1000.0 + mono) }
    }

    fn waiting_since(seconds: u64) -> Signs {
        Signs { waiting_since: Some(Duration::from_secs(seconds)), ..Signs::default() }
    }

    /// Lets a message come each 10 ms, from then to then.
    fn pour(liveness: &mut Liveness, from_ms: u32, to_ms: u32, lag: Lag) {
        for ms in (from_ms..to_ms).step_by(10) {
            let now = at(f64::from(ms) / 1000.0);
            liveness.heard_message(now);
            let due = liveness.poll(now, Signs { lag, waiting_since: None });
            assert!(matches!(due, Due::Nothing | Due::Ping), "{due:?} at {ms} ms");
        }
    }

    /// Polls each 10 ms from then on; returns what was due, and when.
    fn until_dead(liveness: &mut Liveness, from_ms: u32, signs: Signs) -> Vec<(u32, Due)> {
        let mut dues = Vec::new();
        for ms in (from_ms..from_ms + 100_000).step_by(10) {
            let due = liveness.poll(at(f64::from(ms) / 1000.0), signs);
            if due != Due::Nothing {
                dues.push((ms, due));
            }
            if matches!(due, Due::Silent(_) | Due::Mute(_)) {
                break;
            }
        }
        dues
    }

    #[test]
    fn silence_in_the_middle_of_a_transfer_is_asked_at_once_and_found_within_two_seconds() {
        for round_trip_ms in [10, 80, 300] {
            let mut liveness = Liveness::new(at(0.0));
            assert_eq!(liveness.poll(at(0.0), Signs::default()), Due::Ping);
            liveness.answered(at(f64::from(round_trip_ms) / 1000.0), Lag::default());
            pour(&mut liveness, 400, 5000, Lag::default());
            let dues = until_dead(&mut liveness, 5000, Signs::default());
            assert!(matches!(dues[..], [(_, Due::Ping), (6000..=7000, Due::Silent(_))]), "{round_trip_ms}: {dues:?}");
        }
    }

    #[test]
    fn the_end_of_a_transfer_costs_one_ping() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), Signs::default()), Due::Ping);
        liveness.answered(at(0.04), Lag::default());
        pour(&mut liveness, 100, 5000, Lag::default());
        let now = at(5.2);
        assert_eq!(liveness.poll(now, Signs::default()), Due::Ping);
        liveness.answered(at(5.24), Lag::default());
        assert_eq!(liveness.deadline(Signs::default()), now.mono + PING_INTERVAL);
    }

    #[test]
    fn a_peer_that_answers_no_pings_is_not_asked_in_silence() {
        let mut liveness = Liveness::new(at(0.0));
        pour(&mut liveness, 0, 5000, Lag::default());
        let dues = until_dead(&mut liveness, 5000, Signs::default());
        assert!(matches!(dues[..], [(25_000, Due::Ping), (44_000, Due::Silent(_))]), "{dues:?}");
    }

    #[test]
    fn a_way_that_has_held_messages_up_may_do_so_again() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), Signs::default()), Due::Ping);
        liveness.answered(at(0.04), Lag::default());
        let lag = Lag { variation: Duration::from_secs(1), ..Lag::default() };
        pour(&mut liveness, 100, 5000, lag);
        let dues = until_dead(&mut liveness, 5000, Signs { lag, waiting_since: None });
        assert!(matches!(dues[..], [(9000.., Due::Ping), (13_000.., Due::Silent(_))]), "{dues:?}");
    }

    /// On a line that is 30 s behind, nothing that stays away for less means anything, whatever is waited for.
    #[test]
    fn a_line_that_lags_is_not_dead() {
        let mut liveness = Liveness::new(at(0.0));
        let (mut asked, mut pings) = (VecDeque::new(), 0);
        for ms in (0_u32..300_000).step_by(20) {
            let now = at(f64::from(ms) / 1000.0);
            let behind = Duration::from_millis(u64::from(ms) / 10 * 9).min(Duration::from_secs(30));
            let lag = Lag { behind, variation: Duration::from_millis(20), age_ms: behind.as_millis() as i64 };
            liveness.heard_message(now);
            while asked.front().is_some_and(|(_, at)| *at <= now.mono) {
                asked.pop_front();
                liveness.answered(now, lag);
            }
            // The oldest acknowledgement that is missing is as old as the queue.
            let signs = Signs { lag, waiting_since: Some(now.mono.saturating_sub(behind)) };
            match liveness.poll(now, signs) {
                Due::Nothing => {}
                Due::Ping | Due::Suspect => {
                    pings += 1;
                    asked.push_back((now.mono, now.mono + behind));
                }
                due @ (Due::Slept | Due::Silent(_) | Due::Mute(_)) => panic!("{due:?} at {ms} ms"),
            }
            assert!(liveness.lateness(lag) < Duration::from_secs(62), "{:?}", liveness.lateness(lag));
        }
        assert!(pings < 20, "{pings}");
    }

    #[test]
    fn what_is_not_read_says_nothing() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), Signs::default()), Due::Ping);
        liveness.answered(at(0.04), Lag::default());
        pour(&mut liveness, 100, 5000, Lag::default());
        assert_eq!(liveness.poll(at(5.2), Signs::default()), Due::Ping);
        for second in 6..300 {
            liveness.deafened(at(f64::from(second)));
            let due = liveness.poll(at(f64::from(second)), Signs::default());
            assert!(matches!(due, Due::Nothing | Due::Ping), "{due:?}");
        }
    }

    #[test]
    fn pings_at_once_and_every_25_seconds() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), Signs::default()), Due::Ping);
        liveness.answered(at(0.1), Lag::default());
        assert_eq!(liveness.poll(at(24.9), Signs::default()), Due::Nothing);
        assert_eq!(liveness.deadline(Signs::default()), Duration::from_secs(25));
        assert_eq!(liveness.poll(at(25.0), Signs::default()), Due::Ping);
    }

    #[test]
    fn finds_a_dead_link_within_45_seconds() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), Signs::default()), Due::Ping);
        liveness.answered(at(0.0), Lag::default());
        assert_eq!(liveness.poll(at(25.0), Signs::default()), Due::Ping);
        assert_eq!(liveness.deadline(Signs::default()), Duration::from_secs(44));
        assert_eq!(liveness.poll(at(43.9), Signs::default()), Due::Nothing);
        assert_eq!(liveness.poll(at(44.0), Signs::default()), Due::Silent(Duration::from_secs(44)));
    }

    #[test]
    fn anything_that_comes_is_a_sign_of_life() {
        let mut liveness = Liveness::new(at(0.0));
        for second in 0..200 {
            assert!(
                !matches!(liveness.poll(at(f64::from(second)), Signs::default()), Due::Silent(_) | Due::Mute(_)),
                "a peer that never answers pings"
            );
            liveness.heard_message(at(f64::from(second)));
        }
    }

    #[test]
    fn answers_that_stay_away_behind_data_are_the_end_of_it() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), Signs::default()), Due::Ping);
        liveness.answered(at(0.0), Lag::default());
        let dead = (1..200).find(|second| {
            let due = liveness.poll(at(f64::from(*second)), Signs::default());
            liveness.heard(at(f64::from(*second)));
            matches!(due, Due::Mute(_))
        });
        assert_eq!(dead, Some(85));
    }

    #[test]
    fn sleep_is_followed_by_a_ping_with_a_short_limit() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), Signs::default()), Due::Ping);
        liveness.answered(at(0.0), Lag::default());
        let woken = |mono: f64| Now { wall: Duration::from_secs_f64(30_000.0 + mono), ..at(mono) };
        assert_eq!(liveness.poll(woken(3.0), Signs::default()), Due::Slept);
        assert_eq!(liveness.poll(woken(3.1), Signs::default()), Due::Nothing);
        assert_eq!(liveness.poll(woken(8.0), Signs::default()), Due::Silent(Duration::from_secs(8)));
    }

    #[test]
    fn an_acknowledgement_that_stays_away_is_reason_to_ask() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), Signs::default()), Due::Ping);
        liveness.answered(at(0.1), Lag::default());
        let waiting = waiting_since(2);
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
        assert_eq!(liveness.poll(at(0.0), Signs::default()), Due::Ping);
        liveness.answered(at(0.1), Lag::default());
        let waiting = waiting_since(20);
        let mut dues = Vec::new();
        for tenth in 200..400 {
            let now = at(f64::from(tenth) / 10.0);
            let due = liveness.poll(now, waiting);
            if due != Due::Nothing {
                dues.push((tenth / 10, due));
            }
            liveness.heard_message(now);
        }
        assert_eq!(dues[0], (23, Due::Suspect));
        assert!(matches!(dues[1], (33, Due::Mute(_))), "{dues:?}");
    }

    #[test]
    fn a_ping_under_way_answers_the_question() {
        let mut liveness = Liveness::new(at(0.0));
        assert_eq!(liveness.poll(at(0.0), Signs::default()), Due::Ping);
        liveness.answered(at(0.1), Lag::default());
        assert_eq!(liveness.poll(at(25.0), Signs::default()), Due::Ping);
        let waiting = waiting_since(26);
        assert_eq!(liveness.poll(at(29.0), waiting), Due::Nothing, "asked already");
        assert_eq!(liveness.deadline(waiting), Duration::from_secs(34));
        assert_eq!(liveness.poll(at(33.9), waiting), Due::Nothing);
        assert!(matches!(liveness.poll(at(34.0), waiting), Due::Silent(_)));
    }

    #[test]
    fn a_slow_agent_behind_a_link_that_answers_is_not_the_links_fault() {
        let mut liveness = Liveness::new(at(0.0));
        let waiting = waiting_since(0);
        let mut pings = 0;
        for tenth in 0..3000 {
            let now = at(f64::from(tenth) / 10.0);
            match liveness.poll(now, waiting) {
                Due::Nothing => {}
                Due::Slept => panic!("nobody sleeps"),
                Due::Ping | Due::Suspect => {
                    pings += 1;
                    liveness.answered(now, Lag::default());
                }
                Due::Silent(after) | Due::Mute(after) => panic!("dead after {after:?}"),
            }
        }
        assert_eq!(pings, 100, "every three seconds");
    }

    #[test]
    fn a_clock_that_is_set_back_means_nothing() {
        let mut liveness = Liveness::new(at(100.0));
        assert_eq!(liveness.poll(at(100.0), Signs::default()), Due::Ping);
        assert_eq!(liveness.poll(Now { wall: Duration::ZERO, ..at(101.0) }, Signs::default()), Due::Nothing);
        assert_eq!(liveness.poll(Now { wall: Duration::from_secs(3), ..at(102.0) }, Signs::default()), Due::Nothing);
    }
}
