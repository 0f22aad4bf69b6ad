//! The real `kubectl get -w` while things go wrong.

use std::time::Duration;

use autoheal_pa::emulator::{ClusterConfig, Command, Config, Emulator, Link};

use super::support::{Lab, Running, kubectl, within};

/// The pod whose state keeps changing.
const FLAKY: &str = "flaky-";

fn start_kubectl(lab: &Lab) -> Running {
    let mut command = lab.bare_command(kubectl().expect("asked before"));
    Running::start(command.arg("--kubeconfig").arg(lab.kubeconfig()).args(["get", "pods", "-A", "-w"]))
}

fn changes(watch: &Running) -> usize {
    watch.stdout_so_far().matches(FLAKY).count()
}

/// Waits until the watch has shown more changes than so many.
async fn shows_more_than(lab: &Lab, watch: &Running, count: usize) {
    // The emulator wakes those who wait with every message, and each change is one at least.
    let shown = |_: &Emulator| changes(watch) > count;
    within("a change on the watch", lab.emulator.wait_until(shown)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_watches_through_lost_websockets_and_lost_messages() {
    if kubectl().is_none() {
        return;
    }
    let config = Config {
        clusters: vec![ClusterConfig::new("payments")],
        pod_churn: Some(Duration::from_millis(200)),
        ..Config::default()
    };
    let lab = Lab::start(config).await;
    let up = lab.up(&[]).await;
    let mut watch = start_kubectl(&lab);
    assert!(watch.prints(FLAKY).await, "{}", watch.stderr_so_far());
    let bye = Command::CloseTransport { code: 1000, reason: "Bye".to_owned() };
    for command in [Command::CutTransport, bye] {
        lab.emulator.command(&command);
        // More than may have been under way.
        shows_more_than(&lab, &watch, changes(&watch) + 10).await;
    }
    lab.emulator.update(|settings| {
        let link = Link { loss: 0.05, duplicate: 0.05, reorder: 0.05, ..Link::default() };
        (settings.upstream, settings.downstream) = (link, link);
    });
    shows_more_than(&lab, &watch, changes(&watch) + 10).await;
    lab.emulator.update(|settings| (settings.upstream, settings.downstream) = (Link::default(), Link::default()));
    assert!(watch.child.try_wait().unwrap().is_none(), "kubectl still watches");
    assert_eq!(watch.stderr_so_far(), "");

    // The end of the session is the end of the watch; the next one works at once.
    lab.emulator.command(&Command::CloseChannel { output: Some("ended".to_owned()) });
    within("kubectl to end", watch.child.wait()).await.unwrap();
    let mut again = start_kubectl(&lab);
    assert!(again.prints(FLAKY).await, "{}", again.stderr_so_far());
    again.stop().await;
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}
