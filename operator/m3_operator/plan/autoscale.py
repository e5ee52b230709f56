"""How many groups an autoscaled deployment should have: one number, why, and what it is limited by.

`pressure` says what the signals ask for; here are the rules around it. What cannot be seen holds still: stale or
missing metrics change nothing. A rollout or a group that finds no node stops growth, since more of the same would not
help. Pace is limited by what was changed lately. The last group goes only when there was nothing to do for
`idleSeconds`, and one comes back as soon as a router says that a request waits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from m3_operator.plan.pressure import Demand, demand_down, demand_up
from m3_operator.signals.values import STALE_AFTER_SECONDS, Sample
from m3_operator.spec.autoscaling import AutoscalingSpec

Limit = Literal["Maximum", "Minimum", "Rate", "Capacity", "Rollout"]


@dataclass(frozen=True, slots=True)
class ScaleChange:
    """One earlier decision."""

    at: datetime
    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleState:
    """What the decision may look at beside the spec."""

    wanted: int
    """The number that was decided last."""
    ready: int
    """Groups that serve."""
    samples: tuple[Sample, ...] = ()
    busy_at: datetime | None = None
    """When there was anything to do for the last time."""
    changes: tuple[ScaleChange, ...] = ()
    """Earlier decisions, oldest first."""
    is_rolling: bool = False
    """Whether groups of an earlier revision are being replaced."""
    unscheduled: str = ""
    """Why a pod of a group finds no node; empty: all have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleAdvice:
    """The number, and how it came about."""

    desired: int
    reason: str
    """One word for programs."""
    message: str
    """A sentence for people, without numbers that change all the time."""
    limited_by: Limit | None = None
    is_active: bool = True
    """Whether the signals decide; False: they cannot be seen, and the number is held."""


def next_scale(spec: AutoscalingSpec, state: ScaleState, now: datetime) -> ScaleAdvice:
    """The number of groups that there should be now."""
    within = spec.clamp(state.wanted)
    if within != state.wanted:
        return ScaleAdvice(desired=within, reason="OutOfBounds", message=f"{state.wanted} groups are out of bounds")
    latest = state.samples[-1] if state.samples else None
    if state.wanted == 0 and latest is not None and latest.requests > 0:
        return ScaleAdvice(desired=spec.awake_replicas, reason="RequestWaits", message="a request waits for a group")
    blind = _blindness(spec, latest, state, now)
    if blind is not None:
        return blind
    if state.wanted == 0:
        return ScaleAdvice(desired=0, reason="Asleep", message="no group runs until a request comes")
    if _is_idle(spec, state, now):
        message = f"there was no request for {spec.idle_seconds} s"
        return ScaleAdvice(desired=0, reason="Idle", message=message)
    return _limited(spec, state, _asked(spec, state, now), now)


def _blindness(spec: AutoscalingSpec, latest: Sample | None, state: ScaleState, now: datetime) -> ScaleAdvice | None:
    """The advice to hold because something that must be known is not; None if all is."""

    def hold(reason: str, message: str) -> ScaleAdvice:
        limit: Limit | None = "Capacity" if state.unscheduled else None
        return ScaleAdvice(desired=state.wanted, reason=reason, message=message, is_active=False, limited_by=limit)

    if latest is None:
        return hold("NoMetrics", "nobody has told any metrics yet: the number of groups is held")
    if (now - latest.at).total_seconds() > STALE_AFTER_SECONDS:
        return hold("MetricsStale", "the metrics are too old: the number of groups is held")
    if latest.silent:
        who = ", ".join(latest.silent[:3])
        return hold("MetricsStale", f"no metrics from {who}: the number of groups is held")
    missing = [signal.type for signal in spec.signals if signal.type not in latest.values] if latest.ready else []
    if missing:
        return hold("MetricsMissing", f"nobody tells {', '.join(missing)}: the number of groups is held")
    return None


def _is_idle(spec: AutoscalingSpec, state: ScaleState, now: datetime) -> bool:
    """Whether the last groups may go. Groups that never served had no chance to be asked."""
    if spec.min_replicas or spec.idle_seconds is None or state.busy_at is None or state.ready < state.wanted:
        return False
    return not state.samples[-1].requests and now - state.busy_at >= timedelta(seconds=spec.idle_seconds)


def _asked(spec: AutoscalingSpec, state: ScaleState, now: datetime) -> Demand:
    """What the signals ask for throughout their windows."""
    more = demand_up(spec.signals, state.samples, state.wanted, spec.up.window_seconds, now)
    if more.groups > state.wanted:
        return more
    return demand_down(spec.signals, state.samples, state.wanted, spec.down.window_seconds, now)


def _limited(spec: AutoscalingSpec, state: ScaleState, asked: Demand, now: datetime) -> ScaleAdvice:
    wanted = state.wanted
    if asked.groups > wanted:
        advice = ScaleAdvice(desired=asked.groups, reason="AboveTarget", message=f"{asked.signal} is above its target")
        if state.is_rolling:
            return replace(advice, desired=wanted, limited_by="Rollout")
        if state.unscheduled:
            return replace(advice, desired=wanted, limited_by="Capacity")
        advice = _at_most(advice, highest_now(spec, wanted, state.changes, now), "Rate")
        return _at_most(advice, spec.max_replicas, "Maximum")
    limit: Limit | None = "Capacity" if state.unscheduled else None
    if asked.groups < wanted:
        message = "every signal is below its target"
        advice = ScaleAdvice(desired=asked.groups, reason="BelowTarget", message=message, limited_by=limit)
        if state.is_rolling:
            return replace(advice, desired=wanted, limited_by="Rollout")
        advice = _at_least(advice, min(lowest_now(spec, wanted, state.changes, now), wanted), "Rate")
        return _at_least(advice, spec.awake_replicas, "Minimum")
    return ScaleAdvice(
        desired=wanted, reason="WithinTarget", message="the signals are near their targets", limited_by=limit
    )


def highest_now(spec: AutoscalingSpec, wanted: int, changes: Sequence[ScaleChange], now: datetime) -> int:
    """The most groups that the pace upwards allows now."""
    start = now - timedelta(seconds=spec.up.period_seconds)
    base = wanted - sum(max(change.after - change.before, 0) for change in changes if start < change.at <= now)
    return max(base + max(math.ceil(base * spec.up.max_percent / 100), spec.up.max_groups), wanted)


def lowest_now(spec: AutoscalingSpec, wanted: int, changes: Sequence[ScaleChange], now: datetime) -> int:
    """The fewest groups that the pace downwards allows now."""
    start = now - timedelta(seconds=spec.down.period_seconds)
    base = wanted + sum(max(change.before - change.after, 0) for change in changes if start < change.at <= now)
    return base - spec.down.max_groups


def _at_most(advice: ScaleAdvice, most: int, limit: Limit) -> ScaleAdvice:
    return advice if advice.desired <= most else replace(advice, desired=most, limited_by=limit)


def _at_least(advice: ScaleAdvice, least: int, limit: Limit) -> ScaleAdvice:
    return advice if advice.desired >= least else replace(advice, desired=least, limited_by=limit)
