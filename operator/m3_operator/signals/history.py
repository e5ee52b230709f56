"""What a deployment's scrapes add up to: a sample, the history of samples, and when somebody should look at it.

Pure. Averages are over groups, waits are those of the routers if they wait longer: what one group does not take because
it is slow waits there.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from m3_operator.signals.values import DeploymentSignals, GpuSignals, RouterSignals, Sample, WorkerSignals

KEPT: Final = timedelta(seconds=960)
"""The longest window, and the mean that its first sample needs."""
LOOK_EVERY: Final = timedelta(seconds=15)


def sample(
    workers: Mapping[str, WorkerSignals],
    routers: Mapping[str, RouterSignals],
    *,
    ready: int,
    silent: Iterable[str],
    at: datetime,
) -> Sample:
    """A deployment at this moment. Values of GPUs are left out where nobody tells them."""
    gpus = [gpu for worker in workers.values() for gpu in worker.gpus]
    waits = [
        wait
        for router in routers.values()
        for wait in (router.queue_seconds_p90, router.oldest_wait_seconds)
        if wait is not None
    ]
    wait_inside = _mean(worker.queue_seconds_p90 for worker in workers.values())
    values: dict[str, float | None] = {
        "QueueWait": max([*waits, *([] if wait_inside is None else [wait_inside])], default=None),
        "TimeToFirstToken": _mean(worker.time_to_first_token_seconds_p90 for worker in workers.values()),
        "TimePerOutputToken": _mean(worker.time_per_output_token_seconds_p90 for worker in workers.values()),
    }
    measured: dict[str, float | None] = {
        "TokensInFlight": _mean(worker.tokens_in_flight for worker in workers.values()),
        "CacheUsage": _mean(worker.cache_usage for worker in workers.values()),
        "GPUUtilization": _mean_of(gpus, lambda gpu: gpu.utilisation),
        "TensorActivity": _mean_of(gpus, lambda gpu: gpu.tensor_activity),
        "GPUMemory": _mean_of(gpus, lambda gpu: gpu.memory_used),
    }
    return Sample(
        at=at,
        ready=ready,
        requests=_requests(workers.values(), routers.values()),
        values={**values, **{name: value for name, value in measured.items() if value is not None}},
        silent=tuple(sorted(silent)),
    )


def extended(
    before: DeploymentSignals,
    workers: Mapping[str, WorkerSignals],
    routers: Mapping[str, RouterSignals],
    taken: Sample,
) -> DeploymentSignals:
    """The history with one more sample, without what is too old to matter."""
    # What seems to be of the future was taken before the clock was set back, and is of no known time.
    samples = tuple(one for one in (*before.samples, taken) if timedelta() <= taken.at - one.at <= KEPT)
    after = DeploymentSignals(workers=workers, routers=routers, samples=samples, busy_at=before.busy_at)
    return replace(after, busy_at=taken.at) if _was_busy(before, after) else after


def matters(
    before: DeploymentSignals,
    after: DeploymentSignals,
    looked_at: datetime | None,
    *,
    is_scaled: bool,
    leaving: Collection[str] = (),
) -> bool:
    """Whether the deployment wants a look now: something turned, or its autoscaler looked a while ago.

    `leaving`: uids of pods that drain; what they still answer is shown, but not each time that it changes.
    """
    if not before.samples:
        return True
    old, new = before.samples[-1], after.samples[-1]
    was_a_while_ago = looked_at is None or not timedelta() <= new.at - looked_at < LOOK_EVERY
    if was_a_while_ago and (is_scaled or any(_in_flight(before, uid) != _in_flight(after, uid) for uid in leaving)):
        return True
    # Its first word at once, then as often as people would look.
    if before.fetches.keys() != after.fetches.keys() or (was_a_while_ago and before.fetches != after.fetches):
        return True
    if is_scaled and (bool(old.requests), old.silent) != (bool(new.requests), new.silent):
        return True
    return _xids(before) != _xids(after) or any(_stands_still(before, uid, one) for uid, one in after.workers.items())


def _in_flight(signals: DeploymentSignals, uid: str) -> int | None:
    found = signals.workers.get(uid)
    return None if found is None else found.in_flight


def _stands_still(before: DeploymentSignals, uid: str, worker: WorkerSignals) -> bool:
    """Whether it has work and has computed nothing since the last sample."""
    found = before.workers.get(uid)
    is_same = found is not None and found.steps is not None and found.steps == worker.steps
    return is_same and worker.in_flight > 0


def _was_busy(before: DeploymentSignals, after: DeploymentSignals) -> bool:
    """Whether anything was asked or computed since the last sample, or a group came to serve.

    A request that came and went between two scrapes shows in what has been counted.
    """
    if before.busy_at is None or not before.samples or after.samples[-1].requests:
        return True
    if after.samples[-1].ready > before.samples[-1].ready:
        return True
    counted = [(before.workers[uid].steps, one.steps) for uid, one in after.workers.items() if uid in before.workers]
    ended = [
        (before.routers[uid].requests, one.requests) for uid, one in after.routers.items() if uid in before.routers
    ]
    return any(old != new for old, new in (*counted, *ended))


def _requests(workers: Iterable[WorkerSignals], routers: Iterable[RouterSignals]) -> int:
    """Unfinished requests. Routers see those that workers have; requests that came past a router only workers see."""
    at_workers = sum(worker.in_flight for worker in workers)
    waiting = in_flight = 0
    for router in routers:
        waiting += router.waiting
        in_flight += router.in_flight
    return waiting + max(in_flight, at_workers)


def _xids(signals: DeploymentSignals) -> dict[str, tuple[int, ...]]:
    return {uid: tuple(gpu.xid for gpu in worker.gpus) for uid, worker in signals.workers.items()}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _mean_of(gpus: Iterable[GpuSignals], read: Callable[[GpuSignals], float | None]) -> float | None:
    return _mean(read(gpu) for gpu in gpus)
