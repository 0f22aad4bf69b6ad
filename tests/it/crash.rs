//! What a manager leaves behind when it is killed, and what the next one makes of it.

use std::{collections::BTreeSet, fs, path::Path};

use autoheal_pa::emulator::{ClusterConfig, Command, Config, Event, SessionState};
use futures_util::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::LogParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustix::process::Signal;

use super::support::{Lab, Running, has_ended, kubectl, within};

/// Kills a manager and waits until it is gone.
async fn kill(running: Running) -> String {
    running.signal(Signal::KILL);
    let ended = running.ended().await;
    assert_eq!(ended.code(), None, "{ended:#?}");
    ended.stderr
}

/// The ids in the journal of the lab's manager, ended ones too.
fn written_down(lab: &Lab) -> BTreeSet<String> {
    let text = fs::read_to_string(lab.path("autoheal-pa/default/sessions")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter_map(|line| line["session"].as_str().map(str::to_owned)).collect()
}

/// The ids of sessions that are live.
fn live(lab: &Lab) -> BTreeSet<String> {
    lab.emulator.sessions().into_iter().filter(|session| !has_ended(session)).map(|session| session.id).collect()
}

async fn all_ended(lab: &Lab, sessions: BTreeSet<String>) {
    lab.wait_until("the orphans to be ended", |emulator| {
        emulator.sessions().iter().all(|session| !sessions.contains(&session.id) || has_ended(session))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_manager_ends_the_sessions_of_a_killed_one() {
    let lab = Lab::start(Config::with_clusters(3)).await;
    let killed = lab.up(&[]).await;
    let orphans = live(&lab);
    assert_eq!(orphans.len(), 3);
    assert_eq!(written_down(&lab), orphans);

    // With traffic on one of them.
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(Client::try_from(config).unwrap(), "demo");
    let params = LogParams { follow: true, ..LogParams::default() };
    let mut lines = within("the log", pods.log_stream("chatty", &params)).await.unwrap().lines();
    assert!(within("a line", lines.try_next()).await.unwrap().is_some());

    kill(killed).await;
    let mut up = lab.up(&[]).await;
    assert!(up.says("ended 3 sessions left behind by an earlier run").await, "{}", up.stderr_so_far());
    all_ended(&lab, orphans.clone()).await;
    assert_eq!(live(&lab).len(), 3, "those of the new one go on");
    let by_call =
        |event: &Event| matches!(event, Event::Api { action, error: None } if action == "ssm:TerminateSession");
    assert_eq!(lab.count(by_call), 3);
    assert_eq!(up.stop().await.code(), Some(0));
    assert_eq!(fs::read_to_string(lab.path("autoheal-pa/default/sessions")).unwrap(), "");
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_service_has_ended_is_no_orphan() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    let up = lab.up(&[]).await;
    lab.emulator.command(&Command::CloseChannel { output: None });
    lab.wait_until("another session", |emulator| emulator.sessions().len() == 2).await;
    lab.wait_until("its transport", |emulator| {
        emulator.sessions().iter().any(|session| session.state == SessionState::Connected)
    })
    .await;
    assert_eq!(up.stop().await.code(), Some(0));
    assert_eq!(fs::read_to_string(lab.path("autoheal-pa/default/sessions")).unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_of_another_region_and_of_another_identity() {
    let mut config = Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() };
    config.clusters.push(ClusterConfig { region: Some("eu-west-1".to_owned()), ..ClusterConfig::new("search") });
    let lab = Lab::start(config).await;
    kill(lab.up(&[]).await).await;
    let orphans = live(&lab);
    let mut up = lab.up(&["--region", "eu-west-1"]).await;
    assert!(up.says("ended a session left behind by an earlier run").await, "{}", up.stderr_so_far());
    all_ended(&lab, orphans).await;

    kill(up).await;
    let orphan = live(&lab).pop_first().expect("one is live");
    let role = lab.emulator.role_arn().replace("AutohealReadOnlyRole", "AutohealAdminRole");
    let mut up = lab.up(&["--role-arn", &role]).await;
    let hint =
        format!("\nhint: run `aws ssm terminate-session --session-id={orphan} --region eu-west-1` as the identity");
    assert!(up.says(&hint).await, "{}", up.stderr_so_far());
    assert!(up.stderr_so_far().contains(&format!("cannot end the session `{orphan}`")), "{}", up.stderr_so_far());
    assert_eq!(up.stop().await.code(), Some(0));
    assert_eq!(fs::read_to_string(lab.path("autoheal-pa/default/sessions")).unwrap(), "", "it is forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_of_another_account() {
    let lab = Lab::start(Config { clusters: vec![ClusterConfig::new("payments")], ..Config::default() }).await;
    kill(lab.up(&[]).await).await;
    let orphan = live(&lab).pop_first().expect("one is live");
    let journal = lab.path("autoheal-pa/default/sessions");
    let text = fs::read_to_string(&journal).unwrap();
    let mine = r#""account":"123456789012""#;
    assert!(text.contains(mine), "{text}");
    fs::write(&journal, text.replace(mine, r#""account":"210987654321""#)).unwrap();

    let down = lab.run(&["down"]).await;
    assert_eq!(down.code(), Some(0), "{down:#?}");
    let sentence = format!(
        "cannot end the session `{orphan}` on `i-0dc03fbcae2a87472`, left behind by an earlier run: it belongs to the \
         account 210987654321"
    );
    assert!(down.stderr.contains(&sentence), "{}", down.stderr);
    // AWS would have said that there is no such session.
    assert_eq!(lab.count(|event| matches!(event, Event::Api { action, .. } if action == "ssm:TerminateSession")), 0);
    assert_eq!(fs::read_to_string(&journal).unwrap(), "", "it is forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn down_ends_orphans_of_every_identity_of_the_configuration_file() {
    let clusters = ["payments", "search"].map(ClusterConfig::new).into();
    let lab = Lab::start(Config { clusters, ..Config::default() }).await;
    let role = lab.emulator.role_arn();
    let admin = role.replace("AutohealReadOnlyRole", "AutohealAdminRole");
    let file = lab.path("config.yaml");
    let entry = |role: &str, cluster: &str| format!("- role_arn: {role}\n  clusters: [{cluster}]\n");
    let access = [entry(&role, "payments"), entry(&admin, "search")].concat();
    fs::write(&file, format!("region: us-east-1\nbastion: i-0dc03fbcae2a87472\naccess:\n{access}")).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let mut command = lab.program(&["up", "--base-port", "0"]);
    let mut up = Running::start(command.args(config).env_remove("AWS_ROLE_ARN").env_remove("AUTOHEAL_PA_BASTION"));
    up.ready().await;
    kill(up).await;
    let orphans = live(&lab);
    assert_eq!(orphans.len(), 2);

    let mut command = lab.program(&["down"]);
    let down = Running::start(command.args(config).env_remove("AWS_ROLE_ARN")).ended().await;
    assert_eq!(down.code(), Some(0), "{down:#?}");
    assert!(down.stderr.contains("ended 2 sessions left behind by an earlier run"), "{}", down.stderr);
    all_ended(&lab, orphans).await;

    // One that cannot be had is no reason not to try the other.
    kill(lab.up(&["--cluster", "payments"]).await).await;
    let access = [entry(&role.replace("ReadOnly", "Gone"), "search"), entry(&role, "payments")].concat();
    fs::write(&file, format!("region: us-east-1\nbastion: i-0dc03fbcae2a87472\naccess:\n{access}")).unwrap();
    let mut command = lab.program(&["down"]);
    let down = Running::start(command.args(config).env_remove("AWS_ROLE_ARN")).ended().await;
    assert_eq!(down.code(), Some(0), "{down:#?}");
    assert!(down.stderr.contains("warning: ") && down.stderr.contains("AutohealGoneRole"), "{}", down.stderr);
    assert!(down.stderr.contains("ended a session left behind by an earlier run"), "{}", down.stderr);
    lab.assert_clean().await;
}

/// Names of all that is in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    // kubectl's own.
    names.retain(|name| name != "cache");
    names.sort();
    names
}

/// The kubeconfig is one for every client, or there is none.
async fn assert_readable(lab: &Lab, moment: &str) {
    let path = lab.kubeconfig();
    if !path.exists() {
        return;
    }
    let text = fs::read_to_string(&path).unwrap();
    let parsed = Kubeconfig::from_yaml(&text).unwrap_or_else(|error| panic!("{moment}: {error}\n{text}"));
    assert_eq!(parsed.contexts.len(), 2, "{moment}");
    if let Some(kubectl) = kubectl() {
        let mut command = lab.bare_command(kubectl);
        let view = Running::start(command.arg("--kubeconfig").arg(&path).args(["config", "view"])).ended().await;
        assert!(view.assert_success().contains("pa-search"), "{moment}");
    }
}

/// When a manager is killed.
#[derive(Debug)]
enum Moment {
    /// So many things have happened in the emulated AWS.
    Event(usize),
    /// This file is there, below the lab's home; or a temporary one of its folder.
    File(&'static str),
    /// So many turns of the test after the last cluster was described, which is when files are written.
    Turns(u32),
}

impl Moment {
    fn has_come(&self, lab: &Lab, before: usize, turns: &mut u32) -> bool {
        let events = lab.emulator.events();
        match self {
            Self::Event(count) => events.len() >= before + count,
            Self::File(name) if name.ends_with('*') => {
                let prefix = name.trim_end_matches('*');
                let (folder, prefix) = prefix.rsplit_once('/').expect("a folder");
                let entries = fs::read_dir(lab.path(folder)).into_iter().flatten().flatten();
                entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            }
            Self::File(name) => lab.path(name).symlink_metadata().is_ok(),
            Self::Turns(wanted) => {
                let described =
                    |event: &&Event| matches!(event, Event::Api { action, .. } if action == "eks:DescribeCluster");
                if events[before..].iter().filter(described).count() == 2 {
                    *turns += 1;
                }
                *turns > *wanted
            }
        }
    }
}

/// Starts a manager and kills it at a moment, or when it is ready if the moment is missed.
async fn start_and_kill(lab: &Lab, moment: &Moment) {
    let before = lab.emulator.events().len();
    let mut turns = 0;
    let args = ["up", "--base-port", "0", "--env-file"];
    let running = Running::start(lab.program(&args).arg(lab.path("env/tunnels")));
    within("the moment", async {
        while !moment.has_come(lab, before, &mut turns) && running.stdout_so_far().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    kill(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_is_killed_at_any_moment_leaves_nothing_that_stops_the_next() {
    let lab = Lab::start(Config::default()).await;
    let mut moments: Vec<_> = (1..=24).step_by(3).map(Moment::Event).collect();
    moments.extend((0..200).step_by(20).map(Moment::Turns));
    let files = [
        "autoheal-pa/default",
        "autoheal-pa/default/lock",
        "autoheal-pa/default/control.sock",
        "autoheal-pa/default/sessions*",
        ".kube",
        ".kube/.autoheal-pa.*",
        ".kube/autoheal-pa.yaml.lock",
        ".kube/autoheal-pa.yaml",
        "env/.autoheal-pa.*",
        "env/tunnels",
    ];
    moments.extend(files.map(Moment::File));
    let mut unnamed = BTreeSet::new();
    for moment in &moments {
        let moment_text = format!("{moment:?}");
        if let Moment::File(_) = moment {
            // Otherwise those of the last run would be there already.
            fs::remove_dir_all(lab.path(".kube")).unwrap();
            let _none = fs::remove_dir_all(lab.path("env"));
            let _none = fs::remove_file(lab.path("autoheal-pa/default/control.sock"));
        }
        start_and_kill(&lab, moment).await;
        assert_readable(&lab, &moment_text).await;
        let named = written_down(&lab);
        for session in
            live(&lab).difference(&named).filter(|session| !unnamed.contains(*session)).cloned().collect::<Vec<_>>()
        {
            let opened = |event: &Event| matches!(event, Event::TransportOpened { session: id, .. } if *id == session);
            // What nobody has had the answer for cannot be named; nobody can have connected to it either.
            assert_eq!(lab.count(opened), 0, "{moment_text}: {session} is live and not written down");
            unnamed.insert(session);
        }

        let next = lab.up(&["--env-file", lab.path("env/tunnels").to_str().unwrap()]).await;
        all_ended(&lab, named).await;
        assert_readable(&lab, &moment_text).await;
        assert_eq!(names(&lab.path(".kube")), ["autoheal-pa.yaml"], "{moment_text}");
        assert_eq!(names(&lab.path("env")), ["tunnels"], "{moment_text}");
        // Those of the ready one are for the next round.
        kill(next).await;
    }
    let orphans = written_down(&lab);
    let last = lab.up(&[]).await;
    all_ended(&lab, orphans).await;
    assert_eq!(last.stop().await.code(), Some(0));
    assert_eq!(names(&lab.path("autoheal-pa/default")), ["lock", "sessions"]);
    assert_eq!(fs::read_to_string(lab.path("autoheal-pa/default/sessions")).unwrap(), "");
    let left: Vec<_> = live(&lab).difference(&unnamed).cloned().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A kubeconfig of others that takes a while to be read.
fn large_kubeconfig() -> String {
    let mut text = "apiVersion: v1\nkind: Config\ncontexts:\n".to_owned();
    for number in 0..4000 {
        text.push_str(&format!("- name: c{number}\n  context: {{cluster: c, user: u, namespace: \"n{number}\"}}\n"));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_a_killed_manager_held_is_taken_over_and_that_of_another_program_is_not() {
    let lab = Lab::start(Config::default()).await;
    fs::create_dir(lab.path(".kube")).unwrap();
    fs::write(lab.kubeconfig(), large_kubeconfig()).unwrap();
    let lock = lab.path(".kube/autoheal-pa.yaml.lock");
    start_and_kill(&lab, &Moment::File(".kube/autoheal-pa.yaml.lock")).await;
    assert!(lock.exists(), "it was killed while it held the lock");
    let mut known = written_down(&lab);
    assert_eq!(fs::read_to_string(lab.kubeconfig()).unwrap(), large_kubeconfig());

    let up = lab.up(&[]).await;
    known.extend(written_down(&lab));
    assert!(!lock.exists());
    assert_eq!(Kubeconfig::read_from(lab.kubeconfig()).unwrap().contexts.len(), 4002);
    assert_eq!(up.stop().await.code(), Some(0));

    // As client-go makes it.
    fs::write(&lock, "").unwrap();
    let ended = lab.run(&["up", "--base-port", "0"]).await;
    assert_eq!(ended.code(), Some(1), "{ended:#?}");
    for part in ["is locked by", "it was made ", " ago; ", &format!("`rm {}`", lock.display())] {
        assert!(ended.stderr.contains(part), "`{part}` is missing\n{}", ended.stderr);
    }
    assert!(lock.exists());
    // A session that was being started when the first was killed has no name here, and ends by being idle.
    all_ended(&lab, known).await;
    assert_eq!(lab.emulator.violations(), Vec::<String>::new());
}
