//! How long a manager that kubectl has started goes on: until it has not been used for a while.
//!
//! It is used as long as a connection is open, and when a token is asked for. Programs that keep a token find the ports bound
//! for as long as that is valid: it ends before the manager does.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::supervisor::Board;
use crate::clock::Clock;

/// What a manager goes on for beyond the end of the last token, which is cut to whole seconds, as is its clock at the other end.
const SLACK: Duration = Duration::from_secs(5);

/// The life of one manager.
#[derive(Debug)]
pub(super) struct Life {
    clock: Clock,
    /// How long it goes on unused; `None`: for ever.
    idle: Option<Duration>,
    last: Mutex<Last>,
}

#[derive(Debug)]
struct Last {
    used_at: Duration,
    /// How many use it now.
    users: usize,
    is_over: bool,
}

impl Life {
    pub(super) fn new(clock: Clock, idle: Option<Duration>) -> Self {
        Self { clock, idle, last: Mutex::new(Last { used_at: clock.now().mono, users: 0, is_over: false }) }
    }

    /// Makes it one that is over from the beginning: nobody is to use it.
    pub(super) fn over(self) -> Self {
        self.last().is_over = true;
        self
    }

    /// Takes note that it is used. Returns for how long it goes on at least, if there is an end to that.
    ///
    /// # Errors
    /// [`Over`]: it is ending already.
    pub(super) fn used(&self) -> Result<Option<Duration>, Over> {
        let mut last = self.last();
        if last.is_over {
            return Err(Over);
        }
        last.used_at = self.clock.now().mono;
        Ok(self.idle)
    }

    /// Takes note that it is used until the answer is dropped.
    ///
    /// # Errors
    /// [`Over`]: it is ending already.
    pub(super) fn using(self: &Arc<Self>) -> Result<Using, Over> {
        self.used()?;
        self.last().users += 1;
        Ok(Using(Arc::clone(self)))
    }

    /// Waits until it has not been used for a while; then it is over. A manager that nobody has started so goes on for ever.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub(super) async fn end(&self, mut board: watch::Receiver<Board>) {
        let Some(idle) = self.idle else { return std::future::pending().await };
        // However long it took to begin.
        let _goes_on = self.used();
        let mut total = 0;
        loop {
            let (open, now_total) = {
                let board = board.borrow_and_update();
                let count = |of: fn(&crate::tunnel::TunnelStatus) -> u64| board.tunnels.iter().map(of).sum::<u64>();
                (count(|tunnel| tunnel.open_connections as u64), count(|tunnel| tunnel.connections_total))
            };
            if open > 0 || now_total != total {
                total = now_total;
                // It is not over, as only this makes it so.
                let _goes_on = self.used();
            }
            let at = {
                let mut last = self.last();
                let now = self.clock.now().mono;
                if last.users > 0 {
                    last.used_at = now;
                }
                let at = last.used_at + idle + SLACK;
                last.is_over = at <= now;
                if last.is_over {
                    return;
                }
                at
            };
            let changed = tokio::select! {
                biased;
                changed = board.changed() => changed.is_ok(),
                () = tokio::time::sleep_until(self.clock.instant(at)) => true,
            };
            if !changed {
                return std::future::pending().await;
            }
        }
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody uses the manager.
#[derive(Debug)]
pub(super) struct Using(Arc<Life>);

impl Drop for Using {
    fn drop(&mut self) {
        let mut last = self.0.last();
        last.users -= 1;
        last.used_at = self.0.clock.now().mono;
    }
}

/// The manager is ending, as nobody has used it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Over;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::supervisor::Supervisor;

    const IDLE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_it_has_not_been_used_and_says_so_to_whoever_comes_late() {
        let supervisor = Supervisor::new();
        let life = Life::new(supervisor.clock(), Some(IDLE));
        let (clock, began) = (supervisor.clock(), supervisor.clock().now().mono);
        let uses = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(50)).await;
                assert_eq!(life.used(), Ok(Some(IDLE)), "a token is good for as long");
            }
        };
        tokio::join!(life.end(supervisor.board()), uses);
        assert_eq!(clock.now().mono - began, Duration::from_secs(150) + IDLE + SLACK);
        assert_eq!(life.used(), Err(Over), "who comes now has another one started");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_tunnel_uses_it_however_long_that_takes() {
        let supervisor = Supervisor::new();
        let life = Arc::new(Life::new(supervisor.clock(), Some(IDLE)));
        let waits = async {
            let using = life.using().unwrap();
            tokio::time::sleep(5 * IDLE).await;
            assert_eq!(life.used(), Ok(Some(IDLE)));
            drop(using);
        };
        tokio::join!(life.end(supervisor.board()), waits);
        assert_eq!(supervisor.clock().now().mono, 5 * IDLE + IDLE + SLACK);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_a_person_has_started_goes_on() {
        let supervisor = Supervisor::new();
        let life = Life::new(supervisor.clock(), None);
        let ended = tokio::time::timeout(Duration::from_secs(1 << 20), life.end(supervisor.board())).await;
        assert!(ended.is_err());
        assert_eq!(life.used(), Ok(None));
    }
}
