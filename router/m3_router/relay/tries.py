"""Which workers have failed one request, and whether there is another to try. Pure bookkeeping."""

from m3_router.placement.pools import Pool
from m3_router.workers.workers import Worker


class Tries:
    """Those of one request; `workers` are not chosen again."""

    __slots__ = ("_limit", "workers")

    def __init__(self, limit: int) -> None:
        """limit: how many workers a request may be sent to, one after the other."""
        self._limit = limit
        self.workers: tuple[Worker, ...] = ()

    def add(self, worker: Worker) -> None:
        """This one has failed the request."""
        self.workers = (*self.workers, worker)

    def forget(self) -> None:
        """Whoever comes, even the same one, has begun anew."""
        self.workers = ()

    def is_last(self) -> bool:
        """Whether the try that runs is the last that is allowed."""
        return len(self.workers) + 1 >= self._limit

    def are_used_up(self) -> bool:
        """Whether no further try is allowed, now that none runs."""
        return len(self.workers) >= self._limit

    def has_other(self, pool: Pool, worker: Worker | None) -> bool:
        """Whether a worker is ready that is not this one, and has not failed the request."""
        return any(other is not worker and other not in self.workers for other in pool.workers.ready)
