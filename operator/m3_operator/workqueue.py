"""Which objects want a look, each at most once at a time.

The work queue of every controller: waking an object twice before its turn is one turn, waking it during its turn is
another one after it, and one object's trouble (a timer of its own) keeps nobody else waiting. Owned by the event loop:
no locks.
"""

import asyncio
from collections.abc import Iterable

from m3_operator.observed import Key


class WorkQueue:
    """Objects to look at, in the order in which they were woken."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: dict[Key, float] = {}  # queued, and since when (loop time)
        self._active: dict[Key, float] = {}  # somebody is at it, and since when
        self._again: set[Key] = set()  # woken while active
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        return f"WorkQueue({len(self._waiting)} waiting, {len(self._active)} active, {len(self._timers)} timed)"

    def wake(self, key: Key) -> None:
        """This object wants a look as soon as possible."""
        self._cancel_timer(key)
        if key in self._active:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting[key] = asyncio.get_running_loop().time()
            self._queue.put_nowait(key)

    def wake_all(self, keys: Iterable[Key]) -> None:
        """These objects want a look as soon as possible."""
        for key in sorted(keys, key=str):  # sets come in any order, turns do not
            self.wake(key)

    async def take(self) -> Key:
        """The next object; its turn lasts until `done`."""
        key = await self._queue.get()
        del self._waiting[key]
        self._active[key] = asyncio.get_running_loop().time()
        return key

    def done(self, key: Key, wake_in_seconds: float | None = None) -> None:
        """The turn is over; look again after this time even if nothing happens."""
        del self._active[key]
        if key in self._again:
            self._again.discard(key)
            self.wake(key)
        elif wake_in_seconds is not None:
            self._timers[key] = asyncio.get_running_loop().call_later(max(wake_in_seconds, 0), self.wake, key)

    def longest_wait_seconds(self) -> float:
        """How long the oldest object has been waiting for its turn or for the end of it."""
        since = [*self._waiting.values(), *self._active.values()]
        return asyncio.get_running_loop().time() - min(since) if since else 0.0

    def _cancel_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
