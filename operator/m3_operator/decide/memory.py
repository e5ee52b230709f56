"""What the operator remembers: how often groups failed, and which nodes to stay away from.

It is kept in the status of its owner; everything else is read from the cluster anew. A status is there for the next
process: the one that lives goes by what it knows, which includes what it could not tell yet, and does not believe an
older status of its own that is written long after it was given up. Losing memory makes the next restart come sooner,
and no more.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

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


def told(memory: Memory, status: Mapping[str, Any], places: Collection[int]) -> Memory:
    """The memory once this status was told: no more than the next process would know, and what is half done at these
    places."""
    halves = {group: action for group, action in memory.halves.items() if group in places}
    return replace(read_memory({"status": status}), halves=halves)


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
