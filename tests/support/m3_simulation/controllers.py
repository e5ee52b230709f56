"""The parts of Kubernetes that act by themselves: scheduler, garbage collector, node controller, and the one that runs
routers. Each is as slow as it likes to be, and knows only what the API server has."""

from dataclasses import dataclass, field
from random import Random

from m3_simulation.api_server import ApiServer, ApiStatusError, Identity, Manifest, gates_of, identity_of
from m3_simulation.fleet import Fleet, Node
from m3_simulation.history import History
from m3_simulation.virtual_time import Clock

_NODE_GRACE_SECONDS = 40.0
_EVICTION_SECONDS = 300.0


@dataclass
class Scheduler:
    """Gives pods nodes with enough free GPUs."""

    server: ApiServer
    clock: Clock
    random: Random
    fleet: Fleet

    def on_change(self, event: str, kind: str, new: Manifest, old: Manifest | None) -> None:
        """A new pod wants a node; one that ends may make room."""
        if kind != "Pod":
            return
        if event == "ADDED" or (old is not None and gates_of(old) and not gates_of(new)):
            self.clock.after(self.random.uniform(0.02, 0.5), self._place, identity_of(new), new["metadata"]["uid"])
        elif event == "DELETED" or new["status"].get("phase") in ("Failed", "Succeeded"):
            self.retry()

    def retry(self) -> None:
        """There may be room now."""
        for pod in self.server.of_kind("Pod"):
            if not pod["spec"].get("nodeName"):
                self.clock.after(self.random.uniform(0.1, 1.0), self._place, identity_of(pod), pod["metadata"]["uid"])

    def free_gpus(self, node: Node) -> int:
        """What is left on a node."""
        held = sum(
            gpus_of(pod)
            for pod in self.server.of_kind("Pod")
            if pod["spec"].get("nodeName") == node.name and pod["status"].get("phase") not in ("Failed", "Succeeded")
        )
        return node.gpus - held

    def _place(self, identity: Identity, uid: str) -> None:
        pod = self.server.objects.get(identity)
        if pod is None or pod["metadata"]["uid"] != uid or pod["spec"].get("nodeName") or gates_of(pod):
            return
        wanted = gpus_of(pod)
        fitting = [
            node
            for node in self.fleet.nodes.values()
            if node.is_ready
            and not node.is_cordoned
            and node.name not in _avoided(pod)
            and self.free_gpus(node) >= wanted
        ]
        if fitting:
            chosen = self.random.choice(fitting).name
            condition = {"type": "PodScheduled", "status": "True"}
            self.server.change(identity, "scheduler", lambda one: one["spec"].update(nodeName=chosen))
        else:
            message = f"0/{len(self.fleet.nodes)} nodes are available: Insufficient nvidia.com/gpu"
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self.server.change(identity, "scheduler", lambda one: one["status"].update(conditions=[condition]))


@dataclass
class GarbageCollector:
    """Deletes what has lost its owner."""

    server: ApiServer
    clock: Clock
    random: Random

    def on_change(self, event: str, _: str, new: Manifest, __: Manifest | None) -> None:
        """An owner that goes leaves orphans; a child may come into the world as one."""
        if event == "DELETED":
            gone = new["metadata"]["uid"]
            for child in list(self.server.objects.values()):
                if gone in owners_of(child):
                    self._collect_soon(child)
        elif event == "ADDED" and owners_of(new) and not self._is_owned(new):
            self._collect_soon(new)

    def _is_owned(self, child: Manifest) -> bool:
        return any(owner in self.server.uids for owner in owners_of(child))

    def _collect_soon(self, child: Manifest) -> None:
        self.clock.after(self.random.uniform(0.1, 8.0), self._collect, identity_of(child), child["metadata"]["uid"])

    def _collect(self, identity: Identity, uid: str) -> None:
        found = self.server.objects.get(identity)
        if found is None or found["metadata"]["uid"] != uid or self._is_owned(found):
            return
        self.server.delete(identity, "gc", preconditions={"uid": uid})


@dataclass
class NodeController:
    """Believes a node to be lost after a while, and evicts its pods after a longer one."""

    server: ApiServer
    clock: Clock
    random: Random
    fleet: Fleet
    scheduler: Scheduler
    history: History

    def lose(self, node: Node, seconds: float, *, is_running: bool = False) -> None:
        """A node goes away for so long, or only its network."""
        self.fleet.disconnect(node, is_running=is_running)
        self.clock.after(_NODE_GRACE_SECONDS, self._notice, node)
        self.clock.after(_NODE_GRACE_SECONDS + _EVICTION_SECONDS, self._evict, node)
        self.clock.after(seconds, self.restore, node)

    def restore(self, node: Node) -> None:
        """The node is back."""
        if node.is_connected:
            return
        self.history.add(self.clock.seconds, "node", f"{node.name} is back")
        self.fleet.reconnect(node)
        node.is_ready = True
        self.fleet.publish(node)
        self.scheduler.retry()

    def _notice(self, node: Node) -> None:
        if node.is_connected:
            return
        node.is_ready = False
        self.fleet.publish(node)
        self.history.add(self.clock.seconds, "node", f"{node.name} is not ready")
        for pod in self._pods(node):
            self.server.change(identity_of(pod), "nodes", _not_ready)

    def _evict(self, node: Node) -> None:
        if node.is_connected:
            return
        for pod in self._pods(node):
            if not pod["metadata"].get("deletionTimestamp"):
                self.server.delete(identity_of(pod), "nodes", preconditions={"uid": pod["metadata"]["uid"]})

    def _pods(self, node: Node) -> list[Manifest]:
        return [pod for pod in self.server.of_kind("Pod") if pod["spec"].get("nodeName") == node.name]


@dataclass
class RouterRunner:
    """Stands in for the controller of Deployments and the pods of routers: it writes their status."""

    server: ApiServer
    clock: Clock
    random: Random
    broken: set[Identity] = field(default_factory=set)  # those whose pods do not answer for now

    def on_change(self, event: str, kind: str, new: Manifest, _: Manifest | None) -> None:
        """A Deployment changed, or something that its pods mount came."""
        if kind == "Deployment" and event != "DELETED":
            self.clock.after(self.random.uniform(0.3, 6.0), self.sync, identity_of(new))
        elif kind == "Secret" and event == "ADDED":
            for found in self.server.of_kind("Deployment", new["metadata"]["namespace"]):
                self.clock.after(self.random.uniform(0.3, 6.0), self.sync, identity_of(found))

    def sync(self, identity: Identity) -> None:
        """Say how many routers answer."""
        found = self.server.objects.get(identity)
        if found is None:
            return
        wanted = found["spec"].get("replicas", 1)
        runs = wanted if identity not in self.broken and self._can_start(found) else 0
        status = {
            "observedGeneration": found["metadata"]["generation"],
            "replicas": wanted,
            "updatedReplicas": wanted,
            "readyReplicas": runs,
            "availableReplicas": runs,
        }
        kept = {key: value for key, value in status.items() if value}  # the real one leaves zeros out
        self.server.change(identity, "deployments", lambda one: one.update(status=kept))

    def _can_start(self, found: Manifest) -> bool:
        mounted = [
            one["secret"]["secretName"] for one in found["spec"]["template"]["spec"]["volumes"] if "secret" in one
        ]
        namespace = found["metadata"]["namespace"]
        return all(("Secret", namespace, name) in self.server.objects for name in mounted)


def _avoided(pod: Manifest) -> set[str]:
    """The nodes that a pod's affinity forbids by name."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", ())
    fields = [field for term in terms for field in term.get("matchFields", ()) if field["operator"] == "NotIn"]
    return {name for field in fields for name in field["values"]}


def gpus_of(pod: Manifest) -> int:
    """GPUs that a pod asks for."""
    limits = (pod["spec"]["containers"][0].get("resources") or {}).get("limits") or {}
    return sum(int(amount) for resource, amount in limits.items() if resource.endswith("/gpu"))


def owners_of(manifest: Manifest) -> list[str]:
    """The uids of an object's owners."""
    return [one["uid"] for one in manifest["metadata"].get("ownerReferences") or ()]


def evict(server: ApiServer, pod: Manifest, actor: str) -> None:
    """Ask a pod to go, as the eviction API does; one that is gone already is fine."""
    try:
        server.delete(identity_of(pod), actor, preconditions={"uid": pod["metadata"]["uid"]})
    except ApiStatusError as error:
        if error.code not in (404, 409):
            raise


def _not_ready(pod: Manifest) -> None:
    others = [one for one in pod["status"].get("conditions") or () if one["type"] != "Ready"]
    pod["status"]["conditions"] = [*others, {"type": "Ready", "status": "False", "reason": "NodeNotReady"}]
