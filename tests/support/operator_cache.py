"""A deployment whose model is downloaded, and what Kubernetes makes of its Job, for tests of the cache."""

from typing import Any

from m3_operator import names
from operator_cycles import World, deployment

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_SOURCE = {"repo": "MiniMaxAI/MiniMax-M3", "revision": COMMIT, "tokenSecretRef": {"name": "hub", "key": "token"}}
SHARED = {"size": "1Ti", "storageClassName": "fast"}


def cached(cache: dict[str, Any] | None = None, source: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """An M3Deployment of a model from the hub."""
    model = {"name": "M", "source": {"huggingFace": {**HUB_SOURCE, **(source or {})}}, "cache": cache or SHARED}
    return deployment(model=model, **spec)


def made(world: World, kind: str) -> list[dict[str, Any]]:
    """What was made of a kind, in order."""
    return [answer for answer in world.writer.answers if answer["kind"] == kind and "spec" in answer]


def put(world: World, manifest: dict[str, Any], **changes: Any) -> None:
    """A newer version of an object, as the watch would tell it."""
    world.writer.version += 1
    metadata = {**manifest["metadata"], "resourceVersion": str(world.writer.version)}
    world.woken |= world.store.put(manifest["kind"], {**manifest, "metadata": metadata, **changes})


def finish(world: World, job: dict[str, Any]) -> None:
    """The Job is done."""
    put(world, job, status={"conditions": [{"type": "Complete", "status": "True"}]})


def fetch_pod(world: World, job: dict[str, Any], **status: Any) -> dict[str, Any]:
    """The pod of a Job; its container runs unless `status` says otherwise."""
    running = {
        "phase": "Running",
        "podIP": "10.0.0.9",
        "containerStatuses": [{"name": "fetch", "state": {"running": {}}}],
    }
    name = f"{job['metadata']['name']}-x"
    template = job["spec"]["template"]
    manifest = {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "labels": {**template["metadata"]["labels"], names.JOB_LABEL: job["metadata"]["name"]},
        },
        "spec": {**template["spec"], "nodeName": "n"},
        "status": status or running,
    }
    put(world, manifest)
    return manifest


def ended(words: str, **state: Any) -> dict[str, Any]:
    """The status of a pod whose container failed with these words, and waits to be started again."""
    waiting = state or {
        "waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}
    }
    last = {"terminated": {"exitCode": 1, "reason": "Error", "message": words}}
    return {"phase": "Running", "containerStatuses": [{"name": "fetch", "state": waiting, "lastState": last}]}
