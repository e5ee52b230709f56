"""Who may reach workers and routers over the network, and who reads their metrics."""

from typing import Annotated, Any

from pydantic import Field

from m3_operator.spec.fragments import ATOMIC, PRESERVE, LabelKey, LabelValue, Model

Peer = Annotated[dict[str, Any], Field(json_schema_extra=PRESERVE)]


class NetworkPolicySpec(Model):
    """Who may reach the workers over the network."""

    enabled: bool = False
    """Whether workers take connections only from each other, from their router, from the operator, and from `from`.
    The cluster's network has to enforce NetworkPolicies."""
    peers: Annotated[tuple[Peer, ...], Field(alias="from", max_length=16, json_schema_extra=ATOMIC)] = ()
    """Who else may use the HTTP API, such as Prometheus: peers as in a NetworkPolicy's `from`."""


class RouterNetworkPolicySpec(Model):
    """Who may reach the routers over the network."""

    enabled: bool = False
    """Whether routers take connections only from `from`, on the port of the API, and from the operator and `adminFrom`,
    on the admin port. The cluster's network has to enforce NetworkPolicies."""
    peers: Annotated[tuple[Peer, ...], Field(alias="from", max_length=16, json_schema_extra=ATOMIC)] = ()
    """Who may use the API: peers as in a NetworkPolicy's `from`; none: everybody."""
    admin_peers: Annotated[tuple[Peer, ...], Field(alias="adminFrom", max_length=16, json_schema_extra=ATOMIC)] = ()
    """Who may use the admin port beside the operator, such as Prometheus; none: nobody."""


class MonitoringSpec(Model):
    """Who reads the metrics."""

    enabled: bool = False
    """Whether there is a PodMonitor, for clusters that have the Prometheus operator; without it nothing is made."""
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = Field({})
    """Labels of the PodMonitor, by which a Prometheus selects it."""
    interval_seconds: Annotated[int, Field(ge=1, le=3600)] = 15
    """How often the metrics are read."""
