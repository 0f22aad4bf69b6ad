//! What all tunnels of a manager share: the clock, limits on calls, and what one has found out for all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::clock::Clock;

/// How many sessions are started at once, over all tunnels: many clusters that come up, or come back,
/// together must not run into the service's throttling.
const CONCURRENT_STARTS: usize = 4;

/// What all tunnels of a manager share.
#[derive(Debug)]
pub struct Common {
    clock: Clock,
    starts: Semaphore,
    resume_denied: AtomicBool,
    hurry: Notify,
}

impl Common {
    /// Creates what the tunnels of one manager share.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            starts: Semaphore::new(CONCURRENT_STARTS),
            resume_denied: AtomicBool::new(false),
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
        self.resume_denied.load(Ordering::Relaxed)
    }

    /// Takes note that the identity may not resume sessions. Returns whether that is news.
    pub(super) fn set_resume_denied(&self) -> bool {
        !self.resume_denied.swap(true, Ordering::Relaxed)
    }
}
