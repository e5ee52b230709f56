"""What the host does in a step of m3-worker's engine beside the model's arithmetic, and what that is made of.

    python benchmarks/engine/empty_step.py [--requests 1,16,64] [--repetitions 3]

The model is replaced by one that computes nothing: its logits are zeros. A step is then all that happens between two
calls of the model: commands, scheduling, pages, tensors, sampling, stop conditions, counters, and the hand-over to the
event loop, where a task a request waits for its tokens, as those of HTTP answers do. Both threads share Python's lock
and an empty model never lets go of it, so that such a step lasts as long as the work of both: the CPU time of each is
told beside it. Owns this measurement; `bench` reports it.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_model import write_model

from m3_worker import runner
from m3_worker.config import WorkerSettings
from m3_worker.engine import Engine
from m3_worker.http_server import loop_factory
from m3_worker.loading import load_served_model
from m3_worker.model.cache import PagedCache, StepTensors
from m3_worker.model.m3 import M3Model
from m3_worker.scheduling.request import Request, SamplingParameters
from m3_worker.scheduling.scheduler import Scheduler
from m3_worker.step_input import StepInput

PROMPT_TOKENS = 64
"""Of the shortest prompt; each other one has a token more, so that no two come to a new page in the same step."""
OUTPUT_TOKENS = 500
SETTLING_STEPS = 8
"""At either end, in which requests still come or go."""
WINDOW_STEPS = 25

PARTS: Mapping[str, tuple[Any, str]] = {
    "schedule": (Scheduler, "schedule"),
    "tensors": (StepInput, "of"),
    "sample": (runner, "sample"),
    "commit": (Scheduler, "commit"),
    "learn step times": (Scheduler, "observe"),
    "count": (Engine, "_count"),
    "hand over": (Engine, "_on_loop"),
}
"""What the engine's thread does in a step, and the functions that do it."""


@dataclass(frozen=True)
class EmptyStep:
    """One run: seconds a step, with all requests decoding."""

    median_seconds: float
    """From one call of the model to the next."""
    least_seconds: float
    """The same, as the mean of the `WINDOW_STEPS` in a row that took least: the machine is not ours alone."""
    engine_seconds: float
    """CPU time of the engine's thread."""
    loop_seconds: float
    """CPU time of the event loop's thread: delivery, and the tasks that take it."""
    parts: Mapping[str, float]
    """CPU time of the engine's thread by part; empty if it was not asked for."""


class EmptyModel:
    """Takes the place of the model's arithmetic, and notes when it is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float]] = []
        """Seconds of the clock, and of CPU time of the thread that calls."""
        self._zeros: dict[tuple[int, int], torch.Tensor] = {}

    def install(self) -> None:
        """Have every model of this process compute nothing from now on."""

        def states(model: M3Model, step: StepTensors, _cache: PagedCache) -> torch.Tensor:
            self.calls.append((time.perf_counter(), time.thread_time()))
            return self._nothing(step.query_starts[-1], model.config.hidden_size)

        def logits(model: M3Model, states: torch.Tensor) -> torch.Tensor:
            return self._nothing(states.shape[0], model.config.vocab_size)

        M3Model.states, M3Model.logits = states, logits  # type: ignore[method-assign]

    def _nothing(self, rows: int, width: int) -> torch.Tensor:
        """[rows, width], as dense as what a model gives; the same ones again, since nobody bends them."""
        if (rows, width) not in self._zeros:
            self._zeros[rows, width] = torch.zeros(rows, width)
        return self._zeros[rows, width]


class Stopwatch:
    """CPU time of a thread by part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def install(self) -> None:
        """Wrap the functions of all parts."""
        for part, (owner, name) in PARTS.items():
            setattr(owner, name, self._timed(part, getattr(owner, name)))

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 # whatever the function takes
            began = time.thread_time()
            result = function(*arguments, **options)
            self.seconds[part] += time.thread_time() - began
            return result

        return timed


def measure(directory: Path, requests: int, repetitions: int, *, by_part: bool) -> EmptyStep:
    """The median of some runs of so many requests, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, directory, requests, repetitions, by_part=by_part).result()


def _measure(directory: Path, requests: int, repetitions: int, *, by_part: bool) -> EmptyStep:
    """`measure` in this process, which is of no use for anything else afterwards."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `m3-worker` does
    model, stopwatch = EmptyModel(), Stopwatch()
    model.install()
    if by_part:
        stopwatch.install()
    settings = WorkerSettings(model=directory, device="cpu", cache_tokens=2**17)
    engine = load_served_model(settings, lambda _read, _needed: None).engine
    factory = loop_factory()
    loop = factory() if factory is not None else asyncio.new_event_loop()
    engine.start(loop)
    runs = []
    for repetition in range(repetitions + 1):  # the first one warms up
        model.calls.clear()
        stopwatch.seconds = dict.fromkeys(PARTS, 0.0)
        began = time.thread_time()
        loop.run_until_complete(_answer(engine, requests, repetition))
        loop_seconds = time.thread_time() - began
        runs.append(_result(model.calls, loop_seconds, stopwatch.seconds if by_part else {}))
    engine.stop()
    engine.join()
    loop.close()
    return sorted(runs[1:], key=lambda run: run.median_seconds)[repetitions // 2]


async def _answer(engine: Engine, requests: int, repetition: int) -> None:
    """Greedy requests, submitted at once, each read by a task of its own."""

    async def one(number: int) -> None:
        sampling = SamplingParameters(max_tokens=OUTPUT_TOKENS, temperature=0.0, stop_token_ids=frozenset({1}))
        prompt = [(number * 31 + repetition * 7 + place) % 256 for place in range(PROMPT_TOKENS + number)]
        request = Request(f"{repetition}-{number}", prompt, sampling, arrival_seconds=time.monotonic())
        stream = engine.submit(request)
        while (await stream.take())[-1].finish_reason is None:
            pass

    await asyncio.gather(*(one(number) for number in range(requests)))


def _result(calls: Sequence[tuple[float, float]], loop_seconds: float, parts: Mapping[str, float]) -> EmptyStep:
    steady = calls[SETTLING_STEPS:-SETTLING_STEPS]
    clock, thread = ([after[of] - before[of] for before, after in pairwise(steady)] for of in (0, 1))
    windows = [sum(clock[at : at + WINDOW_STEPS]) / WINDOW_STEPS for at in range(len(clock) - WINDOW_STEPS)]
    return EmptyStep(
        median_seconds=median(clock),
        least_seconds=min(windows),
        engine_seconds=median(thread),
        loop_seconds=loop_seconds / len(calls),
        parts={part: seconds / len(calls) for part, seconds in parts.items()},
    )


def empty_step_lines(directory: Path, requests: Sequence[int], repetitions: int) -> Iterator[str]:
    """A line for each number of requests, as Markdown."""
    for number in requests:
        step = measure(directory, number, repetitions, by_part=False)
        parts = measure(directory, number, repetitions, by_part=True).parts
        shares = ", ".join(f"{part} {micro(seconds)}" for part, seconds in parts.items())
        yield (
            f"- A step with an empty model, {number} requests: **{micro(step.median_seconds)} us**, "
            f"{micro(step.least_seconds)} us in the quietest {WINDOW_STEPS} steps. CPU time: engine's thread "
            f"{micro(step.engine_seconds)} us, event loop {micro(step.loop_seconds)} us. The former under a "
            f"stopwatch: {shares}."
        )


def micro(seconds: float) -> str:
    """Microseconds, rounded."""
    return f"{seconds * 1e6:.0f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what a step of the engine costs beside the model.")
    parser.add_argument("--requests", default="1,16,64")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="m3-empty-step-") as name:
        write_model(Path(name), 2**17)
        for line in empty_step_lines(Path(name), tuple(map(int, arguments.requests.split(","))), arguments.repetitions):
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
