//! The objects of one cluster, their versions, and the stream of changes that watches follow.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use serde_json::{Map, Value};
use tokio::sync::broadcast;

use super::{super::world::lock, resources::Resource};

/// Changes that a watch may still ask for.
const MAX_HISTORY: usize = 1000;

/// Changes that a slow watch may be behind before it has to begin again.
const MAX_BEHIND: usize = 1000;

/// One change of one object.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) plural: &'static str,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub(super) verb: &'static str,
    pub(super) object: Value,
}

type Key = (&'static str, String, String);

#[derive(Default)]
struct Inner {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// What each field manager last applied.
    applied: BTreeMap<(Key, String), Value>,
    history: VecDeque<Change>,
}

/// Why an object is not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoreError {
    NotFound,
    AlreadyExists,
    Conflict,
}

/// See the module.
pub(super) struct Store {
    inner: Mutex<Inner>,
    changes: broadcast::Sender<Change>,
}

/// Objects at one version.
pub(super) struct Snapshot {
    pub(super) version: u64,
    pub(super) objects: Vec<Value>,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner { version: 1000, ..Inner::default() }),
            changes: broadcast::Sender::new(MAX_BEHIND),
        }
    }

    pub(super) fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Value> {
        lock(&self.inner).objects.get(&(resource.plural, namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All objects of a kind, of one namespace or of all.
    pub(super) fn list(&self, resource: &Resource, namespace: Option<&str>) -> Snapshot {
        let inner = lock(&self.inner);
        let of_kind = inner.objects.iter().filter(|((plural, ..), _)| *plural == resource.plural);
        let objects =
            of_kind.filter(|((_, ns, _), _)| namespace.is_none_or(|wanted| wanted == ns)).map(|(_, o)| o.clone());
        Snapshot { version: inner.version, objects: objects.collect() }
    }

    /// Begins to follow changes: those after `version` that are remembered, and all that come.
    /// `None` if some after `version` are forgotten.
    pub(super) fn follow(&self, version: u64) -> Option<(Vec<Change>, broadcast::Receiver<Change>)> {
        let inner = lock(&self.inner);
        let oldest = inner.history.front().map_or(inner.version, |change| change.version - 1);
        if version < oldest {
            return None;
        }
        let missed = inner.history.iter().filter(|change| change.version > version).cloned().collect();
        Some((missed, self.changes.subscribe()))
    }

    /// Adds an object that has a name, a namespace where its kind has one, and a uid.
    pub(super) fn create(&self, resource: &'static Resource, object: Value, keep: bool) -> Result<Value, StoreError> {
        let mut inner = lock(&self.inner);
        let key = key(resource, &object);
        if inner.objects.contains_key(&key) {
            return Err(StoreError::AlreadyExists);
        }
        Ok(self.put(&mut inner, key, "ADDED", object, keep))
    }

    /// Changes an object with a function. The function's result gets a new version if it differs.
    pub(super) fn change(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        keep: bool,
        change: impl FnOnce(&Value) -> Value,
    ) -> Result<Value, StoreError> {
        let mut inner = lock(&self.inner);
        let key: Key = (resource.plural, namespace.to_owned(), name.to_owned());
        let old = inner.objects.get(&key).ok_or(StoreError::NotFound)?;
        let mut new = change(old);
        let wanted = new["metadata"].get("resourceVersion").and_then(Value::as_str);
        if wanted.is_some_and(|wanted| old["metadata"]["resourceVersion"] != wanted) {
            return Err(StoreError::Conflict);
        }
        if !new["metadata"].is_object() {
            new["metadata"] = old["metadata"].clone();
        }
        for field in ["name", "namespace", "uid", "creationTimestamp", "resourceVersion"] {
            if let Some(value) = old["metadata"].get(field) {
                new["metadata"][field] = value.clone();
            }
        }
        if new == *old {
            return Ok(new);
        }
        Ok(self.put(&mut inner, key, "MODIFIED", new, keep))
    }

    pub(super) fn delete(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        keep: bool,
    ) -> Result<Value, StoreError> {
        let mut inner = lock(&self.inner);
        let key: Key = (resource.plural, namespace.to_owned(), name.to_owned());
        let object = inner.objects.get(&key).cloned().ok_or(StoreError::NotFound)?;
        if keep {
            return Ok(object);
        }
        inner.objects.remove(&key);
        inner.applied.retain(|(applied, _), _| *applied != key);
        self.publish(&mut inner, key.0, "DELETED", object.clone());
        Ok(object)
    }

    /// What a field manager applied last, and what it applies now.
    pub(super) fn swap_applied(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        manager: &str,
        now: &Value,
    ) -> Option<Value> {
        let key = (resource.plural, namespace.to_owned(), name.to_owned());
        lock(&self.inner).applied.insert((key, manager.to_owned()), now.clone())
    }

    /// Stores an object unless `keep` says that the old state is to be kept (a dry run).
    fn put(&self, inner: &mut Inner, key: Key, verb: &'static str, mut object: Value, keep: bool) -> Value {
        if keep {
            return object;
        }
        object["metadata"]["resourceVersion"] = (inner.version + 1).to_string().into();
        inner.objects.insert(key.clone(), object.clone());
        self.publish(inner, key.0, verb, object.clone());
        object
    }

    fn publish(&self, inner: &mut Inner, plural: &'static str, verb: &'static str, mut object: Value) {
        inner.version += 1;
        object["metadata"]["resourceVersion"] = inner.version.to_string().into();
        let change = Change { version: inner.version, plural, verb, object };
        inner.history.push_back(change.clone());
        if inner.history.len() > MAX_HISTORY {
            inner.history.pop_front();
        }
        // Nobody may be watching.
        let _watchers = self.changes.send(change);
    }
}

fn key(resource: &'static Resource, object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (resource.plural, if resource.namespaced { text("namespace") } else { String::new() }, text("name"))
}

/// RFC 7386. Directives of strategic merge patches (`$patch`, `$setElementOrder/…`) are left out:
/// no list that they are about can be written here.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Removes from `target` what was in `old` and is not in `new`.
pub(super) fn remove_unapplied(target: &mut Value, old: &Value, new: &Value) {
    let (Value::Object(target), Value::Object(old)) = (target, old) else { return };
    for (key, old_value) in old {
        match (target.get_mut(key), new.get(key)) {
            (None, _) => {}
            (Some(_), None) => {
                target.remove(key);
            }
            (Some(target_value), Some(new_value)) => remove_unapplied(target_value, old_value, new_value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merges_as_rfc_7386_says() {
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": "foo"}), json!("bar"), json!("bar")),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"a": 1}), json!({"$patch": "delete", "b": 2}), json!({"a": 1, "b": 2})),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, expected, "{target} with {patch}");
        }
    }

    #[test]
    fn what_is_no_longer_applied_goes() {
        let mut target = json!({"data": {"a": "1", "b": "2", "other": "3"}});
        remove_unapplied(&mut target, &json!({"data": {"a": "1", "b": "2"}}), &json!({"data": {"a": "1"}}));
        assert_eq!(target, json!({"data": {"a": "1", "other": "3"}}));
    }
}
