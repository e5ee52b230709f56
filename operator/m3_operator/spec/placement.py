"""Where the pods of a group go: near each other, away from others, and all of them or none.

A domain is a set of nodes that share the value of a node label. Owns which domains there are, how wide each is beside
the others, and the labels that stand for them; `render.placement` and `render.gang` turn it into fields of pods.
"""

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from m3_operator.spec.fragments import DnsSubdomain, Model, cel, require

Domain = Literal["Host", "Clique", "Rack", "Block", "Zone"]
GangChoice = Literal["Auto", "Native", "Volcano", "SchedulerPlugins", "Kueue", "None"]

WIDTH: Final[dict[Domain, int]] = {"Host": 0, "Clique": 1, "Rack": 2, "Block": 3, "Zone": 4}
"""Which domain holds which: a wider one never cuts through a narrower one."""

NodeLabelKey = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        min_length=1,
        max_length=317,
    ),
]


class TopologyKeys(Model):
    """The node labels that stand for the domains."""

    host: NodeLabelKey = "kubernetes.io/hostname"
    """Label of a node of its own."""
    clique: NodeLabelKey = "nvidia.com/gpu.clique"
    """Label of the nodes that share one NVLink fabric; NVIDIA's GPU feature discovery sets it."""
    rack: NodeLabelKey = "topology.kubernetes.io/rack"
    """Label of a rack. Kubernetes has no standard one: whoever runs the cluster sets it."""
    block: NodeLabelKey = "topology.kubernetes.io/block"
    """Label of a block of racks. Kubernetes has no standard one: whoever runs the cluster sets it."""
    zone: NodeLabelKey = "topology.kubernetes.io/zone"
    """Label of a zone; cloud providers set it."""

    def key(self, domain: Domain) -> str:
        """The label of one domain."""
        keys: dict[Domain, str] = {
            "Host": self.host,
            "Clique": self.clique,
            "Rack": self.rack,
            "Block": self.block,
            "Zone": self.zone,
        }
        return keys[domain]


QUEUE = "placement.gang: Kueue needs queueName"


class GangSpec(Model):
    """How the pods of a group of several nodes get their nodes together. Groups of one node need nothing of this."""

    model_config = ConfigDict(json_schema_extra=cel(("self.provider != 'Kueue' || has(self.queueName)", QUEUE)))

    provider: GangChoice = "Auto"
    """Who holds a group's pods back until all of them have a place. Auto: Native, Volcano or SchedulerPlugins, whatever
    the cluster has; without any, groups are let to the scheduler one at a time. None: pods are scheduled one by one."""
    queue_name: DnsSubdomain | None = None
    """Queue of Volcano, or LocalQueue of Kueue; absent: Volcano's default queue."""
    timeout_seconds: Annotated[int, Field(ge=1, le=86400)] = 300
    """How long one group may wait for nodes before the next gets its turn."""

    @model_validator(mode="after")
    def _kueue_has_a_queue(self) -> Self:
        require(self.provider != "Kueue" or self.queue_name is not None, QUEUE)
        return self


EXCLUSIVE = "placement: exclusive needs required, the domain that no other group may enter"
NARROWER = "placement: preferred must be narrower than required (Host, Clique, Rack, Block, Zone)"
_WIDTHS = "{'Host': 0, 'Clique': 1, 'Rack': 2, 'Block': 3, 'Zone': 4}"


class PlacementSpec(Model):
    """Where the pods of a group go."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("!self.exclusive || has(self.required)", EXCLUSIVE),
            (
                f"!has(self.required) || !has(self.preferred) || {_WIDTHS}[self.preferred] < {_WIDTHS}[self.required]",
                NARROWER,
            ),
        )
    )

    required: Domain | None = None
    """Domain that all pods of a group must share; absent: any nodes will do."""
    preferred: Domain | None = None
    """Domain that the pods of a group should share if there is room."""
    topology_keys: TopologyKeys = TopologyKeys()
    """The node labels that stand for the domains, where a cluster uses others."""
    exclusive: bool = False
    """Whether no other group of any M3Deployment may be in the `required` domain of a group."""
    spread_across: Domain | None = None
    """Domain over which the groups should spread evenly; absent: they go where the scheduler puts them."""
    gang: GangSpec = GangSpec()
    """How the pods of a group get their nodes together."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        require(not self.exclusive or self.required is not None, EXCLUSIVE)
        if self.required is not None and self.preferred is not None:
            require(WIDTH[self.preferred] < WIDTH[self.required], NARROWER)
        return self
