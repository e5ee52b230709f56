"""`POST /v1/completions`: a prompt as text or as token ids, and what follows it.

Owns OpenAI's completion objects, with vLLM's `return_token_ids`. One prompt a request; `echo` is not supported.
"""

import time
import uuid
from array import array
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from m3_worker.api.errors import ApiError, json_response, shown
from m3_worker.api.fields import MAX_LOGPROBS, GenerationFields, parse_fields
from m3_worker.api.generation import Delta, Generation
from m3_worker.api.incoming import Incoming, off_loop, receive_request
from m3_worker.api.streams import EventStream, whole_answer
from m3_worker.request import SampledToken, SamplingParameters
from m3_worker.serving import ServedModel, WorkerState
from m3_worker.tokenizer import Tokenizer


class CompletionFields(GenerationFields):
    """The body of `POST /v1/completions`."""

    prompt: Any
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool | None = True
    """Whether the tokenizer adds what it adds around a text; it has no effect on token ids."""


def completion_routes(state: WorkerState) -> APIRouter:
    """The routes of this dialect."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        incoming = await receive_request(request, state)
        fields, token_ids, sampling = await off_loop(incoming.body_bytes, _prepare, incoming)
        generation = Generation(incoming.model, token_ids, sampling, fields.stops, incoming.priority)
        answer = _Answer(fields, generation)
        if fields.stream:
            return EventStream(generation, answer.chunks, answer.usage_chunk if fields.streams_usage else None)
        return await whole_answer(generation, request.receive, answer.whole)

    return router


def prompt_token_ids(prompt: object, model: ServedModel, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a prompt: a text, a list of token ids, or a list with one of these. Raises ApiError 400."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise _prompt_error(f"has {len(prompt)} prompts: this version takes one a request")
        prompt = prompt[0]
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


def _prepare(incoming: Incoming) -> tuple[CompletionFields, list[int], SamplingParameters]:
    fields = parse_fields(CompletionFields, incoming.body)
    special = fields.add_special_tokens is not False
    token_ids = prompt_token_ids(fields.prompt, incoming.model, add_special_tokens=special)
    return fields, token_ids, fields.sampling(incoming.model, len(token_ids), fields.logprobs)


class _Answer:
    """Writes one generation down as completion objects."""

    def __init__(self, fields: CompletionFields, generation: Generation) -> None:
        self._fields = fields
        self._generation = generation
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": generation.model.name,
        }
        self._is_first = True
        self._text_offset = 0

    def whole(self, delta: Delta) -> Response:
        body = {**self._head, "choices": [self._choice(delta)], "usage": self._generation.usage()}
        return json_response(body, headers=self._generation.headers())

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        wants_tokens = self._fields.return_token_ids or self._fields.logprobs is not None
        if delta.text or delta.finish_reason is not None or wants_tokens:
            yield {**self._head, "choices": [self._choice(delta)]}

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": self._generation.usage()}

    def _choice(self, delta: Delta) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "text": delta.text,
            "logprobs": self._logprobs(delta.tokens),
            "finish_reason": delta.finish_reason,
        }
        if self._fields.return_token_ids:
            if self._is_first:
                choice["prompt_token_ids"] = self._generation.prompt_token_ids
            choice["token_ids"] = [token.token_id for token in delta.tokens]
        self._is_first = False
        return choice

    def _logprobs(self, tokens: list[SampledToken]) -> dict[str, Any] | None:
        if self._fields.logprobs is None:
            return None
        tokenizer: Tokenizer = self._generation.model.tokenizer
        texts = [tokenizer.token_text(token.token_id) for token in tokens]
        offsets = array("q")
        for text in texts:
            offsets.append(self._text_offset)
            self._text_offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {
                    tokenizer.token_text(one): value
                    for one, value in (*token.top_logprobs, (token.token_id, token.logprob))
                }
                for token in tokens
            ],
            "text_offset": list(offsets),
        }
