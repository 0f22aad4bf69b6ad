//! Whose keys are good, for how long, and which ways lead to the server.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader, copy_bidirectional},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::{
    super::{
        client::{LoginError, Options, OwnKey, Stranger},
        testing::{Takes, stream},
    },
    *,
};
use crate::{
    aws::testing::{aws_with_keys, tls_acceptor_for},
    secret::Secret,
    settings::{AwsSettings, Proxies, Proxy},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_key_is_good_for_its_time_and_then_for_nothing() {
    let start = |life| World::start(move |config| config.bastions[0].ssh.as_mut().unwrap().key_life = life);
    let Some(world) = start(Duration::from_secs(60)).await else { return };
    let key = OwnKey::new().unwrap();
    let log_in = async |world: &World| {
        let stranger = Stranger::connect(stream(&world.sshd).await, Options::default(), Box::new(Takes(true)));
        in_time(in_time(stranger).await.unwrap().log_in(world.sshd.user(), &key)).await
    };
    let push = async |world: &World| {
        let pushed = world.aws().await.send_ssh_public_key(ID, world.sshd.user(), &key.public().unwrap()).await;
        pushed.unwrap();
    };
    push(&world).await;
    log_in(&world).await.unwrap();
    log_in(&world).await.unwrap();
    world.end().await;
    let world = start(Duration::from_millis(1)).await.unwrap();
    push(&world).await;
    world.keys_are_gone().await;
    assert!(matches!(log_in(&world).await.unwrap_err(), LoginError::Refused { .. }));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_outlives_its_key_and_the_next_one_has_another() {
    let life = Duration::from_secs(2);
    let Some(mut world) = World::start(|config| config.bastions[0].ssh.as_mut().unwrap().key_life = life).await else {
        return;
    };
    let mut tunnel = world.tunnel(&world.address("?host_key=new")).await;
    tunnel.active().await;
    world.keys_are_gone().await;
    tunnel.echoes().await;
    let pushes = world.pushes();
    world.sshd.kill().unwrap();
    tunnel.until(|status| status.state != State::Active).await;
    world.sshd.start_again().unwrap();
    tunnel.active().await;
    tunnel.echoes().await;
    assert!(world.pushes() > pushes);
    tunnel.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_without_the_package_is_told_from_a_wrong_user() {
    let start = World::start(|config| config.bastions[0].ssh.as_mut().unwrap().installed = false);
    let Some(world) = start.await else { return };
    let mut tunnel = world.tunnel(&world.address("?host_key=new")).await;
    let fault = tunnel.fault().await;
    assert_eq!(fault.class, Class::Denied);
    assert!(fault.hints.iter().any(|hint| hint.contains("the package `ec2-instance-connect`")), "{:?}", fault.hints);
    tunnel.stop().await;
    world.end().await;
}

/// Makes a host key with a certificate, and returns the authority's public key and the lines that have a server show them.
fn certified(folder: &Path, hosts: &str, valid: &str) -> (String, Vec<String>) {
    let run = |args: &[&str]| {
        let made = Command::new("ssh-keygen").current_dir(folder).arg("-q").args(args).status().unwrap();
        assert!(made.success(), "{args:?}");
    };
    for file in ["authority", "host"] {
        run(&["-t", "ed25519", "-N", "", "-C", "", "-f", file]);
    }
    run(&["-s", "authority", "-I", "bastion", "-h", "-n", hosts, "-V", valid, "host.pub"]);
    if rustix::process::geteuid().is_root() {
        // The server runs as somebody else then, who has to read it.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(folder.join("host"), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let at = folder.display();
    let lines = vec![format!("HostKey {at}/host"), format!("HostCertificate {at}/host-cert.pub")];
    (fs::read_to_string(folder.join("authority.pub")).unwrap().trim().to_owned(), lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_a_known_authority_is_enough() {
    for (hosts, valid, is_taken) in [
        ("127.0.0.1,bastion.example.com", "always:forever", true),
        ("bastion.example.com", "always:forever", false),
        ("127.0.0.1", "20200101:20200102", false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (authority, options) = certified(folder.path(), hosts, valid);
        let Some(world) = World::with_server(SshdConfig { options, ..SshdConfig::default() }, |_| ()).await else {
            return;
        };
        let known = format!("@cert-authority [127.0.0.1]:{} {authority}\n", world.sshd.address().port());
        fs::write(&world.config.files.known_hosts[0], known).unwrap();
        let mut tunnel = world.tunnel(&world.address("")).await;
        if is_taken {
            tunnel.active().await;
            tunnel.echoes().await;
        } else {
            let text = sentence(&*tunnel.fault().await);
            assert!(text.starts_with(&format!("the host key of `{ID}` is not known")), "{hosts} {valid}: {text}");
        }
        assert!(!world.own_file().exists(), "{hosts} {valid}");
        tunnel.stop().await;
        world.end().await;
    }
}

/// An address to which there is no connection, whatever the network.
const NOWHERE: &str = "224.0.0.1";

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_tried_where_the_public_address_does_not_answer() {
    let start = World::start(|config| {
        with_endpoint(config);
        config.bastions[0].public_address = Some(NOWHERE.to_owned());
    });
    let Some(world) = start.await else { return };
    let bastion = format!("ssh://{}@{ID}", world.sshd.user());
    let mut tunnel = world.tunnel(&bastion).await;
    let through = tunnel.active().await.link().unwrap().through.clone().unwrap();
    assert!(through.contains(" through eice-0123456789abcdef0, SHA256:"), "{through}");
    tunnel.echoes().await;
    tunnel.stop().await;
    let unreachable = format!("no connection to `{NOWHERE}:22`");
    // Whoever has said which way it is to be gets no other.
    let mut tunnel = world.tunnel(&format!("{bastion}?via=direct")).await;
    let text = sentence(&*tunnel.fault().await);
    assert!(text.starts_with(&unreachable), "{text}");
    tunnel.stop().await;
    // What is said is about the way that was meant.
    world.deny("ec2-instance-connect:OpenTunnel");
    let mut tunnel = world.tunnel(&bastion).await;
    let text = sentence(&*tunnel.fault().await);
    assert!(text.starts_with(&unreachable), "{text}");
    tunnel.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_without_address_and_endpoint_is_told() {
    let Some(world) = World::start(|config| config.bastions[0].public_address = None).await else { return };
    let mut tunnel = world.tunnel(&format!("ssh://{ID}?via=eice")).await;
    let text = sentence(&*tunnel.fault().await);
    assert!(text.ends_with("has no EC2 Instance Connect Endpoint"), "{text}");
    tunnel.stop().await;
    world.end().await;
}

const ENDPOINT: &str = "eice-0123456789abcdef0.abcd1234.ec2-instance-connect-endpoint.us-east-1.amazonaws.com";

const OTHER_VPC: &str = "vpc-0f0e0d0c0b0a09080";

/// A proxy that leads to one name, for those who know its password if it has one.
struct Gate {
    address: SocketAddr,
    passed: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Gate {
    async fn start(password: Option<&'static str>, tls: TlsAcceptor, to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let passed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&passed);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, count) = (tls.clone(), Arc::clone(&count));
                connections.spawn(async move {
                    let mut near = BufReader::new(stream);
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if near.read_line(&mut head).await.unwrap_or_default() == 0 {
                            return;
                        }
                    }
                    let is_let_in = password.is_none_or(|password| head.contains(&format!("Basic {password}\r\n")));
                    if !is_let_in {
                        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
                        let _refused = near.write_all(refusal).await;
                        return;
                    }
                    assert!(head.starts_with(&format!("CONNECT {ENDPOINT}:443 HTTP/1.1\r\n")), "{head}");
                    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    // A client that does not know the authority goes away.
                    let Ok(mut near) = tls.accept(near).await else { return };
                    count.fetch_add(1, Ordering::Relaxed);
                    let mut far = TcpStream::connect(to).await.unwrap();
                    let _ended = copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { address, passed, _tasks: tasks }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_reached_through_a_proxy_with_the_users_authority() {
    let start = World::start(|config| {
        with_endpoint(config);
        // The one in another network tells where they all are served.
        let here = ConnectEndpointConfig { vpc: OTHER_VPC.to_owned(), ..config.connect_endpoints[0].clone() };
        config.connect_endpoints[0].dns_name = Some(ENDPOINT.to_owned());
        config.connect_endpoints.push(here);
    });
    let Some(world) = start.await else { return };
    let here = world.aws().await.describe_instance_connect_endpoints(OTHER_VPC).await.unwrap().remove(0);
    let to: SocketAddr = here.dns_name.unwrap().parse().unwrap();
    let (tls, certificate) = tls_acceptor_for(ENDPOINT, &[]);
    let bundle = world.folder.path().join("bundle.pem");
    fs::write(&bundle, certificate).unwrap();
    // `ann:hunter2`.
    for (password, user, knows_authority, said) in [
        (None, "", true, None),
        (Some("YW5uOmh1bnRlcjI="), "ann:hunter2@", true, None),
        (Some("YW5uOmh1bnRlcjI="), "", true, Some("requires a user name and password, but `HTTPS_PROXY` has none")),
        (None, "", false, Some("UnknownIssuer")),
    ] {
        let gate = Gate::start(password, tls.clone(), to).await;
        let url = Secret::new(format!("http://{user}{}", gate.address));
        let proxy = Proxy { url, has_user: !user.is_empty(), variable: "HTTPS_PROXY" };
        let settings = AwsSettings {
            proxies: Proxies { https: Some(proxy), ..Proxies::default() },
            ca_bundle: knows_authority.then(|| bundle.clone()),
            ..AwsSettings::default()
        };
        let keys: Vec<String> = world.emulator.static_environment().into_iter().map(|(_, value)| value).collect();
        let aws = aws_with_keys(world.emulator.endpoint(), keys.try_into().unwrap(), settings).await;
        let servers = Servers::new(&aws, world.config.clone());
        let mut tunnel = world.tunnel_of(&servers, &format!("ssh://{}@{ID}", world.sshd.user()), world.echo);
        match said {
            None => {
                let status = tunnel.until(|status| status.state == State::Active || status.last_error.is_some()).await;
                let fault = status.last_error.map(|error| sentence(&*error.fault));
                assert_eq!(fault, None, "{user} {:?}", world.emulator.violations());
                tunnel.echoes().await;
                assert_eq!(gate.passed.load(Ordering::Relaxed), 1);
            }
            Some(said) => {
                let text = sentence(&*tunnel.fault().await);
                assert!(text.contains(said), "{text}");
                assert_eq!(gate.passed.load(Ordering::Relaxed), 0);
            }
        }
        tunnel.stop().await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_withdrawn_with_the_last_who_waits_for_its_answer() {
    let Some(mut world) = World::start(|_| ()).await else { return };
    let open = watch::Sender::new(0);
    let questions = open.clone();
    world.config.ask = Some(Ask::new(move |question| {
        assert_eq!((question.known_as.as_str(), question.kind.as_str()), (ID, "ssh-ed25519"));
        questions.send_modify(|open| *open += 1);
        let withdrawn = questions.clone();
        let guard = at_the_end(move || withdrawn.send_modify(|open| *open -= 1));
        Box::pin(async move {
            let _until_dropped = guard;
            std::future::pending().await
        })
    }));
    let servers = world.servers().await;
    let tunnels = [(); 2].map(|()| world.tunnel_of(&servers, &world.address(""), world.echo));
    let mut count = open.subscribe();
    in_time(count.wait_for(|open| *open == 1)).await.unwrap();
    for tunnel in tunnels {
        tunnel.stop().await;
    }
    assert_eq!(*open.borrow(), 0, "what is kept of the bastion keeps no question");
    drop(servers);
    world.end().await;
}

/// Does something when it is dropped.
fn at_the_end(last: impl FnOnce() + Send + 'static) -> impl Send {
    struct Guard<F: FnOnce()>(Option<F>);
    impl<F: FnOnce()> Drop for Guard<F> {
        fn drop(&mut self) {
            if let Some(last) = self.0.take() {
                last();
            }
        }
    }
    Guard(Some(last))
}
