//! Looks at what a task on Fargate takes, and at the one of a manager if there is one: nothing is started, taken over or stopped.

use futures_util::future::BoxFuture;

use super::{
    super::{Candidate, Look, Sight, ecs},
    Maker,
    failure::{self, About, NoTask},
    network::Network,
    task::{self, FAMILY},
};
use crate::{
    aws::{
        Aws, AwsError, advice,
        ecs::{Task, TaskDefinition, TaskFilter},
        error::Refusal,
    },
    bastion::{Fargate, Target},
    cluster::Vpc,
    fault::{Class, Fault},
    remote::Remote,
    route::{
        ssm::open_sessions::{self, OpenSessions},
        step::{StepName, Told},
    },
};

/// There is something to run.
const DEFINITION: StepName = StepName { id: "fargate-definition", title: "task definition" };

/// Looks at tasks on Fargate.
#[derive(Debug)]
pub(in crate::route::ssm) struct Survey {
    aws: Aws,
    fargate: Fargate,
    /// What the tasks of a manager were started with; `None`: there is no manager.
    started_by: Option<String>,
}

impl Survey {
    pub(in crate::route::ssm) fn new(aws: Aws, fargate: Fargate, started_by: Option<String>) -> Self {
        Self { aws, fargate, started_by }
    }

    async fn find(&self, to: &Remote) -> Result<Sight, Fault> {
        let Some(vpc) = to.vpc() else { return Err(failure::no_vpc(to)) };
        let role = task::role_arn(&self.fargate.options.task_role, self.aws.region(), to.account());
        let about = About { fargate: &self.fargate, role: &role, region: self.aws.region(), vpc: &vpc.id };
        let mut sight = Sight::default();
        match self.definition(about).await {
            Ok(text) => sight.told.push(Told::Passed(text)),
            Err(fault) => {
                sight.nothing = Some(fault.into());
                return Ok(sight);
            }
        }
        let found = match self.task(vpc).await {
            Ok(found) => found,
            Err(AwsError::Refused { refusal: Refusal::EcsCluster, .. }) if about.makes_cluster() => None,
            Err(error @ AwsError::Refused { refusal: Refusal::EcsCluster, .. }) => {
                sight.nothing = Some(failure::not_run(error, about).0.into());
                return Ok(sight);
            }
            Err(error) => {
                sight.nothing = Some(advice::fault(error).into());
                return Ok(sight);
            }
        };
        let Some(task) = found else {
            sight.told.push(Told::Doubtful {
                said: format!("no task is running in {} at present", vpc.id),
                means: "`autoheal-pa up` starts one; only then can be tried what is behind it".to_owned(),
                hints: Vec::new(),
            });
            return Ok(sight);
        };
        let id = ecs::id_of(&task.arn);
        match ecs::container(&task, None) {
            Ok((_, runtime_id)) => {
                let target = Target::of_container(ecs::id_of(&task.cluster_arn), id, runtime_id);
                sight.usable.extend(target.map(|target| Candidate { target, fresh: false, capped: true }));
                sight.found = sight.usable.len();
                sight.told.push(Told::Passed(format!("the task {id} is running in {}", vpc.id)));
            }
            Err(lack @ (ecs::Lack::Starting(_) | ecs::Lack::AgentPending)) => {
                let error = NoTask::NoAgent { task: id.to_owned(), why: format!("it {lack}") };
                sight.nothing = Some(Fault::new(Class::Away, error).into());
            }
            Err(lack) => sight.nothing = Some(failure::no_agent(id, &format!("it {lack}"), about).into()),
        }
        Ok(sight)
    }

    /// Tells what would be run.
    async fn definition(&self, about: About<'_>) -> Result<String, Fault> {
        let named = self.fargate.options.task_definition.as_deref();
        let known = self.aws.task_definition(named.unwrap_or(FAMILY)).await.map_err(advice::fault)?;
        match (named, known) {
            (Some(named), None) => Err(failure::no_definition(named, about)),
            (Some(_), Some(TaskDefinition { arn, task_role: None, .. })) => Err(failure::no_role(&arn, about)),
            (Some(_), Some(TaskDefinition { arn, task_role: Some(role), .. })) => {
                Ok(format!("`{}` with the role `{role}`", ecs::id_of(&arn)))
            }
            (None, None) => Ok(format!("there is none of the family `{FAMILY}` yet: `up` registers one")),
            (None, Some(known)) if Maker::is_current(&known, &task::definition(&self.fargate.options, about.role)) => {
                Ok(format!("`{}`", ecs::id_of(&known.arn)))
            }
            (None, Some(known)) => Ok(format!("`{}` is another: `up` registers the next", ecs::id_of(&known.arn))),
        }
    }

    /// Finds the newest task of the manager that serves a network.
    async fn task(&self, vpc: &Vpc) -> Result<Option<Task>, AwsError> {
        let Some(started_by) = &self.started_by else { return Ok(None) };
        let cluster = &self.fargate.cluster;
        let arns = self.aws.list_tasks(cluster, &TaskFilter::StartedBy(started_by.clone())).await?;
        if arns.is_empty() {
            return Ok(None);
        }
        let tasks = self.aws.describe_tasks(cluster, &arns).await?.tasks;
        let network = Network::of(&self.fargate.options, vpc);
        let of_network =
            tasks.into_iter().filter(|task| network.is_served_by(task) && task.desired_status != "STOPPED");
        Ok(of_network.max_by_key(|task| task.created_at))
    }
}

impl Look for Survey {
    fn look<'a>(&'a self, to: &'a Remote, _in_use: &'a [Target]) -> BoxFuture<'a, Result<Sight, Fault>> {
        Box::pin(self.find(to))
    }

    fn plan(&self) -> Vec<(StepName, String)> {
        vec![
            (DEFINITION, "to find the task definition that would be run".to_owned()),
            (StepName::KNOWN, "to find the task that the manager has started".to_owned()),
        ]
    }

    fn open_sessions<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Option<OpenSessions>, AwsError>> {
        Box::pin(async { open_sessions::on(&self.aws, target).await.map(Some) })
    }

    fn place(&self, to: &Remote) -> String {
        to.vpc().map(|vpc| Network::of(&self.fargate.options, vpc).key()).unwrap_or_default()
    }
}
