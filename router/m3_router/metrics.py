"""Counts of the data plane: plain integers while requests run, Prometheus families when somebody asks.

Owns the counters and histograms; gauges are read from their owners at the time of the scrape.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from m3_router.config import NANOUSD_PER_USD
from m3_router.http.client_end import Connections
from m3_router.lanes import LANES
from m3_router.ledger import Bill
from m3_router.pools import Pools

_BUCKETS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000)


_BATCH_BILLS = 256


class _Histogram:
    """Milliseconds by bucket. A value that equals a bound belongs to it."""

    __slots__ = ("counts", "sum_ms")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS_MS) + 1)
        self.sum_ms = 0.0

    def observe(self, value_ms: float) -> None:
        self.counts[bisect_left(_BUCKETS_MS, value_ms)] += 1
        self.sum_ms += value_ms

    def seconds(self) -> tuple[list[tuple[str, float]], float]:
        buckets, total = [], 0
        for bound_ms, count in zip((*_BUCKETS_MS, None), self.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound_ms is None else f"{bound_ms / 1000:g}", float(total)))
        return buckets, self.sum_ms / 1000


class Metrics:
    """What has happened since the process began."""

    def __init__(self) -> None:
        self._unread: list[Bill] = []
        self.requests: defaultdict[tuple[str, ...], int] = defaultdict(int)
        self.tokens: defaultdict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        self.cost_nanousd: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.retries = 0
        self.queue: defaultdict[str, _Histogram] = defaultdict(_Histogram)
        self.first_byte: defaultdict[str, _Histogram] = defaultdict(_Histogram)
        self.duration: defaultdict[str, _Histogram] = defaultdict(_Histogram)

    def settled(self, bill: Bill) -> None:
        """Take one settled bill. It is counted with others: a batch takes half the time of as many single ones."""
        self._unread.append(bill)
        if len(self._unread) >= _BATCH_BILLS:
            self.fold()

    def fold(self) -> None:
        """Count what was taken."""
        unread, self._unread = self._unread, []
        for bill in unread:
            self._count(bill)

    def _count(self, bill: Bill) -> None:
        tier, context_tier = bill.service_tier, bill.context_tier
        self.requests[bill.model, tier or "", context_tier or "", bill.outcome or "", str(bill.status)] += 1
        if bill.attempts > 1:
            self.retries += bill.attempts - 1
        if tier is None or context_tier is None:
            return
        self.queue[tier].observe(bill.queue_ms)
        self.duration[tier].observe(bill.duration_ms)
        if bill.first_byte_ms is not None:
            self.first_byte[tier].observe(bill.first_byte_ms)
        if bill.input_tokens or bill.output_tokens:
            tokens = self.tokens[bill.model, tier, context_tier]
            tokens[0] += bill.input_tokens
            tokens[1] += bill.cached_tokens
            tokens[2] += bill.output_tokens
            self.cost_nanousd[tier, context_tier] += bill.cost_nanousd


class MetricsCollector(Collector):
    """Renders everything that is counted, for one scrape."""

    def __init__(
        self, metrics: Metrics, pools: Pools, connections: Connections, log_lines_dropped: Callable[[], int]
    ) -> None:
        self._metrics = metrics
        self._pools = pools
        self._connections = connections
        self._log_lines_dropped = log_lines_dropped

    def collect(self) -> Iterator[Metric]:
        """All families."""
        metrics = self._metrics
        metrics.fold()
        labels = ("model", "service_tier", "context_tier")
        requests = _counter("requests", "Requests that have ended.", (*labels, "outcome", "status"))
        for key, count in metrics.requests.items():
            requests.add_metric(key, count)
        yield requests
        tokens = _counter("tokens", "Tokens settled; cached ones are among the input.", (*labels, "kind"))
        for names, counts in metrics.tokens.items():
            for kind, count in zip(("input", "cached", "output"), counts, strict=True):
                tokens.add_metric((*names, kind), count)
        yield tokens
        cost = _counter("cost_usd", "Cost settled.", ("service_tier", "context_tier"))
        for tiers, nanousd in metrics.cost_nanousd.items():
            cost.add_metric(tiers, nanousd / NANOUSD_PER_USD)
        yield cost
        retries = _counter("retries", "Times a request was tried on another connection or worker.", ())
        retries.add_metric((), metrics.retries)
        yield retries
        yield _histogram("queue_seconds", "Wait in a lane.", metrics.queue)
        yield _histogram("first_byte_seconds", "From the whole request to the head of the answer.", metrics.first_byte)
        yield _histogram("duration_seconds", "From the whole request to the end of the answer.", metrics.duration)
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


def _histogram(name: str, text: str, by_tier: dict[str, _Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"m3_router_{name}", text, labels=("service_tier",))
    for tier, histogram in by_tier.items():
        buckets, total = histogram.seconds()
        family.add_metric((tier,), buckets, total)
    return family
