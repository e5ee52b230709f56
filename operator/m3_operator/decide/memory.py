"""What the operator remembers in a status: how often groups failed, and which nodes to stay away from.

Everything else is read from the cluster anew. Losing this makes the next restart come sooner, and no more.
"""

from m3_operator.observed import Manifest, parse_time
from m3_operator.plan.avoidance import AvoidedNode
from m3_operator.plan.recovery import FailureRecord


def failure_records(manifest: Manifest) -> dict[int, FailureRecord]:
    """What an M3Deployment's status remembers of its groups' failures."""
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


def avoided_nodes(manifest: Manifest) -> tuple[AvoidedNode, ...]:
    """The nodes that an M3Deployment's status says to avoid."""
    found = []
    for node in manifest.get("status", {}).get("avoidedNodes") or ():
        until = parse_time(node.get("until"))
        if until is not None:
            found.append(AvoidedNode(str(node["name"]), until, str(node.get("reason", ""))))
    return tuple(found)
