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
SCALE_CHANGES_SHOWN = 10
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
    in_flight: Annotated[int, Field(ge=0)] | None = None
    """Requests that it still answers while it drains, as of the last look."""


class SignalStatus(Model):
    """One signal of the autoscaler."""

    name: Annotated[str, StringConstraints(max_length=64)]
    """Type of the signal."""
    value: Annotated[float, Field(ge=0)] | None = None
    """Its mean of the last 45 s, rounded; absent: there was nothing to measure."""
    target: Annotated[float, Field(ge=0)]
    """What it should stay below."""


class ScaleChangeStatus(Model):
    """One decision of the autoscaler."""

    time: Time
    """When."""
    from_: Annotated[int, Field(ge=0, alias="from")]
    """Groups before."""
    to: Annotated[int, Field(ge=0)]
    """Groups from then on."""
    reason: Text
    """Why."""


class AutoscalingStatus(Model):
    """How the number of groups comes about."""

    backend: Annotated[str, StringConstraints(max_length=32)]
    """Who decides."""
    desired: Annotated[int, Field(ge=0)]
    """Groups that should run. With backend Builtin this is the number that counts, and spec.replicas does not."""
    reason: Annotated[str, StringConstraints(max_length=64)]
    """Why, as one word: AboveTarget, BelowTarget, WithinTarget, Idle, Asleep, RequestWaits, OutOfBounds, Suspended,
    OwnedByBackend, or why nothing is decided: NoMetrics, MetricsMissing, MetricsStale."""
    limited_by: Annotated[str, StringConstraints(max_length=32)] | None = None
    """What keeps it from the number that the signals ask for: Maximum, Minimum, Rate, Capacity or Rollout."""
    last_scale_time: Time | None = None
    """When the number changed last."""
    signals: Annotated[tuple[SignalStatus, ...], Field(max_length=8, json_schema_extra=list_map("name"))] = ()
    """What it was decided from."""
    signals_time: Time | None = None
    """When the signals were written here; they are read much more often."""
    history: Annotated[
        tuple[ScaleChangeStatus, ...],
        Field(max_length=SCALE_CHANGES_SHOWN, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """The last changes of the number, oldest first."""


class ExpertStatus(Model):
    """How even the load of experts is."""

    plan_hash: Annotated[str, StringConstraints(max_length=64)]
    """Names what is where; the plan itself is in the ConfigMap NAME-experts."""
    epoch: Annotated[int, Field(ge=0)]
    """Grows with every plan."""
    ratio: Annotated[float, Field(ge=0)]
    """Load of the most loaded rank over the mean, in the worst layer; 1 is even."""
    worst_layer: Annotated[int, Field(ge=0)] | None = None
    """Which layer that is, counted among those with experts."""
    moved_percent: Annotated[float, Field(ge=0, le=100)] = 0
    """Share of all slots that the last round moved."""
    last_rebalance_time: Time | None = None
    """When experts were last moved."""
    reason: Annotated[str, StringConstraints(max_length=64)]
    """Why they were, or were not: Placed, Even, Uneven, Rebalanced, NothingGains, Paused or TooFewTokens."""


class AvoidedNodeStatus(Model):
    """A node that gets no new group for a while."""

    name: Annotated[str, StringConstraints(max_length=253)]
    """Name of the node."""
    until: Time
    """When it may be used again."""
    reason: Text
    """Why it is avoided."""


class RolloutStatus(Model):
    """The rollout that is under way, or was given up."""

    revision: Annotated[str, StringConstraints(max_length=64)]
    """Revision that the spec asks for."""
    available_replicas: Annotated[int, Field(ge=0)] = 0
    """Most groups of it that were available at once."""
    outdated_replicas: Annotated[int, Field(ge=0)] = 0
    """Fewest groups of other revisions that were left."""
    progress_time: Time
    """When one of the two was last bettered; the progress deadline counts from here."""
    rolled_back: bool = False
    """Whether it missed its deadline and the groups went back to currentRevision."""


class WeightsStatus(Model):
    """How far the download of the model is."""

    downloaded_bytes: Annotated[int, Field(ge=0)]
    """Bytes that are there."""
    total_bytes: Annotated[int, Field(ge=0)]
    """Bytes of the model."""
    seconds_left: Annotated[int, Field(ge=0)] | None = None
    """At the rate so far."""


class M3DeploymentStatus(Model):
    """What the operator sees."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status was built from."""
    replicas: Annotated[int, Field(ge=0)] | None = None
    """Groups that exist."""
    desired_replicas: Annotated[int, Field(ge=0)] | None = None
    """Groups that are wanted: spec.replicas, or what autoscaling makes of it."""
    ready_replicas: Annotated[int, Field(ge=0)] | None = None
    """Groups that serve."""
    updated_replicas: Annotated[int, Field(ge=0)] | None = None
    """Groups of updateRevision."""
    available_replicas: Annotated[int, Field(ge=0)] | None = None
    """Groups that have served for rollout.minReadySeconds, of any revision."""
    revision: Annotated[str, StringConstraints(max_length=64)] | None = None
    """The same as updateRevision."""
    current_revision: Annotated[str, StringConstraints(max_length=64)] | None = None
    """The last revision that all groups were brought to; absent before the first."""
    update_revision: Annotated[str, StringConstraints(max_length=64)] | None = None
    """The revision that groups are brought to."""
    rollout: RolloutStatus | None = None
    """The rollout that is under way, or was given up."""
    selector: Annotated[str, StringConstraints(max_length=1024)] | None = None
    """Label selector of the pods that serve, for autoscalers."""
    endpoint: Text | None = None
    """URL of the router that serves this deployment, inside the cluster."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs that its pods hold."""
    conditions: Conditions = ()
    """Ready, Available, Scheduled and Progressing; Fits: whether the model fits the GPUs that are declared;
    WeightsReady: whether a model that is downloaded is there; Balanced: whether the load of experts is even;
    RolledBack, while the groups are of an earlier revision because the one that is asked for made no progress; with
    autoscaling also ScalingActive and ScalingLimited."""
    autoscaling: AutoscalingStatus | None = None
    """How the number of groups comes about; absent: spec.replicas says it."""
    groups: Annotated[tuple[GroupStatus, ...], Field(max_length=GROUPS_SHOWN, json_schema_extra=list_map("index"))] = ()
    """Its groups, the first 64 of them."""
    weights: WeightsStatus | None = None
    """How far the download of the model is, while it goes on. Of a node's cache, the node that is furthest behind."""
    experts: ExpertStatus | None = None
    """How even the load of experts is, over the ranks of its groups."""
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


class M3TenantStatus(Model):
    """What the operator sees."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status was built from."""
    plan: Annotated[str, StringConstraints(max_length=253)] | None = None
    """Plan that it is on, `own limits` or `unlimited`."""
    routers: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=253)], ...],
        Field(max_length=1024, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """M3Routers that have it."""
    conditions: Conditions = ()
    """Ready: every router that it is meant for has it."""
