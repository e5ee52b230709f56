"""From the text of a `/metrics` page to values: of our workers and routers, of vLLM and SGLang, of DCGM's exporter.

Pure. Only lines of the families that are listed here are read, so that a page of any size costs little. Quantiles come
from the difference of two scrapes, as `histogram_quantile` makes them: linear within a bucket. A number that is none
(NaN, infinity) counts as absent.

    DCGM: a series with a `pod` label is that pod's; one without is the node's in `Hostname`, and so everybody's on it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from m3_operator.errors import OperatorError
from m3_operator.signals.values import FetchSignals, GpuSignals, RouterSignals, WorkerSignals

# By what they mean, the names of the engines: ours, vLLM's, SGLang's. The first that a page has counts.
_RUNNING: Final = ("m3_worker_requests_running", "vllm:num_requests_running", "sglang:num_running_reqs")
_WAITING: Final = ("m3_worker_requests_waiting", "vllm:num_requests_waiting", "sglang:num_queue_reqs")
_STEPS: Final = ("m3_worker_steps_total", "vllm:iteration_tokens_total_count", "sglang:generation_tokens_total")
_TOKENS: Final = ("m3_worker_tokens_in_flight", "sglang:num_used_tokens")
_CACHE: Final = ("m3_worker_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc", "sglang:token_usage")
_QUEUE: Final = ("m3_worker_queue_seconds", "vllm:request_queue_time_seconds", "sglang:queue_time_seconds")
_FIRST: Final = (
    "m3_worker_time_to_first_token_seconds",
    "vllm:time_to_first_token_seconds",
    "sglang:time_to_first_token_seconds",
)
_EACH: Final = (
    "m3_worker_time_per_output_token_seconds",
    "vllm:inter_token_latency_seconds",
    "sglang:inter_token_latency_seconds",
)
_DCGM: Final = (
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_XID_ERRORS",
)
_GAUGES_SUMMED: Final = (*_RUNNING, *_WAITING, *_STEPS, *_TOKENS, *_CACHE)
_READ: Final = (
    *_GAUGES_SUMMED,
    *(f"{name}_bucket" for name in (*_QUEUE, *_FIRST, *_EACH)),
    "m3_worker_gpu_",
    "m3_router_lane_requests_waiting",
    "m3_router_lane_oldest_wait_seconds",
    "m3_router_requests_waiting_for_worker",
    "m3_router_worker_requests_in_flight",
    "m3_router_requests_total",
    "m3_router_queue_seconds_bucket",
    "m3_router_first_byte_seconds_bucket",
    "m3_fetch_",
    *_DCGM,
)


class PageError(OperatorError):
    """A page that is not Prometheus' text format. The message is one line."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a page."""

    labels: Mapping[str, str]
    value: float


Page = Mapping[str, tuple[Series, ...]]
"""The series of the families that are read, by name."""
Matches = Callable[[Mapping[str, str]], bool]


def read_page(text: str) -> Page:
    """The series of a page that are of any use here. Raises PageError."""
    lines = [line for line in text.splitlines() if line.startswith(_READ)]
    found: dict[str, list[Series]] = {}
    try:
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    found.setdefault(sample.name, []).append(Series(sample.labels, float(sample.value)))
    except (ValueError, KeyError, IndexError, TypeError) as error:  # what the parser raises, by what is wrong
        raise PageError(f"not a page of metrics: {' '.join(str(error).split())[:200]}") from None
    return {name: tuple(series) for name, series in found.items()}


def worker_signals(page: Page, before: Page | None, at: datetime) -> WorkerSignals | None:
    """What rank 0 of a group says; None if it says nothing that we know. `before`: its page of the scrape before."""
    running, waiting = _total(page, _RUNNING), _total(page, _WAITING)
    if running is None or waiting is None:
        return None
    return WorkerSignals(
        scraped_at=at,
        running=int(running),
        waiting=int(waiting),
        steps=_int(_total(page, _STEPS)),
        tokens_in_flight=_int(_total(page, _TOKENS)),
        cache_usage=_mean(page, _CACHE),
        queue_seconds_p90=_p90(page, before, _QUEUE, _all),
        time_to_first_token_seconds_p90=_p90(page, before, _FIRST, _all),
        time_per_output_token_seconds_p90=_p90(page, before, _EACH, _all),
        gpus=_worker_gpus(page),
    )


def router_signals(page: Page, before: Page | None, pool: str, models: Iterable[str], at: datetime) -> RouterSignals:
    """What one router says of one pool, whose models' requests it counts by their names."""
    names = frozenset(models)

    def of_pool(labels: Mapping[str, str]) -> bool:
        return labels.get("pool") == pool

    def of_models(labels: Mapping[str, str]) -> bool:
        return labels.get("model") in names

    waiting = _sum(page, "m3_router_lane_requests_waiting", of_pool)
    for_worker = _sum(page, "m3_router_requests_waiting_for_worker", of_pool)
    oldest = [s.value for s in page.get("m3_router_lane_oldest_wait_seconds", ()) if of_pool(s.labels)]
    return RouterSignals(
        scraped_at=at,
        # Those that wait for a worker wait in a lane too.
        waiting=int(max(waiting or 0, for_worker or 0)),
        in_flight=int(_sum(page, "m3_router_worker_requests_in_flight", of_pool) or 0),
        requests=_sum(page, "m3_router_requests_total", of_models),
        oldest_wait_seconds=max(oldest, default=None) if waiting or for_worker else None,
        queue_seconds_p90=_p90(page, before, ("m3_router_queue_seconds",), of_models),
        first_byte_seconds_p90=_p90(page, before, ("m3_router_first_byte_seconds",), of_models),
    )


def fetch_signals(page: Page) -> FetchSignals | None:
    """How far a download is; None while it does not know how much there is."""
    needed, done = _int(_sum(page, "m3_fetch_needed_bytes")), _int(_sum(page, "m3_fetch_done_bytes"))
    if needed is None or done is None:
        return None
    return FetchSignals(done_bytes=done, needed_bytes=needed, seconds_left=_int(_sum(page, "m3_fetch_seconds_left")))


@dataclass(frozen=True, slots=True)
class DcgmGpus:
    """GPUs by who uses them, as DCGM's exporter knows it."""

    by_pod: Mapping[tuple[str, str], tuple[GpuSignals, ...]]
    """(namespace, pod): its GPUs."""
    by_host: Mapping[str, tuple[GpuSignals, ...]]
    """Node: its GPUs of which no pod is said."""

    def of(self, namespace: str, pod: str, node: str | None) -> tuple[GpuSignals, ...]:
        """The GPUs of a pod: those said to be its own, else those of its node."""
        return self.by_pod.get((namespace, pod)) or self.by_host.get(node or "", ())


def dcgm_gpus(page: Page) -> DcgmGpus:
    """All GPUs of an exporter, or of a Prometheus that has several exporters' series."""
    gpus: dict[tuple[tuple[str, str] | str, tuple[str, ...]], dict[str, float]] = {}
    for name in _DCGM:
        for series in page.get(name, ()):
            labels = series.labels
            # A Prometheus that scraped the exporter has renamed what it labels itself.
            pod = labels.get("exported_pod") or labels.get("pod", "")
            namespace = labels.get("exported_namespace") or labels.get("namespace", "")
            host = labels.get("Hostname", "")
            user: tuple[str, str] | str = (namespace, pod) if pod and namespace else host
            device = tuple(labels.get(label, "") for label in ("Hostname", "UUID", "gpu", "GPU_I_ID"))
            gpus.setdefault((user, device), {})[name] = series.value
    by_pod: dict[tuple[str, str], list[GpuSignals]] = {}
    by_host: dict[str, list[GpuSignals]] = {}
    for (user, _), values in sorted(gpus.items(), key=lambda entry: entry[0][1]):
        if isinstance(user, str):
            by_host.setdefault(user, []).append(_dcgm_gpu(values))
        else:
            by_pod.setdefault(user, []).append(_dcgm_gpu(values))
    return DcgmGpus(
        {user: tuple(found) for user, found in by_pod.items()},
        {host: tuple(found) for host, found in by_host.items()},
    )


def quantile(share: float, buckets: Mapping[float, float], before: Mapping[float, float] | None = None) -> float | None:
    """The value below which this share of the observations since `before` lies; None if there were none.

    `buckets`: cumulative counts by upper bound. A histogram that went back began anew, and counts from zero. Beyond
    the last finite bound, the answer is that bound.
    """
    if before is None or any(count < before.get(bound, 0.0) for bound, count in buckets.items()):
        before = {}
    new = {bound: count - before.get(bound, 0.0) for bound, count in sorted(buckets.items())}
    total = max(new.values(), default=0.0)
    if total <= 0:
        return None
    rank, lower, below = share * total, 0.0, 0.0
    for bound, count in new.items():
        if count >= rank:
            if math.isinf(bound):
                return lower
            width = count - below
            return lower + (bound - lower) * ((rank - below) / width if width > 0 else 1.0)
        if not math.isinf(bound):
            lower = bound
        below = count
    return lower


def _dcgm_gpu(values: Mapping[str, float]) -> GpuSignals:
    percent, engine = values.get("DCGM_FI_DEV_GPU_UTIL"), values.get("DCGM_FI_PROF_GR_ENGINE_ACTIVE")
    used, free = values.get("DCGM_FI_DEV_FB_USED"), values.get("DCGM_FI_DEV_FB_FREE")
    is_known = used is not None and free is not None and used + free > 0
    return GpuSignals(
        # A slice of a GPU (MIG) has no utilisation of its own, but its engine's activity.
        utilisation=engine if percent is None else percent / 100,
        tensor_activity=values.get("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"),
        memory_used=used / (used + free) if is_known and used is not None and free is not None else None,
        xid=int(values.get("DCGM_FI_DEV_XID_ERRORS", 0)),
    )


def _worker_gpus(page: Page) -> tuple[GpuSignals, ...]:
    def by_gpu(name: str) -> dict[str, float]:
        return {series.labels.get("gpu", ""): series.value for series in page.get(f"m3_worker_gpu_{name}", ())}

    utilisation, tensor = by_gpu("utilization_ratio"), by_gpu("tensor_active_ratio")
    memory, xid = by_gpu("memory_used_ratio"), by_gpu("last_xid")
    return tuple(
        GpuSignals(
            utilisation=utilisation.get(gpu),
            tensor_activity=tensor.get(gpu),
            memory_used=memory.get(gpu),
            xid=int(xid.get(gpu, 0)),
        )
        for gpu in sorted({*utilisation, *tensor, *memory, *xid})
    )


def _all(_labels: Mapping[str, str]) -> bool:
    return True


def _sum(page: Page, name: str, matches: Matches = _all) -> float | None:
    values = [series.value for series in page.get(name, ()) if matches(series.labels)]
    return sum(values) if values else None


def _total(page: Page, names: Iterable[str]) -> float | None:
    return next((total for name in names if (total := _sum(page, name)) is not None), None)


def _mean(page: Page, names: Iterable[str]) -> float | None:
    return next((_sum_of(found) / len(found) for name in names if (found := page.get(name))), None)


def _sum_of(found: Iterable[Series]) -> float:
    return sum(series.value for series in found)


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)


def _p90(page: Page, before: Page | None, names: Iterable[str], matches: Matches) -> float | None:
    for name in names:
        buckets = _buckets(page, name, matches)
        if buckets:
            # Without a scrape before there is no telling what is new: what happened hours ago is no signal.
            return None if before is None else quantile(0.9, buckets, _buckets(before, name, matches))
    return None


def _buckets(page: Page, name: str, matches: Matches) -> dict[float, float]:
    counts: dict[float, float] = {}
    for series in page.get(f"{name}_bucket", ()):
        if matches(series.labels):
            bound = _bound(series.labels.get("le", ""))
            if bound is not None:
                counts[bound] = counts.get(bound, 0.0) + series.value
    return counts


def _bound(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
