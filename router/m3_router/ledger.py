"""What every request used and cost: opened once, settled exactly once, written as one line.

Owns the lines: each settled bill becomes one of JSON, which is the record that lasts, and a ring of the newest ones is
kept for people to look at. Lines and not bills are kept, since ten thousand objects would be ten megabytes for every
request to wade through. What is billed:

- `ok`: the worker's own `usage`; where it reported none, what was counted, and the bill says `estimated`.
- `client_gone`: `usage` if it had passed; else, once the worker had begun to answer, the input and one output token for
  each event that was relayed (`estimated`). Before that nothing is known to have been used, and nothing is billed.
- `worker_error`, `rejected`: nothing. We do not charge for what failed.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from m3_router.bill import Bill, Outcome, Usage
from m3_router.prices import PriceTable

RING_BILLS: Final = 10_000
# A batch costs its readers half of what as many single bills would.
PUBLISH_SECONDS: Final = 0.02
PUBLISH_BILLS: Final = 64
_BILLED: Final[frozenset[Outcome]] = frozenset({"ok", "client_gone"})

_encode_lines: Final = msgspec.json.Encoder().encode_lines
_decode_lines: Final = msgspec.json.Decoder(Bill).decode_lines


class AlreadySettledError(Exception):
    """A bill was settled a second time: a defect, and the second cost was not counted."""


class Ledger:
    """Settles bills, and publishes them in batches: within PUBLISH_SECONDS, by `call_later`, or sooner.

    write: gets the lines of a batch and their number. readers: get its bills, which they must not keep.
    """

    def __init__(
        self,
        prices: PriceTable,
        write: Callable[[bytes, int], None],
        readers: Iterable[Callable[[list[Bill]], None]],
        call_later: Callable[[float, Callable[[], None]], object],
        ring_bills: int = RING_BILLS,
    ) -> None:
        self._prices = prices
        self._write = write
        self._readers = tuple(readers)
        self._call_later = call_later
        self._unpublished: list[Bill] = []
        self._ring: deque[tuple[int, bytes]] = deque()  # lines, and how many they are
        self._ring_lines = 0
        self._ring_bills = ring_bills

    def settle(self, bill: Bill, outcome: Outcome, usage: Usage | None) -> None:
        """Close a bill for good; usage None bills nothing. Raises AlreadySettledError, and then changes nothing."""
        if bill.outcome is not None:
            raise AlreadySettledError(f"request {bill.request_id} was settled as {bill.outcome}, now as {outcome}")
        bill.outcome = outcome
        if usage is not None:
            service_tier = bill.service_tier
            bill.input_tokens = usage.input_tokens
            bill.cached_tokens = usage.cached_tokens
            bill.output_tokens = usage.output_tokens
            if service_tier is not None and outcome in _BILLED:
                bill.context_tier, bill.cost_nanousd = self._prices.price(usage, service_tier)
            else:
                bill.context_tier = self._prices.context_tier(usage.input_tokens)
        unpublished = self._unpublished
        unpublished.append(bill)
        count = len(unpublished)
        if count == 1:
            self._call_later(PUBLISH_SECONDS, self.publish)
        elif count >= PUBLISH_BILLS:
            self.publish()

    def publish(self) -> None:
        """Hand over what was settled since the last time."""
        bills, self._unpublished = self._unpublished, []
        if not bills:
            return
        lines = _encode_lines(bills)
        self._write(lines, len(bills))
        for read in self._readers:
            read(bills)
        # Refusals before a request was understood and priced are in the log only: a stranger could flood the ring.
        priced = [bill for bill in bills if bill.service_tier is not None]
        if priced:
            self._remember(lines if len(priced) == len(bills) else _encode_lines(priced), len(priced))

    def newest(self, limit: int) -> list[Bill]:
        """The newest settled bills, the newest first."""
        self.publish()
        newest: list[Bill] = []
        for _, lines in reversed(self._ring):
            if len(newest) >= limit:
                break
            newest += reversed(_decode_lines(lines))
        return newest[: min(limit, self._ring_bills)]

    def _remember(self, lines: bytes, count: int) -> None:
        ring = self._ring
        ring.append((count, lines))
        self._ring_lines += count
        while self._ring_lines - ring[0][0] >= self._ring_bills:
            self._ring_lines -= ring.popleft()[0]
