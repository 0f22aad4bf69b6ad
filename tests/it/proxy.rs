//! `--proxy`, with programs that people have: curl, the AWS CLI, Python's requests, kubectl.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use autoheal_pa::emulator::{BastionConfig, ClusterConfig, Config, Identity};
use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
};

use super::{
    databases::{CUTS, LIFETIME, as_nobody, cuts, folder, free_port, programs, until_it_answers},
    support::{Ended, Lab, Running, aws_cli, kubectl},
};

const BASTION: &str = "i-0dc03fbcae2a87472";

fn curl() -> Option<PathBuf> {
    programs("AUTOHEAL_PA_TEST_REQUIRES_CURL", ["curl"]).map(|[curl]| curl)
}

/// A Python that has `requests[socks]`, as the gate installs it.
fn python() -> Option<PathBuf> {
    programs("AUTOHEAL_PA_TEST_REQUIRES_REQUESTS", ["python-requests"]).map(|[python]| python)
}

async fn lab() -> Lab {
    Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await
}

/// An internal page: it says what it was asked for, and for `/slow` one piece for each step.
struct Page {
    address: SocketAddr,
    steps: watch::Sender<usize>,
    _task: JoinSet<()>,
}

/// One piece of a slow page, in bytes.
const PIECE: usize = 20_000;

impl Page {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (steps, seen) = watch::channel(0);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut seen = seen.clone();
                connections.spawn(async move {
                    loop {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            let Ok(byte) = stream.read_u8().await else { return };
                            head.push(byte);
                        }
                        let head = String::from_utf8(head).unwrap();
                        let first = head.lines().next().unwrap().to_owned();
                        let host = head.lines().find_map(|line| line.strip_prefix("Host: ")).expect("a host");
                        if first.contains("/slow") {
                            let length = PIECE * CUTS;
                            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                            stream.write_all(answer.as_bytes()).await.unwrap();
                            for step in 1..=CUTS {
                                seen.wait_for(|steps| *steps >= step).await.unwrap();
                                stream.write_all(&[b'0' + step as u8; PIECE]).await.unwrap();
                            }
                        } else {
                            let body = format!("{first} for {host}\n");
                            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                            stream.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                });
            }
        });
        Self { address, steps, _task: task }
    }

    fn slow() -> String {
        (1..=CUTS).map(|step| step.to_string().repeat(PIECE)).collect()
    }
}

/// Where the proxy is, as `status` says.
async fn proxy_of(lab: &Lab) -> String {
    lab.status(&[]).await["proxy"]["address"].as_str().expect("a proxy").to_owned()
}

async fn run(lab: &Lab, program: &Path, args: &[&str]) -> Ended {
    Running::start(lab.bare_command(program).args(args)).ended().await
}

/// The two ways to say where the proxy is.
fn ways(address: &str) -> [String; 2] {
    [format!("http://{address}"), format!("socks5h://{address}")]
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_gets_to_clusters_and_forwards_by_their_names_and_nowhere_else() {
    let Some(curl) = curl() else { return };
    let (lab, page) = (lab().await, Page::start().await);
    lab.emulator.route("wiki.internal:80", page.address);
    lab.emulator.route("news.internal:8080", page.address);
    let file = lab.path("config.yaml");
    let forwards = |more: &str| {
        let forwards = format!("proxy: 0\nbastion: {BASTION}\nforwards: ['wiki=wiki.internal:80'{more}]\n");
        fs::write(&file, forwards).unwrap();
    };
    forwards("");
    let up = lab.up(&["--config", file.to_str().unwrap()]).await;
    let address = proxy_of(&lab).await;
    let server = &lab.emulator.api_servers()[0];
    let authority = lab.path("ca.pem");
    fs::write(&authority, STANDARD.decode(&server.certificate_authority).unwrap()).unwrap();
    let livez = format!("https://{}/livez", server.host);
    // Two requests on one connection, and a name in capitals.
    let pages = ["http://wiki.internal/a", "http://WIKI.internal/b?c"];
    for way in ways(&address) {
        let args = ["-sS", "--proxy", &way, "--cacert", authority.to_str().unwrap(), &livez];
        assert_eq!(run(&lab, &curl, &args).await.assert_success(), "ok\n", "{way}");
        let ended = run(&lab, &curl, &["-sS", "--proxy", &way, pages[0], pages[1]]).await;
        let hosts = if way.starts_with("http:") {
            ["wiki.internal", "wiki.internal"]
        } else {
            ["wiki.internal", "WIKI.internal"]
        };
        let expected = format!("GET /a HTTP/1.1 for {}\nGET /b?c HTTP/1.1 for {}\n", hosts[0], hosts[1]);
        assert_eq!(ended.assert_success().to_lowercase(), expected.to_lowercase(), "{way}");
        // By CONNECT to a port that is not of TLS.
        let ended = run(&lab, &curl, &["-sS", "--proxytunnel", "--proxy", &way, pages[0]]).await;
        assert_eq!(ended.assert_success(), "GET /a HTTP/1.1 for wiki.internal\n");
    }
    let said = "no tunnel of autoheal-pa leads to `news.internal:8080`";
    let refused = run(&lab, &curl, &["-sS", "--proxy", &ways(&address)[0], "http://news.internal:8080/"]).await;
    assert!(
        refused.stdout.starts_with(said) && refused.stdout.contains("`--forward news.internal:8080`"),
        "{refused:#?}"
    );
    let refused = run(&lab, &curl, &["-sSv", "--proxy", &ways(&address)[0], "https://news.internal:8080/"]).await;
    assert!(!refused.status.success() && refused.stderr.contains(&format!("403 Forbidden: {said}")), "{refused:#?}");
    let refused = run(&lab, &curl, &["-sS", "--proxy", &ways(&address)[1], "http://news.internal:8080/"]).await;
    // 97: the proxy has said no.
    assert_eq!(refused.code(), Some(97), "{refused:#?}");

    let status = lab.status(&[]).await;
    let proxy = &status["proxy"];
    assert_eq!((&proxy["others"], proxy["refused_total"].as_u64()), (&"refuse".into(), Some(3)), "{proxy}");
    assert_eq!(status["tunnels"][0]["endpoint"], format!("{}:443", server.host));
    // The end of a connection passes through the tunnel and back.
    super::support::within("all clients to be gone", async {
        while lab.status(&[]).await["proxy"]["open_connections"] != 0 {}
    })
    .await;
    let text = lab.run(&["status"]).await;
    let text = text.assert_success();
    assert!(
        text.contains(&format!("\nproxy       {address}, 0 connected; names that no tunnel leads to are refused\n")),
        "{text}"
    );
    assert!(text.contains(&format!("\n  by the proxy as `{}:443`\n", server.host)), "{text}");
    // Contexts are as they are without it.
    assert!(fs::read_to_string(lab.kubeconfig()).unwrap().contains("tls-server-name"));

    forwards(", 'news.internal:8080'");
    lab.run(&["reload"]).await.assert_success();
    let ended = run(&lab, &curl, &["-sS", "--proxy", &ways(&address)[1], "http://news.internal:8080/"]).await;
    assert_eq!(ended.assert_success(), "GET / HTTP/1.1 for news.internal:8080\n");
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_through_the_proxy_are_kept_while_the_websocket_is_cut() {
    let Some(curl) = curl() else { return };
    let (lab, page) = (lab().await, Page::start().await);
    lab.emulator.route("wiki.internal:80", page.address);
    let up = lab.up(&["--bastion", BASTION, "--forward", "wiki.internal:80", "--proxy", "0"]).await;
    let [http, socks] = ways(&proxy_of(&lab).await);
    lab.emulator.update(|settings| settings.transport_lifetime = Some(LIFETIME));
    let start = |args: &[&str]| {
        Running::start(lab.bare_command(&curl).args(["-sS"]).args(args).arg("http://wiki.internal/slow"))
    };
    let clients =
        [start(&["--proxy", &http]), start(&["--proxy", &socks]), start(&["--proxytunnel", "--proxy", &http])];
    for step in 1..=CUTS {
        cuts(&lab, 1).await;
        page.steps.send_replace(step);
    }
    for client in clients {
        let ended = client.ended().await;
        assert!(ended.assert_success().trim_end() == Page::slow(), "what came is not what was sent");
    }
    lab.emulator.update(|settings| settings.transport_lifetime = None);
    let status = lab.status(&[]).await;
    assert!(status["tunnels"].as_array().unwrap().iter().all(|tunnel| tunnel["restarts"] == 0), "{status:#}");
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

/// An endpoint of EKS that is reached as a host behind the bastion, as that of a VPC is, while the WebSocket is cut; and the usual
/// one, as a name that no tunnel leads to.
#[tokio::test(flavor = "multi_thread")]
async fn the_aws_cli_describes_a_cluster_through_the_proxy() {
    let Some(aws) = aws_cli("1.45.11").await else { return };
    let clusters = vec![ClusterConfig::new("payments")];
    let lab = Lab::start(Config { clusters, identity: Identity::StaticKeys, ..Config::default() }).await;
    let endpoint = lab.emulator.endpoint();
    let api: SocketAddr = endpoint.trim_start_matches("http://").parse().unwrap();
    lab.emulator.route("eks.internal:8080", api);
    let args = ["--bastion", BASTION, "--forward", "eks.internal:8080", "--proxy", "0", "--proxy-others", "direct"];
    let up = lab.up(&args).await;
    lab.emulator.update(|settings| settings.transport_lifetime = Some(LIFETIME));
    let describe = "aws eks describe-cluster --region us-east-1 --name payments --query cluster.status --output text";
    let script =
        format!("eval \"$(\"$0\" env --proxy --shell bash)\" && {describe} --endpoint-url http://eks.internal:8080");
    let shell = |script: &str| {
        let mut shell = lab.command("sh");
        shell.args(["-c", script, super::support::PROGRAM]);
        let dir = aws.parent().unwrap().display();
        shell.env("PATH", format!("{dir}:{}", super::support::path_variable().display()));
        Running::start(&mut shell)
    };
    for _ in 0..3 {
        let ended = shell(&script).ended().await;
        assert_eq!(ended.assert_success(), "ACTIVE\n", "{ended:#?}");
        assert_eq!(ended.stderr, "");
        cuts(&lab, 1).await;
    }
    let before = lab.status(&[]).await["proxy"]["connections_total"].as_u64().unwrap();
    assert!(before >= 3, "{before}");
    // Without what is excepted for this machine, where the emulator is.
    let script = format!("eval \"$(\"$0\" env --proxy --shell bash)\" && NO_PROXY= no_proxy= {describe}");
    let ended = shell(&script).ended().await;
    assert_eq!(ended.assert_success(), "ACTIVE\n", "{ended:#?}");
    lab.emulator.update(|settings| settings.transport_lifetime = None);
    let status = lab.status(&[]).await;
    assert!(status["proxy"]["connections_total"].as_u64().unwrap() > before, "{status:#}");
    assert!(status["tunnels"].as_array().unwrap().iter().all(|tunnel| tunnel["restarts"] == 0), "{status:#}");
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

const REQUESTS: &str = r#"
import os, requests, socks, sys
proxy, redis, page = sys.argv[1:4]
# By the variables of `env --proxy`.
print(requests.get("http://wiki.internal/env").text, end="")
with requests.Session() as session:
    session.trust_env = False
    for scheme in ["http", "socks5h"]:
        session.proxies = {"http": f"{scheme}://{proxy}", "https": f"{scheme}://{proxy}"}
        for name in ["one", "two"]:
            print(session.post(f"http://wiki.internal/{scheme}/{name}", data=b"").text, end="")
        try:
            session.get("http://other.internal/", timeout=60).raise_for_status()
        except requests.RequestException as error:
            print(scheme, type(error).__name__)
    slow = session.get("http://wiki.internal/slow", stream=True)
    size = sum(len(piece) for piece in slow.iter_content(1000))
    print("slow", size)
if redis == "yes":
    connection = socks.socksocket()
    connection.set_proxy(socks.SOCKS5, *proxy.split(":")[:1], int(proxy.split(":")[1]), rdns=True)
    connection.connect(("cache.internal", 6379))
    file = connection.makefile("rwb")
    def ask(words):
        file.write(words + b"\r\n")
        file.flush()
        return file.readline().strip().decode().lstrip(":")
    first = ask(b"CLIENT ID")
    for line in sys.stdin:
        print(ask(b"INCR rounds"), flush=True)
    print("same" if ask(b"CLIENT ID") == first else "another")
"#;

#[tokio::test(flavor = "multi_thread")]
async fn pythons_requests_and_a_redis_client_come_by_socks_while_the_websocket_is_cut() {
    let Some(python) = python() else { return };
    let redis = programs("AUTOHEAL_PA_TEST_REQUIRES_REDIS", ["redis-server"]);
    let (lab, page, folder) = (lab().await, Page::start().await, folder());
    let redis_port = free_port().await;
    let redis = redis.map(|[program]| {
        let mut command = as_nobody(&program);
        command.args(["--bind", "127.0.0.1", "--port", &redis_port.to_string(), "--save", "", "--dir"]);
        Running::start(command.arg(folder.path()))
    });
    if let Some(redis) = &redis {
        until_it_answers(redis, redis_port).await;
    }
    lab.emulator.route("wiki.internal:80", page.address);
    lab.emulator.route("cache.internal:6379", SocketAddr::from(([127, 0, 0, 1], redis_port)));
    // Forwards alone have a proxy as well.
    let args = [
        "forward",
        "--base-port",
        "0",
        "--bastion",
        BASTION,
        "--proxy",
        "127.0.0.1:0",
        "wiki.internal:80",
        "cache.internal:6379",
    ];
    let mut forward = Running::start(&mut lab.program(&args));
    forward.ready().await;
    let proxy = proxy_of(&lab).await;
    lab.emulator.update(|settings| settings.transport_lifetime = Some(LIFETIME));

    let printed = lab.run(&["env", "--proxy", "--shell", "bash"]).await;
    let lines = printed.assert_success();
    assert!(
        !lines.contains("KUBECONFIG") && lines.contains(&format!("export HTTPS_PROXY='http://{proxy}'\n")),
        "{lines}"
    );
    assert!(printed.stderr.contains("`up --proxy-others direct`"), "{printed:#?}");
    let variables = lines.lines().map(|line| line.trim_start_matches("export ").split_once('=').unwrap());
    let mut client = lab.bare_command(python);
    client.envs(variables.map(|(name, value)| (name, value.trim_matches('\''))));
    client.args(["-u", "-c", REQUESTS, &proxy, if redis.is_some() { "yes" } else { "no" }, ""]).stdin(Stdio::piped());
    let mut client = Running::start(&mut client);
    let mut stdin = client.stdin();
    assert!(client.prints("socks5h/two").await, "{}", client.stderr_so_far());
    for step in 1..=CUTS {
        cuts(&lab, 1).await;
        page.steps.send_replace(step);
    }
    assert!(client.prints("slow ").await, "{}", client.stderr_so_far());
    if redis.is_some() {
        for round in 1..=CUTS {
            cuts(&lab, 1).await;
            stdin.write_all(b"again\n").await.unwrap();
            assert!(client.prints(&format!("\n{round}\n")).await, "{}", client.stderr_so_far());
        }
    }
    drop(stdin);
    let ended = client.ended().await;
    let got: Vec<_> = ended.assert_success().lines().collect();
    let posted = |path: &str| format!("POST /{path} HTTP/1.1 for wiki.internal");
    let mut expected = vec!["GET /env HTTP/1.1 for wiki.internal".to_owned()];
    expected.extend([posted("http/one"), posted("http/two"), "http HTTPError".to_owned()]);
    expected.extend([posted("socks5h/one"), posted("socks5h/two"), "socks5h ConnectionError".to_owned()]);
    expected.push(format!("slow {}", PIECE * CUTS));
    if redis.is_some() {
        expected.extend((1..=CUTS).map(|round| round.to_string()).chain(["same".to_owned()]));
    }
    assert_eq!(got, expected);
    lab.emulator.update(|settings| settings.transport_lifetime = None);
    forward.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_get_the_variables_of_the_proxy_and_are_told_where_there_is_none() {
    let Some(curl) = curl() else { return };
    let (lab, page) = (lab().await, Page::start().await);
    lab.emulator.route("wiki.internal:80", page.address);
    let none = lab.run(&["env", "--proxy"]).await;
    assert_eq!(none.code(), Some(4), "{none:#?}");
    assert!(none.stderr.contains("hint: start it with `autoheal-pa up --detach --proxy`"), "{none:#?}");

    let curl = curl.to_str().unwrap();
    let (forward, fetch) = ("wiki.internal:80", [curl, "-sS", "http://wiki.internal/x"]);
    let own = ["exec", "--base-port", "0", "--forward", forward, "--proxy=0", "--"];
    let ended = lab.run(&[&own[..], &fetch].concat()).await;
    assert_eq!(ended.assert_success(), "GET /x HTTP/1.1 for wiki.internal\n");

    let up = lab.up(&["--forward", forward]).await;
    let ended = lab.run(&[&["exec", "--proxy", "--"], &fetch[..]].concat()).await;
    assert!(
        ended.code() == Some(4) && ended.stderr.contains("the running manager `default` has no proxy"),
        "{ended:#?}"
    );
    assert!(lab.status(&[]).await["proxy"].is_null());
    up.stop().await.assert_success();

    let up = lab.up(&["--forward", forward, "--proxy=0", "--kubeconfig-mode", "proxy"]).await;
    let ended = lab.run(&[&["exec", "--proxy", "--"], &fetch[..]].concat()).await;
    assert_eq!(ended.assert_success(), "GET /x HTTP/1.1 for wiki.internal\n");
    let address = proxy_of(&lab).await;
    assert!(fs::read_to_string(lab.kubeconfig()).unwrap().contains(&format!("proxy-url: \"http://{address}\"")));
    if kubectl().is_some() {
        let nodes = ["exec", "--proxy", "--", "kubectl", "get", "nodes"];
        lab.run(&nodes).await.assert_success();
    }
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_does_not_mix_up_two_forwards_with_one_address() {
    let mut config = Config { clusters: vec![ClusterConfig::new("a")], ..Config::default() };
    config.bastions.push(BastionConfig::new("i-0dc03fbcae2a87473"));
    let lab = Lab::start(config).await;
    let entry = |bastion: &str, name: &str| {
        format!("- {{bastion: {bastion}, no_clusters: true, forwards: ['{name}=10.0.0.10:80']}}\n")
    };
    let text = format!("access:\n{}{}", entry(BASTION, "one"), entry("i-0dc03fbcae2a87473", "two"));
    let file = lab.path("config.yaml");
    fs::write(&file, format!("proxy: 0\n{text}")).unwrap();
    let ended = lab.run(&["up", "--base-port", "0", "--config", file.to_str().unwrap()]).await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    let said = "`one` and `two` both lead to `10.0.0.10:80`, which a proxy cannot tell apart";
    assert!(ended.stderr.contains(said), "{ended:#?}");
    fs::write(&file, text).unwrap();
    let up = lab.up(&["--config", file.to_str().unwrap()]).await;
    up.stop().await.assert_success();
    lab.assert_clean().await;
}
