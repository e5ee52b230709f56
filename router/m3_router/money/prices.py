"""What a request costs: context tier x service tier in integer nano-dollars per token, by model and by date.

Owns the rates in force, the thresholds between the context tiers, and the arithmetic: of what was used (`cost`), and
of what a request may come to before it runs (`quote`). Pure; knows no request, only counts of tokens, and takes the
time from its caller. A request costs what holds when it came, so `wall` is its arrival in both.

Which rates hold for a model at a moment: of the entries of `modelPrices` that name the model and have begun, the
newest; else the newest such entry for `*`; else `prices`.
"""

from bisect import bisect_right
from typing import Final

from mypy_extensions import mypyc_attr

from m3_router.config import (
    EVERY_MODEL,
    NANOUSD_PER_USD,
    ContextTier,
    ContextTierSettings,
    ModelPriceSettings,
    PriceSettings,
    RateSettings,
    RouterConfig,
    ServiceTier,
    nanousd_per_token,
)
from m3_router.money.bill import Usage

# What a queue expects of an answer whose length is not known: chat turns and tool calls mostly end within it. It only
# orders those who wait; what was really used corrects it.
EXPECTED_OUTPUT_TOKENS: Final = 512
_SINCE_EVER: Final = float("-inf")
_FOR_EVER: Final = float("inf")
_SERVICE_TIERS: Final[tuple[ServiceTier, ...]] = ("standard", "priority", "batch")


class Rates:
    """Nano-dollars per token of one pair of tiers."""

    __slots__ = (
        "cache_read_nanousd",
        "cache_write_nanousd",
        "dearest_input_nanousd",
        "input_nanousd",
        "output_nanousd",
    )

    def __init__(self, rates: RateSettings) -> None:
        self.input_nanousd: int = nanousd_per_token(rates.input, "input")
        self.output_nanousd: int = nanousd_per_token(rates.output, "output")
        self.cache_read_nanousd: int = nanousd_per_token(rates.cache_read, "cacheRead")
        self.cache_write_nanousd: int = self.input_nanousd
        if rates.cache_write is not None:
            self.cache_write_nanousd = nanousd_per_token(rates.cache_write, "cacheWrite")
        # The most that an input token can cost, whether it turns out cached, written to the cache, or neither.
        self.dearest_input_nanousd: int = max(self.input_nanousd, self.cache_read_nanousd, self.cache_write_nanousd)

    def cost_nanousd(self, usage: Usage) -> int:
        """Plain input + cache reads + cache writes + output, each at its rate."""
        cached, written = usage.cached_tokens, usage.cache_write_tokens
        return (
            (usage.input_tokens - cached - written) * self.input_nanousd
            + cached * self.cache_read_nanousd
            + written * self.cache_write_nanousd
            + usage.output_tokens * self.output_nanousd
        )

    def bound_nanousd(self, input_tokens: int, output_tokens: int) -> int:
        """The most that so many tokens can cost."""
        return input_tokens * self.dearest_input_nanousd + output_tokens * self.output_nanousd


class Tariff:
    """All rates of one model while they hold, and where its long context tier begins."""

    __slots__ = ("is_inclusive", "long", "standard", "standard_up_to_tokens", "threshold_tokens")

    def __init__(self, prices: PriceSettings, context_tier: ContextTierSettings) -> None:
        self.threshold_tokens: int = context_tier.threshold_tokens
        self.is_inclusive: bool = context_tier.inclusive  # whether the threshold itself is still `standard`
        # The largest number of input tokens that is still `standard`.
        self.standard_up_to_tokens: int = context_tier.threshold_tokens - (0 if context_tier.inclusive else 1)
        self.standard: dict[str, Rates] = {tier: Rates(prices.rates("standard", tier)) for tier in _SERVICE_TIERS}
        self.long: dict[str, Rates] = {tier: Rates(prices.rates("long", tier)) for tier in _SERVICE_TIERS}

    def context_tier(self, input_tokens: int) -> ContextTier:
        """The tier of a whole request with this many input tokens."""
        return "standard" if input_tokens <= self.standard_up_to_tokens else "long"

    def rates(self, input_tokens: int, service_tier: ServiceTier) -> Rates:
        """The rates of a whole request with this many input tokens."""
        return (self.standard if input_tokens <= self.standard_up_to_tokens else self.long)[service_tier]

    def weigh(self, nanousd: int, tokens: int) -> int:
        """Money as tokens of plain standard input, which is what tenants share a queue by; at least 1.

        A model's own unit: it means the same before and after its prices turn. tokens: the weight where input is free.
        """
        unit_nanousd = self.standard["standard"].input_nanousd
        return max(nanousd // unit_nanousd if unit_nanousd else tokens, 1)


@mypyc_attr(free_list_len=1)
class Quote:
    """What a request of between low and high input tokens, and at most so many of output, may come to.

    cost_low_nanousd, cost_high_nanousd: the most that it can cost if its input is at the low, at the high end.
    needs_exact: the two ends lie in different context tiers, so only the exact number tells what it costs.
    weighted_tokens: what it is expected to cost, in tokens of plain standard input.
    """

    __slots__ = (
        "context_tier_high",
        "context_tier_low",
        "cost_high_nanousd",
        "cost_low_nanousd",
        "high_tokens",
        "low_tokens",
        "max_output_tokens",
        "needs_exact",
        "standard_up_to_tokens",
        "weighted_tokens",
    )

    def __init__(  # noqa: PLR0917 - an interval in three ints: an object more for each request would cost as much again
        self, tariff: Tariff, service_tier: ServiceTier, low: int, likely: int, high: int, max_output_tokens: int
    ) -> None:
        at_low, at_high = tariff.rates(low, service_tier), tariff.rates(high, service_tier)
        up_to = tariff.standard_up_to_tokens
        self.low_tokens = low
        self.high_tokens = high
        self.max_output_tokens = max_output_tokens
        self.standard_up_to_tokens = up_to
        self.context_tier_low: ContextTier = tariff.context_tier(low)
        self.context_tier_high: ContextTier = tariff.context_tier(high)
        self.needs_exact: bool = low <= up_to < high
        self.cost_low_nanousd: int = at_low.bound_nanousd(low, max_output_tokens)
        self.cost_high_nanousd: int = at_high.bound_nanousd(high, max_output_tokens)
        if self.needs_exact:  # a table may make long requests cheaper, so the dearest may be the longest standard one
            self.cost_high_nanousd = max(self.cost_high_nanousd, at_low.bound_nanousd(up_to, max_output_tokens))
        output_tokens = min(max_output_tokens, EXPECTED_OUTPUT_TOKENS)
        rates = tariff.rates(likely, service_tier)
        expected_nanousd = likely * rates.input_nanousd + output_tokens * rates.output_nanousd
        self.weighted_tokens: int = tariff.weigh(expected_nanousd, likely + output_tokens)


class _Schedule:
    """The tariffs of one model, one after the other. Remembers which held last, since time seldom turns one."""

    __slots__ = ("_current", "_from", "_tariffs", "_turns", "_until")

    def __init__(self, turns: list[float], tariffs: list[Tariff]) -> None:
        # _tariffs[i] holds from _turns[i] (seconds since the epoch) on, until _turns[i + 1]; the first since ever.
        self._turns = turns
        self._tariffs = tariffs
        self._current: Tariff = tariffs[0]
        self._from: float = _SINCE_EVER
        self._until: float = turns[1] if len(turns) > 1 else _FOR_EVER

    def at(self, wall: float) -> Tariff:
        if self._from <= wall < self._until:
            return self._current
        place = bisect_right(self._turns, wall) - 1
        self._current = self._tariffs[place]
        self._from = self._turns[place]
        self._until = self._turns[place + 1] if place + 1 < len(self._turns) else _FOR_EVER
        return self._current


class PriceTable:
    """The prices of every model at every time. `wall`: seconds since the epoch at which the request came."""

    def __init__(self, config: RouterConfig) -> None:
        named = {model for entry in config.model_prices for model in entry.models}
        self._others = _schedule(config, EVERY_MODEL)  # of models that no entry names
        self._schedules: dict[str, _Schedule] = {model: _schedule(config, model) for model in sorted(named)}

    def tariff(self, model: str, wall: float) -> Tariff:
        """What holds for a model at a time."""
        return self._schedules.get(model, self._others).at(wall)

    def context_tier(self, model: str, input_tokens: int, wall: float) -> ContextTier:
        """The tier of a whole request with this many input tokens."""
        return self.tariff(model, wall).context_tier(input_tokens)

    def quote(  # noqa: PLR0917 - as Quote
        self,
        model: str,
        service_tier: ServiceTier,
        low: int,
        likely: int,
        high: int,
        max_output_tokens: int,
        wall: float,
    ) -> Quote:
        """What a request may come to. max_output_tokens: of all of its answers together."""
        return Quote(self.tariff(model, wall), service_tier, low, likely, high, max_output_tokens)

    def cost(self, model: str, service_tier: ServiceTier, usage: Usage, wall: float) -> tuple[ContextTier, int]:
        """The context tier of a request, which follows from its input tokens, and what it cost in nano-dollars."""
        tariff = self.tariff(model, wall)
        input_tokens = usage.input_tokens
        return tariff.context_tier(input_tokens), tariff.rates(input_tokens, service_tier).cost_nanousd(usage)

    def weighted_tokens(self, model: str, usage: Usage, cost_nanousd: int, wall: float) -> int:
        """What a request did cost, in tokens of plain standard input: the correction of `Quote.weighted_tokens`."""
        return self.tariff(model, wall).weigh(cost_nanousd, usage.input_tokens + usage.output_tokens)


def format_usd(nanousd: int) -> bytes:
    """Nano-dollars (0 or more) as an exact decimal number of US dollars, such as `0.000123400`."""
    nano = str(NANOUSD_PER_USD + nanousd % NANOUSD_PER_USD).encode()
    return str(nanousd // NANOUSD_PER_USD).encode() + b"." + nano[1:]


def _schedule(config: RouterConfig, model: str) -> _Schedule:
    """Every moment at which the prices of a model may turn, with what holds from it on."""
    turns = {_begins(entry) for entry in config.model_prices if model in entry.models or EVERY_MODEL in entry.models}
    moments = sorted(turns | {_SINCE_EVER})
    return _Schedule(moments, [_in_force(config, model, moment) for moment in moments])


def _in_force(config: RouterConfig, model: str, moment: float) -> Tariff:
    for name in (model, EVERY_MODEL):
        begun = [entry for entry in config.model_prices if name in entry.models and _begins(entry) <= moment]
        if begun:
            newest = max(begun, key=_begins)
            return Tariff(newest, newest.context_tier or config.context_tier)
    return Tariff(config.prices, config.context_tier)


def _begins(entry: ModelPriceSettings) -> float:
    return _SINCE_EVER if entry.effective_from is None else entry.effective_from.timestamp()
