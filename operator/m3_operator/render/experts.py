"""The plan of experts as a ConfigMap: what groups that start begin with."""

import json
from pathlib import PurePosixPath
from typing import Any, Final

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.expert_plan.plan import ExpertPlan
from m3_operator.render.pod import owner_reference

EXPERTS_DIRECTORY: Final = PurePosixPath("/etc/m3-worker/experts")
PLAN_ENTRY: Final = "plan.json"
PLAN_FILE: Final = EXPERTS_DIRECTORY / PLAN_ENTRY
VOLUME: Final = "experts"


def has_plan(deployment: M3Deployment) -> bool:
    """Whether there are ranks that share experts, and the operator may place them."""
    shape = deployment.spec.parallelism
    is_spread = shape.nodes * max(shape.gpus_per_node, 1) > 1
    return is_spread and deployment.spec.engine.type == "native" and deployment.spec.expert_balancing.mode != "Off"


def plan_config_map(deployment: M3Deployment, plan: ExpertPlan) -> dict[str, Any]:
    """The ConfigMap that pods mount, if there is one when they start."""
    meta = deployment.metadata
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.experts_name(meta.name),
            "namespace": meta.namespace,
            "labels": names.worker_labels(meta.name),
            "ownerReferences": [owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)],
        },
        "data": {PLAN_ENTRY: json.dumps(plan.as_json(), separators=(",", ":"))},
    }


def plan_volume(deployment: M3Deployment) -> list[dict[str, Any]]:
    """The volume of the plan. Optional: the first group starts before there is one."""
    if not has_plan(deployment):
        return []
    return [{"name": VOLUME, "configMap": {"name": names.experts_name(deployment.metadata.name), "optional": True}}]


def plan_mount(deployment: M3Deployment) -> list[dict[str, Any]]:
    """Where it is mounted."""
    if not has_plan(deployment):
        return []
    return [{"name": VOLUME, "mountPath": str(EXPERTS_DIRECTORY), "readOnly": True}]
