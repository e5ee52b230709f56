"""The cycle where something is missing or lost: what is asked, told, remembered and made anew."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from m3_operator.errors import RefusedError
from m3_operator.observed import DeploymentSnapshot, Key
from m3_operator.signals.values import DeploymentSignals, WorkerSignals
from operator_cycles import M3, ROUTER, World, change, change_pod, deployment, router, text_of
from operator_world import NOW


async def test_a_secret_that_is_not_there_is_named_while_no_router_answers_and_asked_for_now_and_then() -> None:
    world = World(deployment(), router(auth={"secretName": "our-keys"}))
    for _ in range(3):
        assert await world.cycle(ROUTER) == 15
    assert world.writer.asked == ["Secret ns/our-keys"]
    assert world.reason() == "SecretNotFound"
    message = world.writer.statuses[-1]["conditions"][0]["message"]
    assert message == "spec.auth.secretName: there is no Secret our-keys in this namespace; create it"
    world.writer.existing.add("our-keys")
    world.clock.now += timedelta(seconds=15)
    await world.cycle(ROUTER)
    assert world.reason() == "RoutersNotReady"
    change(world, "Deployment", "m3-router", status={"availableReplicas": 1})
    world.clock.now += timedelta(days=1)
    assert await world.cycle(ROUTER) is None
    assert world.writer.asked == ["Secret ns/our-keys"] * 2


async def test_whether_a_secret_exists_is_not_guessed_when_the_api_server_will_not_say() -> None:
    world = World(deployment(), router(auth={"secretName": "our-keys"}))
    world.writer.failures["ask Secret"] = RefusedError(403, "exceeded quota: secrets")
    await world.cycle(ROUTER)
    assert world.reason() == "RoutersNotReady"


async def test_what_a_worker_waits_to_mount_is_named_and_cleared_when_it_is_there() -> None:
    volumes = [
        {"name": "certs", "secret": {"secretName": "certs"}},
        {"name": "maybe", "secret": {"secretName": "maybe", "optional": True}},
        {"name": "both", "projected": {"sources": [{"configMap": {"name": "settings"}}]}},
    ]
    world = World(deployment(template={"volumes": volumes}))
    world.writer.existing.add("certs")
    await world.cycle(M3)
    assert world.writer.asked == [], "nothing waits for a volume yet"
    change_pod(world, status={"phase": "Pending"})
    assert await world.cycle(M3) == 15
    assert world.writer.asked == ["Secret ns/certs", "ConfigMap ns/settings"]
    assert world.reason() == "ConfigNotFound"
    world.writer.existing.add("settings")
    world.clock.now += timedelta(seconds=15)
    await world.cycle(M3)
    assert world.reason() == "GroupsNotReady"


async def test_a_quota_that_is_used_up_has_its_own_reason() -> None:
    world = World(deployment())
    world.writer.failures["create Pod"] = RefusedError(403, 'pods "m3-g0-r0" is forbidden: exceeded quota: pods')
    await world.cycle(M3)
    assert world.reason() == "QuotaExceeded"


async def test_a_group_of_a_lost_node_is_made_anew_elsewhere_and_the_node_is_remembered() -> None:
    world = World(deployment())
    await world.cycle(M3)
    change_pod(world, status={"phase": "Running"})
    world.store.put("Node", _node("Unknown"))
    assert await world.cycle(M3) == 60, "the time that spec.recovery gives a node"
    world.clock.now += timedelta(seconds=60)
    await world.cycle(M3)
    assert "delete Pod m3-g0-r0" in world.writer.written
    status = world.writer.statuses[-1]
    reason = "node n has not been ready for 60 s"
    assert status["avoidedNodes"] == [{"name": "n", "until": "2026-11-21T13:01:00Z", "reason": reason}]
    assert status["groups"][0]["lastFailure"]["reason"] == reason
    await world.cycle(M3)
    snapshot = world.store.deployment_snapshot(M3)
    assert snapshot is not None
    assert [pod.avoids for pod in snapshot.pods] == [("n",)]
    world.clock.now += timedelta(hours=1)
    await world.cycle(M3)
    assert "avoidedNodes" not in world.writer.statuses[-1]


async def test_a_hang_that_only_the_scrapes_tell_of_is_noticed_across_them(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(deployment(recovery={"hangSeconds": 30}))
    await world.cycle(M3)
    change_pod(world, status={"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    look = world.store.deployment_snapshot

    def scraped(key: Key) -> DeploymentSnapshot | None:
        found = look(key)
        if found is None or not found.pods:
            return found
        worker = WorkerSignals(scraped_at=world.clock.now, steps=41, waiting=2)
        return replace(found, signals=DeploymentSignals(workers={found.pods[0].uid: worker}))

    monkeypatch.setattr(world.store, "deployment_snapshot", scraped)
    assert await world.cycle(M3) == 30
    world.clock.now += timedelta(seconds=29)
    await world.cycle(M3)
    assert "delete Pod m3-g0-r0" not in world.writer.written
    world.clock.now += timedelta(seconds=1)
    await world.cycle(M3)
    assert "delete Pod m3-g0-r0" in world.writer.written
    assert world.writer.statuses[-1]["groups"][0]["restarts"] == 1


def _node(status: str) -> dict[str, Any]:
    ready = {"type": "Ready", "status": status, "lastTransitionTime": text_of(NOW)}
    metadata = {"name": "n", "uid": "uid-n", "resourceVersion": "1"}
    return {"metadata": metadata, "spec": {}, "status": {"conditions": [ready]}}
