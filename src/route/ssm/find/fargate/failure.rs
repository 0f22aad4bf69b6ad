//! Why there is no task: a table of what ECS says, with what is behind it and what to do.
//!
//! ECS rewords its texts, so only their beginning is gone by, and words that have lasted for years. (ECS developer guide, "Stopped
//! task error messages" and "API failure reasons"; what is reported of `RunTask` in issues.)

use super::task::FAMILY;
use crate::{
    aws::{AwsError, advice, ecs::Task, error::Refusal},
    bastion::Fargate,
    fault::{Class, Fault},
    remote::Remote,
    util::{peer_text::PeerText, quote::command},
};

/// What may help before a human does anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// To try again a little later, in another subnet.
    OtherSubnet,
    /// To try again a little later.
    Later,
    /// Nothing.
    None,
}

/// What a task was to be, for words.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) fargate: &'a Fargate,
    /// The ARN of the role.
    pub(super) role: &'a str,
    pub(super) region: &'a str,
    pub(super) vpc: &'a str,
}

/// What is behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Capacity,
    LinkedRole,
    RoleTrust,
    NoRole,
    Quota,
    RegistryUnreached,
    ImageMissing,
    ImageLimited,
    ImageOther,
    RegistryAuth,
    Interface,
    SubnetFull,
    NoShell,
    StartTimeout,
    Memory,
}

struct Row {
    /// What the text begins with.
    begins: &'static str,
    /// One of these is somewhere in it; empty: whatever is.
    has: &'static [&'static str],
    cause: Cause,
}

const fn row(begins: &'static str, has: &'static [&'static str], cause: Cause) -> Row {
    Row { begins, has, cause }
}

/// What `RunTask` says.
const RUN: [Row; 6] = [
    row("Capacity is unavailable at this time", &[], Cause::Capacity),
    row("Unable to assume the service linked role", &[], Cause::LinkedRole),
    row("ECS was unable to assume the role", &[], Cause::RoleTrust),
    row("The execute command failed because a valid task role is not being used", &[], Cause::NoRole),
    row("You've reached the limit on the number of", &[], Cause::Quota),
    row("You’ve reached the limit on the number of", &[], Cause::Quota),
];

/// Why a task has stopped before it ran.
const START: [Row; 10] = [
    row("CannotPullContainerError", &["toomanyrequests"], Cause::ImageLimited),
    row("CannotPullContainerError", &["i/o timeout", "context deadline", "request canceled"], Cause::RegistryUnreached),
    row("CannotPullContainerError", &["not found", "manifest unknown", "no match for platform"], Cause::ImageMissing),
    row("CannotPullContainerError", &[], Cause::ImageOther),
    row("ResourceInitializationError: unable to pull secrets or registry auth", &[], Cause::RegistryAuth),
    row("Timeout waiting for network interface provisioning", &[], Cause::Interface),
    row("Unexpected EC2 error", &["InsufficientFreeAddressesInSubnet"], Cause::SubnetFull),
    row("CannotStartContainerError", &[], Cause::NoShell),
    row("ContainerRuntimeTimeoutError", &[], Cause::StartTimeout),
    row("OutOfMemoryError", &[], Cause::Memory),
];

fn cause(table: &[Row], text: &str) -> Option<Cause> {
    let is_it = |row: &&Row| {
        text.starts_with(row.begins) && (row.has.is_empty() || row.has.iter().any(|words| text.contains(words)))
    };
    table.iter().find(is_it).map(|row| row.cause)
}

/// Why no task was started, or why the one that was does not serve.
#[derive(Debug, thiserror::Error)]
pub(in crate::route::ssm) enum NoTask {
    #[error("no Fargate task was started in {vpc}: {why}")]
    NotRun {
        vpc: String,
        why: String,
        #[source]
        source: AwsError,
    },
    #[error("the Fargate task {task} did not start: {why}")]
    NotStarted { task: String, why: String },
    #[error("the Fargate task {task} is of no use: {why}")]
    NoAgent { task: String, why: String },
    #[error("there is no ECS cluster `{cluster}` in {region} of this account")]
    NoCluster { cluster: String, region: String },
    #[error("no Fargate task of this manager runs in {vpc}")]
    None { vpc: String },
    #[error("{told_by} does not tell which VPC `{name}` is in, so no task can be started there")]
    NoVpc { name: String, told_by: &'static str },
    #[error(
        "a task is started in the network of a cluster, and `{name}` has no clusters beside it that are all in one"
    )]
    NoVpcOfHost { name: String },
    #[error(
        "{count} Fargate tasks were stopped within the hour, the last one as {why}, so no other is started for now"
    )]
    TooMany { count: usize, why: String },
    #[error("there is no task definition `{0}`")]
    NoDefinition(String),
    #[error("the task definition `{0}` has no task role, which ECS Exec needs")]
    NoRole(String),
}

impl About<'_> {
    /// Whether the ECS cluster is made where there is none: with a task definition of the user's nothing is made but the task.
    pub(super) fn makes_cluster(&self) -> bool {
        self.fargate.options.task_definition.is_none()
    }
}

/// Says that it is not known where a cluster or host is.
pub(super) fn no_vpc(to: &Remote) -> Fault {
    let hint = "name a bastion of another kind".to_owned();
    let name = to.name().to_owned();
    let error = match to.cluster() {
        Some(cluster) => NoTask::NoVpc { name, told_by: cluster.told_by() },
        None => NoTask::NoVpcOfHost { name },
    };
    Fault::new(Class::Refused, error).with_hints([hint])
}

/// Says that a task definition of the user's is not there.
pub(super) fn no_definition(name: &str, about: About<'_>) -> Fault {
    Fault::new(Class::Gone, NoTask::NoDefinition(name.to_owned())).with_hints([list_definitions(about)])
}

/// Says that a task definition of the user's has no task role.
pub(super) fn no_role(name: &str, about: About<'_>) -> Fault {
    Fault::new(Class::Refused, NoTask::NoRole(name.to_owned())).with_hints([Cause::NoRole.hint(about)])
}

fn list_definitions(about: About<'_>) -> String {
    command!("`aws ecs list-task-definitions --region {}` lists them", about.region)
}

impl Cause {
    fn remedy(self) -> Remedy {
        match self {
            Self::Capacity | Self::SubnetFull | Self::Interface => Remedy::OtherSubnet,
            Self::LinkedRole => Remedy::Later,
            Self::RoleTrust
            | Self::NoRole
            | Self::Quota
            | Self::RegistryUnreached
            | Self::ImageMissing
            | Self::ImageLimited
            | Self::ImageOther
            | Self::RegistryAuth
            | Self::NoShell
            | Self::StartTimeout
            | Self::Memory => Remedy::None,
        }
    }

    fn class(self) -> Class {
        match self {
            Self::Capacity
            | Self::SubnetFull
            | Self::Interface
            | Self::LinkedRole
            | Self::ImageLimited
            | Self::StartTimeout => Class::Away,
            Self::RoleTrust => Class::Denied,
            Self::NoRole
            | Self::Quota
            | Self::RegistryUnreached
            | Self::ImageMissing
            | Self::ImageOther
            | Self::RegistryAuth
            | Self::NoShell
            | Self::Memory => Class::Refused,
        }
    }

    fn why(self, about: About<'_>) -> String {
        let options = &about.fargate.options;
        let image = match &options.task_definition {
            Some(definition) => format!("its image, which the task definition `{definition}` names"),
            None => format!("its image `{}`", options.image),
        };
        match self {
            Self::Capacity => "Fargate has no capacity there at present".to_owned(),
            Self::LinkedRole => "ECS has no service-linked role in this account yet".to_owned(),
            Self::RoleTrust => format!("ECS cannot assume the task role `{}`", about.role),
            Self::NoRole => "its task definition has no task role, which ECS Exec needs".to_owned(),
            Self::Quota => "the quota of Fargate for running tasks is used up".to_owned(),
            Self::RegistryUnreached => format!("the registry of {image} cannot be reached from its subnet"),
            Self::ImageMissing => format!("{image} does not exist for x86_64"),
            Self::ImageLimited => format!("the registry of {image} has had too many requests"),
            Self::ImageOther => format!("{image} cannot be pulled"),
            Self::RegistryAuth => format!("ECS gets no leave to pull {image} from ECR"),
            Self::Interface => "its network interface was not made in time".to_owned(),
            Self::SubnetFull => "its subnet has no free address".to_owned(),
            Self::NoShell => format!("{image} does not start: it may have no `sh`"),
            Self::StartTimeout => "its container did not start in time".to_owned(),
            Self::Memory => "it ran out of memory".to_owned(),
        }
    }

    fn hint(self, about: About<'_>) -> String {
        let options = &about.fargate.options;
        match self {
            Self::Capacity => "try again later, or give subnets in other availability zones with `--fargate-subnet`".to_owned(),
            Self::LinkedRole => {
                "if it does not come by itself: `aws iam create-service-linked-role --aws-service-name ecs.amazonaws.com`"
                    .to_owned()
            }
            Self::RoleTrust => format!(
                "the role has to exist, and its trust policy has to allow `sts:AssumeRole` to `ecs-tasks.amazonaws.com`: {}",
                how_to_make_role(about)
            ),
            Self::NoRole => format!(
                "give the task definition the role `{}`, or leave `--fargate-task-definition` out",
                options.task_role
            ),
            Self::Quota => command!(
                "stop tasks that are not needed, or ask for more: `aws service-quotas list-service-quotas --service-code fargate --region {}`",
                about.region
            ),
            Self::RegistryUnreached => {
                "the subnet needs a way out: a NAT gateway, or with `--fargate-public-ip` a public subnet; other subnets can be \
                 given with `--fargate-subnet`; without any way out the VPC needs endpoints for `ssmmessages`, `ecr.api`, `ecr.dkr` \
                 and S3, and an image in a private ECR repository, with a task definition of your own"
                    .to_owned()
            }
            Self::ImageMissing => "give another with `--fargate-image`, or your own task definition with \
                                   `--fargate-task-definition`"
                .to_owned(),
            Self::ImageLimited => {
                "wait, or give an image in a registry of your own with `--fargate-image`, such as a copy in ECR".to_owned()
            }
            Self::ImageOther => "look at the image and its registry, or give another with `--fargate-image`".to_owned(),
            Self::RegistryAuth => {
                "an image in ECR needs a task definition of your own with an execution role, named with \
                 `--fargate-task-definition`, and its subnet needs a way to `ecr.api`"
                    .to_owned()
            }
            Self::Interface | Self::SubnetFull => {
                "give other subnets with `--fargate-subnet`, or free addresses in these".to_owned()
            }
            Self::NoShell => "give an image with `sh`, `date`, `grep` and `sleep` with `--fargate-image`".to_owned(),
            Self::StartTimeout => "try again; if it stays so, give another image with `--fargate-image`".to_owned(),
            Self::Memory => {
                "give a task definition with 1024 MiB with `--fargate-task-definition`, or spread the clusters over several".to_owned()
            }
        }
    }

    fn fault(self, about: About<'_>, error: NoTask) -> (Fault, Remedy) {
        (Fault::new(self.class(), error).with_hints([self.hint(about)]), self.remedy())
    }
}

fn how_to_make_role(about: About<'_>) -> String {
    match about.fargate.options.task_definition {
        Some(_) => "the role is the one that the task definition names".to_owned(),
        None => command!("`autoheal-pa policy --bastion {} --terraform` writes it", about.fargate.to_string()),
    }
}

/// Says why `RunTask` started nothing.
pub(super) fn not_run(error: AwsError, about: About<'_>) -> (Fault, Remedy) {
    let said = error.answer().and_then(|answer| answer.message.clone()).unwrap_or_default();
    let vpc = about.vpc.to_owned();
    if let Some(cause) = cause(&RUN, &said) {
        return cause.fault(about, NoTask::NotRun { vpc, why: cause.why(about), source: error });
    }
    let is_of_cluster = matches!(error, AwsError::Refused { refusal: Refusal::EcsCluster, .. });
    if is_of_cluster {
        let cluster = about.fargate.cluster.clone();
        let hint = command!("make it: `aws ecs create-cluster --cluster-name {} --region {}`", cluster, about.region);
        let error = NoTask::NoCluster { cluster, region: about.region.to_owned() };
        return (Fault::new(Class::Gone, error).with_hints([hint]), Remedy::None);
    }
    if said.starts_with("TaskDefinition not found") {
        let name = about.fargate.options.task_definition.clone().unwrap_or_else(|| FAMILY.to_owned());
        let hint = list_definitions(about);
        let why = format!("there is no task definition `{name}`");
        return (Fault::new(Class::Gone, NoTask::NotRun { vpc, why, source: error }).with_hints([hint]), Remedy::None);
    }
    if let AwsError::Refused { .. } = &error {
        let why = "ECS refused".to_owned();
        let hint = "what it says may be about the subnets or security groups: `--fargate-subnet` and `--fargate-security-group` \
                    name others"
            .to_owned();
        return (
            Fault::new(Class::Refused, NoTask::NotRun { vpc, why, source: error }).with_hints([hint]),
            Remedy::None,
        );
    }
    of_call(error)
}

/// Says why a call that it takes to start a task has failed.
pub(super) fn of_call(error: AwsError) -> (Fault, Remedy) {
    let fault = advice::fault(error);
    let remedy = if matches!(fault.class, Class::Transient | Class::Throttled) { Remedy::Later } else { Remedy::None };
    (fault, remedy)
}

/// Says why a task stopped before it was of use.
pub(super) fn not_started(task: &Task, id: &str, about: About<'_>) -> (Fault, Remedy) {
    let said = reason(task);
    let exit = task.containers.iter().find_map(|container| container.exit_code);
    let cause = cause(&START, &said).or_else(|| (exit == Some(137)).then_some(Cause::Memory));
    let task = id.to_owned();
    match cause {
        Some(cause) => {
            let why = if said.is_empty() { cause.why(about) } else { format!("{} ({said})", cause.why(about)) };
            cause.fault(about, NoTask::NotStarted { task, why })
        }
        None => {
            let why = if said.is_empty() { "ECS does not say why".to_owned() } else { said.to_string() };
            let hint = command!(
                "`aws ecs describe-tasks --cluster {} --tasks {} --region {}` shows all that ECS knows of it",
                about.fargate.cluster,
                id,
                about.region
            );
            (Fault::new(Class::Away, NoTask::NotStarted { task, why }).with_hints([hint]), Remedy::Later)
        }
    }
}

/// Says that a task runs and takes no sessions, and how that shows.
pub(super) fn no_agent(id: &str, why: &str, about: About<'_>) -> Fault {
    let hints = [
        format!(
            "the task role `{}` has to allow `ssmmessages:CreateControlChannel`, `ssmmessages:CreateDataChannel`, \
             `ssmmessages:OpenControlChannel` and `ssmmessages:OpenDataChannel`: {}",
            about.role,
            how_to_make_role(about)
        ),
        format!(
            "the task has to reach `ssmmessages.{}` on port 443, by a NAT gateway, a public address (`--fargate-public-ip`) or a \
             VPC endpoint whose security group admits the task's",
            about.region
        ),
    ];
    Fault::new(Class::Refused, NoTask::NoAgent { task: id.to_owned(), why: why.to_owned() }).with_hints(hints)
}

/// What ECS says of why a task has stopped.
pub(super) fn reason(task: &Task) -> PeerText {
    let of_container = || task.containers.iter().find_map(|container| container.reason.clone());
    task.stopped_reason.clone().or_else(of_container).unwrap_or_default()
}

/// Says in a few words who stopped a task that was of use; `None`: it ended by itself, as it is to.
pub(super) fn end(task: &Task) -> Option<String> {
    let exit = task.containers.iter().find_map(|container| container.exit_code);
    let code = task.stop_code.as_deref().unwrap_or_default();
    let said = reason(task);
    let with = |what: &str| if said.is_empty() { what.to_owned() } else { format!("{what} ({said})") };
    match (code, exit) {
        ("EssentialContainerExited", Some(0)) => None,
        ("EssentialContainerExited", Some(137)) => Some(with("it ran out of memory")),
        ("EssentialContainerExited", Some(exit)) => Some(with(&format!("its container ended with status {exit}"))),
        ("UserInitiated", _) => Some(with("somebody stopped it")),
        ("TerminationNotice" | "InfrastructureHealth" | "SpotInterruption" | "ServiceSchedulerInitiated", _) => {
            Some(with("AWS stopped it"))
        }
        _ => Some(with("it was stopped")),
    }
}

#[cfg(test)]
pub(super) mod tests;
