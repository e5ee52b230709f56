"""When the kubelet is told that the operator is stuck."""

from dataclasses import dataclass

import pytest

from m3_operator.health import STUCK_AFTER_SECONDS, Health, Watches
from m3_operator.observed import Key
from m3_operator.workqueue import WorkQueue


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def health(queue: WorkQueue, watches: Watches, *, is_leader: bool = True) -> Health:
    return Health(queue, watches, lambda: is_leader)


async def test_an_idle_leader_is_well_and_a_standby_says_what_it_is(clock: Clock) -> None:
    queue, watches = WorkQueue(), Watches(clock)
    assert health(queue, watches).report() == (True, {"role": "leader", "longest_wait_seconds": 0.0, "problems": []})
    is_well, figures = health(queue, watches, is_leader=False).report()
    assert (is_well, figures["role"]) == (True, "standby")


async def test_an_object_that_waits_too_long_fails_the_probe(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    queue = WorkQueue()
    queue.wake(Key("M3Deployment", "ns", "m3"))
    monkeypatch.setattr(queue, "longest_wait_seconds", lambda: STUCK_AFTER_SECONDS + 1.0)
    is_well, figures = health(queue, Watches(clock)).report()
    assert not is_well
    assert figures["problems"] == ["an object has been waiting for 301 s: WorkQueue(1 waiting, 0 active, 0 timed)"]


async def test_a_watch_that_misses_what_two_full_lists_show_fails_the_probe(clock: Clock) -> None:
    watches = Watches(clock)
    watches.told("Pod")
    watches.listed("Pod", is_news=True)
    assert watches.silent() == [], "a list can be a moment ahead of a watch"
    watches.listed("Pod", is_news=True)
    is_well, figures = health(WorkQueue(), watches).report()
    assert not is_well
    assert figures["problems"] == ["the watch of Pod tells nothing of what changes"]
    watches.told("Pod")
    assert watches.silent() == []


def test_a_quiet_watch_is_as_young_as_the_last_list_that_agreed_with_it(clock: Clock) -> None:
    watches = Watches(clock)
    watches.told("Pod")
    clock.now += 50
    assert watches.ages_seconds() == {"Pod": 50}
    watches.listed("Pod", is_news=False)
    assert watches.ages_seconds() == {"Pod": 0}
    clock.now += 10
    watches.listed("Pod", is_news=True)
    assert watches.ages_seconds() == {"Pod": 10}
    assert watches.silent() == []
