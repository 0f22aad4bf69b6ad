//! ECS against a fake one.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::*;
use crate::aws::testing::{Answer, Fake, Request, aws, in_time};

const ARN: &str = "arn:aws:ecs:us-east-1:123456789012";

fn read(request: &Request) -> Value {
    serde_json::from_str(&request.body).unwrap()
}

async fn answering(answer: Value) -> Fake {
    let text = answer.to_string();
    Fake::start(move |_| Answer::json(200, &text)).await
}

async fn failing(code: &'static str, message: &'static str) -> Fake {
    Fake::start(move |_| Answer::json_error(400, code, message)).await
}

fn task(id: &str) -> Value {
    json!({
        "taskArn": format!("{ARN}:task/my_tools/{id}"), "clusterArn": format!("{ARN}:cluster/my_tools"),
        "taskDefinitionArn": format!("{ARN}:task-definition/tools:3"), "lastStatus": "RUNNING", "desiredStatus": "RUNNING",
        "createdAt": 1_795_317_508.5, "startedAt": 1_795_317_540, "enableExecuteCommand": true, "group": "service:tools",
        "launchType": "FARGATE", "platformVersion": "1.4.0", "startedBy": "ecs-svc/1",
        "containers": [
            { "name": "sidecar", "lastStatus": "STOPPED", "exitCode": 137, "reason": "OutOfMemory\u{1b}[2J" },
            { "name": "tools", "runtimeId": format!("{id}-3839356491"), "lastStatus": "RUNNING",
              "managedAgents": [{ "name": "ExecuteCommandAgent", "lastStatus": "RUNNING" }] },
        ],
        "attachments": [{ "type": "ElasticNetworkInterface", "details": [
            { "name": "subnetId", "value": "subnet-1" }, { "name": "networkInterfaceId", "value": "eni-1" },
            { "name": "privateIPv4Address", "value": "10.0.1.9" }] }],
        "tags": [{ "key": "autoheal-pa:owner", "value": "ann" }, { "key": "x\u{200b}", "value": "y" }],
    })
}

#[tokio::test]
async fn all_pages_of_tasks_are_listed() {
    let fake = Fake::start(|request| {
        let answer = match read(request)["nextToken"].as_str() {
            None => json!({ "taskArns": [format!("{ARN}:task/tools/1")], "nextToken": "t" }),
            Some(_) => json!({ "taskArns": [format!("{ARN}:task/tools/2")] }),
        };
        Answer::json(200, &answer.to_string())
    })
    .await;
    let aws = aws(&fake).await;
    let arns = in_time(aws.list_tasks("tools", &TaskFilter::Service("web".into()))).await.unwrap();
    assert_eq!(arns, [format!("{ARN}:task/tools/1"), format!("{ARN}:task/tools/2")]);
    in_time(aws.list_tasks("tools", &TaskFilter::Family("f".into()))).await.unwrap();
    in_time(aws.list_tasks("tools", &TaskFilter::StartedBy("autoheal-pa/x".into()))).await.unwrap();
    let bodies: Vec<_> = fake.requests().iter().map(read).collect();
    let service = json!({ "cluster": "tools", "serviceName": "web", "desiredStatus": "RUNNING", "maxResults": 100 });
    assert_eq!(bodies[0], service);
    assert_eq!(bodies[1]["nextToken"], "t");
    let family = json!({ "cluster": "tools", "family": "f", "desiredStatus": "RUNNING", "maxResults": 100 });
    assert_eq!(bodies[2], family);
    assert_eq!(bodies[4], json!({ "cluster": "tools", "startedBy": "autoheal-pa/x", "maxResults": 100 }));
}

#[tokio::test]
async fn tasks_are_described_in_parts() {
    let fake = Fake::start(|request| {
        let asked = read(request)["tasks"].as_array().unwrap().len();
        let missing = json!({ "arn": format!("{ARN}:task/my_tools/gone"), "reason": "MISSING" });
        Answer::json(200, &json!({ "tasks": [task(&format!("t{asked}"))], "failures": [missing] }).to_string())
    })
    .await;
    let aws = aws(&fake).await;
    assert_eq!(in_time(aws.describe_tasks("tools", &[])).await.unwrap(), Tasks::default());
    let ids: Vec<_> = (0..120).map(|n| format!("t{n}")).collect();
    let found = in_time(aws.describe_tasks("tools", &ids)).await.unwrap();
    let bodies: Vec<_> = fake.requests().iter().map(read).collect();
    assert_eq!(bodies[1], json!({ "cluster": "tools", "tasks": ids[100..], "include": ["TAGS"] }));
    assert_eq!((bodies.len(), found.missing.len(), found.tasks.len()), (2, 2, 2));
    let at = |ms| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
    let container = |name: &str| TaskContainer {
        name: name.into(),
        runtime_id: None,
        last_status: "STOPPED".into(),
        exit_code: None,
        reason: None,
        agent: None,
    };
    assert_eq!(
        found.tasks[1],
        Task {
            arn: format!("{ARN}:task/my_tools/t20"),
            cluster_arn: format!("{ARN}:cluster/my_tools"),
            definition_arn: format!("{ARN}:task-definition/tools:3"),
            last_status: "RUNNING".into(),
            desired_status: "RUNNING".into(),
            created_at: at(1_795_317_508_500),
            started_at: at(1_795_317_540_000),
            exec_enabled: true,
            stop_code: None,
            stopped_reason: None,
            containers: vec![
                TaskContainer {
                    exit_code: Some(137),
                    reason: Some("OutOfMemory\u{1b}[2J".into()),
                    ..container("sidecar")
                },
                TaskContainer {
                    runtime_id: Some("t20-3839356491".into()),
                    last_status: "RUNNING".into(),
                    agent: Some(ExecAgent { status: "RUNNING".into(), reason: None }),
                    ..container("tools")
                },
            ],
            tags: [("autoheal-pa:owner".to_owned(), "ann".into())].into(),
            started_by: Some("ecs-svc/1".into()),
            group: Some("service:tools".into()),
            launch_type: Some("FARGATE".into()),
            platform_version: Some("1.4.0".into()),
            network: Some(TaskNetwork {
                subnet_id: Some("subnet-1".into()),
                interface_id: Some("eni-1".into()),
                private_ip: Some("10.0.1.9".into()),
            }),
        }
    );
}

#[tokio::test]
async fn what_is_not_there_is_told_apart() {
    let filter = TaskFilter::Service("web".into());
    for (code, wanted) in
        [("ClusterNotFoundException", Refusal::EcsCluster), ("ServiceNotFoundException", Refusal::EcsService)]
    {
        let fake = failing(code, "not found.").await;
        let error = in_time(aws(&fake).await.list_tasks("tools", &filter)).await.unwrap_err();
        assert!(
            matches!(&error, AwsError::Refused { action: LIST_TASKS, resource, refusal, .. } if *refusal == wanted && resource == "web"),
            "{error:?}"
        );
    }
    let fake = failing("ClientException", "Unable to describe task definition.").await;
    assert_eq!(in_time(aws(&fake).await.task_definition("f")).await.unwrap(), None);
    let fake = failing("ClientException", "Something else.").await;
    let error = in_time(aws(&fake).await.task_definition("f")).await.unwrap_err();
    assert!(matches!(error, AwsError::Refused { refusal: Refusal::Request, .. }), "{error:?}");
}

#[tokio::test]
async fn a_cluster_is_made() {
    let cluster = json!({ "clusterArn": format!("{ARN}:cluster/tools"), "clusterName": "tools", "status": "ACTIVE" });
    let fake = answering(json!({ "cluster": cluster })).await;
    let of_fake = aws(&fake).await;
    let made = in_time(of_fake.create_ecs_cluster("tools")).await.unwrap();
    assert_eq!(made.name, "tools");
    let bodies: Vec<_> = fake.requests().iter().map(read).collect();
    assert_eq!(bodies, [json!({ "clusterName": "tools" })]);
}

#[tokio::test]
async fn a_task_definition_is_registered() {
    let fake = answering(json!({
        "taskDefinition": { "taskDefinitionArn": format!("{ARN}:task-definition/bastion:7"), "revision": 7, "cpu": "256",
            "memory": "512", "networkMode": "awsvpc", "taskRoleArn": "arn:aws:iam::123456789012:role/bastion" },
        "tags": [{ "key": "autoheal-pa:spec", "value": "0f" }],
    }))
    .await;
    let of_fake = aws(&fake).await;
    let new = NewTaskDefinition {
        family: "bastion".into(),
        cpu: 256,
        memory: 512,
        architecture: Architecture::Arm64,
        task_role: Some("arn:aws:iam::123456789012:role/bastion".into()),
        execution_role: None,
        container: NewContainer {
            name: "bastion".into(),
            image: "busybox".into(),
            command: vec!["sh".into(), "-c".into(), "true".into()],
            stop_timeout: Some(Duration::from_secs(5)),
            ..NewContainer::default()
        },
        tags: vec![("autoheal-pa:spec".into(), "0f".into())],
    };
    let made = in_time(of_fake.register_task_definition(&new)).await.unwrap();
    assert_eq!((made.revision, made.cpu.as_deref(), made.network_mode.as_deref()), (7, Some("256"), Some("awsvpc")));
    assert_eq!(made.tags["autoheal-pa:spec"], "0f");
    assert_eq!(in_time(of_fake.task_definition("bastion")).await.unwrap(), Some(made));
    let bodies: Vec<_> = fake.requests().iter().map(read).collect();
    assert_eq!(
        bodies[0],
        json!({
            "family": "bastion", "cpu": "256", "memory": "512", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
            "runtimePlatform": { "cpuArchitecture": "ARM64", "operatingSystemFamily": "LINUX" },
            "taskRoleArn": "arn:aws:iam::123456789012:role/bastion",
            "containerDefinitions": [{ "name": "bastion", "image": "busybox", "command": ["sh", "-c", "true"], "cpu": 0, "essential": true,
                "linuxParameters": { "initProcessEnabled": true }, "stopTimeout": 5 }],
            "tags": [{ "key": "autoheal-pa:spec", "value": "0f" }],
        })
    );
    assert_eq!(bodies[1], json!({ "taskDefinition": "bastion", "include": ["TAGS"] }));
}

fn new_task() -> NewTask {
    NewTask {
        cluster: "tools".into(),
        task_definition: "bastion".into(),
        subnets: vec!["subnet-1".into(), "subnet-2".into()],
        security_groups: vec!["sg-1".into()],
        public_ip: false,
        started_by: "autoheal-pa/x/0f".into(),
        client_token: "token-1".into(),
        tags: vec![("autoheal-pa:host".into(), "h".into())],
    }
}

#[tokio::test]
async fn a_task_is_run_and_stopped() {
    let fake = answering(json!({ "tasks": [task("t1")], "failures": [], "task": task("t1") })).await;
    let of_fake = aws(&fake).await;
    let made = in_time(of_fake.run_task(&new_task())).await.unwrap();
    in_time(of_fake.stop_task("tools", &made.arn, "no longer needed")).await.unwrap();
    let bodies: Vec<_> = fake.requests().iter().map(read).collect();
    assert_eq!(
        bodies[0],
        json!({
            "cluster": "tools", "taskDefinition": "bastion", "launchType": "FARGATE", "count": 1, "enableExecuteCommand": true,
            "enableECSManagedTags": true, "startedBy": "autoheal-pa/x/0f", "clientToken": "token-1",
            "networkConfiguration": { "awsvpcConfiguration": { "subnets": ["subnet-1", "subnet-2"], "securityGroups": ["sg-1"],
                "assignPublicIp": "DISABLED" } },
            "tags": [{ "key": "autoheal-pa:host", "value": "h" }],
        })
    );
    assert_eq!(bodies[1], json!({ "cluster": "tools", "task": made.arn, "reason": "no longer needed" }));
}

#[tokio::test]
async fn a_task_that_was_not_run_is_an_error_with_its_reason() {
    let fake =
        answering(json!({ "tasks": [], "failures": [{ "reason": "Capacity is unavailable at this time" }] })).await;
    let error = in_time(aws(&fake).await.run_task(&new_task())).await.unwrap_err();
    assert!(
        matches!(&error, AwsError::Refused { action: RUN_TASK, resource, .. } if resource == "bastion"),
        "{error:?}"
    );
    let message = error.answer().unwrap().message.clone().unwrap();
    assert!(message.starts_with("Capacity is unavailable"), "{message}");
    let fake = answering(json!({})).await;
    let error = in_time(aws(&fake).await.run_task(&new_task())).await.unwrap_err();
    assert_eq!(error.answer().unwrap().to_string(), "ECS gives no reason");
    let fake = failing("ConflictException", "The token is of another task.").await;
    let error = in_time(aws(&fake).await.run_task(&new_task())).await.unwrap_err();
    assert!(matches!(error, AwsError::Refused { refusal: Refusal::Request, .. }), "{error:?}");
}

#[tokio::test]
async fn what_cannot_be_is_an_error() {
    let odd = |key: &str, value: Value| {
        let mut task = task("t1");
        *task.pointer_mut(key).unwrap() = value;
        json!({ "tasks": [task] })
    };
    for answer in [
        odd("/taskArn", json!("task; id")),
        odd("/taskArn", Value::Null),
        odd("/clusterArn", json!("arn:aws:ecs:$(id)")),
        odd("/containers/1/runtimeId", json!("a b")),
        odd("/containers/1/name", json!("`id`")),
        odd("/attachments/0/details/0/value", json!("subnet 1")),
    ] {
        let fake = answering(answer.clone()).await;
        let error = in_time(aws(&fake).await.describe_tasks("tools", &["t1".into()])).await.unwrap_err();
        assert!(matches!(error, AwsError::Malformed { .. }), "{answer}: {error:?}");
    }
    for answer in [json!({ "taskArns": [], "nextToken": "t" }), json!({ "taskArns": ["arn:a b"] })] {
        let fake = answering(answer).await;
        let error =
            in_time(aws(&fake).await.list_tasks("tools", &TaskFilter::StartedBy("x".into()))).await.unwrap_err();
        assert!(matches!(error, AwsError::Malformed { .. }), "{error:?}");
    }
}
