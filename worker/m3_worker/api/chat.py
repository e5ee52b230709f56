"""`POST /v1/chat/completions`: messages in, one assistant message out, with its thinking apart.

Owns OpenAI's chat objects, `reasoning_content` beside `content` (never both in one delta), vLLM's `return_token_ids`
and `chat_template_kwargs`, and MiniMax's `thinking`. Tools and images are refused by name in this version.
"""

import time
import uuid
from collections.abc import Iterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from m3_worker.api.errors import ApiError, json_response
from m3_worker.api.fields import MAX_LOGPROBS, GenerationFields, parse_fields
from m3_worker.api.generation import Delta, Generation
from m3_worker.api.incoming import Incoming, off_loop, receive_request
from m3_worker.api.streams import EventStream, whole_answer
from m3_worker.chat.conversation import ChatError
from m3_worker.chat.messages import check_messages
from m3_worker.chat.thinking import Segment, ThinkingSplitter
from m3_worker.request import SampledToken, SamplingParameters
from m3_worker.serving import ServedModel, WorkerState


class Thinking(BaseModel):
    """`thinking`: whether the model thinks before it answers."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["enabled", "disabled", "adaptive"]


class ChatFields(GenerationFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Any
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    chat_template_kwargs: dict[str, Any] | None = None
    thinking: Thinking | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatFields":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        limits = (self.max_tokens, self.max_completion_tokens)
        if None not in limits and limits[0] != limits[1]:
            raise ValueError(f"max_tokens is {limits[0]} and max_completion_tokens is {limits[1]}: give one of them")
        return self

    @property
    def asked_max_tokens(self) -> tuple[str, int | None]:
        """The field that limits the answer, and its value."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().asked_max_tokens

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the template is given beside the messages. Raises ApiError 400 if two fields disagree."""
        return template_variables(self.chat_template_kwargs, self.thinking)


def template_variables(kwargs: dict[str, Any] | None, thinking: Thinking | None) -> dict[str, Any]:
    """`chat_template_kwargs` with `thinking` as M3's `thinking_mode`. Raises ApiError 400 if they disagree."""
    variables = dict(kwargs or {})
    if thinking is not None and variables.setdefault("thinking_mode", thinking.type) != thinking.type:
        message = f"thinking.type is {thinking.type}, but chat_template_kwargs.thinking_mode is another: give one"
        raise ApiError(400, message, param="thinking", code="invalid_value")
    return variables


def chat_routes(state: WorkerState) -> APIRouter:
    """The routes of this dialect."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        incoming = await receive_request(request, state)
        fields, prompt, token_ids, sampling = await off_loop(incoming.body_bytes, _prepare, incoming)
        generation = Generation(incoming.model, token_ids, sampling, fields.stops, incoming.priority)
        answer = _Answer(fields, generation, ThinkingSplitter(prompt))
        if fields.stream:
            return EventStream(generation, answer.chunks, answer.usage_chunk if fields.streams_usage else None)
        return await whole_answer(generation, request.receive, answer.whole)

    return router


def render_prompt(messages: object, variables: dict[str, Any], model: ServedModel) -> str:
    """The text of a conversation's prompt, by the checkpoint's own template. Raises ApiError 400."""
    if model.template is None:
        raise ApiError(400, "the checkpoint has no chat template: use /v1/completions", code="no_chat_template")
    try:
        return model.template.render(check_messages(messages), variables)
    except ChatError as error:
        raise ApiError(400, str(error), param=error.param, code="invalid_value") from None


def _prepare(incoming: Incoming) -> tuple[ChatFields, str, list[int], SamplingParameters]:
    fields = parse_fields(ChatFields, incoming.body)
    prompt = render_prompt(fields.messages, fields.template_variables, incoming.model)
    token_ids = incoming.model.tokenizer.encode(prompt, add_special_tokens=False)
    logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
    return fields, prompt, token_ids, fields.sampling(incoming.model, len(token_ids), logprobs)


class _Answer:
    """Writes one generation down as chat completion objects."""

    def __init__(self, fields: ChatFields, generation: Generation, splitter: ThinkingSplitter) -> None:
        self._fields = fields
        self._generation = generation
        self._splitter = splitter
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._is_first = True

    def whole(self, delta: Delta) -> Response:
        segments = self._segments(delta)
        reasoning = "".join(segment.text for segment in segments if segment.kind == "reasoning")
        message: dict[str, Any] = {"role": "assistant"}
        if reasoning:
            message["reasoning_content"] = reasoning
        message["content"] = "".join(segment.text for segment in segments if segment.kind == "content")
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(delta.tokens),
            "finish_reason": delta.finish_reason,
        }
        body = {**self._head("chat.completion"), "choices": [choice], "usage": self._generation.usage()}
        if self._fields.return_token_ids:
            choice["token_ids"] = [token.token_id for token in delta.tokens]
            body["prompt_token_ids"] = self._generation.prompt_token_ids
        return json_response(body, headers=self._generation.headers())

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if self._is_first:
            self._is_first = False
            first = self._chunk({"role": "assistant", "content": ""})
            if self._fields.return_token_ids:
                first["prompt_token_ids"] = self._generation.prompt_token_ids
            yield first
        pieces: list[dict[str, Any]] = [
            {"reasoning_content" if segment.kind == "reasoning" else "content": segment.text}
            for segment in self._segments(delta)
        ]
        wants_tokens = self._fields.return_token_ids or self._fields.logprobs
        if not pieces and (wants_tokens or delta.finish_reason is not None):
            pieces.append({})
        for place, piece in enumerate(pieces):
            chunk = self._chunk(piece)
            choice = chunk["choices"][0]
            is_last = place == len(pieces) - 1
            if is_last:
                choice["finish_reason"] = delta.finish_reason
            if self._fields.logprobs:
                choice["logprobs"] = self._logprobs(delta.tokens if is_last else [])
            if self._fields.return_token_ids:
                choice["token_ids"] = [token.token_id for token in delta.tokens] if is_last else []
            yield chunk

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self._generation.usage()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._generation.model.name}

    def _chunk(self, delta: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _segments(self, delta: Delta) -> list[Segment]:
        segments = self._splitter.push(delta.text)
        return segments + self._splitter.finish() if delta.finish_reason is not None else segments

    def _logprobs(self, tokens: list[SampledToken]) -> dict[str, Any] | None:
        if not self._fields.logprobs:
            return None
        return {
            "content": [
                {
                    **self._logprob(token.token_id, token.logprob),
                    "top_logprobs": [self._logprob(one, value) for one, value in token.top_logprobs],
                }
                for token in tokens
            ]
        }

    def _logprob(self, token_id: int, value: float | None) -> dict[str, Any]:
        tokenizer = self._generation.model.tokenizer
        return {
            "token": tokenizer.token_text(token_id),
            "logprob": value,
            "bytes": list(tokenizer.token_bytes(token_id)),
        }
