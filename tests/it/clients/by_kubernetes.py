"""Python `kubernetes`: list, watch or apply by a context of a kubeconfig."""

import sys

from kubernetes import client, config, watch

kubeconfig, context, what = sys.argv[1:]
config.load_kube_config(config_file=kubeconfig, context=context)
api = client.CoreV1Api()
if what == "list":
    assert api.list_pod_for_all_namespaces(_request_timeout=30).items
elif what == "watch":
    # What is there comes first, and then what changes.
    for event in watch.Watch().stream(api.list_pod_for_all_namespaces, timeout_seconds=60, _request_timeout=30):
        if event["type"] == "MODIFIED":
            break
    else:
        raise SystemExit("no change was seen")
else:
    name = "by-python-kubernetes"
    settings = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name), data={"key": "one"})
    api.create_namespaced_config_map("default", settings, _request_timeout=30)
    api.patch_namespaced_config_map(name, "default", {"data": {"key": "two"}}, _request_timeout=30)
    assert api.read_namespaced_config_map(name, "default").data == {"key": "two"}
    api.delete_namespaced_config_map(name, "default")
