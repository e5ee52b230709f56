"""Pages of metrics become values: ours, vLLM's, DCGM's; and what a page may not do."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_operator.signals.parse import (
    PageError,
    dcgm_gpus,
    fetch_signals,
    quantile,
    read_page,
    router_signals,
    worker_signals,
)
from m3_operator.signals.values import FetchSignals, GpuSignals
from m3_worker.fetch.page import Progress
from operator_world import NOW

WORKER = """\
# HELP m3_worker_requests_running Sequences that hold pages of the cache.
# TYPE m3_worker_requests_running gauge
m3_worker_requests_running 3.0
m3_worker_requests_waiting 2.0
m3_worker_kv_cache_usage_ratio 0.25
m3_worker_tokens_in_flight 4096.0
m3_worker_steps_total 77.0
m3_worker_queue_seconds_bucket{le="1.0"} 10
m3_worker_queue_seconds_bucket{le="2.0"} 20
m3_worker_queue_seconds_bucket{le="+Inf"} 20
m3_worker_gpu_utilization_ratio{gpu="0"} 0.5
m3_worker_gpu_memory_used_ratio{gpu="0"} 0.75
m3_worker_gpu_last_xid{gpu="1"} 79
process_cpu_seconds_total 5
"""
DCGM = """\
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="a",Hostname="node-0",namespace="ns",pod="m3-g0-r0"} 90
DCGM_FI_DEV_GPU_UTIL{gpu="1",UUID="b",Hostname="node-0",namespace="ns",pod="m3-g0-r0"} 70
DCGM_FI_DEV_FB_USED{gpu="0",UUID="a",Hostname="node-0",namespace="ns",pod="m3-g0-r0"} 30
DCGM_FI_DEV_FB_FREE{gpu="0",UUID="a",Hostname="node-0",namespace="ns",pod="m3-g0-r0"} 10
DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{gpu="0",UUID="a",Hostname="node-0",namespace="ns",pod="m3-g0-r0"} 0.4
DCGM_FI_DEV_XID_ERRORS{gpu="1",UUID="b",Hostname="node-0",namespace="ns",pod="m3-g0-r0"} 48
DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu="0",UUID="c",Hostname="node-1",GPU_I_ID="1"} 0.3
DCGM_FI_DEV_GPU_UTIL{UUID="d",namespace="mon",pod="exporter",exported_namespace="ns",exported_pod="m3-g1-r0"} 10
"""


def test_a_workers_page_becomes_its_signals() -> None:
    ten_fewer = WORKER.replace('le="2.0"} 20', 'le="2.0"} 10').replace('le="+Inf"} 20', 'le="+Inf"} 10')
    before = read_page(ten_fewer)
    found = worker_signals(read_page(WORKER), before, NOW)
    assert found is not None
    assert (found.running, found.waiting, found.in_flight, found.steps) == (3, 2, 5, 77)
    assert (found.tokens_in_flight, found.cache_usage) == (4096, 0.25)
    assert found.queue_seconds_p90 == pytest.approx(1.9)  # ten new ones, all between 1 and 2
    assert found.time_to_first_token_seconds_p90 is None
    assert found.gpus == (GpuSignals(utilisation=0.5, memory_used=0.75), GpuSignals(xid=79))


def test_the_first_scrape_has_no_quantiles_and_neither_has_one_without_requests() -> None:
    first = worker_signals(read_page(WORKER), None, NOW)
    again = worker_signals(read_page(WORKER), read_page(WORKER), NOW)
    assert first is not None
    assert again is not None
    assert first.queue_seconds_p90 is again.queue_seconds_p90 is None


def test_other_engines_are_understood_by_their_own_names() -> None:
    page = """\
vllm:num_requests_running{engine="0"} 2
vllm:num_requests_running{engine="1"} 3
vllm:num_requests_waiting{engine="0"} 1
vllm:kv_cache_usage_perc{engine="0"} 0.2
vllm:kv_cache_usage_perc{engine="1"} 0.4
"""
    found = worker_signals(read_page(page), None, NOW)
    assert found is not None
    assert (found.running, found.waiting) == (5, 1)
    assert found.cache_usage == pytest.approx(0.3)
    assert worker_signals(read_page("up 1\n"), None, NOW) is None


def test_a_routers_page_is_read_for_one_pool() -> None:
    page = """\
m3_router_lane_requests_waiting{pool="m3",lane="standard",context_tier="standard"} 2
m3_router_lane_requests_waiting{pool="other",lane="standard",context_tier="standard"} 9
m3_router_lane_oldest_wait_seconds{pool="m3",lane="standard",context_tier="standard"} 1.5
m3_router_requests_waiting_for_worker{pool="m3"} 3
m3_router_worker_requests_in_flight{pool="m3",worker="a"} 4
m3_router_worker_requests_in_flight{pool="other",worker="a"} 5
m3_router_requests_total{model="M",status="200"} 6
m3_router_requests_total{model="N",status="200"} 7
"""
    found = router_signals(read_page(page), None, "m3", ["M"], NOW)
    assert (found.waiting, found.in_flight, found.requests, found.oldest_wait_seconds) == (3, 4, 6, 1.5)
    other = router_signals(read_page(page), None, "absent", ["?"], NOW)
    assert (other.waiting, other.in_flight, other.requests, other.oldest_wait_seconds) == (0, 0, None, None)


def test_dcgm_tells_gpus_by_pod_and_by_node_where_it_knows_no_pod() -> None:
    gpus = dcgm_gpus(read_page(DCGM))
    assert gpus.of("ns", "m3-g0-r0", "node-0") == (
        GpuSignals(utilisation=0.9, tensor_activity=0.4, memory_used=0.75),
        GpuSignals(utilisation=0.7, xid=48),
    )
    assert gpus.of("ns", "other", "node-1") == (GpuSignals(utilisation=0.3),)
    assert gpus.of("ns", "m3-g1-r0", "node-0") == (GpuSignals(utilisation=0.1),)
    assert gpus.of("other", "m3-g0-r0", None) == ()


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_a_number_that_is_none_counts_as_absent(value: str) -> None:
    page = read_page(
        f"m3_worker_requests_running 1\nm3_worker_requests_waiting 0\nm3_worker_kv_cache_usage_ratio {value}\n"
    )
    found = worker_signals(page, None, NOW)
    assert found is not None
    assert found.cache_usage is None


@pytest.mark.parametrize("line", ['m3_worker_steps_total{a="b', "m3_worker_steps_total", "m3_worker_steps_total x"])
def test_what_is_no_page_is_refused_in_one_line(line: str) -> None:
    with pytest.raises(PageError) as caught:
        read_page(f"m3_worker_requests_running 1\n{line}\n")
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_page_or_refused(text: str) -> None:
    with suppress(PageError):
        read_page(f"m3_worker_steps_total{text}\n{text}")


@given(st.lists(st.floats(0.001, 99), min_size=1, max_size=200), st.lists(st.floats(0.001, 99), max_size=50))
def test_a_quantile_is_off_by_a_bucket_at_most(new: list[float], old: list[float]) -> None:
    bounds = [*np.geomspace(0.001, 100, 24), float("inf")]

    def counted(values: list[float]) -> dict[float, float]:
        return {float(bound): float(sum(value <= bound for value in values)) for bound in bounds}

    found = quantile(0.9, counted(old + new), counted(old))
    exact = float(np.quantile(new, 0.9, method="inverted_cdf"))
    place = int(np.searchsorted(bounds, exact))
    assert found is not None
    assert (bounds[place - 1] if place else 0.0) - 1e-9 <= found <= bounds[place] + 1e-9


def test_a_histogram_that_went_back_counts_from_zero() -> None:
    assert quantile(0.5, {1.0: 0.0, 2.0: 4.0}, {1.0: 9.0, 2.0: 9.0}) == pytest.approx(1.5)
    assert quantile(0.9, {1.0: 9.0}, {1.0: 9.0}) is None


def test_the_page_of_a_download_is_read_as_the_worker_writes_it() -> None:
    now, done = [0.0], [100]
    progress = Progress(clock=lambda: now[0])
    assert fetch_signals(read_page(progress.page())) is None
    progress.begin(1000, lambda: done[0])
    assert fetch_signals(read_page(progress.page())) == FetchSignals(done_bytes=100, needed_bytes=1000)
    now[0], done[0] = 10.0, 300
    read = fetch_signals(read_page(progress.page()))
    assert read == FetchSignals(done_bytes=300, needed_bytes=1000, seconds_left=35)
