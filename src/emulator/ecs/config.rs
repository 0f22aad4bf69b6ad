//! What Elastic Container Service has at the start, and how its tasks behave.

use std::time::Duration;

/// Clusters, services and the pace of tasks.
#[derive(Debug, Clone)]
pub struct EcsConfig {
    /// Names of the ECS clusters. Those of services are there whether they are named or not.
    pub clusters: Vec<String>,
    /// The services. Their tasks run at the start.
    pub services: Vec<ServiceConfig>,
    /// Names of the roles that tasks can have.
    pub task_roles: Vec<String>,
    /// How long tasks take.
    pub times: TaskTimes,
    /// Sessions that run in one container at a time. One more waits for its turn; what is beyond that is dropped without
    /// a word.
    pub session_limit: usize,
    /// How sessions end with their task.
    pub task_end: TaskEnd,
    /// Most tasks in one answer of `ListTasks`.
    pub page_len: usize,
    /// How long a task that was started with `RunTask` runs without sessions; `None`: as its command says.
    pub disuse: Option<Duration>,
    /// How long such a task runs at most; `None`: as its command says.
    pub life: Option<Duration>,
    /// The version that agents in containers report.
    pub agent_version: String,
}

impl Default for EcsConfig {
    fn default() -> Self {
        Self {
            clusters: Vec::new(),
            services: Vec::new(),
            task_roles: vec!["autoheal-pa-bastion".to_owned()],
            times: TaskTimes::default(),
            session_limit: 2,
            task_end: TaskEnd::Silent,
            page_len: 100,
            disuse: None,
            life: None,
            agent_version: "3.3.4108.0".to_owned(),
        }
    }
}

impl EcsConfig {
    /// One service with so many tasks.
    #[must_use]
    pub fn with_service(cluster: &str, service: &str, count: usize) -> Self {
        Self {
            services: vec![ServiceConfig { desired_count: count, ..ServiceConfig::new(cluster, service) }],
            ..Self::default()
        }
    }
}

/// How long each part of a task's life takes. The default is quick.
#[derive(Debug, Clone, Copy)]
pub struct TaskTimes {
    /// How long a task just made is not seen by `DescribeTasks` and `ListTasks`.
    pub unseen: Duration,
    /// In PROVISIONING, while the network interface is made.
    pub provisioning: Duration,
    /// In PENDING, while the image is pulled.
    pub pending: Duration,
    /// In ACTIVATING.
    pub activating: Duration,
    /// From RUNNING until the agent is.
    pub agent: Duration,
    /// From the agent's RUNNING until sessions can be started.
    pub connection: Duration,
    /// In DEACTIVATING, before containers are told to end.
    pub deactivating: Duration,
    /// In STOPPING, until containers have ended.
    pub stopping: Duration,
    /// In DEPROVISIONING.
    pub deprovisioning: Duration,
    /// How long a stopped task is still told of.
    pub kept: Duration,
}

impl Default for TaskTimes {
    fn default() -> Self {
        let short = Duration::from_millis(50);
        Self {
            unseen: Duration::ZERO,
            provisioning: short,
            pending: short,
            activating: short,
            agent: short,
            connection: Duration::ZERO,
            deactivating: short,
            stopping: short,
            deprovisioning: short,
            kept: Duration::from_secs(3600),
        }
    }
}

impl TaskTimes {
    /// About what Fargate takes with a small image.
    #[must_use]
    pub fn real() -> Self {
        let secs = Duration::from_secs;
        Self {
            unseen: secs(1),
            provisioning: secs(12),
            pending: secs(12),
            activating: secs(2),
            agent: secs(5),
            connection: secs(2),
            deactivating: secs(2),
            stopping: secs(5),
            deprovisioning: secs(12),
            kept: secs(3600),
        }
    }
}

/// How the sessions of a task end when its containers are told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskEnd {
    /// Their agents fall silent.
    Silent,
    /// They get a `channel_closed`.
    Closed,
}

/// How a task is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchType {
    /// On Fargate, with a runtime id of the task's id and digits.
    Fargate,
    /// On instances, with a runtime id of 64 hexadecimal digits.
    Ec2,
}

impl LaunchType {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fargate => "FARGATE",
            Self::Ec2 => "EC2",
        }
    }
}

/// One service.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// Name of its cluster.
    pub cluster: String,
    pub name: String,
    /// Tasks that it is to have.
    pub desired_count: usize,
    /// Whether its tasks have ECS Exec, and with it an agent.
    pub exec: bool,
    /// Names, of each task.
    pub containers: Vec<String>,
    /// How its tasks are run.
    pub launch_type: LaunchType,
    /// How often it is deployed anew; `None`: when it is told.
    pub redeploy: Option<Duration>,
}

impl ServiceConfig {
    /// A service with one task on Fargate, of one container of the service's name, with ECS Exec.
    #[must_use]
    pub fn new(cluster: impl Into<String>, name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            cluster: cluster.into(),
            desired_count: 1,
            exec: true,
            containers: vec![name.clone()],
            launch_type: LaunchType::Fargate,
            redeploy: None,
            name,
        }
    }
}

/// What is wrong with tasks that are made from now on, and with what is told of all.
#[derive(Debug, Clone, Default)]
pub struct TaskTrouble {
    /// The next answers of `RunTask` have this reason among their failures instead of a task.
    pub run_failure: Option<String>,
    /// In how many answers.
    pub run_failures: u32,
    /// No role can be given to tasks, for what it trusts.
    pub role_untrusted: bool,
    /// How many tasks more have what is wrong with their start, their agent and their memory; `None`: all.
    pub next_tasks: Option<u32>,
    /// Tasks stop before they run.
    pub start: Option<StartFailure>,
    /// What becomes of their agents.
    pub agent: AgentOutcome,
    /// Tasks are told of as made without ECS Exec, and have no agent.
    pub no_exec: bool,
    /// Containers run out of memory after this time.
    pub out_of_memory: Option<Duration>,
    /// Provisioning takes so much longer.
    pub delay: Duration,
    /// Tasks are not seen for so long, instead of as configured.
    pub unseen: Option<Duration>,
    /// Sessions that run in one container, instead of as configured.
    pub session_limit: Option<usize>,
    /// A policy denies sessions with tasks explicitly, as the guide of ECS Exec recommends.
    pub sessions_denied: bool,
}

impl TaskTrouble {
    /// What is wrong with a task that is made now, and counts it.
    pub(super) fn of_next_task(&mut self) -> Self {
        match &mut self.next_tasks {
            None => return self.clone(),
            Some(0) => {}
            Some(left) => {
                *left -= 1;
                return self.clone();
            }
        }
        let (start, agent, out_of_memory, delay) = (None, AgentOutcome::Running, None, Duration::ZERO);
        Self { start, agent, out_of_memory, delay, ..self.clone() }
    }
}

/// What becomes of the agent in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentOutcome {
    /// It runs.
    #[default]
    Running,
    /// It is never heard of.
    Pending,
    /// It ends at once.
    Stopped,
}

/// Why a task stops before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFailure {
    /// The registry is not reached.
    ImageTimeout,
    /// The registry has no such image.
    ImageMissing,
    /// The registry has had too many requests.
    ImageLimited,
    /// The token for the registry is not to be had.
    RegistryAuth,
    /// The network interface takes too long.
    InterfaceTimeout,
    /// The subnet has no free address.
    SubnetFull,
    /// The image has no shell.
    NoShell,
}

impl StartFailure {
    /// The text, as the service puts it.
    pub(super) fn reason(self, image: &str, region: &str, subnet: &str) -> String {
        let registry = image.split('/').next().unwrap_or_default();
        let (name, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
        let name = name.strip_prefix(registry).unwrap_or(name).trim_start_matches('/');
        let manifest = format!("https://{registry}/v2/{name}/manifests/{tag}");
        match self {
            Self::ImageTimeout => format!(
                "CannotPullContainerError: pull image manifest has been retried 5 time(s): failed to resolve ref {image}: \
                 failed to do request: Head \"{manifest}\": dial tcp 99.83.145.10:443: i/o timeout"
            ),
            Self::ImageMissing => format!(
                "CannotPullContainerError: pull image manifest has been retried 1 time(s): failed to resolve ref {image}: \
                 {image}: not found"
            ),
            Self::ImageLimited => format!(
                "CannotPullContainerError: pull image manifest has been retried 5 time(s): httpReadSeeker: failed open: \
                 unexpected status code {manifest}: 429 Too Many Requests - Server message: toomanyrequests: Rate exceeded"
            ),
            Self::RegistryAuth => format!(
                "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed: \
                 unable to retrieve ecr registry auth: service call has been retried 3 time(s): RequestError: send request \
                 failed caused by: Post \"https://api.ecr.{region}.amazonaws.com/\": dial tcp 52.46.132.8:443: i/o timeout. \
                 Please check your task network configuration."
            ),
            Self::InterfaceTimeout => "Timeout waiting for network interface provisioning to complete.".to_owned(),
            Self::SubnetFull => format!(
                "Unexpected EC2 error while attempting to Create Network Interface in subnet '{subnet}': \
                 InsufficientFreeAddressesInSubnet"
            ),
            Self::NoShell => "CannotStartContainerError: ResourceInitializationError: failed to create new container runtime \
                              task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
                              container process: exec: \"sh\": executable file not found in $PATH: unknown"
                .to_owned(),
        }
    }
}
