//! The emulated AWS in a process of its own, with a relay to the destination, which is behind its first cluster.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use autoheal_pa::emulator::{
    AgentConfig, BastionConfig, ClusterConfig, Config, Emulator, Identity, Line, Link, Place, Settings,
    SshServerConfig, Sshd, SshdConfig, Upgrade,
};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    BoxError,
    destination::{self, accept, bind, relay},
    least,
    processes::start_destination,
};

/// Messages on their way from an agent with short queues: as many as one with the pace of a real one has on a way that
/// takes 16 ms there and back.
const SHORT_WINDOW: usize = 16;

/// Bytes within an agent with short queues: a frame that is a message, with its header of 8 bytes.
const SHORT_PIPE_LEN: usize = 1024 - 8;

/// What the emulated AWS is like.
#[derive(Debug, Clone, Args)]
pub(crate) struct World {
    /// Number of clusters
    #[arg(long, default_value_t = 1)]
    pub(crate) clusters: usize,
    /// API servers have keys as those of EKS do
    #[arg(long)]
    pub(crate) rsa: bool,
    /// Agents have the pace of real ones
    #[arg(long)]
    pub(crate) paced: bool,
    /// Agents hold hardly more than what is on its way, so that their queues do not hide those of the program
    #[arg(long)]
    pub(crate) short_queues: bool,
    /// Delay of every message and of every call of AWS, each way, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub(crate) delay_ms: u64,
    /// Fraction of the messages that are lost, each way
    #[arg(long, default_value_t = 0.0)]
    pub(crate) loss: f64,
    /// Some clients sign no WebSocket upgrade
    #[arg(long)]
    pub(crate) unsigned: bool,
    /// Every WebSocket ends after so many milliseconds; 0: none does
    #[arg(long, default_value_t = 0)]
    pub(crate) cut_after_ms: u64,
    /// A line of so many bytes a second to the client and from it, with half a second of them before it; 0: none
    #[arg(long, default_value_t = 0)]
    pub(crate) line_rate: u64,
    /// OpenSSH's server, by which the first cluster is reached then
    #[arg(long)]
    pub(crate) sshd: Option<PathBuf>,
}

/// On this machine, with agents that do not pause.
impl Default for World {
    fn default() -> Self {
        Self {
            clusters: 1,
            rsa: false,
            paced: false,
            short_queues: false,
            delay_ms: 0,
            loss: 0.0,
            unsigned: false,
            cut_after_ms: 0,
            line_rate: 0,
            sshd: None,
        }
    }
}

impl World {
    /// The delay, each way.
    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms)
    }

    /// The arguments that give the same again.
    pub(crate) fn to_args(&self) -> Vec<String> {
        let mut args = vec![
            format!("--clusters={}", self.clusters),
            format!("--delay-ms={}", self.delay_ms),
            format!("--loss={}", self.loss),
        ];
        args.extend(self.rsa.then(|| "--rsa".to_owned()));
        args.extend(self.paced.then(|| "--paced".to_owned()));
        args.extend(self.short_queues.then(|| "--short-queues".to_owned()));
        args.extend([format!("--cut-after-ms={}", self.cut_after_ms), format!("--line-rate={}", self.line_rate)]);
        args.extend(self.unsigned.then(|| "--unsigned".to_owned()));
        args.extend(self.sshd.iter().map(|program| format!("--sshd={}", program.display())));
        args
    }

    fn config(&self) -> Config {
        let link = Link { delay: self.delay(), loss: self.loss, ..Link::default() };
        let agent = if self.paced {
            AgentConfig::paced()
        } else if self.short_queues {
            AgentConfig { window: Some(SHORT_WINDOW), pipe: SHORT_PIPE_LEN, ..AgentConfig::default() }
        } else if self.delay_ms > 0 {
            // The window would be the bound, and a real agent has none.
            AgentConfig { window: None, ..AgentConfig::default() }
        } else {
            AgentConfig::default()
        };
        let upgrade = if self.unsigned { Upgrade::SignedOrNot } else { Upgrade::Signed };
        let transport_lifetime = (self.cut_after_ms > 0).then(|| Duration::from_millis(self.cut_after_ms));
        let line = (self.line_rate > 0).then(|| Line {
            rate: self.line_rate,
            buffer: usize::try_from(self.line_rate / 2).unwrap_or(usize::MAX),
            delay: self.delay(),
            loss: 0.0,
        });
        let link = if line.is_some() { Link::default() } else { link };
        let settings = Settings {
            upstream: link,
            downstream: link,
            line_up: line,
            line_down: line,
            api_delay: 2 * self.delay(),
            upgrade,
            transport_lifetime,
            ..Settings::default()
        };
        let all = Config::with_clusters(self.clusters);
        let clusters = all.clusters.into_iter().map(|cluster| ClusterConfig { rsa: self.rsa, ..cluster }).collect();
        Config {
            agent,
            clusters,
            pod_churn: None,
            // Not every library reads a file with a token that ends in a newline.
            identity: if self.unsigned { Identity::StaticKeys } else { Identity::WebIdentity },
            settings,
            ..Config::default()
        }
    }
}

/// What the process says when it is there.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// The variables that the program needs.
    pub(crate) environment: Vec<(String, String)>,
    /// The first cluster, whose tunnel leads to the destination.
    pub(crate) cluster: String,
    /// The name of its endpoint.
    pub(crate) host: String,
    /// The destination, with nothing in between.
    pub(crate) destination: SocketAddr,
    /// A relay to it, with the delay of the messages.
    pub(crate) relay: SocketAddr,
    /// The session of the least client, if there is one.
    pub(crate) least: Option<least::Start>,
    /// How the SSH server is reached, if there is one.
    pub(crate) ssh: Option<SshHello>,
}

/// How an SSH server is reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SshHello {
    /// What the program calls it.
    pub(crate) bastion: String,
    pub(crate) address: SocketAddr,
    pub(crate) user: String,
    /// The key of OpenSSH's client, which is let in.
    pub(crate) identity: PathBuf,
    pub(crate) known_hosts: PathBuf,
}

/// The instance that sessions run on, or that has the SSH server.
pub(crate) const BASTION: &str = "i-0dc03fbcae2a87472";

/// Starts an SSH server that lets in a key of its own besides those that are pushed, with its files in a folder.
fn start_sshd(program: &Path, folder: &Path) -> Result<(Sshd, SshHello), BoxError> {
    let sshd = Sshd::start(program, SshdConfig::default())?;
    let (identity, known_hosts) = (folder.join("identity"), folder.join("known_hosts"));
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(&identity).status()?;
    if !made.success() {
        return Err("ssh-keygen has failed".into());
    }
    sshd.admit(&std::fs::read_to_string(identity.with_extension("pub"))?)?;
    let (address, user) = (sshd.address(), sshd.user().to_owned());
    std::fs::write(&known_hosts, format!("[{}]:{} {}\n", address.ip(), address.port(), sshd.host_key()?))?;
    let bastion = format!("ssh://{user}@{BASTION}:{}?host_key=new", address.port());
    Ok((sshd, SshHello { bastion, address, user, identity, known_hosts }))
}

/// Serves until it is dropped.
///
/// # Errors
/// If a port cannot be bound, or the emulator does not start.
pub(crate) async fn run(world: World, ready: impl FnOnce(Hello) -> io::Result<()>) -> Result<(), BoxError> {
    let mut config = world.config();
    let (mut server, mut front) = (None, None);
    if let Some(program) = &world.sshd {
        let folder = std::env::home_dir().ok_or("there is no home")?;
        let (sshd, hello) = start_sshd(program, &folder)?;
        let mut bastion = BastionConfig::new(BASTION);
        bastion.public_address = Some(sshd.address().ip().to_string());
        bastion.ssh = Some(SshServerConfig::new(sshd.address(), sshd.user(), sshd.keys_of(sshd.user())));
        config.bastions = vec![bastion];
        // Free again at once, for the destination.
        let (_, address) = bind().await?;
        front = Some(address);
        if let Some(first) = config.clusters.first_mut() {
            *first = ClusterConfig { local: true, front, ..first.clone() };
        }
        server = Some((sshd, hello));
    }
    let emulator = Emulator::start(config).await?;
    let first = emulator.api_servers().into_iter().next().ok_or("there is no cluster")?;
    let Place::Socket(api_server) = first.place else { return Err("the API server is not at a socket".into()) };
    // It ends with this process.
    let destination = start_destination(api_server, front).await?;
    let destination::Hello { address } = destination.hello;
    if front.is_none() {
        emulator.route(format!("{}:443", first.host), address);
    }
    let least = match world.unsigned {
        true => Some(least::Start::new(&emulator, BASTION, &first.host).await?),
        false => None,
    };
    let (relay_listener, relay_address) = bind().await?;
    let delay = world.delay();
    ready(Hello {
        environment: emulator.environment(),
        cluster: first.cluster,
        host: first.host,
        destination: address,
        relay: relay_address,
        least,
        ssh: server.as_ref().map(|(_, hello)| hello.clone()),
    })?;
    accept(relay_listener, move |stream| relay(stream, address, delay)).await;
    Ok(())
}
