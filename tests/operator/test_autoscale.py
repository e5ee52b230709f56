"""The law of the built-in autoscaler: what it asks for, what holds it, and that it never leaves its bounds."""

import math
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_operator.plan.autoscale import ScaleAdvice, ScaleChange, ScaleState, next_scale
from m3_operator.plan.pressure import bands
from m3_operator.signals.values import Sample
from m3_operator.spec.autoscaling import AutoscalingSpec
from operator_world import NOW


def spec(**changes: Any) -> AutoscalingSpec:
    usual: dict[str, Any] = {"maxReplicas": 20, "signals": [{"type": "GPUUtilization", "target": 1.0}]}
    return AutoscalingSpec.model_validate({**usual, **changes})


QUEUE = [{"type": "QueueWait", "target": 2.0}]
AT_ONCE = {
    "up": {"windowSeconds": 0, "maxGroups": 1000},
    "down": {"windowSeconds": 0, "maxGroups": 1000},
}


def steady(seconds: int = 300, *, ready: int = 2, requests: int = 5, **values: float | None) -> tuple[Sample, ...]:
    """A history of a scrape every 5 s, all alike, the last of them now."""
    return tuple(
        Sample(at=NOW - timedelta(seconds=back), ready=ready, requests=requests, values=values)
        for back in range(seconds, -1, -5)
    )


def advise(spec: AutoscalingSpec, wanted: int = 2, **changes: Any) -> ScaleAdvice:
    return next_scale(spec, ScaleState(wanted=wanted, **{"ready": wanted, **changes}), NOW)


@pytest.mark.parametrize(
    ("wanted", "pressure", "desired"),
    [
        (4, 0.84, 4),  # within the bands: held
        (4, 0.61, 4),
        (4, 0.90, 5),  # 4 + ceil(4 * 0.0588)
        (4, 1.70, 8),  # 4 + ceil(4 * 1.0)
        (4, 5.00, 10),  # clamped to 2: 4 + ceil(4 * 1.353)
        (4, 0.44, 3),  # 4 - floor(4 * 0.267), and 0.44 * 4 / 3 = 0.587
        (4, 0.10, 1),  # 4 - floor(4 * 0.833), and 0.1 * 4 = 0.4
        (2, 0.35, 2),  # 2 - floor(2 * 0.417): not a whole group to spare
        (1, 0.00, 1),  # the last one is for idleness to take
    ],
)
def test_groups_follow_the_pressure_outside_of_the_bands(wanted: int, pressure: float, desired: int) -> None:
    samples = steady(ready=wanted, GPUUtilization=pressure)
    assert advise(spec(**AT_ONCE), wanted, samples=samples).desired == desired


@pytest.mark.parametrize(("wait", "desired"), [(1.0, 4), (1.4, 6), (0.85, 4), (0.4, 2)])
def test_a_latency_counts_from_half_of_its_target(wait: float, desired: int) -> None:
    # 1.4 / 2 = 0.7: 4 + ceil(4 * 0.2727); 0.4 / 2 = 0.2: 4 - floor(4 * 0.5), and 0.2 * 4 / 2 = 0.4 is below 0.55
    assert advise(spec(signals=QUEUE, **AT_ONCE), 4, samples=steady(ready=4, QueueWait=wait)).desired == desired


def test_the_signal_that_asks_for_the_most_decides() -> None:
    both = spec(signals=[*QUEUE, {"type": "CacheUsage", "target": 1.0}], **AT_ONCE)
    found = advise(both, samples=steady(QueueWait=0.0, CacheUsage=1.2))
    assert found.desired == 3
    assert found.message == "CacheUsage is above its target"
    assert advise(both, samples=steady(QueueWait=3.0, CacheUsage=0.1)).message == "QueueWait is above its target"


def test_groups_that_are_still_loading_are_not_asked_for_twice() -> None:
    samples = steady(ready=2, GPUUtilization=1.6)
    assert advise(spec(**AT_ONCE), 2, samples=samples).desired == 4
    assert advise(spec(**AT_ONCE), 4, ready=2, samples=samples).desired == 4


def test_what_was_measured_with_fewer_groups_does_not_add_more() -> None:
    before = tuple(
        Sample(at=NOW - timedelta(seconds=back), ready=1, requests=9, values={"GPUUtilization": 2.0})
        for back in range(300, 10, -5)
    )
    since = steady(10, ready=2, GPUUtilization=1.0)
    assert advise(spec(), 2, samples=(*before, *since)).desired == 2
    assert advise(spec(), 2, samples=steady(60, ready=2, GPUUtilization=1.0)).desired == 3


def test_growth_waits_for_its_window() -> None:
    calm = steady(300, GPUUtilization=0.7)[:-4]
    burst = steady(15, GPUUtilization=2.0)
    assert advise(spec(), samples=(*calm, *burst)).desired == 2
    assert advise(spec(), samples=steady(40, GPUUtilization=2.0)).desired == 5


def test_shrinking_waits_until_nothing_of_its_window_speaks_against_it() -> None:
    quiet = steady(300, ready=4, GPUUtilization=0.1)
    assert advise(spec(), 4, samples=quiet).desired == 3
    busy_once = tuple(
        Sample(at=one.at, ready=4, requests=5, values={"GPUUtilization": 0.8 if 170 >= age >= 130 else 0.1})
        for one in quiet
        if (age := (NOW - one.at).total_seconds()) >= 0
    )
    assert advise(spec(), 4, samples=busy_once).desired == 4
    assert advise(spec(), 4, samples=quiet[-20:]).desired == 4  # 95 s of history say nothing of 180


def test_pace_is_limited_by_what_was_changed_lately() -> None:
    loud = {"samples": steady(ready=10, GPUUtilization=2.0), "wanted": 10}
    assert advise(spec(maxReplicas=100), **loud).desired == 20  # 24 are asked for; 100 % of 10
    recent = (ScaleChange(NOW - timedelta(seconds=30), 8, 10),)
    found = advise(spec(maxReplicas=100), **loud, changes=recent)
    assert (found.desired, found.limited_by) == (16, "Rate")  # 100 % of 8
    quiet = {"samples": steady(ready=10, GPUUtilization=0.1), "wanted": 10}
    found = advise(spec(), **quiet)
    assert (found.desired, found.limited_by) == (9, "Rate")
    gone = (ScaleChange(NOW - timedelta(seconds=100), 11, 10),)
    assert advise(spec(), **quiet, changes=gone).desired == 10
    long_gone = (ScaleChange(NOW - timedelta(seconds=121), 11, 10),)
    assert advise(spec(), **quiet, changes=long_gone).desired == 9


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ((), "NoMetrics"),
        (steady(GPUUtilization=2.0)[:-4], "MetricsStale"),
        ((*steady(GPUUtilization=2.0), Sample(at=NOW, ready=2, requests=5, silent=("m3-g0-r0",))), "MetricsStale"),
        (steady(CacheUsage=2.0), "MetricsMissing"),
    ],
)
def test_what_cannot_be_seen_holds_still(samples: tuple[Sample, ...], reason: str) -> None:
    found = advise(spec(**AT_ONCE), 3, ready=2, samples=samples)
    assert (found.desired, found.is_active, found.reason) == (3, False, reason)


def test_a_rollout_and_a_group_without_a_node_stop_growth() -> None:
    samples = steady(GPUUtilization=2.0)
    rolling = advise(spec(), samples=samples, is_rolling=True)
    assert (rolling.desired, rolling.limited_by) == (2, "Rollout")
    full = advise(spec(), samples=samples, unscheduled="m3-g1-r0: not scheduled")
    assert (full.desired, full.limited_by) == (2, "Capacity")


def test_bounds_hold_at_once_even_blind() -> None:
    assert advise(spec(maxReplicas=3), 5).desired == 3
    assert advise(spec(minReplicas=2), 1).desired == 2
    full = advise(spec(maxReplicas=3), samples=steady(GPUUtilization=2.0))
    assert (full.desired, full.limited_by) == (3, "Maximum")


SLEEPY = {"minReplicas": 0, "idleSeconds": 120}


def test_the_last_group_goes_after_idle_seconds_and_not_before() -> None:
    idle = steady(ready=1, requests=0, GPUUtilization=0.0)
    recently, long_ago = NOW - timedelta(seconds=119), NOW - timedelta(seconds=120)
    assert advise(spec(**SLEEPY), 1, samples=idle, busy_at=recently).desired == 1
    assert advise(spec(**SLEEPY), 1, samples=idle, busy_at=long_ago).desired == 0
    assert advise(spec(), 1, samples=idle, busy_at=long_ago).desired == 1
    # A group that has not come up yet had no chance to be asked.
    assert advise(spec(**SLEEPY), 1, ready=0, samples=idle, busy_at=long_ago).desired == 1


def test_a_request_wakes_the_first_group_and_nothing_else_does() -> None:
    asleep = steady(ready=0, requests=0)
    assert advise(spec(**SLEEPY), 0, samples=asleep).reason == "Asleep"
    waits = (*asleep, Sample(at=NOW, ready=0, requests=1, silent=("m3-router-b",)))
    assert advise(spec(**SLEEPY), 0, samples=waits).desired == 1
    silent = (*asleep, Sample(at=NOW, ready=0, requests=0, silent=("m3-router-a",)))
    assert advise(spec(**SLEEPY), 0, samples=silent).reason == "MetricsStale"


def test_without_requests_a_latency_is_no_pressure_and_with_some_it_is_no_answer() -> None:
    assert advise(spec(signals=QUEUE, **AT_ONCE), 4, samples=steady(ready=4, requests=0, QueueWait=None)).desired == 1
    assert advise(spec(signals=QUEUE, **AT_ONCE), 4, samples=steady(ready=4, requests=3, QueueWait=None)).desired == 4


signals = st.sampled_from(["QueueWait", "TokensInFlight", "CacheUsage", "GPUUtilization"])
pressures = st.floats(0, 10)


@given(
    st.tuples(st.integers(0, 5), st.integers(0, 15)),
    st.tuples(st.integers(0, 25), st.integers(0, 25)),
    signals,
    pressures,
    st.booleans(),
)
def test_the_number_never_leaves_the_bounds(
    limits: tuple[int, int], groups: tuple[int, int], signal: str, value: float, is_idle: bool
) -> None:
    (low, more), (wanted, ready) = limits, groups
    bounds = {"minReplicas": low, "maxReplicas": max(low + more, 1), "idleSeconds": 60}
    found = advise(
        spec(**bounds, signals=[{"type": signal, "target": 1.0}]),
        wanted,
        ready=min(ready, wanted),
        samples=steady(ready=min(ready, wanted), requests=0 if is_idle else 3, **{signal: value}),
        busy_at=NOW - timedelta(seconds=300),
    )
    assert low <= found.desired <= bounds["maxReplicas"]


@given(st.integers(1, 20), signals, pressures, pressures)
def test_more_pressure_never_asks_for_fewer(wanted: int, signal: str, one: float, other: float) -> None:
    def desired(value: float) -> int:
        law = spec(signals=[{"type": signal, "target": 1.0}], **AT_ONCE)
        return advise(law, wanted, samples=steady(ready=wanted, **{signal: value})).desired

    assert desired(min(one, other)) <= desired(max(one, other))


@given(st.integers(1, 20), signals, st.floats(0.01, 15))
def test_constant_demand_settles_and_is_never_followed_down_and_up_again(
    wanted: int, signal: Any, demand: float
) -> None:
    """Demand in units of one group's target, spread evenly over the groups."""
    law = spec(signals=[{"type": signal, "target": 1.0}], maxReplicas=40, **AT_ONCE)
    path = [wanted]
    for _ in range(12):
        groups = path[-1]
        path.append(advise(law, groups, samples=steady(ready=groups, **{signal: demand / groups})).desired)
    assert path[-1] == path[-2]
    steps = [after - before for before, after in pairwise(path) if after != before]
    assert all(step > 0 for step in steps) or all(step < 0 for step in steps)
    needed = min(math.ceil(demand / bands(signal).up - 1e-9), 40)
    assert path[-1] >= min(needed, 40)
