"""The way of one request, from its last byte to the last byte of its answer, in the order in which it happens.

Owns an exchange while it lasts, and the order of things. It decides nothing itself; whom to let in, where to send and
what it costs is asked of tenants, prices, lanes, placement. What a request is and may cost is found out by `intake`,
what it holds of a quota and of the lanes is its `place`, one try at a worker is an `attempt`, who has failed it is in
`tries`, the form of what the client gets is the `reply`'s, and what it is settled with is `closing`'s.

    intake -> queue -> dispatch -> attempt ... reply -> settle
                ^         ^          |
                |         +----------+  another worker, while nothing was sent; a continuation, after that
                +--------------------+  put back for a priority request, before the first byte

Plain callbacks rather than a coroutine: a task and its wake-ups would cost a third of what the whole relay costs. Read
`Exchange` from top to bottom; `_finish` is the only way out, and gives back everything that is held.
"""

from typing import Final

from mypy_extensions import mypyc_attr

from m3_router.bodies.dialects import Dialect
from m3_router.bodies.request import RequestView
from m3_router.bodies.usage import usage_of_body
from m3_router.errors import Refusal, no_worker, timed_out, worker_failed
from m3_router.http import messages
from m3_router.http.messages import Answer, Client, Request
from m3_router.http.wire import request_id_lines
from m3_router.money.bill import Outcome, Usage
from m3_router.placement.pools import Pool
from m3_router.relay.attempt import Attempt, AttemptOwner
from m3_router.relay.caller import Caller
from m3_router.relay.closing import outcome_of_status, settle
from m3_router.relay.guard import AnswerGuard
from m3_router.relay.intake import Intake, IntakeOwner, open_bill
from m3_router.relay.outbound import head_for
from m3_router.relay.place import Place
from m3_router.relay.reply import Reply
from m3_router.relay.services import Services, Waiting
from m3_router.relay.tries import Tries
from m3_router.workers.workers import Worker

# What a worker says that has begun nothing: it loads, drains or has no room. Another one may take the request.
_PASSED_OVER: Final = frozenset({429, 503, 529})


@mypyc_attr(free_list_len=1)
class Exchange(messages.Exchange, IntakeOwner, AttemptOwner, Waiting):
    """One relayed request."""

    __slots__ = (
        "_arrived_at",
        "_attempt",
        "_bill",
        "_caller",
        "_client",
        "_comment_at",
        "_dialect",
        "_guard",
        "_intake",
        "_is_finished",
        "_place",
        "_reply",
        "_request",
        "_services",
        "_trace_line",
        "_tries",
    )

    def __init__(self, services: Services, request: Request, client: Client, caller: Caller, dialect: Dialect) -> None:
        self._services = services
        self._request = request
        self._client = client
        self._caller = caller
        self._dialect = dialect
        bill = self._bill = open_bill(services, request)
        self._arrived_at = services.clock()
        self._comment_at = self._arrived_at + services.limits.comment_seconds
        self._trace_line = b"traceparent: " + caller.traceparent + b"\r\n" if caller.traceparent else b""
        self._intake = Intake(self, services, request.body, caller, bill=bill, dialect=dialect)
        self._is_finished = False
        # held, and given back by _finish
        self._place = Place(services, caller.tenant, bill)
        self._attempt: Attempt | None = None
        # set on the way
        self._reply: Reply | None = None
        self._guard: AnswerGuard | None = None  # where answers are moderated
        self._tries = Tries(services.limits.attempts)

    # ---- 1. understand and price it

    def begin(self) -> None:
        """From the body to a place in a lane, or to a wait for what has to be asked."""
        traces = self._services.traces
        if traces is not None:
            context = traces.begin(self._caller.traceparent)
            if context.is_sampled:
                bill = self._bill
                bill.trace_id, bill.parent_span_id = context.trace_id, context.parent_span_id
                bill.span_id = context.span_id
            self._trace_line = context.header()
        self._intake.begin()

    def not_taken_in(self, refusal: Refusal) -> None:
        """Somebody has something against it."""
        self._refuse(refusal)

    def taken_in(self) -> None:
        """All is known of it, and nobody has anything against it."""
        view, pool = self._understood()
        self._reply = Reply(self._client, self._bill, view, self._services.prices, is_resumable=pool.can_continue)
        if self._dialect.is_free:
            self._dispatch(view.body)
            return
        moderator = self._services.moderator
        if moderator is not None and moderator.covers("response"):
            self._guard = AnswerGuard(
                moderator,
                self._intake.model,
                self._services.loop,
                allowed=self._end_stream if view.is_stream else self._answer_whole,
                stopped=self._stop_unmoderated,
            )
        try:
            is_admitted = self._place.take(self._intake, view, pool, self._deadline(), self)
        except Refusal as refusal:
            self._refuse(refusal)
        else:
            if is_admitted:
                self._dispatch(view.body)

    def _understood(self) -> tuple[RequestView, Pool]:
        view, pool = self._intake.view, self._intake.pool
        assert view is not None and pool is not None  # noqa: S101, PT018 - nothing comes here before it was understood
        return view, pool

    # ---- 2. wait for a place

    def _deadline(self) -> float | None:
        """When the client wants its first byte; None if it has not said so."""
        seconds = self._caller.first_byte_seconds
        return None if seconds is None else self._arrived_at + seconds

    def admitted(self) -> None:
        """The wait in the lane is over."""
        if not self._is_finished and self._place.is_admitted and self._attempt is None:
            self._bill.queue_ms = self._elapsed_ms()
            self._dispatch(self._understood()[0].body)

    def preempted(self) -> None:
        """A priority request has taken the place; this one waits again where it waited before.

        Told in the next round of the loop, by when the place may be its own again, or the worker may have spoken.
        """
        if not self._is_finished and self._attempt is not None and self._place.is_waiting:
            self._bill.preemptions += 1
            self._attempt.end()
            self._attempt = None
            self._forget_answer()

    def expired(self, retry_after_seconds: int) -> None:
        """The wait in the lane was too long, for room or for a worker."""
        if not self._is_finished:
            self._bill.queue_ms = self._elapsed_ms()
            self._refuse(self._place.why_expired(self._understood()[0].model, retry_after_seconds))

    # ---- 3. send it to a worker

    def _dispatch(self, body: bytes) -> None:
        """To the worker that placement names; everything that was sent elsewhere before has ended."""
        services, bill, intake = self._services, self._bill, self._intake
        view, pool = self._understood()
        now = services.clock()
        choice = pool.placement.choose(
            pool.workers.ready, intake.want(self._tries.workers, now, is_long=self._place.charge.is_long), now
        )
        if choice is None:
            if not self._place.wait_for_worker(now):  # else the last one has left since the place was given
                self._break_off(no_worker(view.model), "rejected")
            return
        worker = choice.worker
        bill.worker, bill.reason = worker.name, choice.reason
        bill.runner_up = "" if choice.runner_up is None else choice.runner_up.name
        bill.cost_tokens, bill.runner_up_cost_tokens = choice.cost_tokens, choice.runner_up_cost
        bill.predicted_cached_tokens = choice.cached_tokens
        bill.attempts += 1
        attempt_name = ""
        if not self._dialect.is_free:
            services.ledger.open(bill)
            attempt_name = services.ledger.attempt(bill)
        attempt = self._attempt = Attempt(
            self,
            pool,
            worker,
            self._place.charge,
            connections=services.workers,
            limits=services.limits,
            clock=services.clock,
        )
        head = head_for(
            pool,
            worker,
            self._request,
            bill,
            attempt=attempt_name,
            tier=intake.tier,
            trace_line=self._trace_line,
            body_bytes=len(body),
        )
        attempt.start(head, body)
        services.placed(pool, worker, intake.chain, intake.session(), bill.request_id)

    # ---- 4. bring the answer back

    def answered(self, answer: Answer | None, body: bytes, is_complete: bool, now: float) -> None:
        """One read from the worker, at most one write to the client."""
        reply, attempt = self._reply, self._attempt
        assert reply is not None and attempt is not None  # noqa: S101, PT018 - the attempt tells of itself
        if self._place.is_lost:
            self.preempted()  # the lanes have put it back, and it is only now told: the answer comes too late
            return
        if answer is not None:
            if answer.status in _PASSED_OVER and self._can_try_another(reply):
                self._try_another(f"it answered {answer.status}")
                return
            if reply.has_content and not reply.can_go_on_with(answer):
                name, status = attempt.worker.name, answer.status
                self._go_on_elsewhere(worker_failed(f"Worker {name} could not go on with the answer: {status}."))
                return
            self._take_head(reply, attempt, answer, now)
        if reply.is_streaming:
            self._pass_on(reply, attempt, body, is_complete, now)
        elif is_complete:
            self._first_byte(attempt, now)
            whole = reply.whole(body)
            if self._guard is not None and self._bill.status == 200:
                self._guard.take_whole(whole)
            else:
                self._answer_whole(whole)
        else:
            reply.hold(body)

    def _pass_on(self, reply: Reply, attempt: Attempt, body: bytes, is_complete: bool, now: float) -> None:
        """A part of a stream."""
        guard = self._guard
        data = reply.scan(body, is_complete)
        if data and not reply.has_content:
            if reply.pass_sign_of_life(data):
                data = b""
            else:
                self._first_byte(attempt, now)
        if guard is not None:
            data = guard.feed(data, is_at_end=reply.is_at_end)
        if is_complete and guard is None and reply.is_whole:
            self._end_stream(data)
            return
        if data:
            reply.write(data)
        if not is_complete:
            return
        if not reply.is_whole:
            self.attempt_failed(reply.why_not_whole)
        elif guard is not None:
            guard.finish_stream()

    def _end_stream(self, data: bytes) -> None:
        """The last part of a stream."""
        reply = self._reply
        assert reply is not None  # noqa: S101 - it was streamed through it
        self._finish(outcome_of_status(self._bill.status), reply.usage)
        reply.end(data)

    def _take_head(self, reply: Reply, attempt: Attempt, answer: Answer, now: float) -> None:
        services, bill, intake = self._services, self._bill, self._intake
        _, pool = self._understood()
        if answer.status < 500:
            pool.workers.succeeded(attempt.worker)
        else:
            pool.workers.failed(attempt.worker, now, f"it answered {answer.status}")
        bill.status = answer.status
        if bill.first_byte_ms is None:
            bill.first_byte_ms = int((now - self._arrived_at) * 1e6) / 1e3
        reply.take_head(answer, self._limit_headers())
        interval = intake.interval
        if interval is not None and not bill.continuations:
            if reply.input_tokens is not None:
                bill.input_tokens = reply.input_tokens
                bill.context_tier = services.prices.context_tier(intake.model, bill.input_tokens, bill.time)
            else:
                bill.input_tokens = interval.likely
        if reply.is_streaming and not pool.can_continue:
            self._client.release_body()
        if self._client.is_write_paused:  # since an attempt before this one
            attempt.pause()

    def _limit_headers(self) -> bytes:
        """What the client's limits have left."""
        return self._caller.tenant.quota.headers(self._dialect.is_anthropic, self._bill.time)

    def _first_byte(self, attempt: Attempt, now: float) -> None:
        """The prefill is over: nobody may put this request back any more."""
        attempt.first_byte()
        self._place.first_byte(now)

    def _answer_whole(self, body: bytes) -> None:
        dialect, reply = self._dialect, self._reply
        assert reply is not None  # noqa: S101 - it has taken the head
        usage = usage_of_body(dialect, body) if self._bill.status == 200 and not dialect.is_free else None
        self._finish(outcome_of_status(self._bill.status), usage)
        reply.respond(body, has_cost=usage is not None)

    # ---- 5. when a worker fails

    def attempt_failed(self, reason: str) -> None:
        """The worker's connection failed, or there was none; or it has ended its answer too soon."""
        attempt, reply = self._attempt, self._reply
        assert attempt is not None and reply is not None  # noqa: S101, PT018 - the attempt tells of itself
        _, pool = self._understood()
        pool.workers.failed(attempt.worker, self._services.clock(), reason)
        if self._place.is_lost:
            self.preempted()
        elif reply.has_content:
            self._go_on_elsewhere(worker_failed(f"Worker {attempt.worker.name} failed during its answer: {reason}."))
        else:
            self._try_another(reason)

    def _can_try_another(self, reply: Reply) -> bool:
        """Whether somebody else may begin the answer."""
        attempt = self._attempt
        if attempt is None or reply.has_content:
            return False
        _, pool = self._understood()
        return not self._tries.is_last() and self._tries.has_other(pool, attempt.worker)

    def _end_attempt(self) -> Worker:
        attempt = self._attempt
        assert attempt is not None  # noqa: S101 - there is one to end
        attempt.end()
        self._attempt = None
        self._tries.add(attempt.worker)
        return attempt.worker

    def _try_another(self, reason: str) -> None:
        """Nothing of the answer was sent to the client, and this worker has failed: the next one, if there is one."""
        reply = self._reply
        assert reply is not None  # noqa: S101 - there was an attempt
        view, pool = self._understood()
        can_try = self._can_try_another(reply)
        worker = self._end_attempt()
        self._forget_answer()
        if can_try:
            self._dispatch(view.body)
        elif self._place.wait_again(self._services.clock()):
            self._tries.forget()
        elif not pool.workers.ready:
            self._refuse(no_worker(view.model), outcome="worker_error")
        else:
            self._refuse(worker_failed(f"Worker {worker.name} failed: {reason}."), outcome="worker_error")

    def _forget_answer(self) -> None:
        """What a worker has said before it failed, or was stopped, is of no answer that the client will get."""
        self._bill.status = self._bill.input_tokens = 0

    def _go_on_elsewhere(self, refusal: Refusal) -> None:
        """A part of the answer was sent: another worker goes on with it where that can be done, or it is broken off."""
        bill, reply = self._bill, self._reply
        assert reply is not None  # noqa: S101 - it has content
        _, pool = self._understood()
        self._end_attempt()
        resumption = None if self._tries.are_used_up() else reply.resumption(pool.engine)
        if resumption is None or not self._tries.has_other(pool, None):
            self._break_off(refusal)
            return
        # What the client has got until now; the next worker's part is added to it (bill.continued).
        reply.note_delivered()
        bill.continuations += 1
        reply.go_on(resumption)
        self._dispatch(resumption.body)

    def _stop_unmoderated(self, refusal: Refusal) -> None:
        """The moderation has something against the answer."""
        self._break_off(refusal, "rejected")

    def _break_off(self, refusal: Refusal, outcome: Outcome = "worker_error") -> None:
        """The answer cannot be begun, or not be completed."""
        self._bill.error = refusal.message
        reply = self._reply
        if reply is None or not reply.has_content:
            self._refuse(refusal, outcome)
            return
        self._finish(outcome, reply.estimate())
        reply.refuse(refusal, b"")

    # ---- what may happen at any time

    def client_lost(self) -> None:
        """The client left: the worker stops now, and what was used is billed."""
        if self._is_finished:
            return
        reply = self._reply
        self._finish("client_gone", reply.usage if reply is not None and self._bill.status == 200 else None)

    def client_paused(self) -> None:
        """The client reads more slowly than the worker writes."""
        if self._attempt is not None:
            self._attempt.pause()

    def client_resumed(self) -> None:
        """The client has caught up."""
        if self._attempt is not None:
            self._attempt.resume()

    def tick(self, now: float) -> None:
        """Give up on a worker that is silent, or a client that does not read, for too long; else keep it company."""
        if self._is_finished:
            return
        attempt, reply = self._attempt, self._reply
        if attempt is not None:
            overdue = attempt.overdue(now)
            if overdue is not None:
                if self._client.is_write_paused:
                    self._client.abort()
                else:
                    self._late(attempt, overdue, now)
                return
        if now >= self._comment_at and reply is not None and self._bill.stream and not reply.has_content:
            self._comment_at = now + self._services.limits.comment_seconds
            # Not while it waits for a place, or for an answer of which the status is known: it could be a plain error.
            is_prefilling = attempt is not None and (not attempt.has_head or reply.is_streaming)
            if is_prefilling or reply.is_head_out:
                reply.comment()

    def _late(self, attempt: Attempt, overdue: str, now: float) -> None:
        self._understood()[1].workers.failed(attempt.worker, now, overdue)
        if self._reply is not None and self._reply.has_content:
            self._go_on_elsewhere(timed_out(overdue))
        else:
            self._refuse(timed_out(overdue), outcome="worker_error")

    def interrupt(self) -> None:
        """The router stops before the answer is complete."""
        if not self._is_finished:
            message = "The router is stopping."
            self._break_off(Refusal(503, message, kind="server_error", code="router_stopping", retry_after_seconds=1))

    # ---- 6. settle

    def _refuse(self, refusal: Refusal, outcome: Outcome = "rejected") -> None:
        bill, reply = self._bill, self._reply
        refusal.answer_to(bill.request_id, is_anthropic=self._dialect.is_anthropic)
        bill.status, bill.error = refusal.status, refusal.message
        bill.input_tokens = 0
        self._finish(outcome, None)
        if reply is not None:
            reply.refuse(refusal, self._limit_headers())
        else:
            self._client.refuse(refusal, request_id_lines(bill.request_id, is_anthropic=refusal.is_anthropic))

    def _finish(self, outcome: Outcome, usage: Usage | None) -> None:
        """The only way out: give back all that is held, settle the bill once."""
        self._is_finished = True
        bill = self._bill
        now = self._services.clock()
        self._intake.cancel()
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end()
        bill.duration_ms = int((now - self._arrived_at) * 1e6) / 1e3
        estimate = settle(
            self._services,
            bill,
            outcome,
            usage,
            is_free=self._dialect.is_free,
            intake=self._intake,
            reply=self._reply,
            attempt=attempt,
        )
        self._place.give_back(now, estimate)

    def _elapsed_ms(self) -> float:
        return int((self._services.clock() - self._arrived_at) * 1e6) / 1e3
