"""An answer that broke off in the middle, gone on with by another worker: what that one is asked, and how it reads.

Owns which answers can be gone on with; the body for the next worker (the request, and what was sent as the beginning
of the assistant's turn); and the rewriting of the second answer, so that the client sees one: one id, no second
beginning, blocks that go on counting, and one usage.

The second answer is what the first would have been if the worker samples greedily and its tokenizer splits what was
sent as the model wrote it. Otherwise it is a fair sample of the same distribution, but for penalties and seeds, which
begin anew. Usage is exact for native workers, which tell the tokens of the first prompt: the input is the first
prompt's, and what the second prompt has beyond it was the first answer. Pure.
"""

from typing import Any, Final

import msgspec

from m3_router.bodies.absent import ABSENT
from m3_router.bodies.bodies import ResumedBody, decode_resumed
from m3_router.bodies.dialects import CHAT, COMPLETIONS, MESSAGES
from m3_router.bodies.request import RequestView
from m3_router.bodies.splice import with_member
from m3_router.bodies.transcript import Transcript
from m3_router.money.bill import Usage

_UNSET: Final = frozenset({b"", b"null", b"false"})
_UNBOUND_FORMATS: Final = (None, {"type": "text"})
_FREE_CHOICES: Final = (None, "auto", {"type": "auto"})
_MIN_TOKENS: Final = frozenset({b"", b"null", b"0"})
_EMPTY: Final = frozenset({b"", b"null", b'""'})
_ANTHROPIC_INPUT: Final = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")

Json = dict[str, Any]


class Resumption:
    """The rest of one answer, from another worker.

    body: what that worker is asked. `rewrite` is given each event of its answer, whole, and returns the client's.
    """

    def __init__(self, transcript: Transcript, body: bytes, input_tokens: int | None, begun: Usage | None) -> None:
        self.body = body
        self._input_tokens = input_tokens
        self._begun = begun
        self._id = transcript.id
        self._created = transcript.created
        self._sent_events = transcript.events
        self._is_named = transcript.is_named
        self._next_block = transcript.next_block
        self._open_block = transcript.open_block
        self._open_kind = transcript.open_kind
        self._blocks: dict[int, int] = {}  # index in the second answer: index for the client
        self._second_begun: Json = {}  # usage at the beginning of Anthropic's second answer

    def merged(self, usage: Usage) -> Usage:
        """The usage of both answers as one: the first prompt, and all that was generated."""
        if self._input_tokens is None or usage.input_tokens < self._input_tokens:
            sent_tokens = min(self._sent_events, usage.input_tokens)
        else:
            sent_tokens = usage.input_tokens - self._input_tokens
        input_tokens = usage.input_tokens - sent_tokens
        cached, written = usage.cached_tokens, usage.cache_write_tokens
        if self._begun is not None:
            cached, written = self._begun.cached_tokens, self._begun.cache_write_tokens
        cached = min(cached, input_tokens)
        return Usage(input_tokens, cached, min(written, input_tokens - cached), sent_tokens + usage.output_tokens)

    def rewrite(self, event: bytes) -> bytes:
        """An event of the second answer as the client gets it; b"" if it gets none."""
        lines = event.replace(b"\r\n", b"\n").split(b"\n")
        data = b"\n".join([line[5:].strip() for line in lines if line.startswith(b"data:")])
        try:
            value = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return event  # a comment, `[DONE]`, or what nobody can read
        if value.get("error"):
            return event
        told = self._block_event(value) if self._is_named else self._chunk(value)
        return b"".join([_written(one, is_named=self._is_named) for one in told])

    def _chunk(self, chunk: Json) -> list[Json]:
        """A chunk of chat or completions."""
        if self._id:
            chunk["id"], chunk["created"] = self._id, self._created
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._merge_openai(usage)
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        if self._id and isinstance(delta, dict) and delta.pop("role", None) is not None:
            is_empty = not any(delta.values()) and choice.get("finish_reason") is None
            if is_empty and usage is None:
                return []  # the client has seen the beginning
        return [chunk]

    def _merge_openai(self, usage: Json) -> None:
        details = usage.get("prompt_tokens_details")
        details = details if isinstance(details, dict) else {}
        second = Usage(
            usage.get("prompt_tokens") or 0,
            details.get("cached_tokens") or 0,
            details.get("cache_write_tokens") or 0,
            usage.get("completion_tokens") or 0,
        )
        both = self.merged(second)
        usage["prompt_tokens"], usage["completion_tokens"] = both.input_tokens, both.output_tokens
        usage["total_tokens"] = both.input_tokens + both.output_tokens
        if details:
            details["cached_tokens"] = both.cached_tokens
            if "cache_write_tokens" in details:
                details["cache_write_tokens"] = both.cache_write_tokens

    def _block_event(self, value: Json) -> list[Json]:
        """An event of Anthropic's messages."""
        match value.get("type"):
            case "message_start" if self._id:
                message = value.get("message")
                usage = message.get("usage") if isinstance(message, dict) else None
                self._second_begun = usage if isinstance(usage, dict) else {}
                return []
            case "content_block_start":
                return self._start_block(value)
            case "content_block_delta" | "content_block_stop":
                value["index"] = self._blocks.get(value.get("index", 0), self._next_block - 1)
            case "message_delta":
                self._merge_anthropic(value)
                return [*self._close_block(), value]
            case _:
                pass
        return [value]

    def _start_block(self, value: Json) -> list[Json]:
        """The first block may be the rest of the one that was cut off; another one closes that."""
        block = value.get("content_block")
        kind = block.get("type") if isinstance(block, dict) else None
        if self._open_block is not None and kind == self._open_kind:
            self._blocks[value["index"]], self._open_block = self._open_block, None
            return []
        told = self._close_block()
        self._blocks[value["index"]] = value["index"] = self._next_block
        self._next_block += 1
        return [*told, value]

    def _close_block(self) -> list[Json]:
        """The end of the block that was cut off, if nothing of the second answer is its rest."""
        open_block, self._open_block = self._open_block, None
        return [] if open_block is None else [{"type": "content_block_stop", "index": open_block}]

    def _merge_anthropic(self, value: Json) -> None:
        usage = value.get("usage")
        if not isinstance(usage, dict):
            return
        # The end may leave out what the beginning has said of the input.
        told = usage if any(usage.get(name) for name in _ANTHROPIC_INPUT) else self._second_begun
        plain, read, written = (told.get(name) or 0 for name in _ANTHROPIC_INPUT)
        input_tokens = plain + read + written
        both = self.merged(Usage(input_tokens, read, written, usage.get("output_tokens") or 0))
        usage["input_tokens"] = both.input_tokens - both.cached_tokens - both.cache_write_tokens
        usage["cache_read_input_tokens"] = both.cached_tokens
        usage["cache_creation_input_tokens"] = both.cache_write_tokens
        usage["output_tokens"] = both.output_tokens


def resume(
    transcript: Transcript, view: RequestView, engine: str, input_tokens: int | None, begun: Usage | None = None
) -> Resumption | None:
    """How another worker of that engine goes on with the answer of `view`; None if none can.

    input_tokens: of the first prompt, as a worker counted them. begun: what Anthropic's stream said of its input.
    May be called again for the same transcript, when the second answer breaks off too.
    """
    transcript.read()
    if not transcript.is_resumable or view.choices != 1 or engine == "external":
        return None
    try:
        fields = decode_resumed(view.body)
        if not _is_plain(fields):
            return None
        body: bytes | None = view.body
        if transcript.events:
            body = _with_beginning(transcript, view, fields, engine)
            exact_input_tokens = input_tokens if engine == "native" else None
            body = None if body is None else _with_limit(body, transcript, view, fields, exact_input_tokens)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return None if body is None else Resumption(transcript, body, input_tokens, begun)


def _is_plain(fields: ResumedBody) -> bool:
    """Whether the answer is one text, bound to nothing, of which the client sees all."""
    texts = (fields.logprobs, fields.prompt_logprobs, fields.return_token_ids, fields.echo)
    others = (fields.continue_final_message, fields.structured_outputs)
    return (
        all(_raw(one) in _UNSET for one in (*texts, *others))
        and _raw(fields.suffix) in _EMPTY
        and _raw(fields.min_tokens) in _MIN_TOKENS
        and _value(fields.response_format) in _UNBOUND_FORMATS
        and (_raw(fields.tools) in (*_UNSET, b"[]") or _value(fields.tool_choice) in _FREE_CHOICES)
        and b'"format"' not in _raw(fields.output_config)
        and b'"omitted"' not in _raw(fields.thinking)  # of thinking that is not sent nobody knows where it was
    )


def _with_beginning(transcript: Transcript, view: RequestView, fields: ResumedBody, engine: str) -> bytes | None:
    """The body with what was sent as the beginning of the answer."""
    reasoning, content = transcript.reasoning, transcript.content
    if view.dialect is COMPLETIONS:
        prompt = _raw(fields.prompt)
        if prompt.startswith(b'"'):
            return with_member(view.body, "prompt", prompt[:-1] + msgspec.json.encode(content)[1:], fields.prompt)
        return None  # a text cannot be appended to token ids
    if engine != "native" and (reasoning or view.dialect is not CHAT):
        return None  # others begin a turn only with text
    message: Json = {"role": "assistant"}
    if view.dialect is MESSAGES:
        blocks = [{"type": "thinking", "thinking": reasoning, "signature": ""}] if reasoning else []
        message["content"] = [*blocks, {"type": "text", "text": content}] if content else blocks
    else:
        if reasoning:
            message["reasoning_content"] = reasoning
        if content:
            message["content"] = content
    messages = _raw(fields.messages).rstrip()
    inner = messages[:-1].rstrip()
    separator = b"" if inner == b"[" else b","
    body = with_member(
        view.body, "messages", b"%b%b%b]" % (inner, separator, msgspec.json.encode(message)), fields.messages
    )
    body = with_member(body, "continue_final_message", b"true", fields.continue_final_message)
    if view.dialect is CHAT:
        body = with_member(body, "add_generation_prompt", b"false", fields.add_generation_prompt)
    return body


def _with_limit(
    body: bytes, transcript: Transcript, view: RequestView, fields: ResumedBody, exact_input_tokens: int | None
) -> bytes | None:
    """The body with what is left of the longest answer; None if nothing is.

    exact_input_tokens: of the first prompt, if the worker takes a limit of prompt and answer together, which is exact.
    Others are told what is left if each event was one token.
    """
    if view.max_tokens is None:
        return body
    left = view.max_tokens - transcript.events
    if left < 1:
        return None
    if exact_input_tokens is not None:
        return with_member(body, "max_total_tokens", b"%d" % (exact_input_tokens + view.max_tokens), None)
    for name, old in (("max_tokens", fields.max_tokens), ("max_completion_tokens", fields.max_completion_tokens)):
        if _raw(old) not in _UNSET:
            body = with_member(body, name, b"%d" % left, old)
    return body


def _written(value: Json, *, is_named: bool) -> bytes:
    name = b"event: %b\n" % str(value.get("type", "")).encode() if is_named else b""
    return b"%bdata: %b\n\n" % (name, msgspec.json.encode(value))


def _raw(value: msgspec.Raw) -> bytes:
    return b"" if value is ABSENT else bytes(memoryview(value))


def _value(value: msgspec.Raw) -> object:
    raw = _raw(value)
    return msgspec.json.decode(raw) if raw else None
