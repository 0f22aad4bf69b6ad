// JavaScript `@kubernetes/client-node`: list, watch or apply by a context of a kubeconfig.

import assert from "node:assert";
import { createRequire } from "node:module";

// The folder of the packages is not above this one.
const k8s = createRequire(process.env.CLIENTS + "/")("@kubernetes/client-node");

const [kubeconfig, context, what] = process.argv.slice(2);
const config = new k8s.KubeConfig();
config.loadFromFile(kubeconfig);
config.setCurrentContext(context);
const api = config.makeApiClient(k8s.CoreV1Api);
if (what === "list") {
    const pods = await api.listPodForAllNamespaces();
    assert(pods.items.length > 0);
} else if (what === "watch") {
    await new Promise((resolve, reject) => {
        const seen = (phase) => phase === "MODIFIED" && resolve();
        new k8s.Watch(config).watch("/api/v1/pods", {}, seen, reject).catch(reject);
    });
    process.exit(0);
} else {
    const metadata = { name: "by-client-node", namespace: "default" };
    const objects = k8s.KubernetesObjectApi.makeApiClient(config);
    const settings = { apiVersion: "v1", kind: "ConfigMap", metadata, data: { key: "one" } };
    await objects.create(settings);
    await objects.patch({ ...settings, data: { key: "two" } });
    const stored = await api.readNamespacedConfigMap(metadata);
    assert.deepStrictEqual(stored.data, { key: "two" });
    await objects.delete(settings);
}
