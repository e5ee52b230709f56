"""The configuration of one router: a frozen pydantic tree, read once from YAML.

Owns names, defaults and rules of every setting, and the text form (`from_yaml`, `to_yaml`, `load`). Owns no behaviour:
prices are made into integers by `prices`, keys looked up by `tenants`. Imports pydantic, yaml and the standard library
only, because the operator imports this module to render the file.
"""

import ipaddress
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

ServiceTier = Literal["standard", "priority"]
NANOUSD_PER_USD = 10**9
TOKENS_PER_PRICE_UNIT = 10**6  # prices are written in USD per this many tokens

_DECIMAL = re.compile(r"\d{1,9}(\.\d{1,9})?")
_TENANT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_MODEL = re.compile(r"[!-~]{1,256}")


class ConfigError(ValueError):
    """A configuration that cannot be used. The message has one line per fault: field, value, rule."""


def _decimal(value: object) -> object:
    if isinstance(value, float):
        raise ValueError(f'{value!r} is a float; write money and factors as quoted decimals, such as "0.30"')
    if isinstance(value, str) and not _DECIMAL.fullmatch(value):
        raise ValueError(f'{value!r} is not a decimal number such as "0.30" (at most nine digits on either side)')
    return value


def _pattern(rule: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not rule.fullmatch(value):
            raise ValueError(f"{value!r} is not {what}")
        return value

    return AfterValidator(check)


def _not_empty(value: tuple[object, ...]) -> tuple[object, ...]:
    # Not `min_length`, which would report "at least one" beside the fault of the only item.
    if not value:
        raise ValueError("needs at least one item")
    return value


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError("expected the SHA-256 digest of the key as 64 hexadecimal digits")  # the value may be the key
    return value.lower()


def _address(value: str) -> str:
    split_address(value)
    return value


def _worker_url(value: str) -> str:
    parts = urlsplit(value)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or port is None or parts.path not in ("", "/") or parts.query:
        raise ValueError(f"{value!r} is not http://HOST:PORT")
    return value.rstrip("/")


def split_address(address: str) -> tuple[str, int]:
    """Split `HOST:PORT` (IPv6 hosts in brackets). Port 0 lets the system choose. Raises ValueError."""
    host, separator, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not separator or not host or (":" in host and not bracketed) or not port.isascii() or not port.isdigit():
        raise ValueError(f"{address!r} is not HOST:PORT")
    if int(port) > 65535:
        raise ValueError(f"{address!r}: the port is above 65535")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def join_url(host: str, port: int) -> str:
    """`http://HOST:PORT`, with brackets around an IPv6 host."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def nanousd_per_token(usd_per_million: Decimal, what: str) -> int:
    """USD per million tokens as whole nano-dollars per token. Raises ValueError, its message beginning with `what`."""
    nanousd = usd_per_million * (NANOUSD_PER_USD // TOKENS_PER_PRICE_UNIT)
    if nanousd != int(nanousd):
        raise ValueError(
            f"{what} is {nanousd.normalize():f} nano-dollars per token; "
            "it must be a whole number (a multiple of 0.001 USD per million tokens)"
        )
    return int(nanousd)


Money = Annotated[
    Decimal, BeforeValidator(_decimal), PlainSerializer(lambda value: format(value, "f"), when_used="json")
]
Tenant = Annotated[str, _pattern(_TENANT, "a tenant name (letters, digits, '.', '_', '-'; at most 63)")]
ObjectName = Annotated[str, _pattern(_NAME, "a name (lower-case letters, digits, '.', '-'; at most 253)")]
ModelName = Annotated[str, _pattern(_MODEL, "a model name (visible ASCII without spaces; at most 256)")]
Digest = Annotated[str, AfterValidator(_sha256)]
Address = Annotated[str, AfterValidator(_address)]
WorkerUrl = Annotated[str, AfterValidator(_worker_url)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class _Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True
    )


class KeySettings(_Settings):
    """One API key: whose it is and which service tiers it opens. The key itself is never written down."""

    tenant: Tenant
    sha256: Digest
    service_tiers: Annotated[tuple[ServiceTier, ...], AfterValidator(_not_empty)] = ("standard",)


class AuthSettings(_Settings):
    """Where the keys are: in this file, in a file of their own (a YAML list of the same form), or both."""

    keys: tuple[KeySettings, ...] = ()
    keys_file: Path | None = None

    @model_validator(mode="after")
    def _has_keys(self) -> Self:
        if not self.keys and self.keys_file is None:
            raise ValueError("needs keys, keysFile or both; without any, nobody could use the router")
        return self


class ContextTierSettings(_Settings):
    """Requests of up to `threshold_tokens` input tokens are `standard`, above it the whole request is `long`."""

    threshold_tokens: int = Field(default=512_000, ge=1)
    inclusive: bool = True  # whether the threshold itself is still `standard`


class RateSettings(_Settings):
    """USD per million tokens."""

    input: Money
    output: Money
    cache_read: Money


class PriceSettings(_Settings):
    """Rates by context tier, and the factor of the priority service tier on all of them."""

    standard: RateSettings = RateSettings(input=Decimal("0.30"), output=Decimal("1.20"), cache_read=Decimal("0.06"))
    long: RateSettings = RateSettings(input=Decimal("0.60"), output=Decimal("2.40"), cache_read=Decimal("0.12"))
    priority_factor: Money = Decimal("1.5")

    @model_validator(mode="after")
    def _whole_nanousd(self) -> Self:
        if self.priority_factor < 1:
            raise ValueError(f"priorityFactor: {self.priority_factor} is below 1")
        for tier in ("standard", "long"):
            for field, rate in getattr(self, tier):
                where = f"{tier}.{to_camel(field)}"
                nanousd_per_token(rate, f"{where}: {rate} USD per million tokens")
                priority = rate * self.priority_factor
                nanousd_per_token(priority, f"{where}: {rate} x priorityFactor {self.priority_factor} = {priority}")
        return self


class LaneSettings(_Settings):
    """How waiting is arranged between the service tiers."""

    priority_reserved_share: float = Field(default=0.25, ge=0, le=0.9, allow_inf_nan=False)
    max_wait_seconds: Seconds = 30


class LimitSettings(_Settings):
    """Bounds on what a stranger or a broken worker can make the router hold or wait for."""

    body_bytes: int = Field(default=64 * 2**20, ge=1024, le=2**31)
    head_bytes: int = Field(default=64 * 2**10, ge=1024, le=2**20)
    buffered_bytes: int = Field(default=2 * 2**30, ge=2**20)  # all request bodies in memory together
    connections: int = Field(default=8192, ge=1)
    head_seconds: Seconds = 10
    body_stall_seconds: Seconds = 30
    keep_alive_seconds: Seconds = 75
    connect_seconds: Seconds = 5
    first_byte_seconds: Seconds = 3600
    idle_seconds: Seconds = 300
    drain_seconds: Seconds = 60

    @model_validator(mode="after")
    def _one_body_fits(self) -> Self:
        if self.buffered_bytes < self.body_bytes:
            raise ValueError(f"bufferedBytes: {self.buffered_bytes} is below bodyBytes {self.body_bytes}")
        return self


class ServiceWorkers(_Settings):
    """The ready endpoints of a Kubernetes Service, followed through its EndpointSlices."""

    service: ObjectName
    namespace: ObjectName
    port: ObjectName = "http"


def _worker_source(value: object) -> str:
    return "service endpoints" if isinstance(value, dict | ServiceWorkers) else "urls"


def _auth_mode(value: object) -> str:
    return "keys mode" if isinstance(value, dict | AuthSettings) else "no keys"


# Which member of a union is meant is decided by its YAML type, so that a fault is explained for that member alone.
Workers = Annotated[
    Annotated[tuple[WorkerUrl, ...], AfterValidator(_not_empty), Tag("urls")]
    | Annotated[ServiceWorkers, Tag("service endpoints")],
    Discriminator(_worker_source),
]
Auth = Annotated[
    Annotated[Literal["none"], Tag("no keys")] | Annotated[AuthSettings, Tag("keys mode")], Discriminator(_auth_mode)
]
_UNION_TAGS = frozenset({"urls", "service endpoints", "no keys", "keys mode"})
_KEYS = TypeAdapter(tuple[KeySettings, ...])


class PoolSettings(_Settings):
    """Workers that serve the same models, and how much they may have in flight together."""

    name: ObjectName
    models: Annotated[tuple[ModelName, ...], AfterValidator(_not_empty)]
    max_context_tokens: int = Field(default=1_048_576, ge=1)
    tokens_in_flight: int = Field(default=4_194_304, ge=1)
    queue_requests: int = Field(default=1024, ge=0)  # per lane
    workers: Workers

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        _refuse_repeated("models", self.models)
        if not isinstance(self.workers, ServiceWorkers):
            _refuse_repeated("workers", self.workers)
        return self


class RouterConfig(_Settings):
    """The whole configuration of one router."""

    listen: Address = "127.0.0.1:8080"
    admin: Address = "127.0.0.1:9090"
    allow_insecure: bool = False
    auth: Auth
    context_tier: ContextTierSettings = ContextTierSettings()
    prices: PriceSettings = PriceSettings()
    lanes: LaneSettings = LaneSettings()
    limits: LimitSettings = LimitSettings()
    pools: Annotated[tuple[PoolSettings, ...], AfterValidator(_not_empty)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.auth == "none" and not self.allow_insecure and not is_loopback(split_address(self.listen)[0]):
            raise ValueError(
                f"auth: none would let everyone who reaches {self.listen} use the workers; "
                "configure keys, listen on a loopback address, or set allowInsecure: true"
            )
        _refuse_repeated("pools.name", [pool.name for pool in self.pools])
        _refuse_repeated("pools.models", [model for pool in self.pools for model in pool.models])
        for pool in self.pools:
            share = standard_share_tokens(pool.tokens_in_flight, self.lanes.priority_reserved_share)
            if share < pool.max_context_tokens:
                raise ValueError(
                    f"pools.{pool.name}.tokensInFlight: {pool.tokens_in_flight} leaves the standard lane {share} "
                    f"tokens, fewer than one request of maxContextTokens {pool.max_context_tokens} needs"
                )
        return self

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Parse and check. Raises ConfigError."""
        document = _parse_yaml(text)
        if not isinstance(document, dict):
            raise ConfigError("the configuration is not a mapping of settings")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from error

    def to_yaml(self) -> str:
        """The text that `from_yaml` reads back as an equal configuration."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=False)


def load(path: Path) -> RouterConfig:
    """Read and check a file. Raises ConfigError, its message beginning with the path."""
    try:
        return RouterConfig.from_yaml(_read(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def keys_from_yaml(text: str) -> tuple[KeySettings, ...]:
    """The keys of a keys file: a YAML list of `{tenant, sha256, serviceTiers}`. Raises ConfigError."""
    try:
        return _KEYS.validate_python(_parse_yaml(text) or [])
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def keys_to_yaml(keys: Iterable[KeySettings]) -> str:
    """The text of a keys file, which `keys_from_yaml` reads back."""
    return yaml.safe_dump([key.model_dump(mode="json", by_alias=True) for key in keys], sort_keys=False)


def load_keys(auth: AuthSettings) -> tuple[KeySettings, ...]:
    """All keys: those written in the configuration, then those of the keys file. Raises ConfigError."""
    if auth.keys_file is None:
        return auth.keys
    try:
        return auth.keys + keys_from_yaml(_read(auth.keys_file))
    except ConfigError as error:
        raise ConfigError(f"auth.keysFile {auth.keys_file}: {error}") from error


def standard_share_tokens(tokens_in_flight: int, priority_reserved_share: float) -> int:
    """The part of a pool's tokens in flight that is not reserved for the priority lane."""
    return tokens_in_flight - int(tokens_in_flight * priority_reserved_share)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}") from error


def _parse_yaml(text: str) -> Any:  # noqa: ANN401 - a parsed document has any type until it is checked
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from error


def _explain(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part) for part in fault["loc"] if part not in _UNION_TAGS)
        message = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {message}" if where else message)
    return "\n".join(lines)


def _refuse_repeated(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what}: {value!r} is named twice")
        seen.add(value)
