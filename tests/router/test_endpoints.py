"""EndpointSlices into workers, and a watch that outlives its API server's troubles."""

import queue
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from m3_router.config import ServiceWorkers
from m3_router.workers import endpoints
from m3_router.workers.endpoints import EndpointWatch, worker_addresses
from m3_router.workers.workers import WorkerAddress


def endpoint(
    pod: str | None, host: str, *, uid: str | None = None, ready: bool | None = True, terminating: bool | None = None
) -> client.V1Endpoint:
    target = client.V1ObjectReference(kind="Pod", name=pod, uid=uid or f"uid-{pod}") if pod else None
    conditions = client.V1EndpointConditions(ready=ready, terminating=terminating)
    return client.V1Endpoint(addresses=[host], conditions=conditions, target_ref=target)


def slice_of(
    name: str,
    *items: client.V1Endpoint,
    port: int | None = 8000,
    port_name: str = "http",
    family: str = "IPv4",
    version: str = "1",
) -> client.V1EndpointSlice:
    ports = [client.DiscoveryV1EndpointPort(name=port_name, port=port)] if port else None
    return client.V1EndpointSlice(
        metadata=client.V1ObjectMeta(name=name, resource_version=version),
        address_type=family,
        endpoints=list(items),
        ports=ports,
    )


def test_only_ready_endpoints_that_are_not_terminating_are_workers() -> None:
    found = worker_addresses(
        [
            slice_of(
                "a",
                endpoint("p3", "10.0.0.3"),
                endpoint("p1", "10.0.0.1", ready=None),
                endpoint("p2", "10.0.0.2", ready=False),
                endpoint("p4", "10.0.0.4", terminating=True),
            )
        ],
        "http",
    )
    assert found == [WorkerAddress("uid-p1", "p1", "10.0.0.1", 8000), WorkerAddress("uid-p3", "p3", "10.0.0.3", 8000)]


def test_a_pod_in_two_slices_is_one_worker_at_its_ipv4_address() -> None:
    six = slice_of("a", endpoint("p", "fd00::1"), family="IPv6")
    four = slice_of("b", endpoint("p", "10.0.0.1"))
    assert worker_addresses([six, four], "http") == [WorkerAddress("uid-p", "p", "10.0.0.1", 8000)]


def test_a_replaced_pod_of_the_same_name_has_another_uid() -> None:
    before = worker_addresses([slice_of("a", endpoint("p", "10.0.0.1", uid="1"))], "http")
    after = worker_addresses([slice_of("a", endpoint("p", "10.0.0.1", uid="2"))], "http")
    assert before != after


def test_an_endpoint_without_a_pod_is_named_by_its_address() -> None:
    (found,) = worker_addresses([slice_of("a", endpoint(None, "10.0.0.9"))], "http")
    assert (found.uid, found.name) == ("10.0.0.9:8000", "10.0.0.9:8000")


def test_slices_without_the_named_port_have_no_workers() -> None:
    assert worker_addresses([slice_of("a", endpoint("p", "10.0.0.1"), port_name="metrics")], "http") == []
    assert worker_addresses([slice_of("a", endpoint("p", "10.0.0.1"), port=None)], "http") == []
    assert (
        worker_addresses(
            [client.V1EndpointSlice(metadata=client.V1ObjectMeta(name="x"), address_type="IPv4", endpoints=[])], "http"
        )
        == []
    )


class FakeApi:
    """Plays a script: each call of list or watch takes the next step, an exception or what it returns."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.versions: list[str | None] = []

    def list_namespaced_endpoint_slice(self, namespace: str, **options: Any) -> Any:
        assert (namespace, options["label_selector"]) == ("ns", "kubernetes.io/service-name=w")
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        self.versions.append(options.get("resource_version"))
        return step


class FakeWatch:
    """What `kubernetes.watch.Watch` does with the fake API: a bookmark comes as the bare JSON that it is."""

    def stream(self, call: Any, *arguments: Any, **options: Any) -> Any:
        options.pop("timeout_seconds")
        for event in call(*arguments, **options):
            raw = client.ApiClient().sanitize_for_serialization(event["object"])
            yield {**event, "raw_object": raw, "object": raw if event["type"] == "BOOKMARK" else event["object"]}

    def stop(self) -> None: ...


def listing(*slices: client.V1EndpointSlice) -> client.V1EndpointSliceList:
    return client.V1EndpointSliceList(items=list(slices), metadata=client.V1ListMeta(resource_version="10"))


def test_a_watch_goes_on_from_where_it_was_and_lists_again_when_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kubernetes.watch.Watch", FakeWatch)
    monkeypatch.setattr(endpoints, "FIRST_RETRY_SECONDS", 0.01)
    one, two = endpoint("p1", "10.0.0.1"), endpoint("p2", "10.0.0.2")
    api = FakeApi(
        ConnectionRefusedError("the API server is away"),
        listing(slice_of("a", one)),
        [
            {"type": "MODIFIED", "object": slice_of("a", one, two, version="11")},
            {"type": "BOOKMARK", "object": slice_of("x", version="15")},
        ],
        [{"type": "DELETED", "object": slice_of("a", version="16")}],
        ApiException(status=410, reason="Gone"),
        ApiException(status=500, reason="Internal"),
        listing(slice_of("b", two)),
    )
    seen: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    watch = EndpointWatch(
        ServiceWorkers(service="w", namespace="ns"), lambda found: seen.put([one.name for one in found]), api
    )
    finished = ApiException(status=500, reason="the script is over")
    api.script += [finished] * 1000
    watch.start()
    try:
        assert [seen.get(timeout=10) for _ in range(4)] == [["p1"], ["p1", "p2"], [], ["p2"]]
    finally:
        watch.stop()
        watch._thread.join(20)
    assert api.versions == [None, "10", "15", None]
