"""What a request costs: context tier x service tier in integer nano-dollars per token.

Owns the threshold between the context tiers and the arithmetic. Pure; knows no request, only counts of tokens.
"""

from dataclasses import dataclass

from m3_router.bill import Usage
from m3_router.config import (
    NANOUSD_PER_USD,
    ContextTier,
    ContextTierSettings,
    PriceSettings,
    RateSettings,
    ServiceTier,
    nanousd_per_token,
)


@dataclass(frozen=True, slots=True)
class Rates:
    """Nano-dollars per token."""

    input_nanousd: int
    output_nanousd: int
    cache_read_nanousd: int

    def cost_nanousd(self, usage: Usage) -> int:
        """Uncached input + cache reads + output, each at its rate."""
        return (
            (usage.input_tokens - usage.cached_tokens) * self.input_nanousd
            + usage.cached_tokens * self.cache_read_nanousd
            + usage.output_tokens * self.output_nanousd
        )


class PriceTable:
    """The rates of every pair of tiers."""

    def __init__(self, prices: PriceSettings, context_tier: ContextTierSettings) -> None:
        # The largest number of input tokens that is still `standard`.
        self.standard_up_to_tokens = context_tier.threshold_tokens - (0 if context_tier.inclusive else 1)
        self._rates: dict[tuple[ContextTier, ServiceTier], Rates] = {}
        contexts: tuple[ContextTier, ...] = ("standard", "long")
        services: tuple[ServiceTier, ...] = ("standard", "priority", "batch")
        for context in contexts:
            for service in services:
                self._rates[context, service] = _whole_rates(prices.rates(context, service))

    def context_tier(self, input_tokens: int) -> ContextTier:
        """The tier of a whole request with this many input tokens."""
        return "standard" if input_tokens <= self.standard_up_to_tokens else "long"

    def price(self, usage: Usage, service_tier: ServiceTier) -> tuple[ContextTier, int]:
        """The context tier of a request, which follows from its input tokens, and what it cost in nano-dollars."""
        context_tier = self.context_tier(usage.input_tokens)
        return context_tier, self._rates[context_tier, service_tier].cost_nanousd(usage)


def format_usd(nanousd: int) -> bytes:
    """Nano-dollars as an exact decimal number of US dollars, such as `0.000123400`."""
    digits = str(NANOUSD_PER_USD + nanousd % NANOUSD_PER_USD)[1:]
    return f"{nanousd // NANOUSD_PER_USD}.{digits}".encode()


def _whole_rates(rates: RateSettings) -> Rates:
    return Rates(
        input_nanousd=nanousd_per_token(rates.input, "input"),
        output_nanousd=nanousd_per_token(rates.output, "output"),
        cache_read_nanousd=nanousd_per_token(rates.cache_read, "cacheRead"),
    )
