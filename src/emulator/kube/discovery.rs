//! What the API server says of itself: version, groups and resources, OpenAPI.

use serde_json::{Map, Value, json};

use super::{
    super::http::{FullRequest, Response, json, response},
    Api,
    resources::{RESOURCES, Resource},
};

/// Kinds that exist only to be created, with group and plural.
const REVIEWS: [(&str, &str, &str); 3] = [
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "SelfSubjectRulesReview"),
];

/// The named groups, in the order in which they are listed.
const GROUPS: [&str; 3] = ["apps", "authentication.k8s.io", "authorization.k8s.io"];

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The answer to `/version`.
pub(super) fn version(api: &Api) -> Value {
    let version = &api.cluster.config.version;
    let (major, minor) = version.split_once('.').unwrap_or((version, "0"));
    json!({
        "major": major, "minor": minor, "gitVersion": format!("v{version}.1-eks-0a1b2c3"),
        "gitCommit": "0000000000000000000000000000000000000000", "gitTreeState": "clean",
        "buildDate": "2025-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
    })
}

/// Answers requests for documents about the API; `None` for all others.
pub(super) fn answer(request: &FullRequest) -> Option<Response> {
    if request.head.method != hyper::Method::GET {
        return None;
    }
    let path = request.path().trim_end_matches('/');
    let aggregated = request.header("accept").split(',').any(|accepted| {
        let has = |parameter: &str| accepted.split(';').any(|part| part.trim() == parameter);
        has("as=APIGroupDiscoveryList") && has("v=v2") && has("g=apidiscovery.k8s.io")
    });
    match path {
        "/api" if aggregated => Some(response(200, AGGREGATED, aggregated_list(&[""]).to_string())),
        "/apis" if aggregated => Some(response(200, AGGREGATED, aggregated_list(&GROUPS).to_string())),
        "/api" => {
            Some(json(200, &json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})))
        }
        "/apis" => {
            let groups: Vec<Value> = GROUPS.iter().map(|group| api_group(group)).collect();
            Some(json(200, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})))
        }
        "/api/v1" => Some(json(200, &resource_list(""))),
        "/openapi/v3" => Some(json(200, &openapi_index())),
        "/openapi/v3/api/v1" => Some(json(200, &openapi(""))),
        _ => {
            if let Some(group) = path.strip_prefix("/openapi/v3/apis/").and_then(|rest| rest.strip_suffix("/v1")) {
                return GROUPS.contains(&group).then(|| json(200, &openapi(group)));
            }
            let rest = path.strip_prefix("/apis/")?;
            if GROUPS.contains(&rest) {
                let mut group = api_group(rest);
                group["kind"] = "APIGroup".into();
                group["apiVersion"] = "v1".into();
                return Some(json(200, &group));
            }
            let group = rest.strip_suffix("/v1").filter(|group| GROUPS.contains(group))?;
            Some(json(200, &resource_list(group)))
        }
    }
}

fn api_group(group: &str) -> Value {
    let version = json!({"groupVersion": format!("{group}/v1"), "version": "v1"});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

fn of_group(group: &str) -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(move |resource| resource.group == group)
}

fn reviews_of(group: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    REVIEWS.iter().filter(move |(of, ..)| *of == group).map(|(_, plural, kind)| (*plural, *kind))
}

fn resource_list(group: &str) -> Value {
    let mut resources: Vec<Value> = Vec::new();
    for resource in of_group(group) {
        resources.push(json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced, "kind": resource.kind,
            "verbs": resource.verbs(), "shortNames": resource.short_names, "categories": resource.categories(),
        }));
        if resource.plural == "pods" {
            resources.push(
                json!({"name": "pods/log", "singularName": "", "namespaced": true, "kind": "Pod", "verbs": ["get"]}),
            );
        }
    }
    for (plural, kind) in reviews_of(group) {
        resources
            .push(json!({"name": plural, "singularName": "", "namespaced": false, "kind": kind, "verbs": ["create"]}));
    }
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources})
}

fn aggregated_list(groups: &[&str]) -> Value {
    let items: Vec<Value> = groups
        .iter()
        .map(|group| {
            let mut resources: Vec<Value> = of_group(group)
                .map(|resource| {
                    let mut value = json!({
                        "resource": resource.plural, "singularResource": resource.singular, "verbs": resource.verbs(),
                        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
                        "responseKind": {"group": group, "version": "v1", "kind": resource.kind},
                        "shortNames": resource.short_names, "categories": resource.categories(),
                    });
                    if resource.plural == "pods" {
                        let kind = &value["responseKind"];
                        value["subresources"] = json!([{"subresource": "log", "responseKind": kind, "verbs": ["get"]}]);
                    }
                    value
                })
                .collect();
            resources.extend(reviews_of(group).map(|(plural, kind)| {
                json!({
                    "resource": plural, "singularResource": "", "scope": "Cluster", "verbs": ["create"],
                    "responseKind": {"group": group, "version": "v1", "kind": kind},
                })
            }));
            json!({
                "metadata": if group.is_empty() { json!({}) } else { json!({ "name": group }) },
                "versions": [{"version": "v1", "resources": resources, "freshness": "Current"}],
            })
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn openapi_index() -> Value {
    let mut paths = Map::new();
    paths.insert("api/v1".to_owned(), json!({"serverRelativeURL": "/openapi/v3/api/v1?hash=1"}));
    for group in GROUPS {
        let url = format!("/openapi/v3/apis/{group}/v1?hash=1");
        paths.insert(format!("apis/{group}/v1"), json!({ "serverRelativeURL": url }));
    }
    json!({ "paths": paths })
}

/// The OpenAPI document of a group: what kubectl needs to validate and to explain, not every field.
fn openapi(group: &str) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    schemas.insert(
        OBJECT_META.to_owned(),
        json!({
            "type": "object",
            "description": "ObjectMeta is metadata that all persisted resources must have.",
            "properties": {
                "name": string("Name must be unique within a namespace."),
                "namespace": string("Namespace defines the space within which each name must be unique."),
                "labels": strings("Map of string keys and values that can be used to organize and categorize objects."),
                "annotations": strings("Annotations is an unstructured key value map stored with a resource."),
                "uid": string("UID is the unique in time and space value for this object."),
                "resourceVersion": string("An opaque value that represents the internal version of this object."),
                "creationTimestamp": string("The time when this object was created."),
            },
        }),
    );
    for resource in of_group(group) {
        let name = schema_name(resource);
        schemas.insert(name.clone(), schema(resource));
        let base = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/v1") };
        let collection = if resource.namespaced {
            format!("{base}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("{base}/{}", resource.plural)
        };
        paths.insert(collection.clone(), operations(resource, &name, &["get", "post"]));
        paths.insert(format!("{collection}/{{name}}"), operations(resource, &name, &["get", "put", "patch", "delete"]));
        if resource.namespaced {
            paths.insert(format!("{base}/{}", resource.plural), operations(resource, &name, &["get"]));
        }
    }
    json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1"},
        "paths": paths, "components": {"schemas": schemas},
    })
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

fn schema_name(resource: &Resource) -> String {
    let group = if resource.group.is_empty() { "core" } else { resource.group };
    format!("io.k8s.api.{group}.v1.{}", resource.kind)
}

fn group_version_kind(resource: &Resource) -> Value {
    json!({"group": resource.group, "version": "v1", "kind": resource.kind})
}

fn operations(resource: &Resource, schema: &str, methods: &[&str]) -> Value {
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let mut operations = Map::new();
    for method in methods {
        let writes = *method != "get";
        if writes && !resource.writable {
            continue;
        }
        let mut operation = json!({
            "description": format!("{method} {}", resource.plural),
            "responses": {"200": {
                "description": "OK",
                "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}},
            }},
            "x-kubernetes-group-version-kind": group_version_kind(resource),
        });
        if writes {
            operation["parameters"] =
                json!([parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")]);
        }
        operations.insert((*method).to_owned(), operation);
    }
    operations.into()
}

fn schema(resource: &Resource) -> Value {
    let mut properties = Map::new();
    properties.insert(
        "apiVersion".to_owned(),
        string("APIVersion defines the versioned schema of this representation of an object."),
    );
    properties.insert(
        "kind".to_owned(),
        string("Kind is a string value representing the REST resource this object represents."),
    );
    properties.insert(
        "metadata".to_owned(),
        json!({
            "description": "Standard object's metadata.", "default": {},
            "allOf": [{"$ref": format!("#/components/schemas/{OBJECT_META}")}],
        }),
    );
    for (field, kind) in resource.fields {
        let about = format!("{field} of the {}.", resource.kind);
        let value = match *kind {
            "strings" => strings(&about),
            "object" => json!({"type": "object", "description": about, "x-kubernetes-preserve-unknown-fields": true}),
            other => json!({"type": other, "description": about}),
        };
        properties.insert((*field).to_owned(), value);
    }
    json!({
        "type": "object", "description": resource.description, "properties": properties,
        "x-kubernetes-group-version-kind": [group_version_kind(resource)],
    })
}

fn string(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn strings(description: &str) -> Value {
    json!({"type": "object", "description": description, "additionalProperties": {"type": "string", "default": ""}})
}
