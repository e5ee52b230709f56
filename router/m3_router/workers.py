"""The workers of one pool: which there are, how each feels, and how much each has in flight.

Owns every `Worker`. Pure state: who is there comes in by `replace` (a static list once, EndpointSlices often), health
by `report`, load by `charge` and `discharge`. A worker is `ready` only after it was probed; one that is `draining` is
no longer in the list, and stays until what it has in flight has ended.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

WorkerState = Literal["unready", "ready", "draining"]
MAX_SLOW_PROBES: Final = 3  # probes in a row without an answer, from a worker without work, before it counts as lost


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where a worker is. `uid` tells a pod from the one that replaced it under the same name."""

    uid: str
    name: str
    host: str
    port: int

    @classmethod
    def from_url(cls, url: str) -> "WorkerAddress":
        """The address of a worker of a static list, which is named by host and port."""
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            raise ValueError(f"{url!r} has no host and port")
        return cls(uid=parts.netloc, name=parts.netloc, host=parts.hostname, port=parts.port)


class Worker:
    """One worker. Changed by `Workers` alone."""

    __slots__ = ("address", "host_line", "name", "reason", "requests", "slow_probes", "state", "tokens")

    def __init__(self, address: WorkerAddress) -> None:
        self.address = address
        self.name = address.name
        self.host_line = f"host: {address.name}\r\n".encode()
        self.state: WorkerState = "unready"
        self.reason = "not probed yet"
        self.tokens = 0  # in flight, as charged at dispatch
        self.requests = 0
        self.slow_probes = 0

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.state}: {self.requests} requests, {self.tokens} tokens>"


class Workers:
    """The set of workers of one pool. `ready` is ordered by name."""

    def __init__(self) -> None:
        self._by_uid: dict[str, Worker] = {}
        self.ready: list[Worker] = []  # exactly those of state `ready`; replaced, never changed

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._by_uid.values()))

    def replace(self, addresses: Iterable[WorkerAddress]) -> list[Worker]:
        """Take a new list. Returns the workers that left it; they drain."""
        listed = {address.uid: address for address in addresses}
        left = [worker for uid, worker in self._by_uid.items() if uid not in listed and worker.state != "draining"]
        for worker in left:
            self._set(worker, "draining", "left the list of workers")
            self._forget_if_idle(worker)
        for uid, address in listed.items():
            known = self._by_uid.get(uid)
            if known is None or known.address != address or known.state == "draining":
                self._by_uid[uid] = Worker(address)
        self._rebuild()
        return left

    def report(self, worker: Worker, *, is_ready: bool, reason: str) -> bool:
        """What a probe or a failed connection said. Returns whether the state changed."""
        if worker.state == "draining":
            return False
        worker.slow_probes = 0
        return self._set(worker, "ready" if is_ready else "unready", reason)

    def report_slow(self, worker: Worker) -> bool:
        """A probe got no answer in time. A worker that is busy may be slow; an idle one has MAX_SLOW_PROBES.

        Returns whether the state changed.
        """
        if worker.requests or worker.state == "draining":
            return False
        worker.slow_probes += 1
        if worker.slow_probes < MAX_SLOW_PROBES:
            return False
        return self._set(worker, "unready", f"{worker.slow_probes} probes without an answer")

    def charge(self, worker: Worker, tokens: int) -> None:
        """A request was sent to the worker."""
        worker.tokens += tokens
        worker.requests += 1

    def discharge(self, worker: Worker, tokens: int) -> None:
        """The request has ended, in whatever way."""
        worker.tokens -= tokens
        worker.requests -= 1
        if worker.state == "draining":
            self._forget_if_idle(worker)

    def _set(self, worker: Worker, state: WorkerState, reason: str) -> bool:
        worker.reason = reason
        if worker.state == state:
            return False
        worker.state = state
        self._rebuild()
        return True

    def _forget_if_idle(self, worker: Worker) -> None:
        if worker.requests == 0 and self._by_uid.get(worker.address.uid) is worker:
            del self._by_uid[worker.address.uid]

    def _rebuild(self) -> None:
        ready = [worker for worker in self._by_uid.values() if worker.state == "ready"]
        self.ready = sorted(ready, key=lambda worker: worker.name)
