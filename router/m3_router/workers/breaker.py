"""Whether a worker that fails is given requests: a circuit breaker. Pure.

Owns the state of one worker's breaker. It is apart from readiness: a probe of `/health` says that a worker is there,
the breaker that requests to it succeed. FAILURES_TO_OPEN failures in a row open it; after a back-off, which doubles
from failure to failure, one request at a time finds out whether it may close.
"""

from typing import Final, Literal

BreakerState = Literal["closed", "open", "half_open"]

FAILURES_TO_OPEN: Final = 3
FIRST_BACKOFF_SECONDS: Final = 1.0
MAX_BACKOFF_SECONDS: Final = 30.0


class Breaker:
    """One breaker. `state` is half_open while the request that finds out is on its way."""

    __slots__ = ("backoff_seconds", "failures", "retry_at", "state")

    def __init__(self) -> None:
        self.state: BreakerState = "closed"
        self.failures = 0  # in a row
        self.backoff_seconds = 0.0
        self.retry_at = 0.0

    def may_try(self, now: float) -> bool:
        """Whether a request may be sent."""
        return self.state == "closed" or (self.state == "open" and now >= self.retry_at)

    def begin(self) -> bool:
        """A request is sent. Returns whether it is the one that finds out."""
        if self.state != "open":
            return False
        self.state = "half_open"
        return True

    def abandon(self) -> None:
        """The request that was to find out has ended without an answer to that (its client left): the next one may."""
        if self.state == "half_open":
            self.state = "open"

    def succeeded(self) -> None:
        """A request got its answer."""
        self.state = "closed"
        self.failures = 0
        self.backoff_seconds = 0.0

    def failed(self, now: float) -> None:
        """A request failed through the worker's fault."""
        self.failures += 1
        if self.state == "open" or (self.state == "closed" and self.failures < FAILURES_TO_OPEN):
            return  # one that was sent before it opened says nothing new
        self.backoff_seconds = min(max(FIRST_BACKOFF_SECONDS, 2 * self.backoff_seconds), MAX_BACKOFF_SECONDS)
        self.state = "open"
        self.retry_at = now + self.backoff_seconds
