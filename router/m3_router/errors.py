"""What the router answers when it does not relay: one exception, and the shapes of an error in the clients' dialects.

Owns the wording of the kinds of refusal that more than one module gives, and how a refusal reads to Anthropic's
clients: other names of kinds, and 529 where the model is at its capacity. Who refuses and why is decided elsewhere.
"""

from typing import Final

import msgspec

RETRY_NO_WORKER_SECONDS: Final = 5  # a few health probes: time enough for a worker that only restarted to be seen again
AT_CAPACITY: Final = "at_capacity"
OVERLOADED: Final = 529  # Anthropic's status for a model without room, where OpenAI has 429

# Source: the error types that Anthropic's SDK knows. Others are api_error from 500 on, and below the request's fault.
_ANTHROPIC_KINDS: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


class Refusal(Exception):  # noqa: N818 - an answer, and not always anybody's error
    """An answer of the router's own, in place of a worker's.

    retry_after_seconds: sent as Retry-After. closes: the connection cannot be used after it (HTTP requires that).
    allow: the method that the path takes, for a 405. Whom it answers is said by `answer_to`, before it is sent.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_seconds: int | None = None,
        closes: bool = False,
        allow: str = "",
    ) -> None:
        super().__init__(message)
        self._status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.closes = closes
        self.allow = allow
        self.is_anthropic = False
        self.request_id: str | None = None

    def answer_to(self, request_id: str, *, is_anthropic: bool) -> None:
        """The request that this answers, and whether it came in Anthropic's dialect, whose errors name it."""
        self.request_id, self.is_anthropic = request_id, is_anthropic

    @property
    def status(self) -> int:
        """The HTTP status, in the client's dialect."""
        return OVERLOADED if self.is_anthropic and self.code == AT_CAPACITY else self._status

    def body(self) -> bytes:
        """The JSON body, in the client's dialect."""
        if self.is_anthropic:
            error = {"type": self._anthropic_kind(), "message": self.message}
            return msgspec.json.encode({"type": "error", "error": error, "request_id": self.request_id})
        return msgspec.json.encode({"error": self._error()})

    def event(self) -> bytes:
        """The event that ends a stream in its middle, in the client's dialect."""
        return b"%bdata: %b\n\n" % (b"event: error\n" if self.is_anthropic else b"", self.body())

    def response_event(self) -> bytes:
        """The same for OpenAI's responses, whose events have names and types."""
        data = {"type": "error", "code": self.code, "message": self.message, "param": self.param}
        return b"event: error\ndata: %b\n\n" % msgspec.json.encode({**data, "error": self._error()})

    def _error(self) -> dict[str, str | None]:
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}

    def _anthropic_kind(self) -> str:
        fallback = "invalid_request_error" if self.status < 500 else "api_error"
        return _ANTHROPIC_KINDS.get(self.status, fallback)


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> Refusal:
    """400: the request can never succeed as it is."""
    return Refusal(400, message, param=param, code=code)


def malformed(message: str) -> Refusal:
    """400 for bytes that are not HTTP as we accept it. Where the next message begins is unknown, so this closes."""
    return Refusal(400, message, code="malformed_http", closes=True)


def unauthorized(message: str) -> Refusal:
    """401: no key, or none that we know."""
    return Refusal(401, message, kind="authentication_error", code="invalid_api_key")


def no_worker(model: str) -> Refusal:
    """503: nothing can run the request now."""
    return Refusal(
        503,
        f"No worker of model {model!r} is ready. Try again in {RETRY_NO_WORKER_SECONDS} seconds.",
        kind="server_error",
        code="no_worker_ready",
        retry_after_seconds=RETRY_NO_WORKER_SECONDS,
    )


def at_capacity(why: str, retry_after_seconds: int) -> Refusal:
    """429: there is no place for the request now."""
    return Refusal(
        429,
        f"The model is at its capacity: {why}. Try again in {retry_after_seconds} seconds.",
        kind="rate_limit_error",
        code=AT_CAPACITY,
        retry_after_seconds=retry_after_seconds,
    )


def worker_failed(message: str) -> Refusal:
    """502: a worker had the request and gave no answer."""
    return Refusal(502, message, kind="server_error", code="worker_error")


def timed_out(message: str) -> Refusal:
    """504: a worker had the request and did not answer in time."""
    return Refusal(504, message, kind="server_error", code="worker_timeout")
