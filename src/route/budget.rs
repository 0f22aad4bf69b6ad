//! How much of what has come local programs may leave untaken, over all links of a tunnel.
//!
//! Not every link can hold back one of its connections, so a program that reads more slowly than its destination sends fills the memory until
//! its whole link is read more slowly. Half of the budget belongs to whoever needs it, so that a slow program has
//! most of it when it is alone; the other half is divided, so that links without one never wait for another's.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// The usual budget of a tunnel, in bytes.
pub const RECEIVE_BUDGET: usize = 64 << 20;

/// The budget of one tunnel, in bytes.
#[derive(Debug)]
pub struct Budget {
    /// What each link has to itself.
    own: usize,
    /// What all have in common.
    common: usize,
    common_used: AtomicUsize,
}

impl Budget {
    /// Divides `bytes` among so many links.
    #[must_use]
    pub fn new(bytes: usize, sessions: usize) -> Arc<Self> {
        let own = bytes / 2 / sessions.max(1);
        Arc::new(Self { own, common: bytes / 2, common_used: AtomicUsize::new(0) })
    }
}

/// What one link holds of a budget.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    held: usize,
}

impl Share {
    /// Creates the share of a link that holds nothing.
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, held: 0 }
    }

    /// Gives all that it holds to a share of its own, for whoever keeps the account from here.
    #[must_use]
    pub fn hand_over(&mut self) -> Self {
        Self { budget: Arc::clone(&self.budget), held: std::mem::take(&mut self.held) }
    }

    /// Returns how many bytes the link holds.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes note that bytes have come.
    pub fn take(&mut self, len: usize) {
        let before = self.common_part();
        self.held += len;
        self.budget.common_used.fetch_add(self.common_part() - before, Ordering::Relaxed);
    }

    /// Takes note that bytes are gone.
    pub fn give_back(&mut self, len: usize) {
        let before = self.common_part();
        self.held = self.held.saturating_sub(len);
        self.budget.common_used.fetch_sub(before - self.common_part(), Ordering::Relaxed);
    }

    /// Whether more may come. What comes at once may exceed the budget by as much.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.held < self.budget.own || self.budget.common_used.load(Ordering::Relaxed) < self.budget.common
    }

    fn common_part(&self) -> usize {
        self.held.saturating_sub(self.budget.own)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_slow_program_has_most_and_the_others_never_wait() {
        let budget = Budget::new(64 << 20, 4);
        let mut shares = [(); 4].map(|()| Share::new(Arc::clone(&budget)));
        while shares[0].has_room() {
            shares[0].take(1000);
        }
        assert!(shares[0].held() >= 40 << 20, "{}", shares[0].held());
        for share in &mut shares[1..] {
            assert!(share.has_room());
            while share.has_room() {
                share.take(1000);
            }
            assert!(share.held() >= 8 << 20, "{}", share.held());
        }
        assert!(shares.iter().map(Share::held).sum::<usize>() <= (64 << 20) + 4000);
        shares[0].give_back(5000);
        assert!(shares[0].has_room());
        let [first, ..] = shares;
        drop(first);
        assert!(budget.common_used.load(Ordering::Relaxed) <= 3000);
    }

    proptest! {
        #[test]
        fn the_whole_is_the_sum_of_the_shares(steps in proptest::collection::vec((0_usize..5, 0_usize..3000, any::<bool>()), 1..300)) {
            let budget = Budget::new(10_000, 5);
            let mut shares: Vec<_> = (0..5).map(|_| Share::new(Arc::clone(&budget))).collect();
            for (index, len, comes) in steps {
                let share = &mut shares[index];
                if !comes {
                    share.give_back(len);
                } else if share.has_room() {
                    share.take(len);
                }
                let common: usize = shares.iter().map(Share::common_part).sum();
                prop_assert_eq!(budget.common_used.load(Ordering::Relaxed), common);
                prop_assert!(shares.iter().map(Share::held).sum::<usize>() <= 10_000 + 5 * 3000);
            }
            drop(shares);
            prop_assert_eq!(budget.common_used.load(Ordering::Relaxed), 0);
        }
    }
}
