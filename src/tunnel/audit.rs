//! Evidence of connections: which there were, whose, where to, and what they carried.
//!
//! Whoever keeps it takes [`Record`]s from the [`Audit`]'s other end. It never holds up a connection: what it does not take in
//! time is counted as lost.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::sync::mpsc;

use super::status::system_time;
use crate::{
    clock::Clock,
    remote::Remote,
    route::{Carried, Ends, Io},
};

/// Records that wait for being taken. It bounds what a program gone wild can take of memory; they are some hundred bytes each.
const MAX_WAITING: usize = 4096;

/// Where connections are told. Cheap to clone; all clones number connections together.
#[derive(Debug, Clone)]
pub struct Audit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    records: mpsc::Sender<Option<Record>>,
    last: AtomicU64,
    lost: Arc<AtomicU64>,
    /// On whose behalf this process itself connects, by the address that it connects from.
    introduced: Mutex<BTreeMap<SocketAddr, Ends>>,
}

/// What has happened to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Opened(Opened),
    Closed(Closed),
}

/// A connection has been accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Which one it is, from 1 on.
    pub number: u64,
    pub at: SystemTime,
    pub to: Arc<Remote>,
    /// The tunnel's local port.
    pub port: u16,
    /// By which connection of this machine it came.
    pub ends: Option<Ends>,
    /// It came through the proxy, to which these ends lead.
    pub by_proxy: bool,
}

/// A connection has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    pub number: u64,
    pub at: SystemTime,
    pub to: Arc<Remote>,
    pub lasted: Duration,
    pub carried: Carried,
}

/// What takes the records.
#[derive(Debug)]
pub struct Records {
    /// `None` is the last.
    records: mpsc::Receiver<Option<Record>>,
    lost: Arc<AtomicU64>,
}

impl Audit {
    /// Creates one, and what takes its records.
    #[must_use]
    pub fn new() -> (Self, Records) {
        let (sender, records) = mpsc::channel(MAX_WAITING);
        let lost = Arc::<AtomicU64>::default();
        let shared = Shared { records: sender, last: 0.into(), lost: Arc::clone(&lost), introduced: Mutex::default() };
        (Self(Arc::new(shared)), Records { records, lost })
    }

    /// Says on whose behalf this process is about to connect from an address.
    pub fn introduce(&self, from: SocketAddr, client: Ends) {
        self.introduced().insert(from, client);
    }

    /// Forgets what was said of an address that has not been connected from.
    pub fn forget(&self, from: SocketAddr) {
        self.introduced().remove(&from);
    }

    /// Tells of a connection that has been accepted, now and when it has ended.
    pub(super) fn opened(&self, io: &mut Io, to: &Arc<Remote>, port: u16, clock: Clock) {
        let number = self.0.last.fetch_add(1, Ordering::Relaxed) + 1;
        let opened = clock.now();
        let client = io.ends().and_then(|ends| self.introduced().remove(&ends.peer));
        self.tell(Record::Opened(Opened {
            number,
            at: system_time(opened.wall),
            to: Arc::clone(to),
            port,
            ends: client.or(io.ends()),
            by_proxy: client.is_some(),
        }));
        let (audit, to) = (self.clone(), Arc::clone(to));
        io.account_to(move |carried| {
            let now = clock.now();
            audit.tell(Record::Closed(Closed {
                number,
                at: system_time(now.wall),
                to,
                lasted: now.mono.saturating_sub(opened.mono),
                carried,
            }));
        });
    }

    /// Says that there will be no more.
    pub async fn end(&self) {
        // Whoever takes them may have ended.
        let _outcome = self.0.records.send(None).await;
    }

    fn tell(&self, record: Record) {
        if self.0.records.try_send(Some(record)).is_err() {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn introduced(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Ends>> {
        self.0.introduced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    /// Waits for the next; `None`: there will be no more.
    ///
    /// # Panics
    /// In a task: it blocks.
    pub fn wait(&mut self) -> Option<Record> {
        self.records.blocking_recv().flatten()
    }

    #[cfg(test)]
    async fn soon(&mut self) -> Option<Record> {
        self.records.recv().await.flatten()
    }

    /// Returns how many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.records.len()
    }

    /// Returns how many have been lost since the last call.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::{
        cluster::Destination,
        remote::Host,
        route::{CarriedBy, PipeEnd},
    };

    fn host() -> Arc<Remote> {
        Arc::new(Remote::from(Host {
            name: "db".to_owned(),
            region: "us-east-1".to_owned(),
            account: "111122223333".to_owned(),
            endpoint: Destination { host: "db.internal".to_owned(), port: 5432 },
            vpc: None,
        }))
    }

    #[tokio::test]
    async fn tells_what_a_connection_carried_and_how_it_ended() {
        let (audit, mut records) = Audit::new();
        let clock = Clock::start();
        let (mut program, theirs) = tokio::io::duplex(64);
        let mut io = Io::pipe(theirs, tokio::sync::oneshot::channel().0, None);
        audit.opened(&mut io, &host(), 10100, clock);
        program.write_all(b"hello").await.unwrap();
        io.read_exact(&mut [0; 5]).await.unwrap();
        io.write_all(b"hello you").await.unwrap();
        let link = CarriedBy { route: "i-1".to_owned(), id: Some("alice-1".to_owned()) };
        io.note_link(|| Some(link.clone()));
        io.abort(PipeEnd::Refused);
        let Some(Record::Opened(opened)) = records.soon().await else { panic!("it was opened") };
        assert_eq!((opened.number, opened.port, opened.ends, opened.by_proxy), (1, 10100, None, false));
        let Some(Record::Closed(closed)) = records.soon().await else { panic!("it was closed") };
        let carried = Carried { bytes_sent: 5, bytes_received: 9, link: Some(link), reset: Some(PipeEnd::Refused) };
        assert_eq!((closed.number, closed.carried), (1, carried));
        assert!(closed.at >= opened.at);
    }

    #[tokio::test]
    async fn names_those_who_come_through_the_proxy() {
        let (audit, mut records) = Audit::new();
        let ends = |peer: &str, local: &str| Ends { peer: peer.parse().unwrap(), local: local.parse().unwrap() };
        let client = ends("127.0.0.1:5000", "127.0.0.1:10099");
        let own = ends("127.0.0.1:6000", "127.0.0.1:10100");
        audit.introduce(own.peer, client);
        for by_proxy in [true, false] {
            let mut io = Io::pipe(tokio::io::duplex(1).0, tokio::sync::oneshot::channel().0, Some(own));
            audit.opened(&mut io, &host(), 10100, Clock::start());
            let Some(Record::Opened(opened)) = records.soon().await else { panic!("it was opened") };
            assert_eq!((opened.by_proxy, opened.ends), (by_proxy, Some(if by_proxy { client } else { own })));
            drop(io);
            records.soon().await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_nobody_takes_is_counted() {
        let (audit, records) = Audit::new();
        for _ in 0..MAX_WAITING {
            let mut io = Io::pipe(tokio::io::duplex(1).0, tokio::sync::oneshot::channel().0, None);
            audit.opened(&mut io, &host(), 10100, Clock::start());
        }
        assert_eq!((records.waiting(), records.lost(), records.lost()), (MAX_WAITING, MAX_WAITING as u64, 0));
    }
}
