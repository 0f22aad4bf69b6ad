//! Whether an agent is still there that nobody asks: for sessions whose destination is never probed.
//!
//! Pure: times go in, a decision comes out. Pings are answered by the gateway, whatever has become of the agent. An agent
//! acknowledges every message with data, before its destination has any part in it. So after a while in which nothing has come
//! from the agent, it is sent something that means nothing, and an agent that acknowledges nothing has gone.
//!
//! One whose destination does not read stops acknowledging as well, once some megabytes wait there. After a large upload
//! silence has to last much longer to mean anything.

use std::time::Duration;

use super::proto::Now;

/// How long nothing comes from the agent before it is asked. With [`ANSWER_LIMIT`] this is less than 20 s.
const QUIET: Duration = Duration::from_secs(7);

/// How long an acknowledgement may stay away. By then a transport that does not answer pings has been given up.
const ANSWER_LIMIT: Duration = Duration::from_secs(11);

/// The same after a large upload, whose destination may be slow to read it.
const UPLOAD_LIMIT: Duration = Duration::from_secs(90);

/// An upload that is large, in bytes: an agent keeps megabytes for a destination that does not read.
const LARGE_UPLOAD: u64 = 256 << 10;

/// How long a large upload counts as such.
const UPLOAD_COUNTS: Duration = Duration::from_secs(60);

/// What is to be done about the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// Send it something that it has to acknowledge.
    Ask,
    /// Give the session up: it has acknowledged nothing for this long.
    Gone(Duration),
}

/// What a session knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Signs {
    /// Since when an acknowledgement has been waited for, if it is.
    pub(super) waiting_since: Option<Duration>,
    /// Bytes of connections that have been sent.
    pub(super) sent: u64,
    /// How much later than usual answers come.
    pub(super) lateness: Duration,
}

/// Keeps watch over the agent of one session.
#[derive(Debug)]
pub(super) struct Vigil {
    /// When something last came from the agent, or could not have.
    heard_at: Duration,
    asked_at: Option<Duration>,
    /// From when on bytes are counted, and how many had been sent then.
    counted_from: (Duration, u64),
    /// When an upload was last found to be large.
    uploaded_at: Option<Duration>,
}

impl Vigil {
    pub(super) fn new(now: Now) -> Self {
        Self { heard_at: now.mono, asked_at: None, counted_from: (now.mono, 0), uploaded_at: None }
    }

    /// Takes note that something has come, or that nothing could.
    pub(super) fn heard(&mut self, now: Now) {
        (self.heard_at, self.asked_at) = (now.mono, None);
    }

    /// Returns what is due.
    pub(super) fn poll(&mut self, now: Now, signs: Signs) -> Due {
        let (from, before) = self.counted_from;
        if signs.sent.saturating_sub(before) >= LARGE_UPLOAD {
            (self.uploaded_at, self.counted_from) = (Some(now.mono), (now.mono, signs.sent));
        } else if from + UPLOAD_COUNTS <= now.mono {
            self.counted_from = (now.mono, signs.sent);
        }
        if let Some(at) = self.gone_at(signs) {
            return if at <= now.mono { Due::Gone(now.mono.saturating_sub(self.heard_at)) } else { Due::Nothing };
        }
        if self.ask_at() <= now.mono {
            self.asked_at = Some(now.mono);
            return Due::Ask;
        }
        Due::Nothing
    }

    fn ask_at(&self) -> Duration {
        self.heard_at.max(self.asked_at.unwrap_or_default()) + QUIET
    }

    /// When the agent counts as gone, if an acknowledgement is waited for.
    fn gone_at(&self, signs: Signs) -> Option<Duration> {
        let since = signs.waiting_since?;
        let has_uploaded = self.uploaded_at.is_some_and(|at| at + UPLOAD_COUNTS >= since.min(self.heard_at));
        let limit = if has_uploaded { UPLOAD_LIMIT } else { ANSWER_LIMIT };
        Some(since.max(self.heard_at) + limit + signs.lateness)
    }

    /// Returns when [`poll`](Self::poll) has something to say at the latest.
    pub(super) fn deadline(&self, signs: Signs) -> Duration {
        self.gone_at(signs).unwrap_or_else(|| self.ask_at())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Now {
        let mono = Duration::from_secs_f64(seconds);
        Now { mono, wall: mono }
    }

    /// Polls each 100 ms; returns what was due, and when. What is asked is waited for from then on, and answered after
    /// `answer` if that is something.
    fn watch(vigil: &mut Vigil, from: u32, to: u32, sent: u64, answer: Option<f64>) -> Vec<(u32, Due)> {
        let (mut dues, mut waiting) = (Vec::new(), None::<f64>);
        for tenth in from * 10..to * 10 {
            let now = f64::from(tenth) / 10.0;
            if let (Some(since), Some(answer)) = (waiting, answer)
                && since + answer <= now
            {
                waiting = None;
                vigil.heard(at(now));
            }
            let signs = Signs { waiting_since: waiting.map(Duration::from_secs_f64), sent, ..Signs::default() };
            match vigil.poll(at(now), signs) {
                Due::Nothing => {}
                due @ (Due::Ask | Due::Gone(_)) => {
                    dues.push((tenth, due));
                    waiting = waiting.or(Some(now));
                }
            }
            if matches!(dues.last(), Some((_, Due::Gone(_)))) {
                break;
            }
        }
        dues
    }

    #[test]
    fn an_agent_that_acknowledges_nothing_is_found_within_20_seconds() {
        let mut vigil = Vigil::new(at(0.0));
        let dues = watch(&mut vigil, 0, 100, 0, None);
        assert!(matches!(dues[..], [(70, Due::Ask), (180, Due::Gone(_))]), "{dues:?}");
    }

    #[test]
    fn one_that_answers_is_asked_now_and_then() {
        let mut vigil = Vigil::new(at(0.0));
        let dues = watch(&mut vigil, 0, 72, 0, Some(0.2));
        assert_eq!(dues.len(), 10, "{dues:?}");
        assert!(dues.iter().all(|(_, due)| *due == Due::Ask), "{dues:?}");
    }

    #[test]
    fn one_that_is_heard_is_not_asked() {
        let mut vigil = Vigil::new(at(0.0));
        for second in 0..300 {
            vigil.heard(at(f64::from(second)));
            assert_eq!(vigil.poll(at(f64::from(second) + 0.9), Signs::default()), Due::Nothing);
        }
    }

    #[test]
    fn a_destination_that_is_slow_to_read_an_upload_has_more_time() {
        let mut vigil = Vigil::new(at(0.0));
        let signs = Signs { waiting_since: Some(Duration::ZERO), sent: 300 << 10, ..Signs::default() };
        assert_eq!(vigil.poll(at(1.0), signs), Due::Nothing);
        assert_eq!(vigil.deadline(signs), Duration::from_secs(90));
        assert_eq!(vigil.poll(at(89.0), signs), Due::Nothing);
        assert!(matches!(vigil.poll(at(90.0), signs), Due::Gone(_)));
    }

    #[test]
    fn what_was_sent_long_ago_is_no_excuse() {
        let mut vigil = Vigil::new(at(0.0));
        let sent = 300 << 10;
        assert_eq!(vigil.poll(at(1.0), Signs { sent, ..Signs::default() }), Due::Nothing);
        vigil.heard(at(200.0));
        let dues = watch(&mut vigil, 200, 300, sent, None);
        assert!(matches!(dues[..], [(2070, Due::Ask), (2180, Due::Gone(_))]), "{dues:?}");
    }

    #[test]
    fn answers_that_are_late_are_waited_for() {
        let mut vigil = Vigil::new(at(0.0));
        let signs =
            Signs { waiting_since: Some(Duration::ZERO), lateness: Duration::from_secs(20), ..Signs::default() };
        assert_eq!(vigil.poll(at(30.0), signs), Due::Nothing);
        assert!(matches!(vigil.poll(at(31.0), signs), Due::Gone(_)));
    }
}
