"""The JSON bodies that pass by, as far as they are read: the fields of a request, the usage in an answer.

Owns the shapes and their decoders, and no rule. What is not named here is skipped and never built.
"""

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
ABSENT = msgspec.Raw()


class RequestBody(msgspec.Struct, gc=False):
    """A completion, chat or tokenize request."""

    model: str
    stream: bool | None = None
    service_tier: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    stream_options: msgspec.Raw = ABSENT
    prompt: msgspec.Raw = ABSENT


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool | None = None


class OnlyStreamOptions(msgspec.Struct):
    """A request, as far as its `stream_options`."""

    stream_options: StreamOptions | None = None


class UsageDetails(msgspec.Struct, gc=False):
    """`prompt_tokens_details` of a usage."""

    cached_tokens: Count | None = None


class ReportedUsage(msgspec.Struct, gc=False):
    """`usage`, as workers report it."""

    prompt_tokens: Count
    completion_tokens: Count = 0
    prompt_tokens_details: UsageDetails | None = None


class AnswerUsage(msgspec.Struct, gc=False):
    """A whole answer, as far as its usage."""

    usage: ReportedUsage | None = None


class AnswerEvent(msgspec.Struct, gc=False):
    """One event of a streamed answer."""

    usage: ReportedUsage | None = None
    choices: msgspec.Raw = msgspec.Raw()


decode_request = msgspec.json.Decoder(RequestBody).decode
decode_stream_options = msgspec.json.Decoder(StreamOptions | None).decode
decode_only_stream_options = msgspec.json.Decoder(OnlyStreamOptions).decode
decode_answer = msgspec.json.Decoder(AnswerUsage).decode
decode_event = msgspec.json.Decoder(AnswerEvent).decode
decode_usage = msgspec.json.Decoder(ReportedUsage).decode
