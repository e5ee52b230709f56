"""A process that is a rank other than 0: it joins, loads its share, follows rank 0, and ends with it.

Owns such a process from start to end; exit code 0 if rank 0 said that it is over, 1 otherwise. It listens at no HTTP
port: what rank 0 serves is about the group. SIGTERM and SIGINT are ignored, since rank 0, which gets them as well, may
have requests to finish.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from m3_worker.config import RankSettings, WorkerSettings

log = logging.getLogger(__name__)


def main() -> None:
    """`python -m m3_worker.rank_main`, with the flags of `m3-worker`."""
    settings = WorkerSettings.parse_arguments(sys.argv[1:])
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(follow(settings, RankSettings.from_environment(os.environ), sys.argv[1:]))


def follow(settings: WorkerSettings, ranks: RankSettings, arguments: Sequence[str]) -> int:
    """Be that rank until the end. Returns the exit code."""
    from m3_worker.cache_size import CacheSizeError
    from m3_worker.engine_model import load_engine_model
    from m3_worker.model.config import CheckpointError
    from m3_worker.ranks.errors import GroupError
    from m3_worker.ranks.following import Follower

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    try:
        loaded = load_engine_model(settings, ranks, arguments, lambda read_bytes, needed_bytes: None)
        if loaded.rank is None or loaded.group is None:
            raise GroupError(f"rank {ranks.rank} is alone: there is nobody to follow")
        log.info("rank %d of %d is ready", ranks.rank, ranks.world_size)
        parts = loaded.rank
        Follower(loaded.model, loaded.cache, loaded.mover, parts.ranks, parts.swap).follow(parts.voice)
    except (CheckpointError, CacheSizeError, GroupError) as error:
        sys.stderr.write(f"m3-worker: rank {ranks.rank}: {error}\n")
        return 1
    loaded.group.end(others_know=True)
    return 0


if __name__ == "__main__":
    main()
