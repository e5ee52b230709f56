"""The way of one request, from its last byte to the last byte of its answer, in the order in which it happens.

Owns an exchange while it lasts, and what it holds: a ticket of a lane, a charge on a worker, a connection, a bill. It
decides nothing itself; whom to let in, where to send and what it costs is asked of tenants, lanes, placement, prices.

Plain callbacks rather than a coroutine: a task and its wake-ups would cost a third of what the whole relay costs. Read
`Exchange` from top to bottom; `_finish` is the only way out, and gives back everything that is held.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Final

from m3_router import placement
from m3_router.bill import Bill, Outcome, Usage
from m3_router.config import LimitSettings
from m3_router.errors import Refusal, at_capacity, no_worker, timed_out, worker_failed
from m3_router.http import wire
from m3_router.http.messages import Answer, Client, Request
from m3_router.http.worker_end import WorkerConnection, WorkerConnections
from m3_router.lanes import QueueFullError, Ticket
from m3_router.ledger import Ledger
from m3_router.pools import Pool, Pools
from m3_router.prices import PriceTable, format_usd
from m3_router.request import RequestView, parse
from m3_router.tenants import Tenant
from m3_router.usage import BodyTail, EventStream, usage_of_body
from m3_router.workers import Worker

MAX_HELD_BYTES: Final = 8 * 2**20  # of an answer whose cost goes into its head; a longer one goes without
FREE: Final = frozenset({b"/tokenize"})
RELAYED: Final = frozenset({b"/v1/chat/completions", b"/v1/completions"}) | FREE
_PRIORITY: Final = {"priority": b"x-m3-priority: 0\r\n", "standard": b"x-m3-priority: 10\r\n"}  # the lower goes first
_TIERS: Final = {
    (context, service): f"x-m3-context-tier: {context}\r\nx-m3-service-tier: {service}\r\n".encode()
    for context in ("standard", "long")
    for service in ("standard", "priority")
}
_NEVER: Final = float("inf")
_Scanner = EventStream | BodyTail


class RequestIds:
    """Request ids that no other process gives."""

    def __init__(self) -> None:
        self._prefix = f"m3-{token_hex(6)}-"
        self._given = 0

    def next(self) -> str:
        """One that was never given before."""
        self._given += 1
        return self._prefix + str(self._given)


@dataclass(frozen=True, slots=True)
class Services:
    """What exchanges ask. `clock` is monotonic, `wall_clock` since the epoch, both in seconds."""

    pools: Pools
    prices: PriceTable
    ledger: Ledger
    workers: WorkerConnections
    limits: LimitSettings
    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    wall_clock: Callable[[], float]
    request_ids: RequestIds = field(default_factory=RequestIds)

    def wake(self, admitted: Iterable[Ticket]) -> None:
        """Let the holders of admitted tickets go on. Not from here: each may end at once and admit the next."""
        for ticket in admitted:
            if isinstance(ticket.holder, Exchange):
                self.loop.call_soon(ticket.holder.admitted)


def open_bill(services: Services, request: Request | None) -> Bill:
    """A bill with what the head of a request says."""
    if request is None:
        return Bill(services.wall_clock(), services.request_ids.next(), "")
    given = request.head.known.get(b"x-request-id")
    tenant = request.context
    return Bill(
        services.wall_clock(),
        given.decode() if given is not None and is_request_id(given) else services.request_ids.next(),
        request.path_text,
        tenant.name if isinstance(tenant, Tenant) else "",
    )


def is_request_id(value: bytes) -> bool:
    """Whether a client's request id can be kept: 1 to 128 visible ASCII characters."""
    return len(value) <= 128 and value.isascii() and value.decode().isprintable() and bool(value) and b" " not in value


class Exchange:
    """One relayed request."""

    __slots__ = (
        "_answer",
        "_arrived_at",
        "_bill",
        "_charged_tokens",
        "_connection",
        "_deadline",
        "_dial",
        "_held",
        "_held_bytes",
        "_is_finished",
        "_is_free",
        "_is_sent",
        "_pool",
        "_request",
        "_scanner",
        "_services",
        "_ticket",
        "_tried",
        "_upstream",
        "_view",
        "_worker",
    )

    def __init__(self, services: Services, request: Request, connection: Client, *, is_free: bool) -> None:
        self._services = services
        self._request = request
        self._connection = connection
        self._is_free = is_free
        self._bill = open_bill(services, request)
        self._arrived_at = services.clock()
        self._deadline = _NEVER
        self._is_finished = False
        # held, and given back by _finish
        self._ticket: Ticket | None = None
        self._worker: Worker | None = None
        self._charged_tokens = 0  # to the worker, and by the ticket
        self._upstream: WorkerConnection | None = None
        self._dial: asyncio.Task[None] | None = None
        # set on the way
        self._view: RequestView | None = None
        self._pool: Pool | None = None
        self._tried: tuple[Worker, ...] = ()
        self._answer: Answer | None = None
        self._scanner: _Scanner | None = None  # the head is out, the body passes through it
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._is_sent = False  # the client has got a first byte

    # ---- 1. understand and price it, and ask for a place

    def begin(self) -> None:
        """From the body to a ticket."""
        services, bill = self._services, self._bill
        try:
            view = self._view = parse(self._request.body)
            bill.model = view.model
            bill.stream = view.is_stream
            pool = self._pool = services.pools.of_model(view.model)
            view.check_fits(pool.max_context_tokens)
            tenant = self._request.context
            assert isinstance(tenant, Tenant)  # noqa: S101 - Routes.accept put it there
            tier = tenant.entitled_tier(view.service_tier)
            if not pool.workers.ready:
                raise no_worker(view.model)
            if self._is_free:
                self._dispatch()
                return
            bill.service_tier = tier
            bill.context_tier = services.prices.context_tier(view.input_tokens)
            self._charged_tokens = min(view.charge_tokens, pool.max_context_tokens)
            ticket = self._ticket = pool.lanes.offer(tier, self._charged_tokens, self._arrived_at, self)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        except QueueFullError as full:
            self._refuse(at_capacity(str(full), full.retry_after_seconds))
            return
        if ticket.state == "admitted":
            self._dispatch()

    def admitted(self) -> None:
        """The wait in the lane is over."""
        if not self._is_finished:
            self._bill.queue_ms = self._elapsed_ms()
            self._dispatch()

    def expired(self, retry_after_seconds: int) -> None:
        """The wait in the lane was too long."""
        self._bill.queue_ms = self._elapsed_ms()
        self._refuse(at_capacity("no place became free in time", retry_after_seconds))

    # ---- 2. send it to a worker

    def _dispatch(self) -> None:
        pool, view = self._pool, self._view
        assert pool is not None and view is not None  # noqa: S101, PT018 - begin has set both
        worker = placement.choose(pool.workers.ready, self._tried)
        if worker is None:
            self._refuse(no_worker(view.model))
            return
        self._worker = worker
        self._bill.worker = worker.name
        pool.workers.charge(worker, self._charged_tokens)
        self._connect(worker)

    def _connect(self, worker: Worker) -> None:
        self._bill.attempts += 1
        connections = self._services.workers
        connection = connections.take(worker.address)
        if connection is not None:
            self._send(connection)
        else:
            self._dial = connections.dial(
                worker.address, self._services.limits.connect_seconds, self._connected, self._unreachable
            )

    def _connected(self, connection: WorkerConnection) -> None:
        self._dial = None
        if self._is_finished:
            self._services.workers.put(connection)
        else:
            self._send(connection)

    def _unreachable(self, reason: str) -> None:
        self._dial = None
        if not self._is_finished and self._worker is not None and self._pool is not None:
            self._pool.workers.report(self._worker, is_ready=False, reason=reason)
            self._try_another(reason)

    def _send(self, connection: WorkerConnection) -> None:
        request, bill, view, worker = self._request, self._bill, self._view, self._worker
        assert view is not None and worker is not None  # noqa: S101, PT018 - _dispatch has set both
        head = b"".join(
            (
                request.post_line,
                worker.host_line,
                b"content-length: ",
                str(len(view.body)).encode(),
                b"\r\nx-request-id: ",
                bill.request_id.encode(),
                b"\r\nx-m3-tenant: ",
                bill.tenant.encode(),
                b"\r\n",
                _PRIORITY[bill.service_tier or "standard"],
                request.head.forward,
                b"\r\n",
            )
        )
        services = self._services
        self._upstream = connection
        self._deadline = services.clock() + services.limits.first_byte_seconds
        connection.send(head, view.body, self)

    def _try_another(self, reason: str) -> None:
        """Nothing was sent to the client, and this worker has failed: the next one, while there is one."""
        pool, view, worker = self._pool, self._view, self._worker
        assert pool is not None and view is not None and worker is not None  # noqa: S101, PT018
        pool.workers.discharge(worker, self._charged_tokens)
        self._worker = None
        self._tried = (*self._tried, worker)
        if placement.choose(pool.workers.ready, self._tried) is not None:
            self._dispatch()
        elif not pool.workers.ready:
            self._refuse(no_worker(view.model), outcome="worker_error")
        else:
            self._refuse(worker_failed(f"Worker {worker.name} failed: {reason}."), outcome="worker_error")

    # ---- 3. bring the answer back

    def worker_answered(self, answer: Answer | None, body: bytes, is_complete: bool) -> None:
        """One read from the worker, at most one write to the client."""
        now = self._services.clock()
        if answer is not None:
            if answer.status == 503 and self._pass_over(is_complete):
                return
            self._take_head(answer, now)
        if is_complete:
            self._upstream = None
        else:
            self._deadline = now + self._services.limits.idle_seconds
        if self._scanner is not None:
            self._relay_part(self._scanner, body, is_complete)
        elif is_complete:
            self._answer_whole(b"".join((*self._held, body)) if self._held else body)
        else:
            self._hold(body)

    def _pass_over(self, is_complete: bool) -> bool:
        """A worker that is loading or draining has begun nothing: another one may take the request, if there is one."""
        pool = self._pool
        if pool is None or placement.choose(pool.workers.ready, (*self._tried, self._worker)) is None:
            return False
        if self._upstream is not None and not is_complete:
            self._upstream.abort()
        self._upstream = None
        self._try_another("it answered 503")
        return True

    def _take_head(self, answer: Answer, now: float) -> None:
        bill, view, known = self._bill, self._view, answer.head.known
        assert view is not None  # noqa: S101 - _send has sent its body
        self._answer = answer
        bill.status = answer.status
        bill.first_byte_ms = int((now - self._arrived_at) * 1e6) / 1e3
        counted = known.get(b"x-m3-input-tokens")
        if counted is not None and counted.isdigit() and not self._is_free:
            bill.input_tokens = int(counted)
            bill.context_tier = self._services.prices.context_tier(bill.input_tokens)
        else:
            bill.input_tokens = view.input_tokens
        if known.get(b"content-type", b"").startswith(b"text/event-stream"):
            self._pass_through(EventStream(view.is_usage_added))

    def _hold(self, body: bytes) -> None:
        """Wait for the rest of the answer, whose usage goes into its head, unless it grows too long for that."""
        self._held.append(body)
        self._held_bytes += len(body)
        if self._held_bytes > MAX_HELD_BYTES:
            held, self._held = b"".join(self._held), []
            self._relay_part(self._pass_through(BodyTail()), held, is_complete=False)

    def _answer_whole(self, body: bytes) -> None:
        bill = self._bill
        usage = usage_of_body(body) if bill.status == 200 and not self._is_free else None
        self._finish(self._outcome_of_status(), usage)
        head = self._head()
        if usage is not None:
            head += b"x-m3-cost-usd: " + format_usd(bill.cost_nanousd) + b"\r\n"
        self._connection.respond(head, body)

    def _pass_through(self, scanner: _Scanner) -> _Scanner:
        """From here on the client gets what comes as it comes."""
        self._connection.release_body()
        self._view = None
        self._scanner = scanner
        return scanner

    def _relay_part(self, scanner: _Scanner, body: bytes, is_complete: bool) -> None:
        connection = self._connection
        data = scanner.feed(body) if body else b""
        if is_complete and isinstance(scanner, EventStream):
            data += scanner.finish()
        if not self._is_sent and (data or is_complete):
            self._is_sent = True
            connection.start_response(self._head(), data)
            data = b""
        if is_complete:
            self._finish(self._outcome_of_status(), scanner.usage)
            connection.end(data)
        elif data:
            connection.write(data)

    def _head(self) -> bytes:
        """Status and headers of the answer, without its framing."""
        answer, bill = self._answer, self._bill
        assert answer is not None  # noqa: S101 - there is a head to relay
        context_tier, service_tier = bill.context_tier, bill.service_tier
        return b"".join(
            (
                wire.status_line(answer.status),
                b"content-type: ",
                answer.head.known.get(b"content-type", b"application/json"),
                b"\r\n",
                answer.head.forward,
                b"x-request-id: ",
                bill.request_id.encode(),
                b"\r\nx-m3-worker: ",
                bill.worker.encode(),
                b"\r\nx-m3-queue-ms: %d\r\n" % bill.queue_ms if bill.queue_ms else b"\r\nx-m3-queue-ms: 0\r\n",
                b"" if context_tier is None or service_tier is None else _TIERS[context_tier, service_tier],
            )
        )

    # ---- what may happen at any time

    def client_lost(self) -> None:
        """The client left: the worker stops now, and what was used is billed."""
        if self._is_finished:
            return
        if self._ticket is not None and self._ticket.state == "waiting" and self._pool is not None:
            self._services.wake(self._pool.lanes.cancel(self._ticket, self._services.clock()))
        usage = None
        if self._answer is not None and self._answer.status == 200:
            usage = self._scanner.usage if self._scanner is not None else None
            usage = usage or self._estimate()
        self._finish("client_gone", usage)

    def client_paused(self) -> None:
        """The client reads more slowly than the worker writes."""
        if self._upstream is not None:
            self._upstream.pause()

    def client_resumed(self) -> None:
        """The client has caught up."""
        if self._upstream is not None:
            self._deadline = self._services.clock() + self._services.limits.idle_seconds
            self._upstream.resume()

    def worker_lost(self, reason: str) -> None:
        """The worker's connection failed."""
        connection, self._upstream = self._upstream, None
        if self._answer is not None:
            self._break_off(worker_failed(f"Worker {self._bill.worker} failed during its answer: {reason}."))
        elif connection is not None and connection.is_reused and self._worker is not None:
            self._connect(self._worker)  # most likely a kept-alive connection that was closed as we wrote to it
        else:
            self._try_another(reason)

    def tick(self, now: float) -> None:
        """Give up on a worker that is silent, or a client that does not read, for too long."""
        if now < self._deadline or self._is_finished:
            return
        limits = self._services.limits
        if self._connection.is_write_paused:
            self._connection.abort()
        elif self._answer is None:
            message = f"Worker {self._bill.worker} sent nothing within {limits.first_byte_seconds:g} s."
            self._refuse(timed_out(message), outcome="worker_error")
        else:
            message = f"Worker {self._bill.worker} sent nothing more for {limits.idle_seconds:g} s."
            self._break_off(timed_out(message))

    def interrupt(self) -> None:
        """The router stops before the answer is complete."""
        if not self._is_finished:
            message = "The router is stopping."
            self._break_off(Refusal(503, message, kind="server_error", code="router_stopping", retry_after_seconds=1))

    def _break_off(self, refusal: Refusal) -> None:
        """The answer cannot be completed. Where it has begun, the client is told in the stream, and never `[DONE]`."""
        self._bill.error = refusal.message
        if not self._is_sent:
            self._refuse(refusal, outcome="worker_error")
            return
        event = b""
        if isinstance(self._scanner, EventStream):
            event = self._scanner.boundary() + b"data: " + refusal.body() + b"\n\n"
        self._finish("worker_error", self._estimate())
        self._connection.cut(event)

    # ---- 4. settle

    def _refuse(self, refusal: Refusal, outcome: Outcome = "rejected") -> None:
        bill = self._bill
        bill.status, bill.error = refusal.status, refusal.message
        bill.input_tokens = 0
        self._finish(outcome, None)
        self._connection.refuse(refusal, b"x-request-id: %b\r\n" % bill.request_id.encode())

    def _finish(self, outcome: Outcome, usage: Usage | None) -> None:
        """The only way out: give back all that is held, settle the bill once."""
        self._is_finished = True
        now = self._services.clock()
        bill, pool, worker, ticket = self._bill, self._pool, self._worker, self._ticket
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if worker is not None and pool is not None:
            pool.workers.discharge(worker, self._charged_tokens)
            self._worker = None
        if ticket is not None:
            ticket.holder = None
            if ticket.state == "admitted" and pool is not None:
                woken = pool.lanes.release(ticket, now)
                if woken:
                    self._services.wake(woken)
        bill.duration_ms = int((now - self._arrived_at) * 1e6) / 1e3
        if usage is None and outcome == "ok" and not self._is_free:
            usage = self._estimate()
        self._services.ledger.settle(bill, outcome, usage)

    def _estimate(self) -> Usage:
        """What is known of an answer whose usage did not come: its input, and an output token for each event."""
        self._bill.estimated = True
        events = self._scanner.events if isinstance(self._scanner, EventStream) else 0
        return Usage(self._bill.input_tokens, 0, events)

    def _outcome_of_status(self) -> Outcome:
        status = self._bill.status
        if status < 400:
            return "ok"
        return "rejected" if status < 500 else "worker_error"

    def _elapsed_ms(self) -> float:
        return int((self._services.clock() - self._arrived_at) * 1e6) / 1e3
