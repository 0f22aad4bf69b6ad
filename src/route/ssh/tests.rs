//! The way through a server, under a tunnel: AWS is emulated, the server is OpenSSH's own.

#![cfg(feature = "demo")]

mod ways;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    testing::{echo, sshd},
    *,
};
use crate::{
    aws::testing::{aws_at, in_time},
    bastion::{Bastion as Way, SshFiles},
    closed_port::ClosedPort,
    cluster::{Cluster, Destination, Origin},
    emulator::{
        BastionConfig, Config as Emulated, ConnectEndpointConfig, Emulator, Event, SshServerConfig, Sshd, SshdConfig,
    },
    route::{Class, Fault},
    tunnel::{Admission, Common, Config as Settings, Listeners, Readiness, State, Tunnel, TunnelStatus},
    util::peer_text::sentence,
};

mod pace;

const ID: &str = "i-0dc03fbcae2a87472";

/// AWS with a bastion, and what its server is.
struct World {
    sshd: Sshd,
    emulator: Emulator,
    folder: TempDir,
    tasks: JoinSet<()>,
    echo: u16,
    config: Config,
}

/// A running tunnel.
struct Running {
    status: watch::Receiver<TunnelStatus>,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Running {
    async fn until(&mut self, wanted: impl FnMut(&TunnelStatus) -> bool) -> TunnelStatus {
        in_time(self.status.wait_for(wanted)).await.unwrap().clone()
    }

    async fn active(&mut self) -> TunnelStatus {
        self.until(|status| status.state == State::Active).await
    }

    /// Waits for a fault and returns it.
    async fn fault(&mut self) -> Arc<Fault> {
        self.until(|status| status.last_error.is_some()).await.last_error.unwrap().fault
    }

    async fn connect(&self) -> TcpStream {
        in_time(TcpStream::connect(self.address)).await.unwrap()
    }

    async fn echoes(&self) {
        echoes(&mut self.connect().await).await;
    }

    async fn stop(mut self) {
        self.stop.cancel();
        in_time(self.tasks.join_next()).await.unwrap().unwrap();
    }
}

async fn echoes(stream: &mut TcpStream) {
    in_time(stream.write_all(b"hello")).await.unwrap();
    let mut answer = [0; 5];
    in_time(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"hello");
}

impl World {
    async fn start(change: impl FnOnce(&mut Emulated)) -> Option<Self> {
        Self::with_server(SshdConfig::default(), change).await
    }

    async fn with_server(server: SshdConfig, change: impl FnOnce(&mut Emulated)) -> Option<Self> {
        let sshd = sshd(server)?;
        let mut tasks = JoinSet::new();
        let echo = echo(&mut tasks).await;
        let server = SshServerConfig::new(sshd.address(), sshd.user(), sshd.keys_of(sshd.user()));
        let mut bastion = BastionConfig::new(ID).in_group("bastions");
        bastion.public_address = Some("127.0.0.1".to_owned());
        bastion.ssh = Some(server);
        let mut config = Emulated { clusters: Vec::new(), bastions: vec![bastion], ..Emulated::default() };
        change(&mut config);
        let emulator = in_time(Emulator::start(config)).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let files = SshFiles {
            known_hosts: vec![folder.path().join("theirs")],
            own_known_hosts: Some(folder.path().join("own/known_hosts")),
            agent: None,
        };
        let config = Config { files, ..Config::default() };
        Some(Self { sshd, emulator, folder, tasks, echo, config })
    }

    async fn aws(&self) -> Aws {
        let keys: Vec<String> = self.emulator.static_environment().into_iter().map(|(_, value)| value).collect();
        aws_at(self.emulator.endpoint(), keys.try_into().unwrap()).await
    }

    async fn servers(&self) -> Servers {
        Servers::new(&self.aws().await, self.config.clone())
    }

    /// Waits until no key is let in any more.
    async fn keys_are_gone(&self) {
        let file = self.sshd.keys_of(self.sshd.user());
        in_time(async {
            while !fs::read_to_string(&file).unwrap_or_default().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// The address of the bastion, with these options.
    fn address(&self, options: &str) -> String {
        format!("ssh://{}@{ID}:{}{options}", self.sshd.user(), self.sshd.address().port())
    }

    async fn tunnel(&self, bastion: &str) -> Running {
        self.tunnel_of(&self.servers().await, bastion, self.echo)
    }

    fn tunnel_of(&self, servers: &Servers, bastion: &str, port: u16) -> Running {
        self.tunnel_with(servers, bastion, port, Settings::default())
    }

    fn tunnel_with(&self, servers: &Servers, bastion: &str, port: u16, settings: Settings) -> Running {
        let Ok(Way::Ssh(spec)) = bastion.parse() else { panic!("{bastion}") };
        let cluster = Cluster {
            name: "demo".into(),
            region: "us-east-1".into(),
            account: "123456789012".into(),
            id: String::new(),
            endpoint: Destination { host: "127.0.0.1".into(), port },
            certificate_authority: Some(String::new()),
            origin: Origin::Eks { token_name: "demo".into() },
            vpc: None,
        };
        let listeners = Listeners::bind(0, 1, false, Admission::owner()).unwrap().listeners.remove(0);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listeners.port()));
        let config = Settings { readiness: Readiness::Established, seed: Some(1), ..settings };
        let tunnel = Tunnel::new(cluster, vec![servers.route(&spec)], listeners, config, Common::new(Clock::start()));
        let (status, stop) = (tunnel.status(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(tunnel.run(stop.clone()));
        Running { status, address, stop, tasks }
    }

    fn pushes(&self) -> usize {
        self.emulator.events().iter().filter(|event| matches!(event, Event::KeyPushed { .. })).count()
    }

    fn tunnels(&self) -> usize {
        self.emulator.events().iter().filter(|event| matches!(event, Event::TunnelOpened { .. })).count()
    }

    fn own_file(&self) -> PathBuf {
        self.folder.path().join("own/known_hosts")
    }

    fn fingerprint(&self) -> String {
        let line = self.sshd.host_key().unwrap();
        let base64 = line.split(' ').nth(1).unwrap();
        let blob = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, base64).unwrap();
        host_keys::HostKey { kind: String::new(), blob }.fingerprint()
    }

    fn deny(&self, action: &str) {
        self.emulator.update(|settings| settings.denied_actions.extend([action.to_owned()]));
    }

    async fn end(self) {
        assert_eq!(self.emulator.violations(), Vec::<String>::new());
        drop(self.tasks);
        self.emulator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_share_a_connection_and_a_key() {
    let Some(world) = World::start(|_| ()).await else { return };
    let servers = world.servers().await;
    let bastion = world.address("?host_key=new");
    let mut tunnels: Vec<Running> = (0..5).map(|_| world.tunnel_of(&servers, &bastion, world.echo)).collect();
    for tunnel in &mut tunnels {
        let status = tunnel.active().await;
        let link = status.link().unwrap().clone();
        assert_eq!(link.route, bastion);
        let through = link.through.unwrap();
        assert_eq!(through, format!("{ID}, {}, {}", world.sshd.address(), world.fingerprint()));
        tunnel.echoes().await;
    }
    assert_eq!(world.pushes(), 1);
    let status = tunnels[0].until(|status| status.open_connections == 0 && status.bytes_received == 5).await;
    assert_eq!((status.bytes_sent, status.connections_total), (5, 1));
    for tunnel in tunnels {
        tunnel.stop().await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_arrive_and_a_reset_is_none_of_the_others() {
    let Some(world) = World::start(|_| ()).await else { return };
    let mut tunnel = world.tunnel(&world.address("?host_key=new")).await;
    tunnel.active().await;
    let mut stream = tunnel.connect().await;
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| i.to_le_bytes()[1]).collect();
    let (mut read, mut write) = stream.split();
    let mut back = Vec::new();
    let up = async {
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
    };
    in_time(async { tokio::join!(up, read.read_to_end(&mut back)).1.unwrap() }).await;
    assert!(back == data);
    tunnel.echoes().await;
    tunnel.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_nobody_knows_is_not_taken() {
    let Some(world) = World::start(|_| ()).await else { return };
    let mut tunnel = world.tunnel(&world.address("")).await;
    let fault = tunnel.fault().await;
    let fingerprint = world.fingerprint();
    assert_eq!(fault.class, Class::Unfit);
    let text = sentence(&*fault);
    assert_eq!(text, format!("the host key of `{ID}` is not known: it is {fingerprint} (ssh-ed25519)"));
    assert!(fault.hints[0].contains(&format!("add `host_key={fingerprint}`")), "{:?}", fault.hints);
    assert_eq!(world.pushes(), 0, "a server that is not known gets nothing");
    tunnel.stop().await;
    // Whoever has looked says so.
    let mut tunnel = world.tunnel(&world.address(&format!("?host_key={fingerprint}"))).await;
    tunnel.active().await;
    tunnel.stop().await;
    assert!(!world.own_file().exists());
    let other = "SHA256:abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNO+/";
    let mut tunnel = world.tunnel(&world.address(&format!("?host_key={other}"))).await;
    let text = sentence(&*tunnel.fault().await);
    assert!(text.contains(&fingerprint) && text.ends_with(&format!("the pin says {other}")), "{text}");
    tunnel.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_known_from_first_use_and_another_is_not_taken() {
    let Some(world) = World::start(|_| ()).await else { return };
    let mut tunnel = world.tunnel(&world.address("?host_key=new")).await;
    tunnel.active().await;
    tunnel.stop().await;
    let kept = fs::read_to_string(world.own_file()).unwrap();
    assert_eq!(kept, format!("{ID} {}\n", world.sshd.host_key().unwrap()));
    let mut tunnel = world.tunnel(&world.address("")).await;
    tunnel.active().await;
    tunnel.stop().await;
    let line = format!("{ID} ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB\n");
    fs::write(world.own_file(), line).unwrap();
    let mut tunnel = world.tunnel(&world.address("?host_key=new")).await;
    let fault = tunnel.fault().await;
    let text = sentence(&*fault);
    assert!(text.starts_with(&format!("the host key of `{ID}` is another than the known one")), "{text}");
    assert!(text.contains(&world.fingerprint()) && text.contains("line 1 of `"), "{text}");
    assert_eq!(fault.class, Class::Unfit);
    tunnel.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_instance_has_written_to_its_console_is_known() {
    let Some(server) = sshd(SshdConfig::default()) else { return };
    let console = |key: &str| {
        format!(
            "<14>ec2: -----BEGIN SSH HOST KEY KEYS-----\n<14>ec2: {key} root@x\n<14>ec2: -----END SSH HOST KEY KEYS-----\n"
        )
    };
    let start = |text: String| World::start(move |config| config.bastions[0].console = Some(text));
    let other = start(console(&server.host_key().unwrap())).await.unwrap();
    let mut tunnel = other.tunnel(&other.address("?host_key=new")).await;
    let text = sentence(&*tunnel.fault().await);
    assert!(text.contains("the console of the instance says SHA256:"), "{text}");
    tunnel.stop().await;
    other.end().await;
    let own = World::with_server(SshdConfig::default(), |_| ()).await.unwrap();
    let line = own.sshd.host_key().unwrap();
    own.emulator.write_to_console(ID, &console(&line));
    let mut tunnel = own.tunnel(&own.address("")).await;
    tunnel.active().await;
    assert_eq!(fs::read_to_string(own.own_file()).unwrap(), format!("{ID} {line}\n"));
    tunnel.stop().await;
    own.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_and_comes_back_is_used_again() {
    let Some(mut world) = World::start(|_| ()).await else { return };
    let mut tunnel = world.tunnel(&world.address("?host_key=new")).await;
    tunnel.active().await;
    let mut cut = tunnel.connect().await;
    echoes(&mut cut).await;
    world.sshd.kill().unwrap();
    let end = in_time(cut.read(&mut [0])).await;
    assert!(end.is_err(), "{end:?}");
    tunnel.until(|status| status.state != State::Active).await;
    world.sshd.start_again().unwrap();
    tunnel.active().await;
    tunnel.echoes().await;
    assert!(world.pushes() >= 2, "each connection has a key of its own");
    tunnel.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_given_up() {
    let Some(mut world) = World::start(|_| ()).await else { return };
    world.config.keepalive = Duration::from_millis(300);
    let mut tunnel = world.tunnel(&world.address("?host_key=new")).await;
    tunnel.active().await;
    world.sshd.suspend().unwrap();
    tunnel.until(|status| status.state != State::Active).await;
    world.sshd.resume().unwrap();
    tunnel.active().await;
    tunnel.echoes().await;
    tunnel.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_has_its_sentence() {
    let Some(world) = World::start(|_| ()).await else { return };
    let port = world.sshd.address().port();
    let closed = ClosedPort::new();
    for (bastion, class, said, hint) in [
        (
            format!("ssh://nobody-here@{ID}:{port}?host_key=new"),
            Class::Denied,
            "the server does not let `nobody-here` in with the key of this program".to_owned(),
            "`ec2-user`, `ubuntu`",
        ),
        (
            "ssh://i-00000000?host_key=new".to_owned(),
            Class::Gone,
            "there is no instance `i-00000000` in us-east-1 of this account".to_owned(),
            "aws ec2 describe-instances --region us-east-1",
        ),
        (
            "ssh://?instance=asg:others".to_owned(),
            Class::Away,
            "there is no instance `asg:others` in us-east-1 of this account".to_owned(),
            "describe-instances",
        ),
        (
            format!("ssh://{ID}:{}", closed.address().port()),
            Class::Away,
            format!("no connection to `127.0.0.1:{}`", closed.address().port()),
            "via=eice",
        ),
        (
            "ssh://192.0.2.1".to_owned(),
            Class::Gone,
            "no instance in us-east-1 of this account has the name or address `192.0.2.1`".to_owned(),
            "?key=agent",
        ),
        (
            format!("ssh://{ID}?via=eice"),
            Class::Gone,
            format!("the network `vpc-0a0b0c0d0e0f01020` of `{ID}` has no EC2 Instance Connect Endpoint"),
            "create-instance-connect-endpoint",
        ),
        (
            format!("ssh://127.0.0.1:{port}?key=agent"),
            Class::Unfit,
            format!("the host key of `[127.0.0.1]:{port}` is not known"),
            "host_key=SHA256:",
        ),
        (
            format!("ssh://127.0.0.1:{port}?key=agent&host_key=new"),
            Class::Denied,
            "there is no SSH agent: `SSH_AUTH_SOCK` is not set".to_owned(),
            "ssh-add",
        ),
    ] {
        let mut tunnel = world.tunnel(&bastion).await;
        let fault = tunnel.fault().await;
        let text = sentence(&*fault);
        assert!(text.starts_with(&said), "{bastion}: {text}");
        assert_eq!(fault.class, class, "{bastion}");
        assert!(fault.hints.iter().any(|line| line.contains(hint)), "{bastion}: {:?}", fault.hints);
        tunnel.stop().await;
    }
    world.deny("ec2-instance-connect:SendSSHPublicKey");
    let mut tunnel = world.tunnel(&world.address("?host_key=new")).await;
    let fault = tunnel.fault().await;
    assert_eq!(fault.class, Class::Denied);
    assert!(sentence(&*fault).starts_with(&format!("no key could be pushed to `{ID}`")), "{fault}");
    tunnel.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_forward_is_refused() {
    let config = SshdConfig { options: vec!["AllowTcpForwarding no".to_owned()], ..SshdConfig::default() };
    let Some(world) = World::with_server(config, |_| ()).await else { return };
    let mut tunnel = world.tunnel(&world.address("?host_key=new")).await;
    tunnel.active().await;
    let _held = tunnel.connect().await;
    let fault = tunnel.fault().await;
    assert_eq!(fault.class, Class::Refused);
    assert!(fault.hints[0].contains("AllowTcpForwarding"), "{:?}", fault.hints);
    tunnel.stop().await;
    world.end().await;
}

fn with_endpoint(config: &mut Emulated) {
    config.bastions[0].public_address = None;
    config.connect_endpoints = vec![ConnectEndpointConfig {
        id: "eice-0123456789abcdef0".to_owned(),
        vpc: config.bastions[0].vpc.clone(),
        subnet: "subnet-0a1b2c3d4e5f60718".to_owned(),
        dns_name: None,
        state: "create-complete".to_owned(),
    }];
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_without_a_public_address_is_reached_through_an_endpoint() {
    let Some(world) = World::start(with_endpoint).await else { return };
    let bastion = format!("ssh://{}@{ID}", world.sshd.user());
    let mut tunnel = world.tunnel(&bastion).await;
    let through = tunnel.active().await.link().unwrap().through.clone().unwrap();
    assert!(through.contains(" through eice-0123456789abcdef0, SHA256:"), "{through}");
    tunnel.echoes().await;
    // Through AWS's own network a key is taken as it comes, and kept.
    assert!(fs::read_to_string(world.own_file()).unwrap().starts_with(ID));
    assert_eq!((world.tunnels(), world.pushes()), (1, 1));
    tunnel.stop().await;
    // No other port, whatever a policy says.
    let mut tunnel = world.tunnel(&format!("{bastion}:2222")).await;
    let fault = tunnel.fault().await;
    assert_eq!(fault.class, Class::Refused);
    assert!(
        sentence(&*fault).contains("status 400: InvalidParameter: The specified RemotePort is not valid"),
        "{fault}"
    );
    tunnel.stop().await;
    world.deny("ec2-instance-connect:OpenTunnel");
    let mut tunnel = world.tunnel(&bastion).await;
    let fault = tunnel.fault().await;
    assert_eq!(fault.class, Class::Denied);
    assert!(fault.hints[0].contains("ec2-instance-connect:OpenTunnel"), "{:?}", fault.hints);
    tunnel.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_is_left_before_its_end_and_nobody_notices() {
    let Some(mut world) = World::start(with_endpoint).await else { return };
    world.config.leave_after = Duration::from_secs(2);
    let bastion = format!("ssh://{}@{ID}", world.sshd.user());
    let mut tunnel = world.tunnel(&bastion).await;
    tunnel.active().await;
    let mut old = tunnel.connect().await;
    in_time(async {
        while world.tunnels() < 2 {
            echoes(&mut old).await;
            tunnel.echoes().await;
        }
    })
    .await;
    echoes(&mut old).await;
    assert_eq!(tunnel.status.borrow().last_error.as_ref().map(|error| error.fault.to_string()), None);
    tunnel.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_is_cut_is_opened_again() {
    let Some(world) = World::start(with_endpoint).await else { return };
    world.emulator.inject(&"close-tunnel=3s".parse().unwrap());
    let mut tunnel = world.tunnel(&format!("ssh://{}@{ID}", world.sshd.user())).await;
    tunnel.active().await;
    let mut cut = tunnel.connect().await;
    echoes(&mut cut).await;
    let end = in_time(cut.read(&mut [0])).await;
    assert!(end.is_err(), "{end:?}");
    let fault = tunnel.fault().await;
    assert!(sentence(&*fault).contains("Tunnel duration exceeded"), "{}", sentence(&*fault));
    tunnel.active().await;
    tunnel.echoes().await;
    assert!(world.tunnels() >= 2);
    tunnel.stop().await;
    world.end().await;
}
