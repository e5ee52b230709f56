"""A conversation made into what the engine takes: a prompt, its token ids, and what the answer is bound to.

The way of every dialect: `prepare` checks the conversation, writes it down by the checkpoint's own template, and makes
the parser of the turn that follows. Owns what is put in order on that way: several opening messages become one, tool
results stand in the order of their calls (the format has no ids), and special tokens that stand in somebody's text are
text: a user, a document or a tool's result cannot end a turn or open another.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from m3_worker.chat.conversation import (
    OPENING_ROLES,
    ChatError,
    Conversation,
    ImagePart,
    Message,
    TextPart,
    Tool,
    ToolCall,
    VideoPart,
)
from m3_worker.chat.rules import check
from m3_worker.chat.template import ChatTemplate
from m3_worker.chat.thinking import CLOSING, OPENING
from m3_worker.chat.tool_grammar import needs_grammar, tool_grammar
from m3_worker.chat.tool_parser import NAMESPACE
from m3_worker.chat.turn import TurnParser
from m3_worker.grammar import GrammarSpec
from m3_worker.media.items import MediaError, MediaItem
from m3_worker.media.prompt import ExpandedPrompt, expand
from m3_worker.model.vision_config import VisionConfig
from m3_worker.tokenizer import Tokenizer

_THINKING_MODE = "thinking_mode"
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Unicode's noncharacters: one that is in no text marks where a special token's text is to be cut."""


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """What is handed to the engine, and what reads its answer."""

    prompt: str
    token_ids: list[int]
    grammar: GrammarSpec | None = None
    """What the answer is held to."""
    tools: tuple[Tool, ...] = ()
    """Those that may be called."""
    media: tuple[MediaItem, ...] = ()
    """What stands where among the token ids."""
    begun: str = ""
    """What of the turn is there already, behind the prompt; its tokens are the last of the token ids."""

    def parser(self) -> TurnParser:
        """A parser of one answer; each of several answers to the prompt needs its own."""
        parser = TurnParser(self.prompt, self.tools)
        parser.push(self.begun)
        return parser


def prepare(
    conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer, vision: VisionConfig | None = None
) -> PreparedChat:
    """Check and render a conversation, its images and videos loaded. Raises ChatError.

    Pure, and long for a long one: call it off the event loop.
    """
    check(conversation)
    splitter = _Splitter(conversation, tokenizer)
    beginning = conversation.messages[-1] if conversation.continues else None
    before = conversation.messages[:-1] if conversation.continues else conversation.messages
    messages = [splitter.split(message) for message in _in_order(before)]
    tools = [{"type": "function", "function": _definition(tool)} for tool in conversation.tools]
    text = template.render(list(map(_rendered, messages)), _variables(conversation, template), tools)
    pieces = splitter.pieces(text)
    prompt = "".join(pieces)
    expanded = _expanded(pieces, [part for message in messages for part in message.media], tokenizer, vision)
    callable_tools = () if conversation.tool_choice.mode == "none" else conversation.tools
    grammar = _grammar(conversation, prompt, tokenizer)
    if beginning is None:
        return PreparedChat(prompt, expanded.token_ids, grammar, callable_tools, expanded.items)
    if grammar is not None:
        raise ChatError(
            "continue_final_message",
            "continue_final_message and an answer that must look like something exclude each other: "
            "what it must look like is held from its beginning on",
        )
    begun = _begun(beginning, prompt, can_think=_THINKING_MODE in template.variables)
    token_ids = [*expanded.token_ids, *tokenizer.encode(begun, add_special_tokens=False)]
    return PreparedChat(prompt, token_ids, None, callable_tools, expanded.items, begun)


def _begun(message: Message, prompt: str, *, can_think: bool) -> str:
    """A turn's beginning as the model wrote it after the prompt.

    Thinking after which nothing was said is still going on. Where the prompt leaves it to the model whether it thinks,
    an answer without thinking begins with the closing tag, as the format has it in turns that are over.
    """
    reasoning, said = message.reasoning or "", _text_of(message)
    if prompt.endswith(CLOSING):
        return said
    opening = "" if prompt.endswith(OPENING) else OPENING
    if reasoning:
        return opening + reasoning + (CLOSING + said if said else "")
    return CLOSING + said if can_think else said


def _expanded(
    pieces: Sequence[str], parts: Sequence[ImagePart | VideoPart], tokenizer: Tokenizer, vision: VisionConfig | None
) -> ExpandedPrompt:
    """The prompt's token ids, with the placeholders of its media. `parts` in the order of the prompt."""

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    if not parts:
        return ExpandedPrompt([one for piece in pieces for one in encode(piece)], ())
    media = [part.loaded for part in parts if part.loaded is not None]
    if vision is None or len(media) < len(parts):
        where, kind = parts[0].source.where, "images" if isinstance(parts[0], ImagePart) else "videos"
        raise ChatError(where, f"{where}: this model takes no {kind}, it has no vision tower")
    try:
        return expand(pieces, media, encode, vision)
    except MediaError as error:
        raise ChatError("messages", str(error)) from None


def _grammar(conversation: Conversation, prompt: str, tokenizer: Tokenizer) -> GrammarSpec | None:
    """What holds the answer to its format and to the choice of tools, from the end of thinking on."""
    choice, tools, answer = conversation.tool_choice, conversation.tools, conversation.response_format
    if answer is not None and (not tools or choice.mode == "none"):
        spec = GrammarSpec(answer.kind, answer.text)
    elif answer is not None or needs_grammar(choice, tools):
        spec = GrammarSpec("lark", tool_grammar(choice, tools, answer))
    else:
        return None
    if prompt.endswith(CLOSING):
        return spec
    if prompt.endswith(OPENING):
        return replace(spec, after=CLOSING)
    return spec if tokenizer.id_of(OPENING) is None else replace(spec, opening=OPENING, after=CLOSING)


def _in_order(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages with opening ones joined, and tool results in the order of the calls that they answer."""
    openings = [message for message in messages if message.role in OPENING_ROLES]
    calls: tuple[ToolCall, ...] = ()
    results: dict[str | None, Message] = {}
    for message in messages:
        if message.role == "tool":
            results[message.tool_call_id] = message
            continue
        yield from (results[call.id] for call in calls if results)
        calls, results = message.tool_calls, {}
        if message.role not in OPENING_ROLES:
            yield message
        elif message is openings[0]:
            yield replace(message, content="\n\n".join(_text_of(one) for one in openings))
    yield from (results[call.id] for call in calls if results)


def _text_of(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


def _rendered(message: Message) -> dict[str, Any]:
    """A message in the form that chat templates read."""
    content: str | list[dict[str, str]] = ""
    if isinstance(message.content, str):
        content = message.content
    else:
        content = [
            {"type": "text", "text": part.text}
            if isinstance(part, TextPart)
            else {"type": "image" if isinstance(part, ImagePart) else "video"}
            for part in message.content
        ]
    rendered: dict[str, Any] = {"role": message.role, "content": content}
    if message.role == "assistant":  # a string even if empty, or the template looks for thinking in the content
        rendered["reasoning_content"] = message.reasoning or ""
    if message.tool_calls:
        rendered["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    return rendered


def _definition(tool: Tool) -> Mapping[str, Any]:
    if tool.definition is not None:
        return tool.definition
    described = {} if tool.description is None else {"description": tool.description}
    return {"name": tool.name, **described, "parameters": tool.parameters}


def _variables(conversation: Conversation, template: ChatTemplate) -> dict[str, Any]:
    """What the template is given beside messages and tools. Raises ChatError if it cannot switch thinking on."""
    variables = dict(conversation.template_variables)
    if _THINKING_MODE in template.variables:
        variables[_THINKING_MODE] = conversation.thinking
    elif conversation.thinking == "enabled":
        raise ChatError("thinking", "thinking is enabled: the model's chat template has no thinking_mode")
    return variables


class _Splitter:
    """Keeps the special tokens' texts in messages from becoming those tokens.

    Such a text is cut in two by a character that is in no message, before the template sees it; the rendered prompt is
    cut there into pieces that are tokenised each for itself. What an assistant said is left as it is: the model wrote
    its tags as tokens, and they must be the same ones again.
    """

    def __init__(self, conversation: Conversation, tokenizer: Tokenizer) -> None:
        tokens = (*tokenizer.special_texts, OPENING, CLOSING, NAMESPACE)
        self._beginning = re.compile(f"(?=(?:{'|'.join(map(re.escape, tokens))})).", re.DOTALL)  # they may overlap
        said = [message for message in conversation.messages if message.role != "assistant"]
        self._mark: str | None = None
        if any(token in text for text in _texts(said) for token in tokens):
            free = (one for one in _MARKS if not any(one in text for text in _texts(conversation.messages)))
            self._mark = next(free, None)
            if self._mark is None:
                raise ChatError("messages", "messages have special tokens and all of Unicode's noncharacters in them")

    def split(self, message: Message) -> Message:
        """The message with the mark in every special token's text."""
        if self._mark is None or message.role == "assistant":
            return message
        if isinstance(message.content, str):
            return replace(message, content=self._marked(message.content))
        parts = (TextPart(self._marked(part.text)) if isinstance(part, TextPart) else part for part in message.content)
        return replace(message, content=tuple(parts))

    def pieces(self, prompt: str) -> list[str]:
        """The prompt without the marks, cut where they were."""
        return [prompt] if self._mark is None else prompt.split(self._mark)

    def _marked(self, text: str) -> str:
        mark = self._mark or ""
        return self._beginning.sub(lambda found: found[0] + mark, text)


def _texts(messages: Iterable[Message]) -> Iterator[str]:
    for message in messages:
        if isinstance(message.content, str):
            yield message.content
        else:
            yield from (part.text for part in message.content if isinstance(part, TextPart))
