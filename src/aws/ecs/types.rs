//! What ECS is asked and what it tells, without the SDK's types.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use crate::util::peer_text::PeerText;

/// Tags, by key.
pub type Tags = BTreeMap<String, PeerText>;

/// Which tasks are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskFilter {
    /// Those of a service.
    Service(String),
    /// Those of a family of task definitions.
    Family(String),
    /// Those that were started with this text.
    StartedBy(String),
}

/// What is known of tasks that were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tasks {
    pub tasks: Vec<Task>,
    /// ARNs of those that are not there. One that was just made may be among them for seconds.
    pub missing: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub arn: String,
    /// The ECS cluster that it runs in.
    pub cluster_arn: String,
    /// The task definition, with its revision.
    pub definition_arn: String,
    /// Such as `RUNNING`.
    pub last_status: PeerText,
    /// `RUNNING` or `STOPPED`.
    pub desired_status: PeerText,
    pub created_at: Option<SystemTime>,
    /// When its containers had been started.
    pub started_at: Option<SystemTime>,
    /// Whether its containers have the agent for sessions.
    pub exec_enabled: bool,
    /// Such as `TaskFailedToStart`.
    pub stop_code: Option<PeerText>,
    pub stopped_reason: Option<PeerText>,
    pub containers: Vec<TaskContainer>,
    pub tags: Tags,
    /// The text that it was started with.
    pub started_by: Option<PeerText>,
    /// Such as `service:tools`.
    pub group: Option<PeerText>,
    /// `FARGATE`, `EC2` or `EXTERNAL`.
    pub launch_type: Option<PeerText>,
    /// Of Fargate, such as `1.4.0`.
    pub platform_version: Option<PeerText>,
    /// Its own network interface, if it has one.
    pub network: Option<TaskNetwork>,
}

/// The network interface of a task. Its VPC is that of the subnet, which ECS does not name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskNetwork {
    pub subnet_id: Option<String>,
    pub interface_id: Option<String>,
    /// Its first private IPv4 address.
    pub private_ip: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskContainer {
    pub name: String,
    /// There once it has been started.
    pub runtime_id: Option<String>,
    /// Such as `RUNNING`.
    pub last_status: PeerText,
    pub exit_code: Option<i32>,
    /// Why it stopped, or did not start.
    pub reason: Option<PeerText>,
    /// The agent that sessions are with.
    pub agent: Option<ExecAgent>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecAgent {
    /// `PENDING`, `RUNNING` or `STOPPED`.
    pub status: PeerText,
    /// Why it is not running; often left out.
    pub reason: Option<PeerText>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcsCluster {
    pub arn: String,
    pub name: String,
    /// Such as `ACTIVE`.
    pub status: PeerText,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskDefinition {
    /// With the revision.
    pub arn: String,
    pub revision: i32,
    pub tags: Tags,
    /// An ARN, or the name of a role.
    pub task_role: Option<String>,
    /// The same of the role that ECS takes images with.
    pub execution_role: Option<String>,
    /// That of the first container.
    pub image: Option<PeerText>,
    /// In units of 1024 to a processor.
    pub cpu: Option<PeerText>,
    /// In MiB.
    pub memory: Option<PeerText>,
    /// Such as `awsvpc`.
    pub network_mode: Option<PeerText>,
}

/// What processor a task runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// That of Intel and AMD.
    X86_64,
    /// That of AWS's own.
    Arm64,
}

impl Architecture {
    /// Returns the name that ECS has for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "X86_64",
            Self::Arm64 => "ARM64",
        }
    }

    pub(super) fn of_sdk(self) -> aws_sdk_ecs::types::CpuArchitecture {
        match self {
            Self::X86_64 => aws_sdk_ecs::types::CpuArchitecture::X8664,
            Self::Arm64 => aws_sdk_ecs::types::CpuArchitecture::Arm64,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTaskDefinition {
    /// The family that it becomes a revision of.
    pub family: String,
    /// In units of 1024 to a processor.
    pub cpu: u16,
    /// In MiB.
    pub memory: u16,
    pub architecture: Architecture,
    /// What the agent in the container acts as.
    pub task_role: Option<String>,
    /// What the image is pulled as; public ones need none.
    pub execution_role: Option<String>,
    /// Its only container.
    pub container: NewContainer,
    pub tags: Vec<(String, String)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewContainer {
    pub name: String,
    pub image: String,
    pub command: Vec<String>,
    /// From the signal to stop to the end; whole seconds.
    pub stop_timeout: Option<Duration>,
    /// Its share of the processor, unless it is all of the task's.
    pub cpu: Option<u16>,
    /// Its share of the memory in MiB, unless it is all of the task's.
    pub memory: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTask {
    /// The ECS cluster that it is to run in.
    pub cluster: String,
    /// A family, for its newest revision, or an ARN.
    pub task_definition: String,
    /// Subnets that it may be in: capacity is a matter of the zone.
    pub subnets: Vec<String>,
    /// Security groups that it is to be in.
    pub security_groups: Vec<String>,
    /// Whether it gets a public address.
    pub public_ip: bool,
    /// By which it is found again: up to 128 letters, digits, `-`, `_` and `/`.
    pub started_by: String,
    /// What makes a repeated call the same one: up to 64 printable characters of ASCII.
    pub client_token: String,
    pub tags: Vec<(String, String)>,
}
