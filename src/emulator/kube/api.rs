//! Requests of the Kubernetes API: who asks, for what, and the answer.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{Method, body::Frame};
use serde_json::{Value, json};
use tokio::{
    sync::broadcast,
    time::{Instant, sleep_until},
};

use super::{
    super::{
        clock::extended_date,
        credentials::Caller,
        http::{FullRequest, Response, json, text, with_body},
        sigv4::parse_query,
    },
    Api, auth, discovery, logs,
    resources::{Resource, find},
    store::{Change, StoreError, merge, remove_unapplied},
    table,
};

/// How long a watch lasts if its client does not say.
const WATCH_TIMEOUT: Duration = Duration::from_secs(1800);

/// Answers one request.
pub(super) async fn answer(api: Arc<Api>, request: FullRequest) -> Response {
    // Nothing here waits; the signature is what the server wants.
    std::future::ready(respond(&api, &request)).await
}

fn respond(api: &Arc<Api>, request: &FullRequest) -> Response {
    let authorization = request.header("authorization");
    // With and without a slash at the end, as the real one takes them.
    let public = match request.path().trim_end_matches('/') {
        "/livez" | "/readyz" | "/healthz" => Some(text(200, "ok")),
        "/version" => Some(json(200, &discovery::version(api))),
        _ => None,
    };
    let caller = match (public, auth::authenticate(api, authorization)) {
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
fn status(code: u16, reason: &str, message: &str, details: Value) -> Response {
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
struct Call<'a> {
    api: &'a Arc<Api>,
    request: &'a FullRequest,
    parameters: Vec<(String, String)>,
    resource: &'static Resource,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
}

impl Call<'_> {
    fn parameter(&self, name: &str) -> &str {
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

    fn bad_request(message: &str) -> Response {
        status(400, "BadRequest", message, Value::Null)
    }

    fn render(&self, code: u16, object: Value) -> Response {
        if table::is_wanted(self.request.header("accept")) {
            let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            return json(code, &self.table(&[object], &version));
        }
        json(code, &object)
    }

    fn table(&self, objects: &[Value], version: &str) -> Value {
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

    fn watch(&self) -> Response {
        let selector = match Selector::parse(&self.parameters) {
            Ok(selector) => selector,
            Err(message) => return Self::bad_request(&message),
        };
        let store = &self.api.store;
        let wanted = self.parameter("resourceVersion");
        let initial_events = self.parameter("sendInitialEvents") == "true";
        let mut lines = VecDeque::new();
        let as_table = table::is_wanted(self.request.header("accept"));
        let event = |verb: &str, object: Value| {
            let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            let object = if as_table { self.table(&[object], &version) } else { object };
            watch_line(verb, &object)
        };
        let from = if matches!(wanted, "" | "0") || initial_events {
            let snapshot = store.list(self.resource, self.namespace);
            lines.extend(
                snapshot.objects.into_iter().filter(|o| selector.matches(o)).map(|object| event("ADDED", object)),
            );
            if initial_events {
                lines.push_back(watch_line(
                    "BOOKMARK",
                    &json!({
                        "kind": self.resource.kind, "apiVersion": self.resource.api_version(),
                        "metadata": {"resourceVersion": snapshot.version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}},
                    }),
                ));
            }
            snapshot.version
        } else {
            match wanted.parse() {
                Ok(version) => version,
                Err(_) => return Self::bad_request(&format!("invalid resource version \"{wanted}\"")),
            }
        };
        let Some((missed, changes)) = store.follow(from) else {
            let message = format!("too old resource version: {from}");
            return status(410, "Expired", &message, Value::Null);
        };
        let seconds = self.parameter("timeoutSeconds").parse().map_or(WATCH_TIMEOUT, Duration::from_secs);
        let watch = Watch {
            api: self.api.clone(),
            resource: self.resource,
            namespace: self.namespace.map(str::to_owned),
            selector,
            as_table,
            include: self.parameter("includeObject").to_owned(),
            lines,
            missed: missed.into(),
            changes,
            until: self.api.world.clock.instant() + seconds.min(WATCH_TIMEOUT),
            ended: false,
        };
        let lines = stream::unfold(watch, |mut watch| async move {
            let line = watch.next_line().await?;
            Some((Ok::<_, Infallible>(Frame::data(line)), watch))
        });
        with_body(200, "application/json", StreamBody::new(lines).boxed_unsync())
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

fn watch_line(verb: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": verb, "object": object})).into()
}

/// An open watch.
struct Watch {
    api: Arc<Api>,
    resource: &'static Resource,
    namespace: Option<String>,
    selector: Selector,
    as_table: bool,
    include: String,
    lines: VecDeque<Bytes>,
    missed: VecDeque<Change>,
    changes: broadcast::Receiver<Change>,
    until: Instant,
    ended: bool,
}

impl Watch {
    async fn next_line(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            let change = match self.missed.pop_front() {
                Some(change) => Ok(change),
                None => {
                    tokio::select! {
                        change = self.changes.recv() => change,
                        () = sleep_until(self.until) => return None,
                    }
                }
            };
            match change {
                Ok(change) => self.lines.extend(self.line(change)),
                Err(broadcast::error::RecvError::Closed) => return None,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    self.ended = true;
                    let gone = json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": "too old resource version", "reason": "Expired", "code": 410,
                    });
                    self.lines.push_back(watch_line("ERROR", &gone));
                }
            }
        }
    }

    fn line(&self, change: Change) -> Option<Bytes> {
        let namespace = change.object["metadata"]["namespace"].as_str();
        let wanted = change.plural == self.resource.plural
            && self.namespace.as_deref().is_none_or(|wanted| namespace == Some(wanted))
            && self.selector.matches(&change.object);
        if !wanted {
            return None;
        }
        let object = if self.as_table {
            let version = change.version.to_string();
            table::render(self.resource, &[change.object], &version, self.api.world.clock.wall(), &self.include)
        } else {
            change.object
        };
        Some(watch_line(change.verb, &object))
    }
}

/// Label and field selectors of a request.
#[derive(Debug, Default)]
struct Selector {
    fields: Vec<Term>,
    labels: Vec<Term>,
}

/// One condition.
#[derive(Debug)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    fn parse(parameters: &[(String, String)]) -> Result<Self, String> {
        let mut selector = Self::default();
        for (name, value) in parameters {
            match name.as_str() {
                "labelSelector" => selector.labels = parse_terms(value)?,
                "fieldSelector" => selector.fields = parse_terms(value)?,
                _ => {}
            }
        }
        Ok(selector)
    }

    fn matches(&self, object: &Value) -> bool {
        let field = |path: &str| path.split('.').fold(object, |value, key| &value[key]).as_str();
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        self.fields.iter().all(|term| term.holds(field)) && self.labels.iter().all(|term| term.holds(label))
    }
}

impl Term {
    fn holds<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::In(key, values) => value(key).is_some_and(|value| values.iter().any(|wanted| wanted == value)),
            Self::NotIn(key, values) => value(key).is_none_or(|value| values.iter().all(|wanted| wanted != value)),
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
        }
    }
}

/// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
fn parse_terms(text: &str) -> Result<Vec<Term>, String> {
    let mut terms = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut depth = 0_u32;
        let end = rest
            .char_indices()
            .find(|(_, c)| {
                match c {
                    '(' => depth += 1,
                    ')' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                *c == ',' && depth == 0
            })
            .map_or(rest.len(), |(i, _)| i);
        terms.push(parse_term(rest[..end].trim())?);
        rest = rest.get(end + 1..).unwrap_or_default().trim();
    }
    Ok(terms)
}

fn parse_term(term: &str) -> Result<Term, String> {
    let key = |text: &str| text.trim().to_owned();
    let set = |text: &str| -> Option<Vec<String>> {
        let list = text.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(list.split(',').map(|value| value.trim().to_owned()).collect())
    };
    let unreadable = || format!("unable to parse requirement: {term}");
    if let Some((name, values)) = term.split_once(" notin ") {
        return Ok(Term::NotIn(key(name), set(values).ok_or_else(unreadable)?));
    }
    if let Some((name, values)) = term.split_once(" in ") {
        return Ok(Term::In(key(name), set(values).ok_or_else(unreadable)?));
    }
    if let Some((name, value)) = term.split_once("!=") {
        return Ok(Term::NotIn(key(name), vec![key(value)]));
    }
    if let Some((name, value)) = term.split_once('=') {
        return Ok(Term::In(key(name), vec![key(value.trim_start_matches('='))]));
    }
    match term.strip_prefix('!') {
        Some(name) if !name.is_empty() => Ok(Term::Absent(key(name))),
        None if !term.is_empty() && !term.contains(' ') => Ok(Term::Exists(key(term))),
        Some(_) | None => Err(unreadable()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_as_kubernetes_does() {
        let object = json!({"metadata": {"name": "p", "labels": {"app": "web", "tier": "front"}}, "status": {"phase": "Running"}});
        let matches = |labels: &str, fields: &str| {
            let parameters =
                [("labelSelector".to_owned(), labels.to_owned()), ("fieldSelector".to_owned(), fields.to_owned())];
            Selector::parse(&parameters).unwrap().matches(&object)
        };
        for labels in
            ["", "app=web", "app==web,tier!=back", "app in (web, api)", "tier notin (back),app", "!gone", "other!=x"]
        {
            assert!(matches(labels, ""), "{labels}");
        }
        for labels in ["app=api", "app!=web", "app in (api)", "gone", "!app"] {
            assert!(!matches(labels, ""), "{labels}");
        }
        assert!(matches("", "metadata.name=p,status.phase!=Failed"));
        assert!(!matches("", "metadata.name=q"));
        assert!(parse_terms("app in web").is_err());
        assert!(parse_terms("a b").is_err());
    }

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
