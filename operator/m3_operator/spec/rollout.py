"""How a change of the spec reaches groups that run. Nothing here is part of a revision: a change replaces nothing."""

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from m3_operator.spec.fragments import Model, cel, require

Strategy = Literal["RollingGroups", "Surge", "Recreate", "OnDelete"]

_PERCENT: Final = r"^(100|[1-9]?[0-9])%$"
# A number of groups, or a share of those that are wanted.
Share = Annotated[
    Annotated[int, Field(strict=True, ge=0, le=1000)] | Annotated[str, StringConstraints(pattern=_PERCENT)],
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": _PERCENT,
            "maxLength": 4,
            "minimum": 0,
            "maximum": 1000,
        }
    ),
]
_NOTHING: Final = (0, "0%")

SURGE_NEEDS_STRATEGY: Final = "rollout.maxSurge: only with strategy Surge"
UNAVAILABLE_NEEDS_STRATEGY: Final = "rollout.maxUnavailable: only with strategy RollingGroups or Surge"
NO_WAY_FORWARD: Final = (
    "rollout: a rollout needs a group more or a group less: maxUnavailable must not be 0, "
    "unless strategy is Surge and maxSurge is not 0"
)
ROLLBACK_NEEDS_HISTORY: Final = "rollout.autoRollback needs a revisionHistoryLimit of at least 1"


class RolloutSpec(Model):
    """How a change reaches groups that run: one revision after the other, group by group, never mixed in a group."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("!has(self.maxSurge) || self.strategy == 'Surge'", SURGE_NEEDS_STRATEGY),
            ("!has(self.maxUnavailable) || self.strategy in ['RollingGroups', 'Surge']", UNAVAILABLE_NEEDS_STRATEGY),
            (
                "self.strategy == 'Surge' "
                "? !has(self.maxSurge) || !(string(self.maxSurge) in ['0', '0%']) "
                "|| has(self.maxUnavailable) && !(string(self.maxUnavailable) in ['0', '0%']) "
                ": !has(self.maxUnavailable) || !(string(self.maxUnavailable) in ['0', '0%'])",
                NO_WAY_FORWARD,
            ),
            ("!self.autoRollback || self.revisionHistoryLimit > 0", ROLLBACK_NEEDS_HISTORY),
        )
    )

    strategy: Strategy = "RollingGroups"
    """RollingGroups drains an old group before its place is taken; Surge starts new groups first, on further GPUs;
    Recreate drains all old groups before the first new one; OnDelete replaces only what somebody else deletes."""
    max_surge: Share | None = None
    """Groups beyond those wanted that may exist during a rollout, as a number or in percent, rounded up; absent: 1.
    Only with Surge."""
    max_unavailable: Share | None = None
    """Groups fewer than wanted that a rollout may leave serving, as a number or in percent, rounded down; absent: 1,
    and 0 with Surge. At least 1 where nothing could move otherwise."""
    partition: Annotated[int, Field(ge=0, le=1000)] = 0
    """Groups that stay at the current revision, and are recreated from it."""
    paused: bool = False
    """Replace no group; scaling and recovery go on, with the current revision."""
    min_ready_seconds: Annotated[int, Field(ge=0, le=86400)] = 0
    """How long a group must have served before it counts as available."""
    progress_deadline_seconds: Annotated[int, Field(ge=10, le=604800)] | None = None
    """How long a rollout may go without progress before it counts as stuck; absent: ten minutes more than
    probes.startupSeconds, in which a group must be up."""
    revision_history_limit: Annotated[int, Field(ge=0, le=100)] = 10
    """Old revisions to keep for `m3 rollout undo`, beyond those in use."""
    auto_rollback: bool = False
    """Whether a rollout that is stuck goes back to the last revision that was rolled out to all groups."""

    @model_validator(mode="after")
    def _can_move(self) -> Self:
        is_surge = self.strategy == "Surge"
        require(self.max_surge is None or is_surge, SURGE_NEEDS_STRATEGY)
        require(self.max_unavailable is None or self.strategy in ("RollingGroups", "Surge"), UNAVAILABLE_NEEDS_STRATEGY)
        surges = is_surge and self.max_surge not in _NOTHING
        yields = self.max_unavailable not in _NOTHING if self.max_unavailable is not None else not is_surge
        require(surges or yields, NO_WAY_FORWARD)
        require(not self.auto_rollback or self.revision_history_limit > 0, ROLLBACK_NEEDS_HISTORY)
        return self

    def surge_groups(self, wanted: int) -> int:
        """Groups beyond `wanted` that may exist."""
        if self.strategy != "Surge":
            return 0
        return _share(1 if self.max_surge is None else self.max_surge, wanted, is_rounded_up=True)

    def unavailable_groups(self, wanted: int) -> int:
        """Groups below `wanted` that a rollout may leave."""
        usual = 0 if self.strategy == "Surge" else 1
        share = _share(usual if self.max_unavailable is None else self.max_unavailable, wanted, is_rounded_up=False)
        return share or int(self.surge_groups(wanted) == 0)


def _share(share: int | str, wanted: int, *, is_rounded_up: bool) -> int:
    if isinstance(share, int):
        return share
    percent = int(share.removesuffix("%"))
    return -(-wanted * percent // 100) if is_rounded_up else wanted * percent // 100
