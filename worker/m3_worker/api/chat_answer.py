"""Answers as OpenAI's chat completion objects, whole and in chunks.

Owns their form: `reasoning_content` beside `content` and never both in one delta, `tool_calls` whose first delta has id
and name and whose arguments follow as fragments, log probabilities, vLLM's `return_token_ids`.
"""

import time
import uuid
from collections.abc import Iterator
from typing import Any, assert_never

from starlette.responses import Response

from m3_worker.api.chat_request import ChatFields
from m3_worker.api.choices import Choices
from m3_worker.api.errors import json_response
from m3_worker.api.generation import Delta
from m3_worker.chat.prompt import PreparedChat
from m3_worker.chat.turn import Content, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart, TurnEvent
from m3_worker.scheduling.request import FinishReason, SampledToken
from m3_worker.tokenizer import Tokenizer

Json = dict[str, Any]

TOOL_CALLS = "tool_calls"
"""The finish reason of a turn that the model ended after calling tools."""


class ChatAnswer:
    """Writes the choices of one request down."""

    def __init__(self, fields: ChatFields, chat: PreparedChat, choices: Choices) -> None:
        model = choices.generations[0].model
        self._choices = choices
        self._prompt_token_ids = chat.token_ids if fields.return_token_ids else None
        self._writers = [
            _ChoiceWriter(fields, index, chat, model.tokenizer) for index in range(len(choices.generations))
        ]
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model.name}
        self._is_first = True

    def whole(self, deltas: list[Delta]) -> Response:
        """The response of all answers."""
        given = [writer.whole(delta) for writer, delta in zip(self._writers, deltas, strict=True)]
        body: Json = {"object": "chat.completion", **self._head, "choices": given, "usage": self._choices.usage()}
        if self._prompt_token_ids is not None:
            body["prompt_token_ids"] = self._prompt_token_ids
        return json_response(body, headers=self._choices.headers())

    def chunks(self, parts: list[tuple[int, Delta]]) -> Iterator[Json]:
        """The chunks of what came."""
        for index, delta in parts:
            for choice in self._writers[index].parts(delta):
                chunk: Json = {"object": "chat.completion.chunk", **self._head, "choices": [choice]}
                if self._is_first and self._prompt_token_ids is not None:
                    chunk["prompt_token_ids"] = self._prompt_token_ids
                self._is_first = False
                yield chunk

    def usage_chunk(self) -> Json:
        """The last chunk, if it was asked for."""
        return {"object": "chat.completion.chunk", **self._head, "choices": [], "usage": self._choices.usage()}


class _ChoiceWriter:
    """Writes one choice down, whole or part by part."""

    def __init__(self, fields: ChatFields, index: int, chat: PreparedChat, tokenizer: Tokenizer) -> None:
        self._fields = fields
        self._index = index
        self._parser = chat.parser()
        self._tokenizer = tokenizer
        self._is_first = True
        self._calls_ended = 0

    def whole(self, delta: Delta) -> Json:
        """The choice as a whole."""
        reasoning, content, calls = "", "", list[Json]()
        for event in self._events(delta):
            match event:
                case Reasoning(text):
                    reasoning += text
                case Content(text):
                    content += text
                case ToolCallStart(_, identity, name):
                    function = {"name": name, "arguments": ""}
                    calls.append({"id": identity, "type": "function", "function": function})
                case ToolCallArguments(index, fragment):
                    calls[index]["function"]["arguments"] += fragment
                case ToolCallEnd():
                    pass
                case _:
                    assert_never(event)
        message: Json = {"role": "assistant"}
        if reasoning:
            message["reasoning_content"] = reasoning
        message["content"] = content if content or not calls else None
        if calls:
            message["tool_calls"] = calls
        choice = {
            "index": self._index,
            "message": message,
            "logprobs": self._logprobs(delta.tokens),
            "finish_reason": self._finish_reason(delta),
        }
        if self._fields.return_token_ids:
            choice["token_ids"] = [token.token_id for token in delta.tokens]
        return choice

    def parts(self, delta: Delta) -> Iterator[Json]:
        """The choice's part of each chunk; tokens stand with the last of a delta's."""
        if self._is_first:
            self._is_first = False
            yield self._part({"role": "assistant", "content": ""})
        pieces = [piece for piece in map(_piece, self._events(delta)) if piece]
        wants_tokens = self._fields.return_token_ids or self._fields.logprobs
        if not pieces and (wants_tokens or delta.finish_reason is not None):
            pieces.append({})
        for place, piece in enumerate(pieces):
            part = self._part(piece)
            tokens = delta.tokens if place == len(pieces) - 1 else []
            if place == len(pieces) - 1:
                part["finish_reason"] = self._finish_reason(delta)
            part["logprobs"] = self._logprobs(tokens)
            if self._fields.return_token_ids:
                part["token_ids"] = [token.token_id for token in tokens]
            yield part

    def _part(self, delta: Json) -> Json:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _events(self, delta: Delta) -> list[TurnEvent]:
        events = self._parser.push(delta.text)
        if delta.finish_reason is not None:
            events += self._parser.finish(was_cut=delta.finish_reason is FinishReason.LENGTH)
        self._calls_ended += sum(isinstance(event, ToolCallEnd) for event in events)
        return events

    def _finish_reason(self, delta: Delta) -> str | None:
        if delta.finish_reason is FinishReason.STOP and self._calls_ended:
            return TOOL_CALLS
        return delta.finish_reason

    def _logprobs(self, tokens: list[SampledToken]) -> Json | None:
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

    def _logprob(self, token_id: int, value: float | None) -> Json:
        return {
            "token": self._tokenizer.token_text(token_id),
            "logprob": value,
            "bytes": list(self._tokenizer.token_bytes(token_id)),
        }


def _piece(event: TurnEvent) -> Json:
    """An event as a delta; the end of a call is no news to OpenAI's clients."""
    match event:
        case Reasoning(text):
            return {"reasoning_content": text}
        case Content(text):
            return {"content": text}
        case ToolCallStart(index, identity, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": identity, "type": "function", "function": function}]}
        case ToolCallArguments(index, fragment):
            return {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}
        case ToolCallEnd():
            return {}
        case _:
            assert_never(event)
