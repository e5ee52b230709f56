"""The engine: what asyncio asks of its thread, and what it gets back."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from m3_fakes.runner import FakeRunner, continuation
from m3_worker.engine import Engine, EngineFullError
from m3_worker.scheduling.batch import Batch
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import FinishReason, Request, SamplingParameters, TokenOutput
from m3_worker.scheduling.scheduler import Scheduler, SchedulerLimits
from m3_worker.token_stream import EngineFailedError, TokenStream

StartEngine = Callable[..., Engine]


@pytest.fixture
async def start() -> AsyncIterator[StartEngine]:
    engines: list[tuple[Engine, threading.Semaphore | None]] = []

    def start_engine(
        gate: threading.Semaphore | None = None,
        before_step: Callable[[Batch], None] | None = None,
        *,
        max_concurrent: int = 4,
        max_waiting: int = 4,
        step_tokens: int = 16,
    ) -> Engine:
        scheduler = Scheduler(SchedulerLimits(max_concurrent, step_tokens), Pages(64, 4))
        engine = Engine(scheduler, FakeRunner(4, gate=gate, before_step=before_step), max_waiting=max_waiting)
        engine.start(asyncio.get_running_loop())
        engines.append((engine, gate))
        return engine

    yield start_engine
    for engine, gate in engines:
        if gate is not None:
            gate.release(10000)
        engine.stop()
        engine.join()


def request(name: str, prompt: list[int], max_tokens: int = 5, stop: frozenset[int] = frozenset()) -> Request:
    return Request(name, prompt, SamplingParameters(max_tokens=max_tokens, stop_token_ids=stop))


async def read(stream: TokenStream) -> list[TokenOutput]:
    outputs: list[TokenOutput] = []
    while not outputs or outputs[-1].finish_reason is None:
        outputs += await stream.take()
    return outputs


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 # the engine's thread sets no asyncio event
            await asyncio.sleep(0.001)


async def test_requests_submitted_together_each_get_their_own_tokens(start: StartEngine) -> None:
    engine = start()
    prompts = {f"r{length}": list(range(length)) for length in (1, 7, 30, 45)}
    streams = {name: engine.submit(request(name, prompt)) for name, prompt in prompts.items()}
    for name, stream in streams.items():
        outputs = await read(stream)
        assert [output.token.token_id for output in outputs] == continuation(prompts[name], 5)
        assert outputs[-1].finish_reason == FinishReason.LENGTH
    assert engine.in_flight_count == 0


async def test_a_stop_token_finishes_a_request(start: StartEngine) -> None:
    expected = continuation([1, 2, 3], 5)
    outputs = await read(start().submit(request("a", [1, 2, 3], stop=frozenset({expected[2]}))))
    assert [output.token.token_id for output in outputs] == expected[:3]
    assert outputs[-1].finish_reason == FinishReason.STOP


async def test_a_pooled_request_gets_its_embedding_and_no_token(start: StartEngine) -> None:
    engine = start(step_tokens=8)
    pooled = Request("e", list(range(20)), SamplingParameters(max_tokens=1), pooling="mean")
    (output,) = await read(engine.submit(pooled))
    assert (output.embedding, output.finish_reason) == ((1.0, 0.0), FinishReason.STOP)
    await until(lambda: engine.counters.steps == 3)
    assert (engine.counters.prompt_tokens, engine.counters.generation_tokens) == (20, 0)
    assert engine.cache_used_ratio == 0


async def test_outputs_tell_how_much_of_the_prompt_was_cached(start: StartEngine) -> None:
    engine = start()
    first = await read(engine.submit(request("a", list(range(30)))))
    second = await read(engine.submit(request("b", list(range(30)))))
    assert [output.cached_tokens for output in first] == [0] * 5
    assert [output.cached_tokens for output in second] == [28] * 5
    assert [output.token for output in second] == [output.token for output in first]


async def test_more_requests_than_may_wait_are_refused(start: StartEngine) -> None:
    engine = start(gate=threading.Semaphore(0), max_concurrent=1, max_waiting=2)
    for number in range(3):
        engine.submit(request(f"r{number}", [1]))
    with pytest.raises(EngineFullError, match="3 requests are running or waiting"):
        engine.submit(request("one more", [1]))
    engine.abort("r0")
    engine.submit(request("one more", [1]))


async def test_an_aborted_request_is_gone_after_the_step_it_is_in(start: StartEngine) -> None:
    gate = threading.Semaphore(0)
    started = threading.Event()
    engine = start(gate, lambda batch: started.set(), step_tokens=8)
    engine.submit(request("a", list(range(60))))
    await asyncio.to_thread(started.wait, 5)
    assert engine.running_count == 1
    engine.abort("a")
    gate.release()
    await until(lambda: engine.running_count == 0)
    assert engine.cache_used_ratio == 0
    assert engine.counters.aborts == 1
    assert engine.counters.steps == 1


async def test_an_abort_that_is_not_the_clients_is_not_counted_as_one(start: StartEngine) -> None:
    gate = threading.Semaphore(0)
    engine = start(gate)
    engine.submit(request("a", [1, 2], max_tokens=50))
    await until(lambda: engine.running_count == 1)
    engine.abort("a", by_client=False)
    gate.release(3)
    await until(lambda: engine.running_count == 0)
    assert engine.counters.aborts == 0


async def test_a_failed_step_fails_every_request_and_every_later_one(start: StartEngine) -> None:
    def fail(batch: Batch) -> None:
        raise RuntimeError("the device is gone")

    engine = start(before_step=fail)
    streams = [engine.submit(request(name, [1, 2])) for name in ("a", "b")]
    for stream in streams:
        with pytest.raises(EngineFailedError, match="RuntimeError: the device is gone"):
            await stream.take()
    assert engine.failure == "RuntimeError: the device is gone"
    with pytest.raises(EngineFailedError, match="the device is gone"):
        engine.submit(request("c", [1]))


async def test_stopping_the_engine_fails_what_is_unfinished(start: StartEngine) -> None:
    gate = threading.Semaphore(0)
    engine = start(gate)
    stream = engine.submit(request("a", [1]))
    gate.release(1)
    engine.stop()
    with pytest.raises(EngineFailedError, match="the engine was stopped"):
        await stream.take()


async def test_what_was_done_is_counted(start: StartEngine) -> None:
    engine = start(step_tokens=8)
    await read(engine.submit(request("a", list(range(20)), max_tokens=3)))
    await until(lambda: engine.counters.steps == 5)
    counters = engine.counters
    assert (counters.prompt_tokens, counters.generation_tokens) == (20, 3)
    assert sum(counters.step_seconds.counts) == 5
    assert sum(counters.time_to_first_token_seconds.counts) == 1
    assert sum(counters.time_per_output_token_seconds.counts) == 2
    assert sum(counters.queue_seconds.counts) == 1
