"""What scrapes add up to, and what of it wants a look."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from m3_operator.signals.history import KEPT, extended, matters, sample
from m3_operator.signals.values import NO_SIGNALS, DeploymentSignals, GpuSignals, RouterSignals, WorkerSignals
from operator_world import NOW


def worker(**changes: Any) -> WorkerSignals:
    return WorkerSignals(scraped_at=NOW, **changes)


def router(**changes: Any) -> RouterSignals:
    return RouterSignals(scraped_at=NOW, **changes)


def seen(
    before: DeploymentSignals,
    at: datetime,
    *,
    workers: dict[str, WorkerSignals] | None = None,
    routers: dict[str, RouterSignals] | None = None,
    ready: int = 1,
) -> DeploymentSignals:
    taken = sample(workers or {}, routers or {}, ready=ready, silent=(), at=at)
    return extended(before, workers or {}, routers or {}, taken)


def test_averages_are_over_groups_and_the_longest_wait_counts() -> None:
    workers = {
        "a": worker(tokens_in_flight=100, cache_usage=0.2, queue_seconds_p90=1.0, gpus=(GpuSignals(utilisation=1.0),)),
        "b": worker(tokens_in_flight=300, cache_usage=0.6, queue_seconds_p90=2.0, gpus=(GpuSignals(utilisation=0.5),)),
    }
    found = sample(workers, {"r": router(oldest_wait_seconds=4.0)}, ready=2, silent=(), at=NOW).values
    assert (found["TokensInFlight"], found["CacheUsage"], found["GPUUtilization"]) == (200, 0.4, 0.75)
    assert found["QueueWait"] == 4.0
    assert found["TimeToFirstToken"] is None
    assert "GPUMemory" not in found


def test_a_request_counts_once_whether_a_router_or_a_worker_tells_of_it() -> None:
    def requests(workers: dict[str, WorkerSignals], routers: dict[str, RouterSignals]) -> int:
        return sample(workers, routers, ready=1, silent=(), at=NOW).requests

    assert requests({"a": worker(running=3)}, {"r": router(in_flight=3, waiting=2)}) == 5
    assert requests({"a": worker(running=3)}, {}) == 3
    assert requests({}, {"r": router(waiting=1)}) == 1


def test_a_deployment_is_busy_by_what_is_counted_between_two_looks() -> None:
    first = seen(NO_SIGNALS, NOW, workers={"a": worker(steps=1)}, routers={"r": router(requests=1)})
    assert first.busy_at == NOW
    later = NOW + timedelta(seconds=5)
    same = {"workers": {"a": worker(steps=1)}, "routers": {"r": router(requests=1)}}
    assert seen(first, later, **same).busy_at == NOW
    assert seen(first, later, **{**same, "workers": {"a": worker(steps=2)}}).busy_at == later
    assert seen(first, later, **{**same, "routers": {"r": router(requests=2)}}).busy_at == later
    assert seen(first, later, **same, ready=2).busy_at == later


def test_the_history_is_bounded_and_forgets_what_a_clock_set_back_left_in_the_future() -> None:
    found = NO_SIGNALS
    for step in range(400):
        found = seen(found, NOW + timedelta(seconds=5 * step))
    assert len(found.samples) == KEPT.total_seconds() // 5 + 1
    assert len(seen(found, NOW).samples) == 1


def test_a_drain_is_looked_at_now_and_then_and_what_turns_at_once() -> None:
    looked_at = NOW
    before = seen(NO_SIGNALS, NOW, workers={"a": worker(running=3)})
    soon, later = NOW + timedelta(seconds=5), NOW + timedelta(seconds=15)

    def wants(at: datetime, now: WorkerSignals, leaving: set[str]) -> bool:
        return matters(before, seen(before, at, workers={"a": now}), looked_at, is_scaled=False, leaving=leaving)

    assert not wants(soon, worker(running=2), {"a"})
    assert wants(later, worker(running=2), {"a"})
    assert not wants(later, worker(running=2), set())
    assert wants(soon, worker(running=3, gpus=(GpuSignals(xid=79),)), set())
    still = replace(before, workers={"a": worker(running=3, steps=7)})
    assert matters(still, seen(still, soon, workers={"a": worker(running=3, steps=7)}), looked_at, is_scaled=False)
