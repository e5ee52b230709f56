"""The work queue: each object once at a time, and none forgotten."""

import asyncio

from m3_operator.observed import Key
from m3_operator.workqueue import WorkQueue

A, B = Key("M3Deployment", "ns", "a"), Key("M3Deployment", "ns", "b")


async def taken(queue: WorkQueue) -> Key:
    return await asyncio.wait_for(queue.take(), 5)


def is_empty(queue: WorkQueue) -> bool:
    return "0 waiting, 0 active" in repr(queue)


async def test_waking_twice_before_the_turn_is_one_turn() -> None:
    queue = WorkQueue()
    queue.wake_all([A, B, A])
    assert [await taken(queue), await taken(queue)] == [A, B]
    queue.done(A)
    queue.done(B)
    assert is_empty(queue)


async def test_waking_during_the_turn_is_another_turn_after_it() -> None:
    queue = WorkQueue()
    queue.wake(A)
    await taken(queue)
    queue.wake(A)
    queue.wake(A)
    assert "0 waiting, 1 active" in repr(queue)  # not at the same time as the first
    queue.done(A)
    assert await taken(queue) == A
    queue.done(A)
    assert is_empty(queue)


async def test_a_timer_wakes_and_an_earlier_event_replaces_it() -> None:
    queue = WorkQueue()
    queue.wake(A)
    queue.done(await taken(queue), wake_in_seconds=0)
    assert await taken(queue) == A
    queue.done(A, wake_in_seconds=3600)
    assert "1 timed" in repr(queue)
    queue.wake(A)
    assert "0 timed" in repr(queue)
    assert await taken(queue) == A


async def test_a_turn_that_was_asked_for_meanwhile_wins_over_the_timer() -> None:
    queue = WorkQueue()
    queue.wake(A)
    await taken(queue)
    queue.wake(A)
    queue.done(A, wake_in_seconds=3600)
    assert await taken(queue) == A


async def test_it_knows_how_long_the_oldest_has_been_waiting() -> None:
    queue = WorkQueue()
    assert queue.longest_wait_seconds() == 0
    queue.wake(A)
    assert queue.longest_wait_seconds() >= 0
    await taken(queue)
    assert queue.longest_wait_seconds() > 0  # an active one waits for its end
    queue.done(A)
    assert queue.longest_wait_seconds() == 0
