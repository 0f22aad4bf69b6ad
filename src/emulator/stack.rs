//! What a template of CloudFormation has created: roles, security groups, an instance, access entries; and what follows for
//! whoever uses them when one is gone.
//!
//! Invariant: resources are looked up by their type and what they are called, so that each answer is one row of a table.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use serde_json::{Value, json};

use super::{
    BastionConfig, Emulator,
    config::GROUP_TAG,
    ecs,
    script::Destination,
    world::{World, lock},
};

/// All resources, by their names in the template.
#[derive(Debug, Default)]
pub(super) struct Stack(BTreeMap<String, Resource>);

#[derive(Debug, Clone)]
pub(super) struct Resource {
    kind: String,
    /// As the service names it: a name or an id.
    pub(super) physical: String,
    /// With all references resolved.
    pub(super) properties: Value,
}

impl Resource {
    pub(super) fn text(&self, name: &str) -> &str {
        self.properties[name].as_str().unwrap_or_default()
    }
}

impl Stack {
    pub(super) fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Resource> {
        self.0.values().filter(move |resource| resource.kind == kind)
    }

    /// One by what its service calls it.
    pub(super) fn find(&self, kind: &str, physical: &str) -> Option<&Resource> {
        self.0.values().find(|resource| resource.kind == kind && resource.physical == physical)
    }

    /// Whether the policies of a role name an action; `None` if a template has not made the role.
    pub(super) fn allows(&self, role: &str, action: &str) -> Option<bool> {
        let found = self.find("AWS::IAM::Role", role)?;
        let own = found.properties["Policies"].as_array().into_iter().flatten();
        let named =
            |policy: &&Resource| policy.properties["Roles"].as_array().into_iter().flatten().any(|name| name == role);
        let others = self.of_kind("AWS::IAM::Policy").filter(named).map(|policy| &policy.properties);
        let statements =
            own.chain(others).flat_map(|policy| policy["PolicyDocument"]["Statement"].as_array().into_iter().flatten());
        let actions = statements.flat_map(|statement| statement["Action"].as_array().into_iter().flatten());
        Some(actions.into_iter().any(|allowed| allowed == action))
    }

    fn create(&mut self, template: &Value, account: &str) {
        let resources = template["Resources"].as_object().into_iter().flatten();
        let resources: BTreeMap<String, Resource> = resources
            .map(|(name, resource)| {
                let kind = resource["Type"].as_str().unwrap_or_default().to_owned();
                let properties = resource["Properties"].clone();
                let physical = physical(&kind, name, &properties);
                (name.clone(), Resource { kind, physical, properties })
            })
            .collect();
        let resolved = resources.iter().map(|(name, resource)| {
            let properties = resolve(&resource.properties, &resources, account);
            (name.clone(), Resource { properties, ..resource.clone() })
        });
        self.0 = resolved.collect();
    }
}

/// What a service calls a resource.
fn physical(kind: &str, name: &str, properties: &Value) -> String {
    let number = || {
        let mut hasher = DefaultHasher::new();
        (kind, name).hash(&mut hasher);
        format!("0{:016x}", hasher.finish())
    };
    let named = |key: &str| properties[key].as_str().map(str::to_owned);
    let name = match kind {
        "AWS::IAM::Role" => named("RoleName"),
        "AWS::IAM::InstanceProfile" => named("InstanceProfileName"),
        "AWS::AutoScaling::AutoScalingGroup" => named("AutoScalingGroupName"),
        "AWS::ECS::Cluster" => named("ClusterName"),
        "AWS::ECS::TaskDefinition" => named("Family"),
        "AWS::ECS::Service" => named("ServiceName"),
        "AWS::EC2::SecurityGroup" => Some(format!("sg-{}", number())),
        "AWS::EC2::LaunchTemplate" => Some(format!("lt-{}", number())),
        "AWS::EC2::InstanceConnectEndpoint" => Some(format!("eice-{}", number())),
        "AWS::EC2::VPCEndpoint" => Some(format!("vpce-{}", number())),
        _ => None,
    };
    name.unwrap_or_else(number)
}

/// Puts in what references stand for.
fn resolve(value: &Value, resources: &BTreeMap<String, Resource>, account: &str) -> Value {
    let found = |name: &Value| name.as_str().and_then(|name| resources.get(name));
    match value {
        Value::Object(fields) => {
            if let Some(resource) = fields.get("Ref").and_then(found) {
                return json!(resource.physical);
            }
            if let Some(Value::Array(parts)) = fields.get("Fn::GetAtt")
                && let [name, attribute] = &parts[..]
                && let Some(resource) = found(name)
            {
                return match (resource.kind.as_str(), attribute.as_str().unwrap_or_default()) {
                    ("AWS::IAM::Role", "Arn") => json!(format!("arn:aws:iam::{account}:role/{}", resource.physical)),
                    ("AWS::IAM::InstanceProfile", "Arn") => {
                        json!(format!("arn:aws:iam::{account}:instance-profile/{}", resource.physical))
                    }
                    ("AWS::EC2::LaunchTemplate", "LatestVersionNumber") => json!("1"),
                    _ => json!(resource.physical),
                };
            }
            fields.iter().map(|(key, value)| (key.clone(), resolve(value, resources, account))).collect()
        }
        Value::Array(items) => items.iter().map(|item| resolve(item, resources, account)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

impl Emulator {
    /// Creates what a template says, in place of what another one did. Instances of Auto Scaling groups and tasks of services run
    /// at once.
    pub fn create_stack(&self, template: &Value) {
        let world = &self.world;
        let old: Vec<Resource> = lock(&world.stack).0.values().cloned().collect();
        for Resource { kind, properties, .. } in &old {
            ecs::delete(world, kind, properties);
        }
        lock(&world.stack).create(template, &world.config.account);
        for kind in ["AWS::ECS::Cluster", "AWS::ECS::TaskDefinition", "AWS::ECS::Service"] {
            let made: Vec<Resource> = lock(&world.stack).of_kind(kind).cloned().collect();
            made.iter().for_each(|made| ecs::create(world, kind, &made.properties));
        }
        let groups: Vec<Resource> = {
            let stack = lock(&world.stack);
            stack.of_kind("AWS::AutoScaling::AutoScalingGroup").cloned().collect()
        };
        for group in groups {
            let subnet = group.properties["VPCZoneIdentifier"][0].as_str().unwrap_or_default();
            let vpc = world.config.vpcs.iter().find(|vpc| vpc.subnets.iter().any(|known| known.id == subnet));
            let mut instance = BastionConfig::new(instance_of(&group.physical)).tagged(GROUP_TAG, &group.physical);
            for tag in group.properties["Tags"].as_array().into_iter().flatten() {
                let part = |name: &str| tag[name].as_str().unwrap_or_default();
                instance = instance.tagged(part("Key"), part("Value"));
            }
            instance.vpc = vpc.map(|vpc| vpc.id.clone()).unwrap_or_default();
            world.fleet.launch(instance, world.clock.wall());
        }
        settle(world);
    }

    /// Deletes one of the resources, by its name in the template. False if there is none.
    pub fn delete_resource(&self, name: &str) -> bool {
        let gone = lock(&self.world.stack).0.remove(name);
        if let Some(resource) = &gone {
            if resource.kind == "AWS::AutoScaling::AutoScalingGroup" {
                self.world.fleet.terminate(&instance_of(&resource.physical));
            }
            ecs::delete(&self.world, &resource.kind, &resource.properties);
            settle(&self.world);
        }
        gone.is_some()
    }
}

/// The only instance of an Auto Scaling group.
pub(super) fn instance_of(group: &str) -> String {
    let mut hasher = DefaultHasher::new();
    group.hash(&mut hasher);
    format!("i-0{:016x}", hasher.finish())
}

/// What the resources mean for sessions, for API servers and for whoever calls.
fn settle(world: &Arc<World>) {
    let stack = lock(&world.stack);
    let has = |kind: &str| stack.of_kind(kind).next().is_some();
    let instances: Vec<String> =
        stack.of_kind("AWS::AutoScaling::AutoScalingGroup").map(|group| instance_of(&group.physical)).collect();
    // An agent without credentials is not heard of.
    let has_credentials = stack.of_kind("AWS::IAM::InstanceProfile").any(|profile| {
        let role = profile.properties["Roles"][0].as_str().unwrap_or_default();
        stack.find("AWS::IAM::Role", role).is_some()
    });
    let is_made = |role: &str| stack.find("AWS::IAM::Role", role.rsplit('/').next().unwrap_or_default()).is_some();
    let is_of_ecs = has("AWS::ECS::Service");
    let tasks_have_role =
        stack.of_kind("AWS::ECS::TaskDefinition").all(|definition| is_made(definition.text("TaskRoleArn")));
    let bastions: Vec<&str> = stack.of_kind("AWS::EC2::SecurityGroup").map(|group| group.physical.as_str()).collect();
    let admits = |group: &str| {
        stack
            .of_kind("AWS::EC2::SecurityGroupIngress")
            .any(|rule| rule.text("GroupId") == group && bastions.contains(&rule.text("SourceSecurityGroupId")))
    };
    let reached: Vec<(String, bool)> = world
        .clusters
        .iter()
        .map(|cluster| {
            let group = cluster.config.group(&world.config.vpcs).cloned().unwrap_or_default();
            (format!("{}:443", cluster.endpoint_host()), admits(&group))
        })
        .collect();
    let has_entry = has("AWS::EKS::AccessEntry");
    drop(stack);
    let tasks = if is_of_ecs { ecs::infos(world) } else { Vec::new() };
    world.update(|settings| {
        for target in tasks.into_iter().flat_map(|task| task.targets) {
            if tasks_have_role {
                settings.offline_bastions.remove(&target);
            } else {
                settings.offline_bastions.insert(target);
            }
        }
        for instance in instances {
            if has_credentials {
                settings.offline_bastions.remove(&instance);
            } else {
                settings.offline_bastions.insert(instance);
            }
        }
        for (destination, is_open) in reached {
            let state = if is_open { Destination::Reachable } else { Destination::Refused };
            settings.destinations.insert(destination, state);
        }
        settings.no_access_entry = !has_entry;
    });
}
