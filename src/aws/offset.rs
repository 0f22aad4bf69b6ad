//! How far this machine's clock is off, by the dates of AWS's own answers: one offset for everything that is signed.
//!
//! Invariants:
//!
//! * Only answers that bear an id of AWS's teach it: a proxy, or a metadata service on this machine, has no say.
//! * An offset is one to the wall clock that it was measured against: once that is set, it is unknown again.
//! * An offset that AWS tolerates anyway counts as none, so that dates in whole seconds and slow answers make no times
//!   that jump about.
//! * What is shown, or compared by other programs, is by this machine's clock, whatever that says.
//!
//! The SDK corrects the signatures of its own calls by itself, for each of its clients.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use aws_smithy_types::{DateTime, date_time::Format};

use crate::{
    clock::{Clock, was_set},
    util::time::Now,
};

/// From how much on an offset is used and said, in milliseconds. AWS refuses signatures that are five minutes off.
const MATTERS_MS: i64 = 60_000;

/// Longest time between request and answer for its date to mean anything.
const LONGEST_ANSWER: Duration = Duration::from_secs(20);

/// The offset, shared by all that need it.
#[derive(Debug, Clone)]
pub(crate) struct ClockOffset {
    clock: Clock,
    /// `None`: no answer has told yet.
    learned: Arc<Mutex<Option<Learned>>>,
}

#[derive(Debug, Clone, Copy)]
struct Learned {
    /// How far AWS is ahead, in milliseconds.
    ahead_ms: i64,
    at: Now,
}

impl Default for ClockOffset {
    fn default() -> Self {
        Self::new(Clock::start())
    }
}

impl ClockOffset {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, learned: Arc::default() }
    }

    /// Reads this machine's clocks.
    pub(crate) fn clocks(&self) -> Now {
        self.clock.now()
    }

    /// Reads this machine's wall clock: time since the Unix epoch.
    pub(crate) fn wall(&self) -> Duration {
        self.clocks().wall
    }

    /// Takes note of the `Date` of an answer to a request that was sent at `sent` and answered at `received`, times since the
    /// Unix epoch by this machine's clock.
    pub(crate) fn learn(&self, date: &str, sent: Duration, received: Duration) {
        // A clock that was set meanwhile tells nothing.
        let Some(took) = received.checked_sub(sent).filter(|took| *took <= LONGEST_ANSWER) else { return };
        let Some(date) = DateTime::from_str(date, Format::HttpDate).ok().and_then(|date| date.to_millis().ok()) else {
            return;
        };
        let middle = i64::try_from((sent + took / 2).as_millis()).unwrap_or(i64::MAX);
        // Dates are cut to whole seconds.
        let measured = date.saturating_add(500).saturating_sub(middle);
        let learned = Learned { ahead_ms: measured, at: self.clocks() };
        let before = self.lock().replace(learned).map(|before| before.ahead_ms);
        let is_news = !before.is_some_and(matters) || before.is_some_and(|before| matters(before - measured));
        if matters(measured) && is_news {
            let off = Off { ahead_ms: measured };
            tracing::warn!(
                "this machine's clock is {off}: set it, for example with NTP; until then requests are signed with AWS's time"
            );
        }
    }

    /// Says how far this machine's clock is off, if that matters.
    pub(crate) fn off(&self) -> Option<Off> {
        let Learned { ahead_ms, .. } = self.valid()?;
        matters(ahead_ms).then_some(Off { ahead_ms })
    }

    /// Tells whether any answer has told the time since the clock was set.
    pub(crate) fn is_known(&self) -> bool {
        self.valid().is_some()
    }

    /// Returns the time since the Unix epoch as AWS has it, as far as that is known.
    pub(crate) fn now(&self) -> Duration {
        let ahead_ms = self.off().map_or(0, |off| off.ahead_ms);
        let size = Duration::from_millis(ahead_ms.unsigned_abs());
        if ahead_ms < 0 { self.wall().saturating_sub(size) } else { self.wall() + size }
    }

    /// Returns what this machine's clock shows at a time of AWS's.
    pub(crate) fn here(&self, time: SystemTime) -> SystemTime {
        let ahead_ms = self.off().map_or(0, |off| off.ahead_ms);
        let size = Duration::from_millis(ahead_ms.unsigned_abs());
        let here = if ahead_ms < 0 { time.checked_add(size) } else { time.checked_sub(size) };
        here.unwrap_or(time)
    }

    fn valid(&self) -> Option<Learned> {
        self.lock().filter(|learned| !was_set(learned.at, self.clocks()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Learned>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn matters(ms: i64) -> bool {
    ms.abs() >= MATTERS_MS
}

/// How far this machine's clock is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Off {
    ahead_ms: i64,
}

impl std::fmt::Display for Off {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.ahead_ms.unsigned_abs() / 1000;
        match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
            (0, 0, minutes) => write!(f, "{minutes} min {} s", seconds % 60)?,
            (0, hours, minutes) => write!(f, "{hours} h {minutes} min")?,
            (days, hours, _) => write!(f, "{days} d {hours} h")?,
        }
        f.write_str(if self.ahead_ms < 0 { " ahead of AWS's" } else { " behind AWS's" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::testing::shifted;

    /// Sun, 06 Nov 1994 08:49:37 GMT.
    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AT: Duration = Duration::from_secs(784_111_777);

    fn learned(sent: Duration, received: Duration) -> Option<String> {
        let offset = ClockOffset::default();
        offset.learn(DATE, sent, received);
        offset.off().map(|off| off.to_string())
    }

    #[test]
    fn the_offset_is_that_of_the_middle_of_the_call_and_only_a_large_one_counts() {
        let seconds = Duration::from_secs;
        assert_eq!(learned(AT - seconds(400), AT - seconds(400)).unwrap(), "6 min 40 s behind AWS's");
        assert_eq!(learned(AT + seconds(7260), AT + seconds(7262)).unwrap(), "2 h 1 min ahead of AWS's");
        assert_eq!(learned(AT + seconds(200_000), AT + seconds(200_000)).unwrap(), "2 d 7 h ahead of AWS's");
        for tolerated in [0, 30, 59] {
            assert_eq!(learned(AT + seconds(tolerated), AT + seconds(tolerated)), None);
        }
        // Neither an answer that took long nor a clock that was set meanwhile tells anything.
        assert_eq!(learned(AT + seconds(400), AT + seconds(421)), None);
        assert_eq!(learned(AT + seconds(400), AT + seconds(399)), None);
    }

    #[test]
    fn times_of_aws_and_of_this_machine_go_both_ways() {
        let offset = ClockOffset::default();
        assert!(!offset.is_known());
        offset.learn("nonsense", AT, AT);
        assert!(!offset.is_known());
        offset.learn(DATE, AT + Duration::from_secs(500), AT + Duration::from_secs(500));
        assert!(offset.is_known());
        let ahead = offset.wall() - offset.now();
        assert!((499..=501).contains(&ahead.as_secs()), "{ahead:?}");
        let at = SystemTime::UNIX_EPOCH + AT;
        assert_eq!(offset.here(at).duration_since(at).unwrap().as_secs(), 499);
        offset.learn(DATE, AT, AT);
        assert_eq!(offset.here(at), at);
    }

    #[test]
    fn an_offset_is_unknown_again_once_the_clock_was_set() {
        let offset = ClockOffset::new(Clock::with_wall(shifted::wall));
        let hour = Duration::from_secs(3600);
        for (set_by, is_known) in [(0, true), (-2, true), (3600, false), (-3600, false)] {
            shifted::set(0);
            offset.learn(DATE, AT + hour, AT + hour);
            shifted::set(set_by);
            assert_eq!((offset.is_known(), offset.off().is_some()), (is_known, is_known), "{set_by}");
            assert_eq!(offset.now() + Duration::from_secs(1800) < offset.wall(), is_known, "{set_by}");
        }
        offset.learn(DATE, AT, AT);
        assert!(offset.is_known() && offset.off().is_none());
    }
}
