"""The cycle against a writer that remembers: order, refusals, pace, and what is told."""

from datetime import timedelta
from typing import Any

import pytest

from m3_operator.decide.installation import Installation
from m3_operator.errors import (
    ChangedError,
    ConflictError,
    GoneError,
    NameTakenError,
    NotFoundError,
    OperatorError,
    RefusedError,
    UnavailableError,
)
from m3_operator.observed import Key, ObservedPod
from m3_operator.plan.actions import DeletePods
from m3_operator.reconcile.acting import Actor, Deeds
from m3_operator.reconcile.cycle import Reconciler
from m3_router.config import RouterConfig
from operator_cycles import (
    ADA,
    M3,
    ROUTER,
    World,
    change,
    change_deployment,
    change_pod,
    deployment,
    router,
    tenant,
    text_of,
)
from operator_world import NOW, members

# Ten minutes more than five for the drain and the ten, and a second, in which a group of a tiny model must be up.
DEADLINE_SECONDS = 1501


async def test_services_come_before_pods_and_the_status_comes_last() -> None:
    world = World(deployment())
    assert await world.cycle(M3) == DEADLINE_SECONDS
    revision = world.writer.statuses[-1]["updateRevision"]
    assert world.writer.written == [
        "make Service m3-workers",
        "make PodDisruptionBudget m3-workers",
        "make Service m3-g0",
        "make M3Router m3",
        f"create ControllerRevision m3-{revision}",
        "create Pod m3-g0-r0",
        "status M3Deployment m3",
    ]
    assert world.reason() == "GroupsNotReady"
    assert ROUTER in world.woken


async def test_a_second_cycle_of_an_unchanged_world_writes_nothing() -> None:
    world = World(deployment())
    await world.cycle(M3)
    await world.cycle(ROUTER)
    await world.cycle(M3)
    before = list(world.writer.written)
    world.clock.now += timedelta(seconds=DEADLINE_SECONDS - 1)
    assert await world.cycle(M3) == 1
    world.reconciler = Reconciler(  # a restart
        world.writer,
        world.store,
        Installation(worker_image="worker.test/m3:1", router_image="router.test/m3:1"),
        clock=world.clock,
        wake=world.woken.update,
    )
    assert await world.cycle(M3) == 1
    assert world.writer.written == before


async def test_a_rollout_that_misses_its_deadline_is_told_once() -> None:
    world = World(deployment())
    await world.cycle(M3)
    world.clock.now += timedelta(seconds=DEADLINE_SECONDS)
    assert await world.cycle(M3) is None
    await world.cycle(M3)
    assert world.reason("Progressing") == "ProgressDeadlineExceeded"
    told = [(event["type"], event["reason"]) for event in world.writer.events]
    assert told.count(("Warning", "ProgressDeadlineExceeded")) == 1


async def test_an_object_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    leaving = deployment()
    leaving["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    world = World(leaving)
    assert await world.cycle(M3) is None
    assert await world.cycle(Key("M3Deployment", "ns", "never-there")) is None
    assert world.writer.written == []


@pytest.mark.parametrize(
    ("spec", "installation", "reason"),
    [
        ({}, Installation(), "ImageMissing"),
        ({"replicas": "many"}, None, "InvalidSpec"),
        ({"router": {"name": "nowhere"}}, None, "RouterNotFound"),
        ({"replicas": 0}, None, "ScaledToZero"),
        ({"suspend": True}, None, "Suspended"),
    ],
)
async def test_what_only_the_operator_can_know_is_a_condition(
    spec: dict[str, Any], installation: Installation | None, reason: str
) -> None:
    world = World(deployment(**spec), installation=installation)
    await world.cycle(M3)
    assert world.reason() == reason


async def test_a_group_that_cannot_fit_is_refused_with_one_status_and_made_once_it_is_mended() -> None:
    too_small = {"accelerator": {"memoryGiB": 1}, "parallelism": {"gpusPerNode": 1}}
    tiny = {"name": "M", "source": {"tiny": {"context": 16}}}
    refused = deployment(model={**tiny, "source": {"tiny": {"layers": 64, "hidden": 4096}}}, **too_small)
    world = World(refused)
    for _ in range(3):
        assert await world.cycle(M3) is None
    assert world.writer.written == ["status M3Deployment m3"]
    assert (world.reason(), world.reason("Fits")) == ("DoesNotFit", "DoesNotFit")
    mended = deployment(model=tiny, accelerator={"memoryGiB": 40}, parallelism={"gpusPerNode": 1})
    mended["metadata"] |= {"generation": 4, "resourceVersion": str(world.writer.version + 1)}
    world.store.put("M3Deployment", mended)
    await world.cycle(M3)
    assert "create Pod m3-g0-r0" in world.writer.written
    assert (world.reason(), world.reason("Fits")) == ("GroupsNotReady", "Fits")


async def test_a_missing_router_stops_no_worker() -> None:
    world = World(deployment(router={"name": "nowhere"}))
    await world.cycle(M3)
    assert "create Pod m3-g0-r0" in world.writer.written


@pytest.mark.parametrize(
    ("failing", "failure", "reason"),
    [
        ("create Pod", RefusedError(422, "Pod is invalid: spec.x"), "TemplateRefused"),
        (
            "create Pod",
            RefusedError(403, 'pods "x" is forbidden: violates PodSecurity "restricted"'),
            "TemplateRefused",
        ),
        (
            "create Pod",
            RefusedError(403, 'pods is forbidden: User "u" cannot create resource "pods" in the namespace "ns"'),
            "PermissionMissing",
        ),
        ("make Service m3-workers", NameTakenError("Service ns/m3-workers belongs to somebody else"), "NameTaken"),
    ],
)
async def test_a_refusal_becomes_a_condition_with_the_words_and_is_tried_again_with_growing_pauses(
    failing: str, failure: OperatorError, reason: str
) -> None:
    world = World(deployment())
    world.writer.failures[failing] = failure
    pauses = [await world.cycle(M3) for _ in range(8)]
    assert world.reason() == reason
    assert str(failure) in world.writer.statuses[-1]["conditions"][0]["message"]
    expected = [1, 2, 4, 8, 16, 32, 60, 60]
    for pause, about in zip(pauses, expected, strict=True):
        assert pause == pytest.approx(about, rel=0.21)
    assert len(world.writer.statuses) == 1, "the same refusal was written more than once"
    world.writer.failures.clear()
    assert await world.cycle(M3) == DEADLINE_SECONDS


async def test_an_api_server_that_does_not_answer_ends_the_cycle_without_a_word_in_the_status() -> None:
    world = World(deployment())
    world.writer.failures["create Pod"] = UnavailableError(503, "etcd is away")
    assert await world.cycle(M3) == pytest.approx(1, rel=0.21)
    assert world.writer.statuses == []
    world.writer.failures.clear()
    assert await world.cycle(M3) == DEADLINE_SECONDS
    assert world.reason() == "GroupsNotReady"


async def test_a_failed_group_is_counted_and_its_failure_remembered_in_the_status() -> None:
    world = World(deployment())
    await world.cycle(M3)
    ended = {
        "phase": "Failed",
        "containerStatuses": [
            {"name": "worker", "state": {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": text_of(NOW)}}}
        ],
    }
    change_pod(world, status=ended)
    await world.cycle(M3)
    assert "delete Pod m3-g0-r0" in world.writer.written
    (group,) = world.writer.statuses[-1]["groups"]
    assert group["restarts"] == 1
    assert group["lastFailure"] == {
        "reason": "m3-g0-r0 ended (container worker ended: Error, exit code 1)",
        "time": "2026-11-21T12:00:00Z",
        "revision": world.writer.statuses[-1]["revision"],
    }
    assert group["restartsSince"] == "2026-11-21T12:00:00Z"
    assert ("DeletedPods", "Warning") in {(event["reason"], event["type"]) for event in world.writer.events}


async def test_a_failure_of_a_surging_group_is_remembered_while_the_old_one_serves_beside_it() -> None:
    world = World(deployment(rollout={"strategy": "Surge", "maxSurge": 1}))
    await world.cycle(M3)
    running = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    change_pod(world, status=running)
    change_deployment(world, engine={"image": "worker.test/m3:broken"}, rollout={"strategy": "Surge", "maxSurge": 1})
    await world.cycle(M3)
    assert "create Pod m3-g1-r0" in world.writer.written
    change_pod(world, group=1, status={"phase": "Failed"})
    await world.cycle(M3)
    assert "delete Pod m3-g1-r0" in world.writer.written
    restarts = {group["index"]: group["restarts"] for group in world.writer.statuses[-1]["groups"]}
    assert restarts == {0: 0, 1: 1}


async def test_a_failure_counts_though_the_api_server_failed_before_it_could_be_told() -> None:
    world = World(deployment())
    await world.cycle(M3)
    for restarts in (1, 2):
        change_pod(world, status={"phase": "Failed"})
        world.writer.failures = {"status M3Deployment": UnavailableError(503, "no")}
        await world.cycle(M3)
        world.writer.failures.clear()
        await world.cycle(M3)
        assert [group["restarts"] for group in world.writer.statuses[-1]["groups"]] == [restarts]
        world.clock.now += timedelta(seconds=30)


async def test_an_older_status_that_is_written_late_takes_no_failure_from_memory() -> None:
    world = World(deployment())
    await world.cycle(M3)
    older = world.store.get(M3)
    assert older is not None
    change_pod(world, status={"phase": "Failed"})
    await world.cycle(M3)
    world.writer.version += 1
    metadata = {**older["metadata"], "resourceVersion": str(world.writer.version)}
    world.store.put("M3Deployment", {**older, "metadata": metadata})
    await world.cycle(M3)
    assert [group["restarts"] for group in world.writer.statuses[-1]["groups"]] == [1]
    assert world.store.get(M3) != older


async def test_peers_are_left_alone_where_rank_0_is_not_as_it_was_seen() -> None:
    world = World()
    peers = tuple(members(0, 3))
    world.writer.failures = {"delete Pod m3-g0-r0": ChangedError("it serves by now", _manifest_of(peers[0]))}
    actor = Actor(world.writer, world.store, world.woken.update)
    deeds = Deeds()
    await actor.change_pods(M3, {}, [DeletePods(0, peers, "its group loads")], [], deeds)
    assert world.writer.written == ["delete Pod m3-g0-r0"]
    assert (str(deeds.changed), deeds.done) == ("it serves by now", [])
    world.writer.failures.clear()
    await actor.change_pods(M3, {}, [DeletePods(0, peers, "its group loads")], [], Deeds())
    assert world.writer.written[1:] == [f"delete Pod m3-g0-r{rank}" for rank in range(3)]


async def test_a_pod_that_has_changed_keeps_nobody_from_being_told_what_was_done_for_other_groups() -> None:
    world = World(deployment(replicas=2))
    await world.cycle(M3)
    for group in (0, 1):
        change_pod(world, group=group, status={"phase": "Failed"})
    changed = ChangedError("it is another by now", world.writer.answers[-1])
    world.writer.failures = {"delete Pod m3-g0-r0": changed}
    pause = await world.cycle(M3)
    assert pause is not None
    assert 0.8 <= pause <= 1.2, "to be tried again"
    assert [group["restarts"] for group in world.writer.statuses[-1]["groups"]] == [0, 1]
    notes = [event["note"] for event in world.writer.events if event["reason"] == "DeletedPods"]
    assert [note.partition(":")[0] for note in notes] == ["Deleted m3-g1-r0"]


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


@pytest.mark.parametrize("error", [UnavailableError(503, "no"), RefusedError(403, "no"), ConflictError(409, "taken")])
async def test_an_event_that_cannot_be_written_stops_nothing(error: OperatorError) -> None:
    world = World(deployment())

    async def record(event: Any) -> None:
        raise error

    world.writer.record = record  # type: ignore[method-assign]
    assert await world.cycle(M3) == DEADLINE_SECONDS
    assert world.reason() == "GroupsNotReady"


async def test_pods_get_the_patience_that_their_checkpoint_asks_for() -> None:
    world = World(deployment())
    created: list[Any] = []

    async def create(manifest: Any) -> dict[str, Any] | None:
        if manifest["kind"] == "Pod":
            created.append(manifest)
        return world.writer.answer("create", manifest)

    world.writer.create = create  # type: ignore[method-assign]  # to see what is created
    await world.cycle(M3)
    probe = created[0]["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 605  # ten minutes and a tiny model, in steps of 5 s


async def test_a_group_behind_gates_is_opened_once_all_its_pods_are_there() -> None:
    world = World(deployment(parallelism={"nodes": 2, "gpusPerNode": 8}))
    assert await world.cycle(M3) == 1  # the pods are there, and no event will tell of them
    assert not [line for line in world.writer.written if line.startswith("open")]
    await world.cycle(M3)
    assert world.writer.written.count("open Pod m3-g0-r0") == 1
    assert world.writer.written.count("open Pod m3-g0-r1") == 1
    assert [event["reason"] for event in world.writer.events if event["reason"] == "OpenedGroup"] == ["OpenedGroup"]


async def test_what_was_done_for_one_rank_is_not_done_again_because_another_failed() -> None:
    world = World(deployment(parallelism={"nodes": 2, "gpusPerNode": 8}))
    world.writer.failures = {"create Pod m3-g0-r0": UnavailableError(503, "no")}
    await world.cycle(M3)
    world.writer.failures.clear()
    await world.cycle(M3)
    assert world.writer.written.count("create Pod m3-g0-r1") == 1
    opened: list[str] = []

    async def open_gate(namespace: str, name: str, *, uid: str, at: str) -> dict[str, Any] | None:
        opened.append(name)
        if opened == ["m3-g0-r0"]:
            raise UnavailableError(503, "no")
        (found,) = (one for one in world.writer.answers if one["metadata"]["uid"] == uid)
        metadata = {**found["metadata"], "resourceVersion": "900"}
        return {**found, "metadata": metadata, "spec": {**found["spec"], "schedulingGates": []}}

    world.writer.open_gate = open_gate  # type: ignore[method-assign]
    for _ in range(3):
        await world.cycle(M3)
    assert opened == ["m3-g0-r0", "m3-g0-r1", "m3-g0-r0"]


@pytest.mark.parametrize(
    ("write", "error"),
    [
        ("status", RefusedError(422, "status.groups: too many")),
        ("make Service", ConflictError(409, "the object has been modified")),
        ("make Service", NotFoundError(404, "namespaces ns not found")),
    ],
)
async def test_what_no_condition_can_tell_of_is_tried_again_and_is_no_defect(write: str, error: OperatorError) -> None:
    world = World(deployment())
    world.writer.failures = {write: error}
    first, second = await world.cycle(M3), await world.cycle(M3)
    assert first is not None
    assert second is not None
    assert 0.8 <= first <= 1.2
    assert 1.6 <= second <= 2.4
    world.writer.failures = {}
    await world.cycle(M3)
    assert world.reason() == "GroupsNotReady"  # it got through


async def test_what_takes_the_place_of_a_pod_that_went_at_once_waits_for_no_event() -> None:
    world = World(deployment())
    await world.cycle(M3)
    manifest = {
        **next(one for one in world.writer.answers if one["kind"] == "Pod"),
        "status": {"phase": "Failed", "containerStatuses": []},
    }
    manifest["metadata"] = {**manifest["metadata"], "resourceVersion": "999"}
    world.store.put("Pod", manifest)
    world.woken.clear()
    await world.cycle(M3)  # the writer says that the pod is gone already
    after = world.store.deployment_snapshot(M3)
    assert after is not None
    assert after.pods == ()
    assert M3 in world.woken


async def test_a_spec_that_changed_while_its_status_was_written_is_looked_at_again() -> None:
    world = World(deployment())

    async def write_status(owner: Any, status: dict[str, Any]) -> dict[str, Any]:
        # Somebody was quicker: the answer has their spec, and the event of it will look old.
        metadata = {**owner["metadata"], "generation": 4, "resourceVersion": "500"}
        return {**owner, "metadata": metadata, "spec": {**owner["spec"], "replicas": 2}, "status": status}

    world.writer.write_status = write_status  # type: ignore[method-assign]
    await world.cycle(M3)
    assert M3 in world.woken


async def test_an_object_that_is_gone_when_its_status_is_written_is_forgotten_and_nothing_more_is_made_for_it() -> None:
    world = World(deployment())
    world.writer.failures = {"status M3Deployment": GoneError("not found", "uid-m3")}
    assert await world.cycle(M3) is None
    assert world.store.get(M3) is None
    world.writer.written.clear()
    assert await world.cycle(M3) is None
    assert world.writer.written == []
    world.store.put("M3Deployment", deployment())
    assert world.store.get(M3) is None, "a late word of it"


async def test_a_namesake_is_kept_where_the_one_before_it_is_gone() -> None:
    world = World(deployment())

    async def write_status(owner: Any, status: dict[str, Any]) -> dict[str, Any]:
        later = deployment()
        world.store.put("M3Deployment", {**later, "metadata": {**later["metadata"], "uid": "uid-2"}})
        raise GoneError("uid mismatch", owner["metadata"]["uid"])

    world.writer.write_status = write_status  # type: ignore[method-assign]
    await world.cycle(M3)
    found = world.store.get(M3)
    assert found is not None
    assert found["metadata"]["uid"] == "uid-2"


async def test_a_status_that_lost_a_race_is_written_again() -> None:
    world = World(deployment())
    world.writer.failures = {"status M3Deployment": ConflictError(409, "try again")}
    assert await world.cycle(M3) is not None
    assert world.writer.statuses == []
    world.writer.failures.clear()
    await world.cycle(M3)
    assert len(world.writer.statuses) == 1


async def test_the_answer_to_its_own_status_wakes_nobody_for_a_second_look() -> None:
    world = World(deployment())
    await world.cycle(M3)
    assert M3 not in world.woken


def _manifest_of(one: ObservedPod) -> dict[str, Any]:
    metadata = {"name": one.name, "namespace": "ns", "uid": one.uid, "resourceVersion": "900", "labels": {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": {}}


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
