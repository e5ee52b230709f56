"""Where the workers are, what kind they are, and which models they serve under which names."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from m3_router.config.base import HttpUrl, ModelName, ObjectName, Settings, not_empty, refuse_repeated

Engine = Literal["native", "vllm", "sglang", "external"]


def _worker_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme != "http" or not parts.hostname or parts.port is None or parts.path not in ("", "/"):
        raise ValueError(f"{value!r} is not http://HOST:PORT")
    return value.rstrip("/")


WorkerUrl = Annotated[HttpUrl, AfterValidator(_worker_url)]


class ServiceWorkers(Settings):
    """The ready endpoints of a Kubernetes Service, followed through its EndpointSlices."""

    service: ObjectName
    namespace: ObjectName
    port: ObjectName = "http"


class ExternalUpstream(Settings):
    """Somebody else's OpenAI- or Anthropic-compatible API, as one worker."""

    url: HttpUrl  # up to and without /v1
    api_key_file: Path  # sent as `authorization: Bearer`; read again when it changes


def _worker_source(value: object) -> str:
    if isinstance(value, ExternalUpstream) or (isinstance(value, dict) and "url" in value):
        return "external upstream"
    return "service endpoints" if isinstance(value, dict | ServiceWorkers) else "urls"


# Which member of a union is meant is decided by its YAML type, so that a fault is explained for that member alone.
Workers = Annotated[
    Annotated[tuple[WorkerUrl, ...], AfterValidator(not_empty), Tag("urls")]
    | Annotated[ServiceWorkers, Tag("service endpoints")]
    | Annotated[ExternalUpstream, Tag("external upstream")],
    Discriminator(_worker_source),
]
WORKER_TAGS = frozenset({"urls", "service endpoints", "external upstream"})


class PoolSettings(Settings):
    """Workers that serve the same models, and how much they may have in flight together."""

    name: ObjectName
    models: Annotated[tuple[ModelName, ...], AfterValidator(not_empty)]
    engine: Engine = "native"
    upstream_model: ModelName | None = None  # what the workers call the model; None: as the client does
    max_context_tokens: int = Field(default=1_048_576, ge=1)
    tokens_in_flight: int = Field(default=4_194_304, ge=1)
    queue_requests: int = Field(default=1024, ge=0)  # per lane
    # How long a request waits for the first worker of a pool without any; 0: it is refused at once.
    hold_when_empty_seconds: float = Field(default=0.0, ge=0, le=3600, allow_inf_nan=False)
    continuation: bool = True  # whether an answer that broke off is gone on with by another worker
    kv_events_port: int | None = Field(default=None, ge=1, le=65535)  # vLLM's ZeroMQ publisher, on each worker
    workers: Workers

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse_repeated("models", self.models)
        if isinstance(self.workers, tuple):
            refuse_repeated("workers", self.workers)
        if isinstance(self.workers, ExternalUpstream) != (self.engine == "external"):
            raise ValueError(
                f"engine: {self.engine} and workers do not fit; `external`, and it alone, has workers: "
                "{url: URL, apiKeyFile: FILE}"
            )
        if self.kv_events_port is not None and self.engine != "vllm":
            raise ValueError(f"kvEventsPort: {self.kv_events_port} is for engine vllm, and this is {self.engine}")
        return self


class PoolShare(Settings):
    """A pool, and its part of a model's requests."""

    pool: ObjectName
    weight: int = Field(ge=0, le=10_000)


class ModelRoute(Settings):
    """How one model's requests are divided between pools (a canary), by weight."""

    model: ModelName
    pools: Annotated[tuple[PoolShare, ...], AfterValidator(not_empty)]

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        refuse_repeated("pools", [share.pool for share in self.pools])
        if not any(share.weight for share in self.pools):
            raise ValueError("pools: every weight is 0, so nothing would serve the model")
        return self
