"""What the operator remembers: how often groups failed, and which nodes to stay away from.

It is kept in the status of its owner; everything else is read from the cluster anew. What a cycle did that ended before
it could tell is carried to the next one. Losing it makes the next restart come sooner, and no more.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from m3_operator.observed import Manifest, parse_time
from m3_operator.plan.actions import DeletePods, PodAction
from m3_operator.plan.avoidance import AvoidedNode, blame
from m3_operator.plan.recovery import FailureRecord, next_record
from m3_operator.spec.recovery import RecoverySpec


@dataclass(frozen=True)
class Memory:
    """What is remembered of one M3Deployment's failures."""

    records: Mapping[int, FailureRecord] = field(default_factory=dict)  # by group
    avoided: tuple[AvoidedNode, ...] = ()
    halves: Mapping[int, DeletePods] = field(default_factory=dict)  # by group: replacements that were done by half


def read_memory(manifest: Manifest) -> Memory:
    """What an M3Deployment's status remembers."""
    return Memory(_failure_records(manifest), _avoided_nodes(manifest))


def remember(
    memory: Memory, done: Iterable[PodAction], begun: Iterable[PodAction], recovery: RecoverySpec, now: datetime
) -> Memory:
    """The memory after these actions; those that were only `begun` count once what is left of their group was seen to.

    Each group is counted once, however many actions its replacement took.
    """
    done, begun = tuple(done), tuple(begun)
    records, halves = dict(memory.records), dict(memory.halves)
    counted = {action.group: action for action in done if _counts(action)}
    for group in {action.group for action in done}:
        half = halves.pop(group, None)
        action = counted.get(group, half)
        if isinstance(action, DeletePods):
            before, revision = records.get(group, FailureRecord()), action.pods[0].revision
            records[group] = next_record(before, action.reason, now.replace(microsecond=0), recovery, revision)
    halves |= {action.group: action for action in begun if isinstance(action, DeletePods) and _counts(action)}
    avoided = blame(memory.avoided, (*done, *begun), recovery.avoid_failed_node_seconds, now)
    return Memory(records, avoided, halves)


def _counts(action: PodAction) -> bool:
    return isinstance(action, DeletePods) and action.counts_as_restart


def _failure_records(manifest: Manifest) -> dict[int, FailureRecord]:
    records = {}
    for group in manifest.get("status", {}).get("groups") or ():
        failure = group.get("lastFailure")
        if failure:
            records[int(group["index"])] = FailureRecord(
                restarts=int(group.get("restarts", 0)),
                failed_at=parse_time(failure.get("time")),
                reason=str(failure.get("reason", "")),
                since=parse_time(group.get("restartsSince")),
                revision=str(failure.get("revision", "")),
            )
    return records


def _avoided_nodes(manifest: Manifest) -> tuple[AvoidedNode, ...]:
    found = []
    for node in manifest.get("status", {}).get("avoidedNodes") or ():
        until = parse_time(node.get("until"))
        if until is not None:
            found.append(AvoidedNode(str(node["name"]), until, str(node.get("reason", ""))))
    return tuple(found)
