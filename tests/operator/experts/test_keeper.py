"""The keeper against workers that answer over HTTP: who is asked, what they are told, and what the store then knows."""

import json
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from m3_operator.decide.deployment import decide_deployment
from m3_operator.decide.installation import Installation
from m3_operator.experts.keeper import ExpertKeeper
from m3_operator.experts.worker_client import ExpertsUnavailableError, WorkerClient
from m3_operator.observed import Key
from m3_operator.plan.actions import ApplyObject
from m3_operator.status.deployment import deployment_status
from m3_operator.store import Store
from operator_world import NOW

M3 = Key("M3Deployment", "ns", "m3")
INSTALLATION = Installation(worker_image="w", router_image="r")


class Workers:
    """Rank 0 of each address: two ranks on two nodes, four experts, one layer."""

    def __init__(self) -> None:
        self.plans: dict[str, dict[str, Any]] = {}
        self.tokens = [1_000_000, 10, 10, 10]
        self.looks = 0
        self.status = 200

    def __call__(self, request: httpx.Request) -> httpx.Response:
        plan = self.plans.setdefault(request.url.host, {"epoch": 0, "layers": [[0, 1, 2, 3, 0, 1]]})
        if self.status != 200:
            return httpx.Response(self.status, text="no")
        if request.method == "PUT":
            assert request.url.path == "/internal/expert-plan"
            plan.update(json.loads(request.content))
            return httpx.Response(200, json={"epoch": plan["epoch"]})
        self.looks += 1
        sizes = {"ranks": 2, "experts": 4, "slots": 6}
        return httpx.Response(200, json={**plan, **sizes, "tokens": [[self.looks * count for count in self.tokens]]})


def deployment(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": "ns", "uid": "uid-m3", "generation": 3, "resourceVersion": "1"},
        "spec": {
            "model": {"name": "M", "source": {"tiny": {}}},
            "parallelism": {"gpusPerNode": 0, "nodes": 2, "redundantExperts": 2},
            "expertBalancing": {"mode": "Dynamic", "windowSeconds": 60, "maxMovedPercent": 50},
            **spec,
        },
    }


def pod(rank: int, group: int = 0) -> dict[str, Any]:
    labels = {"deployment": "m3", "group": str(group), "rank": str(rank), "revision": "r1"}
    return {
        "metadata": {
            "name": f"m3-g{group}-r{rank}",
            "namespace": "ns",
            "uid": f"uid-{group}-{rank}",
            "resourceVersion": "1",
            "labels": {f"serving.m3.dev/{key}": value for key, value in labels.items()},
            "annotations": {"serving.m3.dev/nodes": "2"},
            "ownerReferences": [{"uid": "uid-m3", "controller": True}],
        },
        "status": {
            "phase": "Running",
            "podIP": f"10.0.{group}.{rank}",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


class World:
    def __init__(self, **spec: Any) -> None:
        self.workers, self.store, self.now = Workers(), Store(), NOW
        self.store.put("M3Deployment", deployment(**spec))
        for rank in range(2):
            self.store.put("Pod", pod(rank))
        self.woken: list[Key] = []
        http = httpx.AsyncClient(transport=httpx.MockTransport(self.workers))
        self.keeper = ExpertKeeper(self.store, WorkerClient(http), clock=self.clock, wake=self.woken.extend)

    def clock(self) -> datetime:
        return self.now

    async def look_after(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        await self.keeper.look()

    def status(self) -> dict[str, Any]:
        snapshot = self.store.deployment_snapshot(M3)
        assert snapshot is not None
        decision = decide_deployment(snapshot, INSTALLATION, self.now)
        return deployment_status(snapshot, decision, {}, decision.problem, self.now)

    def config_map(self) -> dict[str, Any] | None:
        snapshot = self.store.deployment_snapshot(M3)
        assert snapshot is not None
        actions = decide_deployment(snapshot, INSTALLATION, self.now).objects
        kept = [one.manifest for one in actions if isinstance(one, ApplyObject) and one.manifest["kind"] == "ConfigMap"]
        return json.loads(kept[0]["data"]["plan.json"]) if kept else None


async def test_a_group_gets_its_first_plan_at_once_and_another_when_its_load_is_uneven() -> None:
    world = World()
    await world.keeper.look()
    assert world.woken == [M3]
    assert world.workers.plans["10.0.0.0"]["epoch"] == 1
    assert world.config_map() == world.workers.plans["10.0.0.0"]
    for _ in range(4):
        await world.look_after(60)
    assert world.workers.plans["10.0.0.0"]["epoch"] >= 1
    shown = world.status()["experts"]
    assert shown["epoch"] == world.workers.plans["10.0.0.0"]["epoch"]
    assert world.config_map() == world.workers.plans["10.0.0.0"]
    (balanced,) = (found for found in world.status()["conditions"] if found["type"] == "Balanced")
    assert balanced["status"] in ("True", "False")


async def test_nobody_is_asked_between_windows_unless_a_group_is_new() -> None:
    world = World()
    await world.keeper.look()
    await world.look_after(30)
    assert world.workers.looks == 1
    for rank in range(2):
        world.store.put("Pod", pod(rank, group=1))
    await world.look_after(1)
    assert set(world.workers.plans) == {"10.0.0.0", "10.0.1.0"}
    assert world.workers.plans["10.0.1.0"] == world.workers.plans["10.0.0.0"]


@pytest.mark.parametrize(
    "spec", [{"expertBalancing": {"mode": "Off"}}, {"parallelism": {"gpusPerNode": 0}}, {"model": {}}]
)
async def test_who_has_no_experts_to_place_is_not_asked(spec: dict[str, Any]) -> None:
    world = World(**spec)
    await world.keeper.look()
    assert world.workers.looks == 0


async def test_a_worker_that_does_not_answer_is_a_log_line_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.workers.status = 503
    await world.keeper.look()
    assert "experts of m3-g0-r0 not seen: GET http://10.0.0.0:8000/internal/experts: HTTP 503" in caplog.text
    assert "experts" not in world.status()
    world.workers.status = 200
    await world.look_after(60)
    assert world.status()["experts"]["reason"] == "Placed"


async def test_a_plan_that_an_earlier_operator_learned_stays_until_there_is_a_newer_one() -> None:
    world = World()
    await world.keeper.look()
    snapshot = world.store.deployment_snapshot(M3)
    assert snapshot is not None
    for action in decide_deployment(snapshot, INSTALLATION, NOW).objects:
        world.store.put(action.manifest["kind"], _live(action.manifest))
    world.store.put_experts(M3, None)
    after = world.store.deployment_snapshot(M3)
    assert after is not None
    assert ("ConfigMap", "m3-experts") in after.children
    assert decide_deployment(after, INSTALLATION, NOW).objects == ()


def _live(manifest: Any) -> dict[str, Any]:
    return {**manifest, "metadata": {**manifest["metadata"], "uid": "x" + manifest["metadata"]["name"]}}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("[]", "no JSON object"),
        ("{", "Expecting"),
        ('{"epoch": 0, "ranks": 3, "experts": 4, "slots": 6}', "3 ranks on 2 nodes"),
        ('{"epoch": 0, "ranks": 2, "experts": 4, "slots": 6, "layers": [[0]]}', r"layers\[0\] must be 6 counts"),
        ('{"epoch": -1, "ranks": 2, "experts": 4, "slots": 6, "layers": [], "tokens": []}', "epoch is -1"),
    ],
)
async def test_an_answer_that_is_none_is_refused(body: str, word: str) -> None:
    http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200, text=body)))
    with pytest.raises(ExpertsUnavailableError, match=word):
        await WorkerClient(http).read("http://w:1", 2)
