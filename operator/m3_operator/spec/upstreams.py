"""Where a router sends requests: deployments, other people's APIs, shares of a model's traffic, and further names."""

from typing import Annotated

from pydantic import Field, StringConstraints

from m3_operator.spec.fragments import ATOMIC, DnsLabel, Model, OwnerName, list_map
from m3_operator.spec.prices import ModelName
from m3_operator.spec.secrets import SecretKey

HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$", max_length=1024)]


class PoolLimits(Model):
    """How much the workers of one pool may have in flight together."""

    tokens_in_flight: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Tokens of requests that are running; absent: 4194304."""
    queue_requests: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Requests that may wait in each lane; absent: 1024."""
    hold_when_empty_seconds: Annotated[float, Field(ge=0, le=3600)] | None = None
    """How long a request waits for the first worker of a pool without any; absent: it is refused at once."""
    continuation: bool | None = None
    """Whether an answer that broke off is gone on with by another worker; absent: yes."""


class RoutedDeployment(PoolLimits):
    """An M3Deployment of the same namespace."""

    name: OwnerName
    """Name of the M3Deployment."""


class ExternalPool(PoolLimits):
    """Somebody else's OpenAI- or Anthropic-compatible API behind the same door."""

    name: DnsLabel
    """Name of the pool; no deployment has it."""
    models: Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=64, json_schema_extra=ATOMIC)]
    """Models that clients ask for."""
    url: HttpUrl
    """Its URL, up to and without /v1."""
    api_key_secret_ref: SecretKey
    """Key that it wants, sent as `authorization: Bearer`. It is mounted into the routers and read again on change."""
    upstream_model: ModelName | None = None
    """What it calls the model; absent: as clients do."""
    max_context_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1_048_576
    """Longest input that it takes."""


class PoolWeight(Model):
    """A pool, and its part of a model's requests."""

    pool: DnsLabel
    """Name of an M3Deployment or external pool of this router."""
    weight: Annotated[int, Field(ge=0, le=10_000)]
    """Its part, against the sum of all."""


class ModelRoute(Model):
    """How the requests for one model are divided between the pools that serve it, such as for a canary."""

    model: ModelName
    """Name of the model."""
    pools: Annotated[tuple[PoolWeight, ...], Field(min_length=1, max_length=64, json_schema_extra=list_map("pool"))]
    """The pools, by weight."""


class ModelAlias(Model):
    """Another name that clients may use for a model."""

    name: ModelName
    """The further name."""
    model: ModelName
    """The model behind it."""
