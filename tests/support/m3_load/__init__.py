"""Requests that keep coming while a test does something to the system, and what became of each."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import openai

__all__ = ["Load", "Outcome", "steady_load"]


@dataclass(frozen=True)
class Outcome:
    """One request: when it ran (monotonic seconds), which worker answered, and how it failed (None: it did not)."""

    started: float
    ended: float
    worker: str | None
    error: openai.OpenAIError | None


@dataclass
class Load:
    """Requests in flight and done. Read `outcomes` after the load has stopped."""

    outcomes: list[Outcome] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    crashes: list[BaseException] = field(default_factory=list)
    """What is neither an answer nor an error of the SDK: such a load proves nothing."""

    def answered_since(self, moment: float) -> set[str]:
        """The workers that have answered requests which started after `moment`."""
        return {o.worker for o in tuple(self.outcomes) if o.error is None and o.worker and o.started > moment}

    def await_count(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Returns when the condition holds; asserts that it does so in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert not self.crashes, self.crashes
            assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
            self.stopping.wait(0.1)


@contextmanager
def steady_load(client: openai.OpenAI, model: str, *, streams: int, max_tokens: int) -> Iterator[Load]:
    """`streams` clients that each send one streamed chat after another until the block is left.

    No two prompts are alike, since equal ones are sent to the worker that has them cached.
    """
    load = Load()
    numbers = itertools.count()

    def ask() -> None:
        while not load.stopping.is_set():
            try:
                load.outcomes.append(_one_chat(client, model, max_tokens, next(numbers)))
            except BaseException as crash:  # noqa: BLE001 - a thread's exception would be lost
                load.crashes.append(crash)
                return

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(streams)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stopping.set()
        for thread in threads:
            thread.join(timeout=120)
    assert not load.crashes, load.crashes
    assert not any(thread.is_alive() for thread in threads), "a request hangs"


def _one_chat(client: openai.OpenAI, model: str, max_tokens: int, number: int) -> Outcome:
    started, worker = time.monotonic(), None
    try:
        with client.chat.completions.with_streaming_response.create(
            model=model,
            messages=[{"role": "user", "content": f"{number}: tell me something."}],
            max_tokens=max_tokens,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as response:
            worker = response.headers.get("x-m3-worker")
            finishes = [chunk.choices[0].finish_reason for chunk in response.parse() if chunk.choices]
        assert finishes, "a stream without a chunk"
        assert finishes[-1] == "length", f"a stream that ended in silence: {finishes[-1]}"
    except openai.OpenAIError as error:
        return Outcome(started, time.monotonic(), worker, error)
    return Outcome(started, time.monotonic(), worker, None)
