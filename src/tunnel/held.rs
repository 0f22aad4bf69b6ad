//! Connections that wait for a session: in arrival order, bounded in number and time.

use std::{collections::VecDeque, time::Duration};

use tracing::{debug, warn};

use super::connection::{Io, PipeEnd};

/// A local connection that waits for a stream.
#[derive(Debug)]
pub(super) struct Held {
    /// The connection.
    pub(super) io: Io,
    /// When it is reset if it still waits, as [`Now::mono`](crate::proto::Now::mono).
    pub(super) deadline: Duration,
}

/// The queue of a tunnel.
#[derive(Debug)]
pub(super) struct HeldConnections {
    /// Deadlines rise, as all wait for the same time.
    queue: VecDeque<Held>,
    limit: usize,
}

impl HeldConnections {
    /// Creates an empty queue for at most `limit` connections.
    pub(super) fn new(limit: usize) -> Self {
        Self { queue: VecDeque::new(), limit }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Adds a connection that has just been accepted, or resets it if there is no room.
    pub(super) fn push(&mut self, held: Held) {
        if self.queue.len() >= self.limit {
            warn!(limit = self.limit, "reset a connection: too many wait for a session");
            held.io.abort(PipeEnd::Lost);
            return;
        }
        self.queue.push_back(held);
    }

    /// Adds a connection that had been given to a session, at its place in the arrival order.
    pub(super) fn put_back(&mut self, held: Held) {
        let place = self.queue.partition_point(|other| other.deadline <= held.deadline);
        self.queue.insert(place, held);
    }

    /// Takes the connection that has waited longest.
    pub(super) fn pop(&mut self) -> Option<Held> {
        self.queue.pop_front()
    }

    /// Returns when the next connection has waited too long.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.queue.front().map(|held| held.deadline)
    }

    /// Resets the connections that have waited too long.
    pub(super) fn expire(&mut self, now: Duration) {
        while let Some(held) = self.queue.pop_front_if(|held| held.deadline <= now) {
            debug!("reset a connection: no session in time");
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

    fn held(seconds: u64) -> (Held, oneshot::Receiver<PipeEnd>) {
        let (end, ended) = oneshot::channel();
        let io = Io::Pipe { stream: tokio::io::duplex(1).0, end, probe: false };
        (Held { io, deadline: Duration::from_secs(seconds) }, ended)
    }

    #[test]
    fn keeps_the_order_of_arrival_and_both_bounds() {
        let mut queue = HeldConnections::new(2);
        let mut ends: Vec<_> = [3, 1, 2, 4]
            .into_iter()
            .map(|seconds| {
                let (held, end) = held(seconds);
                if seconds == 1 || seconds == 2 {
                    queue.put_back(held)
                } else {
                    queue.push(held)
                }
                end
            })
            .collect();
        assert_eq!(ends[3].try_recv(), Ok(PipeEnd::Lost), "there was no room");
        queue.expire(Duration::from_secs(1));
        assert_eq!(ends[1].try_recv(), Ok(PipeEnd::Lost));
        assert_eq!(queue.deadline(), Some(Duration::from_secs(2)));
        queue.clear();
        assert_eq!(ends[2].try_recv(), Ok(PipeEnd::Lost));
        assert_eq!(ends[0].try_recv(), Ok(PipeEnd::Lost));
        assert!(queue.is_empty());
    }
}
