"""Why the newest requests went where they went: a ring of decisions, for people to look at.

Owns the ring and the record. It is fed with settled bills by the ledger and decides nothing. A request pays for a
reference in the ring alone; the record is made when somebody looks. What a bill does not say keeps the field's default.
"""

from collections import deque
from typing import Final

import msgspec

from m3_router.config import ContextTier, ServiceTier
from m3_router.money.bill import Bill, Outcome
from m3_router.money.bill_records import Line

RING_DECISIONS: Final = 256  # bills that are kept alive: few, since the collector wades through what lives


class Decision(msgspec.Struct, frozen=True, gc=False):
    """One request: its lane, the worker it was given to, what that was expected to cost, and how it went.

    Fields are those of the bill. `cost_tokens` is the placement's: what the worker had to compute before an answer.
    """

    time: float  # when it came, seconds since the epoch
    request_id: str
    path: str = ""
    tenant: str = ""
    model: str = ""
    pool: str = ""
    context_tier: ContextTier | None = None
    service_tier: ServiceTier | None = None
    worker: str = ""
    reason: str = ""  # prefix, load, warmup, session, probe or only
    cost_tokens: int = 0
    runner_up: str = ""  # the worker that was second best; empty where there was no other
    runner_up_cost_tokens: int = 0
    predicted_cached_tokens: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0
    queue_ms: float = 0.0
    first_byte_ms: float | None = None
    duration_ms: float = 0.0
    attempts: int = 0
    continuations: int = 0  # workers that went on with the answer of one that died
    preemptions: int = 0  # times it was put back for a priority request, before its first byte
    outcome: Outcome | None = None
    status: int = 0
    error: str | None = None


_SHARED: Final = tuple(name for name in Decision.__struct_fields__ if name in Line.__struct_fields__)


class Decisions:
    """The newest decisions."""

    def __init__(self, capacity: int = RING_DECISIONS) -> None:
        self._ring: deque[Bill] = deque(maxlen=capacity)

    def read(self, bills: list[Bill]) -> None:
        """Take a batch of settled bills. Requests that were refused before they had a lane are no decisions."""
        self._ring.extend([bill for bill in bills if bill.service_tier is not None])

    def newest(self, limit: int) -> list[Decision]:
        """The newest ones, the newest first."""
        return [
            Decision(**{name: getattr(bill, name) for name in _SHARED})
            for bill, _ in zip(reversed(self._ring), range(limit), strict=False)
        ]
