"""What tokens cost: rates by context tier x service tier, for which models, from when on."""

from decimal import Decimal
from typing import Annotated, Self

from pydantic import AfterValidator, AwareDatetime, Field, model_validator
from pydantic.alias_generators import to_camel

from m3_router.config.base import (
    NANOUSD_PER_USD,
    TOKENS_PER_PRICE_UNIT,
    ContextTier,
    ModelName,
    Money,
    ServiceTier,
    Settings,
    not_empty,
)

EVERY_MODEL = "*"


def nanousd_per_token(usd_per_million: Decimal, what: str) -> int:
    """USD per million tokens as whole nano-dollars per token. Raises ValueError, its message beginning with `what`."""
    nanousd = usd_per_million * (NANOUSD_PER_USD // TOKENS_PER_PRICE_UNIT)
    if nanousd != int(nanousd):
        raise ValueError(
            f"{what} is {nanousd.normalize():f} nano-dollars per token; "
            "it must be a whole number (a multiple of 0.001 USD per million tokens)"
        )
    return int(nanousd)


class ContextTierSettings(Settings):
    """Requests of up to `threshold_tokens` input tokens are `standard`, above it the whole request is `long`."""

    threshold_tokens: int = Field(default=512_000, ge=1)
    inclusive: bool = True  # whether the threshold itself is still `standard`


class RateSettings(Settings):
    """USD per million tokens. Without `cache_write`, a token that is written to the cache costs what input costs."""

    input: Money
    output: Money
    cache_read: Money
    cache_write: Money | None = None

    def times(self, factor: Decimal) -> "RateSettings":
        """Every rate, multiplied."""
        return RateSettings(
            input=self.input * factor,
            output=self.output * factor,
            cache_read=self.cache_read * factor,
            cache_write=None if self.cache_write is None else self.cache_write * factor,
        )


class TierRateSettings(Settings):
    """Rates of one service tier, by context tier."""

    standard: RateSettings
    long: RateSettings


class PriceSettings(Settings):
    """Rates of the standard service tier by context tier; those of the others by factor, or written out."""

    standard: RateSettings = RateSettings(input=Decimal("0.30"), output=Decimal("1.20"), cache_read=Decimal("0.06"))
    long: RateSettings = RateSettings(input=Decimal("0.60"), output=Decimal("2.40"), cache_read=Decimal("0.12"))
    priority_factor: Money = Decimal("1.5")
    batch_factor: Money = Decimal(1)
    priority: TierRateSettings | None = None  # in place of the factor
    batch: TierRateSettings | None = None

    @model_validator(mode="after")
    def _whole_nanousd(self) -> Self:
        if self.priority_factor < 1:
            raise ValueError(f"priorityFactor: {self.priority_factor} is below 1")
        if not 0 < self.batch_factor <= 1:
            raise ValueError(f"batchFactor: {self.batch_factor} is not above 0 and at most 1")
        contexts: tuple[ContextTier, ...] = ("standard", "long")
        for context in contexts:
            _check_whole(getattr(self, context), context, "")
            for service in ("priority", "batch"):
                if getattr(self, service) is None:
                    factor = getattr(self, f"{service}_factor")
                    _check_whole(getattr(self, context), context, service, factor)
                else:
                    _check_whole(getattr(getattr(self, service), context), f"{service}.{context}", "")
        return self

    def rates(self, context: ContextTier, service: ServiceTier) -> RateSettings:
        """The rates of one pair of tiers."""
        base = self.standard if context == "standard" else self.long
        if service == "standard":
            return base
        written = self.priority if service == "priority" else self.batch
        if written is None:
            return base.times(self.priority_factor if service == "priority" else self.batch_factor)
        return written.standard if context == "standard" else written.long


class ModelPriceSettings(PriceSettings):
    """Prices of some models, from a moment on, in place of `prices`.

    `*` means every model for which no entry of its own has begun.
    """

    models: Annotated[tuple[ModelName, ...], AfterValidator(not_empty)]
    effective_from: AwareDatetime | None = None  # None: since ever
    context_tier: ContextTierSettings | None = None  # None: the router's `contextTier`


def _check_whole(rates: RateSettings, where: str, service: str, factor: Decimal = Decimal(1)) -> None:
    for field, rate in rates:
        if rate is None:
            continue
        name = f"{where}.{to_camel(field)}"
        if service:
            product = rate * factor
            nanousd_per_token(product, f"{name}: {rate} x {service}Factor {factor} = {product}")
        else:
            nanousd_per_token(rate, f"{name}: {rate} USD per million tokens")
