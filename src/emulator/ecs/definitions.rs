//! Task definitions: `RegisterTaskDefinition` and `DescribeTaskDefinition`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    super::{
        api::{ApiError, Call},
        world::lock,
    },
    client_error, invalid, pass_role, read_tags, tags_value, wants_tags,
};

/// Sizes that Fargate has: CPU units, and the least and the most memory with them.
const FARGATE_SIZES: [(&str, u64, u64); 5] =
    [("256", 512, 2048), ("512", 1024, 4096), ("1024", 2048, 8192), ("2048", 4096, 16_384), ("4096", 8192, 30_720)];

/// How long a task runs without use, and at most, if its script does not say: ten minutes and eight hours.
const DEFAULT_LIVES: Lives =
    Lives { disuse: Some(Duration::from_secs(600)), life: Some(Duration::from_secs(8 * 3600)) };

/// One revision of a task definition.
#[derive(Debug, Clone)]
pub(super) struct Definition {
    pub(super) family: String,
    pub(super) revision: u64,
    region: String,
    account: String,
    /// What was registered.
    pub(super) body: Value,
    tags: BTreeMap<String, String>,
}

/// When a container ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lives {
    pub(super) disuse: Option<Duration>,
    pub(super) life: Option<Duration>,
}

impl Definition {
    /// The one of a service's tasks.
    pub(super) fn of_service(family: &str, containers: &[String], region: &str, account: &str) -> Self {
        let containers: Vec<Value> = containers
            .iter()
            .map(|name| json!({"name": name, "image": format!("{name}:latest"), "essential": true}))
            .collect();
        Self {
            family: family.to_owned(),
            revision: 1,
            region: region.to_owned(),
            account: account.to_owned(),
            body: json!({
                "family": family, "containerDefinitions": containers, "networkMode": "awsvpc", "cpu": "256",
                "memory": "512", "requiresCompatibilities": ["FARGATE"],
                "taskRoleArn": format!("arn:aws:iam::{account}:role/{family}"),
            }),
            tags: BTreeMap::new(),
        }
    }

    /// The one of a template, whose properties have the names of the API with capitals.
    pub(super) fn of_template(properties: &Value, region: &str, account: &str) -> Self {
        let body = in_camel_case(properties);
        Self {
            family: body["family"].as_str().unwrap_or_default().to_owned(),
            revision: 1,
            region: region.to_owned(),
            account: account.to_owned(),
            body,
            tags: BTreeMap::new(),
        }
    }

    pub(super) fn arn(&self) -> String {
        let Self { region, account, family, revision, .. } = self;
        format!("arn:aws:ecs:{region}:{account}:task-definition/{family}:{revision}")
    }

    /// Names and images.
    pub(super) fn containers(&self) -> impl Iterator<Item = (String, String)> {
        let list = self.body.get("containerDefinitions").and_then(Value::as_array).map(Vec::as_slice);
        list.unwrap_or_default().iter().map(|container| {
            let text = |name: &str| container.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            (text("name"), text("image"))
        })
    }

    pub(super) fn task_role(&self) -> Option<&str> {
        self.body.get("taskRoleArn").and_then(Value::as_str).filter(|role| !role.is_empty())
    }

    pub(super) fn has_execution_role(&self) -> bool {
        self.body.get("executionRoleArn").and_then(Value::as_str).is_some_and(|role| !role.is_empty())
    }

    /// What the first container's shell script says of its end: numbers, in seconds, that variables or assignments have
    /// whose names speak of idleness or of life. Other commands go on.
    pub(super) fn lives(&self) -> Lives {
        let container = &self.body["containerDefinitions"][0];
        let words = |name: &str| {
            let words = container[name].as_array().map(Vec::as_slice).unwrap_or_default();
            words.iter().filter_map(Value::as_str).collect::<Vec<_>>()
        };
        let mut words: Vec<&str> = [words("entryPoint"), words("command")].concat();
        if words.len() < 3 || !words[0].rsplit('/').next().is_some_and(|name| ["sh", "ash", "bash"].contains(&name)) {
            return Lives { disuse: None, life: None };
        }
        let script = words.pop().unwrap_or_default();
        let variables = container["environment"].as_array().map(Vec::as_slice).unwrap_or_default();
        let assigned = script.split(|c: char| c.is_whitespace() || c == ';').filter_map(|word| word.split_once('='));
        let variables =
            variables.iter().filter_map(|variable| Some((variable["name"].as_str()?, variable["value"].as_str()?)));
        let mut lives = DEFAULT_LIVES;
        // The script's own come first; what the environment says counts more.
        for (name, value) in assigned.chain(variables) {
            let name = name.to_ascii_lowercase();
            let Some(value) = seconds(value) else { continue };
            if ["idle", "unused", "disuse"].iter().any(|part| name.contains(part)) {
                lives.disuse = Some(value);
            } else if ["life", "ttl"].iter().any(|part| name.contains(part)) {
                lives.life = Some(value);
            }
        }
        lives
    }

    fn description(&self) -> Value {
        let mut body = self.body.clone();
        body["taskDefinitionArn"] = self.arn().into();
        body["revision"] = self.revision.into();
        body["status"] = "ACTIVE".into();
        body["compatibilities"] = json!(["EC2", "FARGATE"]);
        body
    }
}

fn in_camel_case(value: &Value) -> Value {
    match value {
        Value::Array(values) => values.iter().map(in_camel_case).collect(),
        Value::Object(fields) => {
            let named = fields.iter().map(|(name, value)| {
                let (first, rest) = name.split_at(1.min(name.len()));
                (format!("{}{rest}", first.to_lowercase()), in_camel_case(value))
            });
            Value::Object(named.collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// Reads `600`, and `600` out of `${IDLE:-600}`; zero is no time.
fn seconds(text: &str) -> Option<Duration> {
    let text = text.trim_matches(['"', '\'', '}']);
    let text = text.rsplit_once(":-").map_or(text, |(_, default)| default);
    text.parse().ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// The definition that an ARN, a family or `family:revision` is for.
pub(super) fn find(definitions: &[Arc<Definition>], name: &str) -> Option<Arc<Definition>> {
    let name = name.rsplit_once("task-definition/").map_or(name, |(_, name)| name);
    let (family, revision) = match name.split_once(':') {
        Some((family, revision)) => (family, Some(revision.parse::<u64>().ok()?)),
        None => (name, None),
    };
    definitions
        .iter()
        .rfind(|known| known.family == family && revision.is_none_or(|revision| revision == known.revision))
        .cloned()
}

pub(super) fn register(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    call.authorize("*")?;
    let family = input.get("family").and_then(Value::as_str).unwrap_or_default();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if family.is_empty() || family.len() > 255 || !family.bytes().all(allowed) {
        return Err(client_error("Invalid family: it must have 1 to 255 letters, numbers, underscores, and hyphens."));
    }
    let containers = input.get("containerDefinitions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if containers.is_empty() {
        return Err(client_error("Container list cannot be empty."));
    }
    for container in containers {
        for name in ["name", "image"] {
            if container.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                return Err(client_error(format!("Container.{name} should not be null or empty.")));
            }
        }
    }
    let compatibilities = input.get("requiresCompatibilities").and_then(Value::as_array);
    if compatibilities.is_some_and(|list| list.iter().any(|kind| kind == "FARGATE")) {
        check_fargate(input)?;
    }
    let tags = read_tags(call, input, "*")?;
    for name in ["taskRoleArn", "executionRoleArn"] {
        if let Some(role) = input.get(name).and_then(Value::as_str).filter(|role| !role.is_empty()) {
            pass_role(call, role)?;
        }
    }
    let mut body = input.clone();
    if let Some(body) = body.as_object_mut() {
        body.remove("tags");
    }
    let mut ecs = lock(&call.world.ecs.store);
    let revision = ecs.definitions.iter().filter(|known| known.family == family).count() + 1;
    let definition = Arc::new(Definition {
        family: family.to_owned(),
        revision: u64::try_from(revision).unwrap_or(u64::MAX),
        region: call.region.clone(),
        account: call.caller.account.clone(),
        body,
        tags,
    });
    ecs.definitions.push(definition.clone());
    Ok(json!({"taskDefinition": definition.description(), "tags": tags_value(&definition.tags)}))
}

fn check_fargate(input: &Value) -> Result<(), ApiError> {
    if input.get("networkMode").and_then(Value::as_str) != Some("awsvpc") {
        return Err(client_error("Fargate only supports network mode ‘awsvpc’."));
    }
    let text = |name: &str| input.get(name).and_then(Value::as_str).unwrap_or_default();
    let memory: u64 = text("memory").parse().unwrap_or_default();
    let fits = FARGATE_SIZES.iter().any(|(cpu, least, most)| {
        *cpu == text("cpu") && (*least..=*most).contains(&memory) && memory.is_multiple_of(512)
    });
    if fits { Ok(()) } else { Err(client_error("No Fargate configuration exists for given values.")) }
}

pub(super) fn describe(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    call.authorize("*")?;
    let name = input.get("taskDefinition").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        return Err(invalid("TaskDefinition cannot be empty."));
    }
    let found = find(&lock(&call.world.ecs.store).definitions, name);
    let definition = found.ok_or_else(|| client_error("Unable to describe task definition."))?;
    let mut output = json!({ "taskDefinition": definition.description() });
    if wants_tags(input) {
        output["tags"] = tags_value(&definition.tags);
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives(container: Value) -> Lives {
        let mut definition = Definition::of_service("x", &[], "r", "a");
        definition.body["containerDefinitions"] = json!([container]);
        definition.lives()
    }

    #[test]
    fn scripts_say_when_they_end() {
        let secs =
            |disuse, life| Lives { disuse: Some(Duration::from_secs(disuse)), life: Some(Duration::from_secs(life)) };
        let none = Lives { disuse: None, life: None };
        assert_eq!(lives(json!({"command": ["sleep", "600"]})), none);
        assert_eq!(lives(json!({"command": ["sh", "-c", "while sleep 30; do :; done"]})), secs(600, 28_800));
        assert_eq!(lives(json!({"command": ["sh", "-c", "idle=60; life=${LIFE:-3600}\nwhile :"]})), secs(60, 3600));
        let environment = json!([{"name": "BASTION_IDLE", "value": "5"}, {"name": "TTL_SECONDS", "value": "9"}]);
        let script = json!({"entryPoint": ["/bin/sh", "-c"], "command": ["idle=60"], "environment": environment});
        assert_eq!(lives(script), secs(5, 9));
    }
}
