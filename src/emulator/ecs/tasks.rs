//! `ListTasks`, `DescribeTasks`, `StopTask` and `TagResource`.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    super::{
        api::{ApiError, Call},
        world::{World, lock},
    },
    Store, cluster, invalid, read_tags,
    task::{Status, StopCause, Task},
    text, texts, wants_tags,
};

/// Most tasks in one question, and most in one answer.
const MAX_TASKS: usize = 100;

/// What is known of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskInfo {
    pub arn: String,
    /// Its last status, `RUNNING` and the like.
    pub status: &'static str,
    /// Whether it is to stop, or has.
    pub stopping: bool,
    /// `service:…` or `family:…`.
    pub group: String,
    /// Who started it, as they said.
    pub started_by: String,
    /// What Systems Manager calls its containers.
    pub targets: Vec<String>,
    /// Why it stops, as a code.
    pub stop_code: Option<String>,
    /// Why it stops, in words.
    pub stopped_reason: Option<String>,
    pub tags: Vec<(String, String)>,
}

/// All tasks that are told of, oldest first.
pub(in crate::emulator) fn infos(world: &World) -> Vec<TaskInfo> {
    let mut store = lock(&world.ecs.store);
    forget_old(&mut store, world);
    let mut tasks: Vec<&Task> = store.tasks.values().collect();
    tasks.sort_by_key(|task| (task.created, task.id.clone()));
    let info = |task: &Task| TaskInfo {
        arn: task.arn(),
        status: task.status.name(),
        stopping: task.wants_to_stop(),
        group: task.making.group.clone(),
        started_by: task.making.started_by.clone(),
        targets: task.targets().collect(),
        stop_code: task.cause.as_ref().map(|cause| cause.code.clone()),
        stopped_reason: task.cause.as_ref().map(|cause| cause.reason.clone()),
        tags: task.making.tags.clone().into_iter().collect(),
    };
    tasks.into_iter().map(info).collect()
}

/// Whether a security group admits a target, which may be no task at all.
pub(in crate::emulator) fn is_admitted(world: &World, target: &str, group: &str) -> bool {
    let id = target.strip_prefix("ecs:").and_then(|target| target.split('_').nth(1));
    let groups = id.and_then(|id| world.ecs.with(id, |task| task.making.security_groups.clone()));
    groups.is_none_or(|groups| groups.is_empty() || groups.iter().any(|known| known == group))
}

/// Asks a task to stop, by its ARN or id; returns whether there is one.
pub(in crate::emulator) fn stop_one(world: &World, task: &str, code: &str, reason: &str) -> bool {
    let wall = world.clock.wall();
    let id = task.rsplit('/').next().unwrap_or_default();
    let found = world.ecs.with(id, |task| task.ask_to_stop(StopCause::new(code, reason), wall)).is_some();
    world.ecs.changed();
    world.journal.touch();
    found
}

/// Makes a task older, by its ARN or id; returns whether there is one.
pub(in crate::emulator) fn age(world: &World, task: &str, by: Duration) -> bool {
    let id = task.rsplit('/').next().unwrap_or_default();
    let found = world.ecs.with(id, |task| task.grow_older(by)).is_some();
    world.ecs.changed();
    world.journal.touch();
    found
}

/// Asks all tasks to stop.
pub(in crate::emulator) fn stop_all(world: &Arc<World>, code: &str, reason: &str) {
    let tasks: Vec<String> = lock(&world.ecs.store).tasks.keys().cloned().collect();
    for task in tasks {
        stop_one(world, &task, code, reason);
    }
}

/// Forgets tasks that have been stopped for long enough.
fn forget_old(store: &mut Store, world: &World) {
    let now = world.clock.instant();
    store.tasks.retain(|_, task| task.forgotten_at.is_none_or(|at| now < at));
}

/// Whether those who ask see a task.
fn is_seen(task: &Task, call: &Call<'_>) -> bool {
    task.making.region == call.region && task.seen_at <= call.world.clock.instant()
}

pub(super) fn list(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    call.authorize("*")?;
    let cluster = cluster(call, input)?;
    let (service, family) = (text(input, "serviceName"), text(input, "family"));
    let (started_by, launch_type) = (text(input, "startedBy"), text(input, "launchType"));
    let stopped = match text(input, "desiredStatus") {
        None | Some("RUNNING") => false,
        Some("STOPPED") => true,
        // It is none that a task can have.
        Some("PENDING") => return Ok(json!({ "taskArns": [] })),
        Some(other) => return Err(invalid(format!("Invalid desiredStatus: {other}"))),
    };
    if service.is_some() && family.is_some() {
        return Err(invalid("You cannot specify both a service name and a family."));
    }
    if started_by.is_some() && (stopped || service.or(family).or(launch_type).is_some()) {
        return Err(invalid("When startedBy is specified as a filter, it must be the only filter."));
    }
    let limit = match input.get("maxResults").filter(|value| !value.is_null()) {
        None => MAX_TASKS,
        Some(value) => match value.as_u64().and_then(|limit| usize::try_from(limit).ok()) {
            Some(limit @ 1..=MAX_TASKS) => limit,
            Some(_) | None => return Err(invalid("maxResults must be between 1 and 100.")),
        },
    };
    let first = match text(input, "nextToken") {
        None => 0,
        Some(token) => token
            .strip_prefix("tasks-")
            .and_then(|first| first.parse::<usize>().ok())
            .ok_or_else(|| invalid("Invalid token."))?,
    };
    let mut store = lock(&call.world.ecs.store);
    forget_old(&mut store, call.world);
    let service = service.map(|name| name.rsplit('/').next().unwrap_or_default());
    if let Some(name) = service
        && !store.services.values().any(|known| known.config.name == name && known.config.cluster == cluster)
    {
        return Err(ApiError::new(400, "ServiceNotFoundException", "Service not found."));
    }
    let all: Vec<String> = store
        .tasks
        .values()
        .filter(|task| task.making.cluster == cluster && is_seen(task, call))
        .filter(|task| (task.wants_to_stop() || task.status == Status::Stopped) == stopped)
        .filter(|task| service.is_none_or(|name| task.making.group == format!("service:{name}")))
        .filter(|task| family.is_none_or(|family| task.making.definition.family == family))
        .filter(|task| started_by.is_none_or(|by| task.making.started_by == by))
        .filter(|task| launch_type.is_none_or(|kind| task.making.launch_type.name() == kind))
        .map(Task::arn)
        .collect();
    let limit = limit.min(call.world.config.ecs.page_len.max(1));
    let mut output = json!({ "taskArns": all.iter().skip(first).take(limit).collect::<Vec<_>>() });
    if all.len() > first + limit {
        output["nextToken"] = format!("tasks-{}", first + limit).into();
    }
    Ok(output)
}

/// Reads a task's id, or its ARN, which names its cluster.
fn task_id<'a>(task: &'a str, cluster: &str) -> Result<&'a str, ApiError> {
    let id = match task.rsplit_once(":task/") {
        None => task,
        Some((_, path)) => match path.split_once('/') {
            // An ARN of the old form.
            None => path,
            Some((named, id)) if named == cluster => id,
            Some((named, _)) => {
                return Err(invalid(format!(
                    "Invalid identifier: Identifier is for cluster {named}. Your cluster is {cluster}"
                )));
            }
        },
    };
    if id.len() == 32 || id.len() == 36 { Ok(id) } else { Err(invalid("taskId length should be one of [32,36]")) }
}

fn task_arn(call: &Call<'_>, cluster: &str, id: &str) -> String {
    format!("arn:aws:ecs:{}:{}:task/{cluster}/{id}", call.region, call.caller.account)
}

pub(super) fn describe(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let asked = texts(input, "tasks");
    let resource = asked.first().map_or("*".to_owned(), |task| task_arn(call, "*", task));
    call.authorize(&resource)?;
    let cluster = cluster(call, input)?;
    if asked.is_empty() {
        return Err(invalid("Tasks cannot be empty."));
    }
    if asked.len() > MAX_TASKS {
        return Err(invalid("Tasks cannot have more than 100 entries."));
    }
    let no_exec = call.world.settings().tasks.no_exec;
    let mut store = lock(&call.world.ecs.store);
    forget_old(&mut store, call.world);
    let (mut tasks, mut failures) = (Vec::new(), Vec::new());
    for task in asked {
        let id = task_id(task, &cluster)?;
        match store.tasks.get(id).filter(|task| task.making.cluster == cluster && is_seen(task, call)) {
            Some(task) => tasks.push(task.description(wants_tags(input), no_exec)),
            None => failures.push(json!({"arn": task_arn(call, &cluster, id), "reason": "MISSING"})),
        }
    }
    Ok(json!({"tasks": tasks, "failures": failures}))
}

pub(super) fn stop(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let task = text(input, "task").ok_or_else(|| invalid("Task cannot be empty."))?;
    call.authorize(task)?;
    let cluster = cluster(call, input)?;
    let id = task_id(task, &cluster)?;
    let reason = text(input, "reason").unwrap_or("Task stopped by user");
    if reason.len() > 1024 {
        return Err(invalid("Reason cannot be longer than 1024 characters."));
    }
    let not_found = || invalid("The referenced task was not found.");
    // It is the service that finds it, which sees it at once.
    let known = call.world.ecs.with(id, |task| task.making.cluster == cluster && task.making.region == call.region);
    known.filter(|known| *known).ok_or_else(not_found)?;
    stop_one(call.world, id, "UserInitiated", reason);
    let described = call.world.ecs.with(id, |task| {
        task.making.tags.clear();
        task.description(false, false)
    });
    Ok(json!({ "task": described.ok_or_else(not_found)? }))
}

pub(super) fn tag(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let resource = text(input, "resourceArn").ok_or_else(|| invalid("resourceArn cannot be empty."))?;
    call.authorize(resource)?;
    let tags = read_tags(call, input, resource)?;
    let id = resource.rsplit('/').next().unwrap_or_default();
    let tagged = call.world.ecs.with(id, |task| task.making.tags.extend(tags));
    tagged.map(|()| json!({})).ok_or_else(|| {
        ApiError::new(400, "ResourceNotFoundException", "The specified resource was not found or is no task.")
    })
}
