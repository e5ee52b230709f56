"""What an M3Router's `spec` may say: fields, bounds, defaults and the rules between fields.

Tiers, prices, lanes and limits are those of the router's own configuration, which `render.router` fills in and which
has the last word: what only it can judge becomes a condition.
"""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from m3_operator.spec.fragments import (
    DnsSubdomain,
    ImageReference,
    LocalReference,
    Model,
    OwnerName,
    PodTemplate,
    PullPolicy,
    cel,
    list_map,
    require,
)

# Three decimals of a dollar per million tokens are exactly one nano-dollar per token, the unit that costs are kept in.
UsdPerMillionTokens = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}(\.[0-9]{1,3})?$", max_length=10)]


class RoutedDeployment(Model):
    """An M3Deployment of the same namespace."""

    name: OwnerName
    """Name of the M3Deployment."""


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


class Prices(Model):
    """What tokens cost, by context tier and service tier."""

    standard: Rates = Rates(input="0.30", output="1.20", cache_read="0.06")
    """Rates of the standard context tier."""
    long: Rates = Rates(input="0.60", output="2.40", cache_read="0.12")
    """Rates of the long context tier."""
    priority_factor: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}(\.[0-9]{1,3})?$", max_length=7)] = "1.5"
    """What the priority service tier multiplies either by."""


class Lanes(Model):
    """How requests wait."""

    priority_reserved_share: Annotated[float, Field(ge=0, le=0.9)] = 0.25
    """Share of a pool's tokens in flight that only priority requests may use."""
    max_wait_seconds: Annotated[float, Field(gt=0, le=3600)] = 30
    """How long a request may wait before it is refused with 429."""


class Limits(Model):
    """What one client or one request may take."""

    body_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 67_108_864
    """Largest request body."""
    head_seconds: Annotated[float, Field(gt=0, le=3600)] = 10
    """Time for a client to send a request's head."""
    body_stall_seconds: Annotated[float, Field(gt=0, le=3600)] = 30
    """Longest pause inside a request's body."""
    connect_seconds: Annotated[float, Field(gt=0, le=3600)] = 5
    """Time to connect to a worker."""
    first_byte_seconds: Annotated[float, Field(gt=0, le=86400)] = 3600
    """Time for a worker to send the first byte of an answer."""
    idle_seconds: Annotated[float, Field(gt=0, le=86400)] = 300
    """Longest pause inside an answer."""
    drain_seconds: Annotated[float, Field(gt=0, le=86400)] = 60
    """Time for answers in flight to finish when a router stops."""


OPEN_DOOR = "auth.mode None lets everyone in and needs auth.allowInsecure: true"


class RouterAuth(Model):
    """Who may send requests."""

    model_config = ConfigDict(
        json_schema_extra=cel(("self.mode != 'None' || (has(self.allowInsecure) && self.allowInsecure)", OPEN_DOOR))
    )

    mode: Literal["Keys", "None"] = "Keys"
    """Keys: API keys; None: everyone is the tenant `anonymous`."""
    secret_name: DnsSubdomain | None = None
    """Secret with `keys.yaml`, the list of tenants and their keys' SHA-256; absent: one key is generated."""
    allow_insecure: bool = False
    """Says that mode None is meant."""

    @model_validator(mode="after")
    def _open_door_is_meant(self) -> Self:
        require(self.mode != "None" or self.allow_insecure, OPEN_DOOR)
        return self


class RouterService(Model):
    """The Service in front of the router."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Who can reach it."""
    port: Annotated[int, Field(ge=1, le=65535)] = 80
    """Its port."""


class M3RouterSpec(Model):
    """A router in front of one or more M3Deployments."""

    deployments: Annotated[
        tuple[RoutedDeployment, ...], Field(min_length=1, max_length=64, json_schema_extra=list_map("name"))
    ]
    """The M3Deployments it serves, each another model."""
    replicas: Annotated[int, Field(ge=0, le=100)] = 1
    """Routers to run; `kubectl scale` sets it."""
    image: ImageReference | None = None
    """Image of the router; absent: the one that the operator was configured with."""
    image_pull_policy: PullPolicy = "IfNotPresent"
    """When a node pulls the image."""
    image_pull_secrets: Annotated[
        tuple[LocalReference, ...], Field(max_length=8, json_schema_extra=list_map("name"))
    ] = ()
    """Secrets for pulling the image."""
    context_tier: ContextTier = ContextTier()
    """Where the long-context price begins."""
    prices: Prices = Prices()
    """What tokens cost."""
    lanes: Lanes = Lanes()
    """How requests wait."""
    limits: Limits = Limits()
    """What one client or one request may take."""
    auth: RouterAuth = RouterAuth()
    """Who may send requests."""
    service: RouterService = RouterService()
    """The Service in front of the router."""
    template: PodTemplate = PodTemplate()
    """What is laid over the router pods."""
