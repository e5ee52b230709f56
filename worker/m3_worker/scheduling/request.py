"""The nouns of the engine: a Request as it came in, its Sequence as it grows, and the tokens that it gains.

Owns what each of them holds and the one chain of inequalities between their counts. Decides nothing: who runs is the
scheduler's, which page is whose is pages', what is sampled is sampling's. Imports no torch, so that what decides can be
tested without it. What every sequence gets in every step is made by msgspec, in a tenth of a frozen dataclass' time.
"""

from array import array
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from m3_worker.grammar import Grammar, Matcher
from m3_worker.scheduling.prefix import Media, PageNames


class FinishReason(StrEnum):
    """Why a sequence ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How one request wants its tokens chosen, checked at the edge."""

    max_tokens: int
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is no limit."""
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    """The model's own end of sequence is among them, unless the request ignores it."""
    min_tokens: int = 0
    logprobs: int | None = None
    """Alternatives to report beside the chosen token's log probability; None reports nothing."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one's probability are not drawn."""
    repetition_penalty: float = 1.0
    """Of tokens in prompt and output; 1 is none."""
    frequency_penalty: float = 0.0
    """Of tokens in the output, for each time; 0 is none."""
    presence_penalty: float = 0.0
    """Of tokens in the output, once; 0 is none."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit); -100 forbids the token, 100 allows no other."""
    grammar: Grammar | None = None
    """What the answer must look like."""
    is_plain: bool = field(init=False, repr=False, compare=False)
    """Whether the likeliest token is all that is wanted: no draw, no report, nothing that bends a logit."""

    def __post_init__(self) -> None:
        is_plain = (
            self.temperature == 0
            and self.logprobs is None
            and self.min_tokens == 0
            and self.repetition_penalty == 1
            and self.frequency_penalty == self.presence_penalty == 0
            and not self.logit_bias
            and self.grammar is None
        )
        object.__setattr__(self, "is_plain", is_plain)


class MediaSpan(Media, Protocol):
    """An image or a video of a prompt, as far as scheduler and runner know it; `media` makes them."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """What the vision tower is given; items of one video share it."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches in time, height and width."""

    @property
    def first_row(self) -> int:
        """Which of the embeddings that are made of `pixels` its first placeholder takes."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and what is wanted of it."""

    id: str
    prompt_token_ids: SequenceOf[int]
    sampling: SamplingParameters
    priority: int = 0
    """Lower is served first."""
    arrival_seconds: float = 0.0
    """On the clock that the scheduler is given."""
    cache_salt: bytes = b""
    """Whose cached pages it may share: prompts of different salts never do."""
    adapter: str = ""
    """The weights' variant; part of what a cached page depends on."""
    media: tuple[MediaSpan, ...] = ()
    """In the order of the prompt."""
    pooling: Literal["mean", "last"] | None = None
    """If set, the request wants its prompt's final states pooled in this way, and no tokens."""
    client_id: str | None = None
    """What its client calls it; several requests may be called the same. Told with the pages that it fills."""


class SampledToken(msgspec.Struct, frozen=True, gc=False):
    """One token that a sequence gained; log probabilities are natural, of the model's own distribution."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """(token id, log probability), best first."""
    failure: str | None = None
    """Why no token could be chosen: the token means nothing then, and its sequence has ended."""
    embedding: tuple[float, ...] | None = None
    """Of a pooled request alone: the normalised vector. The token is its prompt's last then, not a sampled one."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A request's tokens and how many of them the cache holds.

    Between steps and within them:  0 <= computed_tokens <= total_tokens <= prompt_tokens + max_tokens.
    What is left to compute is total_tokens - computed_tokens: the whole prompt at first, after a preemption all that is
    known, and 1 while it decodes. A token is sampled by the step that computes the last of them.
    """

    request: Request
    id: str = field(init=False)
    sampling: SamplingParameters = field(init=False)
    """The request's."""
    token_ids: "array[int]" = field(init=False)
    prompt_tokens: int = field(init=False)
    final_tokens: int = field(init=False)
    """The most tokens it can come to hold."""
    computed_tokens: int = field(init=False, default=0)
    cached_tokens: int = field(init=False, default=0)
    """Prompt tokens that needed no computing when it was first admitted: their pages were in the cache."""
    standing: tuple[float, int] = field(init=False, default=(0.0, 0))
    """Deadline and order of arrival, by which the scheduler puts sequences in order; its alone."""
    admissions: int = field(init=False, default=0)
    preemptions: int = field(init=False, default=0)
    first_scheduled_seconds: float | None = field(init=False, default=None)
    last_token_seconds: float | None = field(init=False, default=None)
    page_names: PageNames | None = field(init=False, default=None)
    """Names of its full pages, made as pages needs them."""
    generator: Random = field(init=False)
    """Its own source, so that a seed gives the same tokens whatever else is in the batch."""
    matcher: Matcher | None = field(init=False, default=None)
    """Where it stands in its grammar, if it has one."""
    occurrences: object | None = field(init=False, default=None)
    """What penalties remember of it, made and read by them alone."""
    _stop_token_ids: frozenset[int] = field(init=False)
    pooled: object | None = field(init=False, default=None)
    """The sum of its states so far if they are to be pooled; `pooling`'s alone."""

    def __post_init__(self) -> None:
        self.id = self.request.id
        self.sampling = self.request.sampling
        self._stop_token_ids = self.sampling.stop_token_ids
        self.token_ids = array("q", self.request.prompt_token_ids)
        self.prompt_tokens = len(self.token_ids)
        self.final_tokens = self.prompt_tokens
        if self.request.pooling is None:
            self.final_tokens += self.sampling.max_tokens
        self.generator = Random(self.sampling.seed)  # noqa: S311 # sampling, not secrets
        if self.sampling.grammar is not None:
            self.matcher = self.sampling.grammar.matcher()
        self.check()

    @property
    def total_tokens(self) -> int:
        """Prompt and what has been generated."""
        return len(self.token_ids)

    @property
    def generated_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_tokens

    @property
    def remaining_tokens(self) -> int:
        """Tokens known and not computed."""
        return len(self.token_ids) - self.computed_tokens

    @property
    def is_decoding(self) -> bool:
        """All but the newest token are computed, and that one was generated."""
        return self.generated_tokens > 0 and self.remaining_tokens == 1

    def advance(self, computed: int) -> None:
        """Note that `computed` more of its tokens are in the cache, and that nothing was sampled."""
        self.computed_tokens += computed
        self.check()

    def append(self, token_id: int) -> FinishReason | None:
        """Add the token that was sampled when all before it were computed; returns why it is finished by it, if it is.

        Not for pooled sequences.
        """
        token_ids = self.token_ids
        self.computed_tokens = computed_tokens = len(token_ids)
        token_ids.append(token_id)
        if computed_tokens + 1 < self.final_tokens and token_id not in self._stop_token_ids and self.matcher is None:
            return None  # as nearly always
        self.check()
        if self.matcher is not None and self.matcher.failure is not None:
            return FinishReason.STOP
        if token_id in self._stop_token_ids and self.generated_tokens > self.sampling.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(token_ids) == self.final_tokens else None

    def admit(self, cached: int) -> None:
        """Note that it was given pages, of which the first hold `cached` of its tokens already."""
        self.computed_tokens = cached
        if not self.admissions:
            self.cached_tokens = cached
        self.admissions += 1
        self.check()

    def forget(self) -> None:
        """Its pages were taken: all it knows is to be computed again."""
        self.computed_tokens = 0
        self.preemptions += 1

    def check(self) -> None:
        """The chain of the docstring."""
        assert 0 <= self.computed_tokens <= self.total_tokens <= self.final_tokens, self  # noqa: S101 # a defect of ours

    def __repr__(self) -> str:
        return (
            f"Sequence({self.id}: computed {self.computed_tokens} of {self.total_tokens}, prompt {self.prompt_tokens}, "
            f"at most {self.final_tokens}, preempted {self.preemptions}x)"
        )


class TokenOutput(msgspec.Struct, frozen=True, gc=False):
    """What a step brought to one request. After a finish reason the engine knows the request no more."""

    request_id: str
    token: SampledToken
    finish_reason: FinishReason | None
    cached_tokens: int = 0
    """Tokens of the request's prompt that came from the prefix cache."""

    @property
    def embedding(self) -> tuple[float, ...] | None:
        """The pooled request's vector; None of any other."""
        return self.token.embedding
