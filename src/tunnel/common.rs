//! What all tunnels of a manager share: the clock, limits on calls, and what one has found out for all.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Semaphore, SemaphorePermit};

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
}

impl Common {
    /// Creates what the tunnels of one manager share.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { clock, starts: Semaphore::new(CONCURRENT_STARTS), resume_denied: AtomicBool::new(false) })
    }

    /// Returns the clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
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
