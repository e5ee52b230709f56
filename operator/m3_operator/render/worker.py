"""Workers as Kubernetes objects: the pods of one group, its headless Service, the Service over every rank 0.

A group is one world: one pod per node, of which rank 0 alone serves HTTP. How the process of a rank is started is its
engine's (`engines`); where pods may go is `placement`'s, how they get GPUs `accelerator`'s, and all or none `gang`'s.

The revision is a hash over what a person asked for (with the image resolved), not over the rendered pods: a newer
operator that renders them differently must not restart workers that hold half a terabyte of weights.
"""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from m3_operator import names
from m3_operator.api import M3Deployment, M3DeploymentSpec
from m3_operator.render import cache, experts, pod
from m3_operator.render.accelerator import equipped
from m3_operator.render.avoidance import without_nodes
from m3_operator.render.engines import native, sglang, vllm
from m3_operator.render.engines.launch import MODEL_DIRECTORY, RENDEZVOUS_PORT, RENDEZVOUS_PORT_NAME, Launch
from m3_operator.render.engines.native import tiny_settings
from m3_operator.render.gang import Gang, ganged
from m3_operator.render.placement import placed
from m3_operator.spec.engine import UNKNOWN_STARTUP_SECONDS
from m3_operator.spec.fragments import EnvVar
from m3_operator.spec.model import ModelSpec
from m3_operator.spec.recovery import RecoverySpec

_ENGINES: Final[Mapping[str, Callable[[M3Deployment, int, int], Launch]]] = {
    "native": native.launch,
    "vllm": vllm.launch,
    "sglang": sglang.launch,
}
NOT_IN_REVISION: Final = frozenset(
    {"replicas", "autoscaling", "suspend", "router", "rollout", "expert_balancing", "network_policy", "monitoring"}
)
"""Fields of the spec that no pod carries: a change of them replaces nothing."""
_REVISION_LENGTH: Final = 10
_STARTUP_PERIOD_SECONDS: Final = 5
_FIRST_PROBES: Final = {"startupSeconds": UNKNOWN_STARTUP_SECONDS}
"""What the first version of the CRD wrote into every object: that nobody asked for it must not restart anybody."""


def revision(deployment: M3Deployment, image: str) -> str:
    """Names what running pods must match: replicas, autoscaling, suspend, router and expertBalancing never roll.

    Nor does what is only declared, `model.release` and `accelerator.memoryGiB`: pods are the same with it and without.
    Nor do the size of a model cache and the token by which it is filled. Of `recovery`, pods carry only `hangSeconds`.
    Values that equal the defaults are left out, so that a field added by a later version changes no revision.
    """
    spec = deployment.spec
    undeclared = {
        "model": _carried(spec.model),
        "accelerator": spec.accelerator.model_copy(update={"memory_gib": None}),
    }
    wanted = revision_spec(spec.model_copy(update=undeclared))
    if wanted.get("probes") == _FIRST_PROBES:
        del wanted["probes"]
    text = json.dumps({**wanted, "image": image}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_REVISION_LENGTH]


def _carried(model: ModelSpec) -> ModelSpec:
    """What of a model makes pods what they are: not its declared size, nor how its weights were come by."""
    update: dict[str, Any] = {"release": None}
    if model.cache is not None and model.source.hugging_face is not None:
        anybody = model.source.hugging_face.model_copy(update={"token_secret_ref": None})
        update["source"] = model.source.model_copy(update={"hugging_face": anybody})
        update["cache"] = model.cache.model_copy(update={"size": None})
    return model.model_copy(update=update)


def revision_spec(spec: M3DeploymentSpec) -> dict[str, Any]:
    """The part of a spec that belongs to a revision, as a manifest writes it; what equals the defaults is left out.

    Of recovery, that is what the worker itself does about a hang.
    """
    carried = spec.model_copy(update={"recovery": RecoverySpec(hang_seconds=spec.recovery.hang_seconds)})
    return carried.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=set(NOT_IN_REVISION))


def group_pods(
    deployment: M3Deployment,
    group: int,
    revision: str,
    *,
    image: str,
    avoid: Collection[str] = (),
    gang: Gang = "None",
    fetch_image: str | None = None,
) -> list[dict[str, Any]]:
    """The pods of one group, by rank. Creating them again with the same arguments gives the same names.

    None of them may run on a node of `avoid`, whatever affinity the template asks for beside. `fetch_image`: what
    downloads a model, if the engine's image cannot.
    """
    ranks = range(deployment.spec.parallelism.nodes)
    pods = [
        _group_pod(deployment, group, rank, revision, image=image, fetch_image=fetch_image or image) for rank in ranks
    ]
    found = [ganged(pod, deployment, group, revision, gang) for pod in pods]
    return [without_nodes(pod, avoid) for pod in found] if avoid else found


def group_service(deployment: M3Deployment, group: int) -> dict[str, Any]:
    """The headless Service by which the ranks of one group find each other, before any of them is ready."""
    name = names.group_name(deployment.metadata.name, group)
    labels = {**names.worker_labels(deployment.metadata.name), names.GROUP_LABEL: str(group)}
    return _service(
        deployment,
        name,
        labels,
        {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.group_selector(deployment.metadata.name, group),
            "ports": [_port(RENDEZVOUS_PORT_NAME, RENDEZVOUS_PORT, RENDEZVOUS_PORT)],
        },
    )


def workers_service(deployment: M3Deployment) -> dict[str, Any]:
    """The Service over the ready rank 0 of every group."""
    name = deployment.metadata.name
    return _service(
        deployment,
        names.workers_service_name(name),
        names.worker_labels(name),
        {
            "type": "ClusterIP",
            "selector": names.rank0_selector(name),
            "ports": [_port(names.HTTP_PORT_NAME, deployment.spec.engine.port, names.HTTP_PORT_NAME)],
        },
    )


def _group_pod(
    deployment: M3Deployment, group: int, rank: int, revision: str, *, image: str, fetch_image: str
) -> dict[str, Any]:
    name, meta = names.pod_name(deployment.metadata.name, group, rank), deployment.metadata
    labels = {
        **names.worker_labels(meta.name),
        names.GROUP_LABEL: str(group),
        names.RANK_LABEL: str(rank),
        names.REVISION_LABEL: revision,
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # a rank that restarts alone cannot rejoin its world: the group is recreated
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostname": name,
        "subdomain": names.group_name(meta.name, group),
        "terminationGracePeriodSeconds": pod.termination_seconds(deployment.spec.drain.timeout_seconds),
        "containers": [_worker_container(deployment, group, rank, image)],
        "volumes": [pod.TMP_VOLUME, *_model_volume(deployment), *experts.plan_volume(deployment)],
    }
    if deployment.spec.model.source.tiny is not None:
        spec["initContainers"] = [_tiny_container(deployment, image)]
    elif fetching := cache.node_fetch_containers(deployment, fetch_image):
        spec["initContainers"] = fetching
    template = deployment.spec.template
    laid_over = pod.lay_over(spec, template, deployment.spec.engine.image_pull_secrets)
    declared = {names.NODES_ANNOTATION: str(deployment.spec.parallelism.nodes)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": meta.namespace,
            **pod.pod_metadata(template, labels, declared),
            "ownerReferences": [pod.owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)],
        },
        "spec": placed(equipped(laid_over, deployment), deployment, group, rank),
    }


def _worker_container(deployment: M3Deployment, group: int, rank: int, image: str) -> dict[str, Any]:
    spec = deployment.spec
    started = _ENGINES[spec.engine.type](deployment, group, rank)
    container: dict[str, Any] = {
        "name": "worker",
        "image": image,
        "imagePullPolicy": spec.engine.image_pull_policy,
        "command": list(started.command),
        "args": [*started.arguments, *spec.engine.args],
        "env": [pod.HOME, *started.environment, *(_env(variable) for variable in spec.engine.env)],
        "securityContext": pod.CONTAINER_SECURITY,
        "volumeMounts": [pod.TMP_MOUNT, *_model_mount(deployment), *experts.plan_mount(deployment)],
    }
    if rank == 0:
        container |= _serving(deployment, started)
    return container


def _serving(deployment: M3Deployment, started: Launch) -> dict[str, Any]:
    """Port, probes and drain of the only rank that speaks HTTP."""
    health = {"httpGet": {"path": "/health", "port": names.HTTP_PORT_NAME}, "timeoutSeconds": 5}
    patience_seconds = deployment.spec.probes.startup_seconds or UNKNOWN_STARTUP_SECONDS
    startup = math.ceil(patience_seconds / _STARTUP_PERIOD_SECONDS)
    ports = ((names.HTTP_PORT_NAME, deployment.spec.engine.port), *started.ports)
    return {
        "ports": [{"name": name, "containerPort": number, "protocol": "TCP"} for name, number in ports],
        "startupProbe": {**health, "periodSeconds": _STARTUP_PERIOD_SECONDS, "failureThreshold": startup},
        "readinessProbe": {**health, "periodSeconds": 2, "failureThreshold": 2},
        # Patient: a server that answers late is worse off restarted, with all its weights to load again.
        "livenessProbe": {**health, "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": pod.drained_lifecycle(),
    }


def _tiny_container(deployment: M3Deployment, image: str) -> dict[str, Any]:
    return {
        "name": "tiny",
        "image": image,
        "imagePullPolicy": deployment.spec.engine.image_pull_policy,
        "command": ["python3", "-m", "m3_worker.tiny"],
        "args": tiny_settings(deployment, Path(MODEL_DIRECTORY)).arguments(),
        "env": [pod.HOME, *(_env(variable) for variable in deployment.spec.engine.env)],
        "securityContext": pod.CONTAINER_SECURITY,
        "volumeMounts": [pod.TMP_MOUNT, {"name": "model", "mountPath": str(MODEL_DIRECTORY)}],
    }


def _env(variable: EnvVar) -> dict[str, Any]:
    return variable.manifest()


def _model_volume(deployment: M3Deployment) -> list[dict[str, Any]]:
    """The volume of the checkpoint; none for the one that is part of the worker."""
    source = deployment.spec.model.source
    if source.packaged is not None:
        return []
    if source.pvc is not None:
        return [{"name": "model", "persistentVolumeClaim": {"claimName": source.pvc.claim_name, "readOnly": True}}]
    if source.host_path is not None:
        return [{"name": "model", "hostPath": {"path": source.host_path.path, "type": "Directory"}}]
    if source.image is not None:
        image = {"reference": source.image.reference, "pullPolicy": source.image.pull_policy}
        return [{"name": "model", "image": image}]
    if source.hugging_face is not None:
        return [cache.cached_volume(deployment)]
    return [{"name": "model", "emptyDir": {}}]


def _model_mount(deployment: M3Deployment) -> list[dict[str, Any]]:
    source = deployment.spec.model.source
    if source.packaged is not None:
        return []
    mount: dict[str, Any] = {"name": "model", "mountPath": str(MODEL_DIRECTORY), "readOnly": True}
    if source.pvc is not None and source.pvc.path:
        mount["subPath"] = source.pvc.path
    if source.hugging_face is not None:
        mount["subPath"] = cache.cached_path(source.hugging_face)
    return [mount]


def _service(deployment: M3Deployment, name: str, labels: dict[str, str], spec: dict[str, Any]) -> dict[str, Any]:
    meta = deployment.metadata
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": meta.namespace,
            "labels": labels,
            "ownerReferences": [pod.owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)],
        },
        "spec": spec,
    }


def _port(name: str, port: int, target: int | str) -> dict[str, Any]:
    return {"name": name, "port": port, "targetPort": target, "protocol": "TCP"}
