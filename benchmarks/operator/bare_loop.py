"""The least that an operator can do, with the official client: the yardstick of `bench.py`, run beside it.

    python bare_loop.py KUBECONFIG NAMESPACE    # until it is killed

One watch of the M3Deployments of a namespace; for each new generation two server-side applies from a pool of threads,
a ConfigMap and the status. No cache, no plan, no pods, no comparison with what is there.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kubernetes import client, config, watch

_THREADS = 16
_APPLY = "application/apply-patch+yaml"


def main() -> None:
    """Watch and answer."""
    config.load_kube_config(config_file=sys.argv[1])
    namespace = sys.argv[2]
    settings = client.Configuration.get_default_copy()
    settings.connection_pool_maxsize = _THREADS
    api = client.ApiClient(settings)
    answered: dict[str, int] = {}
    with ThreadPoolExecutor(_THREADS) as threads:
        stream = watch.Watch().stream(
            client.CustomObjectsApi(api).list_namespaced_custom_object,
            "serving.m3.dev",
            "v1alpha1",
            namespace,
            "m3deployments",
        )
        print("watching", flush=True)
        for event in stream:
            metadata = event["object"]["metadata"]
            if event["type"] != "DELETED" and answered.get(metadata["name"]) != metadata["generation"]:
                answered[metadata["name"]] = metadata["generation"]
                threads.submit(answer, api, namespace, metadata)


def answer(api: client.ApiClient, namespace: str, metadata: dict[str, Any]) -> None:
    """A child and the status."""
    name, generation = metadata["name"], metadata["generation"]
    apply(
        api,
        f"/api/v1/namespaces/{namespace}/configmaps/{name}",
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"generation": str(generation)}},
    )
    apply(
        api,
        f"/apis/serving.m3.dev/v1alpha1/namespaces/{namespace}/m3deployments/{name}/status",
        {
            "apiVersion": "serving.m3.dev/v1alpha1",
            "kind": "M3Deployment",
            "metadata": {"name": name},
            "status": {"observedGeneration": generation},
        },
    )


def apply(api: client.ApiClient, path: str, manifest: dict[str, Any]) -> None:
    """One server-side apply."""
    request = api.param_serialize(
        "PATCH",
        path,
        query_params=[("fieldManager", "bare-loop"), ("force", "true")],
        header_params={"Accept": "application/json", "Content-Type": _APPLY},
        auth_settings=["BearerToken"],
    )
    api.call_api(request[0], request[1], request[2], json.dumps(manifest))


if __name__ == "__main__":
    main()
