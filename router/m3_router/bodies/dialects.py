"""The APIs that clients speak: one value for each relayed path, with everything in which they differ for the router.

Owns paths, names, and the bytes that a dialect's event streams are told by. What a request's fields mean is request's,
what a usage says is usage's, and the JSON of an error is errors'.
"""

from typing import Final

from m3_router.errors import Refusal


class Dialect:
    """One relayed path and what is spoken on it.

    is_free: not priced, and in no lane. has_stream_options: a stream tells its usage only if the request asks for it.
    has_named_events: events have an `event:` line. keep_alive: an event that means nothing, for a client that waits.
    end: what the last event of a complete stream contains, and others may.
    has_output: it is answered with tokens that a model makes.
    counted: what the bytes of an event that carries output contain once, and those of no other event.
    limit: the field that bounds the answer. count_path: where a worker counts the tokens of such a body, or b"".
    can_continue: an answer that broke off can be gone on with.
    """

    __slots__ = (
        "can_continue",
        "count_path",
        "counted",
        "end",
        "has_named_events",
        "has_output",
        "has_stream_options",
        "is_anthropic",
        "is_free",
        "keep_alive",
        "limit",
        "name",
        "path",
    )

    def __init__(
        self,
        name: str,
        path: bytes,
        *,
        is_anthropic: bool = False,
        is_free: bool = False,
        has_output: bool = True,
        has_stream_options: bool = False,
        has_named_events: bool = False,
        keep_alive: bytes = b": keep-alive\n\n",
        end: bytes = b"[DONE]",
        counted: bytes = b"\n\n",
        limit: str = "max_tokens",
        count_path: bytes = b"",
        can_continue: bool = False,
    ) -> None:
        self.name = name
        self.path = path
        self.is_anthropic = is_anthropic
        self.is_free = is_free
        self.has_output = has_output
        self.has_stream_options = has_stream_options
        self.has_named_events = has_named_events
        self.keep_alive = keep_alive
        self.end = end
        self.counted = counted
        self.limit = limit
        self.count_path = count_path
        self.can_continue = can_continue

    def __repr__(self) -> str:
        return f"Dialect({self.name!r}, {self.path!r})"

    def error_event(self, refusal: Refusal, request_id: str) -> bytes:
        """The event that tells a client of this dialect, in the middle of its stream, that there will be no more."""
        refusal.answer_to(request_id, is_anthropic=self.is_anthropic)
        if self.has_named_events and not self.is_anthropic:
            return refusal.response_event()
        return refusal.event()


CHAT: Final = Dialect(
    "chat", b"/v1/chat/completions", has_stream_options=True, count_path=b"/tokenize", can_continue=True
)
COMPLETIONS: Final = Dialect(
    "completions", b"/v1/completions", has_stream_options=True, count_path=b"/tokenize", can_continue=True
)
RESPONSES: Final = Dialect(
    "responses",
    b"/v1/responses",
    has_named_events=True,
    end=b"complete",  # response.completed or response.incomplete
    counted=b".delta\n",
    limit="max_output_tokens",
    count_path=b"/v1/responses/input_tokens",
)
EMBEDDINGS: Final = Dialect("embeddings", b"/v1/embeddings", has_output=False)
MESSAGES: Final = Dialect(
    "messages",
    b"/v1/messages",
    is_anthropic=True,
    has_named_events=True,
    keep_alive=b'event: ping\ndata: {"type": "ping"}\n\n',
    end=b"message_stop",
    counted=b"content_block_delta\n",
    count_path=b"/v1/messages/count_tokens",
    can_continue=True,
)
COUNT_TOKENS: Final = Dialect(
    "count_tokens", b"/v1/messages/count_tokens", is_anthropic=True, is_free=True, has_output=False
)
INPUT_TOKENS: Final = Dialect("input_tokens", b"/v1/responses/input_tokens", is_free=True, has_output=False)
TOKENIZE: Final = Dialect("tokenize", b"/tokenize", is_free=True, has_output=False)

BY_PATH: Final[dict[bytes, Dialect]] = {
    dialect.path: dialect
    for dialect in (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, MESSAGES, COUNT_TOKENS, INPUT_TOKENS, TOKENIZE)
}
