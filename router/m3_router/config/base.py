"""What all settings have in common: names and types with their rules, and how a fault is worded.

Owns the base class of every setting and the annotated types. Owns no setting.
"""

import ipaddress
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.alias_generators import to_camel

ServiceTier = Literal["standard", "priority", "batch"]
ContextTier = Literal["standard", "long"]
NANOUSD_PER_USD: Final = 1_000_000_000
TOKENS_PER_PRICE_UNIT = 10**6  # prices are written in USD per this many tokens

_DECIMAL: Final = re.compile(r"\d{1,9}(\.\d{1,9})?")
_TENANT: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_MODEL: Final = re.compile(r"[!-~]{1,256}")


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


def not_empty(value: tuple[object, ...]) -> tuple[object, ...]:
    """Refuse an empty list. Not `min_length`, which would report it beside the fault of the only item."""
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


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    try:
        has_port = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        has_port = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port or parts.query or parts.fragment:
        raise ValueError(f"{value!r} is not an http:// or https:// URL without a query")
    if parts.username or parts.password:
        raise ValueError("a URL must not hold a password; name a file for it")  # the value holds one
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


def refuse_repeated(what: str, values: Iterable[str]) -> None:
    """Raise ValueError if a value is there twice."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what}: {value!r} is named twice")
        seen.add(value)


Money = Annotated[
    Decimal, BeforeValidator(_decimal), PlainSerializer(lambda value: format(value, "f"), when_used="json")
]
TenantName = Annotated[str, _pattern(_TENANT, "a tenant name (letters, digits, '.', '_', '-'; at most 63)")]
ObjectName = Annotated[str, _pattern(_NAME, "a name (lower-case letters, digits, '.', '-'; at most 253)")]
ModelName = Annotated[str, _pattern(_MODEL, "a model name (visible ASCII without spaces; at most 256)")]
Digest = Annotated[str, AfterValidator(_sha256)]
Address = Annotated[str, AfterValidator(_address)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of every setting: frozen, camelCase in YAML, unknown fields refused, values never repeated in messages."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True
    )


def explain(error: ValidationError, *, hidden: frozenset[str] = frozenset()) -> str:
    """The faults, one a line: `path.to.field: rule`. `hidden`: names of union members, which are no fields."""
    lines = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part) for part in fault["loc"] if part not in hidden)
        message = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {message}" if where else message)
    return "\n".join(lines)


def parse_yaml(text: str) -> Any:  # noqa: ANN401 - a parsed document has any type until it is checked
    """A YAML document. Raises ConfigError."""
    import yaml

    try:
        # The C loader reads ten thousand keys in a fifth of the time.
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from error
