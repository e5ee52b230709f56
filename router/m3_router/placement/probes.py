"""Asks every worker how it is, once a second: `GET /health` on connections of its own.

Owns no state of workers; it reports to `Workers`. An answer below 500 means ready (an engine without `/health` answers
404, and is there all the same), 5xx means loading or draining, a refused connection means gone. A slow answer means
nothing for a worker that is at work.
"""

import asyncio
import logging
from collections.abc import Callable

from m3_router.http.messages import Answer
from m3_router.http.worker_end import AnswerSink, WorkerConnection, WorkerConnections
from m3_router.placement.pools import Pool
from m3_router.workers.workers import Worker, WorkerAddress

INTERVAL_SECONDS = 1.0
TIMEOUT_SECONDS = 2.0

_log = logging.getLogger(__name__)


class _Probe(AnswerSink):
    """One probe on its way; `status` gets the answer's status or a ConnectionError."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.status: asyncio.Future[int] = loop.create_future()
        self.connection: WorkerConnection | None = None
        self._answered = 0

    def send(self, connection: WorkerConnection) -> None:
        self.connection = connection
        address = connection.address
        head = b"GET %b/health HTTP/1.1\r\nhost: %b\r\n\r\n" % (address.path_prefix, address.name.encode())
        connection.send(head, b"", self)

    def worker_answered(self, answer: Answer | None, body: bytes, is_complete: bool) -> None:
        if answer is not None:
            self._answered = answer.status
        if is_complete:
            self.connection = None
            if not self.status.done():
                self.status.set_result(self._answered)

    def worker_lost(self, reason: str) -> None:
        self.connection = None
        if not self.status.done():
            self.status.set_exception(ConnectionError(reason))


async def probe(connections: WorkerConnections, address: WorkerAddress, timeout_seconds: float) -> int:
    """The status that `GET /health` gets. Raises ConnectionError, or TimeoutError after `timeout_seconds`."""
    one = _Probe(asyncio.get_running_loop())
    connection = connections.take(address)
    dial = None
    if connection is not None:
        one.send(connection)
    else:
        dial = connections.dial(address, timeout_seconds, one.send, one.worker_lost)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await one.status
    finally:
        if dial is not None:
            dial.cancel()
        if one.connection is not None:
            one.connection.abort()


class Prober:
    """Probes the workers of one pool for ever.

    on_lost: told the address of a worker that became unready. on_return: told of one that is there, and was not before.
    """

    def __init__(
        self,
        pool: Pool,
        connections: WorkerConnections,
        on_lost: Callable[[WorkerAddress], None],
        on_return: Callable[[Pool, Worker], None],
    ) -> None:
        self._pool = pool
        self._connections = connections
        self._on_lost = on_lost
        self._on_return = on_return
        self._is_due = asyncio.Event()

    def hurry(self) -> None:
        """Probe now, because the list of workers has changed."""
        self._is_due.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            async with asyncio.TaskGroup() as group:
                for worker in self._pool.workers:
                    if worker.state != "draining":
                        group.create_task(self._probe(worker))
            try:
                async with asyncio.timeout(INTERVAL_SECONDS):
                    await self._is_due.wait()
            except TimeoutError:
                pass
            self._is_due.clear()

    async def _probe(self, worker: Worker) -> None:
        workers = self._pool.workers
        try:
            status = await probe(self._connections, worker.address, TIMEOUT_SECONDS)
        except TimeoutError:
            changed = workers.report_slow(worker)
        except ConnectionError as error:
            changed = workers.report(worker, is_ready=False, reason=str(error))
        else:
            was_away = worker.state == "unready"
            changed = workers.report(worker, is_ready=status < 500, reason=f"/health answered {status}")
            if was_away and status < 500:
                self._on_return(self._pool, worker)
        if changed:
            _log.info(
                "worker %s of pool %s is %s: %s", worker.name, self._pool.settings.name, worker.state, worker.reason
            )
            if worker.state != "ready":
                self._on_lost(worker.address)
