//! Objects as the tables that kubectl prints.

use std::time::Duration;

use serde_json::{Value, json};

use super::{super::clock::parse_basic_date, resources::Resource};

/// A column: name, OpenAPI type, and 1 where only `-o wide` shows it.
type Column = (&'static str, &'static str, u8);

/// Whether a request wants a table.
pub(super) fn is_wanted(accept: &str) -> bool {
    accept.split(',').next().is_some_and(|first| {
        let has = |parameter: &str| first.split(';').any(|part| part.trim() == parameter);
        has("as=Table") && has("v=v1") && has("g=meta.k8s.io")
    })
}

/// Renders objects; `include` is the parameter `includeObject`.
pub(super) fn render(resource: &Resource, objects: &[Value], version: &str, now: Duration, include: &str) -> Value {
    let columns = columns(resource);
    let definitions: Vec<Value> = columns
        .iter()
        .map(|(name, kind, priority)| {
            let format = if *name == "Name" { "name" } else { "" };
            json!({"name": name, "type": kind, "format": format, "description": "", "priority": priority})
        })
        .collect();
    let rows: Vec<Value> = objects.iter().map(|object| row(resource, object, now, include)).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version},
        "columnDefinitions": definitions, "rows": rows,
    })
}

fn row(resource: &Resource, object: &Value, now: Duration, include: &str) -> Value {
    let mut row = json!({ "cells": cells(resource, object, now) });
    match include {
        "None" => {}
        "Object" => row["object"] = object.clone(),
        _ => {
            let metadata = &object["metadata"];
            row["object"] =
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
        }
    }
    row
}

fn columns(resource: &Resource) -> &'static [Column] {
    match resource.plural {
        "pods" => &[
            ("Name", "string", 0),
            ("Ready", "string", 0),
            ("Status", "string", 0),
            ("Restarts", "string", 0),
            ("Age", "string", 0),
            ("IP", "string", 1),
            ("Node", "string", 1),
            ("Nominated Node", "string", 1),
            ("Readiness Gates", "string", 1),
        ],
        "nodes" => &[
            ("Name", "string", 0),
            ("Status", "string", 0),
            ("Roles", "string", 0),
            ("Age", "string", 0),
            ("Version", "string", 0),
            ("Internal-IP", "string", 1),
            ("External-IP", "string", 1),
            ("OS-Image", "string", 1),
            ("Kernel-Version", "string", 1),
            ("Container-Runtime", "string", 1),
        ],
        "namespaces" => &[("Name", "string", 0), ("Status", "string", 0), ("Age", "string", 0)],
        "configmaps" => &[("Name", "string", 0), ("Data", "integer", 0), ("Age", "string", 0)],
        "services" => &[
            ("Name", "string", 0),
            ("Type", "string", 0),
            ("Cluster-IP", "string", 0),
            ("External-IP", "string", 0),
            ("Port(s)", "string", 0),
            ("Age", "string", 0),
        ],
        "events" => &[
            ("Last Seen", "string", 0),
            ("Type", "string", 0),
            ("Reason", "string", 0),
            ("Object", "string", 0),
            ("Message", "string", 0),
        ],
        "deployments" => &[
            ("Name", "string", 0),
            ("Ready", "string", 0),
            ("Up-to-date", "integer", 0),
            ("Available", "integer", 0),
            ("Age", "string", 0),
        ],
        _ => &[("Name", "string", 0), ("Age", "string", 0)],
    }
}

fn cells(resource: &Resource, object: &Value, now: Duration) -> Vec<Value> {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    let name = metadata["name"].clone();
    let age = Value::from(since(metadata["creationTimestamp"].as_str(), now));
    let none = || Value::from("<none>");
    match resource.plural {
        "pods" => {
            let containers = status["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ready = containers.iter().filter(|container| container["ready"] == true).count();
            let restarts: u64 = containers.iter().filter_map(|container| container["restartCount"].as_u64()).sum();
            let waiting = containers.iter().find_map(|container| container["state"]["waiting"]["reason"].as_str());
            let phase = waiting.or_else(|| status["phase"].as_str()).unwrap_or("Unknown");
            vec![
                name,
                format!("{ready}/{}", containers.len()).into(),
                phase.into(),
                restarts.to_string().into(),
                age,
                status["podIP"].clone(),
                spec["nodeName"].clone(),
                none(),
                none(),
            ]
        }
        "nodes" => {
            let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ready =
                conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
            let info = &status["nodeInfo"];
            vec![
                name,
                if ready { "Ready" } else { "NotReady" }.into(),
                none(),
                age,
                info["kubeletVersion"].clone(),
                status["addresses"][0]["address"].clone(),
                none(),
                info["osImage"].clone(),
                info["kernelVersion"].clone(),
                info["containerRuntimeVersion"].clone(),
            ]
        }
        "namespaces" => vec![name, status["phase"].clone(), age],
        "configmaps" => {
            let entries = |field: &str| object[field].as_object().map_or(0, serde_json::Map::len);
            vec![name, (entries("data") + entries("binaryData")).into(), age]
        }
        "services" => {
            let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
            let ports: Vec<String> = ports
                .iter()
                .map(|port| format!("{}/{}", port["port"], port["protocol"].as_str().unwrap_or("TCP")))
                .collect();
            vec![name, spec["type"].clone(), spec["clusterIP"].clone(), none(), ports.join(",").into(), age]
        }
        "events" => {
            let involved = &object["involvedObject"];
            let kind = involved["kind"].as_str().unwrap_or_default().to_lowercase();
            vec![
                since(object["lastTimestamp"].as_str(), now).into(),
                object["type"].clone(),
                object["reason"].clone(),
                format!("{kind}/{}", involved["name"].as_str().unwrap_or_default()).into(),
                object["message"].clone(),
            ]
        }
        "deployments" => {
            let count = |field: &str| status[field].as_u64().unwrap_or_default();
            let ready = format!("{}/{}", count("readyReplicas"), spec["replicas"]);
            vec![name, ready.into(), count("updatedReplicas").into(), count("availableReplicas").into(), age]
        }
        _ => vec![name, age],
    }
}

/// Time since a date of an object, in kubectl's short form.
fn since(date: Option<&str>, now: Duration) -> String {
    let compact: String = date.unwrap_or_default().chars().filter(|c| !matches!(c, '-' | ':')).collect();
    match parse_basic_date(&compact) {
        Some(date) => short_duration(now.saturating_sub(date)),
        None => "<unknown>".to_owned(),
    }
}

/// As `HumanDuration` of k8s.io/apimachinery.
fn short_duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |big: u64, unit: char, small: u64, small_unit: char| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, 'd', hours % 24, 'h'),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_look_like_those_of_kubectl() {
        for (seconds, text) in [
            (5, "5s"),
            (119, "119s"),
            (150, "2m30s"),
            (660, "11m"),
            (10_860, "3h1m"),
            (93_600, "26h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
        ] {
            assert_eq!(short_duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(since(Some("1970-01-01T00:00:10Z"), Duration::from_secs(15)), "5s");
        assert_eq!(since(None, Duration::ZERO), "<unknown>");
    }

    #[test]
    fn knows_who_wants_a_table() {
        assert!(is_wanted("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"));
        assert!(!is_wanted("application/json"));
        assert!(!is_wanted("application/json,application/json;as=Table;v=v1;g=meta.k8s.io"));
    }
}
