//! Durations as a user writes them: a whole number and a unit.
//!
//! One number and one unit, nothing else: `60s`, `5m`, `1h`, `500ms`. A bare number is refused, since
//! the reader cannot know which unit its writer had in mind.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// There is a number and nothing after it.
    #[error("it has no unit: write `60s`, `5m`, `1h` or `500ms`")]
    NoUnit,
    /// It is something else than a number and a unit.
    #[error("expected a whole number and one of `ms`, `s`, `m`, `h`, such as `60s`")]
    Malformed,
    /// It is longer than can be represented.
    #[error("it is too long")]
    TooLong,
}

/// Reads a duration.
///
/// # Errors
/// See [`DurationError`].
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(DurationError::Malformed);
    }
    let millis_per_unit: u64 = match unit {
        "" => return Err(DurationError::NoUnit),
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(DurationError::Malformed),
    };
    let number: u64 = number.parse().map_err(|_overflow| DurationError::TooLong)?;
    number.checked_mul(millis_per_unit).map(Duration::from_millis).ok_or(DurationError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit() {
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse("12h"), Ok(Duration::from_secs(43_200)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn refuses_everything_else() {
        for text in ["", "s", "1.5h", "-1s", "+1s", " 1s", "1s ", "1 s", "1h30m", "1S", "1d", "١s", "1_000s"] {
            assert_eq!(parse(text), Err(DurationError::Malformed), "{text}");
        }
        assert_eq!(parse("60"), Err(DurationError::NoUnit));
        for text in ["99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(parse(text), Err(DurationError::TooLong), "{text}");
        }
    }
}
