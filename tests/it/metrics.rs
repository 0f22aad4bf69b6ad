//! `--metrics` and `status --metrics`, with what Prometheus says to them.

use std::{path::Path, process::Stdio};

use autoheal_pa::emulator::{ClusterConfig, Config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    databases::programs,
    support::{Lab, Running, within},
};

/// What promtool has to say to a page.
async fn checked(lab: &Lab, promtool: &Path, page: &str) -> String {
    let mut command = lab.bare_command(promtool);
    let mut promtool = Running::start(command.args(["check", "metrics"]).stdin(Stdio::piped()));
    promtool.stdin().write_all(page.as_bytes()).await.unwrap();
    let ended = promtool.ended().await;
    ended.assert_success();
    format!("{}{}", ended.stdout, ended.stderr)
}

async fn fetch(address: &str, accept: &str) -> (String, String) {
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("the page", client.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_takes_the_metrics_of_a_manager() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    // Nobody connects to it: that it is known will do.
    lab.emulator.route("db.internal:5432", std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
    let args = ["--forward", "db=db.internal:5432", "--proxy", "0", "--metrics", "0"];
    let mut up = lab.up(&args).await;
    assert!(up.says("metrics at http://127.0.0.1:").await);
    let url = lab.status(&[]).await["metrics"].as_str().unwrap().to_owned();
    let address = url.strip_prefix("http://").unwrap().strip_suffix("/metrics").unwrap();
    let (head, page) = fetch(address, "*/*").await;
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let printed = lab.run(&["status", "--metrics"]).await;
    let printed = printed.assert_success();
    let names = |text: &str| {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&page), names(printed));
    for line in [
        "autoheal_pa_tunnel_ready{tunnel=\"pa-payments\"} 1",
        "autoheal_pa_tunnel_ready{tunnel=\"db\"} 1",
        "autoheal_pa_manager_state{manager=\"default\",state=\"active\"} 1",
        "autoheal_pa_proxy_open_connections 0",
    ] {
        assert!(page.lines().any(|other| other == line), "{line}\n{page}");
    }
    if let Some([promtool]) = programs("AUTOHEAL_PA_TEST_REQUIRES_PROMTOOL", ["promtool"]) {
        for page in [page.as_str(), printed] {
            assert_eq!(checked(&lab, &promtool, page).await, "");
        }
    }
    let (head, page) = fetch(address, "application/openmetrics-text;version=1.0.0").await;
    assert!(
        head.contains("application/openmetrics-text") && page.contains("# TYPE autoheal_pa_tunnel_sent_bytes counter"),
        "{page}"
    );
    assert!(page.ends_with("\n# EOF\n"));
    up.stop().await.assert_success();
    lab.assert_clean().await;
}
