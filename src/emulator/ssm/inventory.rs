//! What Systems Manager knows of instances and managed nodes. Containers are not among them.

use serde_json::{Value, json};

use super::{
    super::{
        api::{ApiError, Call},
        ecs,
        fleet::{Instance, InstanceState, is_online},
        vpc::private_address,
    },
    Filter, filters, invalid, target_arn, text,
};

/// Nodes in one answer if nothing is said.
const DEFAULT_PAGE: usize = 10;

/// Most nodes in one answer.
const MAX_PAGE: u64 = 50;

/// Keys of filters besides `tag:…`.
const FILTERS: [&str; 7] =
    ["InstanceIds", "PingStatus", "PlatformTypes", "AgentVersion", "ResourceType", "ActivationIds", "tag-key"];

pub(super) fn describe_instances(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    call.authorize("*")?;
    let limit = match input.get("MaxResults").filter(|value| !value.is_null()) {
        None => DEFAULT_PAGE,
        Some(results) => results
            .as_u64()
            .filter(|results| (5..=MAX_PAGE).contains(results))
            .and_then(|results| usize::try_from(results).ok())
            .ok_or_else(|| invalid("MaxResults must be between 5 and 50"))?,
    };
    let first = match input.get("NextToken").and_then(Value::as_str) {
        None => 0,
        Some(token) => token
            .strip_prefix("nodes-")
            .and_then(|first| first.parse::<usize>().ok())
            .ok_or_else(|| ApiError::new(400, "InvalidNextToken", "The specified token is not valid."))?,
    };
    let has_old =
        input.get("InstanceInformationFilterList").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if has_old && input.get("Filters").and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
        return Err(invalid("Filters and InstanceInformationFilterList cannot be used together"));
    }
    let filters = filters(input, &FILTERS, "Key", "Values")?;
    let by_tag = |filter: &Filter| filter.0.starts_with("tag:") || filter.0 == "tag-key";
    if filters.len() > 1 && filters.iter().any(by_tag) {
        return Err(ApiError::new(
            400,
            "InvalidInstanceInformationFilterValue",
            "A filter by tags cannot be combined with other filters",
        ));
    }
    let all = call.world.fleet.all();
    let known = all.iter().filter(|instance| {
        instance.config.managed
            && instance.state != InstanceState::Terminated
            && !instance.config.id.starts_with("ecs:")
            && filters.iter().all(|filter| matches(call, instance, filter))
    });
    let known: Vec<&Instance> = known.collect();
    let list: Vec<Value> = known.iter().skip(first).take(limit).map(|instance| description(call, instance)).collect();
    let mut output = json!({ "InstanceInformationList": list });
    if known.len() > first + limit {
        output["NextToken"] = format!("nodes-{}", first + limit).into();
    }
    Ok(output)
}

fn matches(call: &Call<'_>, instance: &Instance, (key, wanted): &Filter) -> bool {
    let tags = &instance.config.tags;
    if let Some(tag) = key.strip_prefix("tag:") {
        return tags.get(tag).is_some_and(|value| wanted.contains(value));
    }
    if key == "tag-key" {
        return wanted.iter().any(|key| tags.contains_key(key));
    }
    let name = match key.as_str() {
        "InstanceIds" => "InstanceId",
        "PlatformTypes" => "PlatformType",
        other => other,
    };
    let described = description(call, instance);
    wanted.iter().any(|value| described[name] == value.as_str())
}

fn description(call: &Call<'_>, instance: &Instance) -> Value {
    let config = &instance.config;
    let version = call.world.settings().agent.version.clone();
    let online = is_online(call.world, instance) || call.world.settings().stale_pings;
    let now = call.world.clock.wall().as_secs();
    let address = config.private_address.clone().unwrap_or_else(|| private_address(instance.number));
    json!({
        "InstanceId": config.id,
        "PingStatus": if online { "Online" } else { "ConnectionLost" },
        "LastPingDateTime": if online { now } else { now.saturating_sub(600) },
        "AgentVersion": version.as_deref().unwrap_or(&config.agent_version),
        "IsLatestVersion": false,
        "PlatformType": if config.platform.contains("Windows") { "Windows" } else { "Linux" },
        "PlatformName": config.platform,
        "PlatformVersion": "2023",
        "ResourceType": if config.id.starts_with("mi-") { "ManagedInstance" } else { "EC2Instance" },
        "ComputerName": config.tags.get("Name").map_or("bastion", String::as_str),
        "IPAddress": address,
    })
}

pub(super) fn connection_status(call: &Call<'_>, input: &Value) -> Result<Value, ApiError> {
    let target = text(input, "Target", 400)?;
    call.authorize(&target_arn(call, target))?;
    let known = call.world.fleet.find(target);
    let connected =
        known.is_some_and(|instance| is_online(call.world, &instance)) || ecs::connected(call.world, target);
    Ok(json!({"Target": target, "Status": if connected { "connected" } else { "notconnected" }}))
}
