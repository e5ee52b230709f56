"""A mock engine that speaks every dialect, word by word, and can go on with what another one has begun.

Its answer is always WORDS, each of them one token. A request that says how the assistant's turn begins, or whose prompt
ends with some of the words, gets the rest. So an answer that was cut off and gone on with must read, and be counted,
like one that was not: that is what tests compare.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

from m3_mock.answers import COUNT_PATHS, count_input
from m3_mock.engine import MockEngine, Received

WORDS: Final = ("one ", "two ", "three ", "four ", "five ")
ANSWER: Final = "".join(WORDS)
CREATED: Final = 1_700_000_000

Json = dict[str, Any]


@dataclass
class Speaker(MockEngine):
    """`gate_at` and `die_at` count words: 1 is before the first (the head is out), 6 before what ends the answer.

    fail_at: says that it gives up before this word, in its dialect, and ends the stream in good order; with
    `says_done`, even with [DONE]. end_at: ends it in good order without a word about it. refuses_continuation: knows no
    `continue_final_message`. name: begins the ids of its answers. count_gate: waited for before counting tokens.
    """

    name: str = "m"
    words: tuple[str, ...] = WORDS
    fail_at: int | None = None
    says_done: bool = False
    end_at: int | None = None
    refuses_continuation: bool = False
    count_gate: asyncio.Event | None = None

    @property
    def asked(self) -> list[Received]:
        """What it was asked, without questions for a number of tokens."""
        return [one for one in self.received if one.path not in COUNT_PATHS]

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if self.raw_answer is not None:
            return await super()._answer(request, reader, writer)
        body = request.json
        path = request.path.partition("?")[0]
        if path in COUNT_PATHS:
            await self._count(path, body, writer)
            return True
        if not await self._pass(0, reader):
            return False
        begun = _begun(path, body)
        status = 400 if begun and self.refuses_continuation else self.status
        if status != 200:
            _write(writer, status, _error(path, f"mock {status}"), "retry-after: 7")
            return True
        said = 0
        while said < len(self.words) and "".join(self.words[: said + 1]) in begun:
            said += 1
        usage = _Usage(_prompt_tokens(path, body, begun) + said, self.cached_tokens, len(self.words) - said)
        told = f"x-m3-input-tokens: {usage.input_tokens}"
        headers = (told, *self.extra_headers) if self.reports_input else self.extra_headers
        identity = f"{self.name}-{len(self.received)}"
        if not body.get("stream"):
            _write(writer, 200, _whole(path, identity, "".join(self.words), usage), *headers)
            await writer.drain()
            return True
        lines = ("HTTP/1.1 200 OK", "content-type: text/event-stream", "transfer-encoding: chunked", *headers)
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return await self._speak(_Stream(path, identity, usage, body), said, reader, writer)

    async def _count(self, path: str, body: Json, writer: asyncio.StreamWriter) -> None:
        if self.count_gate is not None:
            await self.count_gate.wait()
        name = "count" if path == "/tokenize" else "input_tokens"
        _write(writer, self.status, {name: count_input(body)} if self.status == 200 else _error(path, "no count"))
        await writer.drain()

    async def _speak(
        self, stream: "_Stream", said: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        for number in range(said + 1, len(self.words) + 2):
            if not await self._pass(number, reader):
                return False
            if number in (self.fail_at, self.end_at):
                if number == self.fail_at:
                    _chunk(writer, stream.failure("mock gave up") + (b"data: [DONE]\n\n" if self.says_done else b""))
                break
            if number == said + 1:
                _chunk(writer, stream.begin())
            if number <= len(self.words):
                _chunk(writer, stream.word(self.words[number - 1]))
            else:
                _chunk(writer, stream.end(reports_usage=self.reports_usage))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


@dataclass(frozen=True)
class _Usage:
    input_tokens: int
    cached_tokens: int
    output_tokens: int

    def openai(self) -> Json:
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def responses(self) -> Json:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
        }

    def anthropic(self, output_tokens: int) -> Json:
        return {
            "input_tokens": self.input_tokens - self.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.cached_tokens,
            "output_tokens": output_tokens,
        }


@dataclass(frozen=True)
class _Stream:
    """The events of one answer."""

    path: str
    identity: str
    usage: _Usage
    body: Json

    def begin(self) -> bytes:
        match self.path:
            case "/v1/chat/completions":
                return self._delta({"delta": {"role": "assistant", "content": ""}})
            case "/v1/messages":
                message = {"id": self.identity, "role": "assistant", "content": [], "usage": self.usage.anthropic(0)}
                block = {"type": "text", "text": ""}
                return _named("message_start", message=message) + _named(
                    "content_block_start", index=0, content_block=block
                )
            case "/v1/responses":
                return _named("response.created", response={"id": self.identity, "usage": None})
        return b""

    def word(self, text: str) -> bytes:
        match self.path:
            case "/v1/chat/completions":
                return self._delta({"delta": {"content": text}})
            case "/v1/completions":
                return self._delta({"text": text})
            case "/v1/messages":
                return _named("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
        return _named("response.output_text.delta", delta=text)

    def end(self, *, reports_usage: bool) -> bytes:
        match self.path:
            case "/v1/messages":
                told = {"usage": self.usage.anthropic(self.usage.output_tokens)} if reports_usage else {}
                return (
                    _named("content_block_stop", index=0)
                    + _named("message_delta", delta={"stop_reason": "end_turn"}, **told)
                    + _named("message_stop")
                )
            case "/v1/responses":
                told = self.usage.responses() if reports_usage else None
                return _named("response.completed", response={"id": self.identity, "usage": told})
        last = self._delta({"delta": {}, "text": ""}, "stop")
        if reports_usage and (self.body.get("stream_options") or {}).get("include_usage"):
            last += _data({**self._frame(), "choices": [], "usage": self.usage.openai()})
        return last + b"data: [DONE]\n\n"

    def failure(self, message: str) -> bytes:
        match self.path:
            case "/v1/messages":
                return _named("error", error={"type": "api_error", "message": message})
            case "/v1/responses":
                return _named("error", code="server_error", message=message, param=None)
        return _data(_error(self.path, message))

    def _frame(self) -> Json:
        return {"id": self.identity, "created": CREATED, "model": self.body["model"]}

    def _delta(self, choice: Json, finish_reason: str | None = None) -> bytes:
        return _data({**self._frame(), "choices": [{"index": 0, **choice, "finish_reason": finish_reason}]})


def texts_of(path: str, stream: bytes) -> str:
    """The text that a client reads out of a stream."""
    text = ""
    for value in values_of(stream):
        for choice in value.get("choices", ()):
            text += choice.get("delta", {}).get("content", "") + choice.get("text", "")
        delta = value.get("delta")
        if path == "/v1/messages" and isinstance(delta, dict):
            text += delta.get("text", "")
        elif path == "/v1/responses" and isinstance(delta, str):
            text += delta
    return text


def values_of(stream: bytes) -> list[Json]:
    """The data of every event, but for comments and [DONE]."""
    data = [line[6:] for line in stream.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(one) for one in data if one != b"[DONE]"]


def _begun(path: str, body: Json) -> str:
    """How the answer begins already."""
    if path == "/v1/completions":
        prompt = body.get("prompt")
        return prompt if isinstance(prompt, str) else ""
    if not body.get("continue_final_message"):
        return ""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def _prompt_tokens(path: str, body: Json, begun: str) -> int:
    """A token for each byte of what is no part of the answer."""
    if path in ("/v1/responses", "/v1/embeddings"):
        given = body.get("input", "")
        return len(given.encode()) if isinstance(given, str) else len(given)
    if path == "/v1/completions" and begun:
        for count in range(len(WORDS), 0, -1):
            if begun.endswith("".join(WORDS[:count])):
                return len(begun.encode()) - len("".join(WORDS[:count]).encode())
    if begun and path != "/v1/completions":
        return count_input({"messages": body["messages"][:-1]})
    return count_input(body)


def _whole(path: str, identity: str, text: str, usage: _Usage) -> Json:
    match path:
        case "/v1/messages":
            content = [{"type": "text", "text": text}]
            told = usage.anthropic(usage.output_tokens)
            return {"id": identity, "type": "message", "role": "assistant", "content": content, "usage": told}
        case "/v1/responses":
            output = [{"type": "message", "content": [{"type": "output_text", "text": text}]}]
            return {"id": identity, "object": "response", "output": output, "usage": usage.responses()}
        case "/v1/embeddings":
            told = {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
            return {"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "usage": told}
    said: Json = {"text": text}
    if path == "/v1/chat/completions":
        said = {"message": {"role": "assistant", "content": text}}
    choice = {"index": 0, **said, "finish_reason": "stop"}
    return {"id": identity, "created": CREATED, "choices": [choice], "usage": usage.openai()}


def _error(path: str, message: str) -> Json:
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": "api_error", "message": message}}
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


def _named(name: str, **fields: object) -> bytes:
    return f"event: {name}\n".encode() + _data({"type": name, **fields})


def _data(value: Json) -> bytes:
    return b"data: %b\n\n" % json.dumps(value, separators=(",", ":")).encode()


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    if data:
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _write(writer: asyncio.StreamWriter, status: int, answer: Json, *headers: str) -> None:
    body = json.dumps(answer).encode()
    lines = [f"HTTP/1.1 {status} Mock", "content-type: application/json", f"content-length: {len(body)}", *headers]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
