"""The workers of one pool: which there are, how each feels, and how much each has in flight.

Owns every `Worker`. Pure state: who is there comes in by `replace` (a static list once, EndpointSlices often), health
by `report`, how requests fare by `succeeded` and `failed`, load by `charge`, `first_byte` and `discharge`. A worker is
`ready` only after it was probed; one that is `draining` is no longer in the list, and stays until what it has in flight
has ended. Whether a ready worker is sent requests is its breaker's word (`breaker`), and which one is `placement`'s.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from mypy_extensions import mypyc_attr

from m3_router.config.pools import Engine
from m3_router.workers.breaker import Breaker

WorkerState = Literal["unready", "ready", "draining"]
MAX_SLOW_PROBES: Final = 3  # probes in a row without an answer, from a worker without work, before it counts as lost
# What an output token that is still to come costs a new request, in tokens of prefill, as a divisor. A decoding request
# takes one place of each step's budget and so slows the prefill beside it; it does not stand before it in a queue.
DECODE_DIVISOR: Final = 4


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """Where a worker is. `uid` tells a pod from the one that replaced it under the same name.

    path_prefix: stands before the path of every request, for an upstream that serves below one.
    """

    uid: str
    name: str
    host: str
    port: int
    tls: bool = False
    path_prefix: bytes = b""

    @classmethod
    def from_url(cls, url: str) -> "WorkerAddress":
        """The address of a worker of a static list, named by host and port; https and a path are an upstream's.

        Raises ValueError if there is no host, or no port and no scheme that has one.
        """
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else None)
        if parts.hostname is None or port is None:
            raise ValueError(f"{url!r} has no host and port")
        path = parts.path.rstrip("/").encode()
        return cls(parts.netloc + parts.path.rstrip("/"), parts.netloc, parts.hostname, port, is_tls, path)


@mypyc_attr(free_list_len=1)
class Charge:
    """What one request holds of a worker while it is there: used for one worker after the other, never for two.

    prefill_tokens: to be computed, so without what is cached. decode_tokens: expected of the answer. is_long: counts
    towards the worker's long prefills.
    """

    __slots__ = ("decode_tokens", "is_charged", "is_long", "is_prefilling", "is_probe", "prefill_tokens")

    def __init__(self, prefill_tokens: int, decode_tokens: int, is_long: bool = False) -> None:
        self.prefill_tokens = prefill_tokens
        self.decode_tokens = decode_tokens
        self.is_long = is_long
        self.is_charged = False
        self.is_prefilling = False
        self.is_probe = False  # of a worker's breaker

    @property
    def tokens(self) -> int:
        """All of it."""
        return self.prefill_tokens + self.decode_tokens


class Worker:
    """One worker. Changed by `Workers` alone.

    epoch: names one life of its cache; slot: what `affinity` calls that life, -1 before it is known; since: when it
    began (monotonic seconds). remote_tokens: the load that other replicas have put on it. predicted_cached_tokens and
    actual_cached_tokens: sums over the answers that said how much was cached.
    """

    __slots__ = (
        "actual_cached_tokens",
        "address",
        "breaker",
        "decode_tokens",
        "engine",
        "epoch",
        "host_line",
        "is_held",
        "long_prefills",
        "name",
        "path_prefix",
        "predicted_cached_tokens",
        "prefill_tokens",
        "reason",
        "remote_tokens",
        "rendezvous_key",
        "requests",
        "since",
        "slot",
        "slow_probes",
        "state",
        "uid",
    )

    def __init__(self, address: WorkerAddress, engine: Engine = "native") -> None:
        self.address = address
        self.name = address.name
        self.uid = address.uid
        self.path_prefix = address.path_prefix
        self.rendezvous_key = address.uid.encode()
        self.engine: Engine = engine
        self.host_line = f"host: {address.name}\r\n".encode()
        self.state: WorkerState = "unready"
        self.reason = "not probed yet"
        self.breaker = Breaker()
        self.epoch = ""
        self.slot = -1
        self.since = 0.0
        self.requests = 0
        self.prefill_tokens = 0  # in flight, as charged at dispatch
        self.decode_tokens = 0
        self.long_prefills = 0
        self.remote_tokens = 0
        self.is_held = False  # by an administrator: no new requests
        self.slow_probes = 0
        self.predicted_cached_tokens = 0
        self.actual_cached_tokens = 0

    @property
    def tokens(self) -> int:
        """In flight from this replica."""
        return self.prefill_tokens + self.decode_tokens

    def load_tokens(self) -> int:
        """How long a new request waits here, in tokens of prefill."""
        return self.prefill_tokens + self.decode_tokens // DECODE_DIVISOR + self.remote_tokens

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.state}: {self.requests} requests, {self.tokens} tokens>"


class Workers:
    """The set of workers of one pool. `ready` is ordered by name; `on_count` is told when there are more or fewer."""

    def __init__(self, engine: Engine = "native") -> None:
        self._engine: Engine = engine
        self._by_uid: dict[str, Worker] = {}
        self.ready: list[Worker] = []  # exactly those of state `ready` that nobody holds; replaced, never changed
        self.on_count: Callable[[], None] | None = None

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
                self._by_uid[uid] = Worker(address, self._engine)
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

    def hold(self, worker: Worker, *, is_held: bool) -> None:
        """An administrator wants no new requests to be sent to it, or wants them again."""
        worker.is_held = is_held
        self._rebuild()

    def set_epoch(self, worker: Worker, epoch: str, slot: int, now: float) -> None:
        """The life that the worker's cache is in, and its slot. A new one begins empty, and has to warm up."""
        if worker.slot == slot and worker.epoch == epoch:
            return
        worker.epoch = epoch
        worker.slot = slot
        worker.since = now

    def charge(self, worker: Worker, charge: Charge) -> None:
        """A request was sent to the worker."""
        worker.prefill_tokens += charge.prefill_tokens
        worker.decode_tokens += charge.decode_tokens
        worker.requests += 1
        if charge.is_long:
            worker.long_prefills += 1
        charge.is_charged = charge.is_prefilling = True
        charge.is_probe = worker.breaker.begin()

    def first_byte(self, worker: Worker, charge: Charge) -> None:
        """Its prompt is computed. Does nothing when it is said again."""
        if not charge.is_prefilling:
            return
        charge.is_prefilling = False
        worker.prefill_tokens -= charge.prefill_tokens
        if charge.is_long:
            worker.long_prefills -= 1

    def discharge(self, worker: Worker, charge: Charge) -> None:
        """The request has ended, in whatever way. Does nothing when it is said again."""
        if not charge.is_charged:
            return
        self.first_byte(worker, charge)
        charge.is_charged = False
        worker.decode_tokens -= charge.decode_tokens
        worker.requests -= 1
        if charge.is_probe:
            charge.is_probe = False
            worker.breaker.abandon()  # unless it was told how the request fared
        if worker.state == "draining":
            self._forget_if_idle(worker)

    def succeeded(self, worker: Worker) -> None:
        """The worker answered a request."""
        if worker.breaker.failures:
            worker.breaker.succeeded()

    def failed(self, worker: Worker, now: float, reason: str) -> None:
        """A request failed through the worker's fault: connection lost, no progress, an answer that is none."""
        worker.breaker.failed(now)
        worker.reason = reason

    def set_remote_tokens(self, worker: Worker, tokens: int) -> None:
        """The load that the other replicas have put on the worker, all together."""
        worker.remote_tokens = tokens

    def note_cached(self, worker: Worker, predicted_tokens: int, actual_tokens: int) -> None:
        """An answer said how much of its prompt was cached."""
        worker.predicted_cached_tokens += predicted_tokens
        worker.actual_cached_tokens += actual_tokens

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
        ready = [worker for worker in self._by_uid.values() if worker.state == "ready" and not worker.is_held]
        before, self.ready = len(self.ready), sorted(ready, key=lambda worker: worker.name)
        if len(ready) != before and self.on_count is not None:
            self.on_count()
