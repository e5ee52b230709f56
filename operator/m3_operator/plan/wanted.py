"""What a plan is asked to reach: how many groups, of which revision, and by which steps."""

from dataclasses import dataclass, field
from datetime import timedelta

from m3_operator.spec.recovery import RecoverySpec
from m3_operator.spec.rollout import RolloutSpec, Strategy


@dataclass(frozen=True, kw_only=True)
class RolloutPolicy:
    """The rules of a rollout, as numbers of groups."""

    strategy: Strategy = "RollingGroups"
    surge: int = 0
    """Groups beyond those wanted that may exist."""
    unavailable: int = 1
    """Groups below those wanted that a rollout may leave available."""
    partition: int = 0
    """Groups that stay at the current revision."""
    is_paused: bool = False
    min_ready: timedelta = timedelta()
    """How long a group must serve before it is available."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the spec asks for."""

    deployment: str
    groups: int
    nodes: int
    """Pods of a group of `revision`."""
    revision: str
    """What groups are brought to."""
    current: str | None = None
    """What groups that stay behind are made of; None: there is no earlier revision that could be made."""
    current_nodes: int = 0
    """Pods of a group of `current`."""
    rollout: RolloutPolicy = field(default_factory=RolloutPolicy)
    recovery: RecoverySpec = field(default_factory=RecoverySpec)

    @property
    def groups_behind(self) -> int:
        """Groups that should be of `current` and not of `revision`, when a group is made."""
        if self.current is None or self.current == self.revision:
            return 0
        return self.groups if self.rollout.is_paused else min(self.rollout.partition, self.groups)


def policy_of(rollout: RolloutSpec, groups: int) -> RolloutPolicy:
    """The policy for this many wanted groups."""
    return RolloutPolicy(
        strategy=rollout.strategy,
        surge=rollout.surge_groups(groups),
        unavailable=rollout.unavailable_groups(groups),
        partition=rollout.partition,
        is_paused=rollout.paused,
        min_ready=timedelta(seconds=rollout.min_ready_seconds),
    )
