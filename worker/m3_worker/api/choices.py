"""Several answers of one request (`n`, `best_of`, several prompts), made side by side and told apart by their index.

Owns the merging: whoever has something new is heard, usage counts a prompt once however many answers it gets, and
`best_of` keeps the best. Each answer is a Generation with its own seed; the engine knows nothing of the others.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Self

from m3_worker.api.generation import Delta, Generation, engine_failed
from m3_worker.scheduling.request import SamplingParameters
from m3_worker.token_stream import EngineFailedError


def seeded(sampling: SamplingParameters, index: int) -> SamplingParameters:
    """Parameters of the answer `index` of several: a seed gives each its own, reproducible one."""
    return sampling if index == 0 or sampling.seed is None else replace(sampling, seed=sampling.seed + index)


class Choices:
    """The answers of one request while they are made. Must be closed, finished or not."""

    def __init__(self, generations: Iterable[Generation]) -> None:
        """generations: at least one; their order is that of the indices. Answers to one prompt must share its list."""
        self.generations = list(generations)
        self._waiting: dict[asyncio.Task[Delta], int] = {}

    @classmethod
    def start(cls, starts: Iterable[Callable[[], Generation]]) -> Self:
        """Start one generation after the other; if one is refused, those before it are given up."""
        started: list[Generation] = []
        try:
            started.extend(start() for start in starts)
        except BaseException:
            for generation in started:
                generation.close()
            raise
        return cls(started)

    @property
    def is_finished(self) -> bool:
        """Whether each answer is."""
        return all(generation.is_finished for generation in self.generations)

    async def next(self) -> list[tuple[int, Delta]]:
        """Wait for the next tokens of any answer: (index, what came), by index, each index once.

        Raises EngineFailedError, and ApiError as Generation does.
        """
        if len(self.generations) == 1:
            return [(0, await self.generations[0].next())]
        waiting = set(self._waiting.values())
        for index, generation in enumerate(self.generations):
            if index not in waiting and not generation.is_finished:
                self._waiting[asyncio.ensure_future(generation.next())] = index
        await asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED)
        done = [task for task in self._waiting if task.done()]
        return sorted(((self._waiting.pop(task), task.result()) for task in done), key=_index)

    async def collect(self) -> list[Delta]:
        """Wait for all answers, whole, by index. Raises ApiError: 500 if the engine fails, or as Generation does."""
        whole = [Delta() for _ in self.generations]
        try:
            while not self.is_finished:
                for index, delta in await self.next():
                    whole[index].extend(delta)
        except EngineFailedError as error:
            raise engine_failed(error) from None
        return whole

    def close(self) -> None:
        """Give up what is unfinished: the client is gone."""
        for task in self._waiting:
            task.cancel()  # of one that failed already, this takes note: another's failure was told
        self._waiting.clear()
        for generation in self.generations:
            generation.close()

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object for what was generated so far: each prompt once, every answer that was made."""
        prompts = self._one_of_each_prompt()
        prompt_tokens = sum(len(generation.prompt_token_ids) for generation in prompts)
        completion_tokens = sum(generation.completion_tokens for generation in self.generations)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(generation.cached_tokens for generation in prompts)},
        }

    def headers(self) -> dict[str, str]:
        """What is known before the first byte."""
        tokens = sum(len(generation.prompt_token_ids) for generation in self._one_of_each_prompt())
        return {"x-m3-input-tokens": str(tokens)}

    def _one_of_each_prompt(self) -> list[Generation]:
        """The first answer to each: what the cache gave to later ones is the first one's work."""
        first: dict[int, Generation] = {}
        for generation in self.generations:
            first.setdefault(id(generation.prompt_token_ids), generation)
        return list(first.values())


def best(deltas: list[Delta], count: int) -> list[Delta]:
    """The `count` answers of highest mean log probability per token, best first; of equals the earlier.

    Every token must have its log probability. Source: OpenAI's `best_of` ("the highest log probability per token").
    """
    return sorted(deltas, key=_mean_logprob, reverse=True)[:count]


def _mean_logprob(delta: Delta) -> float:
    logprobs = [token.logprob or 0.0 for token in delta.tokens]
    return sum(logprobs) / max(len(logprobs), 1)


def _index(item: tuple[int, Delta]) -> int:
    return item[0]
