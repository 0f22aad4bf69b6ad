//! Containers of ECS: the running tasks of a service, or one task.
//!
//! Tasks that take sessions have ECS Exec on and its agent running. The newest come first: in a deployment the old ones go.
//! (ECS developer guide, "Monitor Amazon ECS containers with ECS Exec"; botocore's model of `DescribeTasks`.)

mod steps;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;

use super::{Candidate, Look, Sight};
use crate::{
    aws::{
        Aws, AwsError, advice,
        ecs::{Task, TaskContainer, TaskFilter, Tasks},
        error::Refusal,
    },
    bastion::{EcsSearch, EcsWhat, Target},
    clock,
    fault::{Class, Fault},
    remote::Remote,
    route::{
        ssm::open_sessions::{self, OpenSessions},
        step::StepName,
    },
    util::quote::command,
};

/// How long after its start a task may not take sessions yet.
const FRESH: Duration = Duration::from_secs(60);

/// Most tasks whose state is told in an error.
const MAX_TOLD: usize = 5;

/// Looks for containers of ECS.
#[derive(Debug)]
pub(in crate::route::ssm) struct EcsLook {
    aws: Aws,
    search: EcsSearch,
}

/// Why no container takes sessions.
#[derive(Debug, thiserror::Error)]
pub(in crate::route::ssm) enum NoContainer {
    #[error("there is no ECS cluster `{cluster}` in {region} of this account")]
    Cluster { cluster: String, region: String },
    #[error("there is no service `{name}` in the ECS cluster `{cluster}`")]
    Service { cluster: String, name: String },
    #[error("there is no task `{task}` in the ECS cluster `{cluster}`, or it has stopped more than an hour ago")]
    Task { cluster: String, task: String },
    #[error("the service `{name}` has no running task")]
    NoTasks { name: String },
    #[error("`{arn}` is in another region or account: the cluster is in {region} of account {account}")]
    Elsewhere { arn: String, region: String, account: String },
    #[error("no container of `{asked}` takes sessions: {why}")]
    Unusable { asked: String, why: String },
}

/// Why a task takes no sessions. What is worst to a human comes last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lack {
    /// It is stopping or has stopped.
    Stopped(String),
    /// It has not come up yet.
    Starting(String),
    /// The agent in it has not come up yet.
    AgentPending,
    /// The agent in it does not run.
    AgentStopped(String),
    /// ECS Exec is not on.
    NoExec,
    /// There are several containers, and none was named.
    Several(Vec<String>),
    /// There is no container of this name.
    NoContainer(Vec<String>),
}

impl EcsLook {
    pub(in crate::route::ssm) fn new(aws: Aws, search: EcsSearch) -> Self {
        Self { aws, search }
    }

    async fn find(&self, to: &Remote, in_use: &[Target]) -> Result<Sight, Fault> {
        let EcsSearch { cluster, what, of, .. } = &self.search;
        if let Some([_, region, account]) = of
            && (region != self.aws.region() || (*account != to.account() && !to.account().is_empty()))
        {
            let (arn, region, account) =
                (self.search.to_string(), self.aws.region().to_owned(), to.account().to_owned());
            let hint = "use credentials and `--region` of the ARN's account and region, or name another `--bastion`"
                .to_owned();
            return Err(Fault::new(Class::Refused, NoContainer::Elsewhere { arn, region, account }).with_hints([hint]));
        }
        let mut ids = match what {
            EcsWhat::Service(name) => self
                .aws
                .list_tasks(cluster, &TaskFilter::Service(name.clone()))
                .await
                .map_err(|error| self.fault(error))?,
            EcsWhat::Task(id) => vec![id.clone()],
        };
        let used: Vec<(&Target, &str)> =
            in_use.iter().filter_map(|target| Some((target, target.ecs_task()?.1))).collect();
        let listed = match what {
            EcsWhat::Service(_) => ids.clone(),
            EcsWhat::Task(_) => Vec::new(),
        };
        let is_listed = |id: &str| listed.iter().any(|arn| id_of(arn) == id);
        ids.extend(used.iter().map(|(_, id)| (*id).to_owned()).filter(|id| !is_listed(id)));
        let found = match ids.is_empty() {
            true => Tasks::default(),
            false => self.aws.describe_tasks(cluster, &ids).await.map_err(|error| self.fault(error))?,
        };
        let now = SystemTime::UNIX_EPOCH + clock::wall();
        let mut tasks: Vec<&Task> = found.tasks.iter().collect();
        tasks.sort_by_key(|task| std::cmp::Reverse(task.started_at.or(task.created_at)));
        let mut sight = Sight::default();
        let mut containers = Vec::new();
        let mut lacks = Vec::new();
        for (target, id) in used {
            match tasks.iter().find(|task| id_of(&task.arn) == id) {
                Some(task) if task.last_status == "STOPPED" => sight.gone.push(target.clone()),
                Some(task) if task.desired_status == "STOPPED" => sight.leaving.push(target.clone()),
                Some(_) => {}
                // One that is listed and cannot be described was made a moment ago.
                None if is_listed(id) => {}
                None => sight.gone.push(target.clone()),
            }
        }
        for task in &tasks {
            match container(task, self.search.container.as_deref()) {
                Ok((container, runtime_id)) => {
                    let fresh = task.started_at.is_some_and(|at| now.duration_since(at).is_ok_and(|age| age < FRESH));
                    let target = Target::of_container(id_of(&task.cluster_arn), id_of(&task.arn), runtime_id);
                    // What ECS says of it is plain: see `aws::ecs`.
                    let Some(target) = target else { continue };
                    tracing::trace!(%target, container = container.name, "a container takes sessions");
                    sight.usable.push(Candidate { target, fresh, capped: true });
                    containers.push((*task, container));
                }
                Err(lack) => {
                    sight.changing |= matches!(lack, Lack::Starting(_) | Lack::AgentPending);
                    lacks.push((id_of(&task.arn).to_owned(), lack));
                }
            }
        }
        sight.changing |= !sight.leaving.is_empty();
        sight.found = sight.usable.len();
        sight.told = self.told(&tasks, &containers, lacks.iter().map(|(_, lack)| lack).max());
        sight.why = steps::why(&containers);
        sight.nothing = sight.usable.is_empty().then(|| Arc::new(self.none(lacks)));
        Ok(sight)
    }

    fn fault(&self, error: AwsError) -> Fault {
        let EcsSearch { cluster, what, .. } = &self.search;
        let region = self.aws.region().to_owned();
        let refusal = if let AwsError::Refused { refusal, .. } = &error { Some(*refusal) } else { None };
        match refusal {
            Some(Refusal::EcsCluster) => {
                let hints = [
                    command!("`aws ecs list-clusters --region {}` lists them", region),
                    "names of ECS are case-sensitive".to_owned(),
                ];
                Fault::new(Class::Gone, NoContainer::Cluster { cluster: cluster.clone(), region }).with_hints(hints)
            }
            Some(Refusal::EcsService) => {
                let hints = [command!("`aws ecs list-services --cluster {} --region {}` lists them", cluster, region)];
                let name = what.name().to_owned();
                Fault::new(Class::Gone, NoContainer::Service { cluster: cluster.clone(), name }).with_hints(hints)
            }
            _ => advice::fault(error),
        }
    }

    /// Says why there is nothing to connect to.
    fn none(&self, lacks: Vec<(String, Lack)>) -> Fault {
        let EcsSearch { cluster, what, .. } = &self.search;
        let region = self.aws.region();
        if lacks.is_empty() {
            return match what {
                EcsWhat::Service(name) => {
                    let hint = command!(
                        "`aws ecs update-service --cluster {} --service {} --desired-count 1 --region {}` starts one; events of the service tell why none starts: `aws ecs describe-services --cluster {} --services {} --region {}`",
                        cluster,
                        name,
                        region,
                        cluster,
                        name,
                        region
                    );
                    Fault::new(Class::Away, NoContainer::NoTasks { name: name.clone() }).with_hints([hint])
                }
                EcsWhat::Task(task) => {
                    let hint = command!(
                        "`aws ecs list-tasks --cluster {} --region {}` lists those that run; a service keeps its name: `--bastion ecs:{}/SERVICE`",
                        cluster,
                        region,
                        cluster
                    );
                    Fault::new(Class::Gone, NoContainer::Task { cluster: cluster.clone(), task: task.clone() })
                        .with_hints([hint])
                }
            };
        }
        let more = lacks.len().saturating_sub(MAX_TOLD);
        let told: Vec<String> = lacks.iter().take(MAX_TOLD).map(|(id, lack)| format!("task {id} {lack}")).collect();
        let and = if more > 0 { format!(", and {more} others") } else { String::new() };
        let why = format!("{}{and}", told.join(", "));
        let worst = lacks.iter().max_by_key(|(_, lack)| lack);
        let hints = worst.map(|(id, lack)| self.hint(id, lack)).unwrap_or_default();
        let class = match worst {
            Some((_, Lack::Several(_) | Lack::NoContainer(_))) => Class::Refused,
            Some(_) | None => Class::Away,
        };
        Fault::new(class, NoContainer::Unusable { asked: self.search.to_string(), why }).with_hints(hints)
    }

    fn hint(&self, id: &str, lack: &Lack) -> Vec<String> {
        let EcsSearch { cluster, what, .. } = &self.search;
        let region = self.aws.region();
        vec![match lack {
            Lack::Stopped(_) | Lack::Starting(_) | Lack::AgentPending => {
                command!("`aws ecs describe-tasks --cluster {} --tasks {} --region {}` shows how far it is", cluster, id, region)
            }
            Lack::AgentStopped(_) => {
                "the task role has to allow `ssmmessages:CreateControlChannel`, `ssmmessages:CreateDataChannel`, \
                 `ssmmessages:OpenControlChannel` and `ssmmessages:OpenDataChannel`, the task has to reach `ssmmessages` on port 443, \
                 and its root file system must not be read-only"
                    .to_owned()
            }
            Lack::NoExec => match what {
                EcsWhat::Service(name) => command!("ECS Exec cannot be switched on for a task that runs: `aws ecs update-service --cluster {} --service {} --enable-execute-command --force-new-deployment --region {}`", cluster, name, region),
                EcsWhat::Task(_) => "ECS Exec cannot be switched on for a task that runs: start another with `--enable-execute-command`".to_owned(),
            },
            Lack::Several(names) | Lack::NoContainer(names) => {
                let name = names.first().map_or("CONTAINER", String::as_str);
                format!("name one of its containers ({}): `--bastion ecs:{cluster}/{}/{name}`", names.join(", "), what.name())
            }
        }]
    }
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stopped(reason) if reason.is_empty() => f.write_str("has stopped"),
            Self::Stopped(reason) => write!(f, "has stopped: {reason}"),
            Self::Starting(status) => write!(f, "is {status}"),
            Self::AgentPending => f.write_str("waits for its agent"),
            Self::AgentStopped(reason) if reason.is_empty() => f.write_str("has no running agent for sessions"),
            Self::AgentStopped(reason) => write!(f, "has no running agent for sessions: {reason}"),
            Self::NoExec => f.write_str("was started without ECS Exec"),
            Self::Several(names) => write!(f, "has several containers ({})", names.join(", ")),
            Self::NoContainer(names) => write!(f, "has no such container, only {}", names.join(", ")),
        }
    }
}

impl Look for EcsLook {
    fn finds_capped(&self) -> bool {
        true
    }

    fn look<'a>(&'a self, to: &'a Remote, in_use: &'a [Target]) -> BoxFuture<'a, Result<Sight, Fault>> {
        Box::pin(self.find(to, in_use))
    }

    fn plan(&self) -> Vec<(StepName, String)> {
        self.steps()
    }

    fn open_sessions<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Option<OpenSessions>, AwsError>> {
        Box::pin(async { open_sessions::on(&self.aws, target).await.map(Some) })
    }
}

/// Returns the container of a task that takes sessions: the one that is named, else the only one that does.
pub(super) fn container<'a>(task: &'a Task, named: Option<&str>) -> Result<(&'a TaskContainer, &'a str), Lack> {
    if task.desired_status == "STOPPED" || task.last_status == "STOPPED" {
        let reason = task.stopped_reason.as_ref().map(ToString::to_string).unwrap_or_default();
        return Err(Lack::Stopped(reason));
    }
    if !task.exec_enabled {
        return Err(Lack::NoExec);
    }
    let names = || task.containers.iter().map(|container| container.name.clone()).collect();
    let named: Vec<&TaskContainer> = match named {
        Some(name) => task.containers.iter().filter(|container| container.name == name).collect(),
        None => task.containers.iter().collect(),
    };
    if named.is_empty() {
        return Err(Lack::NoContainer(names()));
    }
    if task.last_status != "RUNNING" {
        return Err(Lack::Starting(task.last_status.to_string()));
    }
    let state = |container: &TaskContainer| container.agent.as_ref().map(|agent| agent.status.to_string());
    let is_running =
        |container: &&&TaskContainer| container.runtime_id.is_some() && state(container).as_deref() == Some("RUNNING");
    let mut running = named.iter().filter(is_running);
    match (running.next(), running.next()) {
        (Some(container), None) => Ok((container, container.runtime_id.as_deref().unwrap_or_default())),
        (Some(_), Some(_)) => Err(Lack::Several(names())),
        (None, _) => Err(match named.iter().find(|container| state(container).as_deref() == Some("STOPPED")) {
            Some(stopped) => {
                let reason = stopped.agent.as_ref().and_then(|agent| agent.reason.as_ref());
                Lack::AgentStopped(reason.map(ToString::to_string).unwrap_or_default())
            }
            None => Lack::AgentPending,
        }),
    }
}

/// The last part of an ARN: the id of a task, the name of a cluster.
pub(super) fn id_of(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}

#[cfg(test)]
mod tests;
