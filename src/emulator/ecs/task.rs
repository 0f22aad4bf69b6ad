//! One task: what is known of it, and how `DescribeTasks` tells it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    config::{AgentOutcome, LaunchType, StartFailure},
    definitions::Definition,
};

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    Provisioning,
    Pending,
    Activating,
    Running,
    Deactivating,
    Stopping,
    Deprovisioning,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Provisioning => "PROVISIONING",
            Self::Pending => "PENDING",
            Self::Activating => "ACTIVATING",
            Self::Running => "RUNNING",
            Self::Deactivating => "DEACTIVATING",
            Self::Stopping => "STOPPING",
            Self::Deprovisioning => "DEPROVISIONING",
            Self::Stopped => "STOPPED",
        }
    }
}

/// Why a task stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StopCause {
    /// `UserInitiated`, `EssentialContainerExited` and the like.
    pub(super) code: String,
    pub(super) reason: String,
    /// The status with which its containers have ended; `None`: they are told to end.
    pub(super) exit: Option<i32>,
    /// Whether containers were never started.
    pub(super) before_start: bool,
}

impl StopCause {
    pub(super) fn new(code: &str, reason: impl Into<String>) -> Self {
        Self { code: code.to_owned(), reason: reason.into(), exit: None, before_start: false }
    }

    pub(super) fn exited(status: i32) -> Self {
        let cause = Self::new("EssentialContainerExited", "Essential container in task exited");
        Self { exit: Some(status), ..cause }
    }
}

/// What is decided about a task when it is made.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Why, and with which text, it stops before it runs.
    pub(super) failure: Option<(StartFailure, String)>,
    pub(super) agent: AgentOutcome,
    pub(super) delay: Duration,
    /// How long it runs without sessions.
    pub(super) disuse: Option<Duration>,
    /// How long it runs.
    pub(super) life: Option<Duration>,
    pub(super) out_of_memory: Option<Duration>,
    /// It has been running for long when the emulator starts.
    pub(super) is_running: bool,
}

/// What a task is made of.
#[derive(Debug, Clone)]
pub(super) struct Making {
    pub(super) cluster: String,
    pub(super) region: String,
    pub(super) account: String,
    pub(super) definition: Arc<Definition>,
    pub(super) group: String,
    pub(super) started_by: String,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) exec: bool,
    pub(super) launch_type: LaunchType,
    pub(super) subnet: String,
    /// Those that it was run with; empty: it is admitted everywhere.
    pub(super) security_groups: Vec<String>,
    pub(super) zone: String,
    pub(super) plan: Plan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AgentStatus {
    Pending,
    Running { since: Instant },
    Stopped,
}

/// A container of a task.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) name: String,
    image: String,
    pub(super) runtime_id: String,
    id: Uuid,
}

/// See the module.
pub(super) struct Task {
    pub(super) id: String,
    pub(super) making: Making,
    pub(super) containers: Vec<Container>,
    /// Part of its address.
    number: u32,
    /// How much older it has been made than it is.
    pub(super) age: Duration,
    pub(super) created: Duration,
    pub(super) seen_at: Instant,
    pub(super) status: Status,
    pub(super) agent: AgentStatus,
    pub(super) started: Option<Duration>,
    pub(super) stopping: Option<Duration>,
    pub(super) stopped: Option<Duration>,
    /// Until when it is told of.
    pub(super) forgotten_at: Option<Instant>,
    pub(super) cause: Option<StopCause>,
    pub(super) exit: Option<i32>,
    version: u64,
    /// Wakes its life when it has a cause to stop.
    pub(super) stop: CancellationToken,
}

impl Task {
    pub(super) fn new(making: Making, number: u32, created: Duration, seen_at: Instant) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        let is_running = making.plan.is_running;
        let containers = making.definition.containers();
        let containers = containers.map(|(name, image)| Container {
            runtime_id: match making.launch_type {
                LaunchType::Fargate => format!("{id}-{}", Uuid::new_v4().as_u128() % 9_000_000_000 + 1_000_000_000),
                LaunchType::Ec2 => format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()),
            },
            name,
            image,
            id: Uuid::new_v4(),
        });
        Self {
            containers: containers.collect(),
            id,
            number,
            age: Duration::ZERO,
            created,
            seen_at,
            status: if is_running { Status::Running } else { Status::Provisioning },
            agent: match making.plan.agent {
                AgentOutcome::Running if is_running => AgentStatus::Running { since: seen_at },
                AgentOutcome::Stopped if is_running => AgentStatus::Stopped,
                AgentOutcome::Running | AgentOutcome::Pending | AgentOutcome::Stopped => AgentStatus::Pending,
            },
            started: is_running.then_some(created),
            stopping: None,
            stopped: None,
            forgotten_at: None,
            cause: None,
            exit: None,
            version: 1,
            stop: CancellationToken::new(),
            making,
        }
    }

    pub(super) fn arn(&self) -> String {
        let Making { region, account, cluster, .. } = &self.making;
        format!("arn:aws:ecs:{region}:{account}:task/{cluster}/{}", self.id)
    }

    pub(super) fn wants_to_stop(&self) -> bool {
        self.cause.is_some()
    }

    /// Counts a change, as `version` tells it.
    pub(super) fn set(&mut self, status: Status) {
        self.status = status;
        self.version += 1;
    }

    /// Makes it older, as if all that has happened to it had been so much earlier.
    pub(super) fn grow_older(&mut self, by: Duration) {
        self.age += by;
        self.created = self.created.saturating_sub(by);
        for time in [&mut self.started, &mut self.stopping, &mut self.stopped] {
            *time = time.map(|time| time.saturating_sub(by));
        }
        self.seen_at = self.seen_at.checked_sub(by).unwrap_or(self.seen_at);
        self.forgotten_at = self.forgotten_at.map(|at| at.checked_sub(by).unwrap_or(at));
    }

    /// Asks it to stop; the first cause is the one.
    pub(super) fn ask_to_stop(&mut self, cause: StopCause, wall: Duration) {
        if self.cause.is_none() && self.status != Status::Stopped {
            self.cause = Some(cause);
            self.stopping = Some(wall);
            self.version += 1;
            self.stop.cancel();
        }
    }

    /// What Systems Manager calls its containers.
    pub(super) fn targets(&self) -> impl Iterator<Item = String> {
        self.containers
            .iter()
            .map(|container| format!("ecs:{}_{}_{}", self.making.cluster, self.id, container.runtime_id))
    }

    fn address(&self) -> String {
        format!("10.0.{}.{}", self.number / 200 % 250 + 16, self.number % 200 + 10)
    }

    fn definition_size(&self, name: &str) -> Value {
        self.making.definition.body.get(name).cloned().unwrap_or(Value::Null)
    }

    fn attachment_status(&self) -> &'static str {
        match self.status {
            Status::Provisioning => "PRECREATED",
            Status::Pending | Status::Activating => "ATTACHING",
            Status::Running | Status::Deactivating | Status::Stopping => "ATTACHED",
            Status::Deprovisioning => "DETACHING",
            Status::Stopped => "DELETED",
        }
    }

    /// As the API tells it. Without ECS Exec if that is what is told of all.
    pub(super) fn description(&self, with_tags: bool, no_exec: bool) -> Value {
        let Making { region, account, cluster, launch_type, .. } = &self.making;
        let is_fargate = *launch_type == LaunchType::Fargate;
        let attachment = Uuid::from_u128(u128::from(self.number)).to_string();
        let exec = self.making.exec && !no_exec;
        let mut task = json!({
            "taskArn": self.arn(),
            "clusterArn": format!("arn:aws:ecs:{region}:{account}:cluster/{cluster}"),
            "taskDefinitionArn": self.making.definition.arn(),
            "group": self.making.group,
            "launchType": launch_type.name(),
            "lastStatus": self.status.name(),
            "desiredStatus": if self.wants_to_stop() || self.status == Status::Stopped { "STOPPED" } else { "RUNNING" },
            "healthStatus": "UNKNOWN",
            "availabilityZone": self.making.zone,
            "cpu": self.definition_size("cpu"),
            "memory": self.definition_size("memory"),
            "createdAt": self.created.as_secs_f64(),
            "enableExecuteCommand": exec,
            "version": self.version,
            "overrides": {"containerOverrides": [], "inferenceAcceleratorOverrides": []},
            "attributes": [{"name": "ecs.cpu-architecture", "value": "x86_64"}],
            "attachments": [{
                "id": attachment,
                "type": "ElasticNetworkInterface",
                "status": self.attachment_status(),
                "details": self.interface(),
            }],
            "containers": self.containers.iter().map(|container| self.container(container, &attachment, exec))
                .collect::<Vec<_>>(),
            "tags": [],
        });
        if !self.making.started_by.is_empty() {
            task["startedBy"] = self.making.started_by.clone().into();
        }
        if is_fargate {
            task["platformVersion"] = "1.4.0".into();
            task["platformFamily"] = "Linux".into();
            task["ephemeralStorage"] = json!({"sizeInGiB": 20});
        }
        if self.status >= Status::Pending && self.cause.as_ref().is_none_or(|cause| !cause.before_start) {
            task["connectivity"] = "CONNECTED".into();
            task["connectivityAt"] = self.created.as_secs_f64().into();
        }
        for (name, time) in [("startedAt", self.started), ("stoppingAt", self.stopping), ("stoppedAt", self.stopped)] {
            if let Some(time) = time {
                task[name] = time.as_secs_f64().into();
            }
        }
        if let Some(cause) = &self.cause {
            task["stopCode"] = cause.code.clone().into();
            task["stoppedReason"] = cause.reason.clone().into();
        }
        if with_tags {
            let tags = self.making.tags.iter().map(|(key, value)| json!({"key": key, "value": value}));
            task["tags"] = tags.collect();
        }
        task
    }

    /// The details of the network interface, as far as it is made.
    fn interface(&self) -> Vec<Value> {
        let detail = |name: &str, value: String| json!({"name": name, "value": value});
        let mut details = vec![detail("subnetId", self.making.subnet.clone())];
        if self.status > Status::Provisioning {
            let address = self.address();
            details.extend([
                detail("networkInterfaceId", format!("eni-{:017x}", u64::from(self.number) + 0xe)),
                detail("macAddress", format!("0a:00:00:00:{:02x}:{:02x}", self.number / 256 % 256, self.number % 256)),
                detail("privateDnsName", format!("ip-{}.ec2.internal", address.replace('.', "-"))),
                detail("privateIPv4Address", address),
            ]);
        }
        details
    }

    fn container(&self, container: &Container, attachment: &str, exec: bool) -> Value {
        let Making { region, account, cluster, .. } = &self.making;
        let last_status = match self.status {
            Status::Provisioning | Status::Pending | Status::Activating => "PENDING",
            Status::Running | Status::Deactivating | Status::Stopping => "RUNNING",
            Status::Deprovisioning | Status::Stopped => "STOPPED",
        };
        let mut value = json!({
            "containerArn": format!("arn:aws:ecs:{region}:{account}:container/{cluster}/{}/{}", self.id, container.id),
            "taskArn": self.arn(),
            "name": container.name,
            "image": container.image,
            "lastStatus": last_status,
            "healthStatus": "UNKNOWN",
            "cpu": "0",
            "networkInterfaces": [],
        });
        let was_started = self.cause.as_ref().is_none_or(|cause| !cause.before_start);
        if self.status >= Status::Activating && was_started {
            value["runtimeId"] = container.runtime_id.clone().into();
        }
        if self.status > Status::Provisioning {
            value["networkInterfaces"] = json!([{"attachmentId": attachment, "privateIpv4Address": self.address()}]);
        }
        if exec {
            let status = match self.agent {
                AgentStatus::Pending => "PENDING",
                AgentStatus::Running { .. } => "RUNNING",
                AgentStatus::Stopped => "STOPPED",
            };
            let mut agent = json!({"name": "ExecuteCommandAgent", "lastStatus": status});
            if let (AgentStatus::Running { .. }, Some(started)) = (self.agent, self.started) {
                agent["lastStartedAt"] = started.as_secs_f64().into();
            }
            value["managedAgents"] = json!([agent]);
        }
        if let Some(exit) = self.exit {
            value["exitCode"] = exit.into();
        }
        match &self.cause {
            Some(cause) if cause.before_start => value["reason"] = cause.reason.clone().into(),
            Some(StopCause { exit: Some(137), .. }) => {
                value["reason"] = "OutOfMemoryError: Container killed due to memory usage".into();
            }
            Some(_) | None => {}
        }
        value
    }
}
