//! A manager, AWS, a bastion and an API server in one thread, on virtual time: where faults are measured.
//!
//! ```text
//! workload ── MemoryPort ── Tunnel (supervised) ── Dial ── emulated gateway ── agent ── destination ─┬─ files, questions
//!                                                                                                    └─ emulated Kubernetes
//! ```
//!
//! Everything but the sockets is what `up` runs: the same supervisor, tunnels, sessions and WebSockets. Time is
//! tokio's, paused: it jumps to the next timer whenever nothing else is left to do, so an hour takes a moment and
//! the same seed gives the same run, but for the lengths of TLS signatures.
//!
//! Shared by `examples/faults.rs`, `examples/soak.rs` and `tests/it`.

pub(crate) mod destination;
pub(crate) mod dial;
pub(crate) mod line;
pub(crate) mod matrix;
pub(crate) mod page;
pub(crate) mod process;
pub(crate) mod relay;
pub(crate) mod replaced;
pub(crate) mod slow_readers;
pub(crate) mod soak;
pub(crate) mod ssh;
pub(crate) mod ssh_rows;
pub(crate) mod ssh_soak;
pub(crate) mod time;
pub(crate) mod workload;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use autoheal_pa::{
    bastion::Target,
    clock::Clock,
    cluster::{Cluster, Destination, Origin},
    emulator::{AgentConfig, ClusterConfig, Command, Config, Emulator, Line, Link, SessionState, Upgrade},
    manager::supervisor::{Board, Supervisor},
    route::ssm,
    tunnel::{self, Listeners, MemoryPort, State, Tunnel, TunnelStatus},
};
use tokio::{sync::watch, task::JoinSet};

use self::{
    destination::Grounds,
    dial::MemoryDial,
    workload::{Ledger, Port, Site},
};

/// How long a message is under way, each way.
pub(crate) const DELAY: Duration = Duration::from_millis(20);

/// How long the service takes for an API call.
pub(crate) const API_DELAY: Duration = Duration::from_millis(120);

/// The bastion.
const BASTION: &str = "i-0dc03fbcae2a87472";

/// What a lab is made with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) seed: u64,
    /// How often the tunnel probes the API server when nothing else proves the path.
    pub(crate) probe_interval: Duration,
    /// How many sessions the tunnel may have.
    pub(crate) sessions: usize,
    /// How often an object of the cluster changes; `None`: never.
    pub(crate) churn: Option<Duration>,
    /// The line of WebSockets, up and down; `None`: messages take [`DELAY`], and that is all.
    pub(crate) line: Option<(Line, Line)>,
}

/// See the module.
pub(crate) struct Lab {
    pub(crate) emulator: Arc<Emulator>,
    pub(crate) port: MemoryPort,
    pub(crate) host: String,
    pub(crate) certificate_authority: String,
    pub(crate) ledger: Arc<Ledger>,
    supervisor: Supervisor,
    tasks: JoinSet<()>,
}

impl Lab {
    /// Starts everything and waits until the tunnel is proved.
    ///
    /// # Errors
    /// What is not ready.
    pub(crate) async fn start(setup: &Setup) -> Result<Self, String> {
        time::start();
        let link = Link { delay: if setup.line.is_some() { Duration::ZERO } else { DELAY }, ..Link::default() };
        let mut config = Config {
            clusters: vec![ClusterConfig::new("payments")],
            agent: AgentConfig::paced(),
            anonymous_access: true,
            pod_churn: setup.churn,
            wall: Some(time::wall),
            seed: setup.seed,
            ..Config::default()
        };
        config.settings.upgrade = Upgrade::SignedOrNot;
        config.settings.api_delay = API_DELAY;
        (config.settings.upstream, config.settings.downstream) = (link, link);
        (config.settings.line_up, config.settings.line_down) = setup.line.unzip();
        let emulator = Arc::new(Emulator::in_memory(config).await.map_err(|error| error.to_string())?);
        let server = emulator.api_servers().swap_remove(0);
        let ledger = Arc::new(Ledger::default());
        let mut tasks = JoinSet::new();
        let grounds = Grounds::new(server.place.clone(), Arc::clone(&ledger));
        let (place, listener) = autoheal_pa::emulator::Place::in_memory();
        emulator.route(format!("{}:443", server.host), place);
        tasks.spawn(grounds.serve(listener));

        let mut supervisor = Supervisor::with_clock(Clock::with_wall(time::wall));
        let cluster = Cluster {
            name: server.cluster,
            region: "us-east-1".to_owned(),
            account: "123456789012".to_owned(),
            id: "arn:aws:eks:us-east-1:123456789012:cluster/payments".to_owned(),
            endpoint: Destination { host: server.host.clone(), port: 443 },
            certificate_authority: Some(server.certificate_authority.clone()),
            origin: Origin::Eks { token_name: "payments".to_owned() },
            vpc: None,
        };
        let (listeners, port) = Listeners::in_memory(10_100);
        let tunnel_config = tunnel::Config {
            probe_interval: setup.probe_interval,
            links: setup.sessions,
            seed: Some(setup.seed),
            ..tunnel::Config::default()
        };
        let target: Target = BASTION.parse().map_err(|error| format!("{error}"))?;
        let dial = Arc::new(MemoryDial::new(Arc::clone(&emulator)));
        let route = ssm::Targets::new(dial, ssm::Config::default()).route(target);
        supervisor.start(Tunnel::new(cluster, vec![route], listeners, tunnel_config, supervisor.common()));
        supervisor.wait_ready(Duration::from_secs(60)).await.map_err(|error| error.to_string())?;
        Ok(Self {
            emulator,
            port,
            host: server.host,
            certificate_authority: server.certificate_authority,
            ledger,
            supervisor,
            tasks,
        })
    }

    /// What a workload needs.
    pub(crate) fn site(&self) -> Site {
        Site {
            port: Port::Memory(self.port.clone()),
            host: self.host.clone(),
            certificate_authority: self.certificate_authority.clone(),
            ledger: Arc::clone(&self.ledger),
        }
    }

    /// The tunnel as `status` shows it, now and later.
    pub(crate) fn board(&self) -> watch::Receiver<Board> {
        self.supervisor.board()
    }

    /// The tunnel as `status` shows it.
    pub(crate) fn status(&self) -> TunnelStatus {
        self.board().borrow().tunnels[0].clone()
    }

    /// What the wall clock read at a time of the monotonic one.
    pub(crate) fn wall_at(&self, mono: Duration) -> SystemTime {
        SystemTime::UNIX_EPOCH + time::wall().saturating_sub(time::now() - mono)
    }

    pub(crate) fn is_active(&self) -> bool {
        self.status().state == State::Active
    }

    /// Lets the machine sleep: its clocks stand still but for the wall clock, while the service goes on. One that
    /// has waited for longer than its idle timeout has ended the session.
    pub(crate) fn sleep(&self, slept: Duration, idle_timeout: Duration) {
        time::jump(slept);
        self.emulator.command(&Command::HalfOpen);
        if slept >= idle_timeout {
            self.emulator.command(&Command::CloseChannel { output: Some("Your session timed out.".to_owned()) });
            self.emulator.expire_credentials();
        }
    }

    /// Stops everything in good order; returns what was left behind or against the rules.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        if !self.supervisor.stop().await {
            wrong.push("the tunnel did not stop in good order".to_owned());
        }
        // What was said last is still under way.
        tokio::time::sleep(10 * DELAY).await;
        wrong.extend(self.emulator.violations());
        for session in self.emulator.sessions() {
            if session.state != SessionState::Ended || session.open_streams > 0 {
                wrong.push(format!(
                    "session {} is {:?} with {} streams",
                    session.id, session.state, session.open_streams
                ));
            }
        }
        self.tasks.shutdown().await;
        match Arc::try_unwrap(self.emulator) {
            Ok(emulator) => emulator.stop().await,
            Err(_) => wrong.push("somebody still has the emulator".to_owned()),
        }
        wrong
    }
}

/// Runs a future on a thread's own virtual time.
pub(crate) fn on_virtual_time<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime can be made").block_on(future)
}
