//! How much a session has to do: what decides which one takes the next connection, and whether another is worth starting.
//!
//! A session is **busy** while it has connections and either has moved at least [`BUSY_BYTES`] in the last second or two,
//! or was given one less than [`FRESH`] ago: what that one is for cannot be known yet, and a burst of connections is
//! mostly there to carry a burst of data. Watches and other connections that say little keep no session busy, however
//! many they are.
//!
//! Nothing is counted here and no timer runs for it: the totals that the driver shows anyway are looked at whenever the
//! tunnel wakes up, which it does once a second while connections are open.

use std::time::Duration;

/// Bytes that make a session busy: about an eighth of a second of what an agent sends. A small request hardly notices
/// whoever moves less.
const BUSY_BYTES: u64 = 128 << 10;

/// How far apart two marks are, so that bytes count for one to two of it.
const WINDOW: Duration = Duration::from_secs(1);

/// For how long a connection counts as one that may carry a lot: a few round trips of a TLS handshake and a request.
const FRESH: Duration = Duration::from_secs(1);

/// The bytes that a session had moved, both ways together, at a time.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    at: Duration,
    moved: u64,
}

/// The load of one session.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    older: Mark,
    newer: Mark,
    /// When it was last given a connection.
    given_at: Option<Duration>,
    open: usize,
    moved: u64,
}

/// What sessions are compared by. The least is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// A connection would share it with what may be a bulk transfer.
    pub(super) busy: bool,
    /// Connections that are open. Busy sessions move about the same, as the agent paces each: what a newcomer gets of
    /// one depends on how many share it.
    open: usize,
    /// Bytes that it has moved lately.
    moved: u64,
}

impl Load {
    /// Takes a look at the connections that are open and the bytes that have been moved since the start.
    pub(super) fn observe(&mut self, now: Duration, open: usize, moved: u64) {
        (self.open, self.moved) = (open, moved);
        if now >= self.newer.at + WINDOW {
            self.older = self.newer;
            self.newer = Mark { at: now, moved };
        }
    }

    /// Takes note that a connection has been given.
    pub(super) fn given(&mut self, now: Duration) {
        self.open += 1;
        self.given_at = Some(now);
    }

    /// Returns what to compare it by.
    pub(super) fn rank(&self, now: Duration) -> Rank {
        let moved = self.moved.saturating_sub(self.older.moved);
        let fresh = self.given_at.is_some_and(|at| now < at + FRESH);
        Rank { busy: self.open > 0 && (fresh || moved >= BUSY_BYTES), open: self.open, moved }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_connection_makes_busy_for_a_second_and_bytes_for_as_long_as_they_flow() {
        let mut load = Load::default();
        load.observe(millis(100_000), 0, 0);
        assert!(!load.rank(millis(100_000)).busy);
        load.given(millis(100_000));
        assert!(load.rank(millis(100_999)).busy, "it may carry a lot");
        assert!(!load.rank(millis(101_000)).busy, "it does not");

        let mut moved = 0;
        for second in 101..110 {
            moved += 900_000;
            load.observe(millis(second * 1000), 1, moved);
            assert!(load.rank(millis(second * 1000)).busy, "in second {second}");
        }
        load.observe(millis(110_000), 1, moved);
        load.observe(millis(111_000), 1, moved);
        assert!(!load.rank(millis(111_000)).busy, "it has done with it");
    }

    #[test]
    fn watches_do_not_make_busy() {
        let mut load = Load::default();
        for watch in 0..50 {
            load.given(millis(watch));
        }
        for second in 2..100 {
            load.observe(millis(second * 1000), 50, second * 10_000);
            assert!(!load.rank(millis(second * 1000)).busy);
        }
    }

    #[test]
    fn a_session_without_connections_is_not_busy_whatever_it_moved() {
        let mut load = Load::default();
        load.observe(millis(5000), 1, 0);
        load.observe(millis(5500), 1, 10 << 20);
        assert!(load.rank(millis(5500)).busy);
        load.observe(millis(5600), 0, 10 << 20);
        assert!(!load.rank(millis(5600)).busy);
    }

    #[test]
    fn the_least_loaded_is_idle_or_has_fewest_connections_or_moves_least() {
        let load = |open: usize, moved: u64| {
            let mut load = Load::default();
            load.observe(millis(10_000), open, 0);
            load.observe(millis(10_500), open, moved);
            load.rank(millis(10_500))
        };
        assert!(load(20, 1000) < load(1, 1 << 20), "watches do not compete");
        assert!(load(1, 2 << 20) < load(3, 1 << 20), "one bulk transfer rather than three");
        assert!(load(2, 1 << 20) < load(2, 2 << 20));
        assert!(load(0, 1 << 20) < load(1, 0));
    }
}
