"""What people read in `status`: the fields, for the CRDs' schema. `status` fills them in.

Everything here can be rebuilt from the cluster, except for how often a group failed lately: losing that only makes the
next restart come sooner.
"""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from m3_operator.spec.fragments import Model, list_map

Text = Annotated[str, StringConstraints(max_length=1024)]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
GROUPS_SHOWN = 64
AVOIDED_NODES_SHOWN = 64


class Condition(Model):
    """One aspect of the object's state, as Kubernetes writes it."""

    type: Annotated[str, StringConstraints(max_length=316)]
    """Name of the aspect."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """Generation of the spec that this was said of."""
    last_transition_time: Time
    """When `status` last changed."""
    reason: Annotated[str, StringConstraints(max_length=1024, min_length=1)]
    """Why, as one word for programs."""
    message: Annotated[str, StringConstraints(max_length=32768)] = ""
    """Why, as a sentence for people."""


Conditions = Annotated[tuple[Condition, ...], Field(max_length=16, json_schema_extra=list_map("type"))]


class GroupFailure(Model):
    """How a group failed last."""

    reason: Text
    """Which pod ended, and how."""
    time: Time
    """When the operator replaced it."""
    revision: Annotated[str, StringConstraints(max_length=64)] = ""
    """What its pods were created from."""


class GroupStatus(Model):
    """One group."""

    index: Annotated[int, Field(ge=0)]
    """Number of the group, which is in the names of its pods."""
    state: Annotated[str, StringConstraints(max_length=32)]
    """Creating, Pending, Loading, Ready, Draining, Failed, Terminating or Absent."""
    revision: Annotated[str, StringConstraints(max_length=64)] = ""
    """What its pods were created from."""
    ready: Annotated[int, Field(ge=0)] = 0
    """Pods that are ready."""
    nodes: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=253)], ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Nodes of its pods, by rank."""
    restarts: Annotated[int, Field(ge=0)] = 0
    """How often it was replaced because it failed, in the current window of recovery.windowSeconds."""
    restarts_since: Time | None = None
    """When that window began."""
    last_failure: GroupFailure | None = None
    """How it failed last."""


class AvoidedNodeStatus(Model):
    """A node that gets no new group for a while."""

    name: Annotated[str, StringConstraints(max_length=253)]
    """Name of the node."""
    until: Time
    """When it may be used again."""
    reason: Text
    """Why it is avoided."""


class M3DeploymentStatus(Model):
    """What the operator sees."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status was built from."""
    replicas: Annotated[int, Field(ge=0)] | None = None
    """Groups that exist."""
    ready_replicas: Annotated[int, Field(ge=0)] | None = None
    """Groups that serve."""
    updated_replicas: Annotated[int, Field(ge=0)] | None = None
    """Groups of the current revision."""
    revision: Annotated[str, StringConstraints(max_length=64)] | None = None
    """Current revision: what new groups are created from."""
    selector: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Label selector of the pods that serve, for autoscalers."""
    endpoint: Text | None = None
    """URL of the router that serves this deployment, inside the cluster."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs that its pods hold."""
    conditions: Conditions = ()
    """Ready, Available, Scheduled and Progressing; and Fits: whether the model fits the GPUs that are declared."""
    groups: Annotated[tuple[GroupStatus, ...], Field(max_length=GROUPS_SHOWN, json_schema_extra=list_map("index"))] = ()
    """Its groups, the first 64 of them."""
    avoided_nodes: Annotated[
        tuple[AvoidedNodeStatus, ...], Field(max_length=AVOIDED_NODES_SHOWN, json_schema_extra=list_map("name"))
    ] = ()
    """Nodes that were lost or whose GPU failed, and that get no new group until recovery.avoidFailedNodeSeconds have
    passed."""


class M3RouterStatus(Model):
    """What the operator sees."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status was built from."""
    replicas: Annotated[int, Field(ge=0)] | None = None
    """Router pods that exist."""
    ready_replicas: Annotated[int, Field(ge=0)] | None = None
    """Router pods that answer."""
    selector: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Label selector of its pods, for autoscalers."""
    endpoint: Text | None = None
    """URL of its Service, inside the cluster."""
    keys_secret: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Secret with the API key (`api-key`) or keys."""
    conditions: Conditions = ()
    """Ready and Configured."""
