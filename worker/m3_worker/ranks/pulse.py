"""Noticing that a rank is gone: each says every second that it is there, and misses those who do not.

Owns that thread and its judgement. An exchange with a rank that is gone fails by itself; this is for a group that is
idle or stuck. Rank 0 listens for all others, they for rank 0 alone: that one fails the group, and they end with it.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch._C._distributed_c10d import Store

log = logging.getLogger(__name__)

PERIOD_SECONDS = 1.0


@dataclass(slots=True)
class Silence:
    """Who was last heard when. A rank is heard when its count has changed."""

    limit_seconds: float
    _counts: dict[int, bytes] = field(default_factory=dict)
    _heard: dict[int, float] = field(default_factory=dict)

    def longest(self, counts: Mapping[int, bytes], now: float) -> tuple[int, float]:
        """The rank that has been silent for longest, and for how many seconds. `counts` has one rank or more."""
        for rank, count in counts.items():
            if self._counts.get(rank) != count:
                self._counts[rank], self._heard[rank] = count, now
        rank = min(counts, key=lambda one: self._heard[one])
        return rank, now - self._heard[rank]


class Pulse:
    """This rank's pulse, and its ear for the others'."""

    def __init__(
        self, store: Store, rank: int, ranks: int, limit_seconds: float, on_lost: Callable[[str], None]
    ) -> None:
        """on_lost is called once, from the pulse's thread, with the reason."""
        self._store = store.clone()  # of this thread alone
        self._rank = rank
        self._others = range(1, ranks) if rank == 0 else range(1)
        self._limit_seconds = limit_seconds
        self._on_lost = on_lost
        self._stopped = threading.Event()
        self._store.set(_key(rank), "0")
        self._thread = threading.Thread(target=self._run, name="m3-pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Say and miss nothing any more."""
        self._stopped.set()

    def _run(self) -> None:
        silence = Silence(self._limit_seconds)
        count = 0
        try:
            self._store.wait([_key(rank) for rank in self._others])
            while not self._stopped.wait(PERIOD_SECONDS):
                count += 1
                self._store.set(_key(self._rank), str(count))
                counts = self._store.multi_get([_key(rank) for rank in self._others])
                rank, seconds = silence.longest(dict(zip(self._others, counts, strict=True)), time.monotonic())
                if seconds > self._limit_seconds:
                    self._lose(f"rank {rank} has been silent for {seconds:.1f} s: it is gone or hangs")
                    return
        except RuntimeError as error:
            self._lose(f"rank 0 cannot be reached any more: {str(error).splitlines()[0]}")

    def _lose(self, reason: str) -> None:
        if not self._stopped.is_set():
            self._on_lost(reason)


def _key(rank: int) -> str:
    return f"pulse/{rank}"
