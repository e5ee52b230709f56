"""The loop that computes, on a thread of its own, and the one way between it and asyncio.

Owns the order of a step (schedule, copy pages, run, commit, tell, deliver) and the command queue into the thread.
The scheduler and the runner are touched by the engine's thread alone; `submit`, `abort` and the streams by the event
loop alone. What a step brought reaches the loop in one call; a request that was given up is gone before the next step.
If a step fails, every request fails, and so does each later one: `failure` says why.
"""

import asyncio
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from m3_worker.counters import Counters
from m3_worker.scheduling.batch import Batch
from m3_worker.scheduling.host_pages import PageMover
from m3_worker.scheduling.kv_events import EventLog
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import Request, SampledToken, Sequence, TokenOutput
from m3_worker.scheduling.scheduler import Scheduler
from m3_worker.token_stream import EngineFailedError, TokenStream

log = logging.getLogger(__name__)

T = TypeVar("T")


class EngineFullError(Exception):
    """As many requests are waiting as may wait."""


class StepRunner(Protocol):
    """What computes a batch: `runner.Runner`, or a fake of it."""

    def run(self, batch: Batch) -> SequenceOf[SampledToken]:
        """One token for each of `batch.sampling`, in its order."""


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str
    by_client: bool
    told: "Callable[[Prefilled | None], None] | None"


class Prefilled(NamedTuple):
    """How far a sequence had come with its prompt when it was given up."""

    tokens: int
    """Prompt tokens that the cache held, computed or found there."""
    cached_tokens: int
    """Those of them that were found there."""


class _Forget:
    pass


class _Work(Generic[T]):
    """Something to do between two steps, and what comes of it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.result: Future[T] = Future()
        self._work = work

    def do(self) -> None:
        try:
            self.result.set_result(self._work())
        except Exception as error:  # noqa: BLE001 # it is raised where the result is awaited
            self.result.set_exception(error)


class _Stop:
    pass


class Engine:
    """A scheduler and a runner, kept going by one thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        *,
        max_waiting: int,
        mover: PageMover | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self.events = EventLog(secrets.token_hex(8), scheduler.pages.page_tokens)
        self.failure: str | None = None
        self.step_began_seconds: float | None = None
        """On the clock, while a step runs."""
        self._scheduler = scheduler
        self._runner = runner
        self._mover = mover
        self._max_in_flight = scheduler.limits.max_concurrent + max_waiting
        self._clock = clock
        self._commands: queue.SimpleQueue[Request | _Abort | _Forget | _Work[Any] | _Stop] = queue.SimpleQueue()
        self._streams: dict[str, TokenStream] = {}  # of the event loop; every request that is not finished
        self._has_failed = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="m3-engine", daemon=True)

    # For the event loop.

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; results are delivered to `loop`."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """Fail whatever is unfinished, and end the thread after the step it is in."""
        self._fail_streams("the engine was stopped")
        self.events.close()
        self._commands.put(_Stop())

    def fail(self, reason: str) -> None:
        """Fail every request and each later one: the engine is of no use any more. Its thread may hang."""
        log.critical("%s", reason)
        self._fail_streams(reason)
        self._commands.put(_Stop())

    def join(self, timeout_seconds: float = 5.0) -> bool:
        """Wait for the thread to end; whether it has: it may be in a long step. Not for the event loop of a server."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def in_flight_count(self) -> int:
        """Requests submitted and not finished."""
        return len(self._streams)

    @property
    def running_count(self) -> int:
        """Sequences that hold pages."""
        return self._scheduler.running_count

    @property
    def waiting_count(self) -> int:
        """Sequences that wait for a slot or for pages."""
        return self._scheduler.waiting_count

    @property
    def tokens_in_flight(self) -> int:
        """Tokens of all unfinished requests, prompts' and generated."""
        return self._scheduler.tokens_in_flight

    @property
    def pages(self) -> Pages:
        """Whose numbers may be read; they change while a step is made."""
        return self._scheduler.pages

    @property
    def cache_used_ratio(self) -> float:
        """Share of the cache's pages in use, 0 to 1."""
        return self._scheduler.pages.used_ratio

    def submit(self, request: Request) -> TokenStream:
        """Queue a request; its id must be new.

        Raises EngineFullError beyond max_concurrent + max_waiting in flight, EngineFailedError after a failure.
        The stream must be read until an output with a finish reason, or the request aborted.
        """
        if self.failure is not None:
            raise EngineFailedError(self.failure)
        if len(self._streams) >= self._max_in_flight:
            raise EngineFullError(f"{len(self._streams)} requests are running or waiting, no more may wait")
        stream = self._streams[request.id] = TokenStream()
        self._is_idle.clear()
        self._commands.put(request)
        return stream

    def abort(
        self, request_id: str, *, by_client: bool = True, told: Callable[[Prefilled | None], None] | None = None
    ) -> bool:
        """Give a request up, whatever its state; its pages are free before the next step.

        Returns whether it was in flight. If so, `told` is called on the event loop when the engine has given it up,
        with None if it had finished before that.
        """
        was_in_flight = self._forget(request_id)
        if was_in_flight:
            self._commands.put(_Abort(request_id, by_client, told))
        return was_in_flight

    def forget_cached(self) -> None:
        """Let no later request find what was computed until now, on the device or the host."""
        self._commands.put(_Forget())

    async def between_steps(self, work: Callable[[], T]) -> T:
        """Have the engine's thread do something before its next step. Raises what that raises, or EngineFailedError."""
        if self.failure is not None:
            raise EngineFailedError(self.failure)
        command = _Work(work)
        self._commands.put(command)
        done = asyncio.wrap_future(command.result)
        failed = asyncio.ensure_future(self._has_failed.wait())
        try:
            await asyncio.wait((done, failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            failed.cancel()
        if not done.done():
            raise EngineFailedError(self.failure or "")
        return done.result()

    async def wait_until_idle(self) -> None:
        """Return when no request is in flight."""
        await self._is_idle.wait()

    async def wait_until_failed(self) -> str:
        """Return why the engine failed, when it has."""
        await self._has_failed.wait()
        return self.failure or ""

    def _forget(self, request_id: str) -> bool:
        known = self._streams.pop(request_id, None) is not None
        if not self._streams:
            self._is_idle.set()
        return known

    def _dispatch(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:
                continue  # aborted while the step ran
            stream.push(output)
            if output.finish_reason is not None:
                self._forget(output.request_id)

    def _fail_streams(self, reason: str) -> None:
        self.failure = self.failure or reason
        self._has_failed.set()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(reason)
        self._is_idle.set()

    # For the engine's thread.

    def _run(self) -> None:
        try:
            while self._take_commands():
                self.step()
        except Exception as error:
            log.exception("the engine failed")
            reason = f"{type(error).__name__}: {error}"
            self._on_loop(self._fail_streams, reason)

    def step(self) -> None:
        """Compute one step and deliver what it brought."""
        began = self.step_began_seconds = self._clock()
        batch = self._scheduler.schedule(began)
        if not batch.tokens:
            raise RuntimeError("there is work and none of it can be scheduled")
        if self._mover is not None and batch.copies:
            self._mover.copy(batch.copies)
        sampled = self._runner.run(batch)
        outputs = self._scheduler.commit(batch, sampled)
        self._tell_events()
        ended = self._clock()
        predicted = self._scheduler.observe(batch, ended - began)
        if predicted is not None:
            self.counters.step_prediction_error_ratio.observe(abs(predicted / (ended - began) - 1))
        self._count(batch, began, ended)
        self.step_began_seconds = None
        if outputs:
            self._on_loop(self._dispatch, outputs)

    def _take_commands(self) -> bool:
        """Apply all commands there are, and wait for one while there is no work. False if told to stop."""
        if not self._scheduler.has_work:
            self._scheduler.check()
        while not (self._commands.empty() and self._scheduler.has_work):
            command = self._commands.get()
            if isinstance(command, Request):
                self._scheduler.add(Sequence(command))
            elif isinstance(command, _Forget):
                self._scheduler.pages.forget_content()
                self._tell_events()
            elif isinstance(command, _Work):
                command.do()
            elif isinstance(command, _Abort):
                sequence = self._scheduler.remove(command.request_id)
                self.counters.aborts += sequence is not None and command.by_client
                if command.told is not None:
                    self._on_loop(command.told, _prefilled(sequence))
            else:
                return False
        return True

    def _tell_events(self) -> None:
        events = self._scheduler.pages.take_events()
        if events:
            self.events.append(events, time.time())

    def _count(self, batch: Batch, began: float, ended: float) -> None:
        counters = self.counters
        counters.steps += 1
        counters.step_seconds.observe(ended - began)
        counters.preemptions = self._scheduler.preemptions
        sampling = batch.sampling
        before = [sequence.last_token_seconds for sequence in sampling]
        for seconds in set(before):  # hardly ever more than one: that of the step before
            if seconds is not None:
                counters.time_per_output_token_seconds.observe(ended - seconds, before.count(seconds))
        counters.generation_tokens += len(sampling)
        for chunk in batch.prefill:
            if chunk.samples:
                self._count_first(chunk.sequence, ended)
        for sequence in sampling:
            sequence.last_token_seconds = ended

    def _count_first(self, sequence: Sequence, ended: float) -> None:
        """Count what is known of a sequence with its first token."""
        if sequence.last_token_seconds is not None:
            return
        counters, request = self.counters, sequence.request
        counters.generation_tokens -= request.pooling is not None
        counters.prompt_tokens += sequence.prompt_tokens
        counters.time_to_first_token_seconds.observe(ended - request.arrival_seconds)
        if sequence.first_scheduled_seconds is not None:
            counters.queue_seconds.observe(sequence.first_scheduled_seconds - request.arrival_seconds)

    def _on_loop(self, call: Callable[[T], None], argument: T) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, argument)


def _prefilled(sequence: Sequence | None) -> Prefilled | None:
    if sequence is None:
        return None
    return Prefilled(min(sequence.computed_tokens, sequence.prompt_tokens), sequence.cached_tokens)
