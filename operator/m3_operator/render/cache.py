"""A model that is downloaded once: its volume, the Job that fills it, and how pods mount what is in it.

A claim of which `retain` is true belongs to nobody, is named by what is in it and how it is stored, and so serves every
deployment of its namespace that asks for the same. One that goes with its deployment is named and owned by it. Either
is made once and never changed. A Job's name has a hash of all of it, the claim's uid included: whoever deletes a claim
has it filled again.

In mode NodeLocal there is neither: the first container of each worker pod fills the node's directory.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.render import pod
from m3_operator.render.engines.launch import ANY_ADDRESS
from m3_operator.spec.cache import HuggingFaceSource, ModelCacheSpec
from m3_operator.spec.fragments import PodTemplate
from m3_worker.config import FetchSettings, cached_at

CLAIM_KIND: Final = "PersistentVolumeClaim"
JOB_KIND: Final = "Job"
CONTAINER: Final = "fetch"
_CACHE: Final = Path("/cache")
_MESSAGE_FILE: Final = Path("/dev/termination-log")
_DIGEST_LENGTH: Final = 10
# Failures are told in conditions and mended by people; kubelet waits up to five minutes between two attempts.
_FOR_EVER: Final = 2**31 - 1
# For checking digests; the workers' own resources are of another order.
_FETCH_REQUESTS: Final[Mapping[str, str]] = {"cpu": "500m", "memory": "256Mi"}


def cached_model(deployment: M3Deployment) -> tuple[HuggingFaceSource, ModelCacheSpec] | None:
    """What is downloaded, and where it is kept; None for a model that pods find somewhere."""
    model = deployment.spec.model
    if model.source.hugging_face is None or model.cache is None:
        return None
    return model.source.hugging_face, model.cache


def claim_of(deployment: M3Deployment) -> str | None:
    """Name of the claim that keeps the model; None if none does."""
    found = cached_model(deployment)
    if found is None or found[1].mode != "PVC":
        return None
    source, cache = found
    if cache.claim_name is not None:
        return cache.claim_name
    stored = [source.endpoint, source.repo, source.revision, cache.storage_class_name, *cache.access_modes]
    # Whose it is counts too: a deployment may be called as the shared ones are.
    digest = _digest([*stored, cache.retain])
    if cache.retain:
        return names.shared_claim_name(digest)
    return names.claim_name(deployment.metadata.name, digest)


def cache_claim(deployment: M3Deployment) -> dict[str, Any] | None:
    """The claim to make; None where there is nothing to make."""
    found, name = cached_model(deployment), claim_of(deployment)
    if found is None or name is None or found[1].size is None:
        return None
    source, cache = found
    meta = deployment.metadata
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": meta.namespace,
        "labels": names.common_labels(name, names.CACHE_COMPONENT),
        "annotations": {names.CACHED_ANNOTATION: f"{source.repo}@{source.revision}"},
    }
    if not cache.retain:
        metadata["labels"] = names.cache_labels(meta.name)
        metadata["ownerReferences"] = [pod.owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)]
    spec: dict[str, Any] = {"accessModes": list(cache.access_modes), "resources": {"requests": {"storage": cache.size}}}
    if cache.storage_class_name is not None:
        spec["storageClassName"] = cache.storage_class_name
    return {"apiVersion": "v1", "kind": CLAIM_KIND, "metadata": metadata, "spec": spec}


def fetch_job(deployment: M3Deployment, image: str, claim_uid: str) -> dict[str, Any]:
    """The Job that fills the deployment's claim. Raises ValueError if it has none."""
    claim = claim_of(deployment)
    if claim is None:
        raise ValueError(f"{deployment.metadata.name}: model.cache is no claim")
    meta, template = deployment.metadata, _placement_of(deployment.spec.template)
    container = {**fetch_container(deployment, image), "resources": {"requests": dict(_FETCH_REQUESTS)}}
    spec: dict[str, Any] = {
        "restartPolicy": "OnFailure",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [container],
        "volumes": [pod.TMP_VOLUME, {"name": "model", "persistentVolumeClaim": {"claimName": claim}}],
    }
    laid_over = pod.lay_over(spec, template, deployment.spec.engine.image_pull_secrets)
    # A new volume belongs to root: kubelet gives it to the group. A null in the template takes that away.
    group = {"fsGroup": pod.USER_ID, "fsGroupChangePolicy": "OnRootMismatch"}
    given = {**group, **laid_over["securityContext"], **(template.security_context or {})}
    laid_over["securityContext"] = {key: value for key, value in given.items() if value is not None}
    labels = names.cache_labels(meta.name)
    body = {
        "backoffLimit": _FOR_EVER,
        "template": {"metadata": pod.pod_metadata(template, labels, {}), "spec": laid_over},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": JOB_KIND,
        "metadata": {
            "name": names.fetch_job_name(meta.name, _digest([body, claim_uid])),
            "namespace": meta.namespace,
            "labels": labels,
            "ownerReferences": [pod.owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)],
        },
        "spec": body,
    }


def fetch_container(deployment: M3Deployment, image: str) -> dict[str, Any]:
    """The container that fills the cache mounted at /cache. Raises ValueError if nothing is downloaded."""
    found = cached_model(deployment)
    if found is None:
        raise ValueError(f"{deployment.metadata.name}: model.source is not huggingFace")
    source, engine = found[0], deployment.spec.engine
    settings = FetchSettings(
        repo=source.repo,
        revision=source.revision,
        endpoint=source.endpoint,
        cache=_CACHE,
        host=ANY_ADDRESS,
        port=engine.port,
        message_file=_MESSAGE_FILE,
    )
    environment: list[Mapping[str, Any]] = [pod.HOME, *(variable.manifest() for variable in engine.env)]
    if source.token_secret_ref is not None:
        reference = {"name": source.token_secret_ref.name, "key": source.token_secret_ref.key}
        environment.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": engine.image_pull_policy,
        "command": ["python3", "-m", "m3_worker.fetch"],
        "args": settings.arguments(),
        "env": environment,
        "ports": [{"name": names.HTTP_PORT_NAME, "containerPort": engine.port, "protocol": "TCP"}],
        "securityContext": pod.CONTAINER_SECURITY,
        "volumeMounts": [pod.TMP_MOUNT, {"name": "model", "mountPath": str(_CACHE)}],
    }


def node_fetch_containers(deployment: M3Deployment, image: str) -> list[dict[str, Any]]:
    """What runs before the engine in every worker pod: the download into the node's directory, in mode NodeLocal.

    With the resources of the engine itself, but GPUs, so that the pod stays of its quality of service.
    """
    found = cached_model(deployment)
    if found is None or found[1].mode != "NodeLocal":
        return []
    container = fetch_container(deployment, image)
    resources = {kind: amounts for kind, amounts in deployment.spec.template.resources.manifest().items() if amounts}
    return [{**container, "resources": resources} if resources else container]


def cached_volume(deployment: M3Deployment) -> dict[str, Any]:
    """The volume of a worker pod that has the model. Raises ValueError if nothing is downloaded."""
    found, claim = cached_model(deployment), claim_of(deployment)
    if found is None:
        raise ValueError(f"{deployment.metadata.name}: model.source is not huggingFace")
    if claim is not None:
        return {"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    return {"name": "model", "hostPath": {"path": found[1].path, "type": "DirectoryOrCreate"}}


def cached_path(source: HuggingFaceSource) -> str:
    """Where the model lies in that volume."""
    return cached_at(source.repo, source.revision)


def _placement_of(template: PodTemplate) -> PodTemplate:
    """What of the workers' template holds for the download too: it has to reach the same volume from the same nodes.

    Not what makes a pod a worker: resources, GPU runtime, scheduler, spreading, shared memory.
    """
    passed_on = ("labels", "annotations", "node_selector", "tolerations", "affinity", "security_context")
    also = ("service_account_name", "priority_class_name", "volumes", "volume_mounts")
    return PodTemplate().model_copy(update={name: getattr(template, name) for name in (*passed_on, *also)})


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]
