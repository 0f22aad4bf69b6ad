//! Watches: a request that is answered by what changes, as long as its client wants.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::{
    sync::broadcast,
    time::{Instant, sleep_until},
};

use super::{
    super::http::{Response, with_body},
    Api,
    api::{Call, status},
    resources::Resource,
    selector::Selector,
    store::Change,
    table,
};

/// How long a watch lasts if its client does not say.
const WATCH_TIMEOUT: Duration = Duration::from_secs(1800);

impl Call<'_> {
    pub(super) fn watch(&self) -> Response {
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
