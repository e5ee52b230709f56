"""Why the newest requests went where they went: a ring of decisions, for people to look at.

Owns the ring and the record. It is fed with settled bills by the ledger and decides nothing. A batch adds at most
KEPT_OF_BATCH decisions, its newest, so that a router at full speed pays next to nothing for a list that nobody could
read; below some 800 requests a second, none is left out. What a bill does not say keeps the field's default.
"""

from collections import deque
from typing import Final

import msgspec

from m3_router.bill import Bill, Outcome
from m3_router.config import ContextTier, ServiceTier

RING_DECISIONS: Final = 256
KEPT_OF_BATCH: Final = 16


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


class Decisions:
    """The newest decisions."""

    def __init__(self, capacity: int = RING_DECISIONS) -> None:
        self._ring: deque[Decision] = deque(maxlen=capacity)

    def read(self, bills: list[Bill]) -> None:
        """Take what a batch of settled bills says. Requests that were refused before they had a lane are not there."""
        self._ring.extend(
            msgspec.convert(bill, Decision, from_attributes=True)
            for bill in bills[-KEPT_OF_BATCH:]
            if bill.service_tier is not None
        )

    def newest(self, limit: int) -> list[Decision]:
        """The newest ones, the newest first."""
        return [decision for decision, _ in zip(reversed(self._ring), range(limit), strict=False)]
