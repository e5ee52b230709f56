"""The group that a process belongs to, from the moment it joins until it ends.

Owns the way of a loss: whoever notices that a rank is gone (its process ended, its pulse stopped) tells it here, and it
reaches whoever is responsible, once. While nobody is, and on ranks that follow, it ends the process: a group that lost
a rank never comes back, and is started anew as a whole.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence

import torch

from m3_worker.config import RankSettings, WorkerSettings
from m3_worker.ranks.group import Group
from m3_worker.ranks.local_ranks import LocalRanks
from m3_worker.ranks.pulse import Pulse

log = logging.getLogger(__name__)


class RunningGroup:
    """A joined group with its watchers."""

    def __init__(
        self, settings: WorkerSettings, ranks: RankSettings, device: torch.device, arguments: Sequence[str]
    ) -> None:
        """Start this node's other ranks and meet all. Raises GroupError."""
        self._lock = threading.Lock()
        self._lost: str | None = None
        self._responsible: Callable[[str], None] | None = None
        self._local = LocalRanks(ranks, arguments, self._lose)
        try:
            self.group = Group.join(
                ranks,
                device,
                join_seconds=settings.rank_join_seconds,
                exchange_seconds=settings.step_deadline_seconds,
            )
        except BaseException:
            self._local.kill()
            raise
        silence = settings.rank_silence_seconds
        self._pulse = Pulse(self.group.store, ranks.rank, ranks.world_size, silence, self._lose)

    def when_lost(self, responsible: Callable[[str], None]) -> None:
        """Whom to tell, from any thread, instead of ending the process; at once if it has happened."""
        with self._lock:
            self._responsible = responsible
            lost = self._lost
        if lost is not None:
            responsible(lost)

    def expect_end(self) -> None:
        """From now on other ranks may end."""
        self._pulse.stop()
        self._local.expect_end()

    def end(self, *, others_know: bool) -> None:
        """Take the group apart. Others that do not know that it is over lose rank 0, and end by that."""
        self.expect_end()
        if others_know:
            self._local.end()
            self.group.leave()
        else:
            self._local.kill()

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self._lost is not None:
                return
            self._lost, responsible = reason, self._responsible
        if responsible is not None:
            responsible(reason)
        else:
            log.critical("%s: ending, since its group is of no use without it", reason)
            self._local.kill()
            os._exit(1)  # the main thread may wait in an exchange that never comes
