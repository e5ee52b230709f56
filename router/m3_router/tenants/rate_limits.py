"""What clients are told about their limits: rate-limit headers in both dialects, and honest refusals.

Owns the wording. OpenAI's clients read `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, where a reset is a
duration such as `6m0s`; Anthropic's read `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}`, where it is
a moment of RFC 3339. Of several limits on tokens, the one with the least left is told.
"""

import math
from datetime import UTC, datetime
from typing import Final

from m3_router.config import NANOUSD_PER_USD
from m3_router.errors import Refusal
from m3_router.tenants.meters import NANOUSD, REQUESTS, TOKENS, Meter

LOCAL_RETRY_SECONDS: Final = 1  # the replicas move what is left to where it is asked for several times in this time
# The SDKs sleep for as long as Retry-After says, whatever that is. After this they are told to leave it to their user.
LONGEST_RETRY_SECONDS: Final = 60

_WINDOW: Final = {"minute": "minute", "day": "day (UTC)", "month": "month (UTC)", "total": "budget"}


class RateLimitHeaders:
    """The header lines of one tenant. Made anew once a second; in between, numbers go into a finished text."""

    __slots__ = ("_anthropic", "_made_at", "_openai", "_requests", "_tokens")

    def __init__(self) -> None:
        self._made_at = -1
        self._requests: Meter | None = None
        self._tokens: Meter | None = None
        self._openai = self._anthropic = b""

    def lines(self, meters: list[Meter], wall: float, *, is_anthropic: bool) -> bytes:
        """Each line with its end; nothing where no limit of this kind holds."""
        second = int(wall)
        tokens = _tightest_tokens(meters)
        if second != self._made_at or tokens is not self._tokens:
            self._make(meters, tokens, second)
        text = self._anthropic if is_anthropic else self._openai
        requests = self._requests
        if requests is not None:
            return text % (requests.left, tokens.left) if tokens is not None else text % requests.left
        return text % tokens.left if tokens is not None else b""

    def _make(self, meters: list[Meter], tokens: Meter | None, second: int) -> None:
        self._made_at = second
        self._tokens = tokens
        self._requests = None
        for meter in meters:
            if meter.unit == REQUESTS and meter.period == "minute":
                self._requests = meter
        openai = anthropic = ""
        for what, meter_of in (("requests", self._requests), ("tokens", tokens)):
            if meter_of is not None:
                wait = go_duration(math.ceil(meter_of.ends_at - second))
                openai += (
                    f"x-ratelimit-limit-{what}: {meter_of.limit}\r\n"
                    f"x-ratelimit-remaining-{what}: %d\r\n"
                    f"x-ratelimit-reset-{what}: {wait}\r\n"
                )
                anthropic += (
                    f"anthropic-ratelimit-{what}-limit: {meter_of.limit}\r\n"
                    f"anthropic-ratelimit-{what}-remaining: %d\r\n"
                    f"anthropic-ratelimit-{what}-reset: {rfc3339(meter_of.ends_at)}\r\n"
                )
        self._openai, self._anthropic = openai.encode(), anthropic.encode()


def _tightest_tokens(meters: list[Meter]) -> Meter | None:
    tightest: Meter | None = None
    for meter in meters:
        if meter.unit == TOKENS and (tightest is None or meter.left < tightest.left):
            tightest = meter
    return tightest


def refusal(tenant: str, meter: Meter, amount: int, wall: float, *, can_grow: bool) -> Refusal:
    """Why a request that needs `amount` of this limit cannot go on, and when it could.

    can_grow: whether other replicas can be asked for what they hold and do not use.
    """
    if meter.period == "now":
        return _limited(
            f"{meter.name}: tenant {tenant!r} may have {meter.limit} requests at a time, and "
            f"{meter.used + meter.others_used} are running. Try again when one has ended.",
            LOCAL_RETRY_SECONDS,
        )
    limit, left = _said(meter.limit, meter), _said(meter.left, meter)
    told = (
        f"{meter.name}: tenant {tenant!r} may use {limit} in each {_WINDOW[meter.period]}, of which "
        f"{_said(meter.used + meter.others_used, meter)} are used and {left} left; "
        f"this request may need {_said(amount, meter)}"
    )
    if meter.period == "total":
        told = told.replace("in each budget", "in all")
    if amount > meter.limit:
        return _limited(f"{told}, which is more than the whole limit. Ask for less.", None, meter)
    if meter.ends_at == math.inf:
        return _limited(f"{told}. It does not turn.", None, meter)
    turns = f"It turns at {rfc3339(meter.ends_at)}."
    if amount > meter.left:
        return _limited(f"{told}. {turns}", max(1, math.ceil(meter.ends_at - wall)), meter)
    if can_grow:
        return _limited(
            f"{told}. What is left is with other replicas of the router, and has been asked for. Try again.",
            LOCAL_RETRY_SECONDS,
            meter,
        )
    return _limited(
        f"{told}. The replicas of the router cannot reach each other, and this one has used its share. {turns}",
        max(1, math.ceil(meter.ends_at - wall)),
        meter,
    )


def retry_headers(refused: Refusal) -> bytes:
    """The header line that keeps the SDKs of both dialects from waiting for hours, or from trying in vain."""
    wait = refused.retry_after_seconds
    if refused.status == 429 and (wait is None or wait > LONGEST_RETRY_SECONDS):
        return b"x-should-retry: false\r\n"
    return b""


def _limited(message: str, retry_after_seconds: int | None, meter: Meter | None = None) -> Refusal:
    is_budget = meter is not None and meter.unit == NANOUSD
    return Refusal(
        429,
        message,
        kind="insufficient_quota" if is_budget else "rate_limit_error",
        code="insufficient_quota" if is_budget else "rate_limit_exceeded",
        retry_after_seconds=retry_after_seconds,
    )


def _said(amount: int, meter: Meter) -> str:
    if meter.unit != NANOUSD:
        unit = "token" if meter.unit == TOKENS else "request"
        return f"{amount} {unit}" if amount == 1 else f"{amount} {unit}s"
    dollars, nano = divmod(amount, NANOUSD_PER_USD)
    return f"{dollars}.{nano:09d} USD"


def go_duration(seconds: int) -> str:
    """A duration as Go writes it, and so OpenAI: 59s, 6m0s, 3h0m12s."""
    minutes, rest = divmod(max(0, seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def rfc3339(wall: float) -> str:
    """A moment in UTC, to the second."""
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
