//! The examples, run as a reader of the README would.

use std::process::Stdio;

use autoheal_pa::emulator::Config;
use tokio::io::AsyncWriteExt;

use super::{
    ssh,
    support::{Lab, PROGRAM, Running, example, kubectl, path_variable, within},
};

#[tokio::test(flavor = "multi_thread")]
async fn decode_reads_a_recorded_exchange() {
    let lab = Lab::start(Config::default()).await;
    let trace = include_str!("../fixtures/traces/refused.jsonl");
    let mut decode = Running::start(lab.bare_command(example("decode")).stdin(Stdio::piped()));
    let mut stdin = decode.stdin();
    let (written, ended) = tokio::join!(
        async move {
            let written = stdin.write_all(trace.as_bytes()).await;
            drop(stdin);
            written
        },
        decode.ended()
    );
    written.unwrap();
    let text = ended.assert_success();
    for part in ["HandshakeRequest", "SYN stream 3", "FIN stream 3", r"Flag, 4 bytes: \x00\x00\x00\x03"] {
        assert!(text.contains(part), "{part}\n{text}");
    }

    let mut decode = Running::start(lab.bare_command(example("decode")).stdin(Stdio::piped()));
    let mut stdin = decode.stdin();
    stdin.write_all(b"zz\n00000074\n").await.unwrap();
    drop(stdin);
    let ended = decode.ended().await;
    assert_eq!(ended.code(), Some(1));
    assert!(ended.stdout.contains("not hexadecimal") && ended.stdout.contains("not a message"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn emulator_prints_all_that_up_needs() {
    let lab = Lab::start(Config::default()).await;
    let mut emulator = Running::start(lab.bare_command(example("emulator")).args(["--clusters", "3"]));
    assert!(emulator.prints("AUTOHEAL_PA_BASTION").await, "{}", emulator.stderr_so_far());
    let exports = emulator.stdout_so_far();
    assert!(exports.lines().all(|line| line.starts_with("export ")), "{exports}");

    let script = format!("{exports}\nexec '{PROGRAM}' up --base-port 0");
    let mut up = Running::start(lab.bare_command("sh").args(["-c", &script]));
    up.ready().await;
    assert_eq!(up.stop().await.code(), Some(0));
    assert_eq!(emulator.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn demo_runs_a_command_and_exits_with_its_status() {
    let lab = Lab::start(Config::default()).await;
    let mut demo = lab.bare_command(PROGRAM);
    demo.args(["demo", "--base-port", "0", "--", "sh", "-c", "test -s \"$KUBECONFIG\" && exit 7"]);
    let ended = Running::start(&mut demo).ended().await;
    assert_eq!(ended.code(), Some(7), "{ended:#?}");
    if kubectl().is_some() {
        let mut demo = lab.bare_command(PROGRAM);
        demo.args(["demo", "--base-port", "0", "--fault", "loss=1%", "--"]);
        demo.args(["kubectl", "--context", "pa-payments", "get", "pods", "-A"]);
        let ended = Running::start(&mut demo).ended().await;
        assert!(ended.assert_success().contains("kube-system"), "{ended:#?}");
    }
    for (args, text) in [
        (&["demo", "--fault", "drop-websockets=3s"][..], "drop-websocket=30s"),
        (&["demo", "--base-port", "0", "--", "/no/such/program"], "cannot run `/no/such/program`"),
    ] {
        let ended = Running::start(lab.bare_command(PROGRAM).args(args)).ended().await;
        assert_eq!(ended.code(), Some(2), "{ended:#?}");
        assert!(ended.stderr.contains(text), "{ended:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sandbox_start_returns_when_the_tunnels_are_ready() {
    let lab = Lab::start(Config::default()).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/sandbox-start.sh");
    let mut start = lab.command(script);
    start.arg("--base-port").arg("0").env("AUTOHEAL_PA", PROGRAM);
    let ended = within("the script", Running::start(&mut start).ended()).await;
    assert!(ended.assert_success().starts_with("tunnel ready\n"), "{ended:#?}");
    assert!(ended.stdout.contains("pa-payments") && ended.stdout.contains("active"), "{ended:#?}");
    let env = lab.path(".autoheal-pa.env");
    let shown = format!(". '{}' && echo \"$KUBECONFIG\"", env.display());
    let sourced = Running::start(lab.bare_command("sh").args(["-c", &shown])).ended().await;
    assert_eq!(sourced.assert_success().trim_end(), lab.kubeconfig().to_str().unwrap());

    // A second start finds them.
    let sessions = lab.emulator.sessions().len();
    let again = within("the script", Running::start(&mut start).ended()).await;
    assert!(!again.assert_success().contains("tunnel ready"), "{again:#?}");
    assert_eq!(lab.emulator.sessions().len(), sessions);
    lab.run(&["down"]).await.assert_success();
    lab.wait_until("the sessions to end", |emulator| emulator.sessions().iter().all(super::support::has_ended)).await;

    // Without a bastion it fails, and says why.
    let mut start = lab.command(script);
    start.env("AUTOHEAL_PA", PROGRAM).env_remove("AUTOHEAL_PA_BASTION");
    let ended = within("the script", Running::start(&mut start).ended()).await;
    assert_eq!(ended.code(), Some(2), "{ended:#?}");
    assert!(ended.stderr.contains("no bastion is given"), "{ended:#?}");
}

/// Processes whose home is in a folder.
fn processes_at_home_in(folder: &std::path::Path) -> Vec<String> {
    let home = format!("HOME={}/", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        // Whatever is no process, or no longer one, has no environment.
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(home.as_bytes())) {
            found.push(std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default());
        }
    }
    found
}

/// Processes in whose command line a folder is. A server forgets its environment, and not how it was started.
fn processes_that_name(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap();
    let commands = entries.filter_map(|entry| std::fs::read(entry.unwrap().path().join("cmdline")).ok());
    let commands = commands.map(|command| String::from_utf8_lossy(&command).into_owned());
    commands.filter(|command| command.contains(&*folder.to_string_lossy())).collect()
}

/// Waits until none is left: a process that is killed takes its time.
async fn no_process_is_at_home_in(folder: &std::path::Path) {
    let gone = async {
        while !processes_at_home_in(folder).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    within("all processes to end", gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_measures_every_figure_and_leaves_nothing_behind() {
    let lab = Lab::start(Config::default()).await;
    let bench = Running::start(lab.bare_command(example("bench")).env("TMPDIR", lab.home.path()).arg("--quick"));
    let ended = within("the figures", bench.ended()).await;
    let text = ended.assert_success();
    // What was measured differs each time; which figures there are, with what they are compared, does not.
    let mut steady = String::new();
    // The SSH way has a test of its own, as OpenSSH is not everywhere.
    for line in text.lines().filter(|line| !line.contains("ssh")) {
        let columns = line.split("  ").map(str::trim).filter(|column| !column.is_empty());
        let columns = columns.map(|column| match column.split_once(' ').map_or(column, |(number, _)| number) {
            number if number.parse::<f64>().is_ok() => "[NUMBER]",
            "-" | "yes" | "no" => "[ANY]",
            _ => column,
        });
        steady.push_str(&columns.collect::<Vec<_>>().join(" | ").replace("[ANY]", "[NUMBER]"));
        steady.push('\n');
    }
    insta::assert_snapshot!(steady);
    no_process_is_at_home_in(lab.home.path()).await;
    assert_eq!(std::fs::read_dir(lab.home.path()).unwrap().count(), 0, "its folder is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_measures_the_ssh_way_or_says_what_is_missing() {
    let lab = Lab::start(Config::default()).await;
    let mut bench = lab.bare_command(example("bench"));
    // By a path of its own the server is told from those of other tests.
    let folder = tempfile::tempdir().unwrap();
    let mut path = folder.path().as_os_str().to_owned();
    if let Some(sshd) = ssh::program() {
        std::os::unix::fs::symlink(sshd, folder.path().join("sshd")).unwrap();
    }
    path.push(":");
    path.push(path_variable());
    bench.env("TMPDIR", lab.home.path()).env("PATH", path).args(["--quick", "--only", "ssh"]);
    let ended = within("the figures", Running::start(&mut bench).ended()).await;
    let text = ended.assert_success();
    let is_missing = ended.stderr.contains("the SSH way is not measured");
    if ssh::program().is_none() {
        return assert!(is_missing, "{ended:#?}");
    }
    assert!(!is_missing, "{ended:#?}");
    let agreed = |who: &str| ended.stderr.lines().find_map(|line| line.strip_prefix(who)?.rsplit(", ").next()).unwrap();
    assert_eq!(agreed("autoheal-pa: "), agreed("ssh -L: "), "the same cipher: {}", ended.stderr);
    for name in
        ["ssh, download, 8 connections", "ssh, request, p50", "ssh, processor, upload", "ssh, requests, 3 connections"]
    {
        assert!(text.lines().any(|line| line.starts_with(name) && line.contains("ssh -L")), "{name}: {text}");
    }
    no_process_is_at_home_in(lab.home.path()).await;
    let gone = async {
        while !processes_that_name(folder.path()).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    within("all SSH servers to end", gone).await;
    assert_eq!(std::fs::read_dir(lab.home.path()).unwrap().count(), 0, "its folder is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn bench_ends_its_processes_when_it_is_interrupted() {
    let lab = Lab::start(Config::default()).await;
    let mut bench = lab.bare_command(example("bench"));
    bench.env("TMPDIR", lab.home.path()).args(["--only", "busy"]);
    let bench = Running::start(&mut bench);
    let started = async {
        while !processes_at_home_in(lab.home.path()).iter().any(|command| command.contains("--no-rate-limit")) {
            tokio::task::yield_now().await;
        }
    };
    within("the program to start", started).await;
    assert_eq!(bench.stop().await.code(), Some(143));
    no_process_is_at_home_in(lab.home.path()).await;
    assert_eq!(std::fs::read_dir(lab.home.path()).unwrap().count(), 0, "its folder is gone");
}
