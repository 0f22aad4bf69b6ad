"""Python `lightkube`: list, watch or apply by a context of a kubeconfig."""

import sys

from lightkube import Client, KubeConfig
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import ConfigMap, Pod

kubeconfig, context, what = sys.argv[1:]
client = Client(config=KubeConfig.from_file(kubeconfig).get(context_name=context))
if what == "list":
    assert list(client.list(Pod, namespace="*"))
elif what == "watch":
    for event, _pod in client.watch(Pod, namespace="*"):
        if event == "MODIFIED":
            break
    else:
        raise SystemExit("no change was seen")
else:
    name = "by-lightkube"
    for value in ["one", "two"]:
        settings = ConfigMap(metadata=ObjectMeta(name=name, namespace="default"), data={"key": value})
        client.apply(settings, field_manager="lightkube")
    assert client.get(ConfigMap, name, namespace="default").data == {"key": "two"}
    client.delete(ConfigMap, name, namespace="default")
