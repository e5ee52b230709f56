"""A prompt as a chain of digests, one for each block of its bytes: what `affinity` looks up instead of tokens.

Owns the canonical sequence of a conversation - system text, tools, then role and text of every turn - and the chain
over it. The sequence is the same through chat completions, responses and messages, whether content is a string or a
list of parts; so a conversation is one chain whichever door it comes through. Pure, and reads no more than it must:
text is hashed as the JSON bytes that it came in.

    digest[0] = xxh3_64(block[0], seed),    digest[i] = xxh3_64(block[i], digest[i-1])

Every digest covers all that is before it, so that two prompts which agree on a digest agree up to there.
"""

import struct
from typing import Final

import msgspec
from mypy_extensions import mypyc_attr
from xxhash import xxh3_64_intdigest

from m3_router.bodies.absent import ABSENT
from m3_router.bodies.bodies import Message, RequestBody
from m3_router.bodies.turns import (
    Function,
    Part,
    Turn,
    decode_calls,
    decode_parts,
    decode_source,
    decode_text,
    decode_tools,
    decode_turns,
    decode_value,
    encode_value,
)

# Control bytes never occur inside of a JSON string, so no text can look like the mark of something else.
ROLE: Final = b"\x01"
TEXT: Final = b"\x02"
CALL: Final = b"\x03"
FIELD: Final = b"\x04"
THINKING: Final = b"\x05"
MEDIA: Final = b"\x06"
PROMPT: Final = b"\x07"

QUOTE: Final = 0x22
BRACKET: Final = 0x5B
SYSTEM_ROLES: Final = ("system", "developer")
MARKS: Final = {
    "system": ROLE + b"system" + TEXT,
    "developer": ROLE + b"system" + TEXT,
    "tools": ROLE + b"tools" + TEXT,
    "user": ROLE + b"user" + TEXT,
    "assistant": ROLE + b"assistant" + TEXT,
    "tool": ROLE + b"tool" + TEXT,
}
# A string is searched so far for \u escapes. Searching costs more than hashing, and a client that escapes writes the
# first one early; where it does not, another client's prompt counts as a different one from there on.
ESCAPE_SEARCH_BYTES: Final = 2048
GATHER_BYTES: Final = 2**16  # pieces are put together before they are cut into blocks


def seed(model: str, tenant_salt: str, adapter: str = "") -> int:
    """What a chain begins with: prompts share nothing across models, adapters and salts."""
    return xxh3_64_intdigest(msgspec.json.encode((model, tenant_salt, adapter)))


def chain(dialect_name: str, fields: RequestBody, seed: int, block_bytes: int) -> list[int]:
    """The digests of a prompt, first block first; what does not fill a block at the end has none.

    A prompt of less than one block has one digest, of all of it: it takes part in ties, if not in prefixes. A body that
    is no conversation of its dialect is hashed as it is (the worker will say what is wrong with it); without any prompt
    the chain is empty.
    """
    blocks = Blocks(seed, block_bytes)
    if dialect_name in ("completions", "embeddings") or (dialect_name == "tokenize" and fields.messages is None):
        _add_prompt(blocks, fields.prompt if dialect_name != "embeddings" else fields.input)
        return blocks.finish()
    try:
        _add_conversation(Conversation(blocks), fields)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        blocks = Blocks(seed, block_bytes)
        for raw in (fields.system, fields.instructions, fields.tools, fields.input):
            blocks.add(memoryview(raw))
        for message in fields.messages or ():
            blocks.add(memoryview(message.content))
    return blocks.finish()


@mypyc_attr(free_list_len=1)
class Blocks:
    """Bytes in pieces of any length, to digests of blocks of one length."""

    __slots__ = ("_block_bytes", "_digest", "_digests", "_gathered", "_size")

    def __init__(self, seed: int, block_bytes: int) -> None:
        self._digest = seed
        self._digests: list[int] = []
        self._gathered: list[bytes | memoryview] = []
        self._size = 0  # of what is gathered
        self._block_bytes = block_bytes

    def add(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self._gathered.append(data)
        self._size += len(data)
        if self._size >= GATHER_BYTES:
            self._take_blocks()

    def finish(self) -> list[int]:
        """The chain."""
        self._take_blocks()
        if not self._digests and self._size:
            self._digests.append(xxh3_64_intdigest(self._gathered[0], self._digest))
        return self._digests

    def _take_blocks(self) -> None:
        """Leave less than one block."""
        data = b"".join(self._gathered)
        digest, digests = self._digest, self._digests
        end = len(data) // self._block_bytes * self._block_bytes
        if end:
            for (block,) in struct.iter_unpack(f"{self._block_bytes}s", memoryview(data)[:end]):
                digest = xxh3_64_intdigest(block, digest)
                digests.append(digest)
            self._digest = digest
        self._gathered = [data[end:]]
        self._size = len(data) - end


@mypyc_attr(free_list_len=1)
class Conversation:
    """Writes the canonical sequence. Turns of one role in a row are one, because dialects split them variously."""

    __slots__ = ("_blocks", "_role")

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._role = ""

    def begin(self, role: str) -> None:
        """What follows is of this role."""
        if role != self._role:
            self._role = role
            self._blocks.add(MARKS.get(role) or ROLE + role.encode() + TEXT)

    def text(self, role: str, raw: msgspec.Raw) -> None:
        """A JSON string (or null) of a role; an empty one leaves no trace."""
        if raw is ABSENT:
            return
        text = _inside(raw)
        if text:
            self.begin(role)
            self._blocks.add(text)

    def thinking(self, raw: msgspec.Raw) -> None:
        """The text of thinking, before what it led to."""
        if raw is ABSENT:
            return
        text = _inside(raw)
        if text:
            self.begin("assistant")
            self._blocks.add(THINKING)
            self._blocks.add(text)
            self._blocks.add(TEXT)

    def call(self, name: msgspec.Raw, arguments: msgspec.Raw) -> None:
        """A tool call. arguments: an object, or a string that holds one."""
        self.begin("assistant")
        self._blocks.add(CALL + _short(name) + FIELD + _arguments(arguments))

    def result(self, content: msgspec.Raw) -> None:
        """What a tool gave back: a string, or a list of parts."""
        self._role = ""  # each result is a turn of its own
        self.begin("tool")
        self.content("tool", content)

    def media(self, role: str, raw: msgspec.Raw) -> None:
        """An image or a video: a URL, or an object that holds a URL or base64. Stands as the digest of its bytes."""
        view = memoryview(raw)
        if view[0] != QUOTE:
            source = decode_source(raw)
            view = memoryview(source.url if source.data is ABSENT else source.data)
        if len(view) <= 2:
            return
        payload = view[1:-1]
        if bytes(payload[:5]) == b"data:":
            payload = payload[bytes(payload[:256]).find(b",") + 1 :]
        self.begin(role)
        self._blocks.add(MEDIA + xxh3_64_intdigest(payload).to_bytes(8, "big"))

    def content(self, role: str, raw: msgspec.Raw) -> None:
        """A message's content: a string, or a list of parts."""
        if raw is ABSENT:
            return
        text = _inside(raw)
        if text:
            self.begin(role)
            self._blocks.add(text)
        elif _first(raw) == BRACKET:
            for part in decode_parts(raw):
                self._part(role, part)

    def _part(self, role: str, part: Part) -> None:
        kind = part.type
        if part.text is not ABSENT:
            self.text(role, part.text)
        elif kind == "thinking":
            self.thinking(part.thinking)
        elif kind == "tool_use":
            self.call(part.name, part.input)
        elif kind == "tool_result":
            self.result(part.content)
        elif part.source is not ABSENT:
            self.media(role, part.source)
        elif part.image_url is not ABSENT:
            self.media(role, part.image_url)
        elif part.video_url is not ABSENT:
            self.media(role, part.video_url)

    def message(self, message: Message) -> None:
        """One message of chat completions or of Anthropic's messages."""
        role = message.role or ""
        if role == "tool":
            self.result(message.content)
            return
        self.thinking(message.reasoning if message.reasoning_content is ABSENT else message.reasoning_content)
        self.content(role, message.content)
        if message.tool_calls is not ABSENT:
            for call in decode_calls(message.tool_calls) or ():
                if call.function is not None:
                    self.call(call.function.name, call.function.arguments)

    def item(self, turn: Turn) -> None:
        """One item of a responses input."""
        if turn.type in ("", "message"):
            self.content(turn.role, turn.content)
        elif turn.type == "function_call":
            self.call(turn.name, turn.arguments)
        elif turn.type == "function_call_output":
            self.result(turn.output)
        elif turn.type == "reasoning":
            for part in decode_parts(turn.summary if turn.content is ABSENT else turn.content):
                self.thinking(part.text)

    def tools(self, raw: msgspec.Raw) -> None:
        """The tools that may be called."""
        for tool in decode_tools(raw) or ():
            self.begin("tools")
            function = tool.function
            if function is None:
                schema = tool.parameters if tool.input_schema is ABSENT else tool.input_schema
                function = Function(tool.name, tool.description, schema)
            kind = tool.type.encode() if function.name is ABSENT else b""  # one that the engine brings along
            self._blocks.add(
                CALL
                + kind
                + _short(function.name)
                + FIELD
                + _short(function.description)
                + FIELD
                + _canonical(function.parameters)
            )


def _add_conversation(conversation: Conversation, fields: RequestBody) -> None:
    """System text wherever it stands, tools, then the turns."""
    conversation.content("system", fields.system)
    conversation.text("system", fields.instructions)
    messages = fields.messages
    if messages is None:
        _add_items(conversation, fields)
        return
    first = 0
    while first < len(messages) and messages[first].role in SYSTEM_ROLES:
        conversation.content("system", messages[first].content)
        first += 1
    if fields.tools is not ABSENT:
        conversation.tools(fields.tools)
    for i in range(first, len(messages)):
        conversation.message(messages[i])


def _add_items(conversation: Conversation, fields: RequestBody) -> None:
    """The input of responses: a string, or a list of items."""
    raw = fields.input
    turns: list[Turn] = []
    if raw is not ABSENT and _first(raw) == BRACKET:
        turns = decode_turns(raw)
    first = 0
    while first < len(turns) and turns[first].role in SYSTEM_ROLES:
        conversation.content("system", turns[first].content)
        first += 1
    if fields.tools is not ABSENT:
        conversation.tools(fields.tools)
    for i in range(first, len(turns)):
        conversation.item(turns[i])
    if not turns:
        conversation.text("user", raw)


def _add_prompt(blocks: Blocks, raw: msgspec.Raw) -> None:
    """A text, a list of token ids (as written), or a list of several of either."""
    if raw is ABSENT:
        return
    blocks.add(PROMPT)
    blocks.add(_inside(raw) if _first(raw) == QUOTE else memoryview(raw)[1:])


def _first(raw: msgspec.Raw) -> int:
    """The first byte of a JSON value, which tells its kind."""
    first: int = memoryview(raw)[0]
    return first


def _inside(raw: msgspec.Raw) -> bytes | memoryview:
    """The inside of a JSON string, escaped only where JSON demands it; nothing of any other value."""
    is_short = len(raw) <= ESCAPE_SEARCH_BYTES
    text = bytes(raw if is_short else memoryview(raw)[:ESCAPE_SEARCH_BYTES])
    if text[0] != QUOTE:
        return b""
    escape = text.find(b"\\")  # one byte is found ten times as fast as two
    if escape >= 0 and text.find(b"\\u", escape) >= 0:
        encoded: bytes = encode_value(decode_text(raw))
        return encoded[1:-1]
    return text[1:-1] if is_short else memoryview(raw)[1:-1]


def _short(raw: msgspec.Raw) -> bytes:
    """The inside of a short JSON string; nothing for what is absent or null."""
    return b"" if raw is ABSENT else bytes(_inside(raw))


def _canonical(raw: msgspec.Raw) -> bytes:
    """JSON without the freedom of whitespace and escapes. The order of members stays: the engine sees it too."""
    return b"" if raw is ABSENT else encode_value(decode_value(raw))


def _arguments(raw: msgspec.Raw) -> bytes:
    """The arguments of a call, as an object or as a string that holds one."""
    if raw is ABSENT or _first(raw) != QUOTE:
        return _canonical(raw)
    text = decode_text(raw)
    try:
        return encode_value(decode_value(text))
    except (msgspec.MsgspecError, RecursionError):
        return encode_value(text)  # not JSON, as models write at times
