//! What all tunnels of a manager share: the clock, limits on calls, and what one has found out for all.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

use crate::{clock::Clock, cluster::Target};

/// How many sessions are started at once, over all tunnels: many clusters that come up, or come back,
/// together must not run into the service's throttling.
const CONCURRENT_STARTS: usize = 4;

/// Why no session can be started on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Its agent is not connected, which may change by itself.
    Away,
    /// It does not exist or may not be used, which only a human can change.
    Unusable,
}

/// What all tunnels of a manager share.
#[derive(Debug)]
pub struct Common {
    clock: Clock,
    starts: Semaphore,
    resume_denied: watch::Sender<bool>,
    /// A session has been resumed, so the identity may.
    has_resumed: AtomicBool,
    /// What is wrong with targets, by their names.
    troubles: Mutex<BTreeMap<String, Trouble>>,
    hurry: Notify,
}

impl Common {
    /// Creates what the tunnels of one manager share.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            starts: Semaphore::new(CONCURRENT_STARTS),
            resume_denied: watch::Sender::new(false),
            has_resumed: AtomicBool::new(false),
            troubles: Mutex::default(),
            hurry: Notify::new(),
        })
    }

    /// Returns the clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Says that what has failed until now may succeed: the machine has woken up, or there are good credentials
    /// again. Tunnels that wait before another attempt make it at once.
    pub fn hurry(&self) {
        self.hurry.notify_waiters();
    }

    /// Waits before another attempt, unless there is reason to make it at once.
    pub(super) async fn pause(&self, time: Duration) {
        // Whoever is hurried wants to hear about it, not to be early.
        let _outcome = tokio::time::timeout(time, self.hurry.notified()).await;
    }

    /// Waits for leave to start a session.
    pub(super) async fn start_permit(&self) -> SemaphorePermit<'_> {
        self.starts.acquire().await.expect("the semaphore is never closed")
    }

    /// Whether a session has been resumed.
    pub(super) fn has_resumed(&self) -> bool {
        self.has_resumed.load(Ordering::Relaxed)
    }

    /// Takes note that a session has been resumed.
    pub(super) fn note_resumed(&self) {
        self.has_resumed.store(true, Ordering::Relaxed);
    }

    /// Takes note that the identity may not resume sessions, as one that was there has shown. The next is tried all the same:
    /// policies change, and a call costs little.
    pub(super) fn note_resume_denied(&self) {
        self.resume_denied.send_replace(true);
    }

    /// Takes note of why no session could be started on a target. Returns whether that is news.
    pub(super) fn note_trouble(&self, target: &Target, trouble: Trouble) -> bool {
        self.troubles().insert(target.as_str().to_owned(), trouble) != Some(trouble)
    }

    /// Takes note that a session has been started on a target.
    pub(super) fn note_started(&self, target: &Target) {
        self.troubles().remove(target.as_str());
    }

    /// Whether a target does not exist or may not be used, as the last attempt to start a session on it has shown.
    #[must_use]
    pub fn is_unusable(&self, target: &Target) -> bool {
        self.troubles().get(target.as_str()) == Some(&Trouble::Unusable)
    }

    fn troubles(&self) -> MutexGuard<'_, BTreeMap<String, Trouble>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is proven that the identity may not resume sessions.
    ///
    /// # Cancel safety
    /// Changes nothing, so it may be dropped at any time.
    pub async fn until_resume_denied(&self) {
        let mut denied = self.resume_denied.subscribe();
        // The sender is in this value.
        let _outcome = denied.wait_for(|denied| *denied).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trouble_with_a_target_is_news_once_until_it_changes() {
        let common = Common::new(Clock::start());
        let [one, other] = ["i-00000001", "i-00000002"].map(|target| target.parse().unwrap());
        let news = [&one, &one, &other, &one, &other].map(|target| common.note_trouble(target, Trouble::Unusable));
        assert_eq!(news, [true, false, true, false, false]);
        assert!(common.note_trouble(&one, Trouble::Away), "it may be used again");
        assert!(!common.is_unusable(&one) && common.is_unusable(&other));
        common.note_started(&other);
        assert!(!common.is_unusable(&other));
        assert!(common.note_trouble(&other, Trouble::Unusable), "it had been all right");
    }
}
