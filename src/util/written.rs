//! Times as people and programs read them.

use std::time::{Duration, SystemTime};

use aws_smithy_types::date_time::{DateTime, Format};

/// Writes a time as RFC 3339 in UTC, with whole seconds.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = DateTime::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    time.fmt(Format::DateTime).unwrap_or_else(|_| format!("{seconds} s after the Unix epoch"))
}

/// Reads a time as RFC 3339.
pub(crate) fn read_rfc3339(text: &str) -> Option<SystemTime> {
    DateTime::from_str(text, Format::DateTime).ok()?.try_into().ok()
}

/// Writes a time in its two largest units.
pub(crate) fn in_words(time: Duration) -> String {
    // Up, so that the last second is one.
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, 0, _) => format!("{hours} h"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_words() {
        for (millis, text) in [
            (0, "0 s"),
            (1, "1 s"),
            (59_000, "59 s"),
            (60_000, "1 min"),
            (270_000, "4 min 30 s"),
            (3_600_000, "1 h"),
            (3_605_000, "1 h"),
            (7_500_000, "2 h 5 min"),
        ] {
            assert_eq!(in_words(Duration::from_millis(millis)), text);
        }
    }
}
