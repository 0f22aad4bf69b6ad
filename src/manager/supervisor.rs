//! Owns all tunnels: starts them, shows them on one board, stops them together.
//!
//! Invariants: a tunnel that fails or panics does not touch the others; the board is made only of
//! what the tunnels say themselves; a stop is bounded whatever the tunnels do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    clock::Clock,
    tunnel::{Common, State, Tunnel, TunnelStatus},
};

/// How long a stop may take before what is left is cut. Tunnels bound their own steps below it.
const STOP_LIMIT: Duration = Duration::from_secs(8);

/// The state of the tunnels together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overall {
    /// None has failed, and not all work yet.
    Starting,
    Active,
    /// Some work.
    Degraded,
    /// None works, and at least one needs a human.
    Failed,
    Stopping,
}

impl Overall {
    /// Returns the state's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
        }
    }
}

/// All tunnels at one moment.
#[derive(Debug, Clone)]
pub struct Board {
    /// In the order in which they were started.
    pub tunnels: Vec<TunnelStatus>,
    /// A stop has been asked for.
    pub stopping: bool,
    /// Since when they have been together in their [state](Self::overall).
    pub since: SystemTime,
    /// How often something has changed that is no mere figure. With many tunnels figures change all the time: who looks at all
    /// tunnels waits for this one to change.
    pub news: u64,
}

impl Board {
    /// Whether every tunnel can be used.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.tunnels.iter().all(TunnelStatus::is_ready)
    }

    /// Returns the state of the tunnels together.
    #[must_use]
    pub fn overall(&self) -> Overall {
        if self.stopping {
            return Overall::Stopping;
        }
        let works = self.tunnels.iter().filter(|tunnel| tunnel.is_ready()).count();
        let failed = self.tunnels.iter().any(|tunnel| matches!(tunnel.state, State::Failed | State::Stopped));
        let starting = self.tunnels.iter().all(|tunnel| tunnel.ready_at.is_none() || tunnel.is_ready());
        if works == self.tunnels.len() {
            Overall::Active
        } else if !failed && starting {
            Overall::Starting
        } else if works == 0 && failed {
            Overall::Failed
        } else {
            Overall::Degraded
        }
    }
}

/// Not all tunnels were ready in time.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{} of {} tunnels are not ready after {} s", waiting(.board), .board.tunnels.len(), .limit.as_secs())]
pub struct NotReady {
    /// The tunnels as they were then.
    pub board: Board,
    /// How long was waited.
    pub limit: Duration,
}

fn waiting(board: &Board) -> usize {
    board.tunnels.iter().filter(|tunnel| !tunnel.is_ready()).count()
}

/// Owns the tunnels' tasks. Dropping it cuts them; [`stop`](Self::stop) ends them in good order.
#[derive(Debug)]
pub struct Supervisor {
    tunnels: JoinSet<()>,
    board: Arc<watch::Sender<Board>>,
    stop: CancellationToken,
    /// Ends one tunnel, by its port.
    stops: BTreeMap<u16, CancellationToken>,
    wanted: Wanted,
    common: Arc<Common>,
}

/// Tells tunnels, by their ports, that a connection will come soon. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Wanted(Arc<Mutex<BTreeMap<u16, Arc<Notify>>>>);

impl Wanted {
    /// Tells the tunnel on a port.
    pub fn tell(&self, port: u16) {
        if let Some(tunnel) = self.all().get(&port) {
            tunnel.notify_one();
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u16, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl Supervisor {
    /// Creates a supervisor without tunnels.
    #[must_use]
    pub fn new() -> Self {
        Self::with_clock(Clock::start())
    }

    /// Creates a supervisor without tunnels that goes by this clock.
    #[must_use]
    pub fn with_clock(clock: Clock) -> Self {
        let board = Board { tunnels: Vec::new(), stopping: false, since: wall(clock), news: 0 };
        Self {
            tunnels: JoinSet::new(),
            board: Arc::new(watch::Sender::new(board)),
            stop: CancellationToken::new(),
            stops: BTreeMap::new(),
            wanted: Wanted::default(),
            common: Common::new(clock),
        }
    }

    /// Returns what tunnels of one identity share, to be given to each.
    #[must_use]
    pub fn common(&self) -> Arc<Common> {
        Arc::clone(&self.common)
    }

    /// Returns what tells tunnels that they are wanted.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        self.wanted.clone()
    }

    #[must_use]
    pub fn clock(&self) -> Clock {
        self.common.clock()
    }

    /// Starts a tunnel. Its port is its name here: no other tunnel may have it.
    pub fn start(&mut self, tunnel: Tunnel) {
        let status = tunnel.status();
        let first = status.borrow().clone();
        let port = first.port;
        change(&self.board, self.clock(), |board| board.tunnels.push(first));
        let stop = self.stop.child_token();
        self.stops.insert(port, stop.clone());
        self.wanted.all().insert(port, tunnel.wanted());
        let board = Arc::clone(&self.board);
        self.tunnels.spawn(supervise(tunnel, status, port, board, stop, self.common.clock()));
    }

    /// Ends the tunnels on these ports in good order, and takes them off the board. Returns when they are off it,
    /// so that the ports can be used again.
    ///
    /// # Cancel safety
    /// When it is dropped, the tunnels end all the same.
    pub async fn end(&mut self, ports: &[u16]) {
        for port in ports {
            if let Some(stop) = self.stops.remove(port) {
                stop.cancel();
            }
            self.wanted.all().remove(port);
        }
        let ports: BTreeSet<_> = ports.iter().collect();
        let is_gone = |board: &Board| board.tunnels.iter().all(|tunnel| !ports.contains(&tunnel.port));
        // The sender is in this value; each tunnel bounds its own end.
        let mut board = self.board();
        let _outcome = board.wait_for(is_gone).await;
        while self.tunnels.try_join_next().is_some() {}
    }

    /// Returns the board, now and later. Figures such as bytes and round trips are no change.
    #[must_use]
    pub fn board(&self) -> watch::Receiver<Board> {
        self.board.subscribe()
    }

    /// Waits until every tunnel is ready.
    ///
    /// # Errors
    /// [`NotReady`] when that has not come by `limit`. The tunnels go on.
    ///
    /// # Cancel safety
    /// Changes nothing, so it may be dropped at any time.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), NotReady> {
        let mut board = self.board();
        let ready = timeout(limit, board.wait_for(Board::is_ready)).await.is_ok_and(|outcome| outcome.is_ok());
        if ready { Ok(()) } else { Err(NotReady { board: self.board.borrow().clone(), limit }) }
    }

    /// Stops all tunnels at once, within a bounded time. Returns whether all ended in good order.
    pub async fn stop(mut self) -> bool {
        change(&self.board, self.clock(), |board| board.stopping = true);
        self.stop.cancel();
        let joined = timeout(STOP_LIMIT, async { while self.tunnels.join_next().await.is_some() {} }).await;
        if joined.is_err() {
            warn!(left = self.tunnels.len(), "tunnels did not stop in time: their sessions may have to time out");
            self.tunnels.shutdown().await;
        }
        joined.is_ok()
    }
}

/// Runs one tunnel, and copies what it says to its place on the board. A tunnel that is stopped alone leaves the board;
/// one that ends by itself, or with all others, stays on it.
async fn supervise(
    tunnel: Tunnel,
    mut status: watch::Receiver<TunnelStatus>,
    port: u16,
    board: Arc<watch::Sender<Board>>,
    stop: CancellationToken,
    clock: Clock,
) {
    let name = status.borrow().to.name().to_owned();
    let mut place = 0;
    let mut copy = |status: &mut watch::Receiver<TunnelStatus>| {
        let status = status.borrow_and_update().clone();
        put(&board, &mut place, status, clock);
    };
    let mut task = JoinSet::new();
    task.spawn(tunnel.run(stop.clone()));
    let ended = loop {
        tokio::select! {
            biased;
            ended = task.join_next() => break ended,
            Ok(()) = status.changed() => copy(&mut status),
        }
    };
    copy(&mut status);
    let panic = ended.and_then(|ended| ended.err()).and_then(|error| error.try_into_panic().ok());
    let message = panic.map(|panic| panic_message(&*panic));
    if let Some(message) = &message {
        error!(to = name, message, "tunnel panicked: the others go on");
    }
    change(&board, clock, |board| {
        if stop.is_cancelled() && !board.stopping {
            board.tunnels.retain(|tunnel| tunnel.port != port);
        } else if let (Some(message), Some(tunnel)) =
            (message, board.tunnels.iter_mut().find(|tunnel| tunnel.port == port))
        {
            tunnel.set_panicked(message, clock.now());
        }
    });
}

/// Puts a tunnel's status on the board, if it is on it: at its place, which changes when others leave. Whoever waits for a
/// change is not woken by figures, of which there are many where there are many tunnels.
fn put(board: &watch::Sender<Board>, place: &mut usize, status: TunnelStatus, clock: Clock) {
    board.send_if_modified(|board| {
        if board.tunnels.get(*place).is_none_or(|tunnel| tunnel.port != status.port) {
            let found = board.tunnels.iter().position(|tunnel| tunnel.port == status.port);
            let Some(found) = found else { return false };
            *place = found;
        }
        let before = &mut board.tunnels[*place];
        if status.is_news(before) {
            note(board, clock, |board| board.tunnels[*place] = status);
            return true;
        }
        let wakes = status.connections() != before.connections();
        *before = status;
        wakes
    });
}

/// Makes a change that is news.
fn change(board: &watch::Sender<Board>, clock: Clock, change: impl FnOnce(&mut Board)) {
    board.send_modify(|board| note(board, clock, change));
}

/// Changes the board, and notes the time if the tunnels together are in another state then.
fn note(board: &mut Board, clock: Clock, change: impl FnOnce(&mut Board)) {
    let before = board.overall();
    change(board);
    board.news += 1;
    if board.overall() != before {
        board.since = wall(clock);
    }
}

fn wall(clock: Clock) -> SystemTime {
    SystemTime::UNIX_EPOCH + clock.now().wall
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::{
        cluster::{Cluster, Destination, Origin},
        remote::Remote,
        route::{Mailbox, ProbeError, Route},
        tunnel::{Admission, Config, Listeners},
    };

    /// Never gets anywhere, in one of two ways.
    #[derive(Debug)]
    struct Nowhere {
        panics: bool,
    }

    impl Route for Nowhere {
        fn label(&self) -> String {
            "nowhere".to_owned()
        }

        fn run(self: Arc<Self>, _to: Arc<Remote>, mailbox: Mailbox) -> BoxFuture<'static, ()> {
            assert!(!self.panics, "a bug");
            Box::pin(async move { mailbox.stop.cancelled().await })
        }

        fn advise(&self, _to: &Remote, _error: &ProbeError) -> Vec<String> {
            Vec::new()
        }

        fn advise_silence(&self) -> Vec<String> {
            Vec::new()
        }
    }

    fn tunnel(supervisor: &Supervisor, name: &str, panics: bool) -> Tunnel {
        let cluster = Cluster {
            name: name.into(),
            region: "eu-west-1".into(),
            account: "123456789012".into(),
            id: String::new(),
            endpoint: Destination { host: "api.example".into(), port: 443 },
            certificate_authority: Some(String::new()),
            origin: Origin::Eks { token_name: name.into() },
            vpc: None,
        };
        let listeners = Listeners::bind(0, 1, false, Admission::owner()).unwrap().listeners.remove(0);
        let routes = vec![Arc::new(Nowhere { panics }) as Arc<dyn Route>];
        Tunnel::new(cluster, routes, listeners, Config::default(), supervisor.common())
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_stays_within_its_tunnel() {
        let mut supervisor = Supervisor::new();
        for (name, panics) in [("good", false), ("bad", true)] {
            let tunnel = tunnel(&supervisor, name, panics);
            supervisor.start(tunnel);
        }
        let mut board = supervisor.board();
        let limit = Duration::from_secs(60);
        let failed = |board: &Board| {
            let error = board.tunnels[1].last_error.as_ref();
            error.is_some_and(|error| error.to_string() == "the tunnel's task panicked: a bug")
        };
        let board = timeout(limit, board.wait_for(failed)).await.unwrap().unwrap().clone();
        assert_eq!(board.tunnels[1].state, State::Failed);
        let error = supervisor.wait_ready(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.to_string(), "2 of 2 tunnels are not ready after 5 s");
        assert!(supervisor.stop().await, "the other one stops in good order");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_that_is_ended_leaves_the_board_and_its_port() {
        let mut supervisor = Supervisor::new();
        for name in ["one", "two", "three"] {
            let tunnel = tunnel(&supervisor, name, false);
            supervisor.start(tunnel);
        }
        let ports = |supervisor: &Supervisor| -> Vec<u16> {
            supervisor.board().borrow().tunnels.iter().map(|tunnel| tunnel.port).collect()
        };
        let before = ports(&supervisor);
        assert_eq!(before.len(), 3);
        timeout(Duration::from_secs(60), supervisor.end(&before[1..])).await.unwrap();
        assert_eq!(ports(&supervisor), before[..1]);
        for port in &before[1..] {
            assert!(Listeners::bind(*port, 1, true, Admission::owner()).is_ok(), "{port} is free again");
        }
        assert!(supervisor.stop().await);
    }

    #[tokio::test(start_paused = true)]
    async fn figures_wake_nobody_and_are_seen_by_whoever_looks() {
        let mut supervisor = Supervisor::new();
        for name in ["one", "two"] {
            let tunnel = tunnel(&supervisor, name, false);
            supervisor.start(tunnel);
        }
        let (clock, mut watcher, mut place) = (supervisor.clock(), supervisor.board(), 0);
        let mut status = watcher.borrow_and_update().tunnels[1].clone();
        let news = watcher.borrow().news;
        status.bytes_received = 7;
        put(&supervisor.board, &mut place, status.clone(), clock);
        assert_eq!((place, watcher.has_changed().unwrap()), (1, false));
        assert_eq!((watcher.borrow().tunnels[1].bytes_received, watcher.borrow().news), (7, news));
        status.open_connections = 1;
        put(&supervisor.board, &mut place, status.clone(), clock);
        assert!(watcher.has_changed().unwrap(), "somebody may wait for the last connection");
        assert_eq!(watcher.borrow_and_update().news, news);
        supervisor.board.send_modify(|board| drop(board.tunnels.remove(0)));
        watcher.mark_unchanged();
        status.state = State::Failed;
        put(&supervisor.board, &mut place, status.clone(), clock);
        assert_eq!((place, watcher.has_changed().unwrap(), watcher.borrow().news), (0, true, news + 1));
        status.port += 1;
        put(&supervisor.board, &mut place, status, clock);
        assert_eq!(watcher.borrow_and_update().tunnels.len(), 1, "who has left does not come back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_board_sums_up() {
        let supervisor = Supervisor::new();
        let status = tunnel(&supervisor, "any", false).status().borrow().clone();
        let of = |states: &[(State, bool)]| {
            let tunnels = states
                .iter()
                .map(|&(state, was_ready)| TunnelStatus {
                    state,
                    ready_at: was_ready.then_some(SystemTime::UNIX_EPOCH),
                    ..status.clone()
                })
                .collect();
            Board { tunnels, stopping: false, since: SystemTime::UNIX_EPOCH, news: 0 }.overall()
        };
        let (starting, active, away, failed) =
            ((State::Starting, false), (State::Active, true), (State::Reconnecting, true), (State::Failed, false));
        assert_eq!(of(&[]), Overall::Active);
        assert_eq!(of(&[starting, starting]), Overall::Starting);
        assert_eq!(of(&[starting, active]), Overall::Starting);
        assert_eq!(of(&[active, active]), Overall::Active);
        assert_eq!(of(&[active, away]), Overall::Degraded);
        assert_eq!(of(&[active, failed]), Overall::Degraded);
        assert_eq!(of(&[away, away]), Overall::Degraded);
        assert_eq!(of(&[failed, starting]), Overall::Failed);
        assert_eq!(of(&[failed, away]), Overall::Failed);
        let (idle, waking) = ((State::Idle, true), (State::Starting, true));
        assert_eq!(of(&[active, idle, waking]), Overall::Active);
        assert_eq!(of(&[idle, away]), Overall::Degraded);
        assert_eq!(of(&[starting, idle]), Overall::Starting);
    }
}
