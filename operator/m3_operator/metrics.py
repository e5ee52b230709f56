"""The operator's own Prometheus metrics, all named `m3_operator_*`.

Owns the counters of what happens (cycles, requests). What somebody else owns (queue, watches, groups, leadership) is
read from its owner when it is asked for, on the event loop, so that nothing has to be kept in step.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from m3_operator.groups import GroupState, by_index
from m3_operator.health import Watches
from m3_operator.resources import RESOURCES
from m3_operator.store import Store
from m3_operator.workqueue import WorkQueue

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_KINDS_BY_PLACE: Final = {(resource.group, resource.plural): kind for kind, resource in RESOURCES.items()}


class Metrics:
    """Counters of this process, and its exposition."""

    def __init__(self, state: "State") -> None:
        self._registry = CollectorRegistry()
        self._registry.register(state)
        self._durations = Histogram(
            "m3_operator_reconcile_duration_seconds",
            "Length of a cycle.",
            ["kind"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._cycles = Counter(
            "m3_operator_reconcile", "Cycles, by how they ended.", ["kind", "result"], registry=self._registry
        )
        self._errors = Counter(
            "m3_operator_reconcile_errors", "Cycles that failed, by why.", ["type"], registry=self._registry
        )
        self._requests = Counter(
            "m3_operator_api_requests",
            "Requests to the API server but watches; code 0: no answer.",
            ["verb", "kind", "code"],
            registry=self._registry,
        )

    def count_cycle(self, kind: str, result: str, seconds: float) -> None:
        """A cycle ended: "done", or "refused", "unavailable" or "defect"."""
        self._durations.labels(kind).observe(seconds)
        self._cycles.labels(kind, result).inc()
        if result != "done":
            self._errors.labels(result).inc()

    def count_request(self, method: str, path: str, code: int) -> None:
        """A request was answered, or was not (code 0). Called from the threads that make them."""
        self._requests.labels(method, kind_of(path), str(code)).inc()

    def exposition(self) -> bytes:
        """All of it, in Prometheus' text format."""
        text: bytes = generate_latest(self._registry)
        return text


class State(Collector):
    """What others own, read when it is asked for."""

    def __init__(self, store: Store, queue: WorkQueue, watches: Watches, is_leader: Callable[[], bool]) -> None:
        self._store, self._queue, self._watches, self._is_leader = store, queue, watches, is_leader

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing by name: a registry would otherwise ask for all values when it is built."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The values now."""
        yield _gauge("leader", "1 where this replica holds the Lease.", float(self._is_leader()))
        yield _gauge("workqueue_depth", "Objects that wait for their turn.", float(self._queue.depth))
        yield _gauge(
            "workqueue_longest_wait_seconds",
            "How long the oldest object waits for its turn or its end.",
            self._queue.longest_wait_seconds(),
        )
        ages = GaugeMetricFamily(
            "m3_operator_watch_age_seconds",
            "Since the watch told something, or a full list agreed with it.",
            labels=["kind"],
        )
        for kind, age in self._watches.ages_seconds().items():
            ages.add_metric([kind], age)
        yield ages
        groups = GaugeMetricFamily("m3_operator_groups", "Groups of workers, by their state.", labels=["state"])
        tally = group_states(self._store)
        for state in GroupState:
            groups.add_metric([str(state)], tally[state])
        yield groups


def group_states(store: Store) -> Tally[GroupState]:
    """How many groups are in which state."""
    return Tally(group.state for pods in store.pods_by_deployment() for group in by_index(pods).values())


def kind_of(path: str) -> str:
    """The kind that a URL path is about; "other" for one that is not of `RESOURCES`."""
    root, *parts = path.strip("/").split("/")  # api/VERSION or apis/GROUP/VERSION, then [namespaces/NS/]PLURAL...
    group = parts.pop(0) if root == "apis" and parts else ""
    parts = parts[1:]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    return _KINDS_BY_PLACE.get((group, parts[0]), "other") if parts else "other"


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"m3_operator_{name}", documentation, value=value)
