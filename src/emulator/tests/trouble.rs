//! What goes wrong with tasks and instances, by the names of the faults.

use serde_json::{Value, json};

use super::{
    super::{BastionConfig, Config, EcsConfig, Emulator, Fault, TaskTimes, TaskTrouble},
    ecs::{agent_runs, describe, is_stopped, prepared, run, run_input, until},
    support::{ecs, quick, ssm, start, start_session_with, within},
};

fn inject(emulator: &Emulator, fault: &str) {
    emulator.inject_once(&fault.parse::<Fault>().unwrap());
}

#[tokio::test]
async fn tasks_cannot_be_run() {
    for (fault, code, begins) in [
        ("no-service-role=1", "InvalidParameterException", "Unable to assume the service linked role"),
        ("role-not-trusted", "ClientException", "ECS was unable to assume the role"),
        ("vcpu-limit", "ClientException", "You've reached the limit on the number of vCPUs"),
        ("deny=iam:PassRole", "AccessDeniedException", "User: arn:aws:sts::123456789012:assumed-role/"),
    ] {
        let emulator = prepared(quick()).await;
        inject(&emulator, fault);
        let answer = ecs(&emulator, "RunTask", run_input()).await;
        assert_eq!((answer.status, answer.json()["__type"].as_str()), (400, Some(code)), "{fault}");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(begins), "{message}");
        let again = ecs(&emulator, "RunTask", run_input()).await;
        assert_eq!(again.status == 200, fault.contains('=') && !fault.starts_with("deny"), "{fault}");
        emulator.stop().await;
    }
}

#[tokio::test]
async fn tasks_cannot_be_placed() {
    let emulator = prepared(quick()).await;
    inject(&emulator, "no-capacity=1");
    let answer = ecs(&emulator, "RunTask", run_input()).await;
    assert_eq!((answer.status, &answer.json()["tasks"]), (200, &json!([])));
    let reason = answer.json()["failures"][0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.starts_with("Capacity is unavailable at this time"), "{reason}");
    run(&emulator).await;
    inject(&emulator, "run-task-fails=RESOURCE:ENI");
    for _ in 0..2 {
        let answer = ecs(&emulator, "RunTask", run_input()).await.json();
        assert_eq!(answer["failures"], json!([{"reason": "RESOURCE:ENI"}]));
    }
    emulator.stop().await;
}

#[tokio::test]
async fn tasks_do_not_start() {
    for (fault, parts) in [
        ("image-timeout", ["CannotPullContainerError: ", "i/o timeout"]),
        ("image-missing", ["CannotPullContainerError: ", "busybox:stable: not found"]),
        ("image-limited", ["CannotPullContainerError: ", "toomanyrequests"]),
        ("no-registry-auth", ["ResourceInitializationError: unable to pull secrets or registry auth", "ecr"]),
        ("interface-timeout", ["Timeout waiting for network interface provisioning", ""]),
        ("subnet-full", ["Unexpected EC2 error", "InsufficientFreeAddressesInSubnet"]),
        ("no-shell", ["CannotStartContainerError: ", "\"sh\""]),
    ] {
        let emulator = prepared(quick()).await;
        inject(&emulator, fault);
        let task = run(&emulator).await;
        let stopped = until(&emulator, &task, is_stopped).await;
        assert_eq!(stopped["stopCode"], "TaskFailedToStart", "{fault}");
        let reason = stopped["stoppedReason"].as_str().unwrap();
        assert!(reason.starts_with(parts[0]) && reason.contains(parts[1]), "{reason}");
        assert_eq!(stopped["startedAt"], Value::Null);
        emulator.stop().await;
    }
}

#[tokio::test]
async fn only_the_next_tasks_have_trouble() {
    let emulator = prepared(quick()).await;
    for (fault, is_so) in [
        ("image-timeout", (|task| is_stopped(task) && task["stopCode"] == "TaskFailedToStart") as fn(&Value) -> bool),
        ("out-of-memory=50ms", |task| is_stopped(task) && task["containers"][0]["exitCode"] == 137),
        ("agent-stopped", |task| task["containers"][0]["managedAgents"][0]["lastStatus"] == "STOPPED"),
    ] {
        emulator.update(|settings| settings.tasks = TaskTrouble::default());
        inject(&emulator, fault);
        inject(&emulator, "next-tasks=2");
        for _ in 0..2 {
            let task = run(&emulator).await;
            until(&emulator, &task, is_so).await;
        }
        let task = run(&emulator).await;
        until(&emulator, &task, agent_runs).await;
    }
    // Those of one call are counted one by one.
    inject(&emulator, "agent-pending");
    inject(&emulator, "next-tasks=1");
    let mut two = run_input();
    two["count"] = 2.into();
    let tasks = ecs(&emulator, "RunTask", two).await.json()["tasks"].clone();
    until(&emulator, tasks[1]["taskArn"].as_str().unwrap(), agent_runs).await;
    assert!(!agent_runs(&describe(&emulator, tasks[0]["taskArn"].as_str().unwrap()).await));
    emulator.stop().await;
}

#[tokio::test]
async fn tasks_run_without_an_agent_or_not_for_long() {
    let emulator = prepared(quick()).await;
    inject(&emulator, "agent-stopped");
    let task = run(&emulator).await;
    let agent = |status: &'static str| {
        move |task: &Value| {
            task["lastStatus"] == "RUNNING" && task["containers"][0]["managedAgents"][0]["lastStatus"] == status
        }
    };
    until(&emulator, &task, agent("STOPPED")).await;
    inject(&emulator, "agent-pending");
    let task = run(&emulator).await;
    until(&emulator, &task, agent("PENDING")).await;
    emulator.stop().await;

    let emulator = prepared(quick()).await;
    inject(&emulator, "out-of-memory=100ms");
    let task = run(&emulator).await;
    let stopped = until(&emulator, &task, is_stopped).await;
    assert_eq!(
        (&stopped["stopCode"], &stopped["containers"][0]["exitCode"]),
        (&json!("EssentialContainerExited"), &json!(137))
    );
    emulator.stop().await;

    let emulator = prepared(quick()).await;
    inject(&emulator, "unseen-tasks=200ms");
    inject(&emulator, "slow-tasks=100ms");
    let task = run(&emulator).await;
    assert_eq!(describe(&emulator, &task).await, Value::Null);
    within(async {
        while describe(&emulator, &task).await.is_null() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    until(&emulator, &task, agent_runs).await;
    emulator.stop().await;
}

#[tokio::test]
async fn running_tasks_take_no_sessions() {
    let emulator = start(Config { ecs: EcsConfig::with_service("tools", "bastion", 1), ..quick() }).await;
    within(emulator.wait_until(|emulator| emulator.tasks()[0].status == "RUNNING")).await;
    let (arn, target) = (emulator.tasks()[0].arn.clone(), emulator.tasks()[0].targets[0].clone());
    inject(&emulator, "session-limit=1");
    assert_eq!(start_session_with(&emulator, &target, "h", 443).await.status, 200);
    inject(&emulator, "deny-task-sessions");
    let denied = start_session_with(&emulator, &target, "h", 443).await;
    assert_eq!(denied.json()["__type"], "AccessDeniedException");
    let message = denied.json()["Message"].as_str().unwrap().to_owned();
    assert!(
        message.ends_with(&format!("on resource: {arn} with an explicit deny in an identity-based policy")),
        "{message}"
    );
    emulator.update(|settings| settings.tasks.sessions_denied = false);
    inject(&emulator, "exec-disabled");
    assert_eq!(start_session_with(&emulator, &target, "h", 443).await.json()["__type"], "TargetNotConnected");
    assert_eq!(describe(&emulator, &arn).await["enableExecuteCommand"], false);
    emulator.stop().await;
}

#[tokio::test]
async fn bastions_are_replaced() {
    let config = Config {
        ecs: EcsConfig::with_service("tools", "bastion", 1),
        bastions: vec![BastionConfig::new("i-0dc03fbcae2a80001").in_group("jumpers")],
        ..quick()
    };
    let emulator = start(config).await;
    within(emulator.wait_until(|emulator| emulator.tasks()[0].status == "RUNNING")).await;
    for (n, (fault, code)) in [
        ("redeploy=30s", "ServiceSchedulerInitiated"),
        ("stop-tasks=30s", "UserInitiated"),
        ("retire-tasks=30s", "TerminationNotice"),
    ]
    .into_iter()
    .enumerate()
    {
        inject(&emulator, fault);
        let is_replaced = |emulator: &Emulator| {
            let tasks = emulator.tasks();
            let stopped = tasks.iter().filter(|task| task.status == "STOPPED").count();
            let running = tasks.iter().filter(|task| task.status == "RUNNING").count();
            (stopped, running) == (n + 1, 1)
        };
        within(emulator.wait_until(is_replaced)).await;
        assert!(emulator.tasks().iter().any(|task| task.stop_code.as_deref() == Some(code)), "{fault}");
    }
    inject(&emulator, "replace-instance=30s");
    let old = start_session_with(&emulator, "i-0dc03fbcae2a80001", "h", 443).await;
    assert_eq!(old.json()["__type"], "TargetNotConnected");
    emulator.stop().await;
}

#[tokio::test]
async fn nodes_are_told_of_as_online_that_are_not() {
    let node = "i-0dc03fbcae2a80001";
    let bastions = vec![BastionConfig { online: false, ..BastionConfig::new(node) }];
    let emulator = start(Config { bastions, ..quick() }).await;
    let status = async || {
        let nodes = ssm(&emulator, "DescribeInstanceInformation", json!({})).await.json();
        nodes["InstanceInformationList"][0]["PingStatus"].clone()
    };
    assert_eq!(status().await, "ConnectionLost");
    inject(&emulator, "stale-pings");
    assert_eq!(status().await, "Online");
    assert_eq!(start_session_with(&emulator, node, "h", 443).await.json()["__type"], "TargetNotConnected");
    emulator.stop().await;
}

#[tokio::test]
async fn tasks_live_without_sockets_too() {
    let config = Config {
        ecs: EcsConfig { times: TaskTimes::real(), ..EcsConfig::with_service("tools", "bastion", 1) },
        ..quick()
    };
    let emulator = Emulator::in_memory(config).await.unwrap();
    let key = emulator.new_access_key();
    let input = json!({"cluster": "tools", "serviceName": "bastion"});
    let tasks = emulator.call_ecs(&key, "ListTasks", &input).await.unwrap();
    assert_eq!(tasks["taskArns"].as_array().unwrap().len(), 1);
    let unknown = emulator.call_ecs(&key, "ListTasks", &json!({"cluster": "other"})).await.unwrap_err();
    assert_eq!(unknown.code, "ClusterNotFoundException");
    emulator.stop().await;
}
