//! How many sessions a cluster may have.

use std::{fmt, str::FromStr};

/// Most sessions for a cluster.
const MOST: usize = 16;

/// Those that there are without being asked.
const AUTO: usize = 2;

/// How many sessions a cluster may have, and when there are more than one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sessions {
    /// A second one while the first is busy, where that takes a place from nobody.
    #[default]
    Auto,
    /// Up to so many, for connections that would share one.
    UpTo(usize),
}

/// A text is no number of sessions.
#[derive(Debug, thiserror::Error)]
#[error("expected {}", Sessions::EXPECTED)]
pub struct NoSessions;

impl Sessions {
    /// What a text has to be to be one.
    pub const EXPECTED: &str = "`auto` or a number of sessions from 1 to 16";

    /// Returns how many there may be at once.
    #[must_use]
    pub fn most(self) -> usize {
        match self {
            Self::Auto => AUTO,
            Self::UpTo(most) => most,
        }
    }
}

impl fmt::Display for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::UpTo(most) => most.fmt(f),
        }
    }
}

impl FromStr for Sessions {
    type Err = NoSessions;

    fn from_str(text: &str) -> Result<Self, NoSessions> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        match text.parse() {
            Ok(most @ 1..=MOST) => Ok(Self::UpTo(most)),
            Ok(_) | Err(_) => Err(NoSessions),
        }
    }
}

pub(super) fn is_sessions(text: &str) -> bool {
    text.parse::<Sessions>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_word_or_a_small_number() {
        for text in ["auto", "1", "16"] {
            assert_eq!(text.parse::<Sessions>().unwrap().to_string(), text);
        }
        for text in ["", "0", "17", "-1", "1.5", "Auto", "auto 2"] {
            assert!(text.parse::<Sessions>().is_err(), "{text}");
        }
    }
}
