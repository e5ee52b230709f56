"""What tokens cost: rates by context tier and service tier, for every model or for some, from a moment on."""

from typing import Annotated

from pydantic import Field, StringConstraints

from m3_operator.spec.fragments import ATOMIC, Model

# Three decimals of a dollar per million tokens are exactly one nano-dollar per token, the unit that costs are kept in.
UsdPerMillionTokens = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}(\.[0-9]{1,3})?$", max_length=10)]
Factor = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}(\.[0-9]{1,3})?$", max_length=7)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[!-~]+$", min_length=1, max_length=256)]


class ContextTier(Model):
    """Where the long-context price begins."""

    threshold_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] = 512_000
    """Input tokens up to which a request is `standard`; above, the whole request is `long`."""
    inclusive: bool = True
    """Whether a request of exactly thresholdTokens is `standard`."""


class Rates(Model):
    """US dollars per million tokens, as decimal strings with at most three decimals."""

    input: UsdPerMillionTokens
    """Input tokens that were not in the cache."""
    output: UsdPerMillionTokens
    """Output tokens."""
    cache_read: UsdPerMillionTokens
    """Input tokens that were read from the cache."""
    cache_write: UsdPerMillionTokens | None = None
    """Input tokens that were written to the cache; absent: what input costs."""


class TierRates(Model):
    """Rates of one service tier, by context tier."""

    standard: Rates
    """Rates of the standard context tier."""
    long: Rates
    """Rates of the long context tier."""


class Prices(Model):
    """What tokens cost, by context tier and service tier."""

    standard: Rates = Rates(input="0.30", output="1.20", cache_read="0.06")
    """Rates of the standard context tier."""
    long: Rates = Rates(input="0.60", output="2.40", cache_read="0.12")
    """Rates of the long context tier."""
    priority_factor: Factor = "1.5"
    """What the priority service tier multiplies either by; at least 1."""
    batch_factor: Factor = "1"
    """What the batch service tier multiplies either by; above 0 and at most 1."""
    priority: TierRates | None = None
    """Rates of the priority service tier written out, instead of priorityFactor."""
    batch: TierRates | None = None
    """Rates of the batch service tier written out, instead of batchFactor."""


class ModelPrices(Prices):
    """Prices of some models, from a moment on, in place of `prices`."""

    models: Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=64, json_schema_extra=ATOMIC)]
    """Models by the names that routers serve them under, no aliases; `*`: every one without an entry of its own."""
    effective_from: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    """When they begin to hold, such as 2027-01-01T00:00:00Z; absent: since ever."""
    context_tier: ContextTier | None = None
    """Where the long-context price of these models begins; absent: as for all."""
