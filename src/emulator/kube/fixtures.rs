//! What is in a cluster at the start, and the pod that keeps changing.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    super::clock::extended_date,
    Api,
    logs::CHATTY,
    resources::{Resource, find},
};

/// Label of the pod whose state changes.
const FLAKY: &str = "flaky";

/// How old everything is at the start.
const AGE: Duration = Duration::from_secs(26 * 3600);

fn resource(group: &str, plural: &str) -> &'static Resource {
    find(group, "v1", plural).expect("the fixtures are of kinds that are served")
}

/// Fills an empty store.
pub(super) fn fill(api: &Api) {
    for namespace in ["default", "demo", "kube-node-lease", "kube-public", "kube-system"] {
        let object = json!({"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        add(api, resource("", "namespaces"), "", namespace, object);
    }
    for n in 1..=2 {
        add(api, resource("", "nodes"), "", &node_name(api, n), node(api, n));
    }
    let pods = [
        ("default", "web-7d4b9c6f5d-2xk8p", "web"),
        ("default", "web-7d4b9c6f5d-q9z4m", "web"),
        ("demo", "chatty", CHATTY),
        ("demo", "flaky-5c8d7b6f4-hw2tn", FLAKY),
        ("kube-system", "aws-node-4l8vr", "aws-node"),
        ("kube-system", "coredns-6b9575c64c-8zt5x", "coredns"),
        ("kube-system", "coredns-6b9575c64c-kq7wd", "coredns"),
        ("kube-system", "kube-proxy-m2c9h", "kube-proxy"),
    ];
    for (i, (namespace, name, app)) in pods.into_iter().enumerate() {
        add(api, resource("", "pods"), namespace, name, pod(api, i, app));
    }
    add(api, resource("apps", "deployments"), "default", "web", deployment("web", 2));
    add(api, resource("", "services"), "default", "kubernetes", service("10.100.0.1", "https", 443));
    add(api, resource("", "services"), "default", "web", service("10.100.37.8", "http", 80));
    add(
        api,
        resource("", "configmaps"),
        "kube-system",
        "coredns",
        json!({"data": {"Corefile": ".:53 {\n    errors\n}\n"}}),
    );
    let event = json!({
        "involvedObject": {"kind": "Pod", "namespace": "demo", "name": "flaky-5c8d7b6f4-hw2tn", "apiVersion": "v1"},
        "reason": "BackOff", "message": "Back-off restarting failed container main", "type": "Warning", "count": 3,
        "source": {"component": "kubelet"}, "lastTimestamp": extended_date(api.started),
    });
    add(api, resource("", "events"), "demo", "flaky.17f3a", event);
}

fn add(api: &Api, resource: &'static Resource, namespace: &str, name: &str, mut object: Value) {
    object["apiVersion"] = resource.api_version().into();
    object["kind"] = resource.kind.into();
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"]["name"] = name.into();
    if resource.namespaced {
        object["metadata"]["namespace"] = namespace.into();
    }
    object["metadata"]["uid"] = uuid::Uuid::new_v4().to_string().into();
    object["metadata"]["creationTimestamp"] = extended_date(api.started.saturating_sub(AGE)).into();
    if let Err(error) = api.store.create(resource, object, false) {
        tracing::error!(?error, name, "a fixture is there twice");
    }
}

fn node_name(api: &Api, n: usize) -> String {
    format!("ip-10-0-{n}-17.{}.compute.internal", api.cluster.region)
}

fn node(api: &Api, n: usize) -> Value {
    json!({
        "metadata": {"labels": {
            "kubernetes.io/hostname": node_name(api, n), "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "eks.amazonaws.com/nodegroup": "default", "topology.kubernetes.io/region": api.cluster.region,
        }},
        "spec": {"providerID": format!("aws:///{}a/i-0{n:016x}", api.cluster.region)},
        "status": {
            "capacity": {"cpu": "4", "memory": "16Gi", "pods": "58"},
            "allocatable": {"cpu": "3920m", "memory": "15Gi", "pods": "58"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "addresses": [{"type": "InternalIP", "address": format!("10.0.{n}.17")}, {"type": "Hostname", "address": node_name(api, n)}],
            "nodeInfo": {
                "kubeletVersion": format!("v{}.1-eks-0a1b2c3", api.cluster.config.version), "osImage": "Amazon Linux 2023",
                "kernelVersion": "6.1.100", "containerRuntimeVersion": "containerd://1.7.25", "operatingSystem": "linux",
                "architecture": "amd64", "machineID": "", "systemUUID": "", "bootID": "", "kubeProxyVersion": "",
            },
        },
    })
}

fn pod(api: &Api, index: usize, app: &str) -> Value {
    let started = extended_date(api.started.saturating_sub(AGE));
    json!({
        "metadata": {"labels": {"app": app, "k8s-app": app}},
        "spec": {
            "nodeName": node_name(api, index % 2 + 1), "restartPolicy": "Always", "serviceAccountName": "default",
            "containers": [{"name": "main", "image": format!("registry.example.com/{app}:1.0"), "ports": [{"containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running", "podIP": format!("10.0.{}.{}", index % 2 + 1, index + 20), "startTime": started,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": "main", "ready": true, "restartCount": 0, "image": format!("registry.example.com/{app}:1.0"),
                "imageID": "", "state": {"running": {"startedAt": started}},
            }],
        },
    })
}

fn deployment(app: &str, replicas: u32) -> Value {
    let labels = json!({ "app": app });
    json!({
        "metadata": {"labels": labels, "generation": 1},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": format!("registry.example.com/{app}:1.0")}]}},
        },
        "status": {"replicas": replicas, "readyReplicas": replicas, "updatedReplicas": replicas, "availableReplicas": replicas, "observedGeneration": 1},
    })
}

fn service(ip: &str, port_name: &str, port: u16) -> Value {
    json!({
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": port_name, "port": port, "protocol": "TCP", "targetPort": 8080}]},
        "status": {"loadBalancer": {}},
    })
}

/// Lets one pod fail and come back, again and again.
pub(super) async fn churn(api: Arc<Api>, interval: Duration) {
    let mut restarts: u64 = 0;
    loop {
        tokio::select! {
            biased;
            () = api.world.stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        restarts += 1;
        let ready = restarts.is_multiple_of(2);
        let since = extended_date(api.world.clock.wall());
        let changed = api.store.change(resource("", "pods"), "demo", "flaky-5c8d7b6f4-hw2tn", false, |pod| {
            let mut pod = pod.clone();
            let state = if ready {
                json!({"running": {"startedAt": since}})
            } else {
                json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}})
            };
            pod["status"]["containerStatuses"][0]["state"] = state;
            pod["status"]["containerStatuses"][0]["ready"] = ready.into();
            pod["status"]["containerStatuses"][0]["restartCount"] = restarts.div_ceil(2).into();
            pod["status"]["conditions"][0]["status"] = if ready { "True" } else { "False" }.into();
            pod
        });
        if changed.is_err() {
            return;
        }
    }
}
