//! Tasks in every state, as a fake ECS describes them.

use serde_json::{Value, json};

use super::*;
use crate::{
    aws::testing::{Answer, Fake, Request, aws, in_time},
    bastion::{Bastion, Search},
    route::{
        ssm::{find::Finder, tests::support::cluster},
        step::tests::lines,
    },
};

const ARN: &str = "arn:aws:ecs:us-east-1:123456789012";

fn id(number: u8) -> String {
    format!("{number:032x}")
}

/// A task that takes sessions, started so many seconds after the epoch.
fn task(number: u8, started: u64) -> Value {
    json!({
        "taskArn": format!("{ARN}:task/my_tools/{}", id(number)), "clusterArn": format!("{ARN}:cluster/my_tools"),
        "taskDefinitionArn": format!("{ARN}:task-definition/tools:3"), "lastStatus": "RUNNING", "desiredStatus": "RUNNING",
        "createdAt": started, "startedAt": started, "enableExecuteCommand": true,
        "containers": [container("agent", number, "RUNNING")],
    })
}

fn container(name: &str, number: u8, agent: &str) -> Value {
    json!({
        "name": name, "runtimeId": format!("{}-{name}1", id(number)), "lastStatus": "RUNNING",
        "managedAgents": [{ "name": "ExecuteCommandAgent", "lastStatus": agent }],
    })
}

fn with(mut task: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        task[key] = value.clone();
    }
    task
}

fn target(number: u8, container: &str) -> Target {
    format!("ecs:my_tools_{}_{}-{container}1", id(number), id(number)).parse().unwrap()
}

fn answer(request: &Request, tasks: &[Value]) -> Answer {
    let arns: Vec<&Value> =
        tasks.iter().filter(|task| task["desiredStatus"] == "RUNNING").map(|task| &task["taskArn"]).collect();
    let text = match request.operation() {
        "ListTasks" => json!({ "taskArns": arns }).to_string(),
        _ => {
            let body: Value = serde_json::from_str(&request.body).unwrap();
            let is = |asked: &Value, task: &Value| task["taskArn"].as_str().unwrap().ends_with(asked.as_str().unwrap());
            let asked = body["tasks"].as_array().unwrap();
            let known: Vec<_> = tasks.iter().filter(|task| asked.iter().any(|asked| is(asked, task))).collect();
            let missing: Vec<_> = asked.iter().filter(|asked| !tasks.iter().any(|task| is(asked, task))).collect();
            let failures: Vec<_> = missing.iter().map(|arn| json!({ "arn": arn, "reason": "MISSING" })).collect();
            json!({ "tasks": known, "failures": failures }).to_string()
        }
    };
    Answer::json(200, &text)
}

/// Why nothing takes sessions.
async fn nothing(bastion: &str, tasks: Vec<Value>) -> Arc<Fault> {
    look(bastion, tasks, &[]).await.unwrap().nothing.unwrap()
}

async fn look(bastion: &str, tasks: Vec<Value>, in_use: &[Target]) -> Result<Sight, Fault> {
    let Ok(Bastion::Found(Search::Ecs(search))) = bastion.parse() else { panic!("{bastion}") };
    let fake = Fake::start(move |request| answer(request, &tasks)).await;
    let look = EcsLook::new(aws(&fake).await, search);
    in_time(look.look(&cluster("").into(), in_use)).await
}

#[tokio::test]
async fn the_newest_task_comes_first_and_names_come_from_arns() {
    let tasks = vec![task(1, 1_000), task(2, 3_000), task(3, 2_000)];
    let sight = look("ecs:MY_TOOLS/web", tasks, &[]).await.unwrap();
    let targets: Vec<_> = sight.usable.iter().map(|candidate| candidate.target.clone()).collect();
    assert_eq!(targets, [target(2, "agent"), target(3, "agent"), target(1, "agent")]);
    assert!(sight.usable.iter().all(|candidate| candidate.capped && !candidate.fresh));
    assert_eq!((sight.found, sight.changing), (3, false));
}

#[tokio::test]
async fn what_becomes_of_tasks_that_are_in_use_is_told() {
    let tasks = vec![
        task(1, 1_000),
        with(task(2, 900), json!({ "desiredStatus": "STOPPED", "lastStatus": "DEACTIVATING" })),
        with(task(3, 800), json!({ "desiredStatus": "STOPPED", "lastStatus": "STOPPED" })),
        with(task(5, 2_000), json!({ "lastStatus": "PENDING", "startedAt": null, "containers": [] })),
    ];
    let in_use = [1, 2, 3, 4].map(|number| target(number, "agent"));
    let sight = look("ecs:my_tools/web", tasks, &in_use).await.unwrap();
    assert_eq!(sight.usable.len(), 1);
    assert_eq!(sight.leaving, [target(2, "agent")]);
    assert_eq!(sight.gone, [target(3, "agent"), target(4, "agent")]);
    assert!(sight.changing, "the next task is on its way");
}

#[tokio::test]
async fn what_becomes_of_the_only_task_is_told_as_well() {
    let stopped = with(task(1, 1_000), json!({ "desiredStatus": "STOPPED", "lastStatus": "STOPPED" }));
    for bastion in ["ecs:my_tools/web".to_owned(), format!("ecs:my_tools/{}", id(1))] {
        let sight = look(&bastion, vec![stopped.clone()], &[target(1, "agent")]).await.unwrap();
        assert_eq!(sight.gone, [target(1, "agent")], "{bastion}");
        assert!(sight.nothing.unwrap().to_string().contains("has stopped"), "{bastion}");
    }
}

#[tokio::test]
async fn a_container_is_chosen_by_its_name_or_as_the_only_one_that_can_be_used() {
    let two = json!({ "containers": [container("agent", 1, "RUNNING"), container("sidecar", 1, "RUNNING")] });
    let one = json!({ "containers": [container("agent", 1, "RUNNING"), container("sidecar", 1, "STOPPED")] });
    let sight = look("ecs:my_tools/web/sidecar", vec![with(task(1, 1), two.clone())], &[]).await.unwrap();
    assert_eq!(sight.usable[0].target, target(1, "sidecar"));
    let sight = look("ecs:my_tools/web", vec![with(task(1, 1), one)], &[]).await.unwrap();
    assert_eq!(sight.usable[0].target, target(1, "agent"));
    let fault = nothing("ecs:my_tools/web", vec![with(task(1, 1), two)]).await;
    assert_eq!(fault.class, Class::Refused);
    assert!(fault.to_string().contains("has several containers (agent, sidecar)"), "{fault}");
    assert!(fault.hints[0].contains("`--bastion ecs:my_tools/web/agent`"), "{:?}", fault.hints);
}

#[tokio::test]
async fn what_keeps_a_task_from_taking_sessions_is_named() {
    for (changes, class, text, hint) in [
        (
            json!({ "enableExecuteCommand": false }),
            Class::Away,
            "was started without ECS Exec",
            "--enable-execute-command",
        ),
        (
            json!({ "containers": [container("agent", 1, "STOPPED")] }),
            Class::Away,
            "has no running agent for sessions",
            "ssmmessages:OpenControlChannel",
        ),
        (
            json!({ "containers": [container("agent", 1, "PENDING")] }),
            Class::Away,
            "waits for its agent",
            "describe-tasks",
        ),
        (json!({ "lastStatus": "PENDING" }), Class::Away, "is PENDING", "describe-tasks"),
        (
            json!({ "containers": [container("other", 1, "RUNNING")] }),
            Class::Refused,
            "has no such container, only other",
            "ecs:my_tools/web/other",
        ),
    ] {
        let name = if text.contains("no such container") { "ecs:my_tools/web/agent" } else { "ecs:my_tools/web" };
        let fault = nothing(name, vec![with(task(1, 1), changes)]).await;
        assert_eq!(fault.class, class, "{fault}");
        assert!(fault.to_string().contains(text), "{fault}");
        assert!(fault.hints[0].contains(hint), "{:?}", fault.hints);
    }
    let fault = nothing("ecs:my_tools/web", Vec::new()).await;
    assert_eq!((fault.class, fault.to_string().as_str()), (Class::Away, "the service `web` has no running task"));
    assert!(fault.hints[0].contains("--desired-count 1"), "{:?}", fault.hints);
    let fault = nothing(&format!("ecs:my_tools/{}", id(9)), Vec::new()).await;
    assert_eq!(fault.class, Class::Gone);
}

#[tokio::test]
async fn what_is_not_there_is_told_from_what_cannot_be_asked() {
    for (code, class, text) in [
        ("ClusterNotFoundException", Class::Gone, "there is no ECS cluster `tools` in us-east-1"),
        ("ServiceNotFoundException", Class::Gone, "there is no service `web` in the ECS cluster `tools`"),
        ("AccessDeniedException", Class::Denied, "ecs:ListTasks"),
        ("ThrottlingException", Class::Throttled, ""),
    ] {
        let Ok(Bastion::Found(Search::Ecs(search))) = "ecs:tools/web".parse() else { panic!() };
        let fake = Fake::start(move |_| Answer::json_error(400, code, "no")).await;
        let fault = in_time(EcsLook::new(aws(&fake).await, search).look(&cluster("").into(), &[])).await.unwrap_err();
        assert_eq!(fault.class, class, "{code}: {fault}");
        assert!(fault.to_string().contains(text), "{fault}");
    }
    let elsewhere = "arn:aws:ecs:eu-west-1:123456789012:service/tools/web";
    let fault = look(elsewhere, Vec::new(), &[]).await.unwrap_err();
    assert_eq!(fault.class, Class::Refused);
}

/// What is told of a walk, each step on a line; `sessions` is the answer of Systems Manager.
async fn walk(bastion: &str, tasks: Vec<Value>, sessions: Answer) -> Vec<String> {
    let Ok(Bastion::Found(Search::Ecs(search))) = bastion.parse() else { panic!("{bastion}") };
    let fake = Fake::start(move |request| match request.operation() {
        "DescribeSessions" => sessions.clone(),
        _ => answer(request, &tasks),
    })
    .await;
    let look = Arc::new(EcsLook::new(aws(&fake).await, search));
    lines(&in_time(Finder::new(bastion.to_owned(), look).walk(&cluster("").into())).await.steps)
}

fn sessions(owners: &[&str]) -> Answer {
    let sessions: Vec<_> = owners.iter().map(|owner| json!({ "SessionId": "a-1", "Owner": owner })).collect();
    Answer::json(200, &json!({ "Sessions": sessions }).to_string())
}

#[tokio::test]
async fn a_walk_tells_every_step_to_a_container_and_who_is_on_it() {
    let pending = with(task(3, 9_000), json!({ "lastStatus": "PENDING", "startedAt": null, "containers": [] }));
    let steps = walk("ecs:my_tools/web", vec![task(1, 1_000), task(2, 3_000), pending], sessions(&[])).await;
    let best = target(2, "agent");
    assert_eq!(
        steps,
        [
            "bastion-known: the service `web` in the ECS cluster `my_tools`".to_owned(),
            "ecs-tasks: 2 running, 1 starting".to_owned(),
            "ecs-exec: on for all 3 tasks".to_owned(),
            "ecs-container: `agent`, the only one".to_owned(),
            "bastion-online: runs in all 2 tasks".to_owned(),
            "agent-version: unknown".to_owned(),
            format!("bastion-chosen: `{best}`, in the newest of 2 tasks; sessions spread over all"),
            "bastion-sessions: 0 open; its agent takes 2 unless ECS has told it more, 20 by the published quota"
                .to_owned(),
        ]
    );
    let role = "arn:aws:sts::123456789012:assumed-role/Reader/";
    let owners = [format!("{role}ann"), format!("{role}ann"), "arn:aws:iam::123456789012:user/bob".to_owned()];
    let owners = owners.each_ref().map(String::as_str);
    let steps = walk("ecs:my_tools/web", vec![task(1, 1_000)], sessions(&owners)).await;
    assert!(
        steps[7].starts_with("bastion-sessions: doubtful: 3 open (2 of `ann`, 1 of `bob`); its agent"),
        "{steps:?}"
    );
    let denied = Answer::json_error(400, "AccessDeniedException", "no");
    let steps = walk("ecs:my_tools/web", vec![task(1, 1_000)], denied).await;
    assert_eq!(steps[7], "bastion-sessions: untold: `ssm:DescribeSessions` is optional and not allowed");
}

#[tokio::test]
async fn a_walk_ends_where_the_chain_is_broken() {
    let two = json!({ "containers": [container("agent", 1, "RUNNING"), container("sidecar", 1, "RUNNING")] });
    for (tasks, made, fault) in [
        (vec![], 1, "ecs-tasks: failed: the service `web` has no running task"),
        (vec![with(task(1, 1), json!({ "lastStatus": "PENDING" }))], 1, "ecs-tasks: failed: no container of"),
        (vec![with(task(1, 1), json!({ "enableExecuteCommand": false }))], 2, "ecs-exec: failed: no container of"),
        (vec![with(task(1, 1), two)], 3, "ecs-container: failed: no container of"),
        (
            vec![with(task(1, 1), json!({ "containers": [container("agent", 1, "STOPPED")] }))],
            4,
            "bastion-online: failed: no container of",
        ),
    ] {
        let steps = walk("ecs:my_tools/web", tasks, sessions(&[])).await;
        assert_eq!(steps.len(), 6, "nothing is chosen: {steps:?}");
        assert!(steps[made].starts_with(fault), "{steps:?}");
        let needed = fault.split(':').next().unwrap();
        let rest = steps[made + 1..].iter();
        assert!(rest.clone().all(|step| step.ends_with(&format!(": needs {needed}"))), "{steps:?}");
        assert!(steps[..made].iter().all(|step| !step.contains("failed")), "{steps:?}");
    }
    let steps = walk(&format!("ecs:my_tools/{}", id(9)), Vec::new(), sessions(&[])).await;
    assert!(steps[0].starts_with("bastion-known: failed: there is no task"), "{steps:?}");
}
