//! Connections that wait for a link: in arrival order, bounded in number and time.

use std::{collections::VecDeque, time::Duration};

use tracing::{debug, warn};

use crate::route::{Held, Io, PipeEnd};

/// The queue of a tunnel.
#[derive(Debug)]
pub(super) struct HeldConnections {
    /// Deadlines rise, as all wait for the same time.
    queue: VecDeque<Held>,
    limit: usize,
    hold_time: Duration,
}

impl HeldConnections {
    /// Creates an empty queue for at most `limit` connections, each of which waits for at most `hold_time`.
    pub(super) fn new(limit: usize, hold_time: Duration) -> Self {
        Self { queue: VecDeque::new(), limit, hold_time }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Adds a connection that has just been accepted, or resets it if there is no room.
    pub(super) fn push(&mut self, io: Io, now: Duration) {
        if self.queue.len() >= self.limit {
            warn!(limit = self.limit, "reset a connection: too many wait for a link");
            io.abort(PipeEnd::Lost);
            return;
        }
        self.queue.push_back(Held { io, deadline: now + self.hold_time });
    }

    /// Adds a connection that had been given to a link, at its place in the arrival order.
    pub(super) fn put_back(&mut self, held: Held) {
        let place = self.queue.partition_point(|other| other.deadline <= held.deadline);
        self.queue.insert(place, held);
    }

    /// Takes the connection that has waited longest.
    pub(super) fn pop(&mut self) -> Option<Held> {
        self.queue.pop_front()
    }

    /// Returns since when the connection that has waited longest has done so.
    pub(super) fn since(&self) -> Option<Duration> {
        self.queue.front().map(|held| held.deadline.saturating_sub(self.hold_time))
    }

    /// Returns when the next connection has waited too long.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.queue.front().map(|held| held.deadline)
    }

    /// Resets the connections that have waited too long.
    pub(super) fn expire(&mut self, now: Duration) {
        while let Some(held) = self.queue.pop_front_if(|held| held.deadline <= now) {
            debug!("reset a connection: no link in time");
            held.io.abort(PipeEnd::Lost);
        }
    }

    /// Resets all.
    pub(super) fn clear(&mut self) {
        for held in self.queue.drain(..) {
            held.io.abort(PipeEnd::Lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const HOLD_TIME: Duration = Duration::from_secs(30);

    fn connection() -> (Io, oneshot::Receiver<PipeEnd>) {
        let (end, ended) = oneshot::channel();
        (Io::pipe(tokio::io::duplex(1).0, end, None), ended)
    }

    #[test]
    fn keeps_the_order_of_arrival_and_both_bounds() {
        let secs = Duration::from_secs;
        let mut queue = HeldConnections::new(2, HOLD_TIME);
        assert_eq!(queue.since(), None);
        let (third, mut third_end) = connection();
        queue.push(third, secs(3));
        let (first, mut first_end) = connection();
        queue.put_back(Held { io: first, deadline: secs(1) + HOLD_TIME });
        let (second, mut second_end) = connection();
        queue.put_back(Held { io: second, deadline: secs(2) + HOLD_TIME });
        let (last, mut last_end) = connection();
        queue.push(last, secs(4));
        assert_eq!(last_end.try_recv(), Ok(PipeEnd::Lost), "there was no room");
        assert_eq!(queue.since(), Some(secs(1)));
        queue.expire(secs(1) + HOLD_TIME);
        assert_eq!(first_end.try_recv(), Ok(PipeEnd::Lost));
        assert_eq!(queue.deadline(), Some(secs(2) + HOLD_TIME));
        queue.clear();
        assert_eq!((second_end.try_recv(), third_end.try_recv()), (Ok(PipeEnd::Lost), Ok(PipeEnd::Lost)));
        assert!(queue.is_empty());
    }
}
