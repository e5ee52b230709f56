"""A turn of the assistant while it is made, cut into blocks: thinking, text, and one for each tool call.

What Anthropic's Messages and OpenAI's Responses have in common: both answer with a list of typed blocks, one open at a
time, and stream their opening, growth and closing. Owns where a block begins and ends; their JSON is the dialects'.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

from m3_worker.api.chat_prompt import compile_chat, prepare_chat
from m3_worker.api.fields import GenerationFields
from m3_worker.api.generation import Delta, Generation
from m3_worker.api.incoming import Incoming
from m3_worker.chat.conversation import Conversation
from m3_worker.chat.events import Content, Reasoning, ToolCallArguments, ToolCallEnd, ToolCallStart, TurnEvent
from m3_worker.chat.prompt import PreparedChat
from m3_worker.chat.turn import TurnParser
from m3_worker.scheduling.request import FinishReason, SamplingParameters


@dataclass(slots=True)
class Block:
    """One part of a turn, as far as it has come."""

    index: int
    kind: Literal["thinking", "text", "tool_call"]
    text: str = ""
    """What was thought or said, or the JSON of a call's arguments."""
    call_id: str = ""
    name: str = ""
    is_complete: bool = True
    """False of a tool call that was cut off: its text is no valid JSON."""

    @property
    def arguments(self) -> dict[str, Any]:
        """A call's arguments; none of one that was cut off."""
        parsed: dict[str, Any] = json.loads(self.text) if self.is_complete and self.text else {}
        return parsed


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins; the one before it is closed."""

    block: Block


@dataclass(frozen=True, slots=True)
class Grown:
    """A block has got more text."""

    block: Block
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """A block is as it will stay."""

    block: Block


BlockEvent = Opened | Grown | Closed


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """A turn that can be started."""

    incoming: Incoming
    chat: PreparedChat
    sampling: SamplingParameters

    def start(self, stops: tuple[str, ...] = ()) -> "Turn":
        """Hand it to the engine. Raises ApiError 429 if its queue is full, 503 if it failed."""
        incoming = self.incoming
        generation = Generation(
            incoming.model,
            self.chat.token_ids,
            self.sampling,
            stops,
            incoming.priority,
            cache_salt=incoming.cache_salt,
            usage_record=incoming.usage_record,
            media=self.chat.media,
        )
        return Turn(generation, self.chat.parser())


def request_turn(incoming: Incoming, conversation: Conversation, fields: GenerationFields) -> TurnRequest:
    """Check, render and bind a conversation. Raises ApiError 400. Half a second if there is a grammar to compile."""
    chat = prepare_chat(incoming.model, conversation)
    grammar = compile_chat(incoming.model, chat, conversation)
    return TurnRequest(incoming, chat, fields.sampling(incoming.model, len(chat.token_ids), None, grammar))


@dataclass(slots=True)
class Turn:
    """One generation with what reads it."""

    generation: Generation
    parser: TurnParser
    blocks: list[Block] = field(default_factory=list)
    _is_open: bool = False

    def push(self, delta: Delta) -> list[BlockEvent]:
        """What a delta brings; the one with a finish reason closes the last block."""
        happened: list[BlockEvent] = []
        self._add(self.parser.push(delta.text), happened)
        if delta.finish_reason is not None:
            self._add(self.parser.finish(was_cut=delta.finish_reason is FinishReason.LENGTH), happened)
            self._close(happened)
        return happened

    @property
    def called_tools(self) -> bool:
        """Whether a call is complete."""
        return any(block.kind == "tool_call" and block.is_complete for block in self.blocks)

    def _add(self, events: Iterable[TurnEvent], happened: list[BlockEvent]) -> None:
        for event in events:
            match event:
                case Reasoning(text):
                    self._say("thinking", text, happened)
                case Content(text):
                    self._say("text", text, happened)
                case ToolCallStart(_, call_id, name):
                    block = Block(len(self.blocks), "tool_call", call_id=call_id, name=name, is_complete=False)
                    self._open(block, happened)
                case ToolCallArguments(_, fragment):
                    self._grow(fragment, happened)
                case ToolCallEnd():
                    self.blocks[-1].is_complete = True
                    self._close(happened)
                case _:
                    assert_never(event)

    def _say(self, kind: Literal["thinking", "text"], text: str, happened: list[BlockEvent]) -> None:
        if not (self._is_open and self.blocks[-1].kind == kind):
            self._open(Block(len(self.blocks), kind), happened)
        self._grow(text, happened)

    def _open(self, block: Block, happened: list[BlockEvent]) -> None:
        self._close(happened)
        self.blocks.append(block)
        self._is_open = True
        happened.append(Opened(block))

    def _grow(self, text: str, happened: list[BlockEvent]) -> None:
        self.blocks[-1].text += text
        happened.append(Grown(self.blocks[-1], text))

    def _close(self, happened: list[BlockEvent]) -> None:
        if self._is_open:
            self._is_open = False
            happened.append(Closed(self.blocks[-1]))
