"""What the mock engine says in each dialect: whole answers, and the events of streamed ones.

Owns the JSON alone. Every token is one event; `usage` comes where each API has it. Pure.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

COUNT_PATHS = ("/tokenize", "/v1/messages/count_tokens", "/v1/responses/input_tokens")  # nothing is generated there


@dataclass(frozen=True)
class Counts:
    """Tokens of one answer; the cached ones are a part of the input."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int

    @property
    def openai(self) -> Json:
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    @property
    def responses(self) -> Json:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
        }

    @property
    def messages(self) -> Json:
        return {
            "input_tokens": self.input_tokens - self.cached_tokens,
            "cache_read_input_tokens": self.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": self.output_tokens,
        }


def whole(path: str, model: str, counts: Counts | None) -> Json:
    """The body of an answer. counts: None leaves its usage out."""
    answer: Json
    if path == "/v1/messages":
        answer = {"id": "mock-1", "type": "message", "role": "assistant", "model": model}
        answer |= {"content": [{"type": "text", "text": "Hi."}], "stop_reason": "end_turn"}
        return answer if counts is None else answer | {"usage": counts.messages}
    if path == "/v1/responses":
        answer = {"id": "mock-1", "object": "response", "status": "completed", "model": model, "output": []}
        return answer if counts is None else answer | {"usage": counts.responses}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "text": "Hi.", "finish_reason": "stop"}
    answer = {"id": "mock-1", "object": "chat.completion", "created": 1_700_000_000, "model": model}
    answer["choices"] = [choice]
    return answer if counts is None else answer | {"usage": counts.openai}


def beginning(path: str, model: str, counts: Counts) -> Iterator[str]:
    """The events before the first token."""
    if path == "/v1/messages":
        message = {"id": "mock-1", "type": "message", "role": "assistant", "model": model, "content": []}
        message["usage"] = {**counts.messages, "output_tokens": 0}
        yield _named({"type": "message_start", "message": message})
        yield _named({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    elif path == "/v1/responses":
        yield _named({"type": "response.created", "response": {"id": "mock-1", "status": "in_progress"}})


def token(path: str, text: str) -> str:
    """The event of one token."""
    if path == "/v1/messages":
        return _named({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})
    if path == "/v1/responses":
        return _named({"type": "response.output_text.delta", "delta": text})
    choice = {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": None}
    return _plain({"id": "mock-1", "object": "chat.completion.chunk", "choices": [choice]})


def ending(path: str, counts: Counts | None, *, is_usage_asked: bool) -> Iterator[str]:
    """The events after the last token. counts: None leaves the usage out."""
    if path == "/v1/messages":
        yield _named({"type": "content_block_stop", "index": 0})
        delta: Json = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
        if counts is not None:
            delta["usage"] = {"output_tokens": counts.output_tokens}
        yield _named(delta)
        yield _named({"type": "message_stop"})
    elif path == "/v1/responses":
        response: Json = {"id": "mock-1", "status": "completed"}
        if counts is not None:
            response["usage"] = counts.responses
        yield _named({"type": "response.completed", "response": response})
    else:
        if counts is not None and is_usage_asked:
            yield _plain({"id": "mock-1", "choices": [], "usage": counts.openai})
        yield "data: [DONE]\n\n"


def count_input(body: Json) -> int:
    """Token ids are counted, text is one token a byte."""
    for name in ("prompt", "input"):
        prompt = body.get(name)
        if isinstance(prompt, list) and all(isinstance(one, int) for one in prompt):
            return len(prompt)
        if isinstance(prompt, str):
            return len(prompt.encode())
    return sum(_text_tokens(message.get("content", "")) for message in body.get("messages", []))


def output_limit(body: Json, input_tokens: int) -> int | None:
    """The longest answer that the request allows, in tokens; None where it does not say."""
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    limits = [body[name] for name in names if isinstance(body.get(name), int)]
    if isinstance(body.get("max_total_tokens"), int):
        limits.append(max(body["max_total_tokens"] - input_tokens, 0))
    return min(limits, default=None)


def _text_tokens(content: object) -> int:
    if isinstance(content, list):
        return sum(len(block["text"].encode()) for block in content if block.get("type") == "text")
    return len(str(content).encode())


def _plain(event: Json) -> str:
    return f"data: {json.dumps(event)}\n\n"


def _named(event: Json) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
