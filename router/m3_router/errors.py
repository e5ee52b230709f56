"""What the router answers when it does not relay: one exception, and OpenAI's error shape for it.

Owns the wording of the kinds of refusal that more than one module gives. Who refuses and why is decided elsewhere.
"""

from typing import Final

import msgspec

RETRY_NO_WORKER_SECONDS: Final = 5  # a few health probes: time enough for a worker that only restarted to be seen again


class Refusal(Exception):  # noqa: N818 - an answer, and not always anybody's error
    """An answer of the router's own, in place of a worker's.

    retry_after_seconds: sent as Retry-After. closes: the connection cannot be used after it (HTTP requires that).
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
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.closes = closes

    def body(self) -> bytes:
        """The JSON body in OpenAI's shape."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


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
        code="at_capacity",
        retry_after_seconds=retry_after_seconds,
    )


def worker_failed(message: str) -> Refusal:
    """502: a worker had the request and gave no answer."""
    return Refusal(502, message, kind="server_error", code="worker_error")


def timed_out(message: str) -> Refusal:
    """504: a worker had the request and did not answer in time."""
    return Refusal(504, message, kind="server_error", code="worker_timeout")
