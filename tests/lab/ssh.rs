//! A bastion that is an SSH server: the supervisor and the tunnel of `up` in one thread, an emulated AWS, and OpenSSH's own
//! server in processes of its own. So it runs on real time.
//!
//! ```text
//! workload ── Tunnel (supervised) ── SSH connection ─┬──────────────────────┬─ relay ── sshd ── destination ─┬─ files, questions
//!                                                    └─ emulated endpoint ──┘                                └─ emulated Kubernetes
//! ```

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use autoheal_pa::{
    aws::Aws,
    bastion::{Bastion, SshFiles},
    cluster::{Cluster, Destination, Origin},
    emulator::{
        BastionConfig, ClusterConfig, Config, ConnectEndpointConfig, Emulator, SshServerConfig, Sshd, SshdConfig,
    },
    manager::supervisor::{Board, Supervisor},
    route::ssh,
    settings::{Environment, GlobalArgs, Settings},
    tunnel::{self, Admission, Listeners, State, Tunnel, TunnelStatus},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use super::{
    destination::Grounds,
    relay::Relay,
    time,
    workload::{Ledger, Port, Site},
};

/// The bastion.
pub(crate) const BASTION: &str = "i-0dc03fbcae2a87472";

/// The Auto Scaling group that it is in.
const GROUP: &str = "bastions";

/// Longest wait until the tunnel is proved. Machines are shared.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// How long a pushed key is let in: not longer than a login takes on a slow machine.
const KEY_LIFE: Duration = Duration::from_secs(10);

/// OpenSSH's server, if there is one. Where `AUTOHEAL_PA_TEST_REQUIRES_SSHD` is set, there has to be.
///
/// # Errors
/// There is none, and there has to be.
#[expect(clippy::disallowed_methods, reason = "the gate asks for it by a variable")]
pub(crate) fn sshd() -> Result<Option<PathBuf>, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = Sshd::find(std::env::split_paths(&path));
    if found.is_none() {
        if std::env::var_os("AUTOHEAL_PA_TEST_REQUIRES_SSHD").is_some() {
            return Err("sshd is not on the PATH".to_owned());
        }
        // Past the test runner, which keeps back what passing tests print.
        let _written = writeln!(io::stderr(), "SKIPPED: there is no sshd to connect to");
    }
    Ok(found)
}

/// The way to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the public address of the instance.
    Address,
    /// By that of the instance that the group has at the time.
    Group,
    /// Through an EC2 Instance Connect Endpoint.
    Endpoint,
}

/// What a lab is made with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) sshd: PathBuf,
    pub(crate) seed: u64,
    pub(crate) way: Way,
    /// Settings of the connection; its files are the lab's.
    pub(crate) ssh: ssh::Config,
    /// How often an object of the cluster changes; `None`: never.
    pub(crate) churn: Option<Duration>,
}

/// See the module.
pub(crate) struct SshLab {
    pub(crate) emulator: Emulator,
    pub(crate) ledger: Arc<Ledger>,
    sshd: Arc<Mutex<Sshd>>,
    /// The network before the server, as long as that is where it is.
    relay: Mutex<Relay>,
    grounds: Grounds,
    front: SocketAddr,
    serving: Mutex<JoinSet<()>>,
    port: u16,
    certificate_authority: String,
    supervisor: Supervisor,
    _folder: TempDir,
}

impl SshLab {
    /// Starts everything and waits until the tunnel is proved.
    ///
    /// # Errors
    /// What is not ready.
    pub(crate) async fn start(setup: &Setup) -> Result<Self, String> {
        time::start();
        let said = |error: io::Error| error.to_string();
        let sshd = Sshd::start(&setup.sshd, SshdConfig::default()).map_err(said)?;
        let relay = Relay::start(local(Ipv4Addr::LOCALHOST, 0), sshd.address()).await.map_err(said)?;
        let listener = TcpListener::bind(local(Ipv4Addr::LOCALHOST, 0)).await.map_err(said)?;
        let front = listener.local_addr().map_err(said)?;

        let emulator = Emulator::start(config(setup, &sshd, relay.address(), front)?).await;
        let emulator = emulator.map_err(|error| error.to_string())?;
        let server = emulator.api_servers().swap_remove(0);
        let ledger = Arc::new(Ledger::default());
        let grounds = Grounds::new(server.place.clone(), Arc::clone(&ledger));
        let mut serving = JoinSet::new();
        serving.spawn(grounds.clone().serve_sockets(listener));

        let folder = tempfile::tempdir().map_err(said)?;
        let known_hosts = folder.path().join("known_hosts");
        std::fs::write(&known_hosts, format!("{BASTION} {}\n", sshd.host_key().map_err(said)?)).map_err(said)?;
        let files = SshFiles { own_known_hosts: Some(known_hosts), ..SshFiles::default() };
        let environment = Environment::default().with(emulator.environment());
        let settings = Settings::load(&GlobalArgs::default(), None, &environment).map_err(|error| error.to_string())?;
        let aws = Aws::new(&settings.aws).await.map_err(|error| error.to_string())?;
        let servers = ssh::Servers::new(&aws, ssh::Config { files, ..setup.ssh.clone() });
        let (user, server_port) = (sshd.user(), relay.address().port());
        let bastion = match setup.way {
            Way::Address => format!("ssh://{user}@{BASTION}:{server_port}"),
            Way::Group => format!("ssh://{user}@:{server_port}?instance=asg:{GROUP}"),
            Way::Endpoint => format!("ssh://{user}@{BASTION}"),
        };
        let Ok(Bastion::Ssh(spec)) = bastion.parse() else { return Err(format!("`{bastion}` is no SSH server")) };

        let mut listeners = Listeners::bind(0, 1, false, Admission::owner()).map_err(|error| error.to_string())?;
        let listeners = listeners.listeners.swap_remove(0);
        let port = listeners.port();
        let cluster = Cluster {
            name: server.cluster,
            region: "us-east-1".to_owned(),
            account: "123456789012".to_owned(),
            id: "arn:aws:eks:us-east-1:123456789012:cluster/payments".to_owned(),
            endpoint: Destination { host: server.host, port: front.port() },
            certificate_authority: Some(server.certificate_authority.clone()),
            origin: Origin::Eks { token_name: "payments".to_owned() },
            vpc: None,
        };
        let tunnel_config = tunnel::Config { seed: Some(setup.seed), ..tunnel::Config::default() };
        let mut supervisor = Supervisor::new();
        let route = servers.route(&spec);
        supervisor.start(Tunnel::new(cluster, vec![route], listeners, tunnel_config, supervisor.common()));
        let lab = Self {
            emulator,
            ledger,
            sshd: Arc::new(Mutex::new(sshd)),
            relay: Mutex::new(relay),
            grounds,
            front,
            serving: Mutex::new(serving),
            port,
            certificate_authority: server.certificate_authority,
            supervisor,
            _folder: folder,
        };
        match lab.supervisor.wait_ready(READY_LIMIT).await {
            Ok(()) => Ok(lab),
            Err(error) => Err(format!("{error}: {:?}", lab.status().last_error.map(|error| error.to_string()))),
        }
    }

    /// What a workload needs.
    pub(crate) fn site(&self) -> Site {
        Site {
            port: Port::Tcp(self.port),
            host: "127.0.0.1".to_owned(),
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

    pub(crate) fn is_active(&self) -> bool {
        self.status().state == State::Active
    }

    /// Waits until the program has given up the connection that it has.
    pub(crate) async fn given_up(&self) {
        // The supervisor is there for as long as this is.
        let mut board = self.board();
        let _outcome = board.wait_for(|board| board.tunnels[0].state != State::Active).await.map(drop);
    }

    /// Does something to the server.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn server(
        &self,
        act: impl FnOnce(&mut Sshd) -> io::Result<()> + Send + 'static,
    ) -> Result<(), String> {
        let sshd = Arc::clone(&self.sshd);
        // It waits for processes.
        let done = tokio::task::spawn_blocking(move || act(&mut sshd.lock().unwrap_or_else(PoisonError::into_inner)));
        done.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// The network before the server.
    pub(crate) fn relay(&self) -> MutexGuard<'_, Relay> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the server off its address for so long, and gives it another: that of an instance that was stopped and started.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn move_server(&self, away: Duration) -> Result<(), String> {
        let said = |error: io::Error| error.to_string();
        let old = self.relay().address();
        let to = self.sshd.lock().unwrap_or_else(PoisonError::into_inner).address();
        let moved = Ipv4Addr::new(127, 0, 0, 2);
        let new = Relay::start(local(moved, old.port()), to).await.map_err(said)?;
        let before = std::mem::replace(&mut *self.relay(), new);
        before.close().await;
        self.emulator.change_public_address(BASTION, None);
        tokio::time::sleep(away).await;
        self.emulator.change_public_address(BASTION, Some(&moved.to_string()));
        Ok(())
    }

    /// Ends what is behind the bastion for so long, with all its connections.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn restart_destination(&self, away: Duration) -> Result<(), String> {
        let mut serving = std::mem::take(&mut *self.serving());
        serving.shutdown().await;
        tokio::time::sleep(away).await;
        let listener = TcpListener::bind(self.front).await.map_err(|error| error.to_string())?;
        self.serving().spawn(self.grounds.clone().serve_sockets(listener));
        Ok(())
    }

    fn serving(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts what is the same each time in the place of addresses.
    pub(crate) fn steady(&self, text: &str) -> String {
        let address = self.relay().address();
        let instances = text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
            .filter(|word| word.strip_prefix("i-0").is_some_and(|digits| digits.len() == 16));
        let text = instances.fold(text.to_owned(), |text, id| text.replace(id, BASTION));
        let text = text.replace(&format!("127.0.0.1:{}", address.port()), "203.0.113.10:22");
        let text =
            text.replace(&address.to_string(), "203.0.113.20:22").replace(&format!(":{}", address.port()), ":22");
        match text.split_once(", request ") {
            Some((before, rest)) => format!("{before}, request …{}", rest.trim_start_matches(|c: char| c != ')')),
            None => text,
        }
    }

    /// Stops everything in good order; returns what was left behind or against the rules.
    pub(crate) async fn stop(self) -> Vec<String> {
        let mut wrong = Vec::new();
        if !self.supervisor.stop().await {
            wrong.push("the tunnel did not stop in good order".to_owned());
        }
        wrong.extend(self.emulator.violations());
        self.emulator.stop().await;
        wrong
    }
}

fn local(ip: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(ip), port)
}

/// The emulated AWS: a bastion with this server, which is seen at another address, and one cluster.
fn config(setup: &Setup, sshd: &Sshd, server: SocketAddr, front: SocketAddr) -> Result<Config, String> {
    let mut bastion = BastionConfig::new(BASTION).in_group(GROUP);
    let keys = SshServerConfig::new(server, sshd.user(), sshd.keys_of(sshd.user()));
    bastion.ssh = Some(SshServerConfig { key_life: KEY_LIFE, ..keys });
    bastion.console = Some(sshd.console().map_err(|error| error.to_string())?);
    let mut connect_endpoints = Vec::new();
    if setup.way == Way::Endpoint {
        connect_endpoints.push(ConnectEndpointConfig {
            id: "eice-0123456789abcdef0".to_owned(),
            vpc: bastion.vpc.clone(),
            subnet: "subnet-0a1b2c3d4e5f60718".to_owned(),
            dns_name: None,
            state: "create-complete".to_owned(),
        });
    } else {
        bastion.public_address = Some(server.ip().to_string());
    }
    Ok(Config {
        clusters: vec![ClusterConfig { local: true, front: Some(front), ..ClusterConfig::new("payments") }],
        bastions: vec![bastion],
        connect_endpoints,
        anonymous_access: true,
        pod_churn: setup.churn,
        seed: setup.seed,
        ..Config::default()
    })
}
