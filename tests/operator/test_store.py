"""What was last seen: newer wins, and every change wakes exactly those whose plan looks at it."""

from typing import Any

from m3_operator.observed import Key
from m3_operator.signals.values import NO_SIGNALS, DeploymentSignals
from m3_operator.store import Store
from operator_world import NOW

M3, FRONT = Key("M3Deployment", "ns", "m3"), Key("M3Router", "ns", "front")
OWN_ROUTER = Key("M3Router", "ns", "m3")


def manifest(kind: str, name: str, version: int = 1, uid: str = "", owner: str = "", **rest: Any) -> dict[str, Any]:
    labels = rest.pop("labels", {})
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": "ns",
        "uid": uid or f"uid-{name}",
        "resourceVersion": str(version),
        "labels": labels,
        "managedFields": [{"manager": "someone"}],
    }
    if owner:
        metadata["ownerReferences"] = [{"uid": owner, "controller": True}]
    return {"kind": kind, "metadata": metadata, **rest}


def deployment(version: int = 1, **spec: Any) -> dict[str, Any]:
    return manifest("M3Deployment", "m3", version, spec=spec)


def router(*names: str, name: str = "front", version: int = 1) -> dict[str, Any]:
    return manifest("M3Router", name, version, spec={"deployments": [{"name": one} for one in names]})


def worker(version: int = 1, *, phase: str = "Running", owner: str = "uid-m3", uid: str = "pod-1") -> dict[str, Any]:
    labels = {"serving.m3.dev/deployment": "m3", "serving.m3.dev/group": "0", "serving.m3.dev/rank": "0"}
    return manifest("Pod", "m3-g0-r0", version, uid, owner, labels=labels, status={"phase": phase})


def router_pod(version: int = 1, *, is_ready: bool = True) -> dict[str, Any]:
    labels = {
        "serving.m3.dev/router": "front",
        "app.kubernetes.io/component": "router",
        # What a user's template may add makes no worker of it.
        "serving.m3.dev/deployment": "m3",
        "serving.m3.dev/group": "0",
        "serving.m3.dev/rank": "0",
    }
    status = {"podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": str(is_ready)}]}
    spec = {"containers": [{"ports": [{"name": "admin", "containerPort": 9090}]}]}
    return manifest(
        "Pod", "front-router-abc", version, owner="uid-replica-set", labels=labels, spec=spec, status=status
    )


def service(version: int = 1, owner: str = "uid-m3") -> dict[str, Any]:
    return manifest("Service", "m3-workers", version, owner=owner, labels={"serving.m3.dev/deployment": "m3"})


def shared_claim() -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": "model-cache", "app.kubernetes.io/managed-by": "m3-operator"}
    metadata = {"name": "m3-cache-1", "namespace": "ns", "uid": "claim", "resourceVersion": "1", "labels": labels}
    return {"kind": "PersistentVolumeClaim", "metadata": metadata, "spec": {}}


def fetch_pod(version: int = 1, words: str = "") -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/component": "model-cache",
        "serving.m3.dev/deployment": "m3",
        "batch.kubernetes.io/job-name": "m3-fetch-1",
    }
    metadata = {
        "name": "m3-fetch-1-x",
        "namespace": "ns",
        "uid": "fetch",
        "resourceVersion": str(version),
        "labels": labels,
    }
    container = {"name": "fetch", "ports": [{"name": "http", "containerPort": 8000}]}
    state: dict[str, Any] = {"name": "fetch", "state": {"running": {}}}
    if words:
        state["lastState"] = {"terminated": {"exitCode": 1, "message": words}}
    status = {"podIP": "10.0.0.9", "containerStatuses": [state]}
    return {"kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}, "status": status}


def test_a_pod_wakes_its_deployment_and_no_one_else() -> None:
    store = Store()
    assert store.put("M3Deployment", deployment()) == {M3}
    assert store.put("Pod", worker()) == {M3}
    snapshot = store.deployment_snapshot(M3)
    assert snapshot is not None
    assert [pod.name for pod in snapshot.pods] == ["m3-g0-r0"]


def test_a_change_of_a_pod_that_no_plan_looks_at_wakes_nobody() -> None:
    store = Store()
    store.put("Pod", worker(1))
    assert store.put("Pod", worker(2)) == set()
    assert store.put("Pod", worker(3, phase="Failed")) == {M3}


def test_an_older_version_never_replaces_a_newer_one() -> None:
    store = Store()
    store.put("Pod", worker(5, phase="Failed"))
    assert store.put("Pod", worker(4)) == set()
    assert store.put("Pod", worker(5)) == set()
    store.put("M3Deployment", deployment())
    snapshot = store.deployment_snapshot(M3)
    assert snapshot is not None
    assert [pod.phase for pod in snapshot.pods] == ["Failed"]


def test_a_late_deletion_does_not_take_the_namesake_that_came_after() -> None:
    store = Store()
    store.put("Pod", worker(1, uid="old"))
    assert store.put("Pod", worker(7, uid="new")) == {M3}
    assert store.remove("Pod", worker(6, uid="old")) == set()
    assert store.remove("Pod", worker(9, uid="new")) == {M3}


def test_the_late_answer_to_a_deletion_does_not_bring_a_pod_back() -> None:
    store = Store()
    store.put(M3.kind, deployment())
    store.put("Pod", worker())
    assert store.remove("Pod", worker(version=2)) == {M3}
    assert store.put("Pod", worker(version=2)) == set()
    assert store.deployment_snapshot(M3).pods == ()  # type: ignore[union-attr]
    assert store.put("Pod", worker(version=3, uid="pod-2")) == {M3}


def test_children_of_an_earlier_owner_are_not_ours_and_stand_in_the_way() -> None:
    store = Store()
    store.put("M3Deployment", deployment())
    store.put("Pod", worker(owner="uid-of-the-one-before"))
    store.put("Service", service(owner="uid-of-the-one-before"))
    snapshot = store.deployment_snapshot(M3)
    assert snapshot is not None
    assert snapshot.pods == ()
    assert snapshot.names_in_the_way == {"m3-g0-r0"}
    assert snapshot.children == {}


def test_a_deployment_wakes_the_routers_that_list_it_and_a_router_those_it_lists() -> None:
    store = Store()
    assert store.put("M3Router", router("m3", "other")) == {FRONT, M3, Key("M3Deployment", "ns", "other"), _same(FRONT)}
    assert store.put("M3Deployment", deployment()) == {M3, FRONT}
    store.put("M3Router", router("other", version=2))
    assert store.put("M3Deployment", deployment(2)) == {M3}
    assert store.put("M3Router", router("m3", name="m3")) == {OWN_ROUTER, M3}


def test_a_router_sees_deployments_that_are_not_there() -> None:
    store = Store()
    store.put("M3Router", router("m3", "ghost"))
    store.put("M3Deployment", deployment())
    snapshot = store.router_snapshot(FRONT)
    assert snapshot is not None
    assert list(snapshot.deployments) == ["m3", "ghost"]
    assert snapshot.deployments["ghost"] is None


def test_a_deployment_sees_the_router_it_names_and_its_namesake() -> None:
    store = Store()
    store.put("M3Router", router("m3"))
    store.put("M3Router", router("m3", name="m3"))
    store.put("M3Deployment", deployment(router={"name": "front"}))
    snapshot = store.deployment_snapshot(M3)
    assert snapshot is not None
    assert snapshot.router is not None
    assert snapshot.namesake is not None
    assert (snapshot.router["metadata"]["name"], snapshot.namesake["metadata"]["name"]) == ("front", "m3")


def test_a_full_list_forgets_what_is_gone_and_keeps_what_came_meanwhile() -> None:
    store = Store()
    store.put("M3Deployment", deployment())
    store.put("Pod", worker())
    before = store.identities("Pod")
    late = worker(9)
    late["metadata"]["name"] = "m3-g1-r0"
    store.put("Pod", late)
    assert store.replace("Pod", [], before) == {M3}
    snapshot = store.deployment_snapshot(M3)
    assert snapshot is not None
    assert [pod.name for pod in snapshot.pods] == ["m3-g1-r0"]


def test_a_full_list_of_what_is_known_wakes_nobody() -> None:
    store = Store()
    everything = {"M3Deployment": deployment(), "Pod": worker(), "Service": service()}
    for kind, found in everything.items():
        store.put(kind, found)
    for kind, found in everything.items():
        assert store.replace(kind, [found], store.identities(kind)) == set()


def test_after_everything_is_deleted_nothing_is_kept_but_a_bounded_number_of_uids() -> None:
    store = Store()
    everything = [deployment(), router("m3"), worker(), service(), router_pod(), shared_claim(), fetch_pod()]
    for found in everything:
        store.put(found["kind"], found)
    store.put_signals(M3, DeploymentSignals(busy_at=NOW))
    for found in everything:
        store.remove(found["kind"], found)
    assert all(not kept for name, kept in vars(store).items() if name != "_buried")
    assert len(vars(store)["_buried"]) == len(everything)


def test_the_pods_of_routers_are_known_to_the_deployments_that_they_serve_and_are_no_workers() -> None:
    store = Store()
    store.put("M3Deployment", deployment())
    store.put("M3Router", router("m3"))
    assert store.put("Pod", router_pod()) == {FRONT}
    (found,) = store.router_pods(M3)
    assert (found.ip, found.port, found.owner, found.is_ready) == ("10.0.0.7", 9090, FRONT, True)
    snapshot = store.deployment_snapshot(M3)
    assert snapshot is not None
    assert not snapshot.pods
    assert not snapshot.names_in_the_way
    assert store.put("Pod", router_pod(2, is_ready=False)) == set()  # its Deployment counts those that are
    assert [pod.is_ready for pod in store.router_pods(M3)] == [False]
    assert store.router_snapshot(FRONT) is not None
    assert store.replace("Pod", [], store.identities("Pod")) == {FRONT}
    assert store.router_pods(M3) == []


def test_a_shared_claim_is_seen_by_every_deployment_of_its_namespace_and_is_nobody_s_child() -> None:
    store = Store()
    store.put("M3Deployment", deployment())
    assert store.put("PersistentVolumeClaim", shared_claim()) == set()
    snapshot = store.deployment_snapshot(M3)
    assert snapshot is not None
    assert list(snapshot.claims) == [("PersistentVolumeClaim", "m3-cache-1")]
    assert not snapshot.children
    store.remove("PersistentVolumeClaim", shared_claim())
    assert not store.deployment_snapshot(M3).claims  # type: ignore[union-attr]


def test_a_pod_that_downloads_wakes_its_deployment_by_what_it_says() -> None:
    store = Store()
    store.put("M3Deployment", deployment())
    assert store.put("Pod", fetch_pod()) == {M3}
    snapshot = store.deployment_snapshot(M3)
    assert snapshot is not None
    assert [(pod.name, pod.job, pod.is_running, pod.port) for pod in snapshot.fetchers] == [
        ("m3-fetch-1-x", "m3-fetch-1", True, 8000)
    ]
    assert not snapshot.pods
    assert store.put("Pod", fetch_pod(2)) == set()
    assert store.put("Pod", fetch_pod(3, words="CacheFull: no room")) == {M3}
    assert store.deployment_snapshot(M3).fetchers[0].last_words == "CacheFull: no room"  # type: ignore[union-attr]
    assert store.remove("Pod", fetch_pod(4)) == {M3}


def test_signals_are_kept_as_long_as_their_deployment() -> None:
    store, signals = Store(), DeploymentSignals(busy_at=NOW)
    store.put_signals(M3, signals)
    store.put("M3Deployment", deployment())
    before = store.deployment_snapshot(M3)
    store.put_signals(M3, signals)
    after = store.deployment_snapshot(M3)
    assert before is not None
    assert after is not None
    assert (before.signals, after.signals) == (NO_SIGNALS, signals)


def test_a_full_list_that_was_asked_before_an_object_went_or_was_replaced_changes_neither() -> None:
    store = Store()
    store.put("M3Deployment", deployment())
    store.put("Pod", worker())
    before = store.identities("Pod")
    store.remove("Pod", worker())
    assert store.replace("Pod", [], before) == set()
    namesake = worker()
    namesake["metadata"] = {**namesake["metadata"], "uid": "uid-another", "resourceVersion": "900"}
    store.put("Pod", namesake)
    assert store.replace("Pod", [], before) == set()
    snapshot = store.deployment_snapshot(M3)
    assert snapshot is not None
    assert [pod.uid for pod in snapshot.pods] == ["uid-another"]


def test_managed_fields_are_not_kept() -> None:
    store = Store()
    store.put("M3Deployment", deployment())
    found = store.get(M3)
    assert found is not None
    assert "managedFields" not in found["metadata"]


def _same(router_key: Key) -> Key:
    """A router also concerns the deployment of its own name, which may have wanted to make it."""
    return Key("M3Deployment", router_key.namespace, router_key.name)


def test_a_router_is_woken_by_what_its_configuration_is_made_from_and_by_nothing_else_of_a_deployment() -> None:
    store = Store()

    def manifest(kind: str, version: int, generation: int, spec: dict[str, Any]) -> dict[str, Any]:
        metadata = {"name": "m3", "namespace": "ns", "uid": f"uid-{kind}", "resourceVersion": str(version)}
        return {
            "kind": kind,
            "metadata": {**metadata, "generation": generation},
            "spec": spec,
            "status": {"v": version},
        }

    router, deployment = Key("M3Router", "ns", "m3"), Key("M3Deployment", "ns", "m3")
    store.put("M3Router", manifest("M3Router", 1, 1, {"deployments": [{"name": "m3"}]}))
    assert store.put("M3Deployment", manifest("M3Deployment", 2, 1, {})) == {deployment, router}
    assert store.put("M3Deployment", manifest("M3Deployment", 3, 1, {})) == {deployment}
    assert store.put("M3Deployment", manifest("M3Deployment", 4, 2, {"replicas": 3})) == {deployment}
    engine = {"replicas": 3, "engine": {"maxContextTokens": 8192}}
    assert store.put("M3Deployment", manifest("M3Deployment", 5, 3, engine)) == {deployment, router}
    snapshot = store.router_snapshot(router)
    assert snapshot is not None
    shown = snapshot.deployments["m3"]
    assert shown is not None
    assert shown["spec"] == {"engine": {"maxContextTokens": 8192}}
