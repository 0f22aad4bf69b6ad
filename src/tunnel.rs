//! A tunnel: the local port of one cluster or other host, and the links that carry its connections.
//!
//! [`Tunnel`] accepts connections, holds them while no link can take them, and gives each to the
//! link where it gets through soonest. Links come and go behind the listener: each runs by itself on a
//! [`Route`], and has a prober that proves that it leads to the API server.
//!
//! ```text
//! Listeners ── Tunnel ── held connections ── Pool ──► Mailbox ── a link of a Route
//!                ▲                            │ Prober ──┘             │
//!                └────────────────── reports ──────────────────────────┘
//! ```
//!
//! Invariants: the listener is bound until the stop, whatever happens to links; every connection
//! that was accepted is served, held for a bounded time, or reset; the tunnel is the only source of
//! its [`TunnelStatus`].
//!
//! Knows routes and classes of faults, and nothing of what is behind them.

mod admission;
mod audit;
mod common;
mod held;
mod listener;
mod load;
mod local_tls;
mod member;
mod memory;
mod pool;
mod probe;
mod prober;
mod program;
mod recovery;
mod slot;
#[cfg(any(target_os = "macos", test))]
mod socket_list;
#[cfg(target_os = "linux")]
mod socket_user;
mod status;

use std::{io, sync::Arc, time::Duration};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};
use uuid::Uuid;

pub use self::{
    admission::Admission,
    audit::{Audit, Closed, Opened, Record, Records},
    common::{Common, News, Told},
    listener::{BindError, Bound, Listeners, PortTaken, Ports},
    local_tls::{Authority, AuthorityError, Termination},
    memory::{MemoryConnection, MemoryPort},
    probe::Probe,
    program::{Client, Process, Programs},
    status::{LastError, LinkStatus, ProbeStatus, State, TunnelStatus},
};
use self::{held::HeldConnections, pool::Pool, status::system_time};
use crate::{
    remote::Remote,
    route::{Io, PipeEnd, RECEIVE_BUDGET, Report, Route},
};

/// How often a status with moving counters is published.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Pause after an error of the listener. Errors such as too many open files pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Settings of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How long the tunnel may take to come up: what a link gets of it depends on how many routes there are.
    pub up_within: Duration,
    /// Bytes received that local programs have not taken, over all links. When they are spent, links are read only
    /// as fast as programs take what is there. It keeps slow programs from filling the memory.
    pub receive_budget: usize,
    /// How many links carry the tunnel's connections at most, at least 1. One is always there, others while there is
    /// something to share: 0.6 to 0.8 MB/s is all that some take.
    pub links: usize,
    /// When another link is started.
    pub sharing: Sharing,
    /// What it takes for the tunnel to be ready.
    pub readiness: Readiness,
    /// How long the path to the API server may go unproved before it is probed; zero: it is probed
    /// once for each new link, and links may idle out until a connection needs one.
    pub probe_interval: Duration,
    /// How long a connection waits for a link before it is reset.
    pub hold_time: Duration,
    /// How many connections are open at most, waiting ones included. It bounds what a program gone wild, or many
    /// that open connections and never use them, can take of memory and file descriptors.
    pub max_connections: usize,
    /// How many connections wait for a link at most. It bounds what a client that tries again and
    /// again can pile up.
    pub held_connections: usize,
    /// When it has a link: always, or on demand only.
    pub presence: Presence,
    /// How long open connections have for ending by themselves when the tunnel is stopped.
    pub grace: Duration,
    /// Seed of delays and message ids; `None`: a random one.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            up_within: Duration::from_secs(30),
            receive_budget: RECEIVE_BUDGET,
            links: 1,
            sharing: Sharing::ForConnections,
            readiness: Readiness::Proved,
            probe_interval: Duration::from_secs(30),
            hold_time: Duration::from_secs(30),
            max_connections: 1024,
            held_connections: 256,
            presence: Presence::Always,
            grace: Duration::from_secs(1),
            seed: None,
        }
    }
}

impl Config {
    /// Whether idle links are kept from being ended at their other end.
    fn keeps_warm(&self) -> bool {
        !self.probe_interval.is_zero()
    }
}

/// When a tunnel that may have several links starts another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// When a connection comes that would share one with others that may carry a lot. It waits for it.
    ForConnections,
    /// When those that there are have been busy for a while, on routes that [have room](Route::has_room): whatever comes next
    /// finds one that is not. Nobody waits unless it is on its way.
    WhileBusy,
}

/// When a tunnel has a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Always,
    /// The first connection that comes has one started, which ends when there has been no connection for a while.
    OnDemand {
        /// How long a link is kept without connections.
        idle: Duration,
        /// Whether one is started to begin with, which proves that it can be had.
        proved: bool,
    },
}

/// What it takes for a tunnel to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// The API server has answered through it, with a certificate that verifies.
    Proved,
    /// A link takes connections. For destinations that are not API servers.
    Established,
    /// The destination has accepted a connection through it, which was closed without a word. For the same.
    Reached,
}

/// The tunnel to one cluster or other host. See the module's documentation.
pub struct Tunnel {
    shared: Arc<Shared>,
    listeners: Listeners,
    status: watch::Sender<TunnelStatus>,
    wanted: Arc<Notify>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("to", &self.shared.to.name()).finish_non_exhaustive()
    }
}

impl Tunnel {
    /// Creates a tunnel, which does nothing until it is [run](Self::run). `routes` are tried in
    /// order. `common` is the same for all tunnels of one identity.
    ///
    /// # Panics
    /// If there is no route.
    #[must_use]
    pub fn new(
        to: impl Into<Remote>,
        routes: Vec<Arc<dyn Route>>,
        listeners: Listeners,
        config: Config,
        common: Arc<Common>,
    ) -> Self {
        assert!(!routes.is_empty(), "a tunnel needs a route");
        let to = Arc::new(to.into());
        let since = system_time(common.clock().now().wall);
        let status = TunnelStatus::new(Arc::clone(&to), listeners.port(), since);
        let shared = Arc::new(Shared { to, routes, config, common });
        Self { shared, listeners, status: watch::Sender::new(status), wanted: Arc::default() }
    }

    /// Returns what tells the tunnel that a connection will come soon, so that it has a link by then if it has none.
    #[must_use]
    pub fn wanted(&self) -> Arc<Notify> {
        Arc::clone(&self.wanted)
    }

    /// Returns what the tunnel shows of itself, now and later.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<TunnelStatus> {
        self.status.subscribe()
    }

    /// Keeps the tunnel open until `stop` is cancelled, then ends its links in good order, which
    /// takes up to five seconds.
    ///
    /// # Panics
    /// If one of its tasks does.
    ///
    /// # Cancel safety
    /// None: dropping the future leaves links to be ended at their other end.
    pub async fn run(self, stop: CancellationToken) {
        let span = info_span!("tunnel", to = %self.shared.to.name());
        let Self { shared, listeners, status, wanted } = self;
        let task = async { Running::start(shared, status, &stop).run(listeners, &wanted, stop).await };
        task.instrument(span).await;
    }
}

/// What all links of a tunnel share.
struct Shared {
    to: Arc<Remote>,
    routes: Vec<Arc<dyn Route>>,
    config: Config,
    common: Arc<Common>,
}

/// A tunnel whose links are running.
struct Running {
    shared: Arc<Shared>,
    status: watch::Sender<TunnelStatus>,
    links: Pool,
    reports: mpsc::UnboundedReceiver<(u64, Report)>,
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
            links: Pool::start(Arc::clone(&shared), seed, report_sender, stop.clone()),
            reports,
            changed: true,
            publish_at: None,
            overrun: false,
            status,
            shared,
        }
    }

    async fn run(mut self, mut listeners: Listeners, wanted: &Notify, stop: CancellationToken) {
        let clock = self.shared.common.clock();
        let sleep_until = |at: Duration| tokio::time::sleep_until(clock.instant(at));
        let mut accept_again = Duration::ZERO;
        loop {
            self.publish();
            let now = clock.now().mono;
            let review_at = self.links.deadline(now, self.held.since());
            let timers = [self.held.deadline(), self.publish_at, review_at];
            let due = timers.into_iter().flatten().min();
            let mut is_waited_for = false;
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
                Some(number) = self.links.join_next() => self.forget(number),
                accepted = listeners.accept(), if accept_again <= now => match accepted {
                    Ok(io) => self.hold(io),
                    Err(error) => {
                        accept_again = now + accept_pause(&error);
                    }
                },
                () = wanted.notified() => {
                    self.links.wake();
                    is_waited_for = true;
                }
                () = sleep_until(accept_again), if accept_again > now => {}
                () = sleep_until(due.unwrap_or_default()), if due.is_some() => self.handle_timers(),
            }
            is_waited_for |= !self.held.is_empty();
            self.changed |= self.links.review(clock.now(), is_waited_for);
            self.dispatch();
        }
        let connections = listeners.close();
        self.held.clear();
        self.links.stop_probers().await;
        self.stop_links().await;
        connections.end().await;
    }

    async fn stop_links(&mut self) {
        info!("stopping");
        let clock = self.shared.common.clock();
        loop {
            tokio::select! {
                biased;
                Some((number, report)) = self.reports.recv() => self.handle_report(number, report),
                ended = self.links.join_next() => match ended {
                    Some(number) => self.forget(number),
                    None => break,
                },
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
            status.links.clear();
            status.open_connections = 0;
            status.held_connections = 0;
        });
    }

    /// Takes a connection that has just been accepted.
    fn hold(&mut self, mut io: Io) {
        if let Some(audit) = self.shared.common.audit() {
            audit.opened(&mut io, &self.shared.to, self.status.borrow().port, self.shared.common.clock());
        }
        let now = self.shared.common.clock().now().mono;
        let limit = self.shared.config.max_connections;
        if self.links.open_connections() + self.held.len() >= limit {
            if !std::mem::replace(&mut self.overrun, true) {
                warn!(limit, "too many connections are open: further ones are reset until some end");
            }
            io.abort(PipeEnd::Lost);
            return;
        }
        self.overrun = false;
        self.held.push(io, now);
        self.publish_at.get_or_insert(now + STATUS_INTERVAL);
    }

    /// Takes note that nothing is left of a link, after all that it has said.
    fn forget(&mut self, number: u64) {
        while let Ok((number, report)) = self.reports.try_recv() {
            self.handle_report(number, report);
        }
        self.links.forget(number, self.shared.common.clock().now());
        self.changed = true;
    }

    fn handle_timers(&mut self) {
        let now = self.shared.common.clock().now().mono;
        self.held.expire(now);
        self.changed |= self.publish_at.is_some_and(|at| at <= now);
    }

    fn handle_report(&mut self, number: u64, report: Report) {
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
            Report::Caution(caution) => return self.shared.common.tell(News::Caution(caution)),
            Report::Notice(notice) => return self.shared.common.tell(News::Notice(notice)),
            Report::Established { ref message, .. } if !message.is_empty() => {
                info!(%message, "the other end has a message");
            }
            // These come often, and are not shown.
            Report::Backlog(_) | Report::Suspect | Report::Slept => {
                self.links.apply(number, report, now);
                return;
            }
            Report::Connecting
            | Report::Progress(_)
            | Report::Asked(_)
            | Report::Leaving
            | Report::Started { .. }
            | Report::Established { .. }
            | Report::Alive
            | Report::Lost(_)
            | Report::Resumed
            | Report::Ended(_)
            | Report::Refused
            | Report::Probed(Err(_)) => {}
        }
        self.changed = true;
        if let Some(fault) = self.links.apply(number, report, now) {
            let error = LastError { at: system_time(now.wall), fault };
            self.status.send_modify(|status| status.last_error = Some(error));
        }
    }

    /// Gives held connections to links that can take them, in arrival order.
    fn dispatch(&mut self) {
        let now = self.shared.common.clock().now();
        while let Some(since) = self.held.since() {
            let waited = now.mono.saturating_sub(since);
            let Some(number) = self.links.assign(now, self.held.len(), waited) else { break };
            let Some(held) = self.held.pop() else { break };
            if let Err(held) = self.links.give(number, held, now) {
                // Its end comes next, and then another is chosen.
                self.held.put_back(held);
                break;
            }
        }
        if !self.held.is_empty() {
            self.links.wake();
        }
    }

    /// Publishes the status, if something has changed.
    fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let now = self.shared.common.clock().now();
        let state = self.links.state();
        let links = self.links.statuses();
        let totals = self.links.totals();
        let held_connections = self.held.len();
        let open_connections = self.links.open_connections() + held_connections;
        // With connections open the counters may move at any time; without, once more at most.
        let busy = open_connections > 0 || self.status.borrow().open_connections > 0;
        self.publish_at = busy.then_some(now.mono + STATUS_INTERVAL);
        self.status.send_modify(|status| {
            if status.state != state {
                info!(from = %status.state, to = %state, "tunnel is {state}");
                status.state = state;
                status.since = system_time(now.wall);
            }
            if matches!(state, State::Active | State::Idle) {
                status.ready_at.get_or_insert(status.since);
            }
            status.links = links;
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
