"""One turn told as OpenAI's Responses: whole, or as its events, numbered from 0.

Owns the JSON of items, usage and status. Thinking is a reasoning item with its text as it is, an answer a message with
one part, each tool call an item.
"""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, assert_never

from m3_worker.api.errors import ApiError
from m3_worker.api.generation import Delta
from m3_worker.api.named_events import Event
from m3_worker.api.turns import Block, BlockEvent, Closed, Grown, Opened, Turn
from m3_worker.scheduling.request import FinishReason

_PREFIXES = {"thinking": "rs", "text": "msg", "tool_call": "fc"}
_STREAMED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "thinking": ("response.reasoning_text", "text", {}),
    "text": ("response.output_text", "text", {"logprobs": []}),
    "tool_call": ("response.function_call_arguments", "arguments", {}),
}
"""Of each kind: what its events begin with, the field of its whole text, and what every one of them has."""


class ResponseAnswer:
    """Writes one turn down, in one of the two forms."""

    def __init__(self, turn: Turn, echoed: Mapping[str, Any]) -> None:
        """echoed: what a response repeats of its request."""
        self._turn = turn
        self._echoed = echoed
        self._suffix = uuid.uuid4().hex
        self._created = int(time.time())
        self._number = 0

    def whole(self, delta: Delta) -> dict[str, Any]:
        """The response object of a finished turn."""
        self._turn.push(delta)
        return self._response(*self._outcome())

    def events(self, delta: Delta) -> Iterator[Event]:
        """The events of a delta, those of the beginning before the first."""
        if self._number == 0:
            yield self._event("response.created", response=self._response("in_progress"))
            yield self._event("response.in_progress", response=self._response("in_progress"))
        for happened in self._turn.push(delta):
            yield from self._block_events(happened)
        if delta.finish_reason is not None:
            status, details = self._outcome()
            yield self._event(f"response.{status}", response=self._response(status, details))

    def failed(self, error: ApiError) -> Iterable[Event]:
        """The event of an error; nothing follows it."""
        told = {"code": "server_error", "message": error.message}
        return [self._event("response.failed", response={**self._response("failed"), "error": told})]

    def ping(self) -> Iterable[Event]:
        """Nothing: this dialect has no such event, and its clients wait."""
        return ()

    def _outcome(self) -> tuple[str, dict[str, str] | None]:
        if self._turn.generation.finish_reason is FinishReason.LENGTH:
            return "incomplete", {"reason": "max_output_tokens"}
        return "completed", None

    def _response(self, status: str, incomplete_details: dict[str, str] | None = None) -> dict[str, Any]:
        is_over = status != "in_progress"
        return {
            "id": f"resp_{self._suffix}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": incomplete_details,
            "model": self._turn.generation.model.name,
            "output": [self._item(block, self._status(block)) for block in self._turn.blocks] if is_over else [],
            **self._echoed,
            "usage": self._usage() if is_over else None,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self._turn.generation.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens()},
            "total_tokens": usage["total_tokens"],
        }

    def _reasoning_tokens(self) -> int:
        """The tokens that the thinking has by itself, without its tags."""
        tokenizer = self._turn.generation.model.tokenizer
        thoughts = (block.text for block in self._turn.blocks if block.kind == "thinking")
        return sum(len(tokenizer.encode(thought, add_special_tokens=False)) for thought in thoughts)

    def _status(self, block: Block) -> str:
        """Only the last item can have been cut short."""
        is_last = block.index == len(self._turn.blocks) - 1
        was_cut = is_last and self._turn.generation.finish_reason is not FinishReason.STOP
        return "completed" if block.is_complete and not was_cut else "incomplete"

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        item = {"id": self._item_id(block), "status": status}
        match block.kind:
            case "thinking":
                content = [{"type": "reasoning_text", "text": block.text}] if block.text else []
                return {**item, "type": "reasoning", "summary": [], "content": content}
            case "text":
                content = [_part(block)] if block.text else []
                return {**item, "type": "message", "role": "assistant", "content": content}
            case "tool_call":
                call = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
                return {**item, "type": "function_call", **call}
            case _:
                assert_never(block.kind)

    def _item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self._suffix}_{block.index}"

    def _block_events(self, happened: BlockEvent) -> Iterator[Event]:
        block = happened.block
        where: dict[str, Any] = {"item_id": self._item_id(block), "output_index": block.index}
        if block.kind != "tool_call":
            where["content_index"] = 0
        name, text_field, extra = _STREAMED[block.kind]
        match happened:
            case Opened():
                yield self._event("response.output_item.added", output_index=block.index, item=self._begun(block))
                if block.kind != "tool_call":
                    yield self._event("response.content_part.added", **where, part={**_part(block), "text": ""})
            case Grown(_, text):
                yield self._event(f"{name}.delta", **where, delta=text, **extra)
            case Closed():
                named = {"name": block.name} if block.kind == "tool_call" else {}
                yield self._event(f"{name}.done", **where, **{text_field: block.text}, **named, **extra)
                if block.kind != "tool_call":
                    yield self._event("response.content_part.done", **where, part=_part(block))
                item = self._item(block, self._status(block))
                yield self._event("response.output_item.done", output_index=block.index, item=item)

    def _begun(self, block: Block) -> dict[str, Any]:
        """The item before anything is in it; the block may hold more by now."""
        empty = Block(block.index, block.kind, "", block.call_id, block.name)
        return self._item(empty, "in_progress")

    def _event(self, name: str, /, **fields: Any) -> Event:  # noqa: ANN401 # any JSON
        event = name, {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return event


def _part(block: Block) -> dict[str, Any]:
    if block.kind == "thinking":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}
