"""One try of a request at one worker, from the charge for it to the last byte of its answer, or to its failure.

Owns the connection while the try lasts, the limits of time, and what the worker is charged with; gives all of it back
in `end`, which is the only way out. What the answer means, and whether there is another try, is its owner's business.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import Final

from mypy_extensions import mypyc_attr, trait

from m3_router.http.limits import Limits
from m3_router.http.messages import Answer
from m3_router.http.worker_end import AnswerSink, WorkerConnection, WorkerConnections
from m3_router.placement.pools import Pool
from m3_router.workers.workers import Charge, Worker

_NEVER: Final = float("inf")


@trait
class AttemptOwner:
    """Who made the attempt. Called while it lasts, and no more after its `end`."""

    __slots__ = ()

    @abstractmethod
    def answered(self, answer: Answer | None, body: bytes, is_complete: bool, now: float) -> None:
        """One read from the worker."""

    @abstractmethod
    def attempt_failed(self, reason: str) -> None:
        """The worker's connection failed, or there was none; or it has ended its answer too soon."""


@mypyc_attr(free_list_len=1)
class Attempt(AnswerSink):
    """One try. has_head: the worker has begun to answer. tries: connections that it took."""

    __slots__ = (
        "_body",
        "_charge",
        "_clock",
        "_connection",
        "_connections",
        "_deadline",
        "_dial",
        "_has_body",
        "_has_first_byte",
        "_head",
        "_is_ended",
        "_limits",
        "_owner",
        "_pool",
        "has_head",
        "tries",
        "worker",
    )

    def __init__(
        self,
        owner: AttemptOwner,
        pool: Pool,
        worker: Worker,
        charge: Charge,
        *,
        connections: WorkerConnections,
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        self._owner: AttemptOwner | None = owner
        self._pool = pool
        self.worker = worker
        self._charge = charge
        self._connections = connections
        self._limits = limits
        self._clock = clock
        self._connection: WorkerConnection | None = None
        self._dial: asyncio.Task[None] | None = None
        self._deadline = _NEVER
        self._head = self._body = b""
        self._is_ended = self._has_first_byte = self._has_body = self.has_head = False
        self.tries = 0
        pool.workers.charge(worker, charge)

    def start(self, head: bytes, body: bytes) -> None:
        """Connect, and send the request."""
        self._head = head
        self._body = body
        self._connect()

    def first_byte(self) -> None:
        """The prefill is over: what came is of the answer itself."""
        if not self._has_first_byte:
            self._has_first_byte = True
            self._pool.workers.first_byte(self.worker, self._charge)

    def end(self) -> None:
        """Give back all that is held; the worker stops working on what is not complete."""
        if self._is_ended:
            return
        self._is_ended = True
        self._owner = None  # who has us: a cycle would have to wait for the collector
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self._pool.workers.discharge(self.worker, self._charge)

    def pause(self) -> None:
        """Read no more: the client is slower than the worker."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._deadline = self._clock() + self._limits.idle_seconds
            self._connection.resume()

    def overdue(self, now: float) -> str | None:
        """What the worker has not done in time; None while it still has time."""
        if now < self._deadline:
            return None
        if self._has_body:
            return f"Worker {self.worker.name} sent nothing more for {self._limits.idle_seconds:g} s."
        return f"Worker {self.worker.name} sent nothing within {self._limits.first_byte_seconds:g} s."

    # ---- the connection

    def worker_answered(self, answer: Answer | None, body: bytes, is_complete: bool) -> None:
        """One read."""
        now = self._clock()
        if answer is not None:
            self.has_head = True
            self._head = self._body = b""  # not needed once more
        if is_complete:
            self._connection = None
            self._deadline = _NEVER
        elif body:  # many engines send the head of a stream before the prefill: that alone is no first byte
            self._has_body = True
            self._deadline = now + self._limits.idle_seconds
        owner = self._owner
        if owner is not None:
            owner.answered(answer, body, is_complete, now)

    def worker_lost(self, reason: str) -> None:
        """The connection failed."""
        connection, self._connection = self._connection, None
        owner = self._owner
        if owner is None:
            return
        if not self.has_head and connection is not None and connection.is_reused:
            self._connect()  # most likely a kept-alive connection that was closed as we wrote to it
        else:
            owner.attempt_failed(reason)

    def _connect(self) -> None:
        self.tries += 1
        connection = self._connections.take(self.worker.address)
        if connection is not None:
            self._send(connection)
        else:
            self._dial = self._connections.dial(
                self.worker.address, self._limits.connect_seconds, self._connected, self._unreachable
            )

    def _connected(self, connection: WorkerConnection) -> None:
        self._dial = None
        if self._is_ended:
            self._connections.put(connection)
        else:
            self._send(connection)

    def _unreachable(self, reason: str) -> None:
        self._dial = None
        owner = self._owner
        if owner is not None:
            self._pool.workers.report(self.worker, is_ready=False, reason=reason)
            owner.attempt_failed(reason)

    def _send(self, connection: WorkerConnection) -> None:
        self._connection = connection
        self._deadline = self._clock() + self._limits.first_byte_seconds
        connection.send(self._head, self._body, self)
