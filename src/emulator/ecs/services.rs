//! Services: they keep as many tasks as they are to have, and replace all of them when they are deployed anew.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    super::{
        api::{ApiError, Call},
        world::{World, lock},
    },
    Store, cluster, cluster_arn,
    config::ServiceConfig,
    definitions::{Definition, Lives},
    invalid, run,
    run::Network,
    task::{Making, Status, StopCause, Task},
    text, texts,
};

/// Most services in one question.
const MAX_SERVICES: usize = 10;

/// Most events that are kept.
const MAX_EVENTS: usize = 100;

/// Least pause between two looks at a service's tasks: tasks that fail at once are made no faster.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// A service at work.
pub(super) struct Service {
    pub(super) config: ServiceConfig,
    definition: Arc<Definition>,
    /// Newest first; the others go when it has all its tasks.
    deployments: VecDeque<Deployment>,
    /// When and what.
    events: VecDeque<(Duration, String)>,
    created: Duration,
}

struct Deployment {
    id: String,
    created: Duration,
}

impl Deployment {
    fn new(created: Duration) -> Self {
        Self { id: format!("ecs-svc/{:019}", Uuid::new_v4().as_u128() % 10_u128.pow(19)), created }
    }
}

impl Service {
    fn group(&self) -> String {
        format!("service:{}", self.config.name)
    }

    fn deploy(&mut self, wall: Duration) {
        self.deployments.push_front(Deployment::new(wall));
    }

    fn tell(&mut self, wall: Duration, text: String) {
        self.events.push_front((wall, text));
        self.events.truncate(MAX_EVENTS);
    }

    fn is_own(&self, task: &Task) -> bool {
        task.making.cluster == self.config.cluster && task.making.group == self.group()
    }
}

/// Makes the services with their tasks, and keeps them.
pub(in crate::emulator) fn begin(world: &Arc<World>) {
    for config in &world.config.ecs.services {
        let (region, account) = (&world.config.region, &world.config.account);
        let definition = Arc::new(Definition::of_service(&config.name, &config.containers, region, account));
        lock(&world.ecs.store).definitions.push(definition.clone());
        add(world, config.clone(), definition);
    }
}

/// Makes a service whose tasks run at once, and keeps it.
pub(super) fn add(world: &Arc<World>, config: ServiceConfig, definition: Arc<Definition>) {
    let now = world.clock.wall();
    let redeploy = config.redeploy;
    let service = Service {
        config,
        definition,
        deployments: VecDeque::from([Deployment::new(now)]),
        events: VecDeque::new(),
        created: now,
    };
    let number = {
        let mut store = lock(&world.ecs.store);
        let number = store.services.last_key_value().map_or(0, |(last, _)| last + 1);
        store.services.insert(number, service);
        number
    };
    step(world, number, true);
    world.tasks.spawn(keep(world.clone(), number, redeploy));
}

/// Deletes a service, whose tasks stop.
pub(super) fn delete(world: &World, cluster: &str, name: &str) {
    let mut store = lock(&world.ecs.store);
    let is_it = |service: &Service| service.config.cluster == cluster && service.config.name == name;
    let Some(number) = store.services.iter().find(|(_, service)| is_it(service)).map(|(number, _)| *number) else {
        return;
    };
    let Some(service) = store.services.remove(&number) else { return };
    let wall = world.clock.wall();
    for task in store.tasks.values_mut().filter(|task| service.is_own(task)) {
        task.ask_to_stop(StopCause::new("ServiceSchedulerInitiated", "Service was deleted."), wall);
    }
    drop(store);
    world.ecs.changed();
}

/// Deploys a service anew, or all of them; returns how many.
pub(in crate::emulator) fn deploy(world: &World, name: Option<&str>) -> usize {
    let wall = world.clock.wall();
    let mut store = lock(&world.ecs.store);
    let services = store.services.values_mut().filter(|service| name.is_none_or(|name| service.config.name == name));
    let count = services.map(|service| service.deploy(wall)).count();
    drop(store);
    world.ecs.changed();
    count
}

/// Keeps the tasks of one service.
async fn keep(world: Arc<World>, number: u64, redeploy: Option<Duration>) {
    let mut changes = world.ecs.version.subscribe();
    let mut due = redeploy.map(|every| world.clock.instant() + every);
    while lock(&world.ecs.store).services.contains_key(&number) {
        step(&world, number, false);
        let deployment = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = world.stop.cancelled() => return,
            () = deployment => {
                let wall = world.clock.wall();
                if let Some(service) = lock(&world.ecs.store).services.get_mut(&number) {
                    service.deploy(wall);
                }
                due = redeploy.map(|every| world.clock.instant() + every);
            }
            changed = changes.changed() => if changed.is_err() { return },
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// What a service does next.
struct Step {
    missing: usize,
    superfluous: Vec<String>,
}

fn next_step(store: &Store, service: &Service) -> Step {
    let Some(primary) = service.deployments.front() else { return Step { missing: 0, superfluous: Vec::new() } };
    let desired = service.config.desired_count;
    let live = store.tasks.values().filter(|task| service.is_own(task) && !task.wants_to_stop());
    let (new, old): (Vec<&Task>, Vec<&Task>) = live.partition(|task| task.making.started_by == primary.id);
    let running = new.iter().filter(|task| task.status == Status::Running).count();
    let mut superfluous: Vec<String> = new.iter().skip(desired).map(|task| task.id.clone()).collect();
    if running >= desired {
        superfluous.extend(old.iter().map(|task| task.id.clone()));
    }
    Step { missing: desired.saturating_sub(new.len()), superfluous }
}

/// Starts what is missing, and stops what is superfluous.
fn step(world: &Arc<World>, number: u64, is_running: bool) {
    let vpc = world.config.vpcs.first();
    let Some((vpc, subnet)) = vpc.and_then(|vpc| Some((vpc, vpc.subnets.first()?))) else { return };
    let network = Network { vpc, subnet, groups: Vec::new(), public_address: false };
    let (making, missing) = {
        let mut store = lock(&world.ecs.store);
        let Some(service) = store.services.get(&number) else { return };
        let Step { missing, superfluous } = next_step(&store, service);
        let Some(primary) = service.deployments.front().map(|deployment| deployment.id.clone()) else { return };
        let definition = service.definition.clone();
        let making = (service.config.clone(), service.group(), primary.clone(), definition);
        let wall = world.clock.wall();
        for id in &superfluous {
            if let Some(task) = store.tasks.get_mut(id) {
                let reason = format!("Scaling activity initiated by (deployment {primary})");
                task.ask_to_stop(StopCause::new("ServiceSchedulerInitiated", reason), wall);
            }
        }
        let Some(service) = store.services.get_mut(&number) else { return };
        if !superfluous.is_empty() {
            let name = &service.config.name;
            let text = format!("(service {name}) has stopped {} running tasks.", superfluous.len());
            service.tell(wall, text);
        }
        if missing == 0 && service.deployments.len() > 1 && !superfluous.is_empty() {
            service.deployments.truncate(1);
            let text = format!("(service {}) (deployment {primary}) deployment completed.", service.config.name);
            service.tell(wall, text);
        }
        (making, missing)
    };
    if missing == 0 {
        return;
    }
    let (config, group, started_by, definition) = making;
    for _ in 0..missing {
        let plan = run::plan(world, &definition, &network, Lives { disuse: None, life: None });
        let plan = if is_running { super::task::Plan { failure: None, is_running, ..plan } } else { plan };
        run::make(
            world,
            Making {
                cluster: config.cluster.clone(),
                region: world.config.region.clone(),
                account: world.config.account.clone(),
                definition: definition.clone(),
                group: group.clone(),
                started_by: started_by.clone(),
                tags: [("service".to_owned(), config.name.clone())].into(),
                exec: config.exec,
                launch_type: config.launch_type,
                subnet: subnet.id.clone(),
                security_groups: Vec::new(),
                zone: format!("{}{}", world.config.region, subnet.zone),
                plan,
            },
        );
    }
    let text = format!("(service {}) has started {missing} tasks.", config.name);
    let wall = world.clock.wall();
    if let Some(service) = lock(&world.ecs.store).services.get_mut(&number) {
        service.tell(wall, text);
    }
}

fn service_arn(call: &Call<'_>, cluster: &str, name: &str) -> String {
    format!("arn:aws:ecs:{}:{}:service/{cluster}/{name}", call.region, call.caller.account)
}

pub(super) fn describe(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let asked = texts(input, "services");
    call.authorize(&service_arn(call, "*", "*"))?;
    let cluster = cluster(call, input)?;
    if asked.is_empty() {
        return Err(invalid("Services cannot be empty."));
    }
    if asked.len() > MAX_SERVICES {
        return Err(invalid("Services cannot have more than 10 entries."));
    }
    let no_exec = call.world.settings().tasks.no_exec;
    let store = lock(&call.world.ecs.store);
    let (mut services, mut failures) = (Vec::new(), Vec::new());
    for name in asked.into_iter().map(|name| name.rsplit('/').next().unwrap_or_default()) {
        match store.services.values().find(|known| known.config.name == name && known.config.cluster == cluster) {
            Some(service) => services.push(description(call, &store, service, no_exec)),
            None => failures.push(json!({"arn": service_arn(call, &cluster, name), "reason": "MISSING"})),
        }
    }
    Ok(json!({"services": services, "failures": failures}))
}

fn description(call: &Call<'_>, store: &Store, service: &Service, no_exec: bool) -> Value {
    let config = &service.config;
    let is_starting = |task: &&Task| task.status < Status::Running && !task.wants_to_stop();
    let own = |deployment: Option<&str>| {
        let tasks = store.tasks.values().filter(|task| service.is_own(task));
        tasks.filter(|task| deployment.is_none_or(|id| task.making.started_by == id)).collect::<Vec<_>>()
    };
    let running = |tasks: &[&Task]| tasks.iter().filter(|task| task.status == Status::Running).count();
    let pending = |tasks: &[&Task]| tasks.iter().filter(|task| is_starting(task)).count();
    let deployments = service.deployments.iter().enumerate().map(|(n, Deployment { id, created })| {
        let tasks = own(Some(id));
        json!({
            "id": id,
            "status": if n == 0 { "PRIMARY" } else { "ACTIVE" },
            "taskDefinition": service.definition.arn(),
            "desiredCount": if n == 0 { config.desired_count } else { 0 },
            "runningCount": running(&tasks),
            "pendingCount": pending(&tasks),
            "failedTasks": 0,
            "createdAt": created.as_secs_f64(),
            "updatedAt": created.as_secs_f64(),
            "launchType": config.launch_type.name(),
            "rolloutState": if service.deployments.len() == 1 { "COMPLETED" } else { "IN_PROGRESS" },
        })
    });
    let events = service.events.iter().map(|(at, message)| {
        json!({"id": Uuid::from_u128(at.as_nanos()).to_string(), "createdAt": at.as_secs_f64(), "message": message})
    });
    let tasks = own(None);
    json!({
        "serviceArn": service_arn(call, &config.cluster, &config.name),
        "serviceName": config.name,
        "clusterArn": cluster_arn(call, &config.cluster),
        "status": "ACTIVE",
        "desiredCount": config.desired_count,
        "runningCount": running(&tasks),
        "pendingCount": pending(&tasks),
        "launchType": config.launch_type.name(),
        "taskDefinition": service.definition.arn(),
        "deployments": deployments.collect::<Vec<_>>(),
        "events": events.collect::<Vec<_>>(),
        "createdAt": service.created.as_secs_f64(),
        "enableExecuteCommand": config.exec && !no_exec,
        "schedulingStrategy": "REPLICA",
        "loadBalancers": [], "serviceRegistries": [],
    })
}

pub(super) fn update(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let name = text(input, "service").ok_or_else(|| invalid("Service cannot be empty."))?;
    let name = name.rsplit('/').next().unwrap_or_default();
    let cluster = cluster(call, input)?;
    call.authorize(&service_arn(call, &cluster, name))?;
    let wall = call.world.clock.wall();
    let no_exec = call.world.settings().tasks.no_exec;
    let mut store = lock(&call.world.ecs.store);
    let found = store.services.values_mut().find(|known| known.config.name == name && known.config.cluster == cluster);
    let service = found.ok_or_else(|| ApiError::new(400, "ServiceNotFoundException", "Service not found."))?;
    if let Some(count) = input.get("desiredCount").and_then(Value::as_u64) {
        service.config.desired_count = usize::try_from(count).unwrap_or_default();
    }
    if let Some(exec) = input.get("enableExecuteCommand").and_then(Value::as_bool) {
        service.config.exec = exec;
    }
    if input.get("forceNewDeployment").and_then(Value::as_bool) == Some(true) {
        service.deploy(wall);
    }
    let is_it = |known: &&Service| known.config.name == name && known.config.cluster == cluster;
    let described = store.services.values().find(is_it).map(|service| description(call, &store, service, no_exec));
    drop(store);
    call.world.ecs.changed();
    Ok(json!({ "service": described }))
}
