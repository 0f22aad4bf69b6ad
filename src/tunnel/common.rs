//! What all tunnels of a manager share: the clock, limits on calls, and what one has found out for all.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

use crate::clock::Clock;

/// How many sessions are started at once, over all tunnels: many clusters that come up, or come back,
/// together must not run into the service's throttling.
const CONCURRENT_STARTS: usize = 4;

/// What all tunnels of a manager share.
#[derive(Debug)]
pub struct Common {
    clock: Clock,
    starts: Semaphore,
    resume_denied: watch::Sender<bool>,
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

    /// Whether the identity may not resume sessions, as an attempt of any tunnel has shown.
    pub(super) fn is_resume_denied(&self) -> bool {
        *self.resume_denied.borrow()
    }

    /// Takes note that the identity may not resume sessions.
    pub(super) fn set_resume_denied(&self) {
        self.resume_denied.send_replace(true);
    }

    /// Waits until it turns out that the identity may not resume sessions. That is remembered, and not tried again.
    ///
    /// # Cancel safety
    /// Changes nothing, so it may be dropped at any time.
    pub async fn until_resume_denied(&self) {
        let mut denied = self.resume_denied.subscribe();
        // The sender is in this value.
        let _outcome = denied.wait_for(|denied| *denied).await;
    }
}
