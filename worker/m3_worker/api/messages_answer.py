"""One turn told as Anthropic's Messages: whole, or as its events in their order.

Owns the JSON of blocks, usage and stop reasons. `input_tokens` are those that were computed; those that the prefix
cache held are `cache_read_input_tokens`. A thinking block's signature is a digest of its text: nothing verifies it.
"""

import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, assert_never

from m3_worker.api.errors import ApiError
from m3_worker.api.generation import Delta
from m3_worker.api.named_events import Event
from m3_worker.api.turns import Block, BlockEvent, Closed, Grown, Opened, Turn
from m3_worker.scheduling.request import FinishReason


class MessageAnswer:
    """Writes one turn down, in one of the two forms."""

    def __init__(self, turn: Turn, request_id: str | None, *, omits_thinking: bool) -> None:
        self._turn = turn
        self._request_id = request_id
        self._omits_thinking = omits_thinking
        self._id = f"msg_{uuid.uuid4().hex}"
        self._has_begun = False

    def whole(self, delta: Delta) -> dict[str, Any]:
        """The message object of a finished turn."""
        self._turn.push(delta)
        content = [self._whole_block(block) for block in self._turn.blocks]
        return {**self._message(content), **self._stop(), "usage": self._usage()}

    def events(self, delta: Delta) -> Iterator[Event]:
        """The events of a delta, those of the beginning before the first."""
        if not self._has_begun:
            self._has_begun = True
            stop = {"stop_reason": None, "stop_sequence": None}
            usage = {**self._usage(), "output_tokens": 0}
            yield _event("message_start", message={**self._message([]), **stop, "usage": usage})
            yield from self.ping()
        for happened in self._turn.push(delta):
            yield from self._block_events(happened)
        if delta.finish_reason is not None:
            yield _event("message_delta", delta=self._stop(), usage=self._usage())
            yield _event("message_stop")

    def failed(self, error: ApiError) -> Iterable[Event]:
        """The event of an error; nothing follows it."""
        return [("error", error.anthropic_body(self._request_id))]

    def ping(self) -> Iterable[Event]:
        """A sign of life."""
        return [_event("ping")]

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        model = self._turn.generation.model.name
        return {"id": self._id, "type": "message", "role": "assistant", "model": model, "content": content}

    def _usage(self) -> dict[str, int]:
        usage = self._turn.generation.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage["completion_tokens"],
        }

    def _stop(self) -> dict[str, str | None]:
        generation = self._turn.generation
        if generation.finish_reason is FinishReason.LENGTH:
            reason = "max_tokens"
        elif generation.stop_string is not None:
            reason = "stop_sequence"
        else:
            reason = "tool_use" if self._turn.called_tools else "end_turn"
        return {"stop_reason": reason, "stop_sequence": generation.stop_string}

    def _whole_block(self, block: Block) -> dict[str, Any]:
        match block.kind:
            case "text":
                return {"type": "text", "text": block.text}
            case "thinking":
                text = "" if self._omits_thinking else block.text
                return {"type": "thinking", "thinking": text, "signature": _signature(block)}
            case "tool_call":
                return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": block.arguments}
            case _:
                assert_never(block.kind)

    def _block_events(self, happened: BlockEvent) -> Iterator[Event]:
        index = happened.block.index
        match happened:
            case Opened(block):
                empty = {"text": {"text": ""}, "thinking": {"thinking": "", "signature": ""}}.get(block.kind)
                start = self._whole_block(block) if empty is None else {"type": block.kind, **empty}
                yield _event("content_block_start", index=index, content_block=start)
            case Grown(block, text):
                if not (block.kind == "thinking" and self._omits_thinking):
                    yield _event("content_block_delta", index=index, delta=_delta(block, text))
            case Closed(block):
                if block.kind == "thinking":
                    signed = {"type": "signature_delta", "signature": _signature(block)}
                    yield _event("content_block_delta", index=index, delta=signed)
                yield _event("content_block_stop", index=index)


def _delta(block: Block, text: str) -> dict[str, str]:
    kind, name = {
        "text": ("text_delta", "text"),
        "thinking": ("thinking_delta", "thinking"),
        "tool_call": ("input_json_delta", "partial_json"),
    }[block.kind]
    return {"type": kind, name: text}


def _signature(block: Block) -> str:
    return b64encode(blake2b(block.text.encode(), digest_size=24).digest()).decode()


def _event(name: str, /, **fields: Any) -> Event:  # noqa: ANN401 # any JSON
    return name, {"type": name, **fields}
