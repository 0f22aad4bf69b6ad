//! ECS: services, tasks and their containers, and tasks that are run to be bastions.
//!
//! Invariants:
//!
//! * No list goes on for ever, and no list of nothing is asked for: ECS would answer it with everything.
//! * Names, ids and ARNs are plain, as they go into targets, commands and policies; all other text is `PeerText`.
//! * A call that is answered well and yet did nothing is an error: the reasons among its failures are its answer.

use std::time::Duration;

use aws_sdk_ecs::types::{
    AssignPublicIp, AwsVpcConfiguration, Compatibility, ContainerDefinition, DesiredStatus, Failure, LaunchType,
    LinuxParameters, NetworkConfiguration, NetworkMode, OsFamily, RuntimePlatform, Tag, TaskDefinitionField, TaskField,
};
use tokio::time::timeout;

use super::{
    Aws,
    error::{AwsError, Call, Refusal, ServiceAnswer},
    values::is_plain,
};
use crate::util::peer_text::PeerText;

mod read;
mod types;

pub use types::{
    Architecture, EcsCluster, ExecAgent, NewContainer, NewTask, NewTaskDefinition, Tags, Task, TaskContainer,
    TaskDefinition, TaskFilter, TaskNetwork, Tasks,
};

const LIST_TASKS: &str = "ecs:ListTasks";
const DESCRIBE_TASKS: &str = "ecs:DescribeTasks";
const CREATE_CLUSTER: &str = "ecs:CreateCluster";
const DESCRIBE_TASK_DEFINITION: &str = "ecs:DescribeTaskDefinition";
const REGISTER_TASK_DEFINITION: &str = "ecs:RegisterTaskDefinition";
const RUN_TASK: &str = "ecs:RunTask";
const STOP_TASK: &str = "ecs:StopTask";

/// Tasks on a page of their list, and tasks that can be described at a time: as many as ECS allows.
const PAGE_LEN: i32 = 100;
const MAX_DESCRIBED: usize = 100;

/// Most pages that are asked for, and the longest that it may take. A service has 5000 tasks at most.
const MAX_PAGES: usize = 100;
const LIST_LIMIT: Duration = Duration::from_secs(120);

/// What ECS says, with the code for everything, of a family that has no task definition.
const NO_TASK_DEFINITION: &str = "Unable to describe task definition";

/// The reason by which ECS tells that there is no such thing, in an answer that is no error.
const MISSING: &str = "MISSING";

impl Aws {
    /// Lists the ARNs of tasks that are running or about to.
    ///
    /// # Errors
    /// [`Refusal::EcsCluster`] and [`Refusal::EcsService`] if there is no such one; else see [`AwsError`].
    pub async fn list_tasks(&self, cluster: &str, filter: &TaskFilter) -> Result<Vec<String>, AwsError> {
        let endless = || AwsError::malformed(LIST_TASKS, "list that comes to an end");
        timeout(LIST_LIMIT, self.all_tasks(cluster, filter))
            .await
            .unwrap_or_else(|_| Err(endless()))?
            .ok_or_else(endless)
    }

    async fn all_tasks(&self, cluster: &str, filter: &TaskFilter) -> Result<Option<Vec<String>>, AwsError> {
        let request = self.ecs().client.list_tasks().cluster(cluster).max_results(PAGE_LEN);
        let (request, resource) = match filter {
            TaskFilter::Service(name) => (request.service_name(name).desired_status(DesiredStatus::Running), name),
            TaskFilter::Family(name) => (request.family(name).desired_status(DesiredStatus::Running), name),
            // No other filter may stand beside this one.
            TaskFilter::StartedBy(text) => (request.started_by(text), text),
        };
        let call = self.of_ecs(LIST_TASKS, resource);
        let (mut arns, mut token) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let answer = request.clone().set_next_token(token.take()).send().await;
            let answer = answer.map_err(|error| self.failed(call, error))?;
            let page = answer.task_arns.unwrap_or_default();
            if !page.iter().all(|arn| is_arn(arn)) {
                return Err(AwsError::malformed(LIST_TASKS, "ARN that a task can have"));
            }
            arns.extend(page);
            token = answer.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                return Ok(Some(arns));
            }
        }
        Ok(None)
    }

    /// Describes tasks, by id or ARN. Those that are not there, or not yet, are no error.
    ///
    /// # Errors
    /// [`Refusal::EcsCluster`]; else see [`AwsError`].
    pub async fn describe_tasks(&self, cluster: &str, tasks: &[String]) -> Result<Tasks, AwsError> {
        let mut all = Tasks::default();
        for chunk in tasks.chunks(MAX_DESCRIBED) {
            let call = self.of_ecs(DESCRIBE_TASKS, chunk.first().map_or(cluster, String::as_str));
            let request = self.ecs().client.describe_tasks().cluster(cluster).set_tasks(Some(chunk.to_vec()));
            let answer = request.include(TaskField::Tags).send().await.map_err(|error| self.failed(call, error))?;
            for task in answer.tasks.unwrap_or_default() {
                all.tasks.push(read::task(task).ok_or_else(|| odd_task(DESCRIBE_TASKS))?);
            }
            for failure in answer.failures.unwrap_or_default() {
                match failure.arn.as_deref().filter(|arn| is_plain(arn)) {
                    Some(arn) if failure.reason.as_deref() == Some(MISSING) => all.missing.push(arn.to_owned()),
                    _ => return Err(refused(call, &[failure])),
                }
            }
        }
        Ok(all)
    }

    /// Makes an ECS cluster, or finds the one that is there.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn create_ecs_cluster(&self, name: &str) -> Result<EcsCluster, AwsError> {
        let call = self.of_ecs(CREATE_CLUSTER, name);
        let answer = self.ecs().client.create_cluster().cluster_name(name).send().await;
        let answer = answer.map_err(|error| self.failed(call, error))?;
        answer
            .cluster
            .and_then(read::cluster)
            .ok_or_else(|| AwsError::malformed(CREATE_CLUSTER, "description that an ECS cluster can have"))
    }

    /// Describes the newest task definition of a family, or one that is named by ARN or revision; `None` if there is none.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn task_definition(&self, family: &str) -> Result<Option<TaskDefinition>, AwsError> {
        let call = self.of_ecs(DESCRIBE_TASK_DEFINITION, family);
        let request = self.ecs().client.describe_task_definition().task_definition(family);
        match request.include(TaskDefinitionField::Tags).send().await.map_err(|error| self.failed(call, error)) {
            Ok(answer) => {
                let definition = answer.task_definition;
                let definition = definition.and_then(|definition| read::definition(definition, answer.tags));
                definition.map(Some).ok_or_else(|| odd_definition(DESCRIBE_TASK_DEFINITION))
            }
            Err(error) if is_no_task_definition(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Registers a task definition of one container for Fargate: the next revision of its family.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn register_task_definition(&self, new: &NewTaskDefinition) -> Result<TaskDefinition, AwsError> {
        let NewContainer { name, image, command, stop_timeout, cpu, memory } = &new.container;
        let container = ContainerDefinition::builder()
            .name(name)
            .image(image)
            .set_command(Some(command.clone()))
            .essential(true)
            // A shell as process 1 takes no notice of the signal to stop.
            .linux_parameters(LinuxParameters::builder().init_process_enabled(true).build())
            .set_stop_timeout(stop_timeout.and_then(|limit| i32::try_from(limit.as_secs()).ok()))
            .cpu(cpu.map_or(0, i32::from))
            .set_memory(memory.map(i32::from))
            .build();
        let platform = RuntimePlatform::builder()
            .cpu_architecture(new.architecture.of_sdk())
            .operating_system_family(OsFamily::Linux)
            .build();
        let request = self.ecs().client.register_task_definition().family(&new.family);
        let request = request
            .container_definitions(container)
            .requires_compatibilities(Compatibility::Fargate)
            .network_mode(NetworkMode::Awsvpc)
            .runtime_platform(platform)
            .cpu(new.cpu.to_string())
            .memory(new.memory.to_string())
            .set_task_role_arn(new.task_role.clone())
            .set_execution_role_arn(new.execution_role.clone())
            .set_tags(of_tags(&new.tags));
        let call = self.of_ecs(REGISTER_TASK_DEFINITION, &new.family);
        let answer = request.send().await.map_err(|error| self.failed(call, error))?;
        let definition = answer.task_definition.and_then(|definition| read::definition(definition, answer.tags));
        definition.ok_or_else(|| odd_definition(REGISTER_TASK_DEFINITION))
    }

    /// Runs one task on Fargate, with the agent for sessions in it. The same `client_token` makes the same task, not
    /// another one.
    ///
    /// # Errors
    /// [`Refusal::EcsCluster`]; [`AwsError::Refused`] also if ECS answers that there is no capacity, or whatever else it gives as
    /// its reason; else see [`AwsError`].
    pub async fn run_task(&self, new: &NewTask) -> Result<Task, AwsError> {
        let public_ip = if new.public_ip { AssignPublicIp::Enabled } else { AssignPublicIp::Disabled };
        let network = AwsVpcConfiguration::builder()
            .set_subnets(Some(new.subnets.clone()))
            .set_security_groups(Some(new.security_groups.clone()))
            .assign_public_ip(public_ip)
            .build();
        let call = self.of_ecs(RUN_TASK, &new.task_definition);
        let network = match network {
            Ok(network) => NetworkConfiguration::builder().awsvpc_configuration(network).build(),
            Err(error) => return Err(AwsError::Service { action: RUN_TASK, source: std::sync::Arc::new(error) }),
        };
        let request = self.ecs().client.run_task().cluster(&new.cluster).task_definition(&new.task_definition);
        let request = request
            .launch_type(LaunchType::Fargate)
            .count(1)
            .enable_execute_command(true)
            .enable_ecs_managed_tags(true)
            .network_configuration(network)
            .started_by(&new.started_by)
            .client_token(&new.client_token)
            .set_tags(of_tags(&new.tags));
        let answer = request.send().await.map_err(|error| self.failed(call, error))?;
        match answer.tasks.unwrap_or_default().into_iter().next() {
            Some(task) => read::task(task).ok_or_else(|| odd_task(RUN_TASK)),
            None => Err(refused(call, &answer.failures.unwrap_or_default())),
        }
    }

    /// Has a task stopped, and does not wait for that.
    ///
    /// # Errors
    /// See [`AwsError`].
    pub async fn stop_task(&self, cluster: &str, arn: &str, reason: &str) -> Result<(), AwsError> {
        let call = self.of_ecs(STOP_TASK, arn);
        let answer = self.ecs().client.stop_task().cluster(cluster).task(arn).reason(reason).send().await;
        answer.map(drop).map_err(|error| self.failed(call, error))
    }

    fn of_ecs<'a>(&'a self, action: &'static str, resource: &'a str) -> Call<'a> {
        Call { action, resource, region: self.region(), host: &self.ecs().host }
    }
}

fn is_arn(text: &str) -> bool {
    text.starts_with("arn:") && is_plain(text)
}

fn is_no_task_definition(error: &AwsError) -> bool {
    let says_so = |answer: &ServiceAnswer| {
        answer.code.as_deref() == Some("ClientException")
            && answer.message.as_deref().is_some_and(|message| message.starts_with(NO_TASK_DEFINITION))
    };
    matches!(error, AwsError::Refused { .. }) && error.answer().is_some_and(says_so)
}

/// Makes an error of the failures in an answer that is none by its status.
fn refused(call: Call<'_>, failures: &[Failure]) -> AwsError {
    let failure = failures.first();
    let reason = failure.and_then(|failure| failure.reason.as_deref()).unwrap_or("ECS gives no reason");
    let detail = failure.and_then(|failure| failure.detail.as_deref()).filter(|detail| !detail.is_empty());
    let message = detail.map_or_else(|| reason.to_owned(), |detail| format!("{reason}: {detail}"));
    let answer = ServiceAnswer { code: None, message: Some(PeerText::new(&message)), status: None, request_id: None };
    AwsError::Refused {
        action: call.action,
        resource: call.resource.to_owned(),
        refusal: Refusal::Request,
        source: std::sync::Arc::new(answer),
    }
}

fn of_tags(tags: &[(String, String)]) -> Option<Vec<Tag>> {
    let tags: Vec<_> = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
    (!tags.is_empty()).then_some(tags)
}

fn odd_task(action: &'static str) -> AwsError {
    AwsError::malformed(action, "description that a task can have")
}

fn odd_definition(action: &'static str) -> AwsError {
    AwsError::malformed(action, "description that a task definition can have")
}

#[cfg(test)]
mod tests;
