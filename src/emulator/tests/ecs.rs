//! Elastic Container Service by itself: its API, and the lives of tasks that are run by it.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    super::{Config, EcsConfig, Emulator, SubnetConfig, TaskTimes, VpcConfig},
    support::{Answer, Client, Granted, TestKeys, call, ecs, quick, start, start_session_with, within},
};

pub(super) const SUBNET: &str = "subnet-0a1b2c3d4e5f60718";
pub(super) const GROUP: &str = "sg-0c0ffee0c0ffee0c0";

/// The definition of a bastion that ends by itself.
pub(super) fn definition() -> Value {
    json!({
        "family": "autoheal-pa-bastion", "cpu": "256", "memory": "512", "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"], "taskRoleArn": "arn:aws:iam::123456789012:role/autoheal-pa-bastion",
        "containerDefinitions": [{
            "name": "bastion", "image": "public.ecr.aws/docker/library/busybox:stable", "essential": true,
            "command": ["sh", "-c", "idle=600 life=28800; sleep 1"],
        }],
        "tags": [{"key": "autoheal-pa:spec", "value": "1"}],
    })
}

pub(super) fn run_input() -> Value {
    json!({
        "cluster": "autoheal-pa", "taskDefinition": "autoheal-pa-bastion", "launchType": "FARGATE", "count": 1,
        "enableExecuteCommand": true, "startedBy": "autoheal-pa/me/0a1b",
        "networkConfiguration": {"awsvpcConfiguration": {
            "subnets": [SUBNET], "securityGroups": [GROUP], "assignPublicIp": "DISABLED",
        }},
        "tags": [{"key": "autoheal-pa:host", "value": "here"}],
    })
}

/// Starts an emulator whose cluster and definition are those that [`run_input`] names.
pub(super) async fn prepared(config: Config) -> Emulator {
    let emulator = start(config).await;
    assert_eq!(ecs(&emulator, "CreateCluster", json!({"clusterName": "autoheal-pa"})).await.status, 200);
    let answer = ecs(&emulator, "RegisterTaskDefinition", definition()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    emulator
}

pub(super) async fn run(emulator: &Emulator) -> String {
    let answer = ecs(emulator, "RunTask", run_input()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["tasks"][0]["taskArn"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
}

pub(super) async fn describe(emulator: &Emulator, task: &str) -> Value {
    let cluster = task.split('/').nth(1).unwrap();
    let input = json!({"cluster": cluster, "tasks": [task], "include": ["TAGS"]});
    let answer = ecs(emulator, "DescribeTasks", input).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["tasks"][0].clone()
}

/// Waits until a task is as it should be.
pub(super) async fn until(emulator: &Emulator, task: &str, is_right: impl Fn(&Value) -> bool) -> Value {
    within(async {
        loop {
            let described = describe(emulator, task).await;
            if is_right(&described) {
                return described;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

pub(super) fn agent_runs(task: &Value) -> bool {
    task["containers"][0]["managedAgents"][0]["lastStatus"] == "RUNNING"
}

pub(super) fn is_stopped(task: &Value) -> bool {
    task["lastStatus"] == "STOPPED"
}

fn error(answer: &Answer) -> (u16, String, String) {
    let value = answer.json();
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    (answer.status, text("__type"), text("message"))
}

#[tokio::test]
async fn a_task_goes_through_its_life() {
    let config =
        Config { ecs: EcsConfig { life: Some(Duration::from_millis(600)), ..EcsConfig::default() }, ..quick() };
    let emulator = prepared(config).await;
    let made = ecs(&emulator, "RunTask", run_input()).await.json();
    let task = &made["tasks"][0];
    assert_eq!((&task["lastStatus"], &task["desiredStatus"]), (&json!("PROVISIONING"), &json!("RUNNING")));
    assert_eq!(made["failures"], json!([]));
    let arn = task["taskArn"].as_str().unwrap();
    assert!(arn.starts_with("arn:aws:ecs:us-east-1:123456789012:task/autoheal-pa/"), "{arn}");
    let id = arn.rsplit('/').next().unwrap();

    let running = until(&emulator, arn, agent_runs).await;
    assert_eq!(running["lastStatus"], "RUNNING");
    let container = &running["containers"][0];
    assert!(container["runtimeId"].as_str().unwrap().starts_with(&format!("{id}-")), "{container}");
    assert_eq!((&container["name"], &container["lastStatus"]), (&json!("bastion"), &json!("RUNNING")));
    assert_eq!(container["managedAgents"][0]["name"], "ExecuteCommandAgent");
    assert_eq!(running["connectivity"], "CONNECTED");
    assert_eq!((&running["platformVersion"], &running["enableExecuteCommand"]), (&json!("1.4.0"), &json!(true)));
    assert_eq!((&running["group"], &running["launchType"]), (&json!("family:autoheal-pa-bastion"), &json!("FARGATE")));
    assert_eq!(running["tags"], json!([{"key": "autoheal-pa:host", "value": "here"}]));
    let details = running["attachments"][0]["details"].as_array().unwrap();
    assert!(details.contains(&json!({"name": "subnetId", "value": SUBNET})), "{details:?}");
    assert!(details.iter().any(|detail| detail["name"] == "privateIPv4Address"), "{details:?}");
    assert!(running["startedAt"].as_f64().unwrap() >= running["createdAt"].as_f64().unwrap());

    // Its command's life is over.
    let stopped = until(&emulator, arn, is_stopped).await;
    assert_eq!(
        (&stopped["stopCode"], &stopped["desiredStatus"]),
        (&json!("EssentialContainerExited"), &json!("STOPPED"))
    );
    assert_eq!(stopped["stoppedReason"], "Essential container in task exited");
    assert_eq!(
        (&stopped["containers"][0]["exitCode"], &stopped["containers"][0]["lastStatus"]),
        (&json!(0), &json!("STOPPED"))
    );
    assert!(stopped["stoppedAt"].as_f64().unwrap() >= stopped["startedAt"].as_f64().unwrap());
    emulator.stop().await;
}

#[tokio::test]
async fn a_task_without_sessions_ends_itself() {
    let disuse = Some(Duration::from_millis(100));
    let emulator = prepared(Config { ecs: EcsConfig { disuse, ..EcsConfig::default() }, ..quick() }).await;
    let task = run(&emulator).await;
    let stopped = until(&emulator, &task, is_stopped).await;
    assert_eq!(
        (&stopped["stopCode"], &stopped["containers"][0]["exitCode"]),
        (&json!("EssentialContainerExited"), &json!(0))
    );
    emulator.stop().await;
}

#[tokio::test]
async fn a_task_can_be_made_older() {
    const HOUR: Duration = Duration::from_secs(3600);
    let emulator = prepared(quick()).await;
    // Its command goes on for 8 hours, and for 10 minutes without sessions.
    let (old, unused) = (run(&emulator).await, run(&emulator).await);
    for task in [&old, &unused] {
        until(&emulator, task, agent_runs).await;
    }
    let target = emulator.tasks().into_iter().find(|task| task.arn == old).unwrap().targets[0].clone();
    let granted: Granted = (&start_session_with(&emulator, &target, "10.0.9.9", 443).await).into();
    let mut client = Client::open(&emulator, &granted).await;
    client.handshake().await;

    let before = describe(&emulator, &old).await;
    assert!(emulator.age_task(&old, 7 * HOUR));
    let after = describe(&emulator, &old).await;
    for name in ["createdAt", "startedAt"] {
        let seconds = before[name].as_f64().unwrap() - after[name].as_f64().unwrap();
        assert!((seconds - 7.0 * 3600.0).abs() < 0.01, "{name}: {seconds}");
    }
    assert_eq!(emulator.tasks()[0].arn, old);
    // It is used, so that only its life counts, of which an hour is left.
    assert!(emulator.age_task(&old, HOUR / 2));
    assert!(emulator.age_task(unused.rsplit('/').next().unwrap(), Duration::from_secs(599)));
    tokio::time::sleep(Duration::from_millis(100)).await;
    for task in [&old, &unused] {
        assert_eq!(describe(&emulator, task).await["lastStatus"], "RUNNING");
    }
    emulator.age_task(&old, HOUR / 2);
    emulator.age_task(&unused, Duration::from_secs(1));
    for task in [&old, &unused] {
        let stopped = until(&emulator, task, is_stopped).await;
        assert_eq!(
            (&stopped["stopCode"], &stopped["containers"][0]["exitCode"]),
            (&json!("EssentialContainerExited"), &json!(0))
        );
    }
    assert!(!emulator.age_task("0123456789abcdef0123456789abcdef", HOUR));
    emulator.stop().await;
}

#[tokio::test]
async fn a_task_is_stopped_in_steps() {
    let mut config = quick();
    config.ecs.times.unseen = Duration::from_millis(100);
    let emulator = prepared(config).await;
    let task = run(&emulator).await;
    let id = task.rsplit('/').next().unwrap();
    // It is not seen at once.
    let missing = ecs(&emulator, "DescribeTasks", json!({"cluster": "autoheal-pa", "tasks": [id]})).await;
    assert_eq!(missing.status, 200);
    assert_eq!(missing.json(), json!({"tasks": [], "failures": [{"arn": task, "reason": "MISSING"}]}));
    let mine = json!({"cluster": "autoheal-pa", "startedBy": "autoheal-pa/me/0a1b"});
    assert_eq!(ecs(&emulator, "ListTasks", mine).await.json()["taskArns"], json!([]));
    within(async {
        while describe(&emulator, &task).await.is_null() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    until(&emulator, &task, agent_runs).await;
    let stop = json!({"cluster": "autoheal-pa", "task": task, "reason": "it is no longer used"});
    let answer = ecs(&emulator, "StopTask", stop).await.json();
    assert_eq!(answer["task"]["desiredStatus"], "STOPPED");
    let arns = async |input| ecs(&emulator, "ListTasks", input).await.json()["taskArns"].clone();
    assert_eq!(arns(json!({"cluster": "autoheal-pa"})).await, json!([]));
    assert_eq!(arns(json!({"cluster": "autoheal-pa", "desiredStatus": "STOPPED"})).await, json!([task]));
    let stopped = until(&emulator, &task, is_stopped).await;
    assert_eq!(
        (&stopped["stopCode"], &stopped["stoppedReason"]),
        (&json!("UserInitiated"), &json!("it is no longer used"))
    );
    assert_eq!((&stopped["containers"][0]["exitCode"], &stopped["tags"]), (&json!(143), &json!([])));
    let unknown = json!({"cluster": "autoheal-pa", "task": "0123456789abcdef0123456789abcdef"});
    let unknown = error(&ecs(&emulator, "StopTask", unknown).await);
    assert_eq!(unknown, (400, "InvalidParameterException".into(), "The referenced task was not found.".into()));
    emulator.stop().await;
}

#[tokio::test]
async fn lists_tasks_by_one_filter_and_page_by_page() {
    let mut config = Config { ecs: EcsConfig::with_service("tools", "bastion", 3), ..quick() };
    config.ecs.page_len = 2;
    let emulator = prepared(config).await;
    let task = run(&emulator).await;
    let list = async |input: Value| ecs(&emulator, "ListTasks", input).await;
    let first = list(json!({"cluster": "tools", "serviceName": "bastion", "desiredStatus": "RUNNING"})).await.json();
    assert_eq!(first["taskArns"].as_array().unwrap().len(), 2);
    let next = json!({"cluster": "tools", "serviceName": "bastion", "nextToken": first["nextToken"]});
    let second = list(next).await.json();
    assert_eq!((second["taskArns"].as_array().unwrap().len(), &second["nextToken"]), (1, &Value::Null));
    let mine = json!({"cluster": "autoheal-pa", "startedBy": "autoheal-pa/me/0a1b"});
    assert_eq!(list(mine).await.json()["taskArns"], json!([task]));
    assert_eq!(
        list(json!({"cluster": "autoheal-pa", "family": "autoheal-pa-bastion"})).await.json()["taskArns"],
        json!([task])
    );
    assert_eq!(list(json!({"cluster": "tools", "desiredStatus": "PENDING"})).await.json()["taskArns"], json!([]));
    for (input, code) in [
        (json!({"cluster": "Tools"}), "ClusterNotFoundException"),
        (json!({"cluster": "tools", "serviceName": "Bastion"}), "ServiceNotFoundException"),
        (json!({"cluster": "tools", "serviceName": "bastion", "family": "x"}), "InvalidParameterException"),
        (json!({"cluster": "tools", "serviceName": "bastion", "startedBy": "x"}), "InvalidParameterException"),
        (json!({"cluster": "tools", "maxResults": 101}), "InvalidParameterException"),
    ] {
        let (status, found, _) = error(&list(input.clone()).await);
        assert_eq!((status, found.as_str()), (400, code), "{input}");
    }
    let cluster = error(&list(json!({"cluster": "nowhere"})).await);
    assert_eq!(cluster, (400, "ClusterNotFoundException".into(), "Cluster not found.".into()));
    emulator.stop().await;
}

#[tokio::test]
async fn checks_what_tasks_are_run_with() {
    let mut config = quick();
    let other = VpcConfig {
        id: "vpc-other".into(),
        subnets: vec![SubnetConfig::new("subnet-other", "a")],
        security_groups: vec!["sg-other".into()],
        ..VpcConfig::default()
    };
    config.vpcs.push(other);
    let emulator = prepared(config).await;
    let mut bare = definition();
    bare["family"] = "bare".into();
    bare["taskRoleArn"] = Value::Null;
    let mut stranger = definition();
    (stranger["family"], stranger["taskRoleArn"]) = ("stranger".into(), "somebody".into());
    for definition in [bare, stranger] {
        assert_eq!(ecs(&emulator, "RegisterTaskDefinition", definition).await.status, 200);
    }
    let network = |subnets: &[&str], groups: &[&str]| json!({"awsvpcConfiguration": {"subnets": subnets, "securityGroups": groups}});
    for (name, value, code, begins) in [
        ("cluster", json!("nowhere"), "ClusterNotFoundException", "Cluster not found."),
        ("taskDefinition", json!("unknown"), "ClientException", "TaskDefinition not found."),
        (
            "taskDefinition",
            json!("bare"),
            "InvalidParameterException",
            "The execute command failed because a valid task role",
        ),
        ("taskDefinition", json!("stranger"), "ClientException", "ECS was unable to assume the role"),
        ("networkConfiguration", json!(null), "InvalidParameterException", "Network Configuration must be provided"),
        (
            "networkConfiguration",
            network(&["subnet-none"], &[GROUP]),
            "InvalidParameterException",
            "Error retrieving subnet",
        ),
        (
            "networkConfiguration",
            network(&[SUBNET], &["sg-none"]),
            "InvalidParameterException",
            "Error retrieving security",
        ),
        (
            "networkConfiguration",
            network(&[SUBNET], &["sg-other"]),
            "InvalidParameterException",
            "Security group sg-other",
        ),
        (
            "networkConfiguration",
            network(&[SUBNET, "subnet-other"], &[]),
            "InvalidParameterException",
            "Subnets must be",
        ),
        ("startedBy", json!("a b"), "InvalidParameterException", "startedBy"),
        ("startedBy", json!("x".repeat(129)), "InvalidParameterException", "startedBy"),
        ("clientToken", json!("x".repeat(65)), "InvalidParameterException", "clientToken"),
        ("count", json!(11), "InvalidParameterException", "Invalid count"),
        ("tags", json!([{"key": "aws:x", "value": "1"}]), "InvalidParameterException", "Invalid tag"),
        ("tags", json!([{"key": "x", "value": "{}"}]), "InvalidParameterException", "Some tags contain invalid"),
    ] {
        let mut input = run_input();
        input[name] = value;
        let (status, found, message) = error(&ecs(&emulator, "RunTask", input).await);
        assert_eq!((status, found.as_str()), (400, code), "{name}: {message}");
        assert!(message.starts_with(begins), "{message}");
    }
    emulator.update(|settings| settings.denied_actions.extend(["iam:PassRole".to_owned()]));
    let (_, code, message) = error(&ecs(&emulator, "RunTask", run_input()).await);
    assert_eq!(code, "AccessDeniedException");
    assert!(
        message.contains("iam:PassRole on resource: arn:aws:iam::123456789012:role/autoheal-pa-bastion because"),
        "{message}"
    );
    emulator.stop().await;
}

#[tokio::test]
async fn a_client_token_makes_one_task() {
    let emulator = prepared(quick()).await;
    let mut input = run_input();
    input["clientToken"] = "one".into();
    let first = ecs(&emulator, "RunTask", input.clone()).await.json();
    let second = ecs(&emulator, "RunTask", input.clone()).await.json();
    assert_eq!(first["tasks"][0]["taskArn"], second["tasks"][0]["taskArn"]);
    assert_eq!(emulator.tasks().len(), 1);
    input["startedBy"] = "another".into();
    let conflict = ecs(&emulator, "RunTask", input).await;
    assert_eq!((conflict.status, error(&conflict).1), (400, "ConflictException".to_owned()));
    assert_eq!(conflict.json()["resourceIds"], json!([first["tasks"][0]["taskArn"]]));
    emulator.stop().await;
}

#[tokio::test]
async fn knows_definitions_and_clusters() {
    let emulator = prepared(quick()).await;
    let second = ecs(&emulator, "RegisterTaskDefinition", definition()).await.json();
    assert_eq!(second["taskDefinition"]["revision"], 2);
    let name = json!({"taskDefinition": "autoheal-pa-bastion", "include": ["TAGS"]});
    let described = ecs(&emulator, "DescribeTaskDefinition", name).await.json();
    let arn = "arn:aws:ecs:us-east-1:123456789012:task-definition/autoheal-pa-bastion:2";
    assert_eq!(described["taskDefinition"]["taskDefinitionArn"], arn);
    assert_eq!(described["taskDefinition"]["containerDefinitions"][0]["name"], "bastion");
    assert_eq!(described["tags"], json!([{"key": "autoheal-pa:spec", "value": "1"}]));
    let unknown = error(&ecs(&emulator, "DescribeTaskDefinition", json!({"taskDefinition": "x"})).await);
    assert_eq!(unknown, (400, "ClientException".into(), "Unable to describe task definition.".into()));
    let mut odd = definition();
    odd["memory"] = "64".into();
    assert_eq!(error(&ecs(&emulator, "RegisterTaskDefinition", odd).await).1, "ClientException");
    let clusters = json!({"clusters": ["autoheal-pa", "nowhere"]});
    let clusters = ecs(&emulator, "DescribeClusters", clusters).await.json();
    assert_eq!(clusters["clusters"][0]["status"], "ACTIVE");
    assert_eq!(clusters["failures"][0]["reason"], "MISSING");
    emulator.stop().await;
}

#[tokio::test]
async fn refuses_bad_signatures_and_what_is_denied() {
    let emulator = prepared(quick()).await;
    let keys = TestKeys::of(&emulator);
    let target = [("x-amz-target", "AmazonEC2ContainerServiceV20141113.ListTasks")];
    let wrong = TestKeys { secret: "x".into(), ..keys.clone() };
    for signer in [wrong.signer("ecs"), keys.signer("ssm")] {
        let answer = call(&emulator, &signer, "POST", "/", &target, "{}").await;
        assert_eq!((answer.status, error(&answer).1.as_str()), (400, "InvalidSignatureException"));
    }
    emulator.update(|settings| settings.denied_actions.extend(["ecs:RunTask".to_owned()]));
    let (status, code, message) = error(&ecs(&emulator, "RunTask", run_input()).await);
    assert_eq!((status, code.as_str()), (400, "AccessDeniedException"));
    assert!(
        message.contains("ecs:RunTask on resource: arn:aws:ecs:us-east-1:123456789012:task-definition/"),
        "{message}"
    );
    emulator.stop().await;
}

#[tokio::test]
async fn a_network_without_a_way_out_has_no_public_images_and_no_agents() {
    let mut config = quick();
    config.vpcs = vec![VpcConfig::closed()];
    let emulator = prepared(config).await;
    let task = run(&emulator).await;
    let stopped = until(&emulator, &task, is_stopped).await;
    assert_eq!(stopped["stopCode"], "TaskFailedToStart");
    let reason = stopped["stoppedReason"].as_str().unwrap();
    assert!(reason.starts_with("CannotPullContainerError") && reason.contains("i/o timeout"), "{reason}");
    assert!(stopped["containers"][0].get("runtimeId").is_none(), "{stopped}");
    emulator.stop().await;

    // With the endpoints for a private image, but none for the agent.
    let endpoints: Vec<String> = ["ecr.api", "ecr.dkr", "s3"].map(str::to_owned).into();
    for (more, agent) in [(None, "PENDING"), (Some("ssmmessages".to_owned()), "RUNNING")] {
        let vpc = VpcConfig { endpoints: endpoints.iter().cloned().chain(more).collect(), ..VpcConfig::closed() };
        let mut config = Config { vpcs: vec![vpc], ..quick() };
        config.ecs.times = TaskTimes { agent: Duration::ZERO, ..TaskTimes::default() };
        let emulator = prepared(config).await;
        let mut private = definition();
        private["containerDefinitions"][0]["image"] = "123456789012.dkr.ecr.us-east-1.amazonaws.com/bastion:1".into();
        private["executionRoleArn"] = "pull".into();
        assert_eq!(ecs(&emulator, "RegisterTaskDefinition", private).await.status, 200);
        let task = run(&emulator).await;
        let running = until(&emulator, &task, |task| task["lastStatus"] == "RUNNING").await;
        assert_eq!(running["stopCode"], Value::Null);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let running = describe(&emulator, &task).await;
        assert_eq!(running["containers"][0]["managedAgents"][0]["lastStatus"], agent);
        emulator.stop().await;
    }
}
