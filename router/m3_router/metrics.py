"""Counts of the data plane: plain integers while requests run, Prometheus families when somebody asks.

Owns the counters and histograms; gauges are read from their owners at the time of the scrape.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from m3_router.bill import Bill, ContextTier, Outcome
from m3_router.config import NANOUSD_PER_USD, ServiceTier
from m3_router.http.connections import Connections
from m3_router.lanes import LANES
from m3_router.ledger import Ledger
from m3_router.pools import Pools

# Floats, since comparing an int with a float costs as much as all else here.
_BUCKETS_MS = tuple(
    float(bound)
    for bound in (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000)
)


class _Histogram:
    """Milliseconds by bucket. A value that equals a bound belongs to it. Counts a batch by sorting it."""

    __slots__ = ("counts", "sum_ms")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS_MS) + 1)
        self.sum_ms = 0.0

    def observe(self, values_ms: list[float]) -> None:
        values_ms.sort()
        counts, counted = self.counts, 0
        for place, bound_ms in enumerate(_BUCKETS_MS):
            if counted == len(values_ms):
                break
            up_to = bisect_right(values_ms, bound_ms, counted)
            counts[place] += up_to - counted
            counted = up_to
        counts[-1] += len(values_ms) - counted
        self.sum_ms += sum(values_ms)

    def seconds(self) -> tuple[list[tuple[str, float]], float]:
        buckets, total = [], 0
        for bound_ms, count in zip((*_BUCKETS_MS, None), self.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound_ms is None else f"{bound_ms / 1000:g}", float(total)))
        return buckets, self.sum_ms / 1000


_Key = tuple[str, ServiceTier | None, ContextTier | None, Outcome | None, int]


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

    def count(self, bills: list[Bill]) -> None:
        self.requests += len(bills)
        self.input_tokens += sum([bill.input_tokens for bill in bills])
        self.cached_tokens += sum([bill.cached_tokens for bill in bills])
        self.output_tokens += sum([bill.output_tokens for bill in bills])
        self.cost_nanousd += sum([bill.cost_nanousd for bill in bills])
        self.retries += sum([bill.attempts - 1 for bill in bills if bill.attempts > 1])
        self.queue.observe([bill.queue_ms for bill in bills])
        self.duration.observe([bill.duration_ms for bill in bills])
        self.first_byte.observe([bill.first_byte_ms for bill in bills if bill.first_byte_ms is not None])


class Metrics:
    """What has happened since the process began."""

    def __init__(self) -> None:
        self.totals: dict[_Key, _Total] = {}

    def count(self, bills: list[Bill]) -> None:
        """Count settled bills."""
        alike: dict[_Key, list[Bill]] = {}
        for bill in bills:
            key = (bill.model, bill.service_tier, bill.context_tier, bill.outcome, bill.status)
            if key in alike:
                alike[key].append(bill)
            else:
                alike[key] = [bill]
        for key, group in alike.items():
            total = self.totals.get(key)
            if total is None:
                total = self.totals[key] = _Total()
            total.count(group)


class MetricsCollector(Collector):
    """Renders everything that is counted, for one scrape."""

    def __init__(
        self,
        metrics: Metrics,
        ledger: Ledger,
        pools: Pools,
        connections: Connections,
        log_lines_dropped: Callable[[], int],
    ) -> None:
        self._metrics = metrics
        self._ledger = ledger
        self._pools = pools
        self._connections = connections
        self._log_lines_dropped = log_lines_dropped

    def collect(self) -> Iterator[Metric]:
        """All families."""
        metrics = self._metrics
        self._ledger.publish()
        labels = ("model", "service_tier", "context_tier", "outcome", "status")
        requests = _counter("requests", "Requests that have ended.", labels)
        retries = _counter("retries", "Times a request was tried on another connection or worker.", labels)
        tokens = _counter("tokens", "Tokens settled; cached ones are among the input.", (*labels, "kind"))
        cost = _counter("cost_usd", "Cost settled.", labels)
        queue = _histogram("queue_seconds", "Wait in a lane.", labels)
        first_byte = _histogram("first_byte_seconds", "From the whole request to the head of the answer.", labels)
        duration = _histogram("duration_seconds", "From the whole request to the end of the answer.", labels)
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
        in_flight = _gauge("lane_tokens_in_flight", "Tokens that admitted requests may hold.", ("pool", "lane"))
        waiting = _gauge("lane_requests_waiting", "Requests that wait in a lane.", ("pool", "lane"))
        ready = _gauge("worker_ready", "1 if the worker takes requests.", ("pool", "worker"))
        running = _gauge("worker_requests_in_flight", "Requests that a worker has.", ("pool", "worker"))
        tokens = _gauge("worker_tokens_in_flight", "Tokens that a worker was charged with.", ("pool", "worker"))
        for pool in self._pools:
            name = pool.settings.name
            for lane in LANES:
                in_flight.add_metric((name, lane), pool.lanes.in_flight_tokens[lane])
                waiting.add_metric((name, lane), pool.lanes.waiting(lane))
            for worker in pool.workers:
                ready.add_metric((name, worker.name), worker.state == "ready")
                running.add_metric((name, worker.name), worker.requests)
                tokens.add_metric((name, worker.name), worker.tokens)
        connections = _gauge("client_connections", "Open client connections.", ())
        connections.add_metric((), len(self._connections.all))
        buffered = _gauge("buffered_bytes", "Bytes of request bodies in memory.", ())
        buffered.add_metric((), self._connections.buffered_bytes)
        dropped = _counter("log_lines_dropped", "Request log lines lost because nobody read them.", ())
        dropped.add_metric((), self._log_lines_dropped())
        yield from (in_flight, waiting, ready, running, tokens, connections, buffered, dropped)


def _counter(name: str, text: str, labels: Sequence[str]) -> CounterMetricFamily:
    return CounterMetricFamily(f"m3_router_{name}", text, labels=labels)


def _gauge(name: str, text: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"m3_router_{name}", text, labels=labels)


def _histogram(name: str, text: str, labels: Sequence[str]) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"m3_router_{name}", text, labels=labels)
