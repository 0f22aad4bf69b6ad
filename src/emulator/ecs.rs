//! Elastic Container Service: clusters, task definitions, tasks and services, as far as bastions in containers need them.
//!
//! Tasks live by themselves, see `life`; the API reads and asks. A task whose agent runs is a target of Systems Manager, see
//! [`target`]. Left out: instances that tasks run on, capacity providers, load balancers, and `ExecuteCommand`, which starts
//! no port forwarding.

mod config;
mod definitions;
mod life;
mod run;
mod services;
mod stack;
mod target;
mod task;
mod tasks;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

pub use self::{
    config::{AgentOutcome, EcsConfig, LaunchType, ServiceConfig, StartFailure, TaskEnd, TaskTimes, TaskTrouble},
    tasks::TaskInfo,
};
use self::{definitions::Definition, run::Tokens, services::Service, task::Task};
pub(super) use self::{
    services::{begin, deploy},
    stack::{create, delete},
    target::connected,
    tasks::{age, infos, is_admitted, stop_all, stop_one},
};
use super::{
    api::{ApiError, Call, denial},
    clock::Clock,
    config::Config,
    http::{FullRequest, Response, response},
    world::lock,
};

/// What `x-amz-target` begins with.
pub(super) const TARGET_PREFIX: &str = "AmazonEC2ContainerServiceV20141113.";

/// Most tags of one thing.
const MAX_TAGS: usize = 50;

/// Everything of the service.
pub(super) struct Ecs {
    store: Mutex<Store>,
    /// Held while a call of `RunTask` is answered: two with one token make one task.
    running: Mutex<()>,
    /// Changes with tasks and services.
    version: watch::Sender<u64>,
    begun: Instant,
}

#[derive(Default)]
struct Store {
    /// Region and name.
    clusters: BTreeSet<(String, String)>,
    definitions: Vec<Arc<Definition>>,
    tasks: BTreeMap<String, Task>,
    /// By their numbers.
    services: BTreeMap<u64, Service>,
    tokens: Tokens,
    /// How many tasks were made.
    made: u32,
}

impl Ecs {
    pub(super) fn new(config: &Config, begun: Instant) -> Self {
        let services = config.ecs.services.iter();
        let names = config.ecs.clusters.iter().chain(services.map(|service| &service.cluster));
        let clusters = names.map(|name| (config.region.clone(), name.clone())).collect();
        let store = Mutex::new(Store { clusters, ..Store::default() });
        Self { store, running: Mutex::default(), version: watch::Sender::new(0), begun }
    }

    /// Looks at a task, or changes it.
    fn with<T>(&self, id: &str, look: impl FnOnce(&mut Task) -> T) -> Option<T> {
        lock(&self.store).tasks.get_mut(id).map(look)
    }

    /// How long there has been this emulator.
    fn uptime(&self, clock: &Clock) -> Duration {
        clock.instant() - self.begun
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }
}

pub(super) fn answer(call: &Call<'_>, operation: &str, request: &FullRequest) -> Result<Response, ApiError> {
    let input: Value = serde_json::from_slice(&request.body)
        .ok()
        .filter(Value::is_object)
        .ok_or_else(|| ApiError::new(400, "SerializationException", "the body is not a JSON object"))?;
    Ok(response(200, "application/x-amz-json-1.1", output(call, operation, &input)?.to_string()))
}

/// Carries an operation out.
pub(super) fn output(call: &Call<'_>, operation: &str, input: &Value) -> Result<Value, ApiError> {
    match operation {
        "CreateCluster" => create_cluster(call, input),
        "DescribeClusters" => describe_clusters(call, input),
        "RegisterTaskDefinition" => definitions::register(call, input),
        "DescribeTaskDefinition" => definitions::describe(call, input),
        "RunTask" => run::run(call, input),
        "ListTasks" => tasks::list(call, input),
        "DescribeTasks" => tasks::describe(call, input),
        "StopTask" => tasks::stop(call, input),
        "TagResource" => tasks::tag(call, input),
        "DescribeServices" => services::describe(call, input),
        "UpdateService" => services::update(call, input),
        other => Err(ApiError::new(400, "UnknownOperationException", format!("no operation {other}"))),
    }
}

/// The body of an error answer.
pub(super) fn error_document(error: &ApiError) -> Value {
    let mut document = json!({ "__type": error.code, "message": error.message });
    if !error.resource_ids.is_empty() {
        document["resourceIds"] = json!(error.resource_ids);
    }
    document
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(400, "InvalidParameterException", message)
}

fn client_error(message: impl Into<String>) -> ApiError {
    ApiError::new(400, "ClientException", message)
}

fn text<'a>(input: &'a Value, name: &str) -> Option<&'a str> {
    input.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn texts<'a>(input: &'a Value, name: &str) -> Vec<&'a str> {
    let list = input.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).collect()
}

fn wants_tags(input: &Value) -> bool {
    texts(input, "include").contains(&"TAGS")
}

fn tags_value(tags: &BTreeMap<String, String>) -> Value {
    tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

/// Reads the tags of something that is to be made, which asks for a permission of its own.
fn read_tags(call: &Call<'_>, input: &Value, resource: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let list = input.get("tags").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if list.len() > MAX_TAGS {
        return Err(invalid("Too many tags: a resource can have 50."));
    }
    let mut tags = BTreeMap::new();
    for tag in list {
        let part = |name: &str| tag.get(name).and_then(Value::as_str).unwrap_or_default();
        let (key, value) = (part("key"), part("value"));
        if !(1..=128).contains(&key.chars().count()) || value.chars().count() > 256 {
            return Err(invalid("Invalid tag: keys have 1 to 128 characters, values 256 at most."));
        }
        let allowed = |c: char| c.is_alphanumeric() || " _.:/=+-@".contains(c);
        if !key.chars().chain(value.chars()).all(allowed) {
            return Err(invalid(format!(
                "Some tags contain invalid characters. Valid characters: UTF-8 letters, spaces, \
                                        numbers and _ . / = + - : @. Tag: {key}"
            )));
        }
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(invalid("Invalid tag: keys that begin with aws: are reserved."));
        }
        if tags.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(invalid("Duplicate tag keys found."));
        }
    }
    let action = "ecs:TagResource";
    if !tags.is_empty() && call.world.settings().denied_actions.contains(action) {
        return Err(ApiError::new(400, "AccessDeniedException", denial(&call.caller.arn, action, resource)));
    }
    Ok(tags)
}

/// The ARN of a role that may be named by itself.
fn role_arn(call: &Call<'_>, role: &str) -> String {
    if role.starts_with("arn:") { role.to_owned() } else { format!("arn:aws:iam::{}:role/{role}", call.caller.account) }
}

/// Checks that the caller may give tasks a role.
fn pass_role(call: &Call<'_>, role: &str) -> Result<(), ApiError> {
    let action = "iam:PassRole";
    if call.world.settings().denied_actions.contains(action) {
        let message = denial(&call.caller.arn, action, &role_arn(call, role));
        return Err(ApiError::new(400, "AccessDeniedException", message));
    }
    Ok(())
}

fn cluster_arn(call: &Call<'_>, name: &str) -> String {
    format!("arn:aws:ecs:{}:{}:cluster/{name}", call.region, call.caller.account)
}

/// The name in a cluster's ARN, or the name itself.
fn cluster_name(text: &str) -> &str {
    text.rsplit_once(":cluster/").map_or(text, |(_, name)| name)
}

/// The cluster that an input is about.
fn cluster(call: &Call<'_>, input: &Value) -> Result<String, ApiError> {
    let name = cluster_name(text(input, "cluster").unwrap_or("default"));
    let known = lock(&call.world.ecs.store).clusters.contains(&(call.region.clone(), name.to_owned()));
    if known { Ok(name.to_owned()) } else { Err(ApiError::new(400, "ClusterNotFoundException", "Cluster not found.")) }
}

fn create_cluster(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let name = text(input, "clusterName").unwrap_or("default");
    call.authorize("*")?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if name.len() > 255 || !name.bytes().all(allowed) {
        return Err(invalid("Identifier must only contain letters, numbers, hyphens and underscores, 255 at most."));
    }
    read_tags(call, input, &cluster_arn(call, name))?;
    let mut store = lock(&call.world.ecs.store);
    store.clusters.insert((call.region.clone(), name.to_owned()));
    Ok(json!({ "cluster": cluster_description(call, &store, name) }))
}

fn describe_clusters(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let mut names = texts(input, "clusters");
    if names.is_empty() {
        names.push("default");
    }
    let store = lock(&call.world.ecs.store);
    let (mut clusters, mut failures) = (Vec::new(), Vec::new());
    for name in names.into_iter().map(cluster_name) {
        call.authorize(&cluster_arn(call, name))?;
        if store.clusters.contains(&(call.region.clone(), name.to_owned())) {
            clusters.push(cluster_description(call, &store, name));
        } else {
            failures.push(json!({"arn": cluster_arn(call, name), "reason": "MISSING"}));
        }
    }
    Ok(json!({"clusters": clusters, "failures": failures}))
}

fn cluster_description(call: &Call<'_>, store: &Store, name: &str) -> Value {
    let count = |status: task::Status| {
        store.tasks.values().filter(|task| task.making.cluster == name && task.status == status).count()
    };
    json!({
        "clusterArn": cluster_arn(call, name),
        "clusterName": name,
        "status": "ACTIVE",
        "registeredContainerInstancesCount": 0,
        "runningTasksCount": count(task::Status::Running),
        "pendingTasksCount": count(task::Status::Pending),
        "activeServicesCount": store.services.values().filter(|service| service.config.cluster == name).count(),
        "statistics": [], "tags": [], "settings": [], "capacityProviders": [], "defaultCapacityProviderStrategy": [],
    })
}
