"""What every request used and cost: opened at its dispatch, settled exactly once, told to everyone in batches.

Owns the order and the once. `bill` says what is billed in which case. The way of a bill:

    open          before each dispatch; the journal knows from now on that somebody may owe something
    settle        its usage is known: priced, encoded, in the journal before anybody is told
    settle_later  the answer was cut off: closed for everyone else now, settled when the worker has said what it used,
                  or has not within the time that `settlement` gives it
    publish       what was settled since the last time goes to the log, the readers and the Redis stream

A bill is encoded once, and these bytes are its journal record, its log line, its part of the stream and its place in
the ring of the newest ones that is kept for people to look at. Lines and not bills are kept, since ten thousand objects
would be ten megabytes for every request to wade through. What was never dispatched is in the log only: refusals cost
nothing, and a stranger could flood a file with them.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from m3_router.config import ContextTier, ServiceTier
from m3_router.money.bill import BILLED, NOTHING_USED, Bill, Outcome, Usage, continued, used_until_now
from m3_router.money.bill_lines import line_of, note_of, reopened
from m3_router.money.bill_records import Line, decode_lines, decode_opened
from m3_router.money.journal import Journal

RING_BILLS: Final = 10_000
# A batch costs its readers half of what as many single bills would.
PUBLISH_SECONDS: Final = 0.02
PUBLISH_BILLS: Final = 64


class AlreadySettledError(Exception):
    """A bill was settled a second time: a defect, and the second cost was not counted."""


class Prices(Protocol):
    """What `prices.PriceTable` is for the ledger. `wall`: seconds since the epoch."""

    def context_tier(self, model: str, tokens: int, wall: float) -> ContextTier:
        """The context tier of a whole request with this many input tokens."""

    def cost(self, model: str, service_tier: ServiceTier, usage: Usage, wall: float) -> tuple[ContextTier, int]:
        """The context tier and what it costs, in nano-dollars."""


class Records(Protocol):
    """What `settlement.Settlement` is for the ledger."""

    def ask(self, bill: Bill, attempt: str, done: Callable[[Usage | None], None]) -> None:
        """Ask the bill's worker what it used; `done` is called once, perhaps from here. None: nobody can say."""


class Stream(Protocol):
    """What `shared.ledger_stream.LedgerStream` is for the ledger."""

    def offer(self, sequences: list[int], lines: list[bytes]) -> None:
        """Settled bills: the sequence of each in the journal, and its line."""


class Ledger:
    """Settles bills, and publishes them in batches: within PUBLISH_SECONDS, by `call_later`, or sooner.

    write: gets the lines of a batch and their number. readers: get its bills, which they must not keep.
    journal: None where none is configured; then `name` tells this process's attempts from all others'.
    """

    def __init__(
        self,
        prices: Prices,
        write: Callable[[bytes, int], None],
        readers: Iterable[Callable[[list[Bill]], None]],
        call_later: Callable[[float, Callable[[], None]], object],
        *,
        name: str,
        journal: Journal | None = None,
        records: Records | None = None,
        stream: Stream | None = None,
        ring_bills: int = RING_BILLS,
    ) -> None:
        self._prices = prices
        self._write = write
        self._readers = tuple(readers)
        self._call_later = call_later
        self._name = name if journal is None else journal.name
        self._journal = journal
        self._records = records
        self._stream = stream
        self._last_number = 0  # given, where there is no journal to give them
        self._pending: dict[int, _Pending] = {}  # by number: closed, and not settled
        self._unpublished: list[Bill] = []
        self._lines: list[bytes] = []  # of the same bills
        self._sequences: list[int] = []  # and of those of them that are in the journal
        self._ring: deque[tuple[int, bytes]] = deque()  # lines, and how many they are
        self._ring_lines = 0
        self._ring_bills = ring_bills

    # ---- the way of a bill

    def open(self, bill: Bill) -> None:
        """Note a bill before a dispatch of it, with its worker and `attempts` as they are now; the first gives it its
        number. What is noted is what a replacement of this process would settle it by.
        """
        if self._journal is not None:
            bill.number = self._journal.opened(bill.number, note_of(bill))
        elif bill.number == 0:
            self._last_number += 1
            bill.number = self._last_number

    def attempt(self, bill: Bill) -> str:
        """The name of the newest dispatch of an open bill, which no other dispatch has: `x-m3-attempt`."""
        return f"{self._name}-{bill.number}-{bill.attempts}"

    def settle(self, bill: Bill, outcome: Outcome, usage: Usage | None) -> None:
        """Close a bill for good; usage None bills nothing. Raises AlreadySettledError, and then changes nothing."""
        self._close(bill, outcome)
        self._settle(bill, usage)

    def settle_later(self, bill: Bill, outcome: Outcome, estimate: Usage | None) -> None:
        """Close a bill whose usage its worker has to be asked for; if that cannot say, `estimate` is what it used.

        Of a continuation, the worker's part is added to what the bill holds (`bill.continued`).
        Raises AlreadySettledError, and then changes nothing.
        """
        self._close(bill, outcome)
        if self._records is None or bill.number == 0:
            self._settle_estimated(bill, estimate)
            return
        pending = _Pending(self, bill, estimate)
        self._pending[bill.number] = pending
        self._records.ask(bill, self.attempt(bill), pending.done)

    def recover(self) -> int:
        """Settle what an earlier process left open, once workers are known. Returns how many bills these are."""
        if self._journal is None:
            return 0
        unsettled = self._journal.take_unsettled()
        for one in unsettled:
            bill = reopened(decode_opened(one.payload), one.number)
            # Of a continuation it is known what the client had got before.
            self.settle_later(bill, "router_lost", used_until_now(bill) if bill.continuations else None)
        return len(unsettled)

    @property
    def pending(self) -> int:
        """Bills that are closed, and wait for what their workers say."""
        return len(self._pending)

    def publish(self) -> None:
        """Hand over what was settled since the last time."""
        bills, self._unpublished = self._unpublished, []
        lines, self._lines = self._lines, []
        sequences, self._sequences = self._sequences, []
        if not bills:
            return
        lines.append(b"")
        text = b"\n".join(lines)
        lines.pop()
        self._write(text, len(bills))
        for read in self._readers:
            read(bills)
        if self._stream is not None and sequences:
            if len(sequences) < len(lines):
                kept = [line for bill, line in zip(bills, lines, strict=True) if bill.number != 0]
                self._stream.offer(sequences, kept)
            else:
                self._stream.offer(sequences, lines)
        # Refusals before a request was understood and priced are in the log only: a stranger could flood the ring.
        priced = [line for bill, line in zip(bills, lines, strict=True) if bill.service_tier is not None]
        if priced:
            self._remember(text if len(priced) == len(bills) else b"\n".join(priced), len(priced))

    def close(self) -> None:
        """Settle what still waits, by its estimates, and publish everything."""
        for pending in list(self._pending.values()):
            pending.done(None)
        self.publish()

    def newest(self, limit: int) -> list[Line]:
        """The newest settled bills, the newest first."""
        self.publish()
        newest: list[Line] = []
        for _, lines in reversed(self._ring):
            if len(newest) >= limit:
                break
            newest += reversed(decode_lines(lines))
        return newest[: min(limit, self._ring_bills)]

    # ---- inside

    def _close(self, bill: Bill, outcome: Outcome) -> None:
        if bill.outcome is not None:
            raise AlreadySettledError(f"request {bill.request_id} was settled as {bill.outcome}, now as {outcome}")
        bill.outcome = outcome

    def answered(self, pending: "_Pending", usage: Usage | None) -> None:
        """A worker has said what a bill used, or it will not."""
        bill = pending.bill
        if self._pending.pop(bill.number, None) is None:
            return  # settled by `close`, which did not wait for this
        if usage is None:
            self._settle_estimated(bill, pending.estimate)
        else:
            bill.estimated = False
            self._settle(bill, continued(bill, usage))

    def _settle_estimated(self, bill: Bill, estimate: Usage | None) -> None:
        bill.estimated = True
        self._settle(bill, estimate if estimate is not None else NOTHING_USED)

    def _settle(self, bill: Bill, usage: Usage | None) -> None:
        outcome, service_tier = bill.outcome, bill.service_tier
        if usage is not None:
            bill.input_tokens = usage.input_tokens
            bill.cached_tokens = usage.cached_tokens
            bill.cache_write_tokens = usage.cache_write_tokens
            bill.output_tokens = usage.output_tokens
            if service_tier is not None:
                if outcome in BILLED:
                    bill.context_tier, bill.cost_nanousd = self._prices.cost(bill.model, service_tier, usage, bill.time)
                else:
                    bill.context_tier = self._prices.context_tier(bill.model, usage.input_tokens, bill.time)
        line = line_of(bill)
        if self._journal is not None and bill.number != 0:
            self._sequences.append(self._journal.settled(bill.number, line))
        unpublished = self._unpublished
        unpublished.append(bill)
        self._lines.append(line)
        count = len(unpublished)
        if count == 1:
            self._call_later(PUBLISH_SECONDS, self.publish)
        elif count >= PUBLISH_BILLS:
            self.publish()

    def _remember(self, lines: bytes, count: int) -> None:
        ring = self._ring
        ring.append((count, lines))
        self._ring_lines += count
        while self._ring_lines - ring[0][0] >= self._ring_bills:
            self._ring_lines -= ring.popleft()[0]


class _Pending:
    """A closed bill while its worker is asked."""

    __slots__ = ("_ledger", "bill", "estimate")

    def __init__(self, ledger: Ledger, bill: Bill, estimate: Usage | None) -> None:
        self._ledger = ledger
        self.bill = bill
        self.estimate = estimate

    def done(self, usage: Usage | None) -> None:
        """What the worker said."""
        self._ledger.answered(self, usage)
