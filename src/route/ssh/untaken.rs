//! What the programs of a link have not taken yet, over all its connections.
//!
//! The other end sends a channel more as soon as what it has sent is read off the connection, and a channel that is not read
//! stops all others of the connection, those of other clusters too. So every channel is read at once, into memory, and the
//! tunnel's [budget](crate::route::budget) bounds that. When it is spent, a program that has taken nothing for a while is
//! taken for dead and reset, the one that holds most first. If all take something, however slowly, they hold the connection
//! back, as there is nothing else to be done.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    clock::Clock,
    route::{Meter, Share},
};

/// How long a program may take nothing of what there is for it once the budget is spent.
const STALLED: Duration = Duration::from_secs(2);

/// How long somebody waits for room before it looks again: what other links give back of the budget wakes nobody.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The account of a link.
#[derive(Debug)]
pub(super) struct Untaken {
    clock: Clock,
    meter: Arc<Meter>,
    inner: Mutex<Inner>,
    room: Notify,
}

#[derive(Debug)]
struct Inner {
    share: Share,
    holders: BTreeMap<u64, Holder>,
    next: u64,
}

#[derive(Debug)]
struct Holder {
    held: usize,
    /// When the program last took something, or had nothing to take.
    moved_at: Duration,
    cut: CancellationToken,
}

impl Untaken {
    pub(super) fn new(clock: Clock, meter: Arc<Meter>, share: Share) -> Arc<Self> {
        let inner = Mutex::new(Inner { share, holders: BTreeMap::new(), next: 0 });
        Arc::new(Self { clock, meter, inner, room: Notify::new() })
    }

    /// Opens the account of a connection, which `cut` ends.
    pub(super) fn seat(self: &Arc<Self>, cut: CancellationToken) -> Seat {
        let mut inner = self.lock();
        let id = inner.next;
        inner.next += 1;
        inner.holders.insert(id, Holder { held: 0, moved_at: Duration::ZERO, cut });
        drop(inner);
        Seat { of: Arc::clone(self), id }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, inner: &Inner) {
        self.meter.held.store(inner.share.held(), Ordering::Relaxed);
        self.meter.held_back.store(!inner.share.has_room(), Ordering::Relaxed);
    }

    /// Resets the program that holds most of those that take nothing.
    fn drop_stalled(&self) {
        let now = self.clock.now().mono;
        let mut inner = self.lock();
        let is_stalled = |holder: &Holder| holder.held > 0 && holder.moved_at + STALLED <= now;
        let stalled = inner.holders.values_mut().filter(|holder| is_stalled(holder) && !holder.cut.is_cancelled());
        if let Some(holder) = stalled.max_by_key(|holder| holder.held) {
            warn!(
                held = holder.held,
                "reset a connection whose program has read nothing for {} s: there is no room for more",
                STALLED.as_secs()
            );
            holder.cut.cancel();
        }
    }
}

/// What one connection holds. It is given back with this.
#[derive(Debug)]
pub(super) struct Seat {
    of: Arc<Untaken>,
    id: u64,
}

impl Seat {
    pub(super) fn has_room(&self) -> bool {
        self.of.lock().share.has_room()
    }

    /// Waits until there is room.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub(super) async fn room(&self) {
        while !self.has_room() {
            self.of.drop_stalled();
            let _woken = timeout(LOOK_AGAIN, self.of.room.notified()).await;
        }
    }

    /// Takes note that bytes have come.
    pub(super) fn take(&self, len: usize) {
        let now = self.of.clock.now().mono;
        let mut inner = self.of.lock();
        inner.share.take(len);
        if let Some(holder) = inner.holders.get_mut(&self.id) {
            if holder.held == 0 {
                holder.moved_at = now;
            }
            holder.held += len;
        }
        self.of.show(&inner);
    }

    /// Takes note that the program has taken bytes.
    pub(super) fn give_back(&self, len: usize) {
        let now = self.of.clock.now().mono;
        let mut inner = self.of.lock();
        inner.share.give_back(len);
        if let Some(holder) = inner.holders.get_mut(&self.id) {
            holder.held -= len;
            holder.moved_at = now;
        }
        self.of.show(&inner);
        drop(inner);
        self.of.room.notify_waiters();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.of.lock();
        if let Some(holder) = inner.holders.remove(&self.id) {
            inner.share.give_back(holder.held);
        }
        self.of.show(&inner);
        drop(inner);
        self.of.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Budget;

    fn untaken(bytes: usize) -> Arc<Untaken> {
        Untaken::new(Clock::start(), Arc::default(), Share::new(Budget::new(bytes, 1)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_program_makes_room_for_the_others_and_a_slow_one_does_not() {
        let untaken = untaken(1000);
        let (dead, slow) = (CancellationToken::new(), CancellationToken::new());
        let (dead_seat, slow_seat) = (untaken.seat(dead.clone()), untaken.seat(slow.clone()));
        dead_seat.take(400);
        slow_seat.take(700);
        assert!(!slow_seat.has_room());
        for _ in 0..30 {
            // It takes as much as comes for it.
            let _waited = timeout(Duration::from_millis(100), slow_seat.room()).await;
            slow_seat.give_back(10);
            slow_seat.take(10);
        }
        assert!(dead.is_cancelled() && !slow.is_cancelled());
        drop(dead_seat);
        slow_seat.room().await;
        assert_eq!(untaken.meter.held.load(Ordering::Relaxed), 700);
        assert!(!untaken.meter.held_back.load(Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_had_nothing_to_take_is_not_dead() {
        let untaken = untaken(1000);
        let cut = CancellationToken::new();
        let seat = untaken.seat(cut.clone());
        tokio::time::sleep(STALLED * 10).await;
        seat.take(2000);
        let _waited = timeout(STALLED / 2, seat.room()).await;
        assert!(!cut.is_cancelled());
        let _waited = timeout(STALLED, seat.room()).await;
        assert!(cut.is_cancelled());
    }
}
