"""What the newest requests have used, for whoever could not read it off their answers: aborted ones too.

Owns the records: one for each HTTP request that named itself, kept in memory for a while after it has ended. A router
that loses its client, or dies and is started again, settles its bill by them. Belongs to the event loop.

What counts as used: the prompt, once however many answers it gets, and every token that came to the answer in time.
Of a request that was aborted before its first token, the part of the prompt that was computed or found in the cache.
"""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Protocol

MAX_RECORDS = 16_384
MAX_NAME_CHARACTERS = 128


class Counted(Protocol):
    """One answer while it is made."""

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt; answers to one prompt share the list."""

    @property
    def prefilled_tokens(self) -> int:
        """Prompt tokens in the cache, computed or found."""

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were found in the cache."""

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer."""


@dataclass(frozen=True, slots=True)
class UsedTokens:
    """Counts of one request."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class UsageRecord:
    """One request. It has ended when it was left and everything that it holds has been told."""

    def __init__(self, request_id: str, attempt: str) -> None:
        self.request_id = request_id
        self.attempt = attempt
        self._answers: list[Counted] = []
        self._prompt_tokens = 0  # of what has no answers
        self._used: UsedTokens | None = None  # once it has ended
        self._is_left = False
        self._holds = 0
        self._has_ended = asyncio.Event()

    @property
    def is_ended(self) -> bool:
        """Whether its counts are final."""
        return self._used is not None

    @property
    def used(self) -> UsedTokens:
        """Its counts, until now or for good."""
        return self._used if self._used is not None else self._counted()

    def add(self, answer: Counted) -> None:
        """An answer is begun."""
        self._answers.append(answer)

    def add_prompt_tokens(self, tokens: int) -> None:
        """Tokens were computed that are nobody's answer, as embeddings are."""
        self._prompt_tokens += tokens

    def hold(self) -> None:
        """A count is on its way from the engine; `release` says that it has come."""
        self._holds += 1

    def release(self) -> None:
        """It has come."""
        self._holds -= 1
        self._end_if_over()

    def leave(self) -> None:
        """The request is over, whatever its end was."""
        self._is_left = True
        self._end_if_over()

    async def wait_until_ended(self, seconds: float) -> None:
        """Until its counts are final, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_ended.wait()

    def _end_if_over(self) -> None:
        if self._is_left and not self._holds and self._used is None:
            self._used = self._counted()
            self._answers.clear()
            self._has_ended.set()

    def _counted(self) -> UsedTokens:
        prompts: dict[int, tuple[int, int]] = {}  # by the list of its tokens: prefilled, cached
        for answer in self._answers:
            # What the cache gave to a later answer is the work of the first.
            prefilled, cached = prompts.get(id(answer.prompt_token_ids), (0, answer.cached_tokens))
            prompts[id(answer.prompt_token_ids)] = max(prefilled, answer.prefilled_tokens), cached
        return UsedTokens(
            self._prompt_tokens + sum(prefilled for prefilled, _ in prompts.values()),
            sum(cached for _, cached in prompts.values()),
            sum(answer.completion_tokens for answer in self._answers),
        )


class UsageRecords:
    """The newest requests, by id and attempt."""

    def __init__(self, max_records: int = MAX_RECORDS) -> None:
        self._max_records = max_records
        self._newest: deque[UsageRecord] = deque()
        self._by_id: dict[str, dict[str, UsageRecord]] = {}  # by request id, then by attempt

    def begin(self, request_id: str, attempt: str) -> UsageRecord:
        """A request has come. One whose names are too long to be kept, or that comes again, is told of no more."""
        record = UsageRecord(request_id, attempt)
        if max(len(request_id), len(attempt)) > MAX_NAME_CHARACTERS:
            return record
        self._newest.append(record)
        self._by_id.setdefault(request_id, {})[attempt] = record
        while len(self._newest) > self._max_records:
            self._drop(self._newest.popleft())
        return record

    def find(self, request_id: str, attempt: str | None) -> list[UsageRecord]:
        """The records of a request, the oldest attempt first; of one attempt if it is named."""
        attempts = self._by_id.get(request_id, {})
        if attempt is None:
            return list(attempts.values())
        return [attempts[attempt]] if attempt in attempts else []

    def _drop(self, record: UsageRecord) -> None:
        attempts = self._by_id.get(record.request_id, {})
        if attempts.get(record.attempt) is record:
            del attempts[record.attempt]
            if not attempts:
                del self._by_id[record.request_id]
