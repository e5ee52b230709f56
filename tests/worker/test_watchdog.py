"""The watchdog: an engine that hangs is noticed, one that is slow or idle is left alone."""

import asyncio
import threading

from m3_fakes.runner import FakeRunner
from m3_worker.engine import Engine
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import Request, SamplingParameters
from m3_worker.scheduling.scheduler import Scheduler, SchedulerLimits
from m3_worker.token_stream import EngineFailedError
from m3_worker.watchdog import Watchdog, watch


def test_time_counts_only_while_there_is_work_and_no_step_ends() -> None:
    watchdog = Watchdog(deadline_seconds=60)
    assert watchdog.idle_seconds(steps=0, is_busy=False, now=100) == 0
    assert watchdog.idle_seconds(steps=0, is_busy=False, now=500) == 0
    assert watchdog.idle_seconds(steps=0, is_busy=True, now=530) == 30
    assert watchdog.idle_seconds(steps=1, is_busy=True, now=550) == 0
    assert watchdog.idle_seconds(steps=1, is_busy=True, now=611) == 61
    assert watchdog.is_overdue(61)
    assert not watchdog.is_overdue(60)


def engine_with(gate: threading.Semaphore) -> Engine:
    scheduler = Scheduler(SchedulerLimits(4, 16), Pages(64, 4))
    engine = Engine(scheduler, FakeRunner(4, gate=gate), max_waiting=4)
    engine.start(asyncio.get_running_loop())
    return engine


async def test_a_step_that_never_ends_fails_the_engine_with_a_reason() -> None:
    gate = threading.Semaphore(0)
    engine = engine_with(gate)
    streams = [engine.submit(Request(name, [1], SamplingParameters(max_tokens=3))) for name in ("a", "b")]
    async with asyncio.timeout(10):
        await watch(engine, 0.05)
        assert await engine.wait_until_failed() == engine.failure
    assert engine.failure is not None
    assert engine.failure.endswith("while 2 requests wait: the engine hangs (--step-deadline-seconds 0.05)")
    for stream in streams:
        try:
            await stream.take()
        except EngineFailedError as error:
            assert "the engine hangs" in str(error)  # noqa: PT017 # the other way is to have got a token
    gate.release(100)
    engine.join()


async def test_an_idle_engine_is_left_alone() -> None:
    gate = threading.Semaphore(10)
    engine = engine_with(gate)
    watching = asyncio.create_task(watch(engine, 0.02))
    stream = engine.submit(Request("a", [1], SamplingParameters(max_tokens=1)))
    async with asyncio.timeout(10):
        assert (await stream.take())[0].finish_reason is not None
        finished, _ = await asyncio.wait((watching,), timeout=0.1)  # five deadlines
    assert not finished
    assert engine.failure is None
    watching.cancel()
    engine.stop()
    engine.join()
