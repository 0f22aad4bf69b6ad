//! A tunnel: one cluster's local port, and the sessions that carry its connections.
//!
//! [`Tunnel`] accepts connections, holds them while no session can take them, and gives each to the
//! session that carries the fewest. Sessions come and go behind the listener: each slot has a task
//! that starts, drives, resumes and replaces its session. A prober proves that a session leads to the
//! API server.
//!
//! ```text
//! Listeners ── Tunnel ── held connections ──► SessionTask ── Driver { PortSession, connections } ── Transport
//!                ▲                                 │ Prober ──┘
//!                └──────────── reports ────────────┘
//! ```
//!
//! Invariants: the listener is bound until the stop, whatever happens to sessions; every connection
//! that was accepted is served, held for a bounded time, or reset; the tunnel is the only source of
//! its [`TunnelStatus`].
//!
//! Knows sessions only through [`Dial`]: nothing of AWS, kubeconfigs or the command line.

mod common;
mod connection;
pub mod dial;
mod driver;
mod fault;
mod held;
mod listener;
mod liveness;
mod memory;
mod meter;
mod policy;
mod probe;
mod prober;
mod ready;
mod report;
mod session;
mod status;
#[cfg(test)]
mod tests;
pub mod transport;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};
use uuid::Uuid;

pub use self::{
    common::Common,
    dial::{BoxError, Dial, DialError, SessionHandle, SessionId},
    fault::{Fault, with_causes},
    listener::{BindError, Bound, Listeners, PortOwner, PortTaken},
    memory::{MemoryConnection, MemoryPort},
    probe::ProbeError,
    status::{LastError, ProbeStatus, SessionStatus, State, TunnelStatus},
    transport::{Connection, Incoming, Transport, TransportError},
};
use self::{
    connection::Io,
    driver::{Command, Driver},
    held::{Held, HeldConnections},
    meter::{LinkState, Meter},
    policy::Jitter,
    probe::Probe,
    prober::Prober,
    report::{Proof, Report, Reporter, Slot},
    session::{SessionTask, Shared},
    status::system_time,
};
use crate::{
    cluster::{Cluster, Target},
    proto,
};

/// How often a status with moving counters is published.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Pause after an error of the listener. Errors such as too many open files pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Settings of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Settings of each session. The receive budget is shared by the tunnel's sessions.
    pub session: proto::Config,
    /// How many sessions carry the tunnel's connections, at least 1. An agent sends at most about
    /// 0.9 MB/s through one.
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
            sessions: 1,
            readiness: Readiness::Proved,
            probe_interval: Duration::from_secs(30),
            resume_budget: Duration::from_secs(90),
            hold_time: Duration::from_secs(30),
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

    /// Returns the settings of one of the tunnel's sessions.
    fn session_config(&self) -> proto::Config {
        let receive_budget = self.session.receive_budget / self.sessions.max(1);
        proto::Config { receive_budget, ..self.session.clone() }
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
    slots: Vec<Slot>,
    commands: Vec<mpsc::UnboundedSender<Command>>,
    suspicions: Vec<Arc<Notify>>,
    reports: mpsc::UnboundedReceiver<(usize, Report)>,
    sessions: JoinSet<()>,
    probers: JoinSet<()>,
    held: HeldConnections,
    /// Something has changed that is to be seen at once.
    changed: bool,
    /// When counters that may have moved are published; `None`: they stand still.
    publish_at: Option<Duration>,
}

impl Running {
    fn start(shared: Arc<Shared>, status: watch::Sender<TunnelStatus>, stop: &CancellationToken) -> Self {
        let config = &shared.config;
        let clock = shared.common.clock();
        let seed = config.seed.unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0);
        let mut jitter = Jitter::new(seed);
        let proof = match config.readiness {
            Readiness::Established => Proof::Handshake,
            Readiness::Proved if config.probe_interval.is_zero() => Proof::FirstProbe,
            Readiness::Proved => Proof::Probes,
        };
        let (report_sender, reports) = mpsc::unbounded_channel();
        let requested = Arc::new(AtomicBool::new(false));
        let mut running = Self {
            held: HeldConnections::new(config.held_connections),
            slots: Vec::new(),
            commands: Vec::new(),
            suspicions: Vec::new(),
            reports,
            sessions: JoinSet::new(),
            probers: JoinSet::new(),
            changed: true,
            publish_at: None,
            status,
            shared: Arc::clone(&shared),
        };
        for number in 0..config.sessions.max(1) {
            let (commands, inbox) = mpsc::unbounded_channel();
            let reporter = Reporter::new(number, report_sender.clone());
            let meter = Arc::new(Meter::default());
            let link = watch::Sender::new(LinkState::Down);
            let suspicion = Arc::new(Notify::new());
            if proof != Proof::Handshake {
                match Probe::new(&shared.cluster) {
                    Ok(probe) => {
                        let prober = Prober {
                            probe,
                            interval: config.probe_interval,
                            clock,
                            link: link.subscribe(),
                            commands: commands.clone(),
                            reports: reporter.clone(),
                            meter: Arc::clone(&meter),
                            requested: Arc::clone(&requested),
                            suspicion: Arc::clone(&suspicion),
                            jitter: Jitter::new(jitter.next_u64()),
                        };
                        running.probers.spawn(prober.run().in_current_span());
                    }
                    Err(error) => reporter.send(Report::Probed(Err(error))),
                }
            }
            let driver = Driver::new(clock, inbox, reporter.clone(), Arc::clone(&meter), link);
            let task = SessionTask::new(Arc::clone(&shared), driver, reporter, jitter.next_u64(), stop.child_token());
            running.sessions.spawn(task.run().in_current_span());
            running.slots.push(Slot::new(clock.now(), meter, proof));
            running.commands.push(commands);
            running.suspicions.push(suspicion);
        }
        running
    }

    async fn run(mut self, mut listeners: Listeners, stop: CancellationToken) {
        let clock = self.shared.common.clock();
        let sleep_until = |at: Duration| tokio::time::sleep_until(clock.instant(at));
        let mut accept_again = Duration::ZERO;
        loop {
            self.publish();
            let now = clock.now().mono;
            let (expiry, publish_at) = (self.held.deadline(), self.publish_at);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some((slot, report)) = self.reports.recv() => self.handle_report(slot, report),
                Some(ended) = self.sessions.join_next() => propagate(ended),
                Some(ended) = self.probers.join_next() => propagate(ended),
                accepted = listeners.accept(), if accept_again <= now => match accepted {
                    Ok(io) => self.hold(io),
                    Err(error) => {
                        accept_again = now + accept_pause(&error);
                    }
                },
                () = sleep_until(accept_again), if accept_again > now => {}
                () = sleep_until(expiry.unwrap_or_default()), if expiry.is_some() => {
                    self.held.expire(clock.now().mono);
                }
                () = sleep_until(publish_at.unwrap_or_default()), if publish_at.is_some() => self.changed = true,
            }
            self.dispatch();
        }
        drop(listeners);
        self.held.clear();
        self.probers.shutdown().await;
        self.stop_sessions().await;
    }

    async fn stop_sessions(&mut self) {
        info!("stopping");
        loop {
            tokio::select! {
                biased;
                Some((slot, report)) = self.reports.recv() => self.handle_report(slot, report),
                ended = self.sessions.join_next() => match ended {
                    Some(ended) => propagate(ended),
                    None => break,
                },
            }
            self.held.clear();
            self.publish();
        }
        self.status.send_modify(|status| {
            status.state = State::Stopped;
            status.since = system_time(self.shared.common.clock().now().wall);
            status.sessions.clear();
            status.open_connections = 0;
            status.held_connections = 0;
        });
    }

    /// Takes a connection that has just been accepted.
    fn hold(&mut self, io: Io) {
        let now = self.shared.common.clock().now().mono;
        self.held.push(Held { io, deadline: now + self.shared.config.hold_time });
        self.publish_at.get_or_insert(now + STATUS_INTERVAL);
    }

    fn handle_report(&mut self, number: usize, report: Report) {
        let now = self.shared.common.clock().now();
        self.changed = true;
        match report {
            Report::Returned(held) => {
                self.held.put_back(held);
                return;
            }
            Report::Refused => self.suspicions[number].notify_one(),
            Report::Probed(Ok(answer)) => self.status.send_modify(|status| {
                status.last_probe = Some(ProbeStatus {
                    at: system_time(now.wall),
                    round_trip: answer.round_trip,
                    http_status: answer.status,
                });
            }),
            Report::Established { ref customer_message, .. } if !customer_message.is_empty() => {
                info!(customer_message, "the agent has a message");
            }
            Report::Dialing { .. }
            | Report::Started(_)
            | Report::Established { .. }
            | Report::Alive
            | Report::Lost(_)
            | Report::Resumed
            | Report::Ended { .. }
            | Report::Probed(Err(_)) => {}
        }
        if let Some(fault) = self.slots[number].apply(report, now) {
            let error = LastError { at: system_time(now.wall), fault };
            self.status.send_modify(|status| status.last_error = Some(error));
        }
    }

    /// Gives held connections to sessions that can take them, in arrival order.
    fn dispatch(&mut self) {
        while !self.held.is_empty() {
            let open = |(_, slot): &(usize, &Slot)| slot.meter.open.load(Ordering::Relaxed);
            let best = self.slots.iter().enumerate().filter(|(_, slot)| slot.takes_connections()).min_by_key(open);
            let Some((number, slot)) = best else { break };
            let Some(held) = self.held.pop() else { break };
            // The driver will count it, but the next of this burst is to see it.
            slot.meter.open.fetch_add(1, Ordering::Relaxed);
            // A session whose task is gone has ended the tunnel.
            let _outcome = self.commands[number].send(Command::Connect(held));
        }
        if !self.held.is_empty() {
            for (slot, commands) in self.slots.iter().zip(&self.commands).filter(|(slot, _)| slot.dormant) {
                debug!(state = %slot.state(), "a connection waits for a session");
                let _outcome = commands.send(Command::Wake);
            }
        }
    }

    /// Publishes the status, if something has changed.
    fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let now = self.shared.common.clock().now();
        let state = State::of(self.slots.iter().map(Slot::state));
        let sessions: Vec<_> = self.slots.iter().filter_map(Slot::status).collect();
        let sum = |read: fn(&Meter) -> u64| self.slots.iter().map(|slot| read(&slot.meter)).sum::<u64>();
        let bytes_sent = sum(|meter| meter.bytes_sent.load(Ordering::Relaxed));
        let bytes_received = sum(|meter| meter.bytes_received.load(Ordering::Relaxed));
        let connections_total = sum(|meter| meter.connections_total.load(Ordering::Relaxed));
        let held_connections = self.held.len();
        let open_connections =
            sessions.iter().map(|session| session.open_connections).sum::<usize>() + held_connections;
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
            status.connections_total = connections_total;
            status.bytes_sent = bytes_sent;
            status.bytes_received = bytes_received;
            status.resumes = self.slots.iter().map(|slot| slot.resumes).sum();
            status.restarts = self.slots.iter().map(|slot| slot.restarts).sum();
        });
    }
}

/// Goes on with a panic of a task: the supervisor sees to it. A task that ends otherwise has been
/// told to.
fn propagate(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
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
