//! The page of a manager in both formats, and who is given it.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::manager::control::ProxyStatus;

fn status() -> ManagerStatus {
    let now = || Timestamp::from(SystemTime::UNIX_EPOCH);
    let tunnel = |context: &str, state: &str| TunnelReport {
        context: context.to_owned(),
        cluster: "payments".to_owned(),
        endpoint: "x.eks.amazonaws.com:443".to_owned(),
        state: state.to_owned(),
        port: 10100,
        bytes_sent: 5,
        probe_rtt_ms: (state == "active").then_some(28),
        ..TunnelReport::unused(now())
    };
    ManagerStatus {
        version: 1,
        program: Some(crate::version::short()),
        name: "default".to_owned(),
        state: "degraded".to_owned(),
        pid: 1,
        since: now(),
        started_at: now(),
        identity: None,
        credentials_expire: None,
        opened: true,
        kubeconfig: None,
        imported_from: Vec::new(),
        proxy: Some(ProxyStatus {
            address: "127.0.0.1:10099".to_owned(),
            others: "refuse".to_owned(),
            open_connections: 1,
            connections_total: 2,
            refused_total: 3,
        }),
        metrics: None,
        audit: None,
        log: None,
        access: Vec::new(),
        tunnels: vec![tunnel("pa-payments", "active"), tunnel("pa-\"odd\\\n", "failed")],
    }
}

#[test]
fn both_formats_say_the_same() {
    let (prometheus, open) = (text(&status(), Format::Prometheus), text(&status(), Format::OpenMetrics));
    for line in [
        "autoheal_pa_manager_state{manager=\"default\",state=\"degraded\"} 1",
        "autoheal_pa_manager_state{manager=\"default\",state=\"active\"} 0",
        "autoheal_pa_tunnel_state{tunnel=\"pa-payments\",state=\"active\"} 1",
        "autoheal_pa_tunnel_ready{tunnel=\"pa-\\\"odd\\\\\\n\"} 0",
        "autoheal_pa_tunnel_sent_bytes_total{tunnel=\"pa-payments\"} 5",
        "autoheal_pa_tunnel_probe_round_trip_seconds{tunnel=\"pa-payments\"} 0.028",
        "autoheal_pa_proxy_refused_total 3",
    ] {
        assert!(prometheus.lines().any(|other| other == line), "{line}\n{prometheus}");
    }
    let samples =
        |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(samples(&prometheus), samples(&open));
    assert!(prometheus.contains("# TYPE autoheal_pa_tunnel_sent_bytes_total counter\n"));
    assert!(
        open.contains("# TYPE autoheal_pa_tunnel_sent_bytes counter\n# UNIT autoheal_pa_tunnel_sent_bytes bytes\n")
    );
    assert!(open.contains("# TYPE autoheal_pa_build info\n") && !open.contains("TYPE autoheal_pa_build_info"));
    assert!(prometheus.ends_with("\n# EOF\n") && open.ends_with("\n# EOF\n"));
    // What has nothing to say is not declared.
    assert!(!open.contains("credentials"), "{open}");
    for text in [prometheus, open] {
        let mut declared: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let count = declared.len();
        declared.dedup();
        assert_eq!(declared.len(), count);
    }
}

#[test]
fn the_format_is_what_somebody_takes() {
    for (accept, format) in [
        ("", Format::Prometheus),
        ("*/*", Format::Prometheus),
        ("text/plain;version=0.0.4", Format::Prometheus),
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            Format::OpenMetrics,
        ),
        ("application/openmetrics-text", Format::OpenMetrics),
    ] {
        assert_eq!(Format::accepted(accept), format, "{accept}");
    }
}

#[tokio::test]
async fn the_page_is_there_and_nothing_else() {
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    let address = start("127.0.0.1:0".parse().unwrap(), status, &mut tasks, &stop);
    let address = address.unwrap();
    let ask = |request: String| async move {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let get = |path: &str, host: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n")
    };
    for host in ["localhost", "127.0.0.1:9464", "[::1]:9464", "LOCALHOST:1"] {
        let answer = ask(get("/metrics", host, "")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("text/plain; version=0.0.4"), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
    }
    let answer = ask(get("/metrics", "localhost", "Accept: application/openmetrics-text\r\n")).await;
    assert!(answer.contains("application/openmetrics-text; version=1.0.0") && answer.contains("# UNIT "), "{answer}");
    // A name that has been made to lead here.
    for host in ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:9464"] {
        let answer = ask(get("/metrics", host, "")).await;
        assert!(answer.starts_with("HTTP/1.1 421 ") && !answer.contains("payments"), "{answer}");
    }
    assert!(ask(get("/", "localhost", "")).await.starts_with("HTTP/1.1 404 "));
    let post = "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(ask(post.to_owned()).await.starts_with("HTTP/1.1 405 "));
    stop.cancel();
    tasks.join_all().await;
    assert!(TcpStream::connect(address).await.is_err());
}
