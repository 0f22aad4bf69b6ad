//! What time it is, as a value: code that is given it can be tested without a clock.

use std::time::Duration;

/// What time it is, by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Monotonic time since some fixed instant; every deadline is in this time.
    pub mono: Duration,
    /// Time since the Unix epoch.
    pub wall: Duration,
}
