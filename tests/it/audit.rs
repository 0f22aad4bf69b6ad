//! The audit file, with programs that nobody here wrote.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Stdio, time::Duration};

use autoheal_pa::emulator::{ClusterConfig, Config};
use serde_json::Value;

use super::support::{Lab, Running, kubectl, within};

const BASTION: &str = "i-0dc03fbcae2a87472";

/// Connects to a port and keeps the connection until its input ends.
const HOLD: &str = "exec 3<>/dev/tcp/127.0.0.1/$0; read -r line; exec 3>&-";

/// Has a proxy connect, and keeps the connection until its input ends.
const CONNECT: &str =
    r#"exec 3<>"/dev/tcp/$0/$1"; printf 'CONNECT %s HTTP/1.1\r\n\r\n' "$2" >&3; read -r line; exec 3>&-"#;

async fn lab() -> Lab {
    Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await
}

/// The lines so far.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// Waits for a line with these values.
#[track_caller]
fn line<'a>(path: &'a Path, values: &'a [(&str, Value)]) -> impl Future<Output = Value> + 'a {
    within("a line of the audit file", async move {
        let mut looking = tokio::time::interval(Duration::from_millis(20));
        loop {
            let is_it = |line: &&Value| values.iter().all(|(key, value)| line[*key] == *value);
            if let Some(line) = lines(path).iter().find(is_it) {
                return line.clone();
            }
            looking.tick().await;
        }
    })
}

fn local_port(status: &Value) -> String {
    status["tunnels"][0]["port"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_connection_has_its_program_its_session_and_its_bytes() {
    let lab = lab().await;
    let audit = lab.path("logs/audit.jsonl");
    let up = lab.up(&["--bastion", BASTION, "--audit", audit.to_str().unwrap()]).await;
    let status = lab.status(&[]).await;
    assert_eq!(status["audit"], *audit.to_str().unwrap());
    assert_eq!(fs::metadata(&audit).unwrap().permissions().mode() & 0o777, 0o600);

    // The probe is nobody's program.
    assert_eq!(lines(&audit).iter().map(|line| &line["event"]).collect::<Vec<_>>(), ["started"]);

    let mut bash = lab.bare_command("bash");
    let mut bash = bash.args(["-c", HOLD, &local_port(&status)]).stdin(Stdio::piped()).spawn().unwrap();
    let opened = line(&audit, &[("event", "opened".into()), ("pid", bash.id().into())]).await;
    assert_eq!((&opened["program"], &opened["tunnel"]), (&"bash".into(), &"payments".into()));
    assert_eq!(opened["user"], rustix::process::geteuid().as_raw());
    assert!(opened["executable"].as_str().unwrap().ends_with("bash"), "{opened}");
    assert_eq!((&opened["by_proxy"], &opened["port"]), (&false.into(), &status["tunnels"][0]["port"]));
    drop(bash.stdin.take());
    bash.wait().await.unwrap();
    let closed = line(&audit, &[("event", "closed".into()), ("connection", opened["connection"].clone())]).await;
    assert_eq!((&closed["bytes_sent"], &closed["bastion"]), (&0.into(), &BASTION.into()));
    assert_eq!((&closed["end"], &closed["run"]), (&"closed".into(), &opened["run"]));
    let session = lab.emulator.sessions()[0].id.clone();
    assert_eq!(closed["session"], session);

    if let Some(kubectl) = kubectl() {
        let mut get = lab.bare_command(kubectl);
        get.env("KUBECONFIG", lab.kubeconfig()).args(["get", "pods"]);
        Running::start(&mut get).ended().await.assert_success();
        let of_kubectl = |line: &Value| line["event"] == "closed" && line["bytes_received"].as_u64() > Some(500);
        within("what kubectl carried", async {
            let mut looking = tokio::time::interval(Duration::from_millis(20));
            while !lines(&audit).iter().any(of_kubectl) {
                looking.tick().await;
            }
        })
        .await;
    }
    up.stop().await.assert_success();
    assert_eq!(lines(&audit).last().unwrap()["event"], "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_through_the_proxy_is_named_and_not_the_proxy() {
    let lab = lab().await;
    let audit = lab.path("audit.jsonl");
    let args = ["--bastion", BASTION, "--proxy", "0", "--audit", audit.to_str().unwrap()];
    let _up = lab.up(&args).await;
    let status = lab.status(&[]).await;
    let address = status["proxy"]["address"].as_str().unwrap();
    let (host, port) = address.rsplit_once(':').unwrap();
    let endpoint = status["tunnels"][0]["endpoint"].as_str().unwrap();
    let mut bash = lab.bare_command("bash");
    let bash = bash.args(["-c", CONNECT, host, port, endpoint]).stdin(Stdio::piped());
    let mut bash = bash.spawn().unwrap();
    let opened = line(&audit, &[("event", "opened".into()), ("by_proxy", true.into())]).await;
    assert_eq!((&opened["program"], opened["pid"].as_u64()), (&"bash".into(), bash.id().map(u64::from)), "{opened}");
    assert_eq!(opened["port"], status["tunnels"][0]["port"]);
    drop(bash.stdin.take());
    bash.wait().await.unwrap();
    line(&audit, &[("event", "closed".into()), ("connection", opened["connection"].clone())]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_comes_to_nothing_ends_its_file() {
    let lab = lab().await;
    let audit = lab.path("audit.jsonl");
    let args =
        ["up", "--base-port", "0", "--cluster", "nope", "--bastion", BASTION, "--audit", audit.to_str().unwrap()];
    let ended = lab.run(&args).await;
    assert_eq!(ended.code(), Some(4), "{ended:?}");
    assert_eq!(lines(&audit).iter().map(|line| &line["event"]).collect::<Vec<_>>(), ["started", "stopped"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_written_is_told_before_aws_is_called() {
    let lab = lab().await;
    let folder = lab.path("folder");
    fs::create_dir(&folder).unwrap();
    let ended = lab.run(&["up", "--bastion", BASTION, "--audit", folder.to_str().unwrap()]).await;
    let stderr = ended.stderr.as_str();
    assert_eq!(ended.code(), Some(2), "{stderr}");
    assert!(stderr.contains(&format!("cannot use the audit file `{}`", folder.display())), "{stderr}");
    assert!(stderr.contains("--audit"), "{stderr}");
    assert!(lab.emulator.events().is_empty());
}
