"""`/metrics`: the worker's numbers in Prometheus' text form, rendered when they are scraped.

Owns the names (vLLM's nouns under `m3_worker_`) and no number: the engine counts, the loader knows its bytes.
"""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from m3_worker.counters import Histogram
from m3_worker.engine import Engine
from m3_worker.gpu_metrics import GpuReading
from m3_worker.scheduling.pages import Pages
from m3_worker.serving import WorkerState

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "m3_worker_"


def render_metrics(state: WorkerState, gpus: Sequence[GpuReading] = ()) -> bytes:
    """The page to answer a scrape with; before the model is loaded it has the load's progress only."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Worker(state, gpus))
    return generate_latest(registry)


class _Worker(Collector):
    def __init__(self, state: WorkerState, gpus: Sequence[GpuReading]) -> None:
        self._state = state
        self._gpus = gpus

    def collect(self) -> Iterable[Metric]:
        progress = self._state.progress
        yield _gauge("load_progress_read_bytes", "Bytes of weights read so far.", progress.read_bytes)
        yield _gauge("load_progress_needed_bytes", "Bytes of weights to read in all.", progress.needed_bytes)
        if self._state.model is not None:
            yield from _engine_metrics(self._state.model.engine)
        if self._gpus:
            yield from _gpu_metrics(self._gpus)


def _engine_metrics(engine: Engine) -> Iterable[Metric]:
    counters = engine.counters
    yield _gauge("requests_running", "Sequences that hold pages of the cache.", engine.running_count)
    yield _gauge("requests_waiting", "Sequences that wait for a slot or for pages.", engine.waiting_count)
    yield _gauge("kv_cache_usage_ratio", "Share of the cache's pages in use.", engine.cache_used_ratio)
    yield _gauge("tokens_in_flight", "Tokens of all unfinished requests.", engine.tokens_in_flight)
    yield _counter("prompt_tokens", "Prompt tokens of requests that got their first token.", counters.prompt_tokens)
    yield _counter("generation_tokens", "Tokens generated.", counters.generation_tokens)
    yield _counter("steps", "Steps computed.", counters.steps)
    yield _counter("request_aborts", "Requests given up by their client.", counters.aborts)
    yield _counter("preemptions", "Sequences that lost their pages to others.", counters.preemptions)
    yield _histogram("step_seconds", "Time of a step.", counters.step_seconds)
    yield from _cache_metrics(engine.pages)
    yield _histogram(
        "step_prediction_error_ratio",
        "How far the predicted time of a step was from its own, as a share of that.",
        counters.step_prediction_error_ratio,
    )
    yield _histogram("queue_seconds", "Time from arrival to the first step.", counters.queue_seconds)
    yield _histogram(
        "time_to_first_token_seconds", "Time from arrival to the first token.", counters.time_to_first_token_seconds
    )
    yield _histogram(
        "time_per_output_token_seconds", "Time between two tokens of a request.", counters.time_per_output_token_seconds
    )


def _cache_metrics(pages: Pages) -> Iterable[Metric]:
    counters = pages.counters
    yield _gauge("kv_cache_pages", "Pages of the cache.", pages.total_pages)
    yield _gauge("kv_cache_free_pages", "Pages that no sequence holds.", pages.free_pages)
    yield _gauge("prefix_cache_pages", "Pages whose content can be found, held or free.", pages.found_pages)
    yield _gauge("host_cache_pages", "Evicted pages that host memory keeps.", pages.host_pages)
    yield _counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", counters.looked_up_tokens)
    yield _counter("prefix_cache_hits", "Tokens found in it, on the device.", counters.device_hit_tokens)
    yield _counter("host_cache_hits", "Tokens found in host memory and copied back.", counters.host_hit_tokens)
    yield _counter("resumed_tokens", "Tokens that preempted sequences found again.", counters.resumed_tokens)
    yield _counter("cache_evictions", "Pages that others could have found, given out anew.", counters.evicted_pages)
    yield _counter("host_cache_stores", "Evicted pages copied to host memory.", counters.offloaded_pages)


def _gpu_metrics(gpus: Sequence[GpuReading]) -> Iterable[Metric]:
    """Values that no GPU's driver tells have no family."""

    def family(name: str, about: str, read: Callable[[GpuReading], float | None]) -> Iterable[Metric]:
        metric = GaugeMetricFamily(f"{PREFIX}gpu_{name}", about, labels=("gpu",))
        for gpu in gpus:
            value = read(gpu)
            if value is not None:
                metric.add_metric((gpu.gpu,), value)
        if metric.samples:
            yield metric

    yield from family("utilization_ratio", "Share of time in which any kernel ran.", lambda gpu: gpu.utilization)
    yield from family("tensor_active_ratio", "Share of cycles of the tensor cores.", lambda gpu: gpu.tensor_activity)
    yield from family("memory_used_bytes", "Memory in use, by anybody.", lambda gpu: gpu.memory_used_bytes)
    yield from family("memory_total_bytes", "Memory that there is.", lambda gpu: gpu.memory_total_bytes)
    yield from family("memory_used_ratio", "Share of memory in use, by anybody.", _memory_share)
    yield from family("power_watts", "Power drawn.", lambda gpu: gpu.power_watts)
    yield from family("temperature_celsius", "Temperature.", lambda gpu: gpu.temperature_celsius)
    yield from family("last_xid", "Last critical XID error since the start; 0: none.", lambda gpu: gpu.last_xid)
    throttled = GaugeMetricFamily(
        f"{PREFIX}gpu_throttled", "1 for each reason why clocks are lowered now.", labels=("gpu", "reason")
    )
    for gpu in gpus:
        for reason in sorted(gpu.throttled or ()):
            throttled.add_metric((gpu.gpu, reason), 1)
    yield throttled


def _memory_share(gpu: GpuReading) -> float | None:
    if gpu.memory_used_bytes is None or not gpu.memory_total_bytes:
        return None
    return gpu.memory_used_bytes / gpu.memory_total_bytes


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, about, value=value)


def _counter(name: str, about: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, about, value=value)


def _histogram(name: str, about: str, histogram: Histogram) -> Metric:
    buckets = []
    total = 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), list(histogram.counts), strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(PREFIX + name, about, buckets=buckets, sum_value=histogram.sum)
