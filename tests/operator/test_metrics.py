"""What Prometheus reads of the operator: every series, from whoever owns the figure."""

import socket
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from m3_operator import names
from m3_operator.errors import OperatorError
from m3_operator.health import Health, Watches
from m3_operator.metrics import Metrics, State, kind_of
from m3_operator.observed import Key
from m3_operator.probes import serving_health, serving_metrics
from m3_operator.resources import RESOURCES
from m3_operator.store import Store
from m3_operator.workqueue import WorkQueue


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Values by name and labels' values, which the format has in the order of the labels' names."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def pod(deployment: str, group: int, phase: str, *, is_ready: bool) -> dict[str, Any]:
    name = f"{deployment}-g{group}-r0"
    labels = {names.DEPLOYMENT_LABEL: deployment, names.GROUP_LABEL: str(group), names.RANK_LABEL: "0"}
    ready = {"type": "Ready", "status": "True" if is_ready else "False"}
    return {
        "metadata": {"namespace": "ns", "name": name, "uid": name, "resourceVersion": "1", "labels": labels},
        "status": {"phase": phase, "conditions": [ready]},
    }


async def test_every_figure_comes_from_its_owner_when_it_is_asked_for() -> None:
    store, queue, now = Store(), WorkQueue(), [0.0]
    watches = Watches(lambda: now[0])
    metrics = Metrics(State(store, queue, watches, lambda: True))
    watches.told("Pod")
    now[0] = 7.0
    for one in (pod("a", 0, "Running", is_ready=True), pod("a", 1, "Pending", is_ready=False)):
        store.put("Pod", one)
    store.put("Pod", pod("b", 0, "Running", is_ready=True))
    queue.wake(Key("M3Deployment", "ns", "a"))
    found = samples(metrics)
    assert found["m3_operator_groups", "Ready"] == 2
    assert found["m3_operator_groups", "Pending"] == 1
    assert found["m3_operator_groups", "Failed"] == 0
    assert found["m3_operator_workqueue_depth",] == 1
    assert found["m3_operator_watch_age_seconds", "Pod"] == 7
    assert found["m3_operator_leader",] == 1
    assert found["m3_operator_workqueue_longest_wait_seconds",] >= 0


async def test_cycles_and_requests_are_counted() -> None:
    metrics = Metrics(State(Store(), WorkQueue(), Watches(), lambda: False))
    metrics.count_cycle("M3Deployment", "done", 0.02)
    metrics.count_cycle("M3Deployment", "unavailable", 0.2)
    metrics.count_request("PATCH", "/apis/serving.m3.dev/v1alpha1/namespaces/ns/m3deployments/a/status", 200)
    metrics.count_request("GET", "/api/v1/pods", 0)
    found = samples(metrics)
    assert found["m3_operator_reconcile_total", "M3Deployment", "done"] == 1
    assert found["m3_operator_reconcile_total", "M3Deployment", "unavailable"] == 1
    assert found["m3_operator_reconcile_errors_total", "unavailable"] == 1
    assert ("m3_operator_reconcile_errors_total", "done") not in found
    assert found["m3_operator_reconcile_duration_seconds_count", "M3Deployment"] == 2
    assert found["m3_operator_api_requests_total", "200", "M3Deployment", "PATCH"] == 1
    assert found["m3_operator_api_requests_total", "0", "Pod", "GET"] == 1
    assert found["m3_operator_leader",] == 0


@pytest.mark.parametrize("kind", RESOURCES)
def test_a_request_is_counted_for_the_kind_it_is_about(kind: str) -> None:
    resource = RESOURCES[kind]
    # A namespace, and objects, that are called like a resource.
    paths = [
        resource.path(None),
        resource.path("pods"),
        resource.path("ns", "services"),
        resource.path("ns", "x", "status"),
    ]
    assert [kind_of(path) for path in paths] == [kind] * 4
    assert kind_of("/version") == "other"


async def test_both_endpoints_answer_and_a_taken_port_is_named() -> None:
    store, queue, watches = Store(), WorkQueue(), Watches()
    health = Health(queue, watches, lambda: False)
    metrics = Metrics(State(store, queue, watches, lambda: False))
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (one, other)]
    async with (
        serving_health(health, "127.0.0.1", ports[0]),
        serving_metrics(metrics, "127.0.0.1", ports[1]),
        httpx.AsyncClient(trust_env=False) as client,
    ):
        answer = await client.get(f"http://127.0.0.1:{ports[0]}/healthz")
        assert (answer.status_code, answer.json()["role"]) == (200, "standby")
        queue.longest_wait_seconds = lambda: 1e6  # type: ignore[method-assign]
        assert (await client.get(f"http://127.0.0.1:{ports[0]}/healthz")).status_code == 503
        exposition = await client.get(f"http://127.0.0.1:{ports[1]}/metrics")
        assert "m3_operator_leader 0.0" in exposition.text
        assert exposition.headers["content-type"].startswith("text/plain")
        with pytest.raises(OperatorError, match=rf"cannot answer /healthz on 127.0.0.1:{ports[0]}: "):
            async with serving_health(health, "127.0.0.1", ports[0]):
                pass
