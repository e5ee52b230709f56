"""Whether this process still does its work: what the liveness probe is told.

A standby is healthy: its work is to wait. A leader is not when an object has waited too long for its turn, or when a
watch is silent about changes: two full lists in a row brought news of a kind, and its watch had told nothing between
them. (How old the last event is says nothing by itself: a quiet cluster has none.)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from m3_operator.workqueue import WorkQueue

STUCK_AFTER_SECONDS: Final = 300
MISSED_LISTS: Final = 2


@dataclass
class Watch:
    """What is known of one kind's watch."""

    alive_at: float  # when it last told something, or a full list agreed with what it had told
    missed: int = 0  # full lists in a row that brought news, without an event between them


@dataclass
class Watches:
    """The signs of life of all watches. Owned by the event loop."""

    monotonic: Callable[[], float] = time.monotonic
    _watches: dict[str, Watch] = field(default_factory=dict)

    def told(self, kind: str) -> None:
        """An event of this kind arrived, or its first list."""
        self._watches[kind] = Watch(self.monotonic())

    def listed(self, kind: str, *, is_news: bool) -> None:
        """A full list was compared with what the watch had told; `is_news`: it said something else."""
        if not is_news:
            self.told(kind)
        elif kind in self._watches:
            self._watches[kind].missed += 1

    def ages_seconds(self) -> dict[str, float]:
        """How long ago each watch was known to be right."""
        now = self.monotonic()
        return {kind: now - watch.alive_at for kind, watch in self._watches.items()}

    def silent(self) -> list[str]:
        """Kinds whose watch is stuck."""
        return [kind for kind, watch in self._watches.items() if watch.missed >= MISSED_LISTS]


@dataclass(frozen=True)
class Health:
    """What is asked when the kubelet asks."""

    queue: WorkQueue
    watches: Watches
    is_leader: Callable[[], bool]

    def report(self) -> tuple[bool, dict[str, Any]]:
        """Whether all is well, and the figures."""
        waited, silent = self.queue.longest_wait_seconds(), self.watches.silent()
        problems = [f"the watch of {kind} tells nothing of what changes" for kind in silent]
        if waited > STUCK_AFTER_SECONDS:
            problems.append(f"an object has been waiting for {waited:.0f} s: {self.queue!r}")
        role = "leader" if self.is_leader() else "standby"
        return not problems, {"role": role, "longest_wait_seconds": round(waited, 3), "problems": problems}
