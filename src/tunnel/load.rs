//! How much a session has to do: what decides which one takes the next connection, and whether another is worth starting.
//!
//! A session is **busy** while it has connections and either has moved at least [`BUSY_BYTES`] in the last second or two,
//! or was given one less than [`FRESH`] ago: what that one is for cannot be known yet, and connections that come in a
//! burst are mostly there to carry one. Watches and other connections that say little keep no session busy, however many
//! they are, and neither do commands that are run one after the other.
//!
//! Nothing is counted here and no timer runs for it: what the driver shows anyway is looked at whenever the tunnel wakes
//! up, which it does for each connection and once a second while some are open.

use std::time::Duration;

/// Bytes that make a session busy: about an eighth of a second of what an agent sends. A small request hardly notices
/// whoever moves less.
const BUSY_BYTES: u64 = 128 << 10;

/// How far apart two marks are, so that bytes count for one to two of it.
const WINDOW: Duration = Duration::from_secs(1);

/// For how long a connection counts as one that may carry a lot. A burst comes within milliseconds, and commands in a loop
/// are further apart: the connection of one that has ended may look open for a while, as its program need not say so.
const FRESH: Duration = Duration::from_millis(250);

/// The bytes that a session had moved at a time, both ways together.
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
    pub(super) open: usize,
    /// Bytes that it has moved lately.
    moved: u64,
}

impl Load {
    /// Takes a look at the connections that are open and the bytes that have been moved since the start, both ways
    /// together.
    pub(super) fn observe(&mut self, now: Duration, open: usize, moved: u64) {
        if now >= self.newer.at + WINDOW {
            self.older = self.newer;
            self.newer = Mark { at: now, moved };
        }
        (self.open, self.moved) = (open, moved);
    }

    /// Takes note that a connection has been given.
    pub(super) fn given(&mut self, now: Duration) {
        self.open += 1;
        self.given_at = Some(now);
    }

    /// Returns what to compare it by.
    pub(super) fn rank(&self, now: Duration) -> Rank {
        let moved = self.moved.saturating_sub(self.older.moved);
        let is_fresh = self.given_at.is_some_and(|at| now < at + FRESH);
        Rank { busy: self.open > 0 && (is_fresh || moved >= BUSY_BYTES), open: self.open, moved }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session that is looked at by a tunnel.
    #[derive(Default)]
    struct Session {
        load: Load,
        now: Duration,
        open: usize,
        moved: u64,
    }

    impl Session {
        fn settled(open: usize) -> Self {
            let mut session = Self { open, ..Self::default() };
            session.passes(10_000);
            session
        }

        fn look(&mut self) -> Rank {
            self.load.observe(self.now, self.open, self.moved);
            self.load.rank(self.now)
        }

        /// Lets time pass, with a look every second, as the tunnel has it.
        fn passes(&mut self, millis: u64) {
            let end = self.now + Duration::from_millis(millis);
            while self.now < end {
                self.look();
                self.now = (self.now + Duration::from_secs(1)).min(end);
            }
        }

        fn is_given_one(&mut self) {
            self.look();
            self.load.given(self.now);
            self.open += 1;
        }
    }

    #[test]
    fn a_new_connection_makes_busy_for_a_moment() {
        let mut session = Session::settled(0);
        assert!(!session.look().busy);
        session.is_given_one();
        assert!(session.load.rank(session.now).busy, "the next one of a burst is to know");
        session.passes(249);
        assert!(session.look().busy, "it may carry a lot");
        session.passes(1);
        assert!(!session.look().busy, "it does not");
    }

    #[test]
    fn bytes_make_busy_for_as_long_as_they_flow() {
        let mut session = Session::settled(1);
        for _ in 0..10 {
            session.moved += 900_000;
            assert!(session.look().busy);
            session.passes(1000);
        }
        session.passes(2000);
        assert!(!session.look().busy);
    }

    #[test]
    fn watches_and_commands_one_after_the_other_do_not_make_busy() {
        let mut session = Session::settled(50);
        for _ in 0..100 {
            assert!(!session.look().busy);
            session.is_given_one();
            session.moved += 5000;
            session.passes(300);
        }
    }

    #[test]
    fn a_session_without_connections_is_not_busy_whatever_it_moved() {
        let mut session = Session::settled(1);
        session.moved = 10 << 20;
        assert!(session.look().busy);
        session.open = 0;
        assert!(!session.look().busy);
    }

    #[test]
    fn the_least_loaded_is_idle_or_has_fewest_connections_or_moves_least() {
        let rank = |open, moved| {
            let mut session = Session::settled(open);
            session.moved = moved;
            session.look()
        };
        assert!(rank(20, 1000) < rank(1, 1 << 20), "watches do not compete");
        assert!(rank(1, 2 << 20) < rank(3, 1 << 20), "one bulk transfer rather than three");
        assert!(rank(2, 1 << 20) < rank(2, 2 << 20));
        assert!(rank(0, 1 << 20) < rank(1, 0));
    }
}
