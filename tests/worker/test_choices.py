"""Choices: several answers side by side, each told by its index, counted once each, and given up together."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from m3_worker.api.choices import Choices, best, seeded
from m3_worker.api.errors import ApiError
from m3_worker.api.generation import Delta
from m3_worker.scheduling.request import FinishReason, SampledToken, SamplingParameters
from m3_worker.token_stream import EngineFailedError


class Scripted:
    """Stands for a Generation: its deltas are those of a list, and each waits for its turn."""

    def __init__(self, prompt: list[int], texts: list[str], cached_tokens: int = 0) -> None:
        self.prompt_token_ids = prompt
        self.cached_tokens = cached_tokens
        self.completion_tokens = 0
        self.is_finished = False
        self.is_closed = False
        self.turn = asyncio.Semaphore(0)
        self._texts: Iterator[str] = iter(texts)
        self._left = len(texts)

    async def next(self) -> Delta:
        await self.turn.acquire()
        text = next(self._texts)
        if text == "fail":
            raise EngineFailedError("it broke")
        if text == "refuse":
            raise ApiError(400, "no")
        self._left -= 1
        self.completion_tokens += 1
        self.is_finished = self._left == 0
        return Delta(text, [SampledToken(1)], FinishReason.STOP if self.is_finished else None)

    def close(self) -> None:
        self.is_closed = True


def choices(*generations: Scripted) -> Choices:
    return Choices(generations)  # type: ignore[arg-type] # stands for it


def texts(parts: list[tuple[int, Delta]]) -> list[tuple[int, str]]:
    return [(index, delta.text) for index, delta in parts]


def test_whoever_has_something_new_is_heard_and_nobody_twice() -> None:
    async def scenario() -> None:
        first, second, third = (Scripted([1], [f"{name}1", f"{name}2"]) for name in "abc")
        several = choices(first, second, third)
        second.turn.release()
        assert texts(await several.next()) == [(1, "b1")]
        for one in (third, first):
            one.turn.release()
        got = texts(await several.next())
        if len(got) == 1:
            got += texts(await several.next())
        assert sorted(got) == [(0, "a1"), (2, "c1")]
        second.turn.release()
        assert texts(await several.next()) == [(1, "b2")]
        assert not several.is_finished
        first.turn.release()
        third.turn.release()
        assert [delta.text for delta in await several.collect()] == ["a2", "", "c2"]
        assert several.is_finished

    asyncio.run(scenario())


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("fault", "status"), [("fail", 500), ("refuse", 400)])
def test_one_that_fails_fails_the_request(count: int, fault: str, status: int) -> None:
    async def scenario() -> None:
        generations = [Scripted([1], ["x"] * 9) for _ in range(count - 1)] + [Scripted([1], ["y", fault])]
        several = choices(*generations)
        for _ in range(2):
            generations[-1].turn.release()
        with pytest.raises(ApiError) as caught:
            await several.collect()
        assert caught.value.status == status
        several.close()
        await asyncio.sleep(0)
        assert all(one.is_closed for one in generations)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_a_prompt_is_counted_once_however_many_answers_it_has() -> None:
    shared, other = [1, 2, 3], [1, 2, 3]
    generations = [Scripted(shared, []), Scripted(shared, [], cached_tokens=2), Scripted(other, [], cached_tokens=2)]
    for number, one in enumerate(generations):
        one.completion_tokens = 10 + number
    several = choices(*generations)
    assert several.usage() == {
        "prompt_tokens": 6,
        "completion_tokens": 33,
        "total_tokens": 39,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert several.headers() == {"x-m3-input-tokens": "6"}


def test_what_was_started_is_given_up_if_a_later_one_is_refused() -> None:
    started = [Scripted([1], []), Scripted([1], [])]

    def refuse() -> Any:
        raise ApiError(429, "full")

    starts: list[Callable[[], Any]] = [lambda: started[0], lambda: started[1], refuse]
    with pytest.raises(ApiError, match="full"):
        Choices.start(starts)
    assert all(one.is_closed for one in started)


def test_the_best_have_the_highest_mean_log_probability() -> None:
    def answer(*logprobs: float) -> Delta:
        return Delta("", [SampledToken(0, logprob) for logprob in logprobs])

    answers = [answer(-1.0, -1.0), answer(-0.6, -0.6, -0.6), answer(-2.0), answer(-0.5, -0.7, -0.6)]
    assert best(answers, 2) == [answers[1], answers[3]]
    assert best(answers, 4)[-1] is answers[2]


def test_of_several_that_fail_together_all_are_taken_note_of(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        generations = [Scripted([1], ["fail"]) for _ in range(3)]
        several = choices(*generations)
        for one in generations:
            one.turn.release()
        with pytest.raises(EngineFailedError):
            await several.next()
        several.close()

    asyncio.run(scenario())
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_seed_gives_each_answer_its_own() -> None:
    sampling = SamplingParameters(max_tokens=1, seed=5)
    assert [seeded(sampling, index).seed for index in range(3)] == [5, 6, 7]
    assert seeded(SamplingParameters(max_tokens=1), 2).seed is None
