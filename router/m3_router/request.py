"""What the router must know of a request's body, and the one field it sets.

Owns the lazy view (messages are skipped, the prompt stays raw bytes), the estimate of input tokens, and the splice of
`stream_options.include_usage`. The body is never re-encoded: a field that the router does not know reaches the worker
as it came. Pure; counts tokens only where the prompt is a list of token ids, everything else is estimated from bytes.
"""

import re
from typing import Final

import msgspec

from m3_router.bodies import (
    ABSENT,
    decode_only_stream_options,
    decode_request,
    decode_stream_options,
)
from m3_router.errors import Refusal, bad_request

# Text of M3's 200K vocabulary has about 4 bytes a token in English and code, 3 in Chinese. Two bytes a token is an
# upper bound for all but random bytes; a request that still exceeds it occupies less of its lane than it should, and
# is billed by the worker's own count all the same.
BYTES_PER_TOKEN: Final = 4
MIN_BYTES_PER_TOKEN: Final = 2
# Held in the lane for the answer of a request that does not say how long it may be, or says more than answers are.
MAX_OUTPUT_CHARGE_TOKENS: Final = 4096

_STREAM_OPTIONS: Final = re.compile(rb'"stream_options"\s*:\s*')
_MAX_CANDIDATES: Final = 4  # places that may look like the top-level stream_options before we ask for plainer JSON


class RequestView:
    """The fields of a body that decide where it goes and what it may cost.

    input_tokens: exact if is_exact, else an estimate; charge_tokens: what it holds of its lane while it runs.
    body: as it goes to the worker. is_usage_added: the client did not ask for the usage event that will come.
    """

    __slots__ = (
        "body",
        "charge_tokens",
        "input_tokens",
        "is_exact",
        "is_stream",
        "is_usage_added",
        "max_tokens",
        "model",
        "service_tier",
    )

    def __init__(
        self,
        *,
        model: str,
        is_stream: bool,
        service_tier: str | None,
        input_tokens: int,
        is_exact: bool,
        charge_tokens: int,
        max_tokens: int | None,
        body: bytes,
        is_usage_added: bool,
    ) -> None:
        self.model = model
        self.is_stream = is_stream
        self.service_tier = service_tier
        self.input_tokens = input_tokens
        self.is_exact = is_exact
        self.charge_tokens = charge_tokens
        self.max_tokens = max_tokens
        self.body = body
        self.is_usage_added = is_usage_added

    def check_fits(self, max_context_tokens: int) -> None:
        """Raise Refusal (400) if the request cannot fit into the context of its pool, whatever the worker."""
        if self.max_tokens is not None and self.max_tokens > max_context_tokens:
            raise bad_request(
                f"max_tokens: {self.max_tokens} is above this model's maximum context length of "
                f"{max_context_tokens} tokens.",
                param="max_tokens",
            )
        if self.is_exact and self.input_tokens > max_context_tokens:
            raise bad_request(
                f"This model's maximum context length is {max_context_tokens} tokens, but the prompt has "
                f"{self.input_tokens}.",
                param="prompt",
                code="context_length_exceeded",
            )


def parse(body: bytes) -> RequestView:
    """Read the body of a completion or tokenize request. Raises Refusal (400) that names field and rule."""
    try:
        fields = decode_request(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _explain(error) from error
    max_tokens = fields.max_completion_tokens if fields.max_tokens is None else fields.max_tokens
    if max_tokens is not None and max_tokens < 0:
        raise bad_request(f"max_tokens: {max_tokens} is below 0.", param="max_tokens")
    if fields.n is not None and not 1 <= fields.n <= 128:
        raise bad_request(f"n: {fields.n} is not between 1 and 128.", param="n")

    token_ids = None if fields.prompt is ABSENT else count_token_ids(fields.prompt)
    if token_ids is None:  # tools, schemas and names are input too: the whole body is a fair measure of the text
        input_tokens = len(body) // BYTES_PER_TOKEN + 1
        input_bound_tokens = len(body) // MIN_BYTES_PER_TOKEN + 1
    else:
        input_tokens = input_bound_tokens = token_ids
    output_tokens = MAX_OUTPUT_CHARGE_TOKENS
    if max_tokens is not None and max_tokens < output_tokens:
        output_tokens = max_tokens

    is_usage_added = False
    if fields.stream:
        worker_body = with_usage(body, fields.stream_options)
        is_usage_added = worker_body is not body
        body = worker_body
    return RequestView(
        model=fields.model,
        is_stream=bool(fields.stream),
        service_tier=fields.service_tier,
        input_tokens=input_tokens,
        is_exact=token_ids is not None,
        charge_tokens=input_bound_tokens + output_tokens * (fields.n or 1),
        max_tokens=max_tokens,
        body=body,
        is_usage_added=is_usage_added,
    )


def count_token_ids(prompt: msgspec.Raw) -> int | None:
    """How many token ids a `prompt` holds, in one list or a list of lists; None if it is text.

    An array of numbers alone has one comma fewer than numbers; counting commas needs no list of half a million ints.
    """
    view = memoryview(prompt)
    if not view or view[0] != 0x5B:  # [
        return None
    text = bytes(view)
    if b'"' in text:
        return None
    return text.count(b",") + 1 if text.strip(b"[] \t\r\n") else 0


def with_usage(body: bytes, stream_options: msgspec.Raw) -> bytes:
    """The body of a stream with `stream_options.include_usage` set; the same object if it was. Raises Refusal (400)."""
    raw = bytes(memoryview(stream_options))
    if not raw:
        at = body.index(b"{") + 1
        return body[:at] + b'"stream_options":{"include_usage":true},' + body[at:]
    try:
        options = decode_stream_options(raw)
        if options is not None and options.include_usage:
            return body
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw] | None) or {}
    except msgspec.DecodeError as error:
        raise bad_request(f"stream_options: {error}", param="stream_options") from error
    members["include_usage"] = msgspec.Raw(b"true")
    replacement = msgspec.json.encode(members)

    # Find the one at the top level among what looks like it: the right one is where the replacement takes effect.
    for _, match in zip(range(_MAX_CANDIDATES), _STREAM_OPTIONS.finditer(body), strict=False):
        at = match.end()
        if body.startswith(raw, at):
            spliced = body[:at] + replacement + body[at + len(raw) :]
            found = decode_only_stream_options(spliced).stream_options
            if found is not None and found.include_usage:
                return spliced
    raise bad_request("stream_options: write the name of this field plainly, and once.", param="stream_options")


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
