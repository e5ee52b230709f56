"""What every request used and cost: opened once, settled exactly once, written as one line.

Owns the bills: a ring of the newest settled ones for people to look at, and the JSON line of each, which is the record
that lasts. What is billed:

- `ok`: the worker's own `usage`; where it reported none, what was counted, and the bill says `estimated`.
- `client_gone`: `usage` if it had passed; else, once the worker had begun to answer, the input and one output token for
  each event that was relayed (`estimated`). Before that nothing is known to have been used, and nothing is billed.
- `worker_error`, `rejected`: nothing. We do not charge for what failed.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from m3_router.config import ServiceTier
from m3_router.prices import ContextTier, PriceTable, Usage

Outcome = Literal["ok", "client_gone", "worker_error", "rejected"]
RING_BILLS = 10_000
# A batch costs its readers half of what as many single bills would.
PUBLISH_SECONDS = 0.02
PUBLISH_BILLS = 256
_BILLED: frozenset[Outcome] = frozenset({"ok", "client_gone"})


class Bill(msgspec.Struct, gc=False):
    """One request. Token counts of the answer and the cost are what was settled."""

    time: float  # when it came, seconds since the epoch
    request_id: str
    path: str
    tenant: str = ""
    model: str = ""
    context_tier: ContextTier | None = None
    service_tier: ServiceTier | None = None
    worker: str = ""
    outcome: Outcome | None = None  # None until it is settled
    status: int = 0
    stream: bool = False
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0
    estimated: bool = False
    queue_ms: float = 0.0
    first_byte_ms: float | None = None
    duration_ms: float = 0.0
    attempts: int = 0
    error: str | None = None


class AlreadySettledError(RuntimeError):
    """A bill was settled a second time: a defect, and the second cost was not counted."""


class Ledger:
    """Settles bills, and hands them to `readers` in batches: within PUBLISH_SECONDS, by `call_later`, or sooner."""

    def __init__(
        self,
        prices: PriceTable,
        readers: Iterable[Callable[[list[Bill]], None]],
        call_later: Callable[[float, Callable[[], None]], object],
        ring_bills: int = RING_BILLS,
    ) -> None:
        self._prices = prices
        self._readers = tuple(readers)
        self._call_later = call_later
        self._unpublished: list[Bill] = []
        self._ring: deque[Bill] = deque(maxlen=ring_bills)

    def settle(self, bill: Bill, outcome: Outcome, usage: Usage | None) -> None:
        """Close a bill for good; usage None bills nothing. Raises AlreadySettledError, and then changes nothing."""
        if bill.outcome is not None:
            raise AlreadySettledError(f"request {bill.request_id} was settled as {bill.outcome}, now as {outcome}")
        bill.outcome = outcome
        service_tier = bill.service_tier
        if usage is not None:
            bill.input_tokens = usage.input_tokens
            bill.cached_tokens = usage.cached_tokens
            bill.output_tokens = usage.output_tokens
            if service_tier is not None and outcome in _BILLED:
                bill.context_tier, bill.cost_nanousd = self._prices.price(usage, service_tier)
            else:
                bill.context_tier = self._prices.context_tier(usage.input_tokens)
        if service_tier is not None:  # it was understood and priced; refusals before that are lines in the log only
            self._ring.append(bill)
        unpublished = self._unpublished
        unpublished.append(bill)
        count = len(unpublished)
        if count == 1:
            self._call_later(PUBLISH_SECONDS, self.publish)
        elif count >= PUBLISH_BILLS:
            self.publish()

    def publish(self) -> None:
        """Hand over what was settled since the last time."""
        unpublished, self._unpublished = self._unpublished, []
        if unpublished:
            for read in self._readers:
                read(unpublished)

    def newest(self, limit: int) -> list[Bill]:
        """The newest settled bills, the newest first."""
        count = len(self._ring)
        return [self._ring[count - 1 - i] for i in range(min(limit, count))]
