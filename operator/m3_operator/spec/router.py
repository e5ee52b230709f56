"""What an M3Router's `spec` may say: fields, bounds, defaults and the rules between fields.

Tiers, prices, lanes and limits are those of the router's own configuration, which `render.router` fills in and which
has the last word: what only it can judge becomes a condition.
"""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from m3_operator.spec.access import MonitoringSpec, RouterNetworkPolicySpec
from m3_operator.spec.fragments import (
    ATOMIC,
    DnsSubdomain,
    ImageReference,
    LocalReference,
    Model,
    PodTemplate,
    PullPolicy,
    cel,
    list_map,
    require,
)
from m3_operator.spec.plans import Plan
from m3_operator.spec.prices import ContextTier, ModelPrices, Prices
from m3_operator.spec.router_services import Admin, Ledger, Moderation, Redis, Tracing
from m3_operator.spec.traffic import Lanes, Limits, PrefixAffinity
from m3_operator.spec.upstreams import ExternalPool, ModelAlias, ModelRoute, RoutedDeployment

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


SERVICE_PORTS = "admin.servicePort must differ from service.port"


class M3RouterSpec(Model):
    """A router in front of one or more M3Deployments."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.admin) || !has(self.admin.servicePort) || self.admin.servicePort != self.service.port",
                SERVICE_PORTS,
            )
        )
    )

    deployments: Annotated[
        tuple[RoutedDeployment, ...], Field(min_length=1, max_length=64, json_schema_extra=list_map("name"))
    ]
    """The M3Deployments it serves. A model that several serve needs an entry in `routes`."""
    external_pools: Annotated[tuple[ExternalPool, ...], Field(max_length=32, json_schema_extra=list_map("name"))] = ()
    """Other people's APIs that it serves."""
    routes: Annotated[tuple[ModelRoute, ...], Field(max_length=64, json_schema_extra=list_map("model"))] = ()
    """How models that several pools serve are divided between them."""
    aliases: Annotated[tuple[ModelAlias, ...], Field(max_length=128, json_schema_extra=list_map("name"))] = ()
    """Further names of models."""
    replicas: Annotated[int, Field(ge=0, le=100)] = 1
    """Routers to run; `kubectl scale` sets it."""
    processes: Annotated[int, Field(ge=1, le=128)] = 1
    """Processes of each router that share its port; each is a replica of its own, so more are best run with `redis`."""
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
    model_prices: Annotated[tuple[ModelPrices, ...], Field(max_length=64, json_schema_extra=ATOMIC)] = ()
    """Prices of single models, from a moment on."""
    lanes: Lanes = Lanes()
    """How requests wait."""
    limits: Limits = Limits()
    """What one client or one request may take."""
    affinity: PrefixAffinity = PrefixAffinity()
    """Placement by the prefix that a worker has cached."""
    redis: Redis | None = None
    """Where replicas meet; absent: each is alone."""
    ledger: Ledger = Ledger()
    """Where bills are kept."""
    moderation: Moderation | None = None
    """A service that is asked about texts."""
    tracing: Tracing | None = None
    """Where spans of requests go."""
    auth: RouterAuth = RouterAuth()
    """Who may send requests."""
    plans: Annotated[tuple[Plan, ...], Field(max_length=64, json_schema_extra=list_map("name"))] = ()
    """Plans that M3Tenants may be on. A change restarts no router."""
    admin: Admin = Admin()
    """The port of the console, the metrics and the admin API."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much the routers tell beside the line of each request."""
    network_policy: RouterNetworkPolicySpec = RouterNetworkPolicySpec()
    """Who may reach the routers over the network."""
    monitoring: MonitoringSpec = MonitoringSpec()
    """Who reads the routers' metrics."""
    service: RouterService = RouterService()
    """The Service in front of the router."""
    template: PodTemplate = PodTemplate()
    """What is laid over the router pods."""

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        require(self.admin.service_port != self.service.port, SERVICE_PORTS)
        return self
