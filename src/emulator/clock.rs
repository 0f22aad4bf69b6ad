//! The emulator's own clocks, and the forms in which AWS writes a date.
//!
//! The wall clock can be set wrong by a script, which is how a client meets "signature expired". That,
//! and the rule that the emulator shares no logic with the program, is why it does not use the
//! program's clock.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, SystemTime},
};

use hyper::{HeaderMap, header::DATE};
use tokio::time::Instant;

/// Both readings of one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// The monotonic clock.
    pub(super) instant: Instant,
    /// Milliseconds since the Unix epoch.
    pub(super) wall_ms: u64,
}

/// A monotonic clock, and a wall clock that may be wrong.
#[derive(Debug)]
pub(super) struct Clock {
    /// Reads the true time, since the Unix epoch.
    wall: fn() -> Duration,
    skew_ms: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(system_wall)
    }
}

#[expect(clippy::disallowed_methods, reason = "the emulator keeps its own clock, see the module's documentation")]
fn system_wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

impl Clock {
    /// A clock that takes its true time from `wall`, since the Unix epoch.
    pub(super) fn new(wall: fn() -> Duration) -> Self {
        Self { wall, skew_ms: AtomicI64::new(0) }
    }

    #[expect(clippy::disallowed_methods, reason = "the emulator keeps its own clock, see the module's documentation")]
    pub(super) fn instant(&self) -> Instant {
        Instant::now()
    }

    pub(super) fn wall(&self) -> Duration {
        let true_time = (self.wall)();
        let skew = self.skew_ms.load(Ordering::Relaxed);
        let size = Duration::from_millis(skew.unsigned_abs());
        if skew < 0 { true_time.saturating_sub(size) } else { true_time + size }
    }

    pub(super) fn now(&self) -> Now {
        let wall_ms = u64::try_from(self.wall().as_millis()).unwrap_or(u64::MAX);
        Now { instant: self.instant(), wall_ms }
    }

    /// Puts the time into the head of an answer.
    pub(super) fn stamp(&self, headers: &mut HeaderMap) {
        if let Ok(date) = http_date(self.wall()).parse() {
            headers.insert(DATE, date);
        }
    }

    /// Sets the wall clock wrong by so many milliseconds; positive is ahead.
    pub(super) fn set_skew_ms(&self, skew_ms: i64) {
        self.skew_ms.store(skew_ms, Ordering::Relaxed);
    }
}

/// Writes a time since the Unix epoch as `20150830T123600Z`.
pub(super) fn basic_date(wall: Duration) -> String {
    let (year, month, day) = civil(wall.as_secs() / 86_400);
    let (hour, minute, second) = clock_time(wall);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Writes a time since the Unix epoch as `2015-08-30T12:36:00Z`.
pub(super) fn extended_date(wall: Duration) -> String {
    let (year, month, day) = civil(wall.as_secs() / 86_400);
    let (hour, minute, second) = clock_time(wall);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Writes a time since the Unix epoch as `Sun, 30 Aug 2015 12:36:00 GMT`.
fn http_date(wall: Duration) -> String {
    const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = wall.as_secs() / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = clock_time(wall);
    let name =
        |names: &[&'static str], index: u64| usize::try_from(index).ok().and_then(|index| names.get(index).copied());
    let (weekday, month) = (name(&WEEKDAYS, days % 7), name(&MONTHS, month - 1));
    let (weekday, month) = (weekday.unwrap_or_default(), month.unwrap_or_default());
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// Reads `20150830T123600Z`; `None` for anything else and for dates before 1970.
pub(super) fn parse_basic_date(text: &str) -> Option<Duration> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(9..11)?, number(11..13)?, number(13..15)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60
    {
        return None;
    }
    Some(Duration::from_secs(days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second))
}

fn clock_time(wall: Duration) -> (u64, u64, u64) {
    let seconds = wall.as_secs() % 86_400;
    (seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Days of the years before the era in which day 0 of the Unix epoch lies, counted from 0000-03-01.
const EPOCH_DAYS: u64 = 719_468;

/// Year, month and day of a day since the Unix epoch, in the Gregorian calendar: years are taken to
/// begin in March, so that the leap day is the last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + EPOCH_DAYS;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let era = year / 400;
    let year_of_era = year % 400;
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - EPOCH_DAYS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_go_both_ways() {
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (1_440_938_160, "20150830T123600Z"),
            (1_709_164_800, "20240229T000000Z"),
            (1_709_251_199, "20240229T235959Z"),
            (4_107_542_399, "21000228T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            let wall = Duration::from_secs(seconds);
            assert_eq!(basic_date(wall), text);
            assert_eq!(parse_basic_date(text), Some(wall));
        }
        assert_eq!(extended_date(Duration::from_secs(1_440_938_160)), "2015-08-30T12:36:00Z");
        assert_eq!(http_date(Duration::from_secs(1_440_938_160)), "Sun, 30 Aug 2015 12:36:00 GMT");
        assert_eq!(http_date(Duration::from_secs(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
        for odd in ["", "20150830", "20151330T123600Z", "20150830T253600Z", "2015083xT123600Z", "19690830T123600Z"] {
            assert_eq!(parse_basic_date(odd), None, "{odd}");
        }
    }
}
