"""`POST /v1/completions`: prompts as text or as token ids, and what follows each.

Owns OpenAI's completion objects, with vLLM's `return_token_ids`. Several prompts of one request, and `n` answers to
each, are choices of one response: choice `i * n + j` is answer j to prompt i.
"""

import time
import uuid
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from m3_worker.api.choices import Choices, best, seeded
from m3_worker.api.errors import ApiError, json_response, shown
from m3_worker.api.fields import MAX_CHOICES, MAX_LOGPROBS, ChoiceCount, GenerationFields, parse_fields
from m3_worker.api.generation import Delta, Generation
from m3_worker.api.incoming import INLINE_BYTES, Incoming, off_loop, receive_request
from m3_worker.api.streams import EventStream, whole_answer
from m3_worker.api.structured import StructuredFields
from m3_worker.scheduling.request import SampledToken, SamplingParameters
from m3_worker.serving import ServedModel, WorkerState
from m3_worker.tokenizer import Tokenizer


class CompletionFields(GenerationFields, StructuredFields):
    """The body of `POST /v1/completions`."""

    prompt: Any
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    n: ChoiceCount | None = 1
    best_of: ChoiceCount | None = None
    """How many answers are made to each prompt, of which the best n are given."""
    echo: bool | None = False
    """Whether each text begins with its prompt."""
    add_special_tokens: bool | None = True
    """Whether the tokenizer adds what it adds around a text; it has no effect on token ids."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "CompletionFields":
        if self.candidates < self.answers:
            raise ValueError(f"best_of is {self.best_of}: must be at least n, which is {self.answers}")
        if self.stream and self.candidates > self.answers:
            raise ValueError("best_of cannot be streamed: which answers are best is known in the end")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs is not supported: prompts have no log probabilities here")
        return self

    @property
    def answers(self) -> int:
        """Answers given to each prompt."""
        return self.n or 1

    @property
    def candidates(self) -> int:
        """Answers made to each prompt."""
        return self.best_of or self.answers


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt, and how its answers are chosen."""

    token_ids: list[int]
    text: str
    """What `echo` repeats; "" if it is not asked for."""
    sampling: SamplingParameters


def completion_routes(state: WorkerState) -> APIRouter:
    """The routes of this dialect."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        incoming = await receive_request(request, state)
        compiles = not StructuredFields.structured_fields.isdisjoint(incoming.body)
        fields, prompts = await off_loop(INLINE_BYTES + 1 if compiles else incoming.body_bytes, _prepare, incoming)
        choices = Choices.start(
            partial(
                Generation,
                incoming.model,
                prompt.token_ids,
                seeded(prompt.sampling, number),
                fields.stops,
                incoming.priority,
                cache_salt=incoming.cache_salt,
                usage_record=incoming.usage_record,
            )
            for prompt in prompts
            for number in range(fields.candidates)
        )
        answer = _Answer(fields, prompts, choices)
        if fields.stream:
            return EventStream(choices, answer.chunks, answer.usage_chunk if fields.streams_usage else None)
        return await whole_answer(choices, request.receive, answer.whole)

    return router


def prompt_token_ids(prompt: object, model: ServedModel, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a prompt: a text, a list of token ids, or a list with one of these. Raises ApiError 400."""
    prompts = _prompts(prompt)
    if len(prompts) > 1:
        raise _prompt_error(f"has {len(prompts)} prompts: only one is taken here")
    return _token_ids(prompts[0], model, add_special_tokens=add_special_tokens)


def _prompts(prompt: object) -> list[object]:
    """The prompts of a request, each a text or a list of token ids if it is right."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return prompt
    return [prompt]


def _token_ids(prompt: object, model: ServedModel, *, add_special_tokens: bool) -> list[int]:
    if isinstance(prompt, str):
        token_ids = model.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
    elif isinstance(prompt, list) and set(map(type, prompt)) <= {int}:
        token_ids = prompt
        try:
            outside = (
                [] if not prompt else [edge for edge in (min(prompt), max(prompt)) if not 0 <= edge < model.vocab_size]
            )
        except OverflowError:
            outside = prompt[:1]
        if outside:
            raise _prompt_error(f"has the token id {outside[0]}: ids are 0 to {model.vocab_size - 1}")
    else:
        raise _prompt_error(f"is {shown(prompt)}: must be a string or a list of token ids")
    if not token_ids:
        raise _prompt_error("is empty: it must have at least one token")
    return token_ids


def _prompt_error(fault: str) -> ApiError:
    return ApiError(400, f"prompt {fault}", param="prompt", code="invalid_value")


def _prepare(incoming: Incoming) -> tuple[CompletionFields, list[_Prompt]]:
    model = incoming.model
    fields = parse_fields(CompletionFields, incoming.body)
    prompts = _prompts(fields.prompt)
    if len(prompts) * fields.candidates > MAX_CHOICES:
        raise _prompt_error(f"has {len(prompts)} prompts, {fields.candidates} answers to each: {MAX_CHOICES} in all")
    grammar = fields.compiled(model)
    logprobs = 0 if fields.logprobs is None and fields.candidates > fields.answers else fields.logprobs
    prepared = []
    for prompt in prompts:
        token_ids = _token_ids(prompt, model, add_special_tokens=fields.add_special_tokens is not False)
        sampling = fields.sampling(model, len(token_ids), logprobs, grammar)
        text = (prompt if isinstance(prompt, str) else model.tokenizer.decode(token_ids)) if fields.echo else ""
        prepared.append(_Prompt(token_ids, text, sampling))
    return fields, prepared


class _Answer:
    """Writes the choices down as completion objects."""

    def __init__(self, fields: CompletionFields, prompts: list[_Prompt], choices: Choices) -> None:
        self._fields = fields
        self._choices = choices
        self._writers = [
            _ChoiceWriter(fields, number * fields.answers + answer, prompt, choices.generations[0].model.tokenizer)
            for number, prompt in enumerate(prompts)
            for answer in range(fields.answers)
        ]
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": choices.generations[0].model.name,
        }

    def whole(self, deltas: list[Delta]) -> Response:
        given = [writer.write(delta) for writer, delta in zip(self._writers, self._best(deltas), strict=True)]
        body = {**self._head, "choices": given, "usage": self._choices.usage()}
        return json_response(body, headers=self._choices.headers())

    def chunks(self, parts: list[tuple[int, Delta]]) -> Iterator[dict[str, Any]]:
        wants_tokens = self._fields.return_token_ids or self._fields.logprobs is not None
        for index, delta in parts:
            if delta.text or delta.finish_reason is not None or wants_tokens:
                yield {**self._head, "choices": [self._writers[index].write(delta)]}

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": self._choices.usage()}

    def _best(self, deltas: list[Delta]) -> Iterable[Delta]:
        """Of each prompt's candidates the answers that are given."""
        candidates, answers = self._fields.candidates, self._fields.answers
        if candidates == answers:
            return deltas
        starts = range(0, len(deltas), candidates)
        return [delta for start in starts for delta in best(deltas[start : start + candidates], answers)]


class _ChoiceWriter:
    """Writes one choice down, whole or part by part."""

    def __init__(self, fields: CompletionFields, index: int, prompt: _Prompt, tokenizer: Tokenizer) -> None:
        self._fields = fields
        self._index = index
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._is_first = True
        self._text_offset = 0

    def write(self, delta: Delta) -> dict[str, Any]:
        """The choice's object for the next part."""
        choice: dict[str, Any] = {
            "index": self._index,
            "text": self._prompt.text + delta.text if self._is_first else delta.text,
            "logprobs": self._logprobs(delta.tokens),
            "finish_reason": delta.finish_reason,
        }
        if self._fields.return_token_ids:
            if self._is_first:
                choice["prompt_token_ids"] = self._prompt.token_ids
            choice["token_ids"] = [token.token_id for token in delta.tokens]
        self._is_first = False
        return choice

    def _logprobs(self, tokens: list[SampledToken]) -> dict[str, Any] | None:
        if self._fields.logprobs is None:
            return None
        texts = [self._tokenizer.token_text(token.token_id) for token in tokens]
        offsets = array("q")
        for text in texts:
            offsets.append(self._text_offset)
            self._text_offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {
                    self._tokenizer.token_text(one): value
                    for one, value in (*token.top_logprobs, (token.token_id, token.logprob))
                }
                for token in tokens
            ],
            "text_offset": list(offsets),
        }
