"""The rules that `simulate.py` compares: each places requests and is told how they fare.

m3-router is the router's own code. The others are written from what their makers publish: round robin; the fewest
requests in flight; SMG's cache-aware rule and the older one of the SGLang family that it grew from.
"""

import statistics
from collections.abc import Callable
from typing import Protocol

from workload import BLOCK_TOKENS

from m3_router.config.services import AffinitySettings
from m3_router.placement.affinity import Affinity
from m3_router.placement.placement import Placement, Want
from m3_router.workers.workers import Charge, Worker, WorkerAddress, Workers

EXPECTED_OUTPUT_TOKENS = 256  # nobody knows the answer's length beforehand


class Request:
    """What a policy sees of a request: its length and its chain. `charge`, `worker`: for the policy's own books."""

    __slots__ = ("chain", "charge", "input_tokens", "worker")

    def __init__(self, input_tokens: int, chain: list[int]) -> None:
        self.input_tokens = input_tokens
        self.chain = chain
        self.charge: Charge | None = None
        self.worker = -1


class Policy(Protocol):
    """A rule, with its view of the workers."""

    def place(self, request: Request, now: float) -> int:
        """The number of the worker that gets it."""

    def first_byte(self, request: Request, cached_tokens: int) -> None:
        """Its prompt is computed; so much of it was cached."""

    def ended(self, request: Request) -> None:
        """Its answer is complete."""

    def evicted(self, worker: int, digests: list[int]) -> None:
        """What a worker's events say it no longer holds."""


class Counting:
    """The requests in flight at each worker: all that the simple rules look at."""

    def __init__(self, workers: int) -> None:
        self.in_flight = [0] * workers

    def begin(self, request: Request, worker: int) -> int:
        """Count it."""
        request.worker = worker
        self.in_flight[worker] += 1
        return worker

    def first_byte(self, request: Request, cached_tokens: int) -> None:
        """Of no interest here."""

    def ended(self, request: Request) -> None:
        """Count it no longer."""
        self.in_flight[request.worker] -= 1

    def evicted(self, worker: int, digests: list[int]) -> None:
        """Of no interest here."""


class RoundRobin(Counting):
    """One after the other."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._next = 0

    def place(self, request: Request, now: float) -> int:
        """The next one."""
        self._next = (self._next + 1) % len(self.in_flight)
        return self.begin(request, self._next)


class LeastLoaded(Counting):
    """The fewest requests in flight."""

    def place(self, request: Request, now: float) -> int:
        """The first of the least loaded."""
        return self.begin(request, self.in_flight.index(min(self.in_flight)))


class CacheAware(Counting):
    """A prefix tree per worker of what was sent there, without any bound, and a switch between affinity and balance.

    The worker with the longest match, if that is more than MATCH_SHARE of the prompt; else the one with the smallest
    tree. `is_smg` chooses when load overrules it: SMG 1.13 leaves a matched worker whose requests in flight exceed both
    the mean by a margin (64, but at most two standard deviations) and 1.5 times the mean; the SGLang family leaves
    affinity for all, and takes the shortest queue, while max - min > 64 and max > 1.5 min.
    """

    MATCH_SHARE = 0.3
    MARGIN = 64
    RATIO = 1.5

    def __init__(self, workers: int, *, is_smg: bool) -> None:
        super().__init__(workers)
        self._is_smg = is_smg
        self._trees: list[set[int]] = [set() for _ in range(workers)]

    def place(self, request: Request, now: float) -> int:
        """By the rule above."""
        worker = self._choose(request)
        self._trees[worker].update(request.chain)
        return self.begin(request, worker)

    def _choose(self, request: Request) -> int:
        loads = self.in_flight
        least = loads.index(min(loads))
        if not self._is_smg and max(loads) - min(loads) > self.MARGIN and max(loads) > self.RATIO * min(loads):
            return least
        matches = [self._match(tree, request.chain) for tree in self._trees]
        best = max(range(len(loads)), key=lambda worker: (matches[worker], -loads[worker]))
        if matches[best] <= self.MATCH_SHARE * max(len(request.chain), 1):
            return min(range(len(loads)), key=lambda worker: len(self._trees[worker]))
        if self._is_smg:
            mean = statistics.fmean(loads)
            margin = min(self.MARGIN, 2 * statistics.pstdev(loads))
            if loads[best] > mean + margin and loads[best] > self.RATIO * mean:
                return least
        return best

    @staticmethod
    def _match(tree: set[int], chain: list[int]) -> int:
        low, high = 0, len(chain)
        while low < high:
            middle = (low + high + 1) // 2
            if chain[middle - 1] in tree:
                low = middle
            else:
                high = middle - 1
        return low


class M3Router:
    """The router's own modules, with its default settings. `has_events`: the workers publish what they evict."""

    def __init__(self, workers: int, *, has_events: bool) -> None:
        settings = AffinitySettings()
        self._has_events = has_events
        self._affinity = Affinity(settings)
        self._placement = Placement(settings, long_prefills_per_worker=1)
        self._workers = Workers()
        self._workers.replace(WorkerAddress(str(i), str(i), "127.0.0.1", 80) for i in range(workers))
        self._by_number: list[Worker] = list(self._workers)
        for worker in self._by_number:
            self._workers.report(worker, is_ready=True, reason="")
            self._workers.set_epoch(worker, "1", self._affinity.slot_of(worker.uid, "1"), 0.0)

    def place(self, request: Request, now: float) -> int:
        """Match, choose, charge, record: as the relay does."""
        chain = request.chain
        want = Want(
            request.input_tokens,
            block_tokens=float(BLOCK_TOKENS),
            matches=self._affinity.match(chain),
            tie=chain[0] if chain else 0,
        )
        choice = self._placement.choose(self._workers.ready, want, now)
        assert choice is not None  # noqa: S101 - all workers are ready for ever
        request.charge = Charge(request.input_tokens - choice.cached_tokens, EXPECTED_OUTPUT_TOKENS)
        request.worker = int(choice.worker.uid)
        self._workers.charge(choice.worker, request.charge)
        self._affinity.record(chain, choice.worker.slot)
        return request.worker

    def first_byte(self, request: Request, cached_tokens: int) -> None:
        """The queue is shorter."""
        assert request.charge is not None  # noqa: S101 - place has set it
        self._workers.first_byte(self._by_number[request.worker], request.charge)

    def ended(self, request: Request) -> None:
        """The worker is free of it."""
        assert request.charge is not None  # noqa: S101 - place has set it
        self._workers.discharge(self._by_number[request.worker], request.charge)

    def evicted(self, worker: int, digests: list[int]) -> None:
        """The exact view, where there is one."""
        if self._has_events and digests:
            self._affinity.removed(self._by_number[worker].slot, digests)


POLICIES: dict[str, Callable[[int], Policy]] = {
    "round robin": RoundRobin,
    "least loaded": LeastLoaded,
    "SGLang family, cache-aware": lambda workers: CacheAware(workers, is_smg=False),
    "SMG, cache-aware": lambda workers: CacheAware(workers, is_smg=True),
    "m3-router": lambda workers: M3Router(workers, has_events=False),
    "m3-router, with cache events": lambda workers: M3Router(workers, has_events=True),
}
