"""Cycles against a writer that remembers: a store, a reconciler over it, and objects as users would write them."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from m3_operator.decide.installation import Installation
from m3_operator.errors import OperatorError
from m3_operator.observed import Key
from m3_operator.reconcile.cycle import Reconciler
from m3_operator.store import Store
from operator_world import NOW

M3, ROUTER = Key("M3Deployment", "ns", "m3"), Key("M3Router", "ns", "m3")
ADA = Key("M3Tenant", "ns", "ada")


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Remembering:
    """A writer that answers like an API server without a mind of its own, and fails where it is told to."""

    written: list[str] = field(default_factory=list)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    secrets: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, OperatorError] = field(default_factory=dict)
    existing: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    version: int = 100
    answers: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, verb: str, manifest: Any) -> dict[str, Any]:
        self.version += 1
        name = f"{verb} {manifest['kind']} {manifest['metadata']['name']}"
        self.written.append(name)
        for pattern, failure in self.failures.items():
            if pattern in name:
                raise failure
        life = self.version if verb == "create" else ""  # what is made anew is another object
        metadata = {"uid": f"uid-{name}{life}", **manifest["metadata"], "resourceVersion": str(self.version)}
        self.answers.append({**manifest, "metadata": metadata})
        return self.answers[-1]

    async def apply(self, manifest: Any, *, uid: str | None) -> dict[str, Any]:
        return self.answer("make" if uid is None else "apply", manifest)

    async def create(self, manifest: Any) -> dict[str, Any] | None:
        return self.answer("create", manifest)

    async def create_secret(self, manifest: Any) -> bool:
        self.secrets.append(manifest)
        self.answer("create", manifest)
        return len(self.secrets) == 1

    async def exists(self, kind: str, namespace: str, name: str) -> bool:
        self.asked.append(f"{kind} {namespace}/{name}")
        for pattern, failure in self.failures.items():
            if pattern in f"ask {kind} {name}":
                raise failure
        return name in self.existing

    async def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        *,
        uid: str,
        version: str | None = None,
        grace_seconds: int | None = None,
    ) -> dict[str, Any] | None:
        self.answer("delete", {"kind": kind, "metadata": {"name": name}})
        return None

    async def open_gate(self, namespace: str, name: str, *, uid: str, at: str) -> dict[str, Any] | None:
        self.answer("open", {"kind": "Pod", "metadata": {"name": name}})
        return None

    async def write_status(self, owner: Any, status: dict[str, Any]) -> dict[str, Any]:
        answer = self.answer("status", {**owner, "status": status})
        self.statuses.append(status)
        return answer

    async def record(self, event: Any) -> None:
        self.events.append(event)


def deployment(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": "ns", "uid": "uid-m3", "generation": 3, "resourceVersion": "1"},
        "spec": {"model": {"name": "M", "source": {"tiny": {}}}, "parallelism": {"gpusPerNode": 0}, **spec},
    }


def router(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Router",
        "metadata": {"name": "m3", "namespace": "ns", "uid": "uid-r", "generation": 1, "resourceVersion": "1"},
        "spec": {"deployments": [{"name": "m3"}], **spec},
    }


def tenant(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Tenant",
        "metadata": {"name": "ada", "namespace": "ns", "uid": "uid-ada", "generation": 4, "resourceVersion": "1"},
        "spec": spec,
    }


class World:
    """A store, a writer and a reconciler over them."""

    def __init__(self, *manifests: dict[str, Any], installation: Installation | None = None) -> None:
        self.store, self.writer, self.clock = Store(), Remembering(), Clock()
        self.woken: set[Key] = set()
        for manifest in manifests:
            self.store.put(manifest["kind"], manifest)
        installation = installation or Installation(worker_image="worker.test/m3:1", router_image="router.test/m3:1")
        self.reconciler = Reconciler(self.writer, self.store, installation, clock=self.clock, wake=self.woken.update)

    async def cycle(self, key: Key) -> float | None:
        return await self.reconciler.cycle(key)

    def reason(self, condition: str = "Ready") -> str:
        conditions = {found["type"]: found for found in self.writer.statuses[-1]["conditions"]}
        return str(conditions[condition]["reason"])


def change(world: World, kind: str, name: str, **changes: Any) -> None:
    """An update by somebody else, as the watch would tell it."""
    snapshot = world.store.router_snapshot(ROUTER)
    assert snapshot is not None
    found = dict(snapshot.children[kind, name])
    world.writer.version += 1
    metadata = {**found["metadata"], "resourceVersion": str(world.writer.version)}
    world.store.put(kind, {**found, "metadata": metadata, **changes})


def change_deployment(world: World, **spec: Any) -> None:
    """Another spec of the deployment."""
    found = world.store.get(M3)
    assert found is not None
    world.writer.version += 1
    generation = found["metadata"]["generation"] + 1
    metadata = {**found["metadata"], "generation": generation, "resourceVersion": str(world.writer.version)}
    world.store.put("M3Deployment", {**found, "metadata": metadata, "spec": deployment(**spec)["spec"]})


def change_pod(world: World, group: int = 0, **changes: Any) -> None:
    """An update of the one pod of a group."""
    world.writer.version += 1
    labels = {"serving.m3.dev/deployment": "m3", "serving.m3.dev/group": str(group), "serving.m3.dev/rank": "0"}
    snapshot = world.store.deployment_snapshot(M3)
    assert snapshot is not None
    (pod,) = (pod for pod in snapshot.pods if pod.group == group)
    metadata = {
        "name": pod.name,
        "namespace": "ns",
        "uid": pod.uid,
        "resourceVersion": str(world.writer.version),
        "labels": {**labels, "serving.m3.dev/revision": pod.revision},
        "ownerReferences": [{"uid": "uid-m3", "controller": True}],
    }
    world.store.put("Pod", {"metadata": metadata, "spec": {"nodeName": "n"}, **changes})


def text_of(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
