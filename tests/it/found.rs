//! Bastions that are found: services of ECS, tags, Auto Scaling groups, and what is in the cluster's network.

use std::time::Duration;

use autoheal_pa::{
    clock::Clock,
    emulator::{AgentOutcome, BastionConfig, ClusterConfig, Command, Config, EcsConfig, ServiceConfig, TaskTimes},
};

use kube::config::{KubeConfigOptions, Kubeconfig};
use rustix::process::Signal;
use serde_json::Value;

use super::support::{Ended, Lab, has_ended, within};

/// Tasks that take as long as it takes to see what becomes of them.
fn slow_tasks() -> TaskTimes {
    TaskTimes {
        provisioning: Duration::from_secs(2),
        pending: Duration::from_secs(3),
        activating: Duration::from_secs(2),
        agent: Duration::from_secs(1),
        deactivating: Duration::from_secs(6),
        stopping: Duration::from_secs(10),
        ..TaskTimes::default()
    }
}

fn with_service(times: TaskTimes) -> Config {
    let ecs = EcsConfig { times, ..EcsConfig::with_service("tools", "bastion", 1) };
    Config { ecs, ..Config::default() }
}

/// What `status` says of the first tunnel: what was asked for, and what is in use.
async fn in_use(lab: &Lab) -> (String, String) {
    let status = lab.status(&[]).await;
    let text = |key: &str| status["tunnels"][0][key].as_str().unwrap_or_default().to_owned();
    (text("bastion"), text("target"))
}

/// Waits until another target is in use than this one.
async fn moved(lab: &Lab, from: &str) -> String {
    within("another target", async {
        loop {
            // Between two targets it says what was asked for.
            let (asked, target) = in_use(lab).await;
            if target != from && target != asked {
                return target;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await
}

/// Waits until a bastion is in use, on a target that begins with this.
async fn settled(lab: &Lab, asked: &str, target: &str) {
    within(asked, async {
        loop {
            let (bastion, through) = in_use(lab).await;
            if bastion == asked && through.starts_with(target) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_ecs_is_a_bastion_and_its_deployments_are_foreseen() {
    let lab = Lab::start(with_service(slow_tasks())).await;
    let up = lab.up(&["--bastion", "ecs:tools/bastion"]).await;
    let (asked, first) = in_use(&lab).await;
    assert_eq!(asked, "ecs:tools/bastion");
    assert!(first.starts_with("ecs:tools_"), "{first}");
    let said = up.stderr_so_far();
    assert!(said.contains(&format!("`ecs:tools/bastion` is `{first}`")), "{said}");

    assert_eq!(lab.emulator.deploy(None), 1);
    // Until the old task has gone no new connection waits for long or is refused, and it is not used to its end.
    let kubeconfig = Kubeconfig::read_from(lab.kubeconfig()).unwrap();
    let clock = Clock::start();
    let has_gone = || lab.emulator.tasks().iter().any(|task| task.targets.contains(&first) && task.status == "STOPPED");
    let mut moved_in_time = false;
    within("the old task to go", async {
        while !has_gone() {
            let config = kube::Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default()).await;
            let client = kube::Client::try_from(config.unwrap()).unwrap();
            let asked_at = clock.now().mono;
            client.apiserver_version().await.unwrap();
            let waited = clock.now().mono - asked_at;
            assert!(waited < Duration::from_secs(10), "{waited:?}");
            let (asked, target) = in_use(&lab).await;
            moved_in_time |= target != first && target != asked && !has_gone();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    })
    .await;
    assert!(moved_in_time, "it stayed on `{first}`");
    drop(up.stop().await);
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_replaces_its_bastion_is_followed() {
    let bastion = BastionConfig::new("i-0dc03fbcae2a87472").in_group("bastions");
    let lab = Lab::start(Config { bastions: vec![bastion], ..Config::default() }).await;
    let up = lab.up(&["--bastion", "asg:bastions"]).await;
    let (asked, first) = in_use(&lab).await;
    assert_eq!((asked.as_str(), first.as_str()), ("asg:bastions", "i-0dc03fbcae2a87472"));
    let new = lab.emulator.replace_instance("i-0dc03fbcae2a87472").unwrap();
    assert_eq!(moved(&lab, &first).await, new);
    drop(up.stop().await);
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_names_and_networks_lead_to_the_right_bastion() {
    let bastions = vec![
        BastionConfig::new("i-00000000000000001").tagged("Name", "worker").tagged("eks:nodegroup-name", "ng"),
        BastionConfig::new("i-00000000000000002").tagged("Name", "the Bastion").tagged("role", "way in"),
        BastionConfig::new("i-00000000000000003").tagged("autoheal-pa:bastion", "true"),
        BastionConfig { online: false, ..BastionConfig::new("i-00000000000000004").tagged("role", "way in") },
    ];
    let lab = Lab::start(Config { bastions, ..Config::default() }).await;
    for (bastion, target) in [
        ("tag:role=way in", "i-00000000000000002"),
        ("name:the Bastion", "i-00000000000000002"),
        ("auto", "i-00000000000000003"),
        ("auto:nodes", "i-00000000000000003"),
    ] {
        let up = lab.up(&["--bastion", bastion]).await;
        assert_eq!(in_use(&lab).await, (bastion.to_owned(), target.to_owned()));
        drop(up.stop().await);
    }
    let doctor = lab.run(&["doctor", "--bastion", "tag:role=way in"]).await;
    let said = doctor.assert_success();
    for text in [
        "2 with the tag `role=way in`",
        "1 of 2 in contact with Systems Manager",
        "`i-00000000000000002`, the only one that takes sessions",
    ] {
        assert!(said.contains(text), "{said}");
    }
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_searches_is_gone_through_in_order_and_back() {
    const NODE: &str = "i-0dc03fbcae2a87472";
    let bastions = vec![BastionConfig::new(NODE).tagged("role", "bastion")];
    let lab = Lab::start(Config { bastions, ..with_service(TaskTimes::default()) }).await;
    let up = lab.up(&["--bastion", "tag:role=bastion", "--bastion", "ecs:tools/bastion"]).await;
    assert_eq!(in_use(&lab).await, ("tag:role=bastion".to_owned(), NODE.to_owned()));

    lab.emulator.update(|settings| settings.offline_bastions.extend([NODE.to_owned()]));
    lab.emulator.command(&Command::CloseChannel { output: Some("The node is shut down.".to_owned()) });
    settled(&lab, "ecs:tools/bastion", "ecs:tools_").await;

    lab.emulator.update(|settings| settings.offline_bastions.clear());
    settled(&lab, "tag:role=bastion", NODE).await;
    drop(up.stop().await);
    lab.assert_clean().await;
}

/// A task has two sessions at most, and drops what is beyond in silence.
#[tokio::test(flavor = "multi_thread")]
async fn managers_share_a_task_and_one_that_finds_it_full_says_so() {
    let one = |config| Config { clusters: vec![ClusterConfig::new("payments")], ..config };
    let lab = Lab::start(one(with_service(TaskTimes::default()))).await;
    let up = |name: &'static str| ["--name", name, "--bastion", "ecs:tools/bastion", "--timeout", "20s"];
    let (first, second) = (lab.up(&up("first")).await, lab.up(&up("second")).await);
    let third = lab.start_up(&up("third")).ended().await;
    assert_eq!(third.code(), Some(4), "{third:#?}");
    for text in ["takes a session at present: perhaps each has as many as it takes", "let the service have more tasks"]
    {
        assert!(third.stderr.contains(text), "`{text}` is not in {}", third.stderr);
    }
    drop(first.stop().await);
    let third = lab.up(&up("third")).await;
    for running in [second, third] {
        assert_eq!(running.stop().await.code(), Some(0));
    }
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_manager_does_not_leave_a_task_full() {
    let lab = Lab::start(with_service(TaskTimes::default())).await;
    let live = || lab.emulator.sessions().iter().filter(|session| !has_ended(session)).count();
    let killed = lab.up(&["--bastion", "ecs:tools/bastion"]).await;
    assert_eq!(live(), 2, "as many as a task has");
    killed.signal(Signal::KILL);
    drop(killed.ended().await);
    assert_eq!(live(), 2, "nobody has ended them");

    // Sessions that are started before those have ended are dropped, and found to be 15 s later.
    let clock = Clock::start();
    let mut up = lab.up(&["--bastion", "ecs:tools/bastion"]).await;
    let took = clock.now().mono;
    assert!(up.says("ended 2 sessions left behind by an earlier run").await, "{}", up.stderr_so_far());
    assert!(took < Duration::from_secs(12), "{took:?}: {}", up.stderr_so_far());
    assert_eq!(live(), 2);
    drop(up.stop().await);
    lab.assert_clean().await;
}

/// The id of each check of a bastion, with its answer or else why it was not tried.
fn chain(ended: &Ended) -> Vec<(String, String, String)> {
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let of_bastion =
        |entry: &&Value| !entry["target"].is_null() && entry["cluster"].is_null() && entry["id"] != "local-port";
    let checks = report["checks"].as_array().unwrap().iter().filter(of_bastion);
    let told = |entry: &Value| if entry["answer"].is_null() { text(entry, "meaning") } else { text(entry, "answer") };
    checks.map(|entry| (text(entry, "id"), text(entry, "status"), told(entry))).collect()
}

/// A bastion whose chain is broken at a check, which says this.
async fn broken(lab: &Lab, bastion: &str, id: &str, said: &str) {
    let ended = lab.run(&["doctor", "--json", "--bastion", bastion]).await;
    assert_eq!(ended.code(), Some(6), "{bastion}: {ended:#?}");
    let chain = chain(&ended);
    let at = chain.iter().position(|(_, status, _)| status == "failed").unwrap_or_else(|| panic!("{chain:#?}"));
    assert_eq!(chain[at].0, id, "{chain:#?}");
    assert!(chain[at].2.contains(said), "{chain:#?}");
    assert!(chain[..at].iter().all(|(_, status, _)| status == "ok"), "{chain:#?}");
    let needs_it = |why: &str| why.starts_with("not tried without `");
    assert!(chain[at + 1..].iter().all(|(_, status, why)| status == "skipped" && needs_it(why)), "{chain:#?}");
    assert!(lab.emulator.sessions().is_empty(), "no session is tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_walks_to_a_container_step_by_step() {
    let mut config = with_service(TaskTimes::default());
    config.ecs.services.extend([
        ServiceConfig { desired_count: 0, ..ServiceConfig::new("tools", "none") },
        ServiceConfig {
            containers: vec!["agent".to_owned(), "sidecar".to_owned()],
            ..ServiceConfig::new("tools", "two")
        },
    ]);
    let lab = Lab::start(config).await;
    broken(&lab, "ecs:toolz/bastion", "bastion-known", "there is no ECS cluster `toolz`").await;
    broken(&lab, "ecs:tools/bastions", "bastion-known", "there is no service `bastions`").await;
    broken(&lab, "ecs:tools/none", "ecs-tasks", "the service `none` has no running task").await;
    broken(&lab, "ecs:tools/two", "ecs-container", "has several containers (agent, sidecar)").await;
    broken(&lab, "ecs:tools/two/other", "ecs-container", "has no such container").await;
    lab.emulator.update(|settings| settings.tasks.no_exec = true);
    broken(&lab, "ecs:tools/bastion", "ecs-exec", "was started without ECS Exec").await;
    lab.emulator.update(|settings| settings.tasks.no_exec = false);

    let ended = lab.run(&["doctor", "--json", "--bastion", "ecs:tools/bastion"]).await;
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    let all = chain(&ended);
    let ids: Vec<&str> = all.iter().map(|(id, ..)| id.as_str()).collect();
    let steps = ["bastion-known", "ecs-tasks", "ecs-exec", "ecs-container", "bastion-online", "agent-version"];
    assert_eq!(ids, [&steps[..], &["bastion-chosen", "bastion-sessions"]].concat());
    assert_eq!(all[1].2, "1 running");
    assert!(all[5].2.starts_with("ECS containers are not in the list"), "{all:#?}");
    assert!(all[7].2.starts_with("0 open; its agent takes 2 unless"), "{all:#?}");

    lab.emulator.update(|settings| {
        settings.denied_actions.insert("ssm:DescribeSessions".to_owned());
    });
    let ended = lab.run(&["doctor", "--json", "--bastion", "ecs:tools/bastion"]).await;
    let last = chain(&ended).pop().unwrap();
    assert_eq!((ended.code(), last.1.as_str()), (Some(0), "skipped"), "{ended:#?}");
    assert_eq!(last.2, "`ssm:DescribeSessions` is optional and not allowed");
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_tells_an_agent_in_a_container_that_does_not_run() {
    let lab = Lab::start(with_service(TaskTimes::default())).await;
    lab.emulator.update(|settings| settings.tasks.agent = AgentOutcome::Stopped);
    let old = lab.emulator.tasks()[0].arn.clone();
    assert_eq!(lab.emulator.deploy(None), 1);
    lab.wait_until("the old task to go", |emulator| {
        emulator.tasks().iter().any(|task| task.arn == old && task.status == "STOPPED")
    })
    .await;
    broken(&lab, "ecs:tools/bastion", "bastion-online", "has no running agent for sessions").await;
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_who_is_on_a_task_that_may_be_full() {
    let lab = Lab::start(with_service(TaskTimes::default())).await;
    let up = lab.up(&["--bastion", "ecs:tools/bastion"]).await;
    let ended = lab.run(&["doctor", "--json", "--bastion", "ecs:tools/bastion"]).await;
    let (id, status, said) = chain(&ended).pop().unwrap();
    assert_eq!((id.as_str(), status.as_str()), ("bastion-sessions", "warning"), "{ended:#?}");
    assert!(said.starts_with("2 open (2 of `"), "{said}");
    drop(up.stop().await);
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_walks_to_a_node_step_by_step() {
    let node = |number: u8, role: &str| BastionConfig::new(format!("i-0000000000000000{number}")).tagged("role", role);
    let old = BastionConfig { agent_version: "3.0.1124.0".to_owned(), ..node(2, "old") };
    let bastions = vec![BastionConfig { online: false, ..node(1, "away") }, old, node(3, "good"), node(4, "good")];
    let lab = Lab::start(Config { bastions, ..Config::default() }).await;
    broken(&lab, "tag:role=none", "bastion-known", "no managed node in us-east-1").await;
    broken(&lab, "tag:role=away", "bastion-online", "`i-00000000000000001` is ConnectionLost").await;
    broken(&lab, "tag:role=old", "agent-version", "older than 3.1.1374.0").await;
    broken(&lab, "auto", "bastion-known", "is a bastion for `auto`").await;
    let ended = lab.run(&["doctor", "--json", "--bastion", "tag:role=good"]).await;
    let all = chain(&ended);
    let ids: Vec<&str> = all.iter().map(|(id, ..)| id.as_str()).collect();
    assert_eq!(ids, ["bastion-known", "bastion-online", "agent-version", "bastion-chosen"]);
    assert!(all[3].2.ends_with("which is this machine's of 2: users spread over them"), "{all:#?}");
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    lab.assert_clean().await;
}
