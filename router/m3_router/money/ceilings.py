"""The most that a client wants to pay for a request, and the refusal of one that could cost more.

Owns two headers: `x-m3-max-context-tier: standard` and `x-m3-max-cost-usd: 0.25`. A request that could exceed what it
names is refused with the numbers before anything runs, in place of a bill that is twice what was expected. Pure.
"""

import re
from typing import Final

from m3_router.config import NANOUSD_PER_USD
from m3_router.errors import Refusal, bad_request
from m3_router.money.prices import Quote, format_usd

CONTEXT_TIER_HEADER: Final = b"x-m3-max-context-tier"
COST_HEADER: Final = b"x-m3-max-cost-usd"
_USD: Final = re.compile(rb"(\d{1,9})(?:\.(\d{1,9}))?")


class Ceilings:
    """What the headers of one request name. allows_long: no ceiling on the context tier."""

    __slots__ = ("allows_long", "max_cost_nanousd")

    def __init__(self, *, allows_long: bool, max_cost_nanousd: int | None) -> None:
        self.allows_long = allows_long
        self.max_cost_nanousd = max_cost_nanousd

    @staticmethod
    def parse(known: dict[bytes, bytes]) -> "Ceilings | None":
        """The ceilings among the headers that end here; None if there are none. Raises Refusal (400)."""
        tier, cost = known.get(CONTEXT_TIER_HEADER), known.get(COST_HEADER)
        if tier is None and cost is None:
            return None
        if tier is not None and tier not in (b"standard", b"long"):
            raise _malformed(CONTEXT_TIER_HEADER, tier, "must be standard or long")
        return Ceilings(allows_long=tier != b"standard", max_cost_nanousd=None if cost is None else _nanousd(cost))

    def wants_exact(self, quote: Quote) -> bool:
        """Whether the exact number of input tokens decides: one end of the quote is allowed and the other is not.

        Meant for a quote over `estimates.bounds`: a promise about money is not founded on what was usual of late. If
        there is no exact number, `check` holds the request to the upper end of the usual interval.
        """
        if not self.allows_long and quote.needs_exact:
            return True
        most = self.max_cost_nanousd
        return most is not None and quote.cost_low_nanousd <= most < quote.cost_high_nanousd

    def check(self, quote: Quote) -> None:
        """Raise Refusal (400) if the request could exceed a ceiling."""
        if not self.allows_long and quote.context_tier_high == "long":
            raise bad_request(
                f"This request has {_input(quote)}, above the {quote.standard_up_to_tokens} tokens up to which the "
                f"context tier is standard, so all of it would be priced as long, and x-m3-max-context-tier allows "
                f"standard only. Send less input, or set x-m3-max-context-tier: long.",
                param=CONTEXT_TIER_HEADER.decode(),
                code="context_tier_above_ceiling",
            )
        most = self.max_cost_nanousd
        if most is not None and quote.cost_high_nanousd > most:
            raise bad_request(
                f"This request can cost up to {_usd(quote.cost_high_nanousd)} USD ({_input(quote)} in context tier "
                f"{quote.context_tier_high}, and at most {quote.max_output_tokens} output tokens), and "
                f"x-m3-max-cost-usd allows {_usd(most)}. Lower max_tokens, send less input, or raise the ceiling.",
                param=COST_HEADER.decode(),
                code="cost_above_ceiling",
            )


def _input(quote: Quote) -> str:
    if quote.low_tokens == quote.high_tokens:
        return f"{quote.high_tokens} input tokens"
    return f"up to {quote.high_tokens} input tokens (estimated from its size)"


def _usd(nanousd: int) -> str:
    return format_usd(nanousd).decode()


def _nanousd(value: bytes) -> int:
    match = _USD.fullmatch(value)
    if match is None:
        raise _malformed(COST_HEADER, value, "must be US dollars such as 0.25, with at most nine digits on either side")
    return int(match[1]) * NANOUSD_PER_USD + int((match[2] or b"").ljust(9, b"0"))


def _malformed(header: bytes, value: bytes, rule: str) -> Refusal:
    name = header.decode()
    shown = value[:40].decode("latin-1")
    return bad_request(f"{name}: {shown!r} {rule}.", param=name, code="invalid_header")
