"""Two deployments with one model's name behind a router: the first goes on, the second says so."""

from typing import Any

import yaml

from m3_operator.decide.deployment import decide_deployment
from m3_operator.decide.installation import Installation
from m3_operator.decide.model_names import holders
from m3_operator.decide.router import decide_router
from m3_operator.observed import Key
from m3_operator.status.router import router_status
from m3_operator.store import Store
from operator_world import NOW

IMAGES = Installation(worker_image="w", router_image="r")


def deployment(name: str, created: int, model: str = "M", version: int = 1, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "creationTimestamp": f"2026-11-21T12:00:{created:02}Z",
        },
        "spec": {
            "model": {"name": model, "source": {"tiny": {}}},
            "parallelism": {"gpusPerNode": 0},
            "router": {"name": "front"},
            **spec,
        },
    }


def front(*names: str) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Router",
        "metadata": {"name": "front", "namespace": "ns", "uid": "uid-front", "resourceVersion": "1"},
        "spec": {"deployments": [{"name": name} for name in names]},
    }


def world(*manifests: dict[str, Any]) -> Store:
    store = Store()
    for manifest in manifests:
        store.put(manifest["kind"], manifest)
    return store


def reason(store: Store, name: str) -> str | None:
    snapshot = store.deployment_snapshot(Key("M3Deployment", "ns", name))
    assert snapshot is not None
    problem = decide_deployment(snapshot, IMAGES, NOW).problem
    return None if problem is None else problem.reason


def pools(store: Store) -> list[str]:
    """The deployments that the router's configuration sends requests to."""
    snapshot = store.router_snapshot(Key("M3Router", "ns", "front"))
    assert snapshot is not None
    decision = decide_router(snapshot, IMAGES)
    config = next(action.manifest for action in decision.objects if action.manifest["kind"] == "ConfigMap")
    return [pool["name"] for pool in yaml.safe_load(config["data"]["router.yaml"])["pools"]]


def test_the_older_one_keeps_the_name_whatever_the_order_of_the_list() -> None:
    store = world(
        deployment("late", 2), deployment("early", 1), deployment("else", 3, "N"), front("late", "early", "else")
    )
    assert (reason(store, "early"), reason(store, "late"), reason(store, "else")) == (None, "ModelNameTaken", None)
    assert pools(store) == ["early", "else"]


def test_of_two_that_came_together_the_first_by_name_keeps_it() -> None:
    assert holders([deployment("b", 1), deployment("a", 1)], None) == {"M": ("a",)}
    named = deployment("c", 2, model="X")
    named["spec"]["model"]["servedNames"] = ["M"]
    assert holders([named, deployment("d", 3)], None) == {"M": ("c",)}, "clients ask by the served name"


def test_a_router_that_leaves_one_out_is_ready_and_says_so() -> None:
    store = world(deployment("a", 1), deployment("b", 2), front("a", "b"))
    snapshot = store.router_snapshot(Key("M3Router", "ns", "front"))
    assert snapshot is not None
    running = {"metadata": {}, "status": {"updatedReplicas": 1, "availableReplicas": 1}}
    snapshot.children["Deployment", "front-router"] = running  # type: ignore[index]
    decision = decide_router(snapshot, IMAGES)
    status = router_status(snapshot, decision, decision.problem, NOW)
    found = {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}
    assert found == {"Ready": ("True", "AllRoutersReady"), "Configured": ("False", "ModelNameTaken")}


def test_the_second_is_woken_when_the_first_goes_or_takes_another_name() -> None:
    store = world(deployment("a", 1), deployment("b", 2), front("a", "b"))
    second = Key("M3Deployment", "ns", "b")
    assert second in store.put("M3Deployment", deployment("a", 1, "N", version=2))
    assert reason(store, "b") is None
    assert second not in store.put("M3Deployment", deployment("a", 1, "N", version=3, replicas=4))
    assert second in store.put("M3Deployment", deployment("a", 1, version=4))
    assert reason(store, "b") == "ModelNameTaken"
    assert second in store.remove("M3Deployment", deployment("a", 1, version=5))
    assert reason(store, "b") is None
