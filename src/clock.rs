//! The only reader of the monotonic and the wall clock.
//!
//! The monotonic clock is tokio's, so a test with paused time drives everything that uses this.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::util::time::Now;

/// A clock whose monotonic part starts at 0 when it is made.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    /// Reads the wall clock.
    wall: fn() -> Duration,
}

impl Clock {
    #[must_use]
    pub fn start() -> Self {
        Self::with_wall(wall)
    }

    /// Starts a clock whose wall clock is another one: time since the Unix epoch. With it, and with tokio's time
    /// paused, months pass in seconds, and machines sleep without anybody waiting.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
    pub fn with_wall(wall: fn() -> Duration) -> Self {
        Self { start: Instant::now(), wall }
    }

    /// Reads both clocks.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
    pub fn now(&self) -> Now {
        Now { mono: Instant::now() - self.start, wall: (self.wall)() }
    }

    /// Returns the instant at which the monotonic part reads `mono`.
    #[must_use]
    pub fn instant(&self, mono: Duration) -> Instant {
        self.start + mono
    }
}

/// How far the two clocks may part, by drift and by NTP, before the wall clock counts as set.
const DRIFT: Duration = Duration::from_secs(5);

/// Tells whether the wall clock was set between two readings of a clock. A machine that slept counts as one whose clock
/// was: the monotonic clock may have stood still.
#[must_use]
pub fn was_set(before: Now, after: Now) -> bool {
    let expected = (before.wall + after.mono).saturating_sub(before.mono);
    expected.abs_diff(after.wall) > DRIFT
}

/// Reads the wall clock: time since the Unix epoch.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
pub fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
