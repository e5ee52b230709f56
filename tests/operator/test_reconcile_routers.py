"""The cycles of routers and tenants against a writer that remembers: keys, who is served, what is told."""

from datetime import timedelta
from typing import Any

import pytest

from m3_operator.observed import Key
from m3_router.config import RouterConfig
from operator_cycles import (
    ADA,
    M3,
    ROUTER,
    World,
    change,
    deployment,
    router,
    tenant,
)


async def test_the_key_is_offered_before_the_routers_start_and_then_left_alone() -> None:
    world = World(deployment(), router())
    await world.cycle(ROUTER)
    written = world.writer.written
    assert written.index("create Secret m3-keys") < written.index("make Deployment m3-router")
    await world.cycle(ROUTER)
    assert len(world.writer.secrets) == 1
    world.clock.now += timedelta(minutes=2)  # no router runs yet: somebody may have deleted the Secret
    await world.cycle(ROUTER)
    assert len(world.writer.secrets) == 2
    change(world, "Deployment", "m3-router", status={"availableReplicas": 1})
    world.clock.now += timedelta(days=1)
    await world.cycle(ROUTER)
    assert len(world.writer.secrets) == 2
    keys = {secret["data"]["api-key"] for secret in world.writer.secrets}
    assert len(keys) == 2, "an offered key is used once"
    told = str(world.writer.events) + str(world.writer.statuses)
    assert not any(key in told for key in keys)


async def test_a_router_of_the_users_own_keys_gets_no_generated_one() -> None:
    world = World(deployment(), router(auth={"secretName": "our-keys"}))
    await world.cycle(ROUTER)
    assert world.writer.secrets == []
    assert world.writer.statuses[-1]["keysSecret"] == "our-keys"


async def test_a_router_serves_the_deployments_that_are_there_and_names_the_one_that_is_not() -> None:
    world = World(deployment(), router(deployments=[{"name": "m3"}, {"name": "ghost"}]))
    await world.cycle(ROUTER)
    assert "make Deployment m3-router" in world.writer.written
    assert world.reason() == "DeploymentNotFound"
    assert "ghost" in world.writer.statuses[-1]["conditions"][0]["message"]


def canary() -> list[dict[str, Any]]:
    """Two deployments of one model, one of them later."""
    later = deployment()
    later["metadata"] |= {"name": "next", "uid": "uid-next", "creationTimestamp": "2026-11-21T00:00:00Z"}
    return [deployment(router={"name": "m3"}), {**later, "spec": {**later["spec"], "router": {"name": "m3"}}}]


@pytest.mark.parametrize(("weights", "reason"), [({"m3": 95, "next": 5}, ""), ({}, "ModelNameTaken")])
async def test_two_deployments_may_have_one_model_where_a_route_divides_it(
    weights: dict[str, int], reason: str
) -> None:
    shares = [{"pool": pool, "weight": weight} for pool, weight in weights.items()]
    routes = [{"model": "M", "pools": shares}] if shares else []
    front = router(deployments=[{"name": "m3"}, {"name": "next"}], routes=routes)
    world = World(*canary(), front)
    await world.cycle(ROUTER)
    snapshot = world.store.router_snapshot(ROUTER)
    assert snapshot is not None
    config = RouterConfig.from_yaml(snapshot.children["ConfigMap", "m3-router"]["data"]["router.yaml"])
    assert [pool.name for pool in config.pools] == ["m3", "next"][: len(weights) or 1]
    await world.cycle(Key("M3Deployment", "ns", "next"))
    assert (world.reason() == "ModelNameTaken") == bool(reason)


async def test_a_canary_whose_other_half_is_missing_is_served_by_what_is_there() -> None:
    shares = [{"pool": "m3", "weight": 95}, {"pool": "ghost", "weight": 5}]
    routes = [{"model": "M", "pools": shares}]
    world = World(deployment(), router(deployments=[{"name": "m3"}, {"name": "ghost"}], routes=routes))
    await world.cycle(ROUTER)
    assert "make Deployment m3-router" in world.writer.written
    assert world.reason() == "DeploymentNotFound"


async def test_a_refusal_that_a_missing_deployment_explains_is_told_with_it() -> None:
    aliases = [{"name": "latest", "model": "of-the-ghost"}]
    world = World(deployment(), router(deployments=[{"name": "m3"}, {"name": "ghost"}], aliases=aliases))
    await world.cycle(ROUTER)
    assert world.reason() == "DeploymentNotFound"
    message = world.writer.statuses[-1]["conditions"][0]["message"]
    assert "no M3Deployment ghost" in message
    assert "aliases.latest: no pool serves 'of-the-ghost'" in message


async def test_a_tenant_is_told_where_it_is_accepted_and_its_router_carries_it() -> None:
    world = World(deployment(), router(), tenant())
    await world.cycle(ROUTER)
    await world.cycle(ADA)
    status = world.writer.statuses[-1]
    assert (world.reason(), status["routers"], status["plan"]) == ("Accepted", ["m3"], "unlimited")
    assert status["observedGeneration"] == 4
    assert world.writer.events[-1]["regarding"]["kind"] == "M3Tenant"
    snapshot = world.store.router_snapshot(ROUTER)
    assert snapshot is not None
    assert '"name": "ada"' in snapshot.children["ConfigMap", "m3-router"]["data"]["tenants.json"]
    before = list(world.writer.written)
    for key in (ADA, ROUTER, ADA):
        assert await world.cycle(key) is None
    assert world.writer.written == before


async def test_a_tenant_without_a_router_is_told_so_and_does_not_stop_anybody() -> None:
    world = World(tenant(routers=["ghost"]))
    assert await world.cycle(ADA) is None
    assert world.reason() == "RouterNotFound"
    assert "ghost" in world.writer.statuses[-1]["conditions"][0]["message"]
    assert "routers" not in world.writer.statuses[-1]


async def test_the_own_router_goes_when_another_one_is_named() -> None:
    own = router()
    own["metadata"]["ownerReferences"] = [{"uid": "uid-m3", "controller": True}]
    front = router()
    front["metadata"] |= {"name": "front", "uid": "uid-front"}
    world = World(deployment(router={"name": "front"}), own, front)
    await world.cycle(M3)
    assert "delete M3Router m3" in world.writer.written


async def test_a_router_of_the_same_name_that_somebody_else_made_is_not_taken_over() -> None:
    world = World(deployment(), router(deployments=[{"name": "other"}]))
    await world.cycle(M3)
    assert world.reason() == "NameTaken"
    assert not any("M3Router" in written for written in world.writer.written)


async def test_a_router_pod_that_cannot_pull_its_image_is_told_as_soon_as_it_is_seen() -> None:
    world = World(deployment(), router())
    await world.cycle(ROUTER)
    assert world.reason() == "RoutersNotReady"
    labels = {"app.kubernetes.io/component": "router", "serving.m3.dev/router": "m3"}
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image router.test/m3:1"}
    status = {"containerStatuses": [{"name": "router", "state": {"waiting": waiting}}]}
    metadata = {"name": "m3-router-1", "namespace": "ns", "uid": "uid-1", "resourceVersion": "1", "labels": labels}
    pod = {"kind": "Pod", "metadata": metadata, "spec": {}, "status": status}
    assert world.store.put("Pod", pod) == {ROUTER}
    await world.cycle(ROUTER)
    assert world.reason() == "ImagePullFailed"
    world.store.remove("Pod", pod)
    await world.cycle(ROUTER)
    assert world.reason() == "RoutersNotReady"
