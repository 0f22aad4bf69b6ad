//! The kinds of object that are served, and how they are called.

/// One kind.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    /// The name in paths.
    pub(super) plural: &'static str,
    pub(super) singular: &'static str,
    pub(super) kind: &'static str,
    pub(super) short_names: &'static [&'static str],
    /// Listed by `kubectl get all`.
    pub(super) in_all: bool,
    pub(super) namespaced: bool,
    /// Whether objects can be created, changed and deleted.
    pub(super) writable: bool,
    /// One sentence for `kubectl explain`.
    pub(super) description: &'static str,
    /// Top-level fields besides `apiVersion`, `kind` and `metadata`, with their types in OpenAPI.
    pub(super) fields: &'static [(&'static str, &'static str)],
}

const BASE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "",
    singular: "",
    kind: "",
    short_names: &[],
    in_all: false,
    namespaced: true,
    writable: false,
    description: "",
    fields: &[("spec", "object"), ("status", "object")],
};

/// Everything that is served.
pub(super) const RESOURCES: &[Resource] = &[
    Resource {
        plural: "configmaps",
        singular: "configmap",
        kind: "ConfigMap",
        short_names: &["cm"],
        writable: true,
        description: "ConfigMap holds configuration data for pods to consume.",
        fields: &[("data", "strings"), ("binaryData", "strings"), ("immutable", "boolean")],
        ..BASE
    },
    Resource {
        plural: "events",
        singular: "event",
        kind: "Event",
        short_names: &["ev"],
        description: "Event is a report of an event somewhere in the cluster.",
        fields: &[
            ("involvedObject", "object"),
            ("reason", "string"),
            ("message", "string"),
            ("type", "string"),
            ("lastTimestamp", "string"),
        ],
        ..BASE
    },
    Resource {
        plural: "namespaces",
        singular: "namespace",
        kind: "Namespace",
        short_names: &["ns"],
        namespaced: false,
        description: "Namespace provides a scope for Names.",
        ..BASE
    },
    Resource {
        plural: "nodes",
        singular: "node",
        kind: "Node",
        short_names: &["no"],
        namespaced: false,
        description: "Node is a worker node in Kubernetes.",
        ..BASE
    },
    Resource {
        plural: "pods",
        singular: "pod",
        kind: "Pod",
        short_names: &["po"],
        in_all: true,
        description: "Pod is a collection of containers that can run on a host.",
        ..BASE
    },
    Resource {
        plural: "services",
        singular: "service",
        kind: "Service",
        short_names: &["svc"],
        in_all: true,
        description: "Service is a named abstraction of software service consisting of a local port that the proxy listens on.",
        ..BASE
    },
    Resource {
        group: "apps",
        plural: "deployments",
        singular: "deployment",
        kind: "Deployment",
        short_names: &["deploy"],
        in_all: true,
        description: "Deployment enables declarative updates for Pods and ReplicaSets.",
        ..BASE
    },
];

impl Resource {
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The verbs of discovery.
    pub(super) fn verbs(&self) -> &'static [&'static str] {
        if self.writable {
            &["create", "delete", "get", "list", "patch", "update", "watch"]
        } else {
            &["get", "list", "watch"]
        }
    }

    pub(super) fn categories(&self) -> &'static [&'static str] {
        if self.in_all { &["all"] } else { &[] }
    }
}

pub(super) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
}
