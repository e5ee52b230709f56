"""One window of one deployment: from what its groups say to what they should be told. Pure.

All groups of a deployment share one plan: they serve the same model to the same clients behind the same router, so that
what one learned holds for the others, and a group that starts begins with it. The plan in force is the one of the
highest epoch among the groups; groups that have another are told it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

from m3_operator.expert_plan.balancing import BalancePolicy, Reason, Watch, judge
from m3_operator.expert_plan.loads import LoadAverage
from m3_operator.expert_plan.packing import initial_plan
from m3_operator.expert_plan.plan import ExpertPlan, GroupShape, Loads
from m3_operator.experts.reading import ExpertReading
from m3_operator.spec.experts import ExpertBalancingSpec

_DIGITS: Final = 2
"""Of a ratio, as people read it: more would change with every window."""

_TRIGGER_WINDOWS: Final = 2
_NEVER: Final = 2**62

Outcome = Reason | Literal["Placed"]


@dataclass(frozen=True, kw_only=True)
class ExpertState:
    """What is known of a deployment's experts, for its status and its ConfigMap."""

    plan: ExpertPlan
    reason: Outcome
    ratio: float
    """max / mean of the worst layer."""
    worst_layer: int | None
    """Among those with experts."""
    trigger_ratio: float
    moved_percent: float = 0.0
    """In the last round."""
    rebalanced_at: datetime | None = None


@dataclass(frozen=True)
class Memory:
    """What is kept of a deployment from one window to the next; forgetting it costs some windows."""

    averages: Mapping[str, LoadAverage] = field(default_factory=dict)
    """By the uid of the pod that counts."""
    watch: Watch = field(default_factory=Watch)
    state: ExpertState | None = None


@dataclass(frozen=True)
class Window:
    """What one window came to."""

    memory: Memory
    publish: Mapping[str, ExpertPlan]
    """Whom to tell which plan, by pod uid."""


def next_window(
    spec: ExpertBalancingSpec, readings: Mapping[str, ExpertReading], memory: Memory, now: datetime
) -> Window:
    """Take in what the ready groups say (by the uid of their rank 0) and decide what they should have.

    Groups of another shape than most, as during a rollout, are left alone.
    """
    shape = _usual_shape(readings)
    if shape is None or spec.mode == "Off":
        return Window(Memory(state=memory.state if spec.mode != "Off" else None), {})
    ours = {uid: reading for uid, reading in readings.items() if _has_shape(reading, shape)}
    seconds = now.timestamp()
    averages = {uid: _average(spec, memory.averages.get(uid), reading, seconds) for uid, reading in ours.items()}
    present = max((reading.plan for reading in ours.values()), key=lambda plan: plan.epoch)
    if present.epoch == 0:
        return _first_plan(spec, ours, averages, present)
    policy = BalancePolicy(
        trigger_ratio=spec.trigger_ratio,
        enough_ratio=spec.target_ratio,
        max_moved_share=spec.max_moved_percent / 100,
        trigger_windows=_TRIGGER_WINDOWS if spec.mode == "Dynamic" else _NEVER,
    )
    verdict = judge(present, _sum(averages), memory.watch, policy)
    before = memory.state
    state = ExpertState(
        plan=present,
        reason=verdict.reason,
        ratio=round(verdict.balance.worst, _DIGITS),
        worst_layer=verdict.balance.worst_layer,
        trigger_ratio=spec.trigger_ratio,
        moved_percent=before.moved_percent if before else 0.0,
        rebalanced_at=before.rebalanced_at if before else None,
    )
    if verdict.rebalance is not None:
        moved = round(100 * verdict.rebalance.moved_share, 1)
        state = replace(state, plan=verdict.rebalance.plan, moved_percent=moved, rebalanced_at=now)
    return Window(Memory(averages, verdict.watch, state), _publish(ours, state.plan))


def _first_plan(
    spec: ExpertBalancingSpec,
    ours: Mapping[str, ExpertReading],
    averages: Mapping[str, LoadAverage],
    present: ExpertPlan,
) -> Window:
    """Nobody has been told anything yet: copies of experts go to different nodes.

    Without copies there is nothing to spread, and experts in order are as good as any until their load is known.
    """
    plan = replace(present, epoch=1)
    if present.shape.redundant and present.shape.nodes > 1:
        plan = replace(initial_plan(present.shape, len(present.layers)), epoch=1)
    state = ExpertState(plan=plan, reason="Placed", ratio=1.0, worst_layer=None, trigger_ratio=spec.trigger_ratio)
    return Window(Memory(averages, Watch(), state), _publish(ours, plan))


def _publish(ours: Mapping[str, ExpertReading], plan: ExpertPlan) -> dict[str, ExpertPlan]:
    return {uid: plan for uid, reading in ours.items() if reading.plan.epoch < plan.epoch}


def _usual_shape(readings: Mapping[str, ExpertReading]) -> tuple[GroupShape, int] | None:
    shapes = Counter((reading.plan.shape, len(reading.plan.layers)) for reading in readings.values())
    spread = {shape: count for shape, count in shapes.items() if shape[0].ranks > 1}
    return max(spread, key=spread.__getitem__, default=None)


def _has_shape(reading: ExpertReading, shape: tuple[GroupShape, int]) -> bool:
    return (reading.plan.shape, len(reading.plan.layers)) == shape


def _average(
    spec: ExpertBalancingSpec, before: LoadAverage | None, reading: ExpertReading, seconds: float
) -> LoadAverage:
    """A pod's average with this reading; a new one where the shape or the clock is another than before."""
    is_same = before is not None and before.read_at_seconds <= seconds
    if before is None or not is_same or list(map(len, before.counters)) != list(map(len, reading.tokens)):
        before = LoadAverage.over_window(spec.window_seconds)
    return before.after(reading.tokens, seconds)


def _sum(averages: Mapping[str, LoadAverage]) -> Loads:
    """[layers][experts], over all groups."""
    of_pods = [average.tokens for average in averages.values()]
    return [[sum(figures) for figures in zip(*layers, strict=True)] for layers in zip(*of_pods, strict=True)]
