"""When a group's experts are moved, and whether it helped.

Owns that decision, once a window (`judge`), and what it remembers from one window to the next (`Watch`). What is moved
is decided in `moves`; reading counters, sending plans and keeping the watch is up to the caller.

    even or too few tokens          nothing
    uneven for `trigger_windows`    a plan, which is then on trial
    the next window                 on trial: under the load of now, is the new plan as much better as was promised?
                                    yes: the next round at once, if it is still uneven; no: a pause, longer each time
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from m3_operator.expert_plan.moves import Rebalance, rebalance
from m3_operator.expert_plan.plan import Balance, ExpertPlan, ExpertPlanError, Loads


@dataclass(frozen=True, kw_only=True)
class BalancePolicy:
    """How uneven is too much, and how much may be moved for it."""

    trigger_ratio: float = 1.15
    """max / mean of the worst layer above which a window counts as uneven."""
    trigger_windows: int = 2
    """Uneven windows in a row before experts are moved."""
    enough_ratio: float = 1.05
    """Layers at this ratio are left alone: the load drifts by more until the next window."""
    max_moved_share: float = 0.1
    """Of all slots, in one round."""
    least_tokens_per_rank: float = 10_000.0
    """Of the average, in every layer. With fewer, ranks differ by some per cent by chance alone (1 / sqrt(tokens))."""
    kept_promise: float = 0.5
    """Part of the promised gain that must be seen in the next window."""
    longest_pause_windows: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.enough_ratio <= self.trigger_ratio:
            raise ExpertPlanError(
                f"enough_ratio is {self.enough_ratio}: must be at least 1, at most trigger_ratio {self.trigger_ratio}"
            )
        if not 0 < self.max_moved_share <= 1:
            raise ExpertPlanError(f"max_moved_share is {self.max_moved_share}: must be above 0, at most 1")
        if self.trigger_windows < 1 or self.longest_pause_windows < 1:
            raise ExpertPlanError("trigger_windows and longest_pause_windows must be at least 1")


@dataclass(frozen=True)
class Trial:
    """What is expected of a plan that was sent out."""

    before: ExpertPlan
    """The plan that it replaces."""
    promised: float
    """By how much the mean ratio was to fall."""


@dataclass(frozen=True)
class Watch:
    """What is remembered of a group from window to window. A group that starts anew has a new one."""

    uneven_windows: int = 0
    """In a row, up to now."""
    trial: Trial | None = None
    setbacks: int = 0
    """Rounds in a row that did not help."""
    pause_windows: int = 0
    """Windows that still are sat out."""


class Reason(StrEnum):
    """Why experts are moved, or are not."""

    TOO_FEW_TOKENS = "TooFewTokens"
    EVEN = "Even"
    UNEVEN = "Uneven"
    PAUSED = "Paused"
    NOTHING_GAINS = "NothingGains"
    REBALANCED = "Rebalanced"


@dataclass(frozen=True)
class Verdict:
    """What to do after a window."""

    reason: Reason
    watch: Watch
    """To be handed in after the next window."""
    balance: Balance
    """Of the plan in force."""
    rebalance: Rebalance | None = None
    """The plan to send out, and its moves; None: leave everything where it is."""


def judge(present: ExpertPlan, loads: Loads, watch: Watch, policy: BalancePolicy) -> Verdict:
    """Decide after one window.

    present: the plan that the group has; loads: the averages of now. Raises ExpertPlanError if they do not fit.
    """
    balance = present.balance(loads)
    if _too_few(loads, policy.least_tokens_per_rank * present.shape.ranks):
        return Verdict(Reason.TOO_FEW_TOKENS, watch, balance)
    watch = _tried(watch, balance, loads, policy)
    is_uneven = balance.worst > policy.trigger_ratio
    watch = replace(watch, uneven_windows=watch.uneven_windows + 1 if is_uneven else 0)
    if watch.pause_windows:
        return Verdict(Reason.PAUSED, replace(watch, pause_windows=watch.pause_windows - 1), balance)
    if watch.uneven_windows < policy.trigger_windows:
        return Verdict(Reason.UNEVEN if is_uneven else Reason.EVEN, watch, balance)
    found = rebalance(present, loads, policy.max_moved_share, policy.enough_ratio)
    if not found.moves:
        return Verdict(Reason.NOTHING_GAINS, _set_back(watch, policy), balance)
    trial = Trial(present, found.before.mean - found.after.mean)
    return Verdict(Reason.REBALANCED, replace(watch, trial=trial), balance, found)


def _too_few(loads: Loads, least: float) -> bool:
    return any(sum(of_layer) < least for of_layer in loads)


def _tried(watch: Watch, balance: Balance, loads: Loads, policy: BalancePolicy) -> Watch:
    """The watch once its trial is over, if there was one.

    The plan before is judged by the load of now as well: a drift since then is no fault of the new one. A plan that the
    group did not take has gained nothing.
    """
    trial = watch.trial
    if trial is None:
        return watch
    watch = replace(watch, trial=None)
    gained = trial.before.balance(loads).mean - balance.mean
    if gained >= policy.kept_promise * trial.promised:
        return replace(watch, setbacks=0)
    return _set_back(watch, policy)


def _set_back(watch: Watch, policy: BalancePolicy) -> Watch:
    """The watch after one more round that did not help: a pause of 2, 4, 8 ... windows."""
    setbacks = watch.setbacks + 1
    pause = min(2 ** min(setbacks, 30), policy.longest_pause_windows)  # the exponent is bounded: setbacks are not
    return replace(watch, setbacks=setbacks, pause_windows=pause)
