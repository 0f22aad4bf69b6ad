//! A tunnel: one cluster's local port, and the sessions that carry its connections.
//!
//! [`Tunnel`] accepts connections, holds them while no session can take them, and gives each to the
//! session where it gets through soonest. Sessions come and go behind the listener: each has a task
//! that starts, drives, resumes and replaces it, and a prober that proves that it leads to the API server.
//!
//! ```text
//! Listeners ── Tunnel ── held connections ── Sessions ──► SessionTask ── Driver { PortSession, connections } ── Transport
//!                ▲                                             │ Prober ──┘
//!                └────────────────── reports ──────────────────┘
//! ```
//!
//! Invariants: the listener is bound until the stop, whatever happens to sessions; every connection
//! that was accepted is served, held for a bounded time, or reset; the tunnel is the only source of
//! its [`TunnelStatus`].
//!
//! Knows sessions only through [`Dial`]: nothing of AWS, kubeconfigs or the command line.

mod admission;
mod budget;
mod common;
mod connection;
pub mod dial;
mod driver;
mod fault;
mod held;
mod listener;
mod liveness;
mod load;
mod member;
mod memory;
mod meter;
mod policy;
mod probe;
mod prober;
mod ready;
mod report;
mod session;
mod sessions;
mod solo;
mod status;
#[cfg(test)]
mod tests;
pub mod transport;

use std::{io, sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};
use uuid::Uuid;

pub use self::{
    admission::Admission,
    common::Common,
    dial::{BoxError, Dial, DialError, SessionHandle, SessionId},
    fault::{Fault, with_causes},
    listener::{BindError, Bound, Listeners, PortOwner, PortTaken, Ports},
    memory::{MemoryConnection, MemoryPort},
    probe::{Probe, ProbeError},
    solo::SoloSession,
    status::{LastError, ProbeStatus, SessionStatus, State, TunnelStatus},
    transport::{Connection, Incoming, Transport, TransportError},
};
use self::{
    budget::RECEIVE_BUDGET,
    connection::{Io, PipeEnd},
    held::HeldConnections,
    report::Report,
    session::Shared,
    sessions::Sessions,
    status::system_time,
};
use crate::{
    cluster::{Cluster, Target},
    route::ssm::proto,
};

/// How often a status with moving counters is published.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Pause after an error of the listener. Errors such as too many open files pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Settings of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Settings of each session. The time for the handshake is how long the tunnel may take to come up: what a session gets
    /// of it depends on how many targets there are.
    pub session: proto::Config,
    /// Bytes received that local programs have not taken, over all sessions. When they are spent, sessions are read only
    /// as fast as programs take what is there. It keeps slow programs from filling the memory.
    pub receive_budget: usize,
    /// How many sessions carry the tunnel's connections at most, at least 1. One is always there, others while there is
    /// something to share: an agent sends 0.6 to 0.8 MB/s through one.
    pub sessions: usize,
    /// What it takes for the tunnel to be ready.
    pub readiness: Readiness,
    /// How long the path to the API server may go unproved before it is probed; zero: it is probed
    /// once for each new session, and sessions may idle out until a connection needs one.
    pub probe_interval: Duration,
    /// How long a lost transport is tried to be replaced before a new session is started, which
    /// resets open connections.
    pub resume_budget: Duration,
    /// How long a connection waits for a session before it is reset.
    pub hold_time: Duration,
    /// How many connections are open at most, waiting ones included. It bounds what a program gone wild, or many
    /// that open connections and never use them, can take of memory and file descriptors.
    pub max_connections: usize,
    /// How many connections wait for a session at most. It bounds what a client that tries again and
    /// again can pile up.
    pub held_connections: usize,
    /// How long open connections have for ending by themselves when the tunnel is stopped.
    pub grace: Duration,
    /// Seed of delays and message ids; `None`: a random one.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            session: proto::Config::default(),
            receive_budget: RECEIVE_BUDGET,
            sessions: 1,
            readiness: Readiness::Proved,
            probe_interval: Duration::from_secs(30),
            resume_budget: Duration::from_secs(90),
            hold_time: Duration::from_secs(30),
            max_connections: 1024,
            held_connections: 256,
            grace: Duration::from_secs(1),
            seed: None,
        }
    }
}

impl Config {
    /// Whether idle sessions are kept from being ended by the service.
    fn keeps_warm(&self) -> bool {
        self.readiness == Readiness::Established || !self.probe_interval.is_zero()
    }
}

/// What it takes for a tunnel to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The API server has answered through it, with a certificate that verifies.
    Proved,
    /// The agent has completed its handshake. For destinations that are not API servers.
    Established,
}

/// One cluster's tunnel. See the module's documentation.
pub struct Tunnel {
    shared: Arc<Shared>,
    listeners: Listeners,
    status: watch::Sender<TunnelStatus>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("cluster", &self.shared.cluster.name).finish_non_exhaustive()
    }
}

impl Tunnel {
    /// Creates a tunnel, which does nothing until it is [run](Self::run). `targets` are tried in
    /// order. `common` is the same for all tunnels of a manager.
    ///
    /// # Panics
    /// If there is no target.
    #[must_use]
    pub fn new(
        cluster: Cluster,
        targets: Vec<Target>,
        dial: Arc<dyn Dial>,
        listeners: Listeners,
        config: Config,
        common: Arc<Common>,
    ) -> Self {
        assert!(!targets.is_empty(), "a tunnel needs a target");
        let cluster = Arc::new(cluster);
        let status = TunnelStatus {
            cluster: Arc::clone(&cluster),
            port: listeners.port(),
            state: State::Starting,
            since: system_time(common.clock().now().wall),
            ready_at: None,
            sessions: Vec::new(),
            open_connections: 0,
            held_connections: 0,
            connections_total: 0,
            bytes_sent: 0,
            bytes_received: 0,
            resumes: 0,
            restarts: 0,
            last_error: None,
            last_probe: None,
        };
        let shared = Arc::new(Shared { cluster, targets, dial, config, common });
        Self { shared, listeners, status: watch::Sender::new(status) }
    }

    /// Returns what the tunnel shows of itself, now and later.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<TunnelStatus> {
        self.status.subscribe()
    }

    /// Keeps the tunnel open until `stop` is cancelled, then ends its sessions in good order, which
    /// takes up to five seconds.
    ///
    /// # Panics
    /// If one of its tasks does.
    ///
    /// # Cancel safety
    /// None: dropping the future leaves sessions to be ended by the service.
    pub async fn run(self, stop: CancellationToken) {
        let span = info_span!("tunnel", cluster = %self.shared.cluster.name);
        let Self { shared, listeners, status } = self;
        let task = async { Running::start(shared, status, &stop).run(listeners, stop).await };
        task.instrument(span).await;
    }
}

/// A tunnel whose sessions' tasks are running.
struct Running {
    shared: Arc<Shared>,
    status: watch::Sender<TunnelStatus>,
    sessions: Sessions,
    reports: mpsc::UnboundedReceiver<(usize, Report)>,
    held: HeldConnections,
    /// Something has changed that is to be seen at once.
    changed: bool,
    /// When counters that may have moved are published; `None`: they stand still.
    publish_at: Option<Duration>,
    /// Connections are being reset as there are too many.
    overrun: bool,
}

impl Running {
    fn start(shared: Arc<Shared>, status: watch::Sender<TunnelStatus>, stop: &CancellationToken) -> Self {
        let seed = shared.config.seed.unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0);
        let (report_sender, reports) = mpsc::unbounded_channel();
        Self {
            held: HeldConnections::new(shared.config.held_connections, shared.config.hold_time),
            sessions: Sessions::start(Arc::clone(&shared), seed, report_sender, stop.clone()),
            reports,
            changed: true,
            publish_at: None,
            overrun: false,
            status,
            shared,
        }
    }

    async fn run(mut self, mut listeners: Listeners, stop: CancellationToken) {
        let clock = self.shared.common.clock();
        let sleep_until = |at: Duration| tokio::time::sleep_until(clock.instant(at));
        let mut accept_again = Duration::ZERO;
        loop {
            self.publish();
            let now = clock.now().mono;
            let review_at = self.sessions.deadline(now, self.held.since());
            let timers = [self.held.deadline(), self.publish_at, review_at];
            let due = timers.into_iter().flatten().min();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some((number, report)) = self.reports.recv() => {
                    self.handle_report(number, report);
                    // What came together is judged together.
                    while let Ok((number, report)) = self.reports.try_recv() {
                        self.handle_report(number, report);
                    }
                }
                Some(()) = self.sessions.join_next(|| clock.now()) => self.changed = true,
                accepted = listeners.accept(), if accept_again <= now => match accepted {
                    Ok(io) => self.hold(io),
                    Err(error) => {
                        accept_again = now + accept_pause(&error);
                    }
                },
                () = sleep_until(accept_again), if accept_again > now => {}
                () = sleep_until(due.unwrap_or_default()), if due.is_some() => self.handle_timers(),
            }
            self.sessions.review(clock.now());
            self.dispatch();
        }
        drop(listeners);
        self.held.clear();
        self.sessions.stop_probers().await;
        self.stop_sessions().await;
    }

    async fn stop_sessions(&mut self) {
        info!("stopping");
        let clock = self.shared.common.clock();
        loop {
            tokio::select! {
                biased;
                Some((number, report)) = self.reports.recv() => self.handle_report(number, report),
                ended = self.sessions.join_next(|| clock.now()) => if ended.is_none() { break },
            }
            self.held.clear();
            self.publish();
        }
        // Their last reports, connections among them.
        while let Ok((number, report)) = self.reports.try_recv() {
            self.handle_report(number, report);
        }
        self.held.clear();
        self.publish();
        self.status.send_modify(|status| {
            status.state = State::Stopped;
            status.since = system_time(clock.now().wall);
            status.sessions.clear();
            status.open_connections = 0;
            status.held_connections = 0;
        });
    }

    /// Takes a connection that has just been accepted.
    fn hold(&mut self, io: Io) {
        let now = self.shared.common.clock().now().mono;
        let limit = self.shared.config.max_connections;
        if self.sessions.open_connections() + self.held.len() >= limit {
            if !std::mem::replace(&mut self.overrun, true) {
                warn!(limit, "too many connections are open: further ones are reset until some of them end");
            }
            io.abort(PipeEnd::Lost);
            return;
        }
        self.overrun = false;
        self.held.push(io, now);
        self.publish_at.get_or_insert(now + STATUS_INTERVAL);
    }

    fn handle_timers(&mut self) {
        let now = self.shared.common.clock().now().mono;
        self.held.expire(now);
        self.changed |= self.publish_at.is_some_and(|at| at <= now);
    }

    fn handle_report(&mut self, number: usize, report: Report) {
        let now = self.shared.common.clock().now();
        match report {
            Report::Returned(held) => {
                self.changed = true;
                self.held.put_back(held);
                return;
            }
            Report::Probed(Ok(answer)) => self.status.send_modify(|status| {
                status.last_probe = Some(ProbeStatus {
                    at: system_time(now.wall),
                    round_trip: answer.round_trip,
                    http_status: answer.status,
                });
            }),
            Report::Established { ref customer_message, .. } if !customer_message.is_empty() => {
                info!(%customer_message, "the agent has a message");
            }
            // These come often, and are not shown.
            Report::Backlog(_) | Report::Suspect | Report::Slept => {
                self.sessions.apply(number, report, now);
                return;
            }
            Report::Dialing { .. }
            | Report::Started(_)
            | Report::Established { .. }
            | Report::Alive
            | Report::Lost(_)
            | Report::Resumed
            | Report::Ended { .. }
            | Report::Refused
            | Report::Probed(Err(_)) => {}
        }
        self.changed = true;
        if let Some(fault) = self.sessions.apply(number, report, now) {
            let error = LastError { at: system_time(now.wall), fault };
            self.status.send_modify(|status| status.last_error = Some(error));
        }
    }

    /// Gives held connections to sessions that can take them, in arrival order.
    fn dispatch(&mut self) {
        let now = self.shared.common.clock().now();
        while let Some(since) = self.held.since() {
            let waited = now.mono.saturating_sub(since);
            let Some(number) = self.sessions.assign(now, self.held.len(), waited) else { break };
            let Some(held) = self.held.pop() else { break };
            if let Err(held) = self.sessions.give(number, held, now) {
                // Its end comes next, and then another is chosen.
                self.held.put_back(held);
                break;
            }
        }
        if !self.held.is_empty() {
            self.sessions.wake();
        }
    }

    /// Publishes the status, if something has changed.
    fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let now = self.shared.common.clock().now();
        let state = self.sessions.state();
        let sessions = self.sessions.statuses();
        let totals = self.sessions.totals();
        let held_connections = self.held.len();
        let open_connections = self.sessions.open_connections() + held_connections;
        // With connections open the counters may move at any time; without, once more at most.
        let busy = open_connections > 0 || self.status.borrow().open_connections > 0;
        self.publish_at = busy.then_some(now.mono + STATUS_INTERVAL);
        self.status.send_modify(|status| {
            if status.state != state {
                info!(from = %status.state, to = %state, "tunnel is {state}");
                status.state = state;
                status.since = system_time(now.wall);
            }
            if state == State::Active {
                status.ready_at.get_or_insert(status.since);
            }
            status.sessions = sessions;
            status.open_connections = open_connections;
            status.held_connections = held_connections;
            status.connections_total = totals.connections;
            status.bytes_sent = totals.bytes_sent;
            status.bytes_received = totals.bytes_received;
            status.resumes = totals.resumes;
            status.restarts = totals.restarts;
        });
    }
}

/// Returns how long to wait after an error of the listener.
fn accept_pause(error: &io::Error) -> Duration {
    let of_one_connection =
        [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if of_one_connection.contains(&error.kind()) {
        debug!(%error, "a connection was gone before it was accepted");
        return Duration::ZERO;
    }
    warn!(%error, "cannot accept connections for a moment");
    ACCEPT_PAUSE
}
