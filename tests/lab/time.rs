//! The clocks of a lab: one for each thread, so that labs run side by side.

use std::{cell::Cell, time::Duration};

use autoheal_pa::clock::Clock;

/// What the wall clock reads when a lab starts: a day in 2026.
const START: Duration = Duration::from_secs(1_790_000_000);

thread_local! {
    static CLOCK: Cell<Option<Clock>> = const { Cell::new(None) };
    /// How far the wall clock has jumped.
    static JUMPED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Starts the clocks of this thread, within a runtime whose time is paused.
pub(crate) fn start() {
    CLOCK.set(Some(Clock::with_wall(|| START)));
    JUMPED.set(Duration::ZERO);
}

/// Reads the monotonic clock: time since the lab's start.
pub(crate) fn now() -> Duration {
    CLOCK.get().map_or(Duration::ZERO, |clock| clock.now().mono)
}

/// Reads the wall clock: time since the Unix epoch.
pub(crate) fn wall() -> Duration {
    START + JUMPED.get() + now()
}

/// Sets the wall clock ahead, and no other.
pub(crate) fn jump(by: Duration) {
    JUMPED.set(JUMPED.get() + by);
}
