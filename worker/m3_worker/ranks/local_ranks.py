"""The other ranks of this machine, as processes that this one starts, watches, and outlives.

Owns these processes. The first rank of a node starts one process for each further GPU; they get its command line, and
their place in `M3_LOCAL_RANK`. Each is a follower (`rank_main`): it serves no HTTP.
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from m3_worker.config import RankSettings

log = logging.getLogger(__name__)

_END_SECONDS = 10.0


class LocalRanks:
    """The further ranks of one node."""

    def __init__(self, settings: RankSettings, arguments: Sequence[str], on_lost: Callable[[str], None]) -> None:
        """Start them. on_lost is called, from a thread, with the reason, when one ends before `end`."""
        self._on_lost = on_lost
        self._is_ending = threading.Event()
        self._processes = {}
        for local_rank in range(1, settings.ranks_per_node if settings.local_rank == 0 else 0):
            rank = settings.rank + local_rank
            self._processes[rank] = subprocess.Popen(
                [sys.executable, "-m", "m3_worker.rank_main", *arguments],
                env={**os.environ, RankSettings.variables["local_rank"]: str(local_rank)},
                start_new_session=True,  # Ctrl-C is for the first rank, which drains and then ends the others
            )
        for rank, process in self._processes.items():
            threading.Thread(target=self._watch, args=(rank, process), name=f"m3-rank-{rank}", daemon=True).start()

    def expect_end(self) -> None:
        """From now on ranks may end."""
        self._is_ending.set()

    def end(self) -> None:
        """Wait for them to end, not for long, and kill those that do not."""
        self.expect_end()
        for rank, process in self._processes.items():
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("rank %d (process %d) did not end: killing it", rank, process.pid)
                process.kill()

    def kill(self) -> None:
        """End them at once."""
        self.expect_end()
        for process in self._processes.values():
            process.kill()

    def _watch(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        code = process.wait()
        if not self._is_ending.is_set():
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._on_lost(f"rank {rank} (process {process.pid}) {how}")
