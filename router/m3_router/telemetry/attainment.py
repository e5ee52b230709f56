"""First bytes against their targets: which requests count, and which of them were in time. Pure.

Owns the rule, and its count since the process began; the console's windows of minutes are `admin.recent`'s.
"""

from collections.abc import Iterable
from typing import Final

from m3_router.config import ContextTier, LaneSettings, ServiceTier
from m3_router.money.bill import Bill

_MS: Final = 1000.0


def targets_ms(lanes: LaneSettings) -> dict[ServiceTier, float]:
    """The targets by service tier. Batch has none: it runs when nothing else does."""
    return {
        "priority": lanes.priority_first_byte_target_seconds * _MS,
        "standard": lanes.standard_first_byte_target_seconds * _MS,
    }


def came_in_time(bill: Bill, target_ms: float) -> bool | None:
    """Whether the first byte of a request came within its target; None if nobody can say.

    That is so of what was refused, which had no worker, and of a client that left before the first byte came.
    """
    outcome, first_byte_ms = bill.outcome, bill.first_byte_ms
    if outcome == "rejected" or not bill.worker:
        return None
    if first_byte_ms is None:
        return None if outcome == "client_gone" else False
    return first_byte_ms <= target_ms and outcome != "worker_error"


class Attained:
    """Requests of one lane, and those of them whose first byte came in time."""

    __slots__ = ("in_time", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.in_time = 0


class Attainment:
    """Counts by lane since the process began. A reader of settled bills."""

    def __init__(self, lanes: LaneSettings) -> None:
        self.targets_ms: dict[ServiceTier, float] = targets_ms(lanes)
        self.lanes: dict[tuple[ServiceTier, ContextTier], Attained] = {
            (service_tier, context_tier): Attained()
            for service_tier in self.targets_ms
            for context_tier in ("standard", "long")
        }

    def read(self, bills: Iterable[Bill]) -> None:
        """Count settled bills."""
        for bill in bills:
            service_tier = bill.service_tier
            if service_tier is None or service_tier not in self.targets_ms:
                continue
            is_in_time = came_in_time(bill, self.targets_ms[service_tier])
            if is_in_time is not None:
                lane = self.lanes[service_tier, bill.context_tier or "standard"]
                lane.requests += 1
                lane.in_time += is_in_time
