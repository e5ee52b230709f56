"""The spelling of HTTP/1.1 heads: which headers go on, which end here, and how ours are written.

Owns the hop-by-hop rule (RFC 9110, 7.6.1) for both directions. Pure; framing errors inside a message are found by the
parser (llhttp in its strict mode refuses both lengths at once, repeated lengths, folded lines, bare CR or LF).
"""

from http import HTTPStatus
from typing import Final

from m3_router.errors import Refusal, malformed

# Never relayed as they came, in either direction.
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
    }
)
# Keys and wishes are for the router alone. Without `accept-encoding` the worker's usage stays readable.
REQUEST_ENDS_HERE: Final = _HOP_BY_HOP | {
    b"host",
    b"expect",
    b"authorization",
    b"accept-encoding",
    b"http2-settings",
    b"x-api-key",
    b"x-request-id",
    b"x-session-id",
    b"traceparent",
    b"x-m3-tenant",
    b"x-m3-priority",
    b"x-m3-attempt",
    b"x-m3-max-context-tier",
    b"x-m3-max-cost-usd",
    b"x-m3-first-byte-ms",
}
RESPONSE_ENDS_HERE: Final = _HOP_BY_HOP | {
    b"content-type",
    b"request-id",
    b"x-request-id",
    b"x-m3-input-tokens",
    b"x-m3-context-tier",
    b"x-m3-service-tier",
    b"x-m3-worker",
    b"x-m3-queue-ms",
    b"x-m3-cost-usd",
}

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
    if status >= 200
}
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

Headers = list[tuple[bytes, bytes]]


class Head:
    """The header lines of one message, sorted into what we read and what goes on.

    known: those that end here, by lower-case name. forward: the others, as header lines ready to be sent.
    Raises Refusal (400) for a header that may come only once.
    """

    __slots__ = ("forward", "known")

    def __init__(self, headers: Headers, ends_here: frozenset[bytes]) -> None:
        known: dict[bytes, bytes] = {}
        forward: list[bytes] = []
        for name, value in headers:
            lower = name.lower()
            if lower not in ends_here:
                forward += (name, b": ", value, b"\r\n")
            elif lower in known:
                if lower in _ONCE:
                    raise malformed(f"The header {lower.decode('latin-1')!r} is given more than once.")
                known[lower] += b", " + value
            else:
                known[lower] = value
        self.known = known
        self.forward = b"".join(forward)
        connection = known.get(b"connection")
        if connection is not None and connection.lower() not in (b"keep-alive", b"close"):
            self._drop(connection.lower().split(b","), headers, ends_here)

    def _drop(self, tokens: list[bytes], headers: Headers, ends_here: frozenset[bytes]) -> None:
        """Leave out the headers that `Connection` names, which are meant for this hop alone."""
        named = frozenset(token.strip() for token in tokens) | ends_here
        self.forward = b"".join(b"%b: %b\r\n" % (name, value) for name, value in headers if name.lower() not in named)


_ONCE: Final = frozenset(
    {
        b"host",
        b"authorization",
        b"content-type",
        b"x-api-key",
        b"x-request-id",
        b"x-m3-max-context-tier",
        b"x-m3-max-cost-usd",
        b"x-m3-first-byte-ms",
    }
)


def status_line(status: int) -> bytes:
    """`HTTP/1.1 200 OK` and its line end."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def refusal_head(refusal: Refusal) -> bytes:
    """Status and header lines of a refusal, without its framing."""
    head = status_line(refusal.status) + b"content-type: application/json\r\n"
    if refusal.retry_after_seconds is not None:
        head += b"retry-after: %d\r\n" % refusal.retry_after_seconds
    if refusal.allow:
        head += b"allow: %b\r\n" % refusal.allow.encode()
    return head


def request_id_lines(request_id: str, *, is_anthropic: bool) -> bytes:
    """The id of the request that is answered; Anthropic's clients look for it under a name of their own."""
    line = b"x-request-id: " + request_id.encode() + b"\r\n"
    return line + line[2:] if is_anthropic else line


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body. Empty data gives no bytes, since a chunk of length 0 would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
