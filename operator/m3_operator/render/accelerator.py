"""How a pod gets its GPUs: as a device plugin's extended resource, or as devices claimed from a DRA driver.

A claim template cannot be changed once it exists, so its name holds a digest of what it says: another wish is another
template, and pods of an older revision keep theirs.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.render.pod import owner_reference

CLAIM_TEMPLATE_KIND: Final = "ResourceClaimTemplate"
_CLAIM: Final = "gpus"
_DIGEST_LENGTH: Final = 8


def equipped(pod_spec: Mapping[str, Any], deployment: M3Deployment) -> dict[str, Any]:
    """The pod spec with `parallelism.gpusPerNode` GPUs for its main container, beside what that already asks for."""
    count, accelerator = deployment.spec.parallelism.gpus_per_node, deployment.spec.accelerator
    if count == 0:
        return dict(pod_spec)
    main, *others = pod_spec["containers"]
    resources: dict[str, Any] = dict(main.get("resources") or {})
    if accelerator.mode == "DRA":
        resources["claims"] = [{"name": _CLAIM}]
        claims = [{"name": _CLAIM, "resourceClaimTemplateName": _template_name(deployment)}]
        return {**pod_spec, "containers": [{**main, "resources": resources}, *others], "resourceClaims": claims}
    for kind in ("requests", "limits"):
        resources[kind] = {**resources.get(kind, {}), accelerator.resource_name: str(count)}
    return {**pod_spec, "containers": [{**main, "resources": resources}, *others]}


def claim_template(deployment: M3Deployment) -> dict[str, Any] | None:
    """The template of the claims of all pods; None for a device plugin, and for pods without GPUs."""
    if deployment.spec.accelerator.mode != "DRA" or deployment.spec.parallelism.gpus_per_node == 0:
        return None
    meta = deployment.metadata
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": CLAIM_TEMPLATE_KIND,
        "metadata": {
            "name": _template_name(deployment),
            "namespace": meta.namespace,
            "labels": names.worker_labels(meta.name),
            "ownerReferences": [owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)],
        },
        "spec": _claim_spec(deployment),
    }


def _claim_spec(deployment: M3Deployment) -> dict[str, Any]:
    accelerator = deployment.spec.accelerator
    devices: dict[str, Any] = {
        "deviceClassName": accelerator.device_class_name,
        "allocationMode": "ExactCount",
        "count": deployment.spec.parallelism.gpus_per_node,
    }
    if accelerator.selectors:
        devices["selectors"] = [{"cel": {"expression": expression}} for expression in accelerator.selectors]
    return {"spec": {"devices": {"requests": [{"name": _CLAIM, "exactly": devices}]}}}


def _template_name(deployment: M3Deployment) -> str:
    text = json.dumps(_claim_spec(deployment), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]
    return f"{deployment.metadata.name}-{_CLAIM}-{digest}"
