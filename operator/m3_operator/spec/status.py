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
    """How often it was replaced because it failed, half an hour without a failure setting it back."""
    last_failure: GroupFailure | None = None
    """How it failed last."""


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


class M3DeploymentStatus(Model):
    """What the operator sees."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status was built from."""
    replicas: Annotated[int, Field(ge=0)] | None = None
    """Groups that exist."""
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
    """Ready, Available, Scheduled and Progressing; Fits: whether the model fits the GPUs that are declared; and
    RolledBack, while the groups are of an earlier revision because the one that is asked for made no progress."""
    groups: Annotated[tuple[GroupStatus, ...], Field(max_length=GROUPS_SHOWN, json_schema_extra=list_map("index"))] = ()
    """Its groups, the first 64 of them."""


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
