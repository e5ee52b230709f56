"""What the router must know of a request's body, whatever its dialect, and the one field it sets in all of them.

Owns the view: the fields that decide where a request goes, what it may cost and with what it belongs together; how
much of it is text and how much images and videos; and `stream_options.include_usage`. The body is never re-encoded: a
field that the router does not know reaches the worker as it came. Pure; tokens are counted only where the prompt is a
list of token ids, what text comes to is estimated elsewhere.
"""

import re
from typing import Final

import msgspec
from mypy_extensions import mypyc_attr

from m3_router.bodies.absent import ABSENT
from m3_router.bodies.bodies import (
    Conversation,
    RequestBody,
    decode_conversation,
    decode_items,
    decode_metadata,
    decode_parts,
    decode_request,
    decode_stream_options,
    decode_text,
    decode_usage_options,
)
from m3_router.bodies.dialects import Dialect
from m3_router.bodies.splice import with_member
from m3_router.errors import Refusal, bad_request

_MAX_CHOICES: Final = 128
_MAX_NESTING: Final = 2  # a tool's result is a block with blocks in it
_INLINE_BYTES: Final = 1024  # a URL longer than this is the image or video itself
_MEDIA: Final = frozenset({"image_url", "video_url", "input_image", "input_video", "image", "video", "document"})
_LIST: Final = 0x5B  # [


@mypyc_attr(free_list_len=1)
class RequestView:
    """The fields of a body that decide where it goes and what it may cost.

    prompt_tokens: exact, where the prompt is token ids. choices: answers in all. max_tokens: of each, None if it is not
    said, 0 if there is none. text_bytes: the body without images and videos that stand in it; media_items: how many
    there are, linked ones too. session: what the client says belongs together. body: as it goes to the worker;
    is_usage_added: the client did not ask for the usage event that will come; include_cost: it asks what it costs.
    """

    __slots__ = (
        "body",
        "choices",
        "dialect",
        "fields",
        "include_cost",
        "is_stream",
        "is_usage_added",
        "max_tokens",
        "media_items",
        "model",
        "prompt_tokens",
        "service_tier",
        "session",
        "text_bytes",
    )

    def __init__(self, dialect: Dialect, fields: RequestBody, body: bytes) -> None:
        self.dialect = dialect
        self.fields = fields
        self.model: str = fields.model
        self.service_tier: str | None = fields.service_tier
        self.is_stream = bool(fields.stream) and dialect.has_output
        self.max_tokens = _max_tokens(dialect, fields)
        self.choices = 1
        self.prompt_tokens: int | None = None
        self.text_bytes = len(body)
        self.media_items = 0
        self.session: str | None = None
        self.body = body
        self.is_usage_added = False
        self.include_cost = False

    def check_fits(self, max_context_tokens: int) -> None:
        """Raise Refusal (400) if the request cannot fit into the context of its pool, whatever the worker."""
        if self.max_tokens is not None and self.max_tokens > max_context_tokens:
            name = _limit_name(self.dialect, self.fields)
            raise bad_request(
                f"{name}: {self.max_tokens} is above this model's maximum context length of "
                f"{max_context_tokens} tokens.",
                param=name,
            )
        # Several prompts are several contexts; each of them is the worker's to check.
        if self.prompt_tokens is not None and self.prompt_tokens > max_context_tokens and self.choices == 1:
            raise bad_request(
                f"This model's maximum context length is {max_context_tokens} tokens, but the prompt has "
                f"{self.prompt_tokens}.",
                param="prompt",
                code="context_length_exceeded",
            )


def parse(dialect: Dialect, body: bytes) -> RequestView:
    """Read the body of a request. Raises Refusal (400) that names field and rule."""
    try:
        fields = decode_request(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _explain(error) from error
    view = RequestView(dialect, fields, body)
    _count(view, fields)
    if fields.usage is not ABSENT:
        view.include_cost = _wants_cost(fields.usage)
    if view.is_stream and dialect.has_stream_options:
        view.body = with_usage(body, fields.stream_options)
        view.is_usage_added = view.body is not body and not view.include_cost
    view.session = _session(dialect, fields)
    return view


def with_usage(body: bytes, stream_options: msgspec.Raw) -> bytes:
    """The body of a stream with `stream_options.include_usage` set; the same object if it was. Raises Refusal (400)."""
    if stream_options is ABSENT:
        return with_member(body, "stream_options", b'{"include_usage":true}', None)
    try:
        options = decode_stream_options(stream_options)
        if options is not None and options.include_usage:
            return body
        members = msgspec.json.decode(stream_options, type=dict[str, msgspec.Raw] | None) or {}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise bad_request(f"stream_options: {error}", param="stream_options") from error
    members["include_usage"] = msgspec.Raw(b"true")
    return with_member(body, "stream_options", msgspec.json.encode(members), stream_options)


def count_token_ids(prompt: msgspec.Raw) -> int | None:
    """How many token ids a prompt holds, in one list or a list of lists; None if it is text.

    An array of numbers alone has one comma fewer than numbers; counting commas needs no list of half a million ints.
    """
    view = memoryview(prompt)
    if not view or view[0] != _LIST:
        return None
    text = bytes(view)
    if b'"' in text:
        return None
    return text.count(b",") + 1 if text.strip(b"[] \t\r\n") else 0


def _max_tokens(dialect: Dialect, fields: RequestBody) -> int | None:
    if not dialect.has_output:
        return 0
    limit: int | None = fields.max_tokens
    if dialect.limit == "max_output_tokens":
        limit = fields.max_output_tokens
    elif limit is None:
        limit = fields.max_completion_tokens
    if limit is not None and limit < 0:
        name = _limit_name(dialect, fields)
        raise bad_request(f"{name}: {limit} is below 0.", param=name)
    return limit


def _limit_name(dialect: Dialect, fields: RequestBody) -> str:
    """What the client has called the limit of its answer."""
    if dialect.limit == "max_tokens" and fields.max_tokens is None and fields.max_completion_tokens is not None:
        return "max_completion_tokens"
    return dialect.limit


def _count(view: RequestView, fields: RequestBody) -> None:
    """Prompts, answers, and what is no text among the messages."""
    answers = 1
    if fields.n is not None:
        if not 1 <= fields.n <= _MAX_CHOICES:
            raise bad_request(f"n: {fields.n} is not between 1 and {_MAX_CHOICES}.", param="n")
        answers = fields.n
    if fields.best_of is not None and answers < fields.best_of <= _MAX_CHOICES:
        answers = fields.best_of
    prompts = 1
    messages = fields.messages
    if messages is not None:
        for message in messages:
            if message.content is not ABSENT:
                _count_media(view, message.content, _MAX_NESTING)
    elif fields.prompt is not ABSENT:
        view.prompt_tokens = count_token_ids(fields.prompt)
        prompts = _prompts(fields.prompt)
    elif fields.input is not ABSENT:
        if view.dialect.has_output:
            _count_items(view, fields.input)
        else:
            view.prompt_tokens = count_token_ids(fields.input)
    view.choices = answers * prompts


def _prompts(prompt: msgspec.Raw) -> int:
    """How many prompts a list holds: texts, or lists of token ids; 1 if it is a prompt itself."""
    text = bytes(memoryview(prompt))
    inner = text[1:16].lstrip()
    if not text.startswith(b"[") or not inner.startswith((b"[", b'"')):
        return 1
    if inner.startswith(b"["):
        return text.count(b"[") - 1
    try:
        return len(msgspec.json.decode(text, type=list[msgspec.Raw]))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return 1  # the worker explains it


def _count_items(view: RequestView, items: msgspec.Raw) -> None:
    if memoryview(items)[0] != _LIST:
        return
    try:
        decoded = decode_items(items)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return  # the worker explains it
    for item in decoded:
        if item.content is not ABSENT:
            _count_media(view, item.content, _MAX_NESTING)
        if item.output is not ABSENT:
            _count_media(view, item.output, _MAX_NESTING)


def _count_media(view: RequestView, content: msgspec.Raw, depth: int) -> None:
    """Images and videos among the parts of a content, and how much of the body they are."""
    if memoryview(content)[0] != _LIST:
        return
    try:
        parts = decode_parts(content)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return  # the worker explains it
    for part in parts:
        kind: str | None = part.type
        if kind == "tool_result":
            if depth > 1 and part.content is not ABSENT:
                _count_media(view, part.content, depth - 1)
        elif kind in _MEDIA:
            view.media_items += 1
            for source in (part.image_url, part.video_url, part.source):
                inline = len(memoryview(source))
                if inline > _INLINE_BYTES:
                    view.text_bytes -= inline


def _session(dialect: Dialect, fields: RequestBody) -> str | None:
    """What the client says this request belongs to. A value that is no string is the worker's to refuse."""
    try:
        if dialect.is_anthropic:
            if fields.metadata is not ABSENT:
                metadata = decode_metadata(fields.metadata)
                return (metadata.user_id or None) if metadata is not None else None
            return None
        if fields.prompt_cache_key is not ABSENT:
            key: str | None = decode_text(fields.prompt_cache_key)
            if key:
                return key
        if fields.conversation is not ABSENT:
            conversation = decode_conversation(fields.conversation)
            if isinstance(conversation, Conversation):
                conversation = conversation.id
            return conversation or None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass
    return None


def _wants_cost(usage: msgspec.Raw) -> bool:
    try:
        options = decode_usage_options(usage)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise bad_request(f"usage: {error}", param="usage") from error
    return options is not None and bool(options.include)


def _explain(error: Exception) -> Refusal:
    if not isinstance(error, msgspec.ValidationError):
        return bad_request(f"The body is not valid JSON: {error}.", code="invalid_json")
    message = str(error)
    missing = re.fullmatch(r"Object missing required field `(\w+)`", message)
    if missing:
        return bad_request(f"{missing[1]}: this field is required.", param=missing[1])
    placed = re.fullmatch(r"(.*) - at `\$\.(\w+).*`", message, re.DOTALL)
    if placed:
        return bad_request(f"{placed[2]}: {placed[1]}.", param=placed[2])
    return bad_request(f"The body is not an object of request fields: {message}.")
