"""What the router does beside relaying: placement by cached prefix, what replicas share, the ledger's file, hooks."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from m3_router.config.base import ConfigError, HttpUrl, ObjectName, Seconds, Settings, Share

_REDIS_FORM = "is not redis://HOST:PORT/DB, rediss:// or unix:///PATH"


def _is_redis_url(value: str) -> bool:
    parts = urlsplit(value)
    return parts.scheme in ("redis", "rediss", "unix") and bool(parts.hostname or parts.path)


def _redis_url(value: str) -> str:
    if not _is_redis_url(value):
        raise ValueError(f"{value!r} {_REDIS_FORM}")
    if urlsplit(value).password:
        raise ValueError("a URL must not hold a password; name a file for it with passwordFile")
    return value


class RedisSettings(Settings):
    """Where replicas meet. Nothing on the way of a request waits for it."""

    url: Annotated[str, AfterValidator(_redis_url)] | None = None
    url_file: Path | None = None  # instead of `url`, and may hold a password; read when the router starts
    password_file: Path | None = None
    key_prefix: ObjectName = "m3"
    call_seconds: float = Field(default=0.02, gt=0, le=1, allow_inf_nan=False)  # the longest that one call may take

    @model_validator(mode="after")
    def _has_one_url(self) -> Self:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("needs either url or urlFile")
        return self

    def read_url(self) -> str:
        """The URL, from its file if that is where it is. Raises ConfigError, which never says what the file holds."""
        if self.url_file is None:
            assert self.url is not None  # noqa: S101 - one of the two is there
            return self.url
        try:
            url = self.url_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"redis.urlFile {self.url_file}: cannot be read: {error}") from error
        if not _is_redis_url(url):
            raise ConfigError(f"redis.urlFile {self.url_file}: what it holds {_REDIS_FORM}")
        return url


class AffinitySettings(Settings):
    """Placement by the prefix that a worker has cached."""

    enabled: bool = True
    block_bytes: int = Field(default=1024, ge=64, le=65536)  # one digest of the chain for each so many bytes
    index_blocks: int = Field(default=1_000_000, ge=1000, le=100_000_000)  # in each of two generations; ~90 bytes each
    load_factor: float = Field(default=1.25, ge=1, le=10, allow_inf_nan=False)  # bounded load, against the mean
    warmup_seconds: Seconds = 60
    warmup_share: Share = 0.1  # of the requests without a cached prefix, for a worker that is new
    replay_seconds: Seconds = 1800  # of the stream, by a new replica
    session_seconds: Seconds = 3600


class LedgerSettings(Settings):
    """Where settled requests are kept until Redis has them. Without a directory there is only the request log."""

    directory: Path | None = None  # one per replica, which survives a restart
    segment_bytes: int = Field(default=16 * 2**20, ge=2**16, le=2**30)
    retain_segments: int = Field(default=64, ge=2, le=10_000)  # settled ones, for export
    stream_entries: int = Field(default=10_000, ge=100, le=10_000_000)  # in Redis; about 128 KiB of bills in each


class ModerationSettings(Settings):
    """A service that is asked about texts: POST {"model", "stage", "input"}, answers {"flagged": bool, "reason"}."""

    url: HttpUrl
    api_key_file: Path | None = None
    stages: tuple[Literal["request", "response"], ...] = ("request",)
    timeout_seconds: Seconds = 2
    on_failure: Literal["refuse", "allow"] = "refuse"
    max_text_bytes: int = Field(default=2**20, ge=1024, le=64 * 2**20)  # more text than this is sent as its end


class TracingSettings(Settings):
    """OpenTelemetry spans of requests, over OTLP/HTTP."""

    endpoint: HttpUrl
    sample_share: Share = 1.0  # of requests that come without a traceparent; one that comes decides for itself
