"""`/metrics`: the promised names, with the numbers of what was done."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from m3_fakes.http import wait_until
from m3_fakes.worker import running_worker


def scrape(client: httpx.Client) -> dict[str, float]:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {
        sample.name: sample.value for family in families for sample in family.samples if not sample.labels.get("le")
    }


def test_a_request_moves_the_promised_metrics() -> None:
    with running_worker() as worker, httpx.Client(base_url=worker.url, timeout=30) as client:
        body = {"model": "fake", "prompt": [1] * 40, "max_tokens": 3}
        assert client.post("/v1/completions", json=body).status_code == 200
        wait_until(lambda: worker.engine.counters.steps == 4)
        found = scrape(client)
        expected = {
            "requests_running": 0,
            "requests_waiting": 0,
            "kv_cache_usage_ratio": 0,
            "tokens_in_flight": 0,
            "prompt_tokens_total": 40,
            "generation_tokens_total": 3,
            "steps_total": 4,
            "step_seconds_count": 4,
            "time_to_first_token_seconds_count": 1,
            "time_per_output_token_seconds_count": 2,
            "queue_seconds_count": 1,
            "request_aborts_total": 0,
            "preemptions_total": 0,
            "kv_cache_pages": 256,
            "kv_cache_free_pages": 256,
            "prefix_cache_pages": 10,
            "prefix_cache_queries_total": 40,
            "prefix_cache_hits_total": 0,
            "host_cache_hits_total": 0,
            "host_cache_pages": 0,
            "host_cache_stores_total": 0,
            "resumed_tokens_total": 0,
            "cache_evictions_total": 0,
            "load_progress_read_bytes": 0,
            "load_progress_needed_bytes": 0,
        }
        assert {name: found["m3_worker_" + name] for name in expected} == expected
        assert found["m3_worker_step_seconds_sum"] > 0


def test_what_runs_and_what_waits_is_shown_while_it_does() -> None:
    with running_worker() as worker, httpx.Client(base_url=worker.url, timeout=30) as client:
        worker.hold_steps()
        with client.stream("POST", "/v1/completions", json={"model": "fake", "prompt": [1] * 40, "stream": True}):
            wait_until(lambda: worker.engine.running_count == 1)
            found = scrape(client)
            assert found["m3_worker_requests_running"] == 1
            assert found["m3_worker_kv_cache_usage_ratio"] == 10 / 256
            assert found["m3_worker_tokens_in_flight"] == 40
            worker.reset()


def test_buckets_are_cumulative() -> None:
    with running_worker() as worker, httpx.Client(base_url=worker.url, timeout=30) as client:
        client.post("/v1/completions", json={"model": "fake", "prompt": [1], "max_tokens": 5})
        wait_until(lambda: worker.engine.counters.steps == 5)
        for family in text_string_to_metric_families(client.get("/metrics").text):
            buckets = [sample.value for sample in family.samples if sample.name.endswith("_bucket")]
            assert buckets == sorted(buckets)
            if family.name == "m3_worker_step_seconds":
                assert buckets[-1] == 5
