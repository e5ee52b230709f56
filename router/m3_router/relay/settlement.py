"""Asks a worker what a request used whose answer was cut off: `GET /internal/usage/{request id}`.

Owns the inquiries on their way. Only our own worker keeps such records; it knows of requests that were aborted too, and
the attempt's name keeps a retry, or another request that came with the same id, apart. The answer is waited for at most
`timeout_seconds`, without blocking anything; at most `max_in_flight` inquiries run at a time and MAX_WAITING wait.
Whatever goes wrong, the ledger is told None, once, and its estimate stands. What a bill comes to is the ledger's.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from m3_router.http.messages import Answer
from m3_router.http.worker_end import AnswerSink, WorkerConnection, WorkerConnections
from m3_router.money.bill import Bill, Usage
from m3_router.placement.pools import Pool
from m3_router.workers.workers import WorkerAddress

TIMEOUT_SECONDS: Final = 2.0
MAX_IN_FLIGHT: Final = 16
MAX_WAITING: Final = 10_000
MAX_ANSWER_BYTES: Final = 2**16
# The worker holds its answer until the request has ended there, which an abort that is on its way brings about.
_HOLD_SECONDS: Final = 1.5

_log = logging.getLogger(__name__)

Done = Callable[[Usage | None], None]
FindWorker = Callable[[Bill], WorkerAddress | None]


class _Record(msgspec.Struct):
    """One attempt, as the worker tells of it."""

    attempt: str
    state: Literal["running", "ended"]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class _Records(msgspec.Struct):
    records: list[_Record]


_decode: Final = msgspec.json.Decoder(_Records).decode


class WorkerDirectory:
    """Finds the worker of a bill. Bills of pools with other engines have none that could be asked."""

    def __init__(self, pools: list[Pool]) -> None:
        self._native = {pool.settings.name: pool.workers for pool in pools if pool.settings.engine == "native"}

    def find(self, bill: Bill) -> WorkerAddress | None:
        """Where it is; None if it is gone, or keeps no records."""
        for worker in self._native.get(bill.pool, ()):
            if worker.name == bill.worker:
                return worker.address
        return None


class Settlement:
    """All inquiries. For the event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: WorkerConnections,
        find: FindWorker,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self.loop = loop
        self.connections = connections
        self.timeout_seconds = timeout_seconds
        self._find = find
        self._max_in_flight = max_in_flight
        self._in_flight: set[_Inquiry] = set()
        self._waiting: deque[_Inquiry] = deque()
        self._is_closed = False
        self.answered = 0  # inquiries that brought a count
        self.unanswered = 0  # inquiries that brought none: an estimate stands

    def ask(self, bill: Bill, attempt: str, done: Done) -> None:
        """Ask the bill's worker about an attempt; `done` is told what it used, once."""
        address = None if self._is_closed else self._find(bill)
        if address is None or len(self._waiting) >= MAX_WAITING:
            self.unanswered += 1
            done(None)
            return
        inquiry = _Inquiry(self, address, bill.request_id, attempt, done)
        if len(self._in_flight) < self._max_in_flight:
            self._in_flight.add(inquiry)
            inquiry.begin()
        else:
            self._waiting.append(inquiry)

    def close(self) -> None:
        """Give up what is on its way, and everything that comes: nobody can say."""
        self._is_closed = True
        for inquiry in [*self._in_flight, *self._waiting]:
            inquiry.finish(None)

    def finished(self, inquiry: "_Inquiry", usage: Usage | None) -> None:
        """An inquiry is over: let the next begin."""
        if usage is None:
            self.unanswered += 1
        else:
            self.answered += 1
        self._in_flight.discard(inquiry)
        while self._waiting and len(self._in_flight) < self._max_in_flight:
            following = self._waiting.popleft()
            if not following.is_over:
                self._in_flight.add(following)
                following.begin()


class _Inquiry(AnswerSink):
    """One question to one worker."""

    def __init__(
        self, settlement: Settlement, address: WorkerAddress, request_id: str, attempt: str, done: Done
    ) -> None:
        self.is_over = False
        self._settlement = settlement
        self._address = address
        self._request_id = request_id
        self._attempt = attempt
        self._done = done
        self._connection: WorkerConnection | None = None
        self._dial: asyncio.Task[None] | None = None
        self._status = 0
        self._body = b""
        self._timer = settlement.loop.call_later(settlement.timeout_seconds, self._timed_out)

    def begin(self) -> None:
        """Ask on an idle connection, or on a new one."""
        connection = self._settlement.connections.take(self._address)
        if connection is not None:
            self._send(connection)
        else:
            self._call()

    def worker_answered(self, answer: Answer | None, body: bytes, is_complete: bool) -> None:
        """A part of the answer, or all of it."""
        if answer is not None:
            self._status = answer.status
        self._body += body
        if is_complete:
            self._connection = None
            self.finish(self._read())
        elif len(self._body) > MAX_ANSWER_BYTES:
            self._fail("its answer is too long")

    def worker_lost(self, reason: str) -> None:
        """No connection, or none any more."""
        connection, self._connection = self._connection, None
        self._dial = None
        if connection is not None and connection.is_reused and self._status == 0 and not self.is_over:
            self._call()  # most likely a kept-alive connection that was closed as we wrote to it
        else:
            self._fail(reason)

    def finish(self, usage: Usage | None) -> None:
        """Give back what is held, and tell the ledger."""
        if self.is_over:
            return
        self.is_over = True
        self._timer.cancel()
        if self._dial is not None:
            self._dial.cancel()
        if self._connection is not None:
            self._connection.abort()
        self._done(usage)
        self._settlement.finished(self, usage)

    def _call(self) -> None:
        settlement = self._settlement
        self._dial = settlement.connections.dial(
            self._address, settlement.timeout_seconds, self._connected, self.worker_lost
        )

    def _connected(self, connection: WorkerConnection) -> None:
        self._dial = None
        if self.is_over:
            self._settlement.connections.put(connection)
        else:
            self._send(connection)

    def _send(self, connection: WorkerConnection) -> None:
        self._connection = connection
        target = f"/internal/usage/{quote(self._request_id, safe='')}?attempt={quote(self._attempt, safe='')}"
        head = f"GET {target}&wait_seconds={_HOLD_SECONDS:g} HTTP/1.1\r\nhost: {self._address.name}\r\n\r\n"
        connection.send(head.encode(), b"", self)

    def _read(self) -> Usage | None:
        """The count of exactly this attempt, if it has ended."""
        if self._status != 200:
            return None
        try:
            records = _decode(self._body).records
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _log.warning("worker %s answered /internal/usage with what cannot be read: %s", self._address.name, error)
            return None
        for record in records:
            if record.attempt == self._attempt and record.state == "ended":
                return _checked(record)
        return None

    def _timed_out(self) -> None:
        self._fail(f"no answer within {self._settlement.timeout_seconds:g} s")

    def _fail(self, reason: str) -> None:
        if not self.is_over:
            _log.info("worker %s cannot say what request %s used: %s", self._address.name, self._request_id, reason)
        self.finish(None)


def _checked(record: _Record) -> Usage | None:
    """A worker's count, unless it makes no sense."""
    if min(record.prompt_tokens, record.cached_tokens, record.completion_tokens) < 0:
        return None
    return Usage(record.prompt_tokens, min(record.cached_tokens, record.prompt_tokens), 0, record.completion_tokens)
