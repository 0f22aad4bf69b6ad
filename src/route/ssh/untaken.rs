//! What the programs of a link have not taken yet, over all its connections.
//!
//! The other end sends a channel more as soon as what it has sent is read off the connection, and a channel that is not read
//! stops all others of the connection, those of other clusters too. So every channel is read at once, into memory, and the
//! tunnel's [budget](crate::route::budget) bounds that. When it is spent, a program that has taken nothing for a while is
//! taken for dead and reset, the one that holds most first. If all take something, however slowly, they hold the connection
//! back, as there is nothing else to be done; then it is [congested](super::congestion), and what comes later has another one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::congestion::Congestion;
use crate::{
    clock::Clock,
    route::{Meter, Share},
};

/// How long a program may take nothing of what there is for it once the budget is spent.
const STALLED: Duration = Duration::from_secs(2);

/// How long there is too little room until the connection counts as congested. A program that does something else for a moment
/// costs no login.
const CONGESTED_AFTER: Duration = Duration::from_millis(250);

/// How long somebody waits for room before it looks again: what other links give back of the budget wakes nobody.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The account of a link, for one connection.
#[derive(Debug)]
pub(super) struct Untaken {
    clock: Clock,
    meter: Arc<Meter>,
    congestion: Arc<Congestion>,
    inner: Mutex<Inner>,
    room: Notify,
}

#[derive(Debug)]
struct Inner {
    share: Share,
    holders: BTreeMap<u64, Holder>,
    next: u64,
    short: Option<Shortage>,
    /// Whether new connections still get their accounts here.
    is_left: bool,
}

impl Inner {
    fn give_back(&mut self, len: usize) {
        self.share.give_back(len);
        // A slow program makes room all the time, and never enough.
        if self.short.as_ref().is_some_and(|short| self.share.held() < short.held / 2) {
            self.short = None;
        }
    }
}

/// There has been too little room.
#[derive(Debug)]
struct Shortage {
    since: Duration,
    /// How much was held then.
    held: usize,
    /// When there was last too little.
    seen_at: Duration,
}

#[derive(Debug)]
struct Holder {
    held: usize,
    /// When the program last took something, or had nothing to take.
    moved_at: Duration,
    cut: CancellationToken,
}

impl Untaken {
    pub(super) fn new(clock: Clock, meter: Arc<Meter>, share: Share, congestion: Arc<Congestion>) -> Arc<Self> {
        let inner = Inner { share, holders: BTreeMap::new(), next: 0, short: None, is_left: false };
        Arc::new(Self { clock, meter, congestion, inner: Mutex::new(inner), room: Notify::new() })
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

    /// Takes note that the link has new connections elsewhere, which nothing here holds back.
    pub(super) fn leave(&self) {
        let mut inner = self.lock();
        inner.is_left = true;
        self.meter.held_back.store(false, Ordering::Relaxed);
    }

    fn show(&self, inner: &Inner) {
        if !inner.is_left {
            self.meter.held_back.store(!inner.share.has_room(), Ordering::Relaxed);
        }
    }

    /// Takes note that there is no room, and of what follows from that.
    fn note_short(&self) {
        let now = self.clock.now().mono;
        let mut inner = self.lock();
        let held = inner.share.held();
        let goes_on = |short: &Shortage| now.saturating_sub(short.seen_at) < CONGESTED_AFTER;
        let since = inner.short.take().filter(goes_on).map_or((now, held), |short| (short.since, short.held));
        inner.short = Some(Shortage { since: since.0, held: since.1, seen_at: now });
        drop(inner);
        if since.0 + CONGESTED_AFTER <= now {
            self.congestion.set();
        }
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
            self.of.note_short();
            self.of.drop_stalled();
            let _woken = timeout(LOOK_AGAIN, self.of.room.notified()).await;
        }
    }

    /// Takes note that bytes have come.
    pub(super) fn take(&self, len: usize) {
        let now = self.of.clock.now().mono;
        let mut inner = self.of.lock();
        inner.share.take(len);
        self.of.meter.held.fetch_add(len, Ordering::Relaxed);
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
        inner.give_back(len);
        self.of.meter.held.fetch_sub(len, Ordering::Relaxed);
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
            inner.give_back(holder.held);
            self.of.meter.held.fetch_sub(holder.held, Ordering::Relaxed);
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
        let congestion = Congestion::new(&Arc::default());
        Untaken::new(Clock::start(), Arc::default(), Share::new(Budget::new(bytes, 1)), congestion)
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
        assert!(untaken.congestion.is_congested());
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

    #[tokio::test(start_paused = true)]
    async fn a_program_that_pauses_for_a_moment_congests_nothing() {
        let untaken = untaken(1000);
        let seat = untaken.seat(CancellationToken::new());
        for _ in 0..20 {
            seat.take(1000);
            let _waited = timeout(CONGESTED_AFTER / 2, seat.room()).await;
            seat.give_back(1000);
        }
        assert!(!untaken.congestion.is_congested());
        assert_eq!(untaken.meter.held.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn two_shortages_are_not_one() {
        let budget = Budget::new(1000, 2);
        let congestion = Congestion::new(&Arc::default());
        let untaken = Untaken::new(Clock::start(), Arc::default(), Share::new(Arc::clone(&budget)), congestion);
        let mut other = Share::new(budget);
        let seat = untaken.seat(CancellationToken::new());
        // More than is its own.
        seat.take(300);
        for _ in 0..2 {
            other.take(1000);
            assert!(!seat.has_room());
            let _waited = timeout(CONGESTED_AFTER / 5, seat.room()).await;
            // Another link makes room, and this one holds what it held.
            other.give_back(1000);
            assert!(seat.has_room());
            tokio::time::sleep(10 * CONGESTED_AFTER).await;
        }
        assert!(!untaken.congestion.is_congested());
    }

    #[tokio::test(start_paused = true)]
    async fn two_accounts_of_a_link_add_up_and_one_that_is_left_holds_nothing_back() {
        let (old, budget) = (untaken(1000), Budget::new(1000, 1));
        let congestion = Congestion::new(&Arc::default());
        let new = Untaken::new(old.clock, Arc::clone(&old.meter), Share::new(budget), congestion);
        let (slow, quick) = (old.seat(CancellationToken::new()), new.seat(CancellationToken::new()));
        slow.take(1000);
        assert!(old.meter.held_back.load(Ordering::Relaxed));
        old.leave();
        quick.take(10);
        slow.take(10);
        assert_eq!(old.meter.held.load(Ordering::Relaxed), 1020);
        assert!(!old.meter.held_back.load(Ordering::Relaxed));
        drop((slow, quick));
        assert_eq!(old.meter.held.load(Ordering::Relaxed), 0);
    }
}
