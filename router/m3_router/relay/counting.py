"""The exact number of input tokens, asked of a worker for the few requests whose estimate leaves their price open.

Owns the questions on their way and the answers of late. A worker is asked with the client's own body, at its dialect's
`count_path`: `/tokenize` takes chat bodies and prompts, messages and responses have paths of their own. Not countable,
and answered with None at once: dialects without such a path (embeddings), and external upstreams, which charge for
calls and refuse fields that they do not know. Everything else is tried: an engine that refuses the body
(several prompts in one, say) or lacks the path gives None as well. None is counted and logged, and then the upper
bound of the estimate holds.

Runs on the event loop, with callbacks. Nothing waits longer than `wait_seconds`, no more than `max_in_flight` workers
are asked at once, and of an answer no more is held than its first and last bytes: with half a million token ids in it,
it has megabytes.
"""

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from xxhash import xxh3_128_intdigest

from m3_router.bodies.dialects import Dialect
from m3_router.bodies.request import RequestView
from m3_router.http.messages import Answer
from m3_router.http.worker_end import AnswerSink, WorkerConnection, WorkerConnections
from m3_router.workers.workers import WorkerAddress

WAIT_SECONDS: Final = 1.0
MAX_IN_FLIGHT: Final = 8
MAX_REMEMBERED: Final = 4096
OUTCOMES: Final = ("counted", "remembered", "joined", "unsupported", "busy", "timed_out", "failed")

_HELD_BYTES: Final = 4096  # at either end of an answer: the number stands before the token ids, or after them
_NUMBER: Final = re.compile(rb'"(?:count|input_tokens)"\s*:\s*(\d{1,9})\s*[,}]')

_log = logging.getLogger(__name__)

Done = Callable[[int | None], None]
_Key = tuple[str, str, int]


class Counter(Protocol):
    """As much of a worker as asking it takes."""

    @property
    def address(self) -> WorkerAddress: ...
    @property
    def host_line(self) -> bytes: ...
    @property
    def engine(self) -> str: ...


class ExactCounts:
    """Counts and remembers. `outcomes`: how often each of OUTCOMES came about."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: WorkerConnections,
        *,
        wait_seconds: float = WAIT_SECONDS,
        max_in_flight: int = MAX_IN_FLIGHT,
        max_remembered: int = MAX_REMEMBERED,
    ) -> None:
        self.loop = loop
        self.connections = connections
        self.wait_seconds = wait_seconds
        self.max_in_flight = max_in_flight
        self.max_remembered = max_remembered
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        # A question leaves `_waiting` when its number is known, and `_open` when its answer has ended.
        self._remembered: OrderedDict[_Key, int] = OrderedDict()
        self._waiting: dict[_Key, _Question] = {}
        self._open: set[_Question] = set()

    def __repr__(self) -> str:
        return f"<ExactCounts {len(self._open)} asked, {len(self._remembered)} remembered, {self.outcomes}>"

    def count(self, dialect: Dialect, view: RequestView, worker: Counter, done: Done) -> None:
        """Call `done`, once, with the number of input tokens or None: before this returns, where nothing is asked."""
        path = dialect.count_path
        if not path or worker.engine == "external":
            self.outcomes["unsupported"] += 1
            done(None)
            return
        key = (path.decode(), view.model, xxh3_128_intdigest(view.body))
        tokens = self._remembered.get(key)
        if tokens is not None:
            self._remembered.move_to_end(key)
            self.outcomes["remembered"] += 1
            done(tokens)
            return
        question = self._waiting.get(key)
        if question is not None:
            self.outcomes["joined"] += 1
            question.askers.append(done)
            return
        if len(self._open) >= self.max_in_flight:
            self.outcomes["busy"] += 1
            _log.info("did not count a request to %s: %d are being counted", dialect.name, len(self._open))
            done(None)
            return
        question = _Question(self, key, worker, view.body, done)
        self._waiting[key] = question
        self._open.add(question)
        question.ask(self.connections.take(worker.address))

    def close(self) -> None:
        """Give up every question; whoever waits gets None."""
        for question in list(self._open):
            question.give_up("failed", "the router stops")

    # ---- called by questions

    def found(self, question: "_Question", tokens: int) -> None:
        """The number is known."""
        self._remembered[question.key] = tokens
        if len(self._remembered) > self.max_remembered:
            self._remembered.popitem(last=False)
        self._answer(question, tokens, "counted")

    def failed(self, question: "_Question", outcome: str, reason: str) -> None:
        """There will be no number."""
        _log.info("did not count a request at %s of worker %s: %s", question.key[0], question.worker_name, reason)
        self._answer(question, None, outcome)

    def ended(self, question: "_Question") -> None:
        """Nothing more will come."""
        self._open.discard(question)

    def _answer(self, question: "_Question", tokens: int | None, outcome: str) -> None:
        self.outcomes[outcome] += 1
        del self._waiting[question.key]
        for done in question.askers:
            done(tokens)


class _Question(AnswerSink):
    """One body at one worker, for all who ask the same at the same time. It is a connection's sink meanwhile."""

    def __init__(self, counts: ExactCounts, key: _Key, worker: Counter, body: bytes, done: Done) -> None:
        self.key = key
        self.askers = [done]
        self.worker_name = worker.address.name
        self._counts = counts
        self._address = worker.address
        self._head = b"POST %b HTTP/1.1\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (
            key[0].encode(),
            worker.host_line,
            len(body),
        )
        self._body = body
        self._is_answered = False  # the askers were told
        # what is held until the answer has ended
        self._connection: WorkerConnection | None = None
        self._dial: asyncio.Task[None] | None = None
        self._timer = counts.loop.call_later(counts.wait_seconds, self._late)
        self._status = 0
        self._first = self._last = b""

    def ask(self, connection: WorkerConnection | None) -> None:
        """Send it, on a new connection if there is none."""
        if connection is None:
            counts = self._counts
            self._dial = counts.connections.dial(self._address, counts.wait_seconds, self._connected, self._unreachable)
        else:
            self._connection = connection
            connection.send(self._head, self._body, self)
            self._head = self._body = b""

    def give_up(self, outcome: str, reason: str) -> None:
        """End it now."""
        self._end()
        if not self._is_answered:
            self._is_answered = True
            self._counts.failed(self, outcome, reason)

    # ---- the connection's sink

    def worker_answered(self, answer: Answer | None, body: bytes, is_complete: bool) -> None:
        """One read of the answer. The askers are told as soon as the number is there, before the token ids."""
        if answer is not None:
            self._status = answer.status
        if len(self._first) < _HELD_BYTES:
            self._first += body[:_HELD_BYTES]
        self._last = (self._last + body)[-_HELD_BYTES:]
        found = None
        if not self._is_answered and self._status == 200:
            found = _NUMBER.search(self._first) or (_NUMBER.search(self._last) if is_complete else None)
        if is_complete:
            self._connection = None  # it has gone back among the idle ones
            self._end()
        if found is not None:
            self._is_answered = True
            self._counts.found(self, int(found[1]))
        elif is_complete and not self._is_answered:
            self._is_answered = True
            self._counts.failed(self, "failed", f"it answered {self._status} without a number")

    def worker_lost(self, reason: str) -> None:
        """The connection broke."""
        self._connection = None
        self.give_up("failed", reason)

    # ---- inside

    def _connected(self, connection: WorkerConnection) -> None:
        self._dial = None
        self.ask(connection)

    def _unreachable(self, reason: str) -> None:
        self._dial = None
        self.give_up("failed", reason)

    def _late(self) -> None:
        self.give_up("timed_out", f"no number within {self._counts.wait_seconds:g} s")

    def _end(self) -> None:
        self._timer.cancel()
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        self._counts.ended(self)
