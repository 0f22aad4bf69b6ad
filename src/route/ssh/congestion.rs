//! Whether a connection is congested: some program takes what comes for it more slowly than it comes, for longer than memory
//! lasts.
//!
//! The library gives the other end room for more as soon as it has read something, so that one channel cannot be held back
//! alone. What is open on such a connection goes on at the pace of that program. What comes later is to have another
//! connection, which costs one more login; so there are [`MAX_CONGESTED`] to a bastion at most, and then no more are made.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::watch;

/// Congested connections of one bastion that are left for others.
const MAX_CONGESTED: usize = 3;

/// The congested connections of a bastion.
#[derive(Debug, Default)]
pub(super) struct Congested(AtomicUsize);

/// Whether one connection is congested.
#[derive(Debug)]
pub(super) struct Congestion {
    of: Arc<Congested>,
    is_congested: watch::Sender<bool>,
}

impl Congestion {
    pub(super) fn new(of: &Arc<Congested>) -> Arc<Self> {
        Arc::new(Self { of: Arc::clone(of), is_congested: watch::Sender::new(false) })
    }

    pub(super) fn is_congested(&self) -> bool {
        *self.is_congested.borrow()
    }

    /// Takes note that it is, for ever, unless there are too many already.
    pub(super) fn set(&self) {
        self.is_congested.send_if_modified(|is_congested| {
            let more = |count: usize| (count < MAX_CONGESTED).then_some(count + 1);
            if *is_congested || self.of.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
                return false;
            }
            *is_congested = true;
            true
        });
    }

    /// Waits until it is.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub(super) async fn congested(&self) {
        // The sender is here.
        let mut is_congested = self.is_congested.subscribe();
        let _congested = is_congested.wait_for(|is_congested| *is_congested).await;
    }
}

impl Drop for Congestion {
    fn drop(&mut self) {
        if self.is_congested() {
            self.of.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_at_most_and_each_counts_until_it_is_gone() {
        let congested_now = Arc::default();
        let mut all: Vec<_> = (0..=MAX_CONGESTED).map(|_| Congestion::new(&congested_now)).collect();
        for congestion in &all {
            congestion.set();
            congestion.set();
        }
        let last = all.pop().unwrap();
        assert!(all.iter().all(|congestion| congestion.is_congested()) && !last.is_congested());
        all.pop();
        last.set();
        assert!(last.is_congested());
        drop((all, last));
        assert_eq!(congested_now.0.load(Ordering::Relaxed), 0);
    }
}
