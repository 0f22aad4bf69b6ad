//! Bastions that are found: services of ECS, tags, Auto Scaling groups, and what is in the cluster's network.

use std::time::Duration;

use autoheal_pa::{
    clock::Clock,
    emulator::{AgentOutcome, BastionConfig, ClusterConfig, Config, EcsConfig, ServiceConfig, TaskTimes},
};

use kube::config::{KubeConfigOptions, Kubeconfig};

use serde_json::Value;

use super::support::{Ended, Lab, within};

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
            let (_, target) = in_use(lab).await;
            if target != from && !target.is_empty() {
                return target;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await
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
            moved_in_time |= in_use(&lab).await.1 != first && !has_gone();
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
async fn what_is_not_found_is_said_with_what_to_do() {
    let two = EcsConfig::with_service("tools", "bastion", 1);
    let mut config = Config { ecs: two, clusters: vec![ClusterConfig::new("payments")], ..Config::default() };
    config.bastions[0].online = false;
    config.bastions[0] = config.bastions[0].clone().tagged("role", "bastion");
    let lab = Lab::start(config).await;
    for (bastion, code, texts) in [
        ("ecs:toolz/bastion", 4, &["there is no ECS cluster `toolz` in us-east-1", "aws ecs list-clusters"][..]),
        (
            "ecs:tools/bastions",
            4,
            &["there is no service `bastions` in the ECS cluster `tools`", "aws ecs list-services"],
        ),
        (
            "ecs:tools/0f9de17a6465404e8b1b2356dc13c2f8",
            4,
            &["there is no task `0f9de17a6465404e8b1b2356dc13c2f8`", "aws ecs list-tasks"],
        ),
        ("ecs:tools/bastion/sidecar", 5, &["has no such container, only", "name one of its containers"]),
        (
            "arn:aws:ecs:us-east-1:999999999999:service/tools/bastion",
            5,
            &["is in another region or account", "use credentials and `--region`"],
        ),
        ("tag:role=bastions", 4, &["no managed node in us-east-1 of this account has the tag `role=bastions`"]),
        ("tag:role=bastion", 4, &["none of the 1 nodes with the tag `role=bastion` is in contact", "ConnectionLost"]),
        ("auto", 4, &["is a bastion for `auto`", "aws ec2 create-tags"]),
        ("auto:everything", 2, &["is not a bastion"]),
        ("ecs:tools/", 2, &["is not a bastion"]),
    ] {
        let ended = lab.run(&["exec", "--base-port", "0", "--timeout", "5s", "--bastion", bastion, "--", "true"]).await;
        assert_eq!(ended.code(), Some(code), "{bastion}: {ended:#?}");
        for text in texts {
            assert!(ended.stderr.contains(text), "{bastion}: `{text}` is not in {}", ended.stderr);
        }
    }
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
