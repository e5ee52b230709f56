"""Counts of the data plane: plain integers while requests run, Prometheus families when somebody asks.

Owns the counters and histograms of requests; gauges of lanes and workers are read from their owners at the time of the
scrape. The families of all other parts are in `collectors` and in `shared.collector`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from m3_router.config import NANOUSD_PER_USD, ContextTier, ServiceTier
from m3_router.http.connections import Connections
from m3_router.money.bill import Bill, Outcome
from m3_router.money.ledger import Ledger
from m3_router.placement.pools import Pools

_BUCKETS_MS: Final[list[float]] = [
    float(bound)
    for bound in (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000)
]


class _Histogram:
    """Milliseconds by bucket. A value that equals a bound belongs to it."""

    __slots__ = ("counts", "sum_ms")

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(_BUCKETS_MS) + 1)
        self.sum_ms = 0.0

    def observe(self, value_ms: float) -> None:
        place = 0
        while place < len(_BUCKETS_MS) and value_ms > _BUCKETS_MS[place]:
            place += 1
        self.counts[place] += 1
        self.sum_ms += value_ms

    def seconds(self) -> tuple[list[tuple[str, float]], float]:
        buckets, total = [], 0
        for bound_ms, count in zip([*_BUCKETS_MS, None], self.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound_ms is None else f"{bound_ms / 1000:g}", float(total)))
        return buckets, self.sum_ms / 1000


_Key = tuple[str, ServiceTier | None, ContextTier | None, Outcome | None, int]
_BREAKER_STATES: Final = {"closed": 0, "half_open": 1, "open": 2}


class _Total:
    """What all bills with the same model, tiers, outcome and status come to."""

    __slots__ = (
        "cached_tokens",
        "cost_nanousd",
        "duration",
        "first_byte",
        "input_tokens",
        "output_tokens",
        "queue",
        "requests",
        "retries",
    )

    def __init__(self) -> None:
        self.requests = self.retries = 0
        self.input_tokens = self.cached_tokens = self.output_tokens = 0
        self.cost_nanousd = 0
        self.queue, self.first_byte, self.duration = _Histogram(), _Histogram(), _Histogram()

    def count(self, bill: Bill) -> None:
        self.requests += 1
        self.input_tokens += bill.input_tokens
        self.cached_tokens += bill.cached_tokens
        self.output_tokens += bill.output_tokens
        self.cost_nanousd += bill.cost_nanousd
        self.retries += max(bill.attempts - 1, 0)
        self.queue.observe(bill.queue_ms)
        self.duration.observe(bill.duration_ms)
        first_byte_ms = bill.first_byte_ms
        if first_byte_ms is not None:
            self.first_byte.observe(first_byte_ms)


class Metrics:
    """What has happened since the process began."""

    def __init__(self) -> None:
        self.totals: dict[_Key, _Total] = {}

    def count(self, bills: list[Bill]) -> None:
        """Count settled bills."""
        for bill in bills:
            # A model that nobody serves is a client's word: any number of them would be kept for ever.
            model = bill.model if bill.pool else ""
            key: _Key = (model, bill.service_tier, bill.context_tier, bill.outcome, bill.status)
            total = self.totals.get(key)
            if total is None:
                total = self.totals[key] = _Total()
            total.count(bill)


class MetricsCollector(Collector):
    """Renders everything that is counted, for one scrape."""

    def __init__(
        self,
        metrics: Metrics,
        ledger: Ledger,
        pools: Pools,
        connections: Connections,
        log_lines_dropped: Callable[[], int],
        *,
        clock: Callable[[], float],
        build: Mapping[str, str],
    ) -> None:
        self._metrics = metrics
        self._ledger = ledger
        self._pools = pools
        self._connections = connections
        self._log_lines_dropped = log_lines_dropped
        self._clock = clock
        self._build = dict(build)

    def collect(self) -> Iterator[Metric]:
        """All families."""
        metrics = self._metrics
        self._ledger.publish()
        labels = ("model", "service_tier", "context_tier", "outcome", "status")
        requests = counter("requests", "Requests that have ended.", labels)
        retries = counter("retries", "Times a request was tried on another connection or worker.", labels)
        tokens = counter("tokens", "Tokens settled; cached ones are among the input.", (*labels, "kind"))
        cost = counter("cost_usd", "Cost settled.", labels)
        queue = histogram("queue_seconds", "Wait in a lane.", labels)
        first_byte = histogram("first_byte_seconds", "From the whole request to the head of the answer.", labels)
        duration = histogram("duration_seconds", "From the whole request to the end of the answer.", labels)
        for (model, service_tier, context_tier, outcome, status), total in metrics.totals.items():
            values = (model, service_tier or "", context_tier or "", outcome or "", str(status))
            requests.add_metric(values, total.requests)
            retries.add_metric(values, total.retries)
            tokens.add_metric((*values, "input"), total.input_tokens)
            tokens.add_metric((*values, "cached"), total.cached_tokens)
            tokens.add_metric((*values, "output"), total.output_tokens)
            cost.add_metric(values, total.cost_nanousd / NANOUSD_PER_USD)
            queue.add_metric(values, *total.queue.seconds())
            first_byte.add_metric(values, *total.first_byte.seconds())
            duration.add_metric(values, *total.duration.seconds())
        yield from (requests, retries, tokens, cost, queue, first_byte, duration)
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        lane_labels = ("pool", "lane", "context_tier")
        in_flight = gauge("lane_tokens_in_flight", "Tokens that admitted requests may hold.", lane_labels)
        waiting = gauge("lane_requests_waiting", "Requests that wait in a lane.", lane_labels)
        oldest = gauge("lane_oldest_wait_seconds", "How long the first of those that wait has waited.", lane_labels)
        for_worker = gauge("requests_waiting_for_worker", "Requests that wait because no worker is ready.", ("pool",))
        expired = counter("lane_expired", "Requests that waited too long.", lane_labels)
        preempted = counter("lane_preempted", "Requests put back before their first byte.", lane_labels)
        worker_labels = ("pool", "worker")
        ready = gauge("worker_ready", "1 if the worker takes requests.", ("pool", "worker"))
        running = gauge("worker_requests_in_flight", "Requests that a worker has.", ("pool", "worker"))
        tokens = gauge("worker_tokens_in_flight", "Tokens that a worker was charged with.", ("pool", "worker"))
        remote = gauge("worker_remote_tokens", "Load that other replicas have put on a worker.", ("pool", "worker"))
        predicted = counter("worker_predicted_cached_tokens", "Cached tokens that placement expected.", worker_labels)
        actual = counter("worker_cached_tokens", "Cached tokens that the worker reported.", worker_labels)
        breaker = gauge("worker_breaker_state", "0 closed, 1 half open, 2 open.", worker_labels)
        now = self._clock()
        for pool in self._pools:
            name = pool.settings.name
            for lane in pool.lanes.snapshot(now):
                labels = (name, lane.service_tier, lane.context_tier)
                in_flight.add_metric(labels, lane.in_flight_tokens)
                waiting.add_metric(labels, lane.waiting)
                oldest.add_metric(labels, lane.oldest_wait_seconds)
                expired.add_metric(labels, lane.expired)
                preempted.add_metric(labels, lane.preempted)
            for_worker.add_metric((name,), pool.lanes.waiting_for_worker)
            for worker in pool.workers:
                ready.add_metric((name, worker.name), worker.state == "ready")
                running.add_metric((name, worker.name), worker.requests)
                tokens.add_metric((name, worker.name), worker.tokens)
                remote.add_metric((name, worker.name), worker.remote_tokens)
                predicted.add_metric((name, worker.name), worker.predicted_cached_tokens)
                actual.add_metric((name, worker.name), worker.actual_cached_tokens)
                breaker.add_metric((name, worker.name), _BREAKER_STATES[worker.breaker.state])
        connections = gauge("client_connections", "Open client connections.", ())
        connections.add_metric((), len(self._connections.all))
        buffered = gauge("buffered_bytes", "Bytes of request bodies in memory.", ())
        buffered.add_metric((), self._connections.buffered_bytes)
        dropped = counter("log_lines_dropped", "Request log lines lost because nobody read them.", ())
        dropped.add_metric((), self._log_lines_dropped())
        build = gauge("build_info", "What runs; always 1.", tuple(self._build))
        build.add_metric(tuple(self._build.values()), 1)
        yield from (in_flight, waiting, for_worker, oldest, expired, preempted, remote, predicted, actual, breaker)
        yield from (ready, running, tokens, connections, buffered, dropped, build)


def counter(name: str, text: str, labels: Sequence[str]) -> CounterMetricFamily:
    """A counter of ours; `_total` is added to its name."""
    return CounterMetricFamily(f"m3_router_{name}", text, labels=labels)


def gauge(name: str, text: str, labels: Sequence[str]) -> GaugeMetricFamily:
    """A gauge of ours."""
    return GaugeMetricFamily(f"m3_router_{name}", text, labels=labels)


def histogram(name: str, text: str, labels: Sequence[str]) -> HistogramMetricFamily:
    """A histogram of ours."""
    return HistogramMetricFamily(f"m3_router_{name}", text, labels=labels)
