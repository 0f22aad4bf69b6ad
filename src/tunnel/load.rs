//! How much a link has to do: what decides which one takes the next connection, and whether another is worth starting.
//!
//! What counts is the connections that a newcomer may have to share with. In a link that has moved at least
//! [`MOVING_BYTES`] in the last second or two, it may be all of them. In one that has not, it is those that were given less
//! than [`FRESH`] ago: what they are for cannot be known yet, and connections that come in a burst are mostly there to
//! carry one. So watches and other connections that say little count for nothing, however many they are, and neither do
//! commands that are run one after the other.
//!
//! Nothing is counted here and no timer runs for it: what the driver shows anyway is looked at whenever the tunnel wakes
//! up, which it does for each connection and once a second while some are open.

use std::{collections::VecDeque, time::Duration};

/// Bytes that a newcomer notices: about an eighth of a second of what a slow link carries.
const MOVING_BYTES: u64 = 128 << 10;

/// How far apart two marks are, so that bytes count for one to two of it.
const WINDOW: Duration = Duration::from_secs(1);

/// Seconds in a row in which a link that is busy has moved [`MOVING_BYTES`]: nobody starts another for what is over by then.
const BUSY_WINDOWS: u32 = 2;

/// For how long a connection counts as one that may carry a lot. A burst comes within milliseconds, and commands in a loop
/// are further apart: the connection of one that has ended may look open for a while, as its program need not say so.
const FRESH: Duration = Duration::from_millis(250);

/// The bytes that a link had moved at a time, both ways together.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    at: Duration,
    moved: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Load {
    older: Mark,
    newer: Mark,
    /// When it was given the connections that are fresh, or were when the last of them came.
    given: VecDeque<Duration>,
    open: usize,
    moved: u64,
    /// Windows in a row in which it has moved a lot.
    moving_windows: u32,
}

/// What links are compared by. The least is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Connections that may carry a lot.
    pub(super) rivals: usize,
    /// They do, or others have that are gone and what has been queued for them is not. All that move anything move
    /// about the same, as each is paced alike, so more bytes are no more load.
    pub(super) moving: bool,
    pub(super) open: usize,
}

impl Load {
    /// Takes a look at the connections that are open and the bytes that have been moved since the start, both ways
    /// together.
    pub(super) fn observe(&mut self, now: Duration, open: usize, moved: u64) {
        if now >= self.newer.at + WINDOW {
            let is_moving = moved.saturating_sub(self.newer.moved) >= MOVING_BYTES;
            self.moving_windows = if is_moving { self.moving_windows.saturating_add(1) } else { 0 };
            self.older = self.newer;
            self.newer = Mark { at: now, moved };
        }
        (self.open, self.moved) = (open, moved);
    }

    /// Takes note that a connection has been given.
    pub(super) fn given(&mut self, now: Duration) {
        self.open += 1;
        self.given.retain(|at| now < *at + FRESH);
        self.given.push_back(now);
    }

    /// Whether it has moved a lot for a while, for connections that are still open.
    pub(super) fn is_busy(&self) -> bool {
        self.open > 0 && self.moving_windows >= BUSY_WINDOWS
    }

    /// Returns what to compare it by.
    pub(super) fn rank(&self, now: Duration) -> Rank {
        let open = self.open;
        let moving = self.moved.saturating_sub(self.older.moved) >= MOVING_BYTES;
        let fresh = self.given.iter().filter(|at| now < **at + FRESH).count();
        Rank { rivals: if moving { open } else { fresh.min(open) }, moving, open }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that is looked at by a tunnel.
    #[derive(Default)]
    struct Link {
        load: Load,
        now: Duration,
        open: usize,
        moved: u64,
    }

    impl Link {
        fn settled(open: usize) -> Self {
            let mut link = Self { open, ..Self::default() };
            link.passes(10_000);
            link
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
    fn a_new_connection_is_a_rival_for_a_moment() {
        let mut link = Link::settled(0);
        assert!(link.look().rivals == 0);
        link.is_given_one();
        assert!(link.load.rank(link.now).rivals > 0, "the next one of a burst is to know");
        link.passes(249);
        assert!(link.look().rivals > 0, "it may carry a lot");
        link.passes(1);
        assert!(link.look().rivals == 0, "it does not");
    }

    #[test]
    fn bytes_make_rivals_for_as_long_as_they_flow() {
        let mut link = Link::settled(1);
        for _ in 0..10 {
            link.moved += 900_000;
            assert!(link.look().rivals > 0);
            link.passes(1000);
        }
        link.passes(2000);
        assert!(link.look().rivals == 0);
    }

    #[test]
    fn busy_is_what_moves_a_lot_for_longer_than_a_moment() {
        let mut link = Link::settled(1);
        for second in 0..5 {
            link.moved += 900_000;
            assert_eq!(link.load.is_busy(), second >= 2, "after {second} s");
            link.passes(1000);
        }
        link.passes(2000);
        assert!(!link.load.is_busy(), "it has come to an end");
        // A list of all pods now and then is no reason for another link.
        for _ in 0..10 {
            link.moved += 900_000;
            link.passes(2000);
            assert!(!link.load.is_busy());
        }
    }

    #[test]
    fn watches_and_commands_one_after_the_other_are_no_rivals() {
        let mut link = Link::settled(50);
        for _ in 0..100 {
            assert!(link.look().rivals == 0);
            link.is_given_one();
            link.moved += 5000;
            link.passes(300);
        }
    }

    #[test]
    fn without_connections_there_are_no_rivals_whatever_was_moved() {
        let mut link = Link::settled(1);
        link.moved = 10 << 20;
        assert!(link.look().rivals > 0);
        link.open = 0;
        assert!(link.look().rivals == 0);
    }

    #[test]
    fn the_least_loaded_has_the_fewest_rivals() {
        let rank = |open, moved, given| {
            let mut link = Link::settled(open);
            link.moved = moved;
            (0..given).for_each(|_| link.is_given_one());
            link.look()
        };
        assert!(rank(20, 1000, 0) < rank(1, 1 << 20, 0), "watches are none");
        assert!(rank(1, 2 << 20, 0) < rank(3, 1 << 20, 0), "one bulk transfer rather than three");
        assert!(rank(20, 1000, 1) < rank(1, 1 << 20, 0), "one that may be small rather than one that is not");
        assert!(rank(0, 1 << 20, 1) < rank(0, 0, 2), "a burst is spread, whoever has begun first");
        assert!(rank(1, 0, 0) < rank(2, 0, 0));
        assert!(rank(1, 0, 0) < rank(0, 1 << 20, 0), "what was queued for a transfer that was broken off still comes");
    }
}
