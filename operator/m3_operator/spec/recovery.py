"""How a group that failed comes back: how often, how soon, and what counts as a failure that no process tells of.

All of it concerns the operator alone, but for `hangSeconds`, which the workers carry as a flag: changing that one
replaces running groups, changing the others does not.
"""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from m3_operator.spec.fragments import Model, cel, require

BACKOFF = "recovery.backoff: maxSeconds must not be less than baseSeconds"


class BackoffSpec(Model):
    """How long a group that fails again waits: nothing the first time, then doubling from base to max."""

    model_config = ConfigDict(json_schema_extra=cel(("self.maxSeconds >= self.baseSeconds", BACKOFF)))

    base_seconds: Annotated[int, Field(ge=1, le=3600)] = 10
    """Wait before the second restart of a window."""
    max_seconds: Annotated[int, Field(ge=1, le=86400)] = 300
    """Longest wait."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        require(self.max_seconds >= self.base_seconds, BACKOFF)
        return self


class RecoverySpec(Model):
    """How a group that failed comes back. A group is one world of ranks: it is replaced as a whole or not at all."""

    policy: Literal["RecreateGroup", "None"] = "RecreateGroup"
    """RecreateGroup replaces a failed group; None leaves it as it is, for people to look at."""
    max_restarts: Annotated[int, Field(ge=1, le=1000)] = 10
    """Restarts of one group within windowSeconds. When they are used up, the failed group stays with its logs until the
    window has passed, or until the spec gives it a new revision."""
    window_seconds: Annotated[int, Field(ge=60, le=604800)] = 1800
    """Length of the window in which restarts are counted; it begins with the first of them."""
    backoff: BackoffSpec = BackoffSpec()
    """How long a group that fails again waits."""
    hang_seconds: Annotated[int, Field(ge=5, le=86400)] = 60
    """How long a group may compute no step while requests wait for it; then it hangs and is replaced. The workers
    notice it by themselves; the operator does when they cannot. Changing it replaces running groups."""
    node_lost_seconds: Annotated[int, Field(ge=5, le=86400)] = 60
    """How long a node may be NotReady before the groups on it are replaced elsewhere."""
    avoid_failed_node_seconds: Annotated[int, Field(ge=0, le=604800)] = 3600
    """How long groups of this deployment stay away from a node that was lost, or whose GPU failed; 0: not at all."""
