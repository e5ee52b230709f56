"""The configuration of one router: a frozen pydantic tree, read from YAML.

Owns the root, the rules between its parts, and the text form (`from_yaml`, `to_yaml`, `load`). Owns no behaviour:
prices are made into integers by `prices`, keys looked up by `tenants`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError, model_validator

from m3_router.config.access import AuthSettings
from m3_router.config.base import (
    Address,
    ConfigError,
    Digest,
    ModelName,
    Settings,
    explain,
    is_loopback,
    not_empty,
    parse_yaml,
    refuse_repeated,
    split_address,
)
from m3_router.config.limits import LaneSettings, LimitSettings
from m3_router.config.pools import WORKER_TAGS, ModelRoute, PoolSettings
from m3_router.config.prices import EVERY_MODEL, ContextTierSettings, ModelPriceSettings, PriceSettings
from m3_router.config.services import (
    AffinitySettings,
    LedgerSettings,
    ModerationSettings,
    RedisSettings,
    TracingSettings,
)


def _auth_mode(value: object) -> str:
    return "keys mode" if isinstance(value, dict | AuthSettings) else "no keys"


Auth = Annotated[
    Annotated[Literal["none"], Tag("no keys")] | Annotated[AuthSettings, Tag("keys mode")], Discriminator(_auth_mode)
]
_UNION_TAGS = WORKER_TAGS | {"no keys", "keys mode"}


# libyaml's, ten times as quick, where PyYAML was built with it (its wheels are). Texts may differ in how long strings
# that need escapes are folded, never in what they say.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class RouterConfig(Settings):
    """The whole configuration of one router."""

    listen: Address = "127.0.0.1:8080"
    admin: Address = "127.0.0.1:9090"
    admin_key_sha256: Digest | None = None  # without it, what is not for everyone is only for this machine
    processes: int = Field(default=1, ge=1, le=128)  # share `listen` (SO_REUSEPORT); each is a replica of its own
    allow_insecure: bool = False
    auth: Auth
    context_tier: ContextTierSettings = ContextTierSettings()
    prices: PriceSettings = PriceSettings()
    model_prices: tuple[ModelPriceSettings, ...] = ()
    lanes: LaneSettings = LaneSettings()
    limits: LimitSettings = LimitSettings()
    affinity: AffinitySettings = AffinitySettings()
    ledger: LedgerSettings = LedgerSettings()
    redis: RedisSettings | None = None
    moderation: ModerationSettings | None = None
    tracing: TracingSettings | None = None
    pools: Annotated[tuple[PoolSettings, ...], AfterValidator(not_empty)]
    routes: tuple[ModelRoute, ...] = ()  # of models that several pools serve
    aliases: Mapping[ModelName, ModelName] = Field(default_factory=dict)  # other names that clients may use

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.auth == "none" and not self.allow_insecure and not is_loopback(split_address(self.listen)[0]):
            raise ValueError(
                f"auth: none would let everyone who reaches {self.listen} use the workers; "
                "configure keys, listen on a loopback address, or set allowInsecure: true"
            )
        refuse_repeated("pools.name", [pool.name for pool in self.pools])
        self._check_routes()
        self._check_model_prices()
        for pool in self.pools:
            share = standard_share_tokens(pool.tokens_in_flight, self.lanes.priority_reserved_share)
            if share < pool.max_context_tokens:
                raise ValueError(
                    f"pools.{pool.name}.tokensInFlight: {pool.tokens_in_flight} leaves the standard lane {share} "
                    f"tokens, fewer than one request of maxContextTokens {pool.max_context_tokens} needs"
                )
        return self

    def _check_routes(self) -> None:
        """Every model has one pool, or a route that says how its pools share it; every alias leads to a model."""
        refuse_repeated("routes.model", [route.model for route in self.routes])
        routed = {route.model: route for route in self.routes}
        servers: dict[str, list[str]] = {}
        for pool in self.pools:
            for model in pool.models:
                servers.setdefault(model, []).append(pool.name)
        for model, names in servers.items():
            if len(names) > 1 and model not in routed:
                raise ValueError(
                    f"pools.models: {model!r} is named twice (pools {', '.join(names)}); "
                    "say in `routes` how they share its requests"
                )
        for route in self.routes:
            for share in route.pools:
                if share.pool not in servers.get(route.model, []):
                    raise ValueError(f"routes.{route.model}: pool {share.pool!r} does not serve this model")
        for alias, model in self.aliases.items():
            if model not in servers:
                raise ValueError(f"aliases.{alias}: no pool serves {model!r}")
            if alias in servers:
                raise ValueError(f"aliases.{alias}: a pool serves a model of this name")

    def _check_model_prices(self) -> None:
        """Every price is of a model that a pool serves, by its own name: under another it would never hold."""
        served = {model for pool in self.pools for model in pool.models}
        for place, entry in enumerate(self.model_prices):
            for model in entry.models:
                if model in self.aliases:
                    raise ValueError(
                        f"modelPrices.{place}.models: {model!r} is an alias; "
                        f"name the model behind it, {self.aliases[model]!r}, which its requests are priced by"
                    )
                if model != EVERY_MODEL and model not in served:
                    raise ValueError(
                        f"modelPrices.{place}.models: no pool serves {model!r}; "
                        f"name one of {', '.join(sorted(served))}, or {EVERY_MODEL!r} for all of them"
                    )
        dated = [(model, entry.effective_from) for entry in self.model_prices for model in entry.models]
        refuse_repeated("modelPrices", [f"{model} from {moment or 'ever'}" for model, moment in dated])

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Parse and check. Raises ConfigError."""
        document = parse_yaml(text)
        if not isinstance(document, dict):
            raise ConfigError("the configuration is not a mapping of settings")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(explain(error, hidden=_UNION_TAGS)) from error

    def to_yaml(self) -> str:
        """The text that `from_yaml` reads back as an equal configuration."""
        document = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        text: str = yaml.dump(document, Dumper=_DUMPER, sort_keys=False)
        return text


def load(path: Path) -> RouterConfig:
    """Read and check a file. Raises ConfigError, its message beginning with the path."""
    try:
        return RouterConfig.from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def standard_share_tokens(tokens_in_flight: int, priority_reserved_share: float) -> int:
    """The part of a pool's tokens in flight that is not reserved for the priority lane."""
    return tokens_in_flight - int(tokens_in_flight * priority_reserved_share)
