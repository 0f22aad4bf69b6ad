//! A pause of publication: what is sent in it, and when it counts as the end of the session.
//!
//! The service sends a `pause_publication` for each message that it drops because the agent's transport is away, and one
//! when a client sends too much. It need not say when the pause is over: what says so may come from the agent alone, and an
//! agent with nothing to send has to be asked. So one message a second goes out all the same: the oldest that is not
//! acknowledged or, if there is none, a new one that means nothing. Its acknowledgement ends the pause.
//!
//! Source: observed on the service; the official client ignores pauses and so keeps asking.

use std::time::Duration;

/// How often a message is sent during a pause, to find out whether the agent is back.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A pause that lasts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    since: Duration,
    probe_at: Duration,
    /// When the agent was first asked in this pause.
    asked_at: Option<Duration>,
}

impl Pause {
    pub(super) fn new(now: Duration) -> Self {
        Self { since: now, probe_at: now + PROBE_INTERVAL, asked_at: None }
    }

    pub(super) fn since(&self) -> Duration {
        self.since
    }

    /// Returns when the next message is to be tried.
    pub(super) fn probe_at(&self) -> Duration {
        self.probe_at
    }

    /// Whether it is time to try a message. The next time is an interval later, whether there is one or not.
    pub(super) fn take_turn(&mut self, now: Duration) -> bool {
        let is_due = self.probe_at <= now;
        if is_due {
            self.probe_at = now + PROBE_INTERVAL;
        }
        is_due
    }

    /// Takes note that a message goes out which the agent has to acknowledge.
    pub(super) fn asked(&mut self, now: Duration) {
        self.asked_at.get_or_insert(now);
    }

    /// Returns from when on the pause counts against the session: its beginning, if the agent was asked in time, and
    /// nothing as long as it has not been asked at all.
    pub(super) fn unanswered_since(&self) -> Option<Duration> {
        self.asked_at.map(|asked_at| self.since.max(asked_at.saturating_sub(PROBE_INTERVAL)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_turn_comes_each_second_and_a_late_one_brings_no_others() {
        let mut pause = Pause::new(secs(10));
        assert_eq!(
            [10, 11, 11, 12, 20, 20, 21].map(|at| pause.take_turn(secs(at))),
            [false, true, false, true, true, false, true]
        );
        assert_eq!((pause.since(), pause.probe_at()), (secs(10), secs(22)));
    }

    #[test]
    fn counts_from_its_beginning_or_from_the_first_question() {
        let mut pause = Pause::new(secs(10));
        assert_eq!(pause.unanswered_since(), None);
        pause.asked(secs(11));
        pause.asked(secs(50));
        assert_eq!(pause.unanswered_since(), Some(secs(10)));
        let mut pause = Pause::new(secs(10));
        pause.asked(secs(100));
        assert_eq!(pause.unanswered_since(), Some(secs(99)));
    }
}
