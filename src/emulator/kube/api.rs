//! Requests of the Kubernetes API: who asks, for what, and the answer.

use std::sync::Arc;

use hyper::Method;
use serde_json::{Value, json};

use super::{
    super::{
        clock::extended_date,
        credentials::Caller,
        http::{FullRequest, Response, json, text},
        sigv4::parse_query,
    },
    Api, auth, discovery, logs,
    resources::{Resource, find},
    selector::Selector,
    store::{StoreError, merge, remove_unapplied},
    table,
};

/// Answers one request.
pub(super) async fn answer(api: Arc<Api>, client: Option<Arc<str>>, request: FullRequest) -> Response {
    // Nothing here waits; the signature is what the server wants.
    std::future::ready(respond(&api, client.as_deref(), &request)).await
}

fn respond(api: &Arc<Api>, client: Option<&str>, request: &FullRequest) -> Response {
    let authorization = request.header("authorization");
    // With and without a slash at the end, as the real one takes them.
    let public = match request.path().trim_end_matches('/') {
        "/livez" | "/readyz" | "/healthz" => Some(text(200, "ok")),
        "/version" => Some(json(200, &discovery::version(api))),
        _ => None,
    };
    let caller = match (public, auth::authenticate(api, client, authorization)) {
        // These are for everybody, but for those who show a token that is no good.
        (Some(public), Ok(_)) => return public,
        (Some(public), Err(_)) if authorization.trim_start_matches("Bearer").trim().is_empty() => return public,
        (None, Ok(caller)) => caller,
        (_, Err(reason)) => {
            tracing::debug!(cluster = %api.cluster.config.name, %reason, "unauthorized");
            return status(401, "Unauthorized", "Unauthorized", Value::Null);
        }
    };
    if let Some(document) = discovery::answer(request) {
        return document;
    }
    let segments: Vec<&str> = request.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return not_found_page(),
    };
    if let Some(review) = review(api, group, rest, &caller, request) {
        return review;
    }
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
        _ => (None, rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, None, None),
        [plural, name] => (*plural, Some(*name), None),
        [plural, name, subresource] => (*plural, Some(*name), Some(*subresource)),
        _ => return not_found_page(),
    };
    let Some(resource) = find(group, version, plural) else { return not_found_page() };
    if api.world.settings().no_view_policy {
        return forbidden(&caller, request, resource, namespace, name);
    }
    let call = Call { api, request, parameters: parse_query(request.query()), resource, namespace, name };
    match (subresource, name) {
        (Some("log"), Some(name)) if plural == "pods" && request.head.method == Method::GET => {
            match api.store.get(resource, namespace.unwrap_or_default(), name) {
                Some(pod) => logs::answer(api, &pod, &call.parameters),
                None => call.missing(),
            }
        }
        (Some(_), _) => not_found_page(),
        (None, _) => call.answer(),
    }
}

fn not_found_page() -> Response {
    status(404, "NotFound", "the server could not find the requested resource", json!({}))
}

/// An error in the form that clients read.
pub(super) fn status(code: u16, reason: &str, message: &str, details: Value) -> Response {
    let mut body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    if !details.is_null() {
        body["details"] = details;
    }
    json(code, &body)
}

/// What an API server says when no role allows what is asked for.
fn forbidden(
    caller: &Caller,
    request: &FullRequest,
    resource: &Resource,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Response {
    let Resource { group, plural, .. } = resource;
    let verb = match (request.head.method.as_str(), name) {
        ("GET", Some(_)) => "get",
        ("GET", None) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        (_, _) => "delete",
    };
    let scope = match namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    let (user, of) = (&caller.arn, if group.is_empty() { String::new() } else { format!(".{group}") });
    let message = format!(
        "{plural}{of} is forbidden: User \"{user}\" cannot {verb} resource \"{plural}\" in API group \"{group}\" {scope}"
    );
    status(403, "Forbidden", &message, json!({"group": group, "kind": plural}))
}

/// The first minor version of Kubernetes 1 that serves `SelfSubjectReview` as `v1`.
const FIRST_WITH_SELF_SUBJECT_REVIEW: u32 = 28;

/// Who am I, and what may I do.
fn review(api: &Api, group: &str, rest: &[&str], caller: &Caller, request: &FullRequest) -> Option<Response> {
    if request.head.method != Method::POST {
        return None;
    }
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let mut body = if body.is_object() { body } else { json!({}) };
    let blind = api.world.settings().no_view_policy;
    let minor = api.cluster.config.version.split_once('.').and_then(|(_, minor)| minor.parse().ok());
    let state = match (group, rest) {
        ("authentication.k8s.io", ["selfsubjectreviews"])
            if minor.is_some_and(|minor: u32| minor < FIRST_WITH_SELF_SUBJECT_REVIEW) =>
        {
            return None;
        }
        ("authentication.k8s.io", ["selfsubjectreviews"]) => json!({"userInfo": {
            "username": caller.arn,
            "uid": format!("aws-iam-authenticator:{}:{}", caller.account, caller.user_id),
            "groups": ["system:authenticated"],
            "extra": {"arn": [caller.arn], "sessionName": [caller.session_name]},
        }}),
        ("authorization.k8s.io", ["selfsubjectaccessreviews"]) => {
            let attributes = &body["spec"]["resourceAttributes"];
            let text = |field: &str| attributes[field].as_str().unwrap_or_default();
            let resource = find(text("group"), "v1", text("resource"));
            let known =
                attributes.is_null() || resource.is_some_and(|resource| resource.verbs().contains(&text("verb")));
            json!({ "allowed": known && !blind })
        }
        ("authorization.k8s.io", ["selfsubjectrulesreviews"]) => json!({
            "resourceRules": super::resources::RESOURCES.iter().filter(|_| !blind).map(|resource| json!({
                "verbs": resource.verbs(), "apiGroups": [resource.group], "resources": [resource.plural],
            })).collect::<Vec<_>>(),
            "nonResourceRules": [], "incomplete": false,
        }),
        _ => return None,
    };
    body["status"] = state;
    Some(json(201, &body))
}

/// A request for objects of a kind.
pub(super) struct Call<'a> {
    pub(super) api: &'a Arc<Api>,
    pub(super) request: &'a FullRequest,
    pub(super) parameters: Vec<(String, String)>,
    pub(super) resource: &'static Resource,
    pub(super) namespace: Option<&'a str>,
    name: Option<&'a str>,
}

impl Call<'_> {
    pub(super) fn parameter(&self, name: &str) -> &str {
        self.parameters.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str())
    }

    fn is_dry_run(&self) -> bool {
        self.parameter("dryRun") == "All"
    }

    /// The namespace as the store knows it.
    fn space(&self) -> &str {
        self.namespace.unwrap_or_default()
    }

    fn answer(&self) -> Response {
        let method = self.request.head.method.as_str();
        let watch = matches!(self.parameter("watch"), "true" | "1");
        match (method, self.name) {
            ("GET", None) if watch => self.watch(),
            ("GET", None) => self.list(),
            ("GET", Some(name)) => match self.api.store.get(self.resource, self.space(), name) {
                Some(object) => self.render(200, object),
                None => self.missing(),
            },
            ("POST", None) | ("PUT", Some(_)) if self.resource.writable && !self.is_readable() => {
                let message = "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml";
                status(415, "UnsupportedMediaType", message, json!({}))
            }
            ("POST", None) if self.resource.writable => self.create(),
            ("PUT", Some(name)) if self.resource.writable => self.update(name),
            ("PATCH", Some(name)) if self.resource.writable => self.patch(name),
            ("DELETE", Some(name)) if self.resource.writable => self.delete(name),
            _ => {
                let message = "the server does not allow this method on the requested resource";
                status(405, "MethodNotAllowed", message, json!({}))
            }
        }
    }

    fn details(&self, name: &str) -> Value {
        json!({"name": name, "group": self.resource.group, "kind": self.resource.plural})
    }

    /// The type of the body, without parameters.
    fn content_type(&self) -> &str {
        self.request.header("content-type").split(';').next().unwrap_or_default().trim()
    }

    /// Whether an object can be read from the body; the protobuf form of Kubernetes is left out.
    fn is_readable(&self) -> bool {
        matches!(self.content_type(), "" | "application/json" | "application/yaml")
    }

    fn qualified_plural(&self) -> String {
        match self.resource.group {
            "" => self.resource.plural.to_owned(),
            group => format!("{}.{group}", self.resource.plural),
        }
    }

    fn missing(&self) -> Response {
        self.refuse(&StoreError::NotFound, self.name.unwrap_or_default())
    }

    fn refuse(&self, error: &StoreError, name: &str) -> Response {
        let what = self.qualified_plural();
        let (code, reason, message) = match error {
            StoreError::NotFound => (404, "NotFound", format!("{what} \"{name}\" not found")),
            StoreError::AlreadyExists => (409, "AlreadyExists", format!("{what} \"{name}\" already exists")),
            StoreError::Conflict => (
                409,
                "Conflict",
                format!(
                    "Operation cannot be fulfilled on {what} \"{name}\": the object has been modified; please apply your \
                     changes to the latest version and try again"
                ),
            ),
        };
        status(code, reason, &message, self.details(name))
    }

    pub(super) fn bad_request(message: &str) -> Response {
        status(400, "BadRequest", message, Value::Null)
    }

    fn render(&self, code: u16, object: Value) -> Response {
        if table::is_wanted(self.request.header("accept")) {
            let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            return json(code, &self.table(&[object], &version));
        }
        json(code, &object)
    }

    pub(super) fn table(&self, objects: &[Value], version: &str) -> Value {
        table::render(self.resource, objects, version, self.api.world.clock.wall(), self.parameter("includeObject"))
    }

    fn list(&self) -> Response {
        let selector = match Selector::parse(&self.parameters) {
            Ok(selector) => selector,
            Err(message) => return Self::bad_request(&message),
        };
        let mut snapshot = self.api.store.list(self.resource, self.namespace);
        snapshot.objects.retain(|object| selector.matches(object));
        let version = snapshot.version.to_string();
        if table::is_wanted(self.request.header("accept")) {
            return json(200, &self.table(&snapshot.objects, &version));
        }
        json(
            200,
            &json!({
                "kind": format!("{}List", self.resource.kind), "apiVersion": self.resource.api_version(),
                "metadata": {"resourceVersion": version}, "items": snapshot.objects,
            }),
        )
    }

    fn create(&self) -> Response {
        let mut object = match self.read_object() {
            Ok(object) => object,
            Err(message) => return Self::bad_request(&message),
        };
        if object["metadata"]["name"].as_str().is_none_or(str::is_empty) {
            let Some(prefix) = object["metadata"]["generateName"].as_str() else {
                return Self::bad_request("name or generateName is required");
            };
            let end = uuid::Uuid::new_v4().simple().to_string();
            object["metadata"]["name"] = format!("{prefix}{}", &end[..5]).into();
        }
        self.store_new(object)
    }

    fn store_new(&self, mut object: Value) -> Response {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if let Err(message) = check_name(&name) {
            let message = format!("{} \"{name}\" is invalid: metadata.name: {message}", self.resource.kind);
            return status(422, "Invalid", &message, self.details(&name));
        }
        let namespaces = find("", "v1", "namespaces").expect("namespaces are served");
        if self.api.store.get(namespaces, "", self.space()).is_none() {
            let message = format!("namespaces \"{}\" not found", self.space());
            return status(404, "NotFound", &message, json!({"name": self.space(), "kind": "namespaces"}));
        }
        object["apiVersion"] = self.resource.api_version().into();
        object["kind"] = self.resource.kind.into();
        object["metadata"]["namespace"] = self.space().into();
        object["metadata"]["uid"] = uuid::Uuid::new_v4().to_string().into();
        object["metadata"]["creationTimestamp"] = extended_date(self.api.world.clock.wall()).into();
        match self.api.store.create(self.resource, object, self.is_dry_run()) {
            Ok(object) => self.render(201, object),
            Err(error) => self.refuse(&error, &name),
        }
    }

    fn update(&self, name: &str) -> Response {
        let object = match self.read_object() {
            Ok(object) => object,
            Err(message) => return Self::bad_request(&message),
        };
        if object["metadata"]["name"] != name {
            return Self::bad_request("the name of the object does not match the name in the URL");
        }
        self.answer_change(
            name,
            self.api.store.change(self.resource, self.space(), name, self.is_dry_run(), |_| object),
        )
    }

    fn answer_change(&self, name: &str, outcome: Result<Value, StoreError>) -> Response {
        match outcome {
            Ok(object) => self.render(200, object),
            Err(error) => self.refuse(&error, name),
        }
    }

    fn patch(&self, name: &str) -> Response {
        let store = &self.api.store;
        match self.content_type() {
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
                let patch = self.read_body(false).and_then(|mut patch| {
                    self.check_fields(&mut patch)?;
                    Ok(patch)
                });
                let patch = match patch {
                    Ok(patch) => patch,
                    Err(message) => return Self::bad_request(&message),
                };
                let outcome = store.change(self.resource, self.space(), name, self.is_dry_run(), |old| {
                    let mut new = old.clone();
                    merge(&mut new, &patch);
                    new
                });
                self.answer_change(name, outcome)
            }
            "application/apply-patch+yaml" => self.apply(name),
            other => {
                let message = format!(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml; got {other}"
                );
                status(415, "UnsupportedMediaType", &message, json!({}))
            }
        }
    }

    /// Server-side apply: fields that the manager applied before and does not apply now go, unless the
    /// object is new. Conflicts between managers are not looked for: the last one wins.
    fn apply(&self, name: &str) -> Response {
        let manager = self.parameter("fieldManager");
        if manager.is_empty() {
            return Self::bad_request(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            );
        }
        let patch = match self.read_object_as(true) {
            Ok(patch) => patch,
            Err(message) => return Self::bad_request(&message),
        };
        let (store, space) = (&self.api.store, self.space());
        let before =
            if self.is_dry_run() { None } else { store.swap_applied(self.resource, space, name, manager, &patch) };
        let outcome = store.change(self.resource, space, name, self.is_dry_run(), |old| {
            let mut new = old.clone();
            if let Some(before) = &before {
                remove_unapplied(&mut new, before, &patch);
            }
            merge(&mut new, &patch);
            new
        });
        match outcome {
            Err(StoreError::NotFound) => {
                let mut object = patch;
                object["metadata"]["name"] = name.into();
                self.store_new(object)
            }
            outcome => self.answer_change(name, outcome),
        }
    }

    fn delete(&self, name: &str) -> Response {
        match self.api.store.delete(self.resource, self.space(), name, self.is_dry_run()) {
            Ok(object) => {
                let mut details = self.details(name);
                details["uid"] = object["metadata"]["uid"].clone();
                json(
                    200,
                    &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
                )
            }
            Err(error) => self.refuse(&error, name),
        }
    }

    /// The error is the text of a bad request.
    fn read_body(&self, yaml: bool) -> Result<Value, String> {
        let body = &self.request.body;
        let parsed = serde_json::from_slice::<Value>(body).map_err(|error| error.to_string());
        let parsed = match parsed {
            Err(_) if yaml => serde_yaml::from_slice::<Value>(body).map_err(|error| error.to_string()),
            parsed => parsed,
        };
        match parsed {
            Ok(value) if value.is_object() => Ok(value),
            Ok(_) => Err("the body is not an object".to_owned()),
            Err(error) => Err(format!("the object provided is unrecognized: {error}")),
        }
    }

    fn read_object(&self) -> Result<Value, String> {
        self.read_object_as(self.content_type() == "application/yaml")
    }

    /// Reads an object of the resource's kind and checks its fields as far as they are known.
    fn read_object_as(&self, yaml: bool) -> Result<Value, String> {
        let mut object = self.read_body(yaml)?;
        let kind = &object["kind"];
        if !kind.is_null() && *kind != self.resource.kind {
            return Err(format!("the object is a {kind}, not a {}", self.resource.kind));
        }
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        if !namespace.is_empty() && namespace != self.space() {
            return Err(
                "the namespace of the provided object does not match the namespace sent on the request".to_owned()
            );
        }
        self.check_fields(&mut object)?;
        Ok(object)
    }

    /// Refuses unknown fields or removes them, as the request asks for, and checks the types of others.
    fn check_fields(&self, object: &mut Value) -> Result<(), String> {
        let known = |name: &str| {
            matches!(name, "apiVersion" | "kind" | "metadata")
                || name.starts_with('$')
                || self.resource.fields.iter().any(|(field, _)| *field == name)
        };
        let unknown: Vec<String> =
            object.as_object().into_iter().flat_map(|fields| fields.keys()).filter(|n| !known(n)).cloned().collect();
        if let Some(first) = unknown.first() {
            if self.parameter("fieldValidation") == "Strict" {
                let message = format!(
                    "{} in version \"{}\" cannot be handled as a {}: strict decoding error: unknown field \"{first}\"",
                    self.resource.kind, self.resource.version, self.resource.kind
                );
                return Err(message);
            }
            for name in &unknown {
                if let Some(fields) = object.as_object_mut() {
                    fields.remove(name);
                }
            }
        }
        for (field, kind) in self.resource.fields {
            let value = &object[*field];
            let strings =
                value.as_object().is_some_and(|map| map.values().all(|value| value.is_string() || value.is_null()));
            if *kind == "strings" && !value.is_null() && !strings {
                return Err(format!("{field} is not a map of strings"));
            }
        }
        Ok(())
    }
}

/// A DNS-1123 subdomain.
fn check_name(name: &str) -> Result<(), &'static str> {
    let good = |label: &str| {
        let bytes = label.as_bytes();
        let alphanumeric = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        alphanumeric(bytes.first())
            && alphanumeric(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    if name.len() <= 253 && name.split('.').all(good) {
        Ok(())
    } else {
        Err("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_subdomains() {
        for good in ["a", "a-1.b", "kube-root-ca.crt"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a..b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
