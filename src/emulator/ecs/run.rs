//! `RunTask`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    super::{
        api::{ApiError, Call},
        vpc::{SubnetConfig, VpcConfig},
        world::{World, lock},
    },
    client_error, cluster,
    config::{AgentOutcome, LaunchType, StartFailure},
    definitions::{self, Definition, Lives},
    invalid, life, pass_role, read_tags, role_arn,
    task::{Making, Plan, Task},
    text, texts, wants_tags,
};

/// What was asked for under each client token, and the tasks that came of it.
pub(super) type Tokens = BTreeMap<String, (Value, Vec<String>)>;

/// Most subnets of a task.
const MAX_SUBNETS: usize = 16;

/// Most security groups of a task.
const MAX_GROUPS: usize = 5;

/// Makes a task and lets it live.
pub(super) fn make(world: &Arc<World>, making: Making) -> String {
    let unseen = world.settings().tasks.unseen.unwrap_or(world.config.ecs.times.unseen);
    let unseen = if making.plan.is_running { std::time::Duration::ZERO } else { unseen };
    let now = world.clock.now();
    let id = {
        let mut store = lock(&world.ecs.store);
        store.made += 1;
        let task = Task::new(making, store.made, world.clock.wall(), now.instant + unseen);
        let id = task.id.clone();
        store.tasks.insert(id.clone(), task);
        id
    };
    world.tasks.spawn(life::live(world.clone(), id.clone()));
    id
}

/// What becomes of a task with this container in this place, and with what is wrong at the moment.
pub(super) fn plan(world: &World, definition: &Definition, network: &Network<'_>, lives: Lives) -> Plan {
    let trouble = world.settings().tasks.of_next_task();
    let image = definition.containers().next().map(|(_, image)| image).unwrap_or_default();
    let is_out = network.reaches_out();
    let is_ecr = image.contains(".dkr.ecr.");
    let by_endpoints = is_ecr && ["ecr.api", "ecr.dkr", "s3"].iter().all(|name| network.vpc.has_endpoint(name));
    let failure = match trouble.start {
        Some(failure) => Some(failure),
        None if network.subnet.free_addresses == 0 => Some(StartFailure::SubnetFull),
        None if is_ecr && !definition.has_execution_role() => Some(StartFailure::RegistryAuth),
        None if !is_out && is_ecr && !network.vpc.has_endpoint("ecr.api") => Some(StartFailure::RegistryAuth),
        None if !is_out && !by_endpoints => Some(StartFailure::ImageTimeout),
        None => None,
    };
    let hears = is_out || network.vpc.has_endpoint("ssmmessages");
    let config = &world.config.ecs;
    Plan {
        failure: failure.map(|failure| (failure, failure.reason(&image, &world.config.region, &network.subnet.id))),
        agent: if trouble.agent == AgentOutcome::Running && !hears { AgentOutcome::Pending } else { trouble.agent },
        delay: trouble.delay,
        disuse: config.disuse.filter(|_| lives.disuse.is_some()).or(lives.disuse),
        life: config.life.filter(|_| lives.life.is_some()).or(lives.life),
        out_of_memory: trouble.out_of_memory,
        is_running: false,
    }
}

/// Where a task is.
pub(super) struct Network<'a> {
    pub(super) vpc: &'a VpcConfig,
    pub(super) subnet: &'a SubnetConfig,
    pub(super) groups: Vec<String>,
    pub(super) public_address: bool,
}

impl Network<'_> {
    fn reaches_out(&self) -> bool {
        if self.subnet.public { self.public_address } else { self.vpc.nat }
    }
}

pub(super) fn run(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let named = text(input, "taskDefinition").ok_or_else(|| invalid("TaskDefinition cannot be empty."))?;
    let known = definitions::find(&lock(&call.world.ecs.store).definitions, named);
    let resource = known.as_ref().map_or_else(
        || format!("arn:aws:ecs:{}:{}:task-definition/{named}", call.region, call.caller.account),
        |definition| definition.arn(),
    );
    call.authorize(&resource)?;
    let cluster = cluster(call, input)?;
    let definition = known.ok_or_else(|| client_error("TaskDefinition not found."))?;
    let count = match input.get("count").filter(|value| !value.is_null()) {
        None => 1,
        Some(count) => {
            count.as_u64().filter(|count| (1..=10).contains(count)).ok_or_else(|| invalid("Invalid count: 1 to 10."))?
        }
    };
    let started_by = text(input, "startedBy").unwrap_or_default();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_/".contains(&byte);
    if started_by.len() > 128 || !started_by.bytes().all(allowed) {
        return Err(invalid(
            "startedBy must have at most 128 letters, numbers, hyphens, forward slashes and underscores.",
        ));
    }
    let token = text(input, "clientToken");
    if token.is_some_and(|token| token.len() > 64 || !token.bytes().all(|byte| byte.is_ascii_graphic())) {
        return Err(invalid("clientToken must have at most 64 characters of ASCII 33-126."));
    }
    let _turn = lock(&call.world.ecs.running);
    if let Some(answer) = repeated(call, input, token)? {
        return Ok(answer);
    }
    let launch_type = match text(input, "launchType") {
        Some("FARGATE") => LaunchType::Fargate,
        None | Some("EC2") => LaunchType::Ec2,
        Some(other) => return Err(invalid(format!("Invalid launchType: {other}"))),
    };
    let tasks_arn = format!("arn:aws:ecs:{}:{}:task/{cluster}/*", call.region, call.caller.account);
    let tags = read_tags(call, input, &tasks_arn)?;
    let exec = input.get("enableExecuteCommand").and_then(Value::as_bool).unwrap_or_default();
    check_role(call, input, &definition, exec)?;
    let network = network(call, input)?;
    if let Some(reason) = refusal(call.world) {
        return Ok(json!({"tasks": [], "failures": [{ "reason": reason }]}));
    }
    if launch_type == LaunchType::Ec2 {
        return Err(invalid("No Container Instances were found in your cluster."));
    }
    let group = text(input, "group").map_or_else(|| format!("family:{}", definition.family), str::to_owned);
    let making = Making {
        region: call.region.clone(),
        account: call.caller.account.clone(),
        group,
        started_by: started_by.to_owned(),
        tags,
        exec,
        launch_type,
        subnet: network.subnet.id.clone(),
        security_groups: network.groups.clone(),
        zone: format!("{}{}", call.region, network.subnet.zone),
        plan: plan(call.world, &definition, &network, definition.lives()),
        cluster,
        definition,
    };
    let others = (1..count).map(|_| plan(call.world, &making.definition, &network, making.definition.lives()));
    let plans: Vec<Plan> = std::iter::once(making.plan.clone()).chain(others).collect();
    let ids: Vec<String> = plans.into_iter().map(|plan| make(call.world, Making { plan, ..making.clone() })).collect();
    if let Some(token) = token {
        lock(&call.world.ecs.store).tokens.insert(token.to_owned(), (input.clone(), ids.clone()));
    }
    call.world.journal.touch();
    Ok(made(call, input, &ids))
}

fn made(call: &Call<'_>, input: &Value, ids: &[String]) -> Value {
    let with_tags = wants_tags(input) || input.get("tags").is_some();
    let tasks: Vec<Value> =
        ids.iter().filter_map(|id| call.world.ecs.with(id, |task| task.description(with_tags, false))).collect();
    json!({"tasks": tasks, "failures": []})
}

/// The answer to a client token that has been used.
fn repeated(call: &Call<'_>, input: &Value, token: Option<&str>) -> Result<Option<Value>, ApiError> {
    let Some(token) = token else { return Ok(None) };
    let Some((first, ids)) = lock(&call.world.ecs.store).tokens.get(token).cloned() else { return Ok(None) };
    if first == *input {
        return Ok(Some(made(call, input, &ids)));
    }
    let mut error = ApiError::new(
        400,
        "ConflictException",
        "The request could not be processed because of conflict in the current state of the resource.",
    );
    error.resource_ids = ids.iter().filter_map(|id| call.world.ecs.with(id, |task| task.arn())).collect();
    Err(error)
}

fn check_role(call: &Call<'_>, input: &Value, definition: &Definition, exec: bool) -> Result<(), ApiError> {
    let role = input
        .get("overrides")
        .and_then(|overrides| text(overrides, "taskRoleArn"))
        .or_else(|| definition.task_role())
        .map(|role| role_arn(call, role));
    let Some(role) = role else {
        if exec {
            return Err(invalid(
                "The execute command failed because a valid task role is not being used. Specify a valid task role in \
                 your task definition or as a task override and try again.",
            ));
        }
        return Ok(());
    };
    pass_role(call, &role)?;
    let name = role.rsplit('/').next().unwrap_or_default();
    let untrusted = call.world.settings().tasks.role_untrusted;
    if untrusted || !call.world.config.ecs.task_roles.iter().any(|known| known == name) {
        return Err(client_error(format!(
            "ECS was unable to assume the role '{role}' that was provided for this task. Please verify that the role being \
             passed has the proper trust relationship and permissions and that your IAM user has permissions to pass this \
             role."
        )));
    }
    Ok(())
}

/// The reason of a failure that is due.
fn refusal(world: &World) -> Option<String> {
    let mut settings = world.settings();
    if settings.tasks.run_failures == 0 {
        return None;
    }
    settings.tasks.run_failures = settings.tasks.run_failures.saturating_sub(1);
    settings.tasks.run_failure.clone()
}

/// Finds the subnets and security groups, all of one network, and takes a subnet.
fn network<'a>(call: &Call<'a>, input: &Value) -> Result<Network<'a>, ApiError> {
    let missing = || invalid("Network Configuration must be provided when networkMode 'awsvpc' is specified.");
    let configuration = input
        .get("networkConfiguration")
        .and_then(|configuration| configuration.get("awsvpcConfiguration"))
        .ok_or_else(missing)?;
    let (subnets, groups) = (texts(configuration, "subnets"), texts(configuration, "securityGroups"));
    if subnets.is_empty() {
        return Err(invalid("subnets can not be empty."));
    }
    if subnets.len() > MAX_SUBNETS {
        return Err(invalid("subnets can have at most 16 items."));
    }
    if groups.len() > MAX_GROUPS {
        return Err(invalid("securityGroups can have at most 5 items."));
    }
    let mut networks: BTreeSet<&str> = BTreeSet::new();
    let mut found = Vec::new();
    for id in &subnets {
        let known = call
            .world
            .config
            .vpcs
            .iter()
            .find_map(|vpc| vpc.subnets.iter().find(|subnet| subnet.id == *id).map(|subnet| (vpc, subnet)));
        let (vpc, subnet) = known.ok_or_else(|| {
            invalid(format!(
                "Error retrieving subnet information for [{id}]: The subnet ID '{id}' does not exist (ErrorCode: \
                 InvalidSubnetID.NotFound)"
            ))
        })?;
        networks.insert(&vpc.id);
        found.push((vpc, subnet));
    }
    if networks.len() > 1 {
        return Err(invalid("Subnets must be in the same VPC."));
    }
    // The service takes one that has room, if there is one.
    let (vpc, subnet) = found
        .iter()
        .find(|(_, subnet)| subnet.free_addresses > 0)
        .or_else(|| found.first())
        .copied()
        .ok_or_else(missing)?;
    for id in &groups {
        if !call.world.config.vpcs.iter().any(|vpc| vpc.security_groups.iter().any(|group| group == id)) {
            return Err(invalid(format!(
                "Error retrieving security group information for [{id}]: The security group '{id}' does not exist \
                 (ErrorCode: InvalidGroup.NotFound)"
            )));
        }
        if !vpc.security_groups.iter().any(|group| group == id) {
            return Err(invalid(format!("Security group {id} does not belong to the VPC of the subnets.")));
        }
    }
    let public_address = match text(configuration, "assignPublicIp") {
        None | Some("DISABLED") => false,
        Some("ENABLED") => true,
        Some(other) => return Err(invalid(format!("Invalid assignPublicIp: {other}"))),
    };
    let groups = groups.into_iter().map(str::to_owned).collect();
    Ok(Network { vpc, subnet, groups, public_address })
}
