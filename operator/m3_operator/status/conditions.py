"""Status conditions as Kubernetes means them: set by type, their transition time moving only when the status does."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from m3_operator.observed import Manifest, condition

_MESSAGE_MAX = 1024


@dataclass(frozen=True)
class Verdict:
    """One condition as it is now."""

    type: str
    holds: bool | None
    """None: not known."""
    reason: str
    message: str


def build(manifest: Manifest, verdicts: Iterable[Verdict], now: datetime) -> list[dict[str, Any]]:
    """The conditions of an object, given those it has."""
    generation = manifest["metadata"].get("generation", 0)
    return [_condition(manifest, verdict, generation, now) for verdict in verdicts]


def timestamp(now: datetime) -> str:
    """A time as Kubernetes writes it: UTC, whole seconds."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _condition(manifest: Manifest, verdict: Verdict, generation: int, now: datetime) -> dict[str, Any]:
    before = condition(manifest, verdict.type)
    status = "Unknown" if verdict.holds is None else str(verdict.holds)
    since = before["lastTransitionTime"] if before.get("status") == status else timestamp(now)
    return {
        "type": verdict.type,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": since,
        "reason": verdict.reason,
        "message": verdict.message[:_MESSAGE_MAX],
    }
