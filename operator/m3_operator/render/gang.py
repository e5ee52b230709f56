"""The pods of one group scheduled together: the object that says so, and what its pods carry for each scheduler.

Owns the words of four schedulers for one thing, all or none. `Native` is Kubernetes' own PodGroup; `Volcano`,
`SchedulerPlugins` and `Kueue` are projects that a cluster may have; `Gates` is what is left without them: pods that
the scheduler does not see until `plan.gates` opens their group. A group of one node needs none of it.

An object is named by group and revision, because most of Kubernetes' PodGroup cannot be changed: a new revision gets a
new one, and a group that comes back at an old revision finds its own.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.render.pod import owner_reference

Gang = Literal["Native", "Volcano", "SchedulerPlugins", "Kueue", "Gates", "None"]
"""Who keeps the pods of a group together, once it is decided."""

KINDS: Final[Mapping[str, str]] = {
    "Native": "PodGroup",
    "Volcano": "PodGroup.scheduling.volcano.sh",
    "SchedulerPlugins": "PodGroup.scheduling.x-k8s.io",
}
"""Of `resources.RESOURCES`: the object that each of them reads. Kueue makes its own of the pods' labels."""
VOLCANO_SCHEDULER: Final = "volcano"
_VOLCANO_ANNOTATION: Final = "scheduling.k8s.io/group-name"
_PLUGINS_LABEL: Final = "scheduling.x-k8s.io/pod-group"
_KUEUE: Final = "kueue.x-k8s.io"


def needs_gang(deployment: M3Deployment) -> bool:
    """Whether a group has pods that could be scheduled apart."""
    return deployment.spec.parallelism.nodes > 1


def gang_object(deployment: M3Deployment, group: int, revision: str, gang: Gang) -> dict[str, Any] | None:
    """The PodGroup of one group at one revision; None where its scheduler needs none."""
    if not needs_gang(deployment):
        return None
    nodes, spec = deployment.spec.parallelism.nodes, deployment.spec
    priority = spec.template.priority_class_name
    queue, timeout = spec.placement.gang.queue_name, spec.placement.gang.timeout_seconds
    named = {"priorityClassName": priority} if priority else {}
    if gang == "Native":
        body: dict[str, Any] = {
            "schedulingPolicy": {"gang": {"minCount": nodes}},
            "disruptionMode": {"all": {}},  # a world that lost one rank serves nobody
            **named,
        }
        return _object(deployment, group, revision, "scheduling.k8s.io/v1beta1", body)
    if gang == "Volcano":
        body = {"minMember": nodes, **({"queue": queue} if queue else {}), **named}
        return _object(deployment, group, revision, "scheduling.volcano.sh/v1beta1", body)
    if gang == "SchedulerPlugins":
        body = {"minMember": nodes, "scheduleTimeoutSeconds": timeout}
        return _object(deployment, group, revision, "scheduling.x-k8s.io/v1alpha1", body)
    return None


def ganged(pod: Mapping[str, Any], deployment: M3Deployment, group: int, revision: str, gang: Gang) -> dict[str, Any]:
    """The pod with what its scheduler has to know of its group."""
    if not needs_gang(deployment) or gang == "None":
        return dict(pod)
    name = names.gang_name(deployment.metadata.name, group, revision)
    spec: dict[str, Any] = {}
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    if gang == "Native":
        spec["schedulingGroup"] = {"podGroupName": name}
    elif gang == "Volcano":
        annotations[_VOLCANO_ANNOTATION] = name
        spec["schedulerName"] = pod["spec"].get("schedulerName", VOLCANO_SCHEDULER)  # it may run by another name
    elif gang == "SchedulerPlugins":
        labels[_PLUGINS_LABEL] = name
    elif gang == "Kueue":
        labels[f"{_KUEUE}/queue-name"] = deployment.spec.placement.gang.queue_name or ""
        labels[f"{_KUEUE}/pod-group-name"] = name
        annotations[f"{_KUEUE}/pod-group-total-count"] = str(deployment.spec.parallelism.nodes)
        annotations[f"{_KUEUE}/pod-group-serving"] = "true"  # its pods never end by themselves
    else:
        spec["schedulingGates"] = [{"name": names.GROUP_GATE}]
    metadata = pod["metadata"]
    return {
        **pod,
        "metadata": {
            **metadata,
            "labels": {**metadata.get("labels", {}), **labels},
            "annotations": {**metadata.get("annotations", {}), **annotations},
        },
        "spec": {**pod["spec"], **spec},
    }


def _object(
    deployment: M3Deployment, group: int, revision: str, api_version: str, spec: Mapping[str, Any]
) -> dict[str, Any]:
    meta = deployment.metadata
    return {
        "apiVersion": api_version,
        "kind": "PodGroup",
        "metadata": {
            "name": names.gang_name(meta.name, group, revision),
            "namespace": meta.namespace,
            "labels": {**names.worker_labels(meta.name), names.GROUP_LABEL: str(group)},
            "ownerReferences": [owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)],
        },
        "spec": dict(spec),
    }
