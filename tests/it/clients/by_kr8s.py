"""Python `kr8s`: list, watch or apply by a context of a kubeconfig."""

import sys

import kr8s
from kr8s.objects import ConfigMap

kubeconfig, context, what = sys.argv[1:]
api = kr8s.api(kubeconfig=kubeconfig, context=context)
if what == "list":
    assert list(api.get("pods", namespace=kr8s.ALL))
elif what == "watch":
    for event, _pod in api.watch("pods", namespace=kr8s.ALL):
        if event == "MODIFIED":
            break
    else:
        raise SystemExit("no change was seen")
else:
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "by-kr8s", "namespace": "default"},
        "data": {"key": "one"},
    }
    settings = ConfigMap(manifest, api=api)
    settings.create()
    settings.patch({"data": {"key": "two"}})
    settings.refresh()
    assert dict(settings.raw["data"]) == {"key": "two"}
    settings.delete()
