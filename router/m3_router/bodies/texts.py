"""The texts in requests and answers, for whoever has to read them: moderation.

Owns what counts as text. Of a request it is whatever a model may read: messages and their parts, system prompts,
thinking, tools with their schemas, calls with their arguments, results; of an answer what the model wrote. Not text:
images, video and audio (base64 or by link), ids, roles, types, and what is counted or configured. Dialects are not told
apart: no member that carries text in one of them is anything else in another. Pure.
"""

from typing import Final

import msgspec

from m3_router.errors import bad_request

MAX_EVENT_BYTES: Final = 2**20  # an event longer than this is read as it stands, in pieces

# What a prompt is made of, in any dialect.
_REQUEST_MEMBERS: Final = (
    "system",
    "instructions",
    "tools",
    "messages",
    "prompt",
    "input",
    "suffix",
    "documents",
    "chat_template_kwargs",
)
_ANSWER_MEMBERS: Final = ("choices", "content", "output")
_NO_TEXT: Final = frozenset(
    {
        "audio_url",
        "cache_control",
        "call_id",
        "detail",
        "encrypted_content",
        "file_data",
        "file_id",
        "finish_reason",
        "format",
        "id",
        "image_url",
        "index",
        "input_audio",
        "logprobs",
        "media_type",
        "object",
        "role",
        "signature",
        "status",
        "stop_reason",
        "stop_sequence",
        "tool_call_id",
        "tool_use_id",
        "type",
        "url",
        "video_url",
    }
)
# Objects of a client's own making, whose names are text as well: arguments and schemas. They are read as JSON.
_FREE_FORM: Final = frozenset({"arguments", "chat_template_kwargs", "input", "input_schema", "parameters"})

_decode = msgspec.json.Decoder().decode


def request_text(body: bytes) -> str:
    """All texts of a request, in their order, one a line. Raises Refusal (400).

    Token ids hold a text that cannot be read here, so a request with them is refused rather than passed unseen.
    """
    try:
        members = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise bad_request(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(members, dict):
        raise bad_request("The body is not an object of request fields.", code="invalid_json")
    for name in ("prompt", "input"):
        if _has_token_ids(members.get(name)):
            raise bad_request(
                f"{name}: texts are moderated here, and token ids cannot be; send the text.",
                param=name,
                code="unmoderated_token_ids",
            )
    found = [text for name in _REQUEST_MEMBERS if name in members for _, text in _texts(name, members[name])]
    return "\n".join(found)


def answer_text(body: bytes) -> str:
    """All texts of a whole answer, one a line; a body that is no JSON object is text itself."""
    try:
        members = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        members = None
    if not isinstance(members, dict):
        return body.decode(errors="replace")
    return "\n".join(text for name in _ANSWER_MEMBERS if name in members for _, text in _texts(name, members[name]))


class StreamTexts:
    """The texts in an event stream, by where they belong: each answer's content, thinking and calls grow on their own.

    take_characters: how much new text makes a window due. overlap_characters: how much of what a window follows on is
    shown again with it, so that a word or a sentence that is cut in two is still seen whole.
    """

    def __init__(self, take_characters: int, overlap_characters: int) -> None:
        self._take_characters = take_characters
        self._overlap_characters = overlap_characters
        self._pending = b""  # the beginning of an event whose end has not come
        self._is_oversized = False  # inside an event too long to hold
        self._new: dict[str, list[str]] = {}  # by place, since the last window
        self._new_characters = 0
        self._before: dict[str, str] = {}  # the end of what the last window showed

    def feed(self, data: bytes) -> None:
        """Take bytes of the stream, cut anywhere."""
        *events, self._pending = (self._pending + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if self._is_oversized:
                self._is_oversized = False
                self._add("", event.decode(errors="replace"))
            else:
                self._read(event)
        if self._is_oversized or len(self._pending) > MAX_EVENT_BYTES:
            self._is_oversized = True
            kept = self._pending[-3:]  # an event's end may be cut in two
            self._add("", self._pending[: -len(kept) or None].decode(errors="replace"))
            self._pending = kept

    def window(self) -> str | None:
        """What has come since the last window, if that is enough to be looked at."""
        return self._take() if self._new_characters >= self._take_characters else None

    def rest(self) -> str | None:
        """What has come since the last window, if anything has; the stream has ended."""
        pending, self._pending = self._pending, b""
        if pending.strip():
            self._read(pending)
        return self._take() if self._new_characters else None

    def _take(self) -> str:
        shown = {place: self._before.get(place, "") + "".join(parts) for place, parts in self._new.items()}
        self._before = {place: text[-self._overlap_characters :] for place, text in shown.items()}
        self._new = {}
        self._new_characters = 0
        return "\n".join(shown.values())

    def _read(self, event: bytes) -> None:
        data = b"\n".join(line[5:].lstrip(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
        if not data or data.strip() == b"[DONE]":
            return
        try:
            members = _decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            members = None
        if not isinstance(members, dict):
            self._add("", data.decode(errors="replace"))
            return
        place = f"{members.get('output_index', '')}.{members.get('content_index', '')}.{members.get('index', '')}"
        kind = members.get("type")
        if isinstance(kind, str) and isinstance(members.get("delta"), str):  # responses: one kind of text an event
            self._add(f"{place}.{kind}", members["delta"])
            return
        for name in ("choices", "delta", "content_block"):
            if name in members:
                for path, text in _texts(f"{place}.{name}", members[name]):
                    self._add(path, text)
        if kind == "response.output_item.added":
            for path, text in _texts(f"{place}.item", members.get("item")):
                self._add(path, text)

    def _add(self, place: str, text: str) -> None:
        self._new.setdefault(place, []).append(text)
        self._new_characters += len(text)


def _texts(name: str, value: object) -> list[tuple[str, str]]:
    """Every text in a value, depth first, each with its place. Not recursive, for a client's nesting has no bound."""
    found: list[tuple[str, str]] = []
    stack: list[tuple[str, object]] = [(name, value)]
    while stack:
        place, one = stack.pop()
        if isinstance(one, str):
            if one:
                found.append((place, one))
        elif isinstance(one, dict):
            if place.rpartition(".")[2] in _FREE_FORM:
                found.append((place, msgspec.json.encode(one).decode()))
                continue
            is_base64 = one.get("type") == "base64"
            members = [
                (f"{place}.{key}", member)
                for key, member in one.items()
                if key not in _NO_TEXT and not (is_base64 and key == "data")
            ]
            stack.extend(reversed(members))
        elif isinstance(one, list):
            items = [(f"{place}.{_index(item, number)}", item) for number, item in enumerate(one)]
            stack.extend(reversed(items))
    return found


def _index(item: object, number: int) -> object:
    """The number of an item of a list: the one that it names itself, as streamed choices and calls do."""
    return item.get("index", number) if isinstance(item, dict) else number


def _has_token_ids(prompt: object) -> bool:
    if not isinstance(prompt, list):
        return False
    return any(isinstance(one, int) or (isinstance(one, list) and _has_token_ids(one)) for one in prompt)
