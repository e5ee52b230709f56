"""What is wrong with groups whose pods look alive: a node that is lost, a GPU that failed, a world that hangs.

Pure: nodes, scrapes and the memory of steps in, at most one fault of each group out, the gravest first. What follows
from a fault is `recovery`'s; that a process ended is no fault but plain to see, and `groups` says it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from m3_operator.groups import Group
from m3_operator.observed import DeploymentSnapshot, ObservedNode, ObservedPod
from m3_operator.plan.avoidance import AvoidedNode
from m3_operator.signals.xid import FATAL_XIDS
from m3_operator.spec.recovery import RecoverySpec

NODE_LOST: Final = "NodeLost"
GPU_FAILED: Final = "GpuFailed"
HANG_DETECTED: Final = "HangDetected"
_OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"


@dataclass(frozen=True)
class Fault:
    """Why a group cannot go on, although no process of it has ended."""

    reason: str
    message: str
    lost_pods: frozenset[str] = frozenset()  # uids of those whose node does not answer: nobody confirms their deletion
    blamed_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Health:
    """What is known of the groups of one owner beyond their pods."""

    faults: Mapping[int, Fault] = field(default_factory=dict)  # by group
    avoided: tuple[AvoidedNode, ...] = ()
    wake_at: datetime | None = None  # when time alone may make it another


HEALTHY: Final = Health()


def examine(
    groups: Mapping[int, Group],
    snapshot: DeploymentSnapshot,
    recovery: RecoverySpec,
    avoided: tuple[AvoidedNode, ...],
    now: datetime,
) -> Health:
    """The health of all groups now. `avoided` are the nodes that are avoided already."""
    faults: dict[int, Fault] = {}
    wakes = [node.until for node in avoided]
    looks: tuple[Callable[[Group], tuple[Fault | None, datetime | None]], ...] = (
        lambda group: _lost_node(group, snapshot.nodes, recovery, now),
        lambda group: (_failed_gpu(group, snapshot), None),
        lambda group: _hang(group, snapshot, recovery, now),
    )
    for index, group in groups.items():
        for look in looks:
            fault, wake_at = look(group)
            wakes += [wake_at] if wake_at is not None else []
            if fault is not None:
                faults[index] = fault
                break
    return Health(faults=faults, avoided=avoided, wake_at=min(wakes, default=None))


def _lost_node(
    group: Group, nodes: Mapping[str, ObservedNode], recovery: RecoverySpec, now: datetime
) -> tuple[Fault | None, datetime | None]:
    lost: dict[str, str] = {}
    wakes: list[datetime] = []
    for name in dict.fromkeys(pod.node_name for pod in group.pods):
        node = nodes.get(name) if name is not None else None
        if node is None:
            continue
        due = _lost_at(node, recovery)
        if _OUT_OF_SERVICE in node.taints:
            lost[node.name] = "is out of service"
        elif due is not None and due <= now and not _is_back(node, group):
            lost[node.name] = f"has not been ready for {recovery.node_lost_seconds} s"
        elif due is not None and due > now:
            wakes.append(due)
    if not lost:
        return None, min(wakes, default=None)
    pods = frozenset(pod.uid for pod in group.pods if pod.node_name in lost)
    told = "; ".join(f"node {name} {why}" for name, why in sorted(lost.items()))
    return Fault(NODE_LOST, told, lost_pods=pods, blamed_nodes=tuple(sorted(lost))), None


def _lost_at(node: ObservedNode, recovery: RecoverySpec) -> datetime | None:
    """When a node that is not ready counts as lost; the taint `unreachable` tells nothing sooner than that."""
    if node.is_ready or node.since is None:
        return None
    return node.since + timedelta(seconds=recovery.node_lost_seconds)


def _is_back(node: ObservedNode, group: Group) -> bool:
    """Whether a pod became ready there since: its node answers again, and what is known of the node is old."""
    times = [pod.ready_at for pod in group.pods if pod.node_name == node.name and pod.is_ready]
    return node.since is not None and any(at is not None and at > node.since for at in times)


def _failed_gpu(group: Group, snapshot: DeploymentSnapshot) -> Fault | None:
    """A GPU that must not be used. Its node is blamed if the pod that tells of it can mean no other."""
    speakers = [pod for pod in group.pods if pod.uid in snapshot.signals.workers]
    speaks_for_itself = len(speakers) == len(group.pods)
    for pod in speakers:
        xid = next((gpu.xid for gpu in snapshot.signals.workers[pod.uid].gpus if gpu.xid in FATAL_XIDS), None)
        if xid is not None:
            nodes = (pod.node_name,) if speaks_for_itself and pod.node_name is not None else ()
            where = f" on node {pod.node_name}" if nodes else ""
            message = f"{pod.name}: XID {xid}{where}, {FATAL_XIDS[xid]}; the GPU needs a reset or repair"
            return Fault(GPU_FAILED, message, blamed_nodes=nodes)
    return None


def _hang(
    group: Group, snapshot: DeploymentSnapshot, recovery: RecoverySpec, now: datetime
) -> tuple[Fault | None, datetime | None]:
    leader = group.leader
    record = None if leader is None else snapshot.steps.get(leader.uid)
    if leader is None or record is None or not _could_compute(leader):
        return None, None
    if record.still_seconds < recovery.hang_seconds:
        # Not at once again when that is past already: without another scrape nothing more will be known.
        limit = timedelta(seconds=recovery.hang_seconds)
        return None, max(record.since + limit, now + limit / 4)
    message = f"{leader.name} has computed no step for {record.still_seconds:.0f} s while requests wait"
    return Fault(HANG_DETECTED, message), None


def _could_compute(pod: ObservedPod) -> bool:
    return pod.has_started and not pod.is_finished and not pod.is_terminating
