//! What is run on Fargate: the task definition, and the task with what it is found again by.

use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::network::Network;
use crate::{
    aws::ecs::{Architecture, NewContainer, NewTask, NewTaskDefinition, Task},
    bastion::{Fargate, FargateOptions},
    iam::partition,
    remote::Remote,
    route::ssm::Owner,
    util::{arn::Arn, written::rfc3339},
};

/// The family of the task definitions that are made.
pub(super) const FAMILY: &str = "autoheal-pa-bastion";

/// The name of the only container.
const CONTAINER: &str = "bastion";

/// The smallest size that Fargate has (ECS developer guide, "Task CPU and memory"): units of 1024 to a processor, MiB.
const CPU: u16 = 256;
const MEMORY: u16 = 512;

/// From the signal to stop to the end of the container. It has nothing to put in order.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a task goes on that nobody uses.
pub(super) const DISUSE: Duration = Duration::from_secs(600);

/// How often it looks whether it is used.
const LOOK: Duration = Duration::from_secs(30);

/// What the text begins with that tasks are started with.
const STARTED_BY: &str = "autoheal-pa/";

/// Longest value of a tag, in characters.
const MAX_TAG_LEN: usize = 256;

/// The tag on a task definition, and on a task, that tells whether it is what would be made now.
pub(super) const SPEC_TAG: &str = "autoheal-pa:spec";
/// The tag on a task that tells when it ends itself.
pub(super) const EXPIRES_TAG: &str = "autoheal-pa:expires";
/// The tag on a task that tells which run of a manager has started it.
pub(super) const RUN_TAG: &str = "autoheal-pa:run";

/// What a container runs that ends when nobody uses it, and after its life.
///
/// The agent runs in the container with one process for each session, whose name the kernel cuts at 15 bytes
/// (`ssm-session-worker`; amazon-ssm-agent, `agent/session/…`). Processes are looked at without `ps`, which images may lack.
fn script(life: Duration, disuse: Duration, look: Duration) -> String {
    let (life, disuse, look) = (life.as_secs(), disuse.as_secs(), look.as_secs());
    format!(
        "LIFE={life}; DISUSE={disuse}; end=$(($(date +%s) + LIFE)); unused=0; \
         while [ \"$(date +%s)\" -lt \"$end\" ] && [ \"$unused\" -lt \"$DISUSE\" ]; do \
         sleep {look}; \
         if cat /proc/[0-9]*/comm 2>/dev/null | grep -q '^ssm-session-wor'; then unused=0; \
         else unused=$((unused + {look})); fi; done"
    )
}

/// Returns the task definition that is registered where the user names none.
#[must_use]
pub(in crate::route::ssm) fn definition(options: &FargateOptions, role: &str) -> NewTaskDefinition {
    let command = ["sh", "-c", &script(options.ttl, DISUSE, LOOK)].map(ToOwned::to_owned);
    let container = NewContainer {
        name: CONTAINER.to_owned(),
        image: options.image.clone(),
        command: command.into(),
        stop_timeout: Some(STOP_TIMEOUT),
        cpu: Some(CPU),
        memory: Some(MEMORY),
    };
    let mut new = NewTaskDefinition {
        family: FAMILY.to_owned(),
        cpu: CPU,
        memory: MEMORY,
        architecture: Architecture::X86_64,
        task_role: Some(role.to_owned()),
        execution_role: None,
        container,
        tags: Vec::new(),
    };
    new.tags = vec![(SPEC_TAG.to_owned(), digest(&format!("{new:?}")))];
    new
}

/// Returns the ARN of the role of tasks.
#[must_use]
pub(in crate::route::ssm) fn role_arn(role: &str, region: &str, account: &str) -> String {
    if role.starts_with("arn:") {
        role.to_owned()
    } else {
        format!("arn:{}:iam::{account}:role/{role}", partition(region))
    }
}

/// What a task is run with in a network.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    cluster: String,
    public_ip: bool,
    pub(super) network: Network,
    pub(super) ttl: Duration,
    /// Two tasks with the same are alike.
    digest: String,
}

impl Spec {
    /// Of what the user says. Which groups and subnets those of clusters are is no part of what tasks are compared by.
    pub(super) fn new(cluster: &str, options: &FargateOptions, network: Network, role: &str) -> Self {
        let runs = match &options.task_definition {
            Some(definition) => definition.clone(),
            None => definition(options, role).tags.into_iter().map(|(_, digest)| digest).collect(),
        };
        let FargateOptions { public_ip, security_groups, subnets, ttl, .. } = options;
        let digest = digest(&format!("{runs} {public_ip} {security_groups:?} {subnets:?} {ttl:?}"));
        Self { cluster: cluster.to_owned(), public_ip: options.public_ip, network, ttl: options.ttl, digest }
    }

    /// Returns a task to run, in these of the subnets.
    pub(super) fn task(&self, run: Run<'_>) -> NewTask {
        let Run { definition, subnets, owner, to, token, now } = run;
        let expires = rfc3339(now + self.ttl);
        let own = [
            ("autoheal-pa:owner", owner.caller.arn.as_str()),
            ("autoheal-pa:host", &owner.host),
            ("autoheal-pa:pid", &std::process::id().to_string()),
            ("autoheal-pa:cluster", to.name()),
            (RUN_TAG, &owner.run),
            (SPEC_TAG, &self.digest),
            (EXPIRES_TAG, &expires),
        ];
        let of_network = self.network.tags();
        let tags = own.into_iter().chain(of_network.iter().map(|(key, value)| (*key, value.as_str())));
        NewTask {
            cluster: self.cluster.clone(),
            task_definition: definition.to_owned(),
            subnets,
            security_groups: self.network.security_groups.clone(),
            public_ip: self.public_ip,
            started_by: started_by(owner),
            client_token: token,
            tags: tags.map(|(key, value)| (key.to_owned(), tag_value(value))).collect(),
        }
    }

    /// Whether a task is what would be run now, be it in whatever network.
    pub(super) fn is_like(&self, task: &Task) -> bool {
        task.tags.get(SPEC_TAG).is_some_and(|digest| **digest == *self.digest)
    }
}

/// One task to run.
pub(super) struct Run<'a> {
    pub(super) definition: &'a str,
    pub(super) subnets: Vec<String>,
    pub(super) owner: &'a Owner,
    /// The cluster that it is started for.
    pub(super) to: &'a Remote,
    pub(super) token: String,
    /// By AWS's clock.
    pub(super) now: SystemTime,
}

/// Returns what a manager's tasks are started with. ECS takes no dots there, and names of managers have no slashes.
pub(in crate::route::ssm) fn started_by(owner: &Owner) -> String {
    format!("{STARTED_BY}{}/{}", owner.name.replace('.', "/"), owner.place)
}

/// Returns the name of the manager that has started a task, if it is of the same place.
pub(super) fn manager_of(task: &Task, place: &str) -> Option<String> {
    let name = task.started_by.as_ref()?.strip_prefix(STARTED_BY)?.strip_suffix(place)?.strip_suffix('/')?;
    Some(name.replace('/', "."))
}

/// Returns the family of task definitions that are run.
pub(in crate::route::ssm) fn family(fargate: &Fargate) -> &str {
    let definition = fargate.options.task_definition.as_deref().unwrap_or(FAMILY);
    let name = Arn::parse(definition).map_or(definition, |arn| arn.name());
    name.split(':').next().unwrap_or(name)
}

/// Whether a run of a manager has started a task.
pub(super) fn is_of_run(task: &Task, owner: &Owner) -> bool {
    task.tags.get(RUN_TAG).is_some_and(|run| **run == *owner.run)
}

/// Makes a text one that a tag can have as its value.
pub(super) fn tag_value(text: &str) -> String {
    let is_right = |char: &char| char.is_alphanumeric() || " +-=._:/@".contains(*char);
    text.chars().map(|char| if is_right(&char) { char } else { '_' }).take(MAX_TAG_LEN).collect()
}

fn digest(text: &str) -> String {
    let digest = Sha256::digest(text);
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
