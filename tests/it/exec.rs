//! `exec -- CMD`: one command under tunnels.

use std::fs;

use autoheal_pa::emulator::{Config, SessionState};
use rustix::process::Signal;

use super::support::{Lab, PROGRAM, Running, has_ended, kubectl};

fn exec(lab: &Lab, args: &[&str], command: &[&str]) -> Running {
    Running::start(lab.program(&["exec", "--base-port", "0"]).args(args).arg("--").args(command))
}

/// Nothing but the lock, which is free, and an empty journal is left of the managers.
async fn assert_nothing_left(lab: &Lab) {
    lab.assert_clean().await;
    assert!(!lab.kubeconfig().exists(), "the user's kubeconfig is not touched");
    for manager in fs::read_dir(lab.path("autoheal-pa")).unwrap() {
        let dir = manager.unwrap().path();
        // The id of the place that they share stays.
        if dir.ends_with(".place") {
            continue;
        }
        assert_eq!(fs::read_to_string(dir.join("sessions")).unwrap(), "");
        let mut left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["lock", "sessions"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_with_the_status_of_its_command() {
    let lab = Lab::start(Config::default()).await;
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        let ended = exec(&lab, &[], &["sh", "-c", script]).ended().await;
        assert_eq!(ended.code(), Some(code), "{script}: {ended:#?}");
        assert_eq!(ended.stdout, "", "stdout is the command's");
        assert_nothing_left(&lab).await;
    }
    let missing = exec(&lab, &[], &["no-such-program"]).ended().await;
    assert_eq!(missing.code(), Some(2), "{missing:#?}");
    assert!(missing.stderr.contains("cannot run `no-such-program`"), "{}", missing.stderr);
    assert_nothing_left(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_works_in_it() {
    if kubectl().is_none() {
        return;
    }
    let lab = Lab::start(Config::default()).await;
    let ended = exec(&lab, &[], &["kubectl", "--context", "pa-payments", "get", "pods", "-A"]).ended().await;
    assert!(ended.assert_success().contains("NAMESPACE"), "{ended:#?}");
    assert_nothing_left(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_a_manager_that_is_running_and_leaves_it() {
    let lab = Lab::start(Config::default()).await;
    let up = lab.up(&[]).await;
    let sessions = lab.emulator.sessions().len();
    let ended = exec(&lab, &[], &["sh", "-c", "echo $KUBECONFIG"]).ended().await;
    assert_eq!(ended.assert_success().trim_end(), lab.kubeconfig().to_str().unwrap());
    assert_eq!(lab.emulator.sessions().len(), sessions);
    assert_eq!(lab.status(&[]).await["state"], "active");
    // Not even a bastion is needed then.
    let mut command = lab.bare_command(PROGRAM);
    let bare = Running::start(command.args(["exec", "--", "true"])).ended().await;
    assert_eq!(bare.code(), Some(0), "{bare:#?}");
    assert_eq!(up.stop().await.code(), Some(0));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_only_for_the_clusters_that_it_is_for() {
    let lab = Lab::start(Config::default()).await;
    let broken = lab.emulator.api_servers().iter().find(|server| server.cluster == "search").unwrap().host.clone();
    lab.emulator.update(|settings| {
        let refused = (format!("{broken}:443"), autoheal_pa::emulator::Destination::Refused);
        settings.destinations.extend([refused]);
    });
    let mut up = lab.start_up(&["--timeout", "2s"]);
    assert!(up.says("still trying").await, "{}", up.stderr_so_far());
    let ended = exec(&lab, &["--cluster", "payments"], &["true"]).ended().await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    let pid = format!("using the running manager `default`, process {}", up.pid());
    assert!(ended.stderr.contains(&pid), "{}", ended.stderr);
    let ended = exec(&lab, &["--timeout", "1s"], &["true"]).ended().await;
    assert_eq!(ended.code(), Some(5), "{ended:#?}");
    assert!(ended.stderr.contains("the tunnel to `search` of the running manager is "), "{}", ended.stderr);
    let ended = exec(&lab, &["--cluster", "nowhere"], &["true"]).ended().await;
    assert_eq!(ended.code(), Some(4), "{ended:#?}");
    assert!(ended.stderr.contains("no tunnel to `nowhere`"), "{}", ended.stderr);
    assert_eq!(up.stop().await.code(), Some(143), "it has never been ready");
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_signals_on_and_lets_the_command_decide() {
    let lab = Lab::start(Config::default()).await;
    for (signal, name) in [(Signal::TERM, "TERM"), (Signal::INT, "INT"), (Signal::HUP, "HUP"), (Signal::USR1, "USR1")] {
        let script = format!("trap 'exit 7' {name}; echo started; while :; do sleep 0.05; done");
        let mut running = exec(&lab, &[], &["sh", "-c", &script]);
        assert!(running.prints("started").await, "{}", running.stderr_so_far());
        running.signal(signal);
        let ended = running.ended().await;
        assert_eq!(ended.code(), Some(7), "{name}: {ended:#?}");
        assert_nothing_left(&lab).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_side_by_side_have_tunnels_of_their_own() {
    let lab = Lab::start(Config::default()).await;
    let mut first = exec(&lab, &[], &["sh", "-c", "echo started; while :; do sleep 0.05; done"]);
    assert!(first.prints("started").await, "{}", first.stderr_so_far());
    let second = exec(&lab, &[], &["sh", "-c", "echo $KUBECONFIG"]).ended().await;
    assert!(second.assert_success().contains("exec-2/kubeconfig"), "{second:#?}");
    let live = lab.emulator.sessions().into_iter().filter(|session| session.state == SessionState::Connected).count();
    assert_eq!(live, 2, "those of the first go on");
    first.signal(Signal::TERM);
    let _ended = first.ended().await;
    assert_nothing_left(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_one_has_left_is_ended_by_the_next() {
    let lab = Lab::start(Config::default()).await;
    let script = "echo started; while kill -0 $PPID; do sleep 0.05; done";
    let mut killed = exec(&lab, &[], &["sh", "-c", script]);
    assert!(killed.prints("started").await, "{}", killed.stderr_so_far());
    killed.signal(Signal::KILL);
    let _ended = killed.ended().await;
    let mut next = exec(&lab, &[], &["sh", "-c", "echo started; while :; do sleep 0.05; done"]);
    assert!(next.prints("started").await);
    assert!(next.says("ended 2 sessions left behind by an earlier run").await, "{}", next.stderr_so_far());
    next.signal(Signal::TERM);
    assert_eq!(next.ended().await.code(), Some(143));
    assert_nothing_left(&lab).await;
    assert_eq!(lab.emulator.sessions().iter().filter(|session| has_ended(session)).count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn fails_when_the_tunnels_are_not_ready_in_time() {
    let lab = Lab::start(Config::default()).await;
    lab.emulator.update(|settings| {
        settings.destinations.insert("*".to_owned(), autoheal_pa::emulator::Destination::BlackHole);
    });
    let ended = exec(&lab, &["--timeout", "2s"], &["echo", "never"]).ended().await;
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(5), ""), "{ended:#?}");
    assert!(ended.stderr.contains("error: "), "{}", ended.stderr);
    assert_nothing_left(&lab).await;

    let mut waiting = exec(&lab, &[], &["echo", "never"]);
    assert!(waiting.says("payments").await);
    waiting.signal(Signal::INT);
    assert_eq!(waiting.ended().await.code(), Some(130));
    assert_nothing_left(&lab).await;

    let refused = exec(&lab, &["--detach"], &["true"]).ended().await;
    assert_eq!(refused.code(), Some(2), "{refused:#?}");
}
