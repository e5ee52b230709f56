"""What the cluster says now, frozen: pods read into values, and the snapshot that one owner's plan may look at.

Reading is lenient (fields of a live object may be missing at any moment) and decides nothing; `groups` draws the first
conclusions. A pod or child counts as ours only by the uid of its controller: one that an earlier owner of the same name
left behind is in the way until the garbage collector has taken it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from m3_operator import names
from m3_operator.experts.window import ExpertState
from m3_operator.signals.steps import StepRecord
from m3_operator.signals.values import NO_SIGNALS, DeploymentSignals

Manifest = Mapping[str, Any]


_ROUTED_METADATA: Final = ("name", "namespace", "uid", "creationTimestamp")
_ROUTED_SPEC: Final = ("model", "engine", "parallelism", "autoscaling")


@dataclass(frozen=True, slots=True)
class Key:
    """Identifies one of our custom resources."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPod:
    """One worker pod, as far as decisions depend on it."""

    name: str
    uid: str
    owner_uid: str
    deployment: str
    group: int
    rank: int
    nodes: int  # pods of its group, as declared when it was created
    revision: str
    phase: str
    node_name: str | None
    ip: str
    is_ready: bool
    deletion_at: datetime | None  # when the pod should be gone at the latest; None: it stays
    finished_at: datetime | None
    version: str | None = field(default=None, compare=False)  # of the object, changed or not
    message: str  # why it is not running, or how it ended; "" when there is nothing to say
    avoids: tuple[str, ...] = ()  # nodes that it may not run on, whatever they are by now
    trouble: str = ""  # what `message` says, in Kubernetes' own word: ImagePullBackOff, Unschedulable, OOMKilled ...
    is_gated: bool = False  # whether our gate keeps the scheduler from seeing it
    opened_at: datetime | None = None  # when our gate was taken away; None: it is there, or never was
    host_ip: str | None = None  # of its node
    ready_at: datetime | None = None  # since when it is ready; None: it is not, or not known

    @property
    def is_terminating(self) -> bool:
        """Whether it is being deleted."""
        return self.deletion_at is not None

    @property
    def is_finished(self) -> bool:
        """Whether its process ended, which no worker does while it is wanted."""
        return self.phase in ("Failed", "Succeeded")

    @property
    def has_started(self) -> bool:
        """Whether its process may have met the others of its group."""
        return self.phase not in ("Pending", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperPod:
    """A pod of ours that others make for us, and that is no worker: a router's, or one that downloads a model."""

    name: str
    uid: str
    owner: "Key"  # the custom resource that it is for
    job: str | None  # the Job that made it, if one did
    ip: str | None
    port: int | None  # where it has its metrics
    node_name: str | None
    is_running: bool
    is_ready: bool
    message: str  # why it is not running; "" when there is nothing to say
    trouble: str  # the same in Kubernetes' own word
    last_words: str  # how its container ended last

    def says_the_same_as(self, other: "HelperPod | None") -> bool:
        """Whether a plan would make the same of both."""
        told = (self.uid, self.is_running, self.message, self.trouble, self.last_words)
        return other is not None and told == (
            other.uid,
            other.is_running,
            other.message,
            other.trouble,
            other.last_words,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedNode:
    """One node, as far as decisions depend on it."""

    name: str
    is_ready: bool
    since: datetime | None  # when it became what `is_ready` says
    is_unschedulable: bool = False
    taints: frozenset[str] = frozenset()  # keys of those that keep pods away or drive them out


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSnapshot:
    """Everything the plan of one M3Deployment may look at."""

    manifest: Manifest
    pods: tuple[ObservedPod, ...]  # its own, by group and rank
    names_in_the_way: frozenset[str]  # pods of its names that are not its own
    children: Mapping[tuple[str, str], Manifest]  # its own but pods, by kind and name
    router: Manifest | None  # the M3Router that should serve it: the one it names, or the one of its own name
    namesake: Manifest | None  # the M3Router of its own name, whoever made it
    signals: DeploymentSignals = NO_SIGNALS  # the last scrape of its workers and routers
    experts: ExpertState | None = None  # what the last window found; None: not looked at yet
    steps: Mapping[str, StepRecord] = field(default_factory=dict)  # by pod uid: since when its steps stand still
    nodes: Mapping[str, ObservedNode] = field(default_factory=dict)  # those its pods are on, as far as they are known
    siblings: tuple[Manifest, ...] = ()  # the other M3Deployments that the same router lists, as `routed`
    claims: Mapping[tuple[str, str], Manifest] = field(default_factory=dict)  # of models, shared in its namespace
    fetchers: tuple[HelperPod, ...] = ()  # pods that download its model, by name


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSnapshot:
    """Everything the plan of one M3Router may look at."""

    manifest: Manifest
    deployments: Mapping[str, Manifest | None]  # those it names, in order, as `routed`; None: there is none
    children: Mapping[tuple[str, str], Manifest]  # by kind and name
    tenants: tuple[Manifest, ...] = ()  # M3Tenants that are meant for it, the oldest first
    pods: tuple[HelperPod, ...] = ()  # its own, by name


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSnapshot:
    """Everything that is said of one M3Tenant follows from this."""

    manifest: Manifest
    routers: Mapping[str, Manifest | None]  # those it is meant for; None: there is no such object


def uid(manifest: Manifest) -> str:
    """The uid of an object."""
    return str(manifest.get("metadata", {}).get("uid", ""))


def owner_uid(manifest: Manifest) -> str:
    """The uid of an object's controller; empty without one."""
    for reference in manifest.get("metadata", {}).get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference.get("uid", ""))
    return ""


def served_model(deployment: Manifest) -> str:
    """The name by which clients ask for an M3Deployment's model; empty if its spec does not say."""
    model = deployment.get("spec", {}).get("model") or {}
    return str(next(iter(model.get("servedNames") or ()), model.get("name", "")))


def routed(deployment: Manifest) -> Manifest:
    """What others may know of an M3Deployment: all that the configuration of a router is made from.

    Whatever else changes concerns the deployment alone.
    """
    metadata, spec = deployment.get("metadata", {}), deployment.get("spec", {})
    return {
        **{part: deployment[part] for part in ("apiVersion", "kind") if part in deployment},
        "metadata": {part: metadata[part] for part in _ROUTED_METADATA if part in metadata},
        "spec": {part: spec[part] for part in _ROUTED_SPEC if part in spec},
    }


def resource_version(manifest: Manifest) -> int:
    """The version of an object; larger is newer (Kubernetes promises the order since 1.35)."""
    try:
        return int(manifest.get("metadata", {}).get("resourceVersion", 0))
    except ValueError:
        return 0


def condition(manifest: Manifest, name: str) -> Mapping[str, Any]:
    """A status condition by its type; empty when there is none."""
    for found in manifest.get("status", {}).get("conditions") or ():
        if found.get("type") == name:
            return dict(found)
    return {}


def read_pod(manifest: Manifest) -> ObservedPod | None:
    """The typed form of a worker pod; None if its labels do not say which group and rank it is."""
    metadata, status = manifest.get("metadata", {}), manifest.get("status", {})
    labels = metadata.get("labels") or {}
    ready = condition(manifest, "Ready")
    try:
        group, rank = int(labels[names.GROUP_LABEL]), int(labels[names.RANK_LABEL])
        nodes = int((metadata.get("annotations") or {}).get(names.NODES_ANNOTATION, 1))
        deployment = labels[names.DEPLOYMENT_LABEL]
    except (KeyError, ValueError):
        return None
    trouble, message = _trouble(manifest)
    return ObservedPod(
        name=metadata["name"],
        uid=uid(manifest),
        owner_uid=owner_uid(manifest),
        deployment=deployment,
        group=group,
        rank=rank,
        nodes=nodes,
        revision=labels.get(names.REVISION_LABEL, ""),
        phase=status.get("phase", ""),
        node_name=manifest.get("spec", {}).get("nodeName"),
        ip=status.get("podIP", ""),
        version=metadata.get("resourceVersion"),
        is_ready=ready.get("status") == "True",
        ready_at=parse_time(ready.get("lastTransitionTime")) if ready.get("status") == "True" else None,
        deletion_at=parse_time(metadata.get("deletionTimestamp")),
        finished_at=_finished_at(status),
        message=message,
        avoids=tuple(filter(None, (metadata.get("annotations") or {}).get(names.AVOIDS_ANNOTATION, "").split(","))),
        trouble=trouble,
        is_gated=any(
            gate.get("name") == names.GROUP_GATE for gate in manifest.get("spec", {}).get("schedulingGates") or ()
        ),
        opened_at=parse_time((metadata.get("annotations") or {}).get(names.OPENED_ANNOTATION)),
        host_ip=status.get("hostIP") or None,
    )


def read_helper_pod(manifest: Manifest) -> HelperPod | None:
    """The typed form of a router's pod, or of one that downloads a model; None if it is another's."""
    metadata, status = manifest.get("metadata", {}), manifest.get("status", {})
    labels = metadata.get("labels") or {}
    component = labels.get(names.COMPONENT_LABEL)
    if component == names.ROUTER_COMPONENT:
        kind, owner, port = names.ROUTER_KIND, labels.get(names.ROUTER_LABEL), names.ADMIN_PORT_NAME
    elif component == names.CACHE_COMPONENT:
        kind, owner, port = names.DEPLOYMENT_KIND, labels.get(names.DEPLOYMENT_LABEL), names.HTTP_PORT_NAME
    else:
        return None
    if not owner:
        return None
    trouble, message = _trouble(manifest)
    stays = not metadata.get("deletionTimestamp")
    return HelperPod(
        name=metadata["name"],
        uid=uid(manifest),
        owner=Key(kind, metadata.get("namespace", ""), owner),
        job=labels.get(names.JOB_LABEL),
        ip=status.get("podIP") or None,
        port=_port(manifest, port),
        node_name=manifest.get("spec", {}).get("nodeName"),
        is_running=stays and any("running" in (one.get("state") or {}) for one in _containers(status)),
        is_ready=stays and condition(manifest, "Ready").get("status") == "True",
        message=message,
        trouble=trouble,
        last_words=_last_words(status),
    )


def read_node(manifest: Manifest) -> ObservedNode:
    """The typed form of a node, without its heartbeats, which change all the time."""
    ready, spec = condition(manifest, "Ready"), manifest.get("spec", {})
    return ObservedNode(
        name=manifest["metadata"]["name"],
        is_ready=ready.get("status") == "True",
        since=parse_time(ready.get("lastTransitionTime")),
        is_unschedulable=bool(spec.get("unschedulable")),
        taints=frozenset(
            taint["key"] for taint in spec.get("taints") or () if taint.get("effect") in ("NoExecute", "NoSchedule")
        ),
    )


def parse_time(text: str | None) -> datetime | None:
    """A Kubernetes timestamp as an aware datetime."""
    return datetime.fromisoformat(text) if text else None


def _containers(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _port(manifest: Manifest, name: str) -> int | None:
    """A port of a pod's containers, by its name."""
    containers = manifest.get("spec", {}).get("containers") or ()
    ports = (port for container in containers for port in container.get("ports") or ())
    return next((int(port["containerPort"]) for port in ports if port.get("name") == name), None)


def _finished_at(status: Mapping[str, Any]) -> datetime | None:
    ends = [
        parse_time(container.get("state", {}).get("terminated", {}).get("finishedAt"))
        for container in _containers(status)
    ]
    return max((end for end in ends if end is not None), default=None)


def _last_words(status: Mapping[str, Any]) -> str:
    """How a container that failed ended, also when it was started again since."""
    for container in _containers(status):
        for state in (container.get("state"), container.get("lastState")):
            ended = (state or {}).get("terminated")
            if ended and ended.get("exitCode"):
                return _line(ended.get("message") or f"exit code {ended['exitCode']}")
    return ""


def _trouble(manifest: Manifest) -> tuple[str, str]:
    """What is wrong with a pod that is not well: Kubernetes' word for it, and the most telling words in one line."""
    status = manifest.get("status", {})
    for container in _containers(status):
        state = container.get("state", {})
        ended, waiting = state.get("terminated"), state.get("waiting", {})
        if ended and (ended.get("exitCode") or status.get("phase") == "Failed"):
            told, word = ended.get("message") or f"exit code {ended.get('exitCode')}", ended.get("reason", "")
            return word, _line(f"container {container.get('name')} ended: {word}, {told}")
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            word = waiting["reason"]
            return word, _line(f"container {container.get('name')}: {word}, {waiting.get('message', '')}")
    if status.get("reason") or status.get("message"):
        return status.get("reason", ""), _line(f"{status.get('reason', '')}: {status.get('message', '')}")
    scheduled = condition(manifest, "PodScheduled")
    if scheduled.get("status") == "False":
        return scheduled.get("reason", ""), _line(f"not scheduled: {scheduled.get('message', '')}")
    return "", ""


def _line(text: str) -> str:
    return " ".join(text.split())[:512].strip(" ,:")
