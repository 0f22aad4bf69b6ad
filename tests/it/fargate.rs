//! Bastions that are made when they are needed: tasks on Fargate.

use std::{collections::BTreeSet, time::Duration};

use autoheal_pa::emulator::{
    BastionConfig, ClusterConfig, Command, Config, EcsConfig, Emulator, Event, StartFailure, SubnetConfig, TaskTimes,
    VpcConfig,
};
use rustix::process::Signal;

use super::support::{Ended, Lab, PROGRAM, Running, kubectl, within};

/// Tasks that take long enough to be seen before they are of use: they are looked at every 2 s.
fn steady() -> TaskTimes {
    TaskTimes { provisioning: Duration::from_millis(700), agent: Duration::from_millis(2500), ..TaskTimes::default() }
}

fn with(times: TaskTimes) -> Config {
    Config { ecs: EcsConfig { times, ..EcsConfig::default() }, ..Config::default() }
}

/// Ids of the tasks that run, or are about to.
fn live(emulator: &Emulator) -> BTreeSet<String> {
    let id = |arn: &str| arn.rsplit('/').next().unwrap().to_owned();
    emulator.tasks().iter().filter(|task| !task.stopping).map(|task| id(&task.arn)).collect()
}

fn one(emulator: &Emulator) -> String {
    let live = live(emulator);
    assert_eq!(live.len(), 1, "{live:?}");
    live.into_iter().next().unwrap()
}

fn calls(lab: &Lab, called: &str) -> usize {
    lab.count(|event| matches!(event, Event::Api { action, .. } if action == called))
}

/// What `status` says is in use by the first tunnel.
async fn target(lab: &Lab) -> String {
    let status = lab.status(&[]).await;
    status["tunnels"][0]["target"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_made_for_all_clusters_of_a_network_and_ended() {
    let clusters = ["payments", "search"].map(ClusterConfig::new).into();
    let lab = Lab::start(Config { clusters, ..with(steady()) }).await;
    let up = lab.up(&["--bastion", "fargate"]).await;
    let task = one(&lab.emulator);
    let said = up.stderr_so_far();
    for text in [
        "registered the task definition `autoheal-pa-bastion:1`, which costs nothing",
        "made the ECS cluster `autoheal-pa`, which costs nothing",
        &format!(
            "started the Fargate task {task} in vpc-0a0b0c0d0e0f01020: it ends itself when it has not been used for 10 min"
        ),
        &format!("the Fargate task {task} is PROVISIONING, 0 s"),
        &format!("the Fargate task {task} waits for its agent, "),
        &format!("`fargate` is `ecs:autoheal-pa_{task}_"),
    ] {
        assert!(said.contains(text), "`{text}` is not in {said}");
    }
    assert_eq!(said.matches("started the Fargate task").count(), 1, "{said}");
    if let Some(kubectl) = kubectl() {
        let mut command = lab.command(kubectl);
        command.env("KUBECONFIG", lab.kubeconfig()).args(["--context", "pa-search", "get", "pods", "-A"]);
        Running::start(&mut command).ended().await.assert_success();
    }
    let down = lab.run(&["down"]).await;
    down.assert_success();
    assert!(up.ended().await.stderr.contains(&format!("stopped the Fargate task {task}")));
    assert_eq!(live(&lab.emulator), BTreeSet::new());

    // Everything is there for the next one.
    let up = lab.up(&["--bastion", "fargate"]).await;
    let said = up.stderr_so_far();
    assert!(!said.contains("registered") && !said.contains("made the"), "{said}");
    assert_ne!(one(&lab.emulator), task);
    up.stop().await.assert_success();
    assert_eq!(live(&lab.emulator), BTreeSet::new());
    assert_eq!((calls(&lab, "ecs:CreateCluster"), calls(&lab, "ecs:RegisterTaskDefinition")), (1, 1));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_in_the_groups_of_all_clusters_of_a_vpc() {
    let other = VpcConfig {
        id: "vpc-0f0e0d0c0b0a09080".to_owned(),
        subnets: vec![SubnetConfig::new("subnet-0f1e2d3c4b5a69788", "a")],
        security_groups: vec!["sg-0f0f0f0f0f0f0f0f0".to_owned()],
        ..VpcConfig::default()
    };
    let mut vpc = VpcConfig::default();
    let mut own_group = |name: &str, number: usize| {
        let group = format!("sg-{number:017x}");
        vpc.security_groups.push(group.clone());
        ClusterConfig { security_group: Some(group), ..ClusterConfig::new(name) }
    };
    let mut clusters: Vec<_> = (1..=6).map(|number| own_group(&format!("c{number}"), number)).collect();
    clusters.push(ClusterConfig { vpc: other.id.clone(), ..ClusterConfig::new("elsewhere") });
    let ecs = EcsConfig { session_limit: 8, ..EcsConfig::default() };
    let lab = Lab::start(Config { clusters, vpcs: vec![vpc, other], ecs, ..Config::default() }).await;
    let file = lab.path("config.yaml");
    let write = |clusters: &str| {
        let text = format!("access: [{{region: us-east-1, bastion: fargate, clusters: [{clusters}]}}]\n");
        std::fs::write(&file, text).unwrap();
    };
    write("c1, c2, c3, c4, c5, c6, elsewhere");
    let up = lab.up(&["--config", file.to_str().unwrap()]).await;
    // Five groups are the most that a task can be in. All tunnels are ready: each task is in the groups that it needs.
    let groups = |emulator: &Emulator| -> Vec<usize> {
        let of = |tags: &[(String, String)]| {
            tags.iter().find(|(key, _)| key == "autoheal-pa:groups").map_or(0, |(_, groups)| groups.split(' ').count())
        };
        let mut groups: Vec<_> =
            emulator.tasks().iter().filter(|task| !task.stopping).map(|task| of(&task.tags)).collect();
        groups.sort_unstable();
        groups
    };
    assert_eq!(groups(&lab.emulator), [1, 1, 5]);
    write("c1, c6");
    lab.run(&["reload"]).await.assert_success();
    assert_eq!(groups(&lab.emulator), [1, 5], "nobody needs the one of the other VPC");
    write("c2, c6");
    lab.run(&["reload"]).await.assert_success();
    within("a tunnel to another cluster of the VPC", async {
        while lab.status(&[]).await["tunnels"].as_array().unwrap().iter().any(|tunnel| tunnel["state"] != "active") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert_eq!(groups(&lab.emulator), [1, 5], "the task is in its group, too");
    up.stop().await.assert_success();
    assert_eq!(live(&lab.emulator), BTreeSet::new());
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_is_killed_leaves_a_task_for_the_next_one() {
    let lab = Lab::start(with(steady())).await;
    // At any moment: before the task runs, while it comes up, and when everything is ready.
    for moment in ["0s", "PROVISIONING", "waits for its agent", "tunnel ready"] {
        let mut up = lab.start_up(&["--bastion", "fargate"]);
        match moment {
            "0s" => lab.wait_until("a task", |emulator| !live(emulator).is_empty()).await,
            "tunnel ready" => up.ready().await,
            text => assert!(up.says(text).await, "{moment}"),
        }
        let before = one(&lab.emulator);
        up.signal(Signal::KILL);
        drop(up.ended().await);
        let next = lab.up(&["--bastion", "fargate"]).await;
        assert_eq!(one(&lab.emulator), before, "{moment}");
        let said = next.stderr_so_far();
        assert!(said.contains(&format!("took over the Fargate task {before}, which goes on for ")), "{moment}: {said}");
        next.stop().await.assert_success();
        assert_eq!(live(&lab.emulator), BTreeSet::new(), "{moment}");
    }
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_would_be_another_now_is_not_taken_over() {
    let lab = Lab::start(with(TaskTimes::default())).await;
    let mut up = lab.up(&["--bastion", "fargate"]).await;
    let before = one(&lab.emulator);
    up.signal(Signal::KILL);
    up.child.wait().await.unwrap();
    let next = lab.up(&["--bastion", "fargate", "--fargate-ttl", "1h"]).await;
    assert_ne!(one(&lab.emulator), before);
    let said = next.stderr_so_far();
    assert!(said.contains(&format!("stopped the Fargate task {before}, which an earlier run has left")), "{said}");
    assert!(said.contains("registered the task definition `autoheal-pa-bastion:2`"), "{said}");
    next.stop().await.assert_success();
    assert_eq!(live(&lab.emulator), BTreeSet::new());
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn managers_have_tasks_of_their_own() {
    let lab = Lab::start(with(TaskTimes::default())).await;
    let first = lab.up(&["--name", "a.b", "--bastion", "fargate"]).await;
    let of_first = one(&lab.emulator);
    let second = lab.up(&["--name", "a-b", "--bastion", "fargate"]).await;
    assert_eq!(live(&lab.emulator).len(), 2);
    second.stop().await.assert_success();
    assert_eq!(one(&lab.emulator), of_first);

    // On another host the same name is another manager's.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = lab.program(&["up", "--base-port", "0", "--name", "a.b", "--bastion", "fargate"]);
    command.env("XDG_RUNTIME_DIR", elsewhere.path()).env("HOME", elsewhere.path());
    let mut third = Running::start(&mut command);
    third.ready().await;
    assert_eq!(live(&lab.emulator).len(), 2);
    third.stop().await.assert_success();
    assert_eq!(one(&lab.emulator), of_first);

    // What a manager of this host has left is stopped by whoever comes, and what one of another has left is not.
    let mut third = Running::start(&mut command);
    third.ready().await;
    let of_third = live(&lab.emulator).into_iter().find(|task| *task != of_first).unwrap();
    for mut killed in [first, third] {
        killed.signal(Signal::KILL);
        killed.child.wait().await.unwrap();
    }
    let fourth = lab.up(&["--name", "other", "--bastion", "fargate"]).await;
    let said = fourth.stderr_so_far();
    assert!(
        said.contains(&format!("stopped the Fargate task {of_first}, whose manager on this host is gone")),
        "{said}"
    );
    let live_now = live(&lab.emulator);
    assert!(live_now.contains(&of_third) && live_now.len() == 2, "{live_now:?}");
    fourth.stop().await.assert_success();
    assert_eq!(one(&lab.emulator), of_third);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_share_a_name_make_one_task() {
    let lab = Lab::start(with(steady())).await;
    let [mut first, mut second] = [(); 2].map(|()| lab.start_up(&["--bastion", "fargate"]));
    let (mut up, refused) = tokio::select! {
        _ = first.child.wait() => (second, first),
        _ = second.child.wait() => (first, second),
    };
    let refused = refused.ended().await;
    assert!(refused.stderr.contains("a manager is already running"), "{refused:#?}");
    up.ready().await;
    one(&lab.emulator);
    up.stop().await.assert_success();
    assert_eq!(live(&lab.emulator), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_started_only_when_the_others_are_gone() {
    let id = "i-0dc03fbcae2a87472";
    let bastions = vec![BastionConfig::new(id).tagged("role", "bastion")];
    let lab =
        Lab::start(Config { bastions, ecs: EcsConfig::with_service("tools", "bastion", 1), ..Config::default() }).await;
    let of_service = one(&lab.emulator);
    let list = ["--bastion", "tag:role=bastion", "--bastion", "ecs:tools/bastion", "--bastion", "fargate"];
    let moves_to = async |start: String| {
        within("another target", async {
            while !target(&lab).await.starts_with(&start) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
        .await;
    };
    let up = lab.up(&list).await;
    moves_to(id.to_owned()).await;
    lab.emulator.update(|settings| settings.offline_bastions.extend([id.to_owned()]));
    lab.emulator.command(&Command::KillAgent);
    moves_to(format!("ecs:tools_{of_service}_")).await;
    assert_eq!(
        (one(&lab.emulator), calls(&lab, "ecs:RunTask")),
        (of_service.clone(), 0),
        "the others are not all gone"
    );

    // A service that starts nothing any more.
    lab.emulator.update(|settings| settings.tasks.start = Some(StartFailure::ImageMissing));
    assert!(lab.emulator.stop_task(&of_service, "UserInitiated", "stopped by ann"));
    lab.wait_until("a task to be asked for", |emulator| {
        let asked = |event: &Event| matches!(event, Event::Api { action, .. } if action == "ecs:RunTask");
        emulator.events().iter().any(asked)
    })
    .await;
    lab.emulator.update(|settings| settings.offline_bastions.clear());
    moves_to(id.to_owned()).await;
    up.stop().await.assert_success();
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_definition_of_the_users_is_all_that_is_run() {
    let lab = Lab::start(with(TaskTimes::default())).await;
    // The first run leaves a definition and an ECS cluster.
    lab.up(&["--bastion", "fargate"]).await.stop().await.assert_success();
    let before = lab.emulator.events().len();
    let up = lab.up(&["--bastion", "fargate", "--fargate-task-definition", "autoheal-pa-bastion:1"]).await;
    let task = one(&lab.emulator);
    up.stop().await.assert_success();
    let events = lab.emulator.events();
    let made = |event: &Event| {
        let actions = ["ecs:CreateCluster", "ecs:RegisterTaskDefinition", "ecs:DescribeTaskDefinition"];
        matches!(event, Event::Api { action, .. } if actions.contains(&action.as_str()))
    };
    assert!(!events[before..].iter().any(made), "{task}");
    for (args, text) in [
        (["fargate:nope", "autoheal-pa-bastion:1"], "there is no ECS cluster `nope` in us-east-1"),
        (["fargate", "nope:1"], "there is no task definition `nope:1`"),
    ] {
        let [bastion, definition] = args;
        let ended = fails(&lab, &["--bastion", bastion, "--fargate-task-definition", definition]).await;
        assert!(ended.stderr.contains(text), "{ended:#?}");
        assert_eq!(ended.code(), Some(4), "{ended:#?}");
    }
    lab.assert_clean().await;
}

async fn fails(lab: &Lab, args: &[&str]) -> Ended {
    let mut all = vec!["exec", "--base-port", "0"];
    all.extend(args);
    all.extend(["--", "true"]);
    lab.run(&all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_has_its_sentence_and_its_fix() {
    for (fault, code, words, fix) in [
        ("role-not-trusted", 3, "ECS cannot assume the task role", "policy --bastion fargate --terraform"),
        ("vcpu-limit", 5, "the quota of Fargate for running tasks is used up", "aws service-quotas"),
        ("deny=iam:PassRole", 3, "not authorized to perform `iam:PassRole`", "must allow `iam:PassRole`"),
        ("deny=ecs:RunTask", 3, "not authorized to perform `ecs:RunTask`", "must allow `ecs:RunTask`"),
        ("deny=ecs:TagResource", 3, "`ecs:TagResource`", "must allow `ecs:TagResource`"),
        ("deny=ecs:ListTasks", 3, "`ecs:ListTasks`", "must allow `ecs:ListTasks`"),
        ("image-timeout", 5, "cannot be reached from its subnet", "`--fargate-public-ip`"),
        ("image-missing", 5, "does not exist for x86_64", "`--fargate-image`"),
        ("image-limited", 4, "has had too many requests", "a registry of your own"),
        ("no-registry-auth", 5, "ECS gets no leave to pull", "execution role"),
        ("no-shell", 5, "it may have no `sh`", "`--fargate-image`"),
        ("agent-stopped", 5, "has no running agent for sessions", "`ssmmessages:CreateControlChannel`"),
    ] {
        let lab = Lab::start(with(TaskTimes::default())).await;
        lab.emulator.inject(&fault.parse().unwrap());
        // One that may pass by itself is an error when the time is up.
        let ended = fails(&lab, &["--bastion", "fargate", "--timeout", "10s"]).await;
        assert_eq!(ended.code(), Some(code), "{fault}: {ended:#?}");
        for text in [words, fix] {
            assert!(ended.stderr.contains(text), "{fault}: `{text}` is not in {}", ended.stderr);
        }
        assert_eq!(live(&lab.emulator), BTreeSet::new(), "{fault}");
        lab.assert_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_by_itself_is_waited_for() {
    for (fault, words) in [
        ("no-capacity=1", "Fargate has no capacity there at present"),
        ("no-service-role=1", "ECS has no service-linked role in this account yet"),
    ] {
        let lab = Lab::start(with(TaskTimes::default())).await;
        lab.emulator.inject(&fault.parse().unwrap());
        let up = lab.up(&["--bastion", "fargate"]).await;
        let said = up.stderr_so_far();
        assert!(said.contains(words) && said.contains("trying again in 10 s"), "{fault}: {said}");
        up.stop().await.assert_success();
        assert_eq!(live(&lab.emulator), BTreeSet::new());
    }
    // Until the time is up.
    for (fault, words, fix) in [
        ("subnet-full", "its subnet has no free address", "`--fargate-subnet`"),
        ("interface-timeout", "its network interface was not made in time", "`--fargate-subnet`"),
    ] {
        let lab = Lab::start(with(TaskTimes::default())).await;
        lab.emulator.inject(&fault.parse().unwrap());
        let ended = fails(&lab, &["--bastion", "fargate", "--timeout", "3s"]).await;
        assert_eq!(ended.code(), Some(5), "{fault}: {ended:#?}");
        for text in [words, fix, "is not ready: no Fargate task yet, trying again in"] {
            assert!(ended.stderr.contains(text), "{fault}: `{text}` is not in {}", ended.stderr);
        }
        assert_eq!(live(&lab.emulator), BTreeSet::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_without_a_way_out_is_said_to_have_none() {
    let lab = Lab::start(Config { vpcs: vec![VpcConfig::closed()], ..with(TaskTimes::default()) }).await;
    let ended = fails(&lab, &["--bastion", "fargate"]).await;
    assert_eq!(ended.code(), Some(5), "{ended:#?}");
    assert!(ended.stderr.contains("the subnet needs a way out: a NAT gateway"), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_somebody_stops_is_followed_by_another() {
    let lab = Lab::start(with(TaskTimes::default())).await;
    let up = lab.up(&["--bastion", "fargate"]).await;
    let first = one(&lab.emulator);
    assert!(lab.emulator.stop_task(&first, "UserInitiated", "stopped by ann"));
    lab.wait_until("another task", |emulator| live(emulator).iter().any(|task| *task != first)).await;
    within("the tunnel to move", async {
        while !target(&lab).await.contains(&one(&lab.emulator)) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    let said = up.stderr_so_far();
    assert!(
        said.contains(&format!("the Fargate task {first} has ended: somebody stopped it (stopped by ann)")),
        "{said}"
    );
    up.stop().await.assert_success();
    assert_eq!(live(&lab.emulator), BTreeSet::new());
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_task_takes_the_place_of_one_before_its_life_is_over() {
    let lab = Lab::start(with(TaskTimes::default())).await;
    let up = lab.up(&["--bastion", "fargate", "--fargate-ttl", "15m"]).await;
    let first = one(&lab.emulator);
    assert!(lab.emulator.age_task(&first, Duration::from_secs(12 * 60 + 30)));
    lab.wait_until("the first task to be stopped", |emulator| !live(emulator).contains(&first)).await;
    let second = one(&lab.emulator);
    assert!(target(&lab).await.contains(&second), "the tunnel has moved before");
    let status = lab.status(&[]).await;
    assert_eq!((&status["tunnels"][0]["state"], &status["tunnels"][0]["restarts"]), (&"active".into(), &0.into()));
    let tasks = lab.emulator.tasks();
    let reason = tasks.iter().find(|task| task.arn.ends_with(&first)).and_then(|task| task.stopped_reason.clone());
    assert_eq!(reason.as_deref(), Some("autoheal-pa: another task takes its place"));
    up.stop().await.assert_success();
    assert_eq!(live(&lab.emulator), BTreeSet::new());
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_looks_and_makes_nothing() {
    // There is room for its session beside those of two tunnels.
    let mut config = with(TaskTimes::default());
    config.ecs.session_limit = 20;
    let lab = Lab::start(config).await;
    let alone = lab.run(&["doctor", "--bastion", "fargate"]).await;
    let said = alone.assert_success();
    for text in [
        "there is none of the family `autoheal-pa-bastion` yet: `up` registers one",
        "no task is running in vpc-0a0b0c0d0e0f01020 at present",
    ] {
        assert!(said.contains(text), "`{text}` is not in {said}");
    }
    assert_eq!((live(&lab.emulator), calls(&lab, "ecs:RunTask")), (BTreeSet::new(), 0));
    let own = lab.run(&["doctor", "--bastion", "fargate", "--fargate-task-definition", "ours"]).await;
    assert_eq!(own.code(), Some(6), "{own:#?}");
    assert!(own.stdout.contains("there is no task definition `ours`"), "{own:#?}");

    // Beside a manager, its task is the way to what is behind it.
    let up = lab.up(&["--bastion", "fargate"]).await;
    let task = one(&lab.emulator);
    let beside = lab.run(&["doctor"]).await;
    let said = beside.assert_success();
    for text in ["`autoheal-pa-bastion:1`", &format!("the task {task} is running in"), "may list pods"] {
        assert!(said.contains(text), "`{text}` is not in {said}");
    }
    assert_eq!(one(&lab.emulator), task);
    up.stop().await.assert_success();
    // The first call of the manager finds no ECS cluster.
    assert_eq!((live(&lab.emulator), calls(&lab, "ecs:RunTask")), (BTreeSet::new(), 2));
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_a_reload_leaves_unused_is_stopped() {
    let lab = Lab::start(with(TaskTimes::default())).await;
    let file = lab.path("config.yaml");
    let named = file.to_str().unwrap();
    let write = |bastions: &str| {
        let entry = |name: &str| format!("  - {{region: us-east-1, bastion: [{bastions}], clusters: [{name}]}}\n");
        std::fs::write(&file, format!("access:\n{}{}", entry("payments"), entry("search"))).unwrap();
    };
    // Two entries of one identity in one region.
    write("fargate");
    let up = lab.up(&["--config", named]).await;
    let first = one(&lab.emulator);
    write("i-0dc03fbcae2a87472");
    lab.run(&["reload"]).await.assert_success();
    assert_eq!(live(&lab.emulator), BTreeSet::new());
    assert!(up.stderr_so_far().contains(&format!("stopped the Fargate task {first}")));
    // The same again is another one, and the end of all is the end of that.
    write("fargate");
    lab.run(&["reload"]).await.assert_success();
    lab.wait_until("another task", |emulator| !live(emulator).is_empty()).await;
    assert_ne!(one(&lab.emulator), first);
    up.stop().await.assert_success();
    assert_eq!(live(&lab.emulator), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_cannot_be_are_refused() {
    let lab = Lab::start(Config::default()).await;
    for (args, text) in [
        (&["--fargate-ttl", "1m"][..], "`--fargate-ttl`: `1m` is not between `15m` and `24h`"),
        (&["--fargate-ttl", "25h"], "is not between `15m` and `24h`"),
        (&["--fargate-subnet", "subnet-x"], "`subnet-x` is not a subnet"),
        (&["--fargate-security-group", "default"], "`default` is not a security group"),
        (&["--fargate-image", "a b"], "`a b` is not the name of a container image"),
        (&["--fargate-task-role", "a/b"], "`a/b` is not the name of a role or its ARN"),
        (&["--fargate-task-definition", "a:b"], "`a:b` is not a task definition"),
        (&["--fargate-task-definition", "a:1", "--fargate-image", "x"], "is not of use with a task definition"),
    ] {
        let mut command = lab.program(&["up", "--bastion", "fargate"]);
        let ended = Running::start(command.args(args)).ended().await;
        assert_eq!(ended.code(), Some(2), "{args:?}: {ended:#?}");
        assert!(ended.stderr.contains(text), "{args:?}: {ended:#?}");
    }
    assert_eq!(lab.emulator.events().len(), 0, "{PROGRAM}");
}
