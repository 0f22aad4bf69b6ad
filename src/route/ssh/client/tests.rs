//! Against OpenSSH's own server.

#![cfg(feature = "demo")]

use std::{
    process::{Command, Stdio},
    sync::Arc,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    aws::testing::in_time,
    clock::Clock,
    closed_port::ClosedPort,
    emulator::SshdConfig,
    route::{
        Budget, Io, Meter, Share,
        near::Near,
        ssh::{
            carry::carry,
            congestion::Congestion,
            testing::{Takes, client, echo, flood, sshd, stream},
            untaken::Untaken,
        },
    },
    util::peer_text::sentence,
};

/// A connection with what is carried through it.
struct World {
    client: Client,
    untaken: Arc<Untaken>,
    meter: Arc<Meter>,
    clock: Clock,
    tasks: JoinSet<()>,
}

impl World {
    fn new(client: Client, budget: usize) -> Self {
        let (clock, meter) = (Clock::start(), Arc::<Meter>::default());
        let untaken = Untaken::new(
            clock,
            Arc::clone(&meter),
            Share::new(Budget::new(budget, 1)),
            Congestion::new(&Arc::default()),
        );
        Self { client, untaken, meter, clock, tasks: JoinSet::new() }
    }

    /// Opens a connection as a local program does.
    async fn connect(&mut self, port: u16) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, accepted) =
            tokio::try_join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept()).unwrap();
        let channel = in_time(self.client.open("127.0.0.1", port)).await.unwrap();
        let cut = CancellationToken::new();
        let near_side = Near::new(Io::tcp(accepted.0, None), Arc::clone(&self.meter), self.clock);
        self.tasks.spawn(carry(channel, near_side, self.untaken.seat(cut.clone()), cut));
        near
    }
}

async fn echoes(stream: &mut TcpStream) {
    in_time(stream.write_all(b"hello")).await.unwrap();
    let mut answer = [0; 5];
    in_time(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"hello");
}

/// Sends and gets back so many bytes, with its own end first.
async fn transfers(stream: TcpStream, len: usize) {
    let data: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
    let (mut read, mut write) = stream.into_split();
    let (sent, mut back) = (data.clone(), Vec::new());
    let up = async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    in_time(async { tokio::join!(up, read.read_to_end(&mut back)).1.unwrap() }).await;
    assert!(back == data, "{} of {len} bytes", back.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn carries_bytes_both_ways_and_both_ends() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let mut world = World::new(client(&sshd, &Options::default()).await, 64 << 20);
    let port = echo(&mut world.tasks).await;
    let streams = [world.connect(port).await, world.connect(port).await, world.connect(port).await];
    let mut all: JoinSet<_> = streams.into_iter().map(|stream| transfers(stream, 5 << 20)).collect();
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    // The last to end are those that carry.
    while world.meter.held.load(std::sync::atomic::Ordering::Relaxed) > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.meter.bytes_received.load(std::sync::atomic::Ordering::Relaxed), 15 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn goes_on_while_keys_are_exchanged_anew() {
    let config = SshdConfig { options: vec!["RekeyLimit 1M".to_owned()], ..SshdConfig::default() };
    let Some(sshd) = sshd(config) else { return };
    let options = Options { rekey_after: 1 << 20, ..Options::default() };
    let mut world = World::new(client(&sshd, &options).await, 64 << 20);
    let port = echo(&mut world.tasks).await;
    let stream = world.connect(port).await;
    transfers(stream, 8 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opens_three_hundred_channels() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let mut world = World::new(client(&sshd, &Options::default()).await, 64 << 20);
    let port = echo(&mut world.tasks).await;
    let mut streams = Vec::new();
    for _ in 0..300 {
        streams.push(world.connect(port).await);
    }
    for stream in &mut streams {
        echoes(stream).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_reads_nothing_stops_nobody() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let mut world = World::new(client(&sshd, &Options::default()).await, 8 << 20);
    let (echo_port, flood_port) = (echo(&mut world.tasks).await, flood(&mut world.tasks).await);
    let mut dead = world.connect(flood_port).await;
    let mut other = world.connect(echo_port).await;
    // Until the budget is spent, and after.
    let held = || world.meter.held.load(std::sync::atomic::Ordering::Relaxed);
    in_time(async {
        while held() < 6 << 20 {
            echoes(&mut other).await;
        }
    })
    .await;
    in_time(async {
        while held() > 0 {
            echoes(&mut other).await;
        }
    })
    .await;
    let mut buffer = vec![0; 1 << 20];
    let end = in_time(async {
        loop {
            match dead.read(&mut buffer).await {
                Ok(1..) => {}
                end => break end,
            }
        }
    });
    assert_eq!(end.await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    echoes(&mut other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tells_what_the_server_does_not_open() {
    let Some(server) = sshd(SshdConfig::default()) else { return };
    let open = client(&server, &Options::default()).await;
    let closed = ClosedPort::new();
    let error = in_time(open.open("127.0.0.1", closed.address().port())).await.err().unwrap();
    assert!(matches!(error, OpenError::Refused), "{error}");
    let error = in_time(open.open("no-such-host.invalid", 443)).await.err().unwrap();
    assert!(matches!(error, OpenError::Refused), "{error}");
    let no = SshdConfig { options: vec!["AllowTcpForwarding no".to_owned()], ..SshdConfig::default() };
    let server = sshd(no).unwrap();
    let prohibited = client(&server, &Options::default()).await;
    let error = in_time(prohibited.open("127.0.0.1", 1)).await.err().unwrap();
    assert!(matches!(error, OpenError::Prohibited), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_key_is_not_taken_gets_nothing() {
    let Some(server) = sshd(SshdConfig::default()) else { return };
    let connected = Stranger::connect(stream(&server).await, Options::default(), Box::new(Takes(false)));
    let error = in_time(connected).await.unwrap_err();
    assert_eq!(sentence(&error), "the host key is not taken: never seen");
    let server = sshd(SshdConfig { host_key: Some("rsa"), ..SshdConfig::default() }).unwrap();
    let connected = Stranger::connect(stream(&server).await, Options::default(), Box::new(Takes(true)));
    let error = in_time(connected).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server has no host key of a kind that is taken here: it has rsa-sha2-512, rsa-sha2-256"
    );
    let server = sshd(SshdConfig { host_key: Some("ecdsa"), ..SshdConfig::default() }).unwrap();
    let connected = Stranger::connect(stream(&server).await, Options::default(), Box::new(Takes(true)));
    in_time(connected).await.unwrap();
}

#[tokio::test]
async fn what_is_no_ssh_server_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, mut far) =
        tokio::try_join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept()).unwrap();
    far.0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    drop(far);
    let connected = Stranger::connect(Box::new(near), Options::default(), Box::new(Takes(true)));
    let error = in_time(connected).await.unwrap_err();
    assert!(matches!(error, ClientError::NotSsh | ClientError::Closed), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_not_there_is_refused() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let stranger = Stranger::connect(stream(&sshd).await, Options::default(), Box::new(Takes(true)));
    let stranger = in_time(stranger).await.unwrap();
    let error = in_time(stranger.log_in(sshd.user(), &OwnKey::new().unwrap())).await.unwrap_err();
    let expected = format!("the server does not let `{}` in with the key of this program", sshd.user());
    assert_eq!(error.to_string(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_or_dies_is_noticed() {
    let Some(mut sshd) = sshd(SshdConfig::default()) else { return };
    let options = Options { keepalive: Duration::from_millis(200), ..Options::default() };
    let hangs = client(&sshd, &options).await;
    sshd.suspend().unwrap();
    let end = in_time(hangs.ended()).await;
    assert!(matches!(*end, ClientError::Silent), "{end:?}");
    assert!(!hangs.is_open());
    sshd.resume().unwrap();
    let dies = client(&sshd, &Options::default()).await;
    sshd.kill().unwrap();
    let end = in_time(dies.ended()).await;
    assert!(matches!(*end, ClientError::Closed | ClientError::Io(_)), "{end:?}");
    sshd.start_again().unwrap();
    client(&sshd, &Options::default()).await;
}

/// OpenSSH's agent, with keys of these kinds.
struct Agent {
    folder: tempfile::TempDir,
    child: std::process::Child,
}

impl Agent {
    fn start(kinds: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        let child = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        let agent = Self { folder, child };
        for kind in kinds {
            let file = agent.folder.path().join(kind);
            let made = Command::new("ssh-keygen").args(["-q", "-N", "", "-t", kind, "-f"]).arg(&file).status().unwrap();
            assert!(made.success());
            // The socket is there when the program has got so far.
            let added = || {
                Command::new("ssh-add")
                    .arg("-q")
                    .arg(&file)
                    .env("SSH_AUTH_SOCK", &socket)
                    .stderr(Stdio::null())
                    .status()
            };
            while !added().unwrap().success() {
                std::thread::yield_now();
            }
        }
        agent
    }

    fn public(&self, kind: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(kind).with_extension("pub")).unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn comes_in_with_a_key_of_the_agent() {
    let Some(sshd) = sshd(SshdConfig::default()) else { return };
    let agent = Agent::start(&["rsa", "ecdsa", "ed25519"]);
    let connect = || async {
        let connected = Stranger::connect(stream(&sshd).await, Options::default(), Box::new(Takes(true)));
        in_time(connected).await.unwrap()
    };
    sshd.admit(&agent.public("ed25519")).unwrap();
    let socket = agent.folder.path().join("agent");
    in_time(connect().await.log_in_with_agent(sshd.user(), &socket)).await.unwrap();
    sshd.admit("").unwrap();
    let error = in_time(connect().await.log_in_with_agent(sshd.user(), &socket)).await.unwrap_err();
    assert!(error.to_string().ends_with("in with any of 2 keys of the SSH agent"), "{error}");
    let old = Agent::start(&["rsa"]);
    let error = in_time(connect().await.log_in_with_agent(sshd.user(), &old.folder.path().join("agent"))).await;
    assert_eq!(error.unwrap_err().to_string(), "the SSH agent has no Ed25519 or ECDSA key, of 1");
    let error = in_time(connect().await.log_in_with_agent(sshd.user(), &socket.join("none"))).await.unwrap_err();
    assert!(matches!(error, LoginError::NoAgent { .. }), "{error}");
}
