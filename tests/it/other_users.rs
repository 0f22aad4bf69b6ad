//! What other users of the same machine can do: nothing. These tests make users of their own, which takes root.

use std::os::unix::process::CommandExt as _;

use autoheal_pa::emulator::Config;

use crate::support::*;

/// Users that have no account and no rights.
const STRANGER: u32 = 64_001;

/// Whether a program of the user gets an answer through a local port: the proxy refuses what it is asked for, and to an API
/// server it is no TLS.
fn is_answered(user: u32, port: u16) -> bool {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'CONNECT a:1 HTTP/1.1\\r\\n\\r\\n' >&3 && read -r -N1 -t 60 -u3"
    );
    let mut bash = std::process::Command::new("bash");
    bash.args(["-c", &script]).uid(user).gid(user).current_dir("/").env_clear().stderr(std::process::Stdio::null());
    bash.status().expect("bash is there").success()
}

/// The local ports of the tunnels, and that of the proxy.
async fn ports(lab: &Lab) -> Vec<u16> {
    let status = lab.status(&[]).await;
    let tunnels = status["tunnels"].as_array().expect("tunnels").iter();
    let mut ports: Vec<u16> = tunnels.map(|tunnel| tunnel["port"].as_u64().expect("a port") as u16).collect();
    let text = std::fs::read_to_string(lab.kubeconfig()).expect("a kubeconfig");
    let proxy = text.lines().find_map(|line| line.trim().strip_prefix("proxy-url: \"http://127.0.0.1:"));
    ports.push(proxy.expect("a proxy").trim_end_matches('"').parse().expect("a port"));
    ports
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_s_programs_get_through_a_local_port() {
    if !is_root() {
        return;
    }
    const PROXY: [&str; 4] = ["--kubeconfig-mode", "proxy", "--proxy", "0"];
    let lab = Lab::start(Config::default()).await;
    let mut up = lab.up(&PROXY).await;
    for port in ports(&lab).await {
        assert!(is_answered(0, port), "{port}: its own user's");
        assert!(!is_answered(STRANGER, port), "{port}: another user's");
    }
    let text = "rejected a connection from another user's program; `--allow-other-users` would allow it";
    assert!(up.says(text).await, "it is said in the log");
    assert_eq!(up.stop().await.code(), Some(0));

    let up = lab.up(&[&PROXY[..], &["--allow-other-users"]].concat()).await;
    for port in ports(&lab).await {
        assert!(is_answered(STRANGER, port), "{port}");
    }
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}
