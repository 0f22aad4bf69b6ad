//! The manager in the background, and the commands that ask it.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
};

use autoheal_pa::emulator::{Config, Event, Identity};
use rustix::process::Signal;
use serde_json::Value;

use super::support::{Lab, PROGRAM, Running, kubectl, steady, within};

/// What a user would write.
const SCRIPT: &str = r#"
set -euo pipefail
# Only for a test that fails: nothing is to be left of it.
trap '"$PROGRAM" down "$@" 2> /dev/null' EXIT
"$PROGRAM" up --detach --base-port 0 "$@"
eval "$("$PROGRAM" env --shell bash "$@")"
kubectl --context pa-payments get pods -A
"$PROGRAM" status --json "$@" | jq -e '.state == "active" and .version == 1'
"$PROGRAM" down "$@"
"#;

fn script(lab: &Lab, args: &[&str]) -> tokio::process::Command {
    let mut command = lab.command("bash");
    command.env("PROGRAM", PROGRAM).env("KUBECACHEDIR", lab.path("cache")).args(["-c", SCRIPT, "bash"]).args(args);
    command
}

/// kubectl and jq are there to run the script with.
fn can_run_scripts() -> bool {
    let jq = std::env::split_paths(&super::support::path_variable()).any(|dir| dir.join("jq").is_file());
    kubectl().is_some() && jq
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_script_works_as_its_writer_expects() {
    if !can_run_scripts() {
        return;
    }
    let lab = Lab::start(Config::default()).await;
    let (_default, _other) = (lab.background("default"), lab.background("other"));
    let both = [Running::start(&mut script(&lab, &[])), Running::start(&mut script(&lab, &["--name", "other"]))];
    for running in both {
        let ended = running.ended().await;
        assert!(ended.assert_success().starts_with("tunnel ready\n"), "{ended:#?}");
        assert!(ended.stdout.contains("NAMESPACE") && ended.stdout.ends_with("true\n"), "{ended:#?}");
    }
    lab.assert_clean().await;
    let kubeconfig = fs::read_to_string(lab.kubeconfig()).unwrap();
    assert!(!kubeconfig.contains("pa-payments"), "the contexts are gone: {kubeconfig}");
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_home_nor_a_runtime_directory_is_needed() {
    if !can_run_scripts() {
        return;
    }
    for case in ["no home", "a home that cannot be written", "no runtime directory"] {
        let lab = Lab::start(Config::default()).await;
        let temporary = lab.path("tmp");
        fs::create_dir(&temporary).unwrap();
        let mut command = script(&lab, &[]);
        command.env("TMPDIR", &temporary);
        match case {
            "no home" => command.env_remove("HOME").env("XDG_STATE_HOME", "relative").env_remove("XDG_RUNTIME_DIR"),
            // Not even root makes a folder there.
            "a home that cannot be written" => command.env("HOME", "/proc"),
            _ => command.env_remove("XDG_RUNTIME_DIR"),
        };
        let ended = Running::start(&mut command).ended().await;
        assert!(ended.assert_success().starts_with("tunnel ready\n"), "{case}: {ended:#?}");
        lab.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_do_not_get_in_each_others_way() {
    // Only root can be somebody else.
    if !can_run_scripts() || rustix::process::geteuid().as_raw() != 0 {
        return;
    }
    let lab = Lab::start(Config { identity: Identity::StaticKeys, ..Config::default() }).await;
    let temporary = lab.path("tmp");
    fs::create_dir(&temporary).unwrap();
    for folder in [lab.home.path(), &temporary] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o1777)).unwrap();
    }
    let program = lab.path("program");
    fs::copy(PROGRAM, &program).unwrap();
    let mut running = Vec::new();
    for id in ["65534", "65533"] {
        let mut command = lab.command("setpriv");
        command
            .args(["--reuid", id, "--regid", id, "--clear-groups", "bash", "-c", SCRIPT, "bash"])
            .env("PROGRAM", &program)
            .env("TMPDIR", &temporary)
            .env("KUBECACHEDIR", temporary.join(id))
            .env("HOME", lab.path("nowhere"))
            .env_remove("XDG_RUNTIME_DIR");
        running.push(Running::start(&mut command));
    }
    for running in running {
        let ended = running.ended().await;
        assert!(ended.assert_success().starts_with("tunnel ready\n"), "{ended:#?}");
    }
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_background_says_what_the_foreground_says() {
    let lab = Lab::start(Config::default()).await;
    let (ended, background) = lab.detach(&["--role-session-name", "ann"]).await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    assert_eq!(ended.stdout, "tunnel ready\n");
    let said = |text: &str| {
        // Tunnels come up in any order.
        let mut lines: Vec<_> =
            steady(&lab, text).lines().map(|line| line.split(", ").next().unwrap_or_default().to_owned()).collect();
        lines.sort();
        lines.dedup();
        lines.join("\n")
    };
    insta::assert_snapshot!("up", said(&ended.stderr));

    let status = lab.status(&[]).await;
    let pid = background.pid().expect("it is running");
    assert_eq!(status["pid"], pid.as_raw_nonzero().get());
    assert_eq!((status["state"].as_str(), status["name"].as_str()), (Some("active"), Some("default")));
    assert!(status["identity"].as_str().unwrap().contains(":assumed-role/AutohealReadOnlyRole/"));
    assert!(status["credentials_expire"].is_string(), "{status:#}");
    assert_eq!(status["kubeconfig"], lab.kubeconfig().to_str().unwrap());
    let log = lab.path(".local/state/autoheal-pa/default.log");
    assert_eq!(status["log"], log.to_str().unwrap());
    let tunnels = status["tunnels"].as_array().unwrap();
    assert_eq!(tunnels.len(), 2);
    assert_eq!(tunnels[0]["context"], "pa-payments");
    assert_eq!(tunnels[0]["target"], "i-0dc03fbcae2a87472");
    let sessions: Vec<_> = lab.emulator.sessions().into_iter().map(|session| session.id).collect();
    assert!(tunnels.iter().all(|tunnel| sessions.iter().any(|id| tunnel["session_id"] == *id)), "{status:#}");
    assert!(tunnels.iter().all(|tunnel| tunnel["probe_rtt_ms"].is_u64() && tunnel["agent_version"].is_string()));

    let text = lab.run(&["status"]).await;
    assert!(text.assert_success().contains("pa-payments  active"), "{}", text.stdout);
    let logs = lab.run(&["logs"]).await;
    assert!(logs.assert_success().contains("identity arn:aws:sts::"), "{}", logs.stdout);
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);

    let second = lab.start_up(&["--detach"]).ended().await;
    assert_eq!(second.code(), Some(2), "{second:#?}");
    assert!(second.stderr.contains("hint: stop it with `autoheal-pa down`"), "{}", second.stderr);

    let down = lab.run(&["down"]).await;
    assert_eq!(down.code(), Some(0), "{down:#?}");
    assert_eq!(down.stderr, "stopping the manager `default`\nstopped\n");
    assert_eq!(background.pid(), None);
    lab.assert_clean().await;
    let gone = lab.run(&["status"]).await;
    assert_eq!(gone.code(), Some(4), "{gone:#?}");
    let again = lab.run(&["down"]).await;
    assert_eq!((again.code(), again.stderr.as_str()), (Some(0), "no manager `default` is running\n"));
    // The log is still there to be read.
    assert!(lab.run(&["logs", "-n", "1"]).await.assert_success().lines().count() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_that_does_not_come_up_fails_and_leaves_nothing() {
    let lab = Lab::start(Config::default()).await;
    lab.emulator.update(|settings| {
        settings.denied_documents.insert("AWS-StartPortForwardingSessionToRemoteHost".to_owned());
    });
    let (denied, background) = lab.detach(&[]).await;
    assert_eq!(denied.code(), Some(3), "{denied:#?}");
    assert_eq!(denied.stdout, "");
    assert!(denied.stderr.contains("error: ") && denied.stderr.contains("hint: "), "{}", denied.stderr);
    assert_eq!(background.pid(), None);

    lab.emulator.update(|settings| {
        settings.denied_documents.clear();
        settings.destinations.insert("*".to_owned(), autoheal_pa::emulator::Destination::BlackHole);
    });
    let (late, background) = lab.detach(&["--timeout", "2s"]).await;
    assert_eq!(late.code(), Some(5), "{late:#?}");
    background.ended().await;
    assert!(!fs::read_to_string(lab.kubeconfig()).unwrap().contains("pa-payments"));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreground_that_is_not_ready_can_be_reloaded() {
    let lab = Lab::start(Config::with_clusters(2)).await;
    let broken = lab.emulator.api_servers().iter().find(|server| server.cluster == "demo-2").unwrap().host.clone();
    lab.emulator.update(|settings| {
        let destination = (format!("{broken}:443"), autoheal_pa::emulator::Destination::Refused);
        settings.destinations.extend([destination]);
    });
    let mut up = lab.start_up(&["--timeout", "2s"]);
    assert!(up.says("still trying").await, "{}", up.stderr_so_far());
    let probe = lab.run(&["status", "--ready"]).await;
    assert_eq!(probe.code(), Some(5), "{probe:#?}");
    lab.emulator.update(|settings| settings.hidden_clusters = ["demo-2".to_owned()].into());
    let reload = lab.run(&["reload"]).await;
    assert_eq!(reload.assert_success(), "removed pa-demo-2\nkept 1\n");
    up.ready().await;
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_the_background_may_change_his_mind() {
    let lab = Lab::start(Config::default()).await;
    lab.emulator.update(|settings| {
        settings.destinations.insert("*".to_owned(), autoheal_pa::emulator::Destination::BlackHole);
    });
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::TERM, Some(143)), (Signal::KILL, None)] {
        let background = lab.background("default");
        let mut waiting = lab.start_up(&["--detach"]);
        assert!(waiting.says("payments").await, "{}", waiting.stderr_so_far());
        waiting.signal(signal);
        assert_eq!(waiting.ended().await.code(), code);
        background.ended().await;
        lab.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_manager_leaves_nothing_that_matters() {
    let lab = Lab::start(Config::default()).await;
    let (_, background) = lab.detach(&[]).await;
    background.signal(Signal::KILL);
    background.ended().await;
    let status = lab.run(&["status"]).await;
    assert_eq!(status.code(), Some(4), "{status:#?}");
    let down = lab.run(&["down"]).await;
    assert_eq!(down.code(), Some(0), "{down:#?}");
    assert!(down.stderr.contains("ended 2 sessions left behind by an earlier run"), "{}", down.stderr);
    lab.assert_clean().await;
    assert!(!fs::read_to_string(lab.kubeconfig()).unwrap().contains("pa-payments"));
    let (again, _background) = lab.detach(&[]).await;
    assert_eq!(again.code(), Some(0), "{again:#?}");
    assert_eq!(lab.run(&["down"]).await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreground_ends_with_its_terminal_and_not_with_nohup() {
    let lab = Lab::start(Config::default()).await;
    // `script` gives its command a terminal, and closes it when it is killed.
    let line = format!("'{PROGRAM}' up --base-port 0");
    let mut command = lab.command("script");
    command.args(["-qefc", &line, "/dev/null"]);
    if command.as_std().get_program().is_empty() || !on_path("script") {
        return;
    }
    let mut terminal = Running::start(&mut command);
    assert!(terminal.prints("tunnel ready").await, "{}", terminal.stdout_so_far());
    let background = lab.background("default");
    terminal.signal(Signal::KILL);
    background.ended().await;
    lab.assert_clean().await;

    // One that was told to ignore it does so, as does one without a terminal.
    let mut command = lab.command("sh");
    let mut up = Running::start(command.args(["-c", &format!("trap '' HUP; exec '{PROGRAM}' up --base-port 0")]));
    up.ready().await;
    up.signal(Signal::HUP);
    assert_eq!(lab.status(&[]).await["state"], "active");
    assert_eq!(up.stop().await.code(), Some(0));
}

fn on_path(program: &str) -> bool {
    std::env::split_paths(&super::support::path_variable()).any(|dir| dir.join(program).is_file())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_opens_what_is_new_and_closes_what_is_gone() {
    let lab = Lab::start(Config::with_clusters(3)).await;
    lab.emulator.update(|settings| {
        settings.hidden_clusters.insert("demo-3".to_owned());
    });
    let (_, background) = lab.detach(&[]).await;
    let before = lab.status(&[]).await;
    lab.emulator.update(|settings| settings.hidden_clusters = ["demo-2".to_owned()].into());
    let reload = lab.run(&["reload"]).await;
    assert_eq!(reload.assert_success(), "added pa-demo-3\nremoved pa-demo-2\nkept 1\n");
    lab.wait_until("the session that is gone to be ended", |emulator| {
        emulator.sessions().iter().filter(|session| super::support::has_ended(session)).count() == 1
    })
    .await;
    let mut watch = Running::start(&mut lab.program(&["status", "--watch", "--json"]));
    assert!(watch.prints("\"state\":\"active\",\"pid\"").await);
    let after = lab.status(&[]).await;
    let contexts = |status: &Value| -> Vec<String> {
        let tunnels = status["tunnels"].as_array().unwrap();
        tunnels.iter().map(|tunnel| tunnel["context"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(contexts(&before), ["pa-demo-1", "pa-demo-2"]);
    assert_eq!(contexts(&after), ["pa-demo-1", "pa-demo-3"]);
    for field in ["session_id", "port", "since", "connections_total"] {
        assert_eq!(before["tunnels"][0][field], after["tunnels"][0][field], "{field} of the tunnel that stays");
    }
    let kubeconfig = fs::read_to_string(lab.kubeconfig()).unwrap();
    assert!(kubeconfig.contains("pa-demo-3") && !kubeconfig.contains("pa-demo-2"), "{kubeconfig}");

    // A signal does the same, and what cannot be looked at is left alone.
    lab.emulator.update(|settings| {
        settings.hidden_clusters.clear();
        settings.denied_actions.insert("eks:ListClusters".to_owned());
    });
    let failed = lab.run(&["reload"]).await;
    assert_eq!(failed.code(), Some(1), "{failed:#?}");
    assert!(failed.stdout.contains("kept 2") && failed.stderr.contains("eks:ListClusters"), "{failed:#?}");
    lab.emulator.update(|settings| settings.denied_actions.clear());
    background.signal(Signal::HUP);
    assert!(watch.prints("pa-demo-2").await, "{}", watch.stdout_so_far());
    assert_eq!(lab.run(&["down"]).await.code(), Some(0));
    let watched = watch.ended().await;
    assert_eq!(watched.code(), Some(0), "it ends with the manager: {watched:#?}");
    for line in watched.stdout.lines() {
        let status: Value = serde_json::from_str(line).unwrap();
        assert_eq!(status["version"], 1);
    }
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_costs_no_call_for_its_token() {
    let Some(kubectl) = kubectl() else { return };
    let lab = Lab::start(Config::default()).await;
    let (_, _background) = lab.detach(&[]).await;
    let calls = || lab.count(|event| matches!(event, Event::Api { .. }));
    let before = calls();
    for _ in 0..3 {
        let mut command = lab.bare_command(&kubectl);
        command.args(["--context", "pa-search", "get", "pods", "-A"]).env("KUBECONFIG", lab.kubeconfig());
        Running::start(&mut command).ended().await.assert_success();
    }
    assert_eq!(calls(), before);
    assert_eq!(lab.run(&["down"]).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told() {
    let lab = Lab::start(Config::default()).await;
    let socket = lab.path("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    let mut command = lab.program(&["up", "--base-port", "0"]);
    let mut up = Running::start(command.env("NOTIFY_SOCKET", &socket));
    up.ready().await;
    assert_eq!(up.stop().await.code(), Some(0));
    listener.set_nonblocking(true).unwrap();
    let mut told = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(len) = listener.recv(&mut buffer) {
        told.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
    }
    assert_eq!(told[0], "READY=1\nSTATUS=active: 2 of 2 tunnels work\n");
    assert!(told.contains(&"STOPPING=1\n".to_owned()), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn later_steps_of_a_job_find_the_kubeconfig() {
    let lab = Lab::start(Config::default()).await;
    let file = lab.path("github-env");
    let mut command = lab.program(&["up", "--detach", "--github-env", "--base-port", "0"]);
    let _background = lab.background("default");
    let ended = Running::start(command.env("GITHUB_ENV", &file)).ended().await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    let written = fs::read_to_string(&file).unwrap();
    assert_eq!(written, format!("KUBECONFIG={}\n", lab.kubeconfig().display()));
    let missing = lab.run(&["up", "--github-env"]).await;
    assert_eq!(missing.code(), Some(2), "{missing:#?}");
    assert!(missing.stderr.contains("`GITHUB_ENV`"), "{}", missing.stderr);
    assert_eq!(lab.run(&["down"]).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn env_knows_the_kubeconfig_of_the_running_manager() {
    let lab = Lab::start(Config::default()).await;
    let kubeconfig = lab.path("elsewhere/config");
    let up = lab.up(&["--kubeconfig", kubeconfig.to_str().unwrap()]).await;
    let env = lab.run(&["env", "--shell", "bash"]).await;
    assert_eq!(env.assert_success(), format!("export KUBECONFIG='{}'\n", kubeconfig.display()));
    assert_eq!(env.stderr, "");
    let logs = lab.run(&["logs"]).await;
    assert_eq!(logs.code(), Some(4), "{logs:#?}");
    assert!(logs.stderr.contains("runs in the foreground"), "{}", logs.stderr);
    let down = lab.run(&["down"]).await;
    assert_eq!(down.code(), Some(0), "{down:#?}");
    assert_eq!(up.ended().await.code(), Some(0));
    assert!(!fs::read_to_string(&kubeconfig).unwrap().contains("pa-payments"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_followed_to_the_end_of_its_manager() {
    let lab = Lab::start(Config::default()).await;
    let (_, _background) = lab.detach(&[]).await;
    let mut follow = Running::start(&mut lab.program(&["logs", "-f"]));
    assert!(follow.prints("identity arn:aws:sts::").await, "it begins with what is there");
    let reload = lab.run(&["reload"]).await;
    assert_eq!(reload.code(), Some(0), "{reload:#?}");
    assert!(follow.prints("2 kept").await, "{}", follow.stdout_so_far());
    assert_eq!(lab.run(&["down"]).await.code(), Some(0));
    let followed = within("the end", follow.ended()).await;
    assert_eq!(followed.code(), Some(0));
    assert!(followed.stdout.contains("stopping: ending the sessions"), "{}", followed.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_reads_the_configuration_file_again() {
    let lab = Lab::start(Config::with_clusters(3)).await;
    let file = lab.path("config.yaml");
    let write = |clusters: &str| {
        fs::write(&file, format!("access:\n- bastion: i-0dc03fbcae2a87472\n  clusters: {clusters}\n")).unwrap()
    };
    write("[demo-1, demo-2]");
    let (ended, _background) = lab.detach(&["--config", file.to_str().unwrap(), "--kubeconfig-mode", "proxy"]).await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    write("[demo-2, demo-3]");
    let reload = lab.run(&["reload"]).await;
    assert_eq!(reload.assert_success(), "added pa-demo-3\nremoved pa-demo-1\nkept 1\n");
    if let Some(kubectl) = kubectl() {
        // The proxy knows where the new one is.
        let mut command = lab.bare_command(kubectl);
        command.args(["--context", "pa-demo-3", "get", "nodes"]).env("KUBECONFIG", lab.kubeconfig());
        Running::start(&mut command).ended().await.assert_success();
    }
    fs::write(&file, "access: 1\n").unwrap();
    let reload = lab.run(&["reload"]).await;
    assert_eq!(reload.code(), Some(1), "{reload:#?}");
    assert!(reload.stderr.contains("config.yaml:1:9"), "{}", reload.stderr);
    assert_eq!(lab.run(&["status", "--ready"]).await.code(), Some(0), "all is as it was");
    assert_eq!(lab.run(&["down"]).await.code(), Some(0));
    lab.assert_clean().await;
}

/// Every code of the table, by what a user would do.
#[tokio::test(flavor = "multi_thread")]
async fn every_exit_code_of_the_table_comes_up() {
    let lab = Lab::start(Config::default()).await;
    let deny = |action: &str| {
        lab.emulator.update(|settings| settings.denied_actions = [action.to_owned()].into());
    };
    let refuse = |refused: bool| {
        let destination = ("*".to_owned(), autoheal_pa::emulator::Destination::Refused);
        lab.emulator.update(|settings| settings.destinations = refused.then_some(destination).into_iter().collect());
    };
    let mut codes = vec![lab.run(&["clusters"]).await.code()];
    codes.push(
        Running::start(lab.command("sh").args(["-c", &format!("'{PROGRAM}' clusters > /dev/full")]))
            .ended()
            .await
            .code(),
    );
    codes.push(lab.run(&["up", "--bastion", "bastion"]).await.code());
    deny("eks:ListClusters");
    codes.push(lab.run(&["clusters"]).await.code());
    deny("none");
    codes.push(lab.run(&["exec", "--base-port", "0", "--cluster", "nowhere", "--", "true"]).await.code());
    refuse(true);
    codes.push(lab.run(&["exec", "--base-port", "0", "--timeout", "2s", "--", "true"]).await.code());
    codes.push(lab.run(&["doctor", "--bastion", "i-0dc03fbcae2a87472", "--cluster", "payments"]).await.code());
    for signal in [Signal::INT, Signal::TERM] {
        let mut up = lab.start_up(&[]);
        assert!(up.says("payments").await);
        up.signal(signal);
        codes.push(up.ended().await.code());
    }
    let table = autoheal_pa::cli::error::Kind::ALL.map(|kind| Some(kind as i32));
    let codes: std::collections::BTreeSet<_> = codes.into_iter().collect();
    assert_eq!(codes, std::iter::once(Some(0)).chain(table).collect());
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_written_is_an_error() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let lab = Lab::start(Config::default()).await;
    let ended =
        Running::start(lab.command("sh").args(["-c", &format!("'{PROGRAM}' clusters > /dev/full")])).ended().await;
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("cannot write to the standard output"), "{}", ended.stderr);
}

/// A process that is stopped holds its lock and its socket, and says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_hangs_is_named_and_nobody_waits_for_it() {
    let lab = Lab::start(Config::default()).await;
    let up = lab.up(&[]).await;
    let pid = up.pid();
    up.signal(Signal::STOP);
    let asking = [&["status"][..], &["reload"], &["doctor"], &["exec", "--", "true"]].map(|args| lab.run(args));
    for ended in futures_util::future::join_all(asking).await {
        assert_eq!(ended.code(), Some(1), "{ended:#?}");
        assert!(ended.stderr.contains("did not answer within 5 s"), "{ended:#?}");
        assert!(ended.stderr.contains(&format!("`kill -9 {pid}` ends it")), "{ended:#?}");
    }
    up.signal(Signal::CONT);
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}
