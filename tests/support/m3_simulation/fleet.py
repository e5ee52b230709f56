"""Nodes, their kubelets, and the worker processes that pods are for: what really runs, whatever the API server says.

A worker's requests live on rank 0 of its group and need every rank: when one process of a group ends, they end. Whose
deletion that was is handed to the rules. Rank 0 drains when it is asked to go (its preStop, then until its requests are
answered or its drain time is over); the other ranks wait for it as long as their grace lasts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from m3_operator import names
from m3_operator.render.pod import EXIT_MARGIN_SECONDS, PROPAGATION_SECONDS
from m3_simulation.api_server import ApiServer, Identity, Manifest, identity_of
from m3_simulation.history import History
from m3_simulation.virtual_time import Clock

GroupKey = tuple[str, str]  # uid of the M3Deployment, group
BAD_IMAGE, CRASHING_IMAGE = "bad", "crashing"


@dataclass(eq=False)
class Node:
    """One machine."""

    name: str
    gpus: int
    is_connected: bool = True  # whether it runs and can be reached
    is_ready: bool = True  # what the node controller thinks
    is_cordoned: bool = False


@dataclass(eq=False)
class Worker:
    """The process of one pod."""

    identity: Identity
    uid: str
    group: GroupKey
    rank: int
    size: int  # ranks of its group
    revision: str
    node: Node
    grace_seconds: float
    image: str
    is_up: bool = False
    is_ready: bool = False
    is_cut_off: bool = False  # nobody reaches it: its node's network was lost, and its kubelet has not looked since
    requests: set[int] = field(default_factory=set)
    asked_at: float | None = None  # when its kubelet told it to go
    deadline: float = 0.0  # when its kubelet kills it

    @property
    def drain_seconds(self) -> float:
        """From when it is told to go until it may end with requests unanswered."""
        return max(0.0, self.grace_seconds - EXIT_MARGIN_SECONDS)


@dataclass
class Fleet:
    """All nodes and what runs on them."""

    server: ApiServer
    clock: Clock
    random: Random
    history: History
    on_loss: Callable[[Worker, int, str, float | None], None]  # rank 0, requests, who ended it, its drain's end
    on_serving: Callable[[GroupKey, str], None]  # a group has begun to serve
    on_crash: Callable[[Worker], None]  # a process ends by itself
    load_seconds: float = 30.0
    nodes: dict[str, Node] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)  # by uid of the pod

    def add(self, node: Node) -> None:
        """A new machine joins."""
        self.nodes[node.name] = node
        self.server.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}, "spec": {}}, "nodes")
        self.publish(node)

    def publish(self, node: Node) -> None:
        """Bring a node's object to what is thought of it."""

        def edit(found: Manifest) -> None:
            ready = {"type": "Ready", "status": "True" if node.is_ready else "Unknown"}
            known = (found.get("status", {}).get("conditions") or [{}])[0]
            is_same = known.get("status") == ready["status"]
            since = known["lastTransitionTime"] if is_same else self.server.timestamp()
            found["status"] = {"conditions": [{**ready, "lastTransitionTime": since}]}
            lost = [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}] if not node.is_ready else []
            found["spec"] = {"unschedulable": node.is_cordoned, "taints": lost}

        self.server.change(("Node", "", node.name), "nodes", edit)

    def on_change(self, _: str, kind: str, new: Manifest, __: Manifest | None) -> None:
        """The kubelet of a pod's node hears of it."""
        if kind == "Pod" and new["spec"].get("nodeName"):
            self.clock.after(self.random.uniform(0.05, 0.8), self.sync, identity_of(new), new["metadata"]["uid"])

    def sync(self, identity: Identity, uid: str) -> None:
        """Bring one pod's process to what the API server says, as its kubelet does."""
        worker, pod = self.workers.get(uid), self.server.objects.get(identity)
        if pod is None or pod["metadata"]["uid"] != uid:
            if worker is not None and worker.node.is_connected:
                self._end(worker, self._who_deleted(uid))
            return
        node = self.nodes[pod["spec"]["nodeName"]]
        if not node.is_connected:
            return
        if worker is not None:
            worker.is_cut_off = False
        if pod["metadata"].get("deletionTimestamp"):
            if worker is None:
                self.server.delete(identity, "kubelet", preconditions={"uid": uid}, grace=0)
            else:
                self._ask_to_go(worker, pod)
        elif worker is None and pod["status"]["phase"] == "Running":
            self._tell(identity, uid, _ended(self.server.timestamp(), 255, "the node was restarted"))
        elif worker is None and pod["status"]["phase"] == "Pending":
            self._start(pod, node)
        elif worker is not None and worker.is_ready and _ready(pod) != "True":
            self._tell(identity, uid, _running(self.server.timestamp(), is_ready=True))

    def crash(self, worker: Worker, exit_code: int = 1) -> None:
        """A process ends by itself."""
        self.on_crash(worker)
        self._end(worker, "fault")
        self._tell(worker.identity, worker.uid, _ended(self.server.timestamp(), exit_code, "simulated"))
        self.sync(worker.identity, worker.uid)

    def disconnect(self, node: Node, *, is_running: bool = False) -> None:
        """A node is gone, with everything on it; or `is_running`, and what serves there by itself alone lives on."""
        node.is_connected = False
        for worker in [worker for worker in self.workers.values() if worker.node is node]:
            if is_running and worker.size == 1 and worker.is_ready and worker.asked_at is None:
                worker.is_cut_off = True
                self._lose_requests(worker, "fault")
            else:
                self._end(worker, "fault")

    def reconnect(self, node: Node) -> None:
        """The node is back, and its kubelet looks at what should run there."""
        node.is_connected = True
        pods = [
            (identity_of(pod), pod["metadata"]["uid"])
            for pod in self.server.of_kind("Pod")
            if pod["spec"].get("nodeName") == node.name
        ]
        known = {uid for _, uid in pods}
        orphans = [
            (one.identity, one.uid) for one in self.workers.values() if one.node is node and one.uid not in known
        ]
        for identity, uid in (*pods, *orphans):
            self.clock.after(self.random.uniform(0.5, 3.0), self.sync, identity, uid)

    def ranks(self, group: GroupKey) -> list[Worker]:
        """The processes of a group."""
        return sorted((worker for worker in self.workers.values() if worker.group == group), key=lambda one: one.rank)

    def is_intact(self, leader: Worker) -> bool:
        """Whether every rank of its world is up."""
        ranks = self.ranks(leader.group)
        is_one_world = len(ranks) == leader.size and len({worker.revision for worker in ranks}) == 1
        return is_one_world and all(worker.is_up for worker in ranks)

    def serving(self, owner: str) -> dict[GroupKey, str]:
        """The groups of an M3Deployment that really serve and are not being deleted; uid of rank 0 by group."""
        return {
            worker.group: worker.uid
            for worker in self.workers.values()
            if worker.group[0] == owner and worker.rank == 0 and worker.is_ready and self._serves(worker)
        }

    def request(self, leader: Worker, seconds: float, number: int) -> None:
        """A request arrives at rank 0 and will take so long."""
        leader.requests.add(number)
        self.clock.after(seconds, self._answered, leader, number)

    def takes_requests(self, leader: Worker) -> bool:
        """Whether a router would send it one: while it goes, until everybody knows."""
        is_known = leader.asked_at is not None and self.clock.seconds >= leader.asked_at + PROPAGATION_SECONDS
        is_reachable = leader.is_ready and not leader.is_cut_off
        return leader.rank == 0 and is_reachable and not is_known and self.is_intact(leader)

    def _serves(self, leader: Worker) -> bool:
        if leader.is_cut_off or not self.is_intact(leader):
            return False
        pods = [self.server.objects.get(worker.identity) for worker in self.ranks(leader.group)]
        return all(
            pod is not None and not pod["metadata"].get("deletionTimestamp") and _ready(pod) == "True" for pod in pods
        )

    def _start(self, pod: Manifest, node: Node) -> None:
        identity, uid, image = identity_of(pod), pod["metadata"]["uid"], pod["spec"]["containers"][0]["image"]
        if BAD_IMAGE in image:
            waiting = {"waiting": {"reason": "ImagePullBackOff", "message": f"cannot pull {image}"}}
            status = {"phase": "Pending", "containerStatuses": [{"name": "worker", "state": waiting}]}
            self._tell(identity, uid, status)
            return
        labels = pod["metadata"]["labels"]
        owner = next(one["uid"] for one in pod["metadata"]["ownerReferences"] if one.get("controller"))
        worker = Worker(
            identity=identity,
            uid=uid,
            group=(owner, labels[names.GROUP_LABEL]),
            rank=int(labels[names.RANK_LABEL]),
            size=int(pod["metadata"]["annotations"][names.NODES_ANNOTATION]),
            revision=labels[names.REVISION_LABEL],
            node=node,
            grace_seconds=float(pod["spec"]["terminationGracePeriodSeconds"]),
            image=image,
        )
        self.workers[uid] = worker
        self.clock.after(self.random.uniform(0.5, 4.0), self._run, worker)

    def _run(self, worker: Worker) -> None:
        if self.workers.get(worker.uid) is not worker or worker.asked_at is not None:
            return
        worker.is_up = True
        self._tell(worker.identity, worker.uid, _running(self.server.timestamp(), is_ready=worker.rank > 0))
        worker.is_ready = worker.rank > 0
        if CRASHING_IMAGE in worker.image:
            self.clock.after(self.random.uniform(1.0, 5.0), self._crash_if_there, worker)
        elif worker.rank == 0:
            self.clock.after(self.random.uniform(0.5, 1.5) * self.load_seconds, self._try_ready, worker)

    def _crash_if_there(self, worker: Worker) -> None:
        if self.workers.get(worker.uid) is worker and worker.asked_at is None:
            self.crash(worker)

    def _try_ready(self, leader: Worker) -> None:
        if self.workers.get(leader.uid) is not leader or leader.asked_at is not None:
            return
        if not self.is_intact(leader):
            self.clock.after(self.random.uniform(1.0, 3.0), self._try_ready, leader)
            return
        leader.is_ready = True
        self._tell(leader.identity, leader.uid, _running(self.server.timestamp(), is_ready=True))
        if self._serves(leader):
            self.on_serving(leader.group, leader.uid)

    def _ask_to_go(self, worker: Worker, pod: Manifest) -> None:
        deadline = self.clock.seconds + float(pod["metadata"]["deletionGracePeriodSeconds"])
        if worker.asked_at is None:
            worker.asked_at, worker.deadline = self.clock.seconds, deadline
            self.clock.after(PROPAGATION_SECONDS if worker.is_ready and worker.rank == 0 else 0.5, self._go, worker)
            if worker.rank == 0:
                self.clock.after(worker.drain_seconds, self._drain_is_over, worker)
        worker.deadline = min(worker.deadline, deadline)
        self.clock.after(worker.deadline - self.clock.seconds, self._go, worker)

    def _go(self, worker: Worker) -> None:
        """End, if nothing is left to wait for or the time is up."""
        if self.workers.get(worker.uid) is not worker or worker.asked_at is None or not worker.node.is_connected:
            return
        asked, now = worker.asked_at, self.clock.seconds
        if worker.rank == 0:
            is_done = not worker.requests and now >= asked + (PROPAGATION_SECONDS if worker.is_ready else 0.0)
        else:
            leaders = [one for one in self.ranks(worker.group) if one.rank == 0]
            is_done = not leaders
        if is_done or now >= worker.deadline - 1e-6:
            self._end(worker, self._who_deleted(worker.uid))

    def _drain_is_over(self, leader: Worker) -> None:
        """The worker's own end of its drain: whoever is not answered now never is."""
        if self.workers.get(leader.uid) is leader:
            self._end(leader, "drain time over")

    def _end(self, worker: Worker, who: str) -> None:
        leader = next((one for one in self.ranks(worker.group) if one.rank == 0), None)
        del self.workers[worker.uid]
        if leader is not None:
            self._lose_requests(leader, who)
        if worker.asked_at is not None and worker.node.is_connected:
            self.clock.after(0.1, self._remove, worker)
        for peer in self.ranks(worker.group):
            if peer.asked_at is not None:
                self.clock.after(0.2, self._go, peer)

    def _lose_requests(self, leader: Worker, who: str) -> None:
        if not leader.requests:
            return
        lost = len(leader.requests)
        leader.requests.clear()
        ends = None if leader.asked_at is None else leader.asked_at + leader.drain_seconds
        self.history.add(self.clock.seconds, "traffic", f"{lost} requests end with {leader.identity[2]} ({who})")
        self.on_loss(leader, lost, who, ends)

    def _remove(self, worker: Worker) -> None:
        """The kubelet says that a pod has ended, then that it can go."""
        self._tell(worker.identity, worker.uid, _ended(self.server.timestamp(), 0, ""))
        self.sync(worker.identity, worker.uid)

    def _answered(self, leader: Worker, number: int) -> None:
        leader.requests.discard(number)
        if leader.asked_at is not None:
            self._go(leader)

    def _who_deleted(self, uid: str) -> str:
        """Whose deletion ends a pod the earliest; one that was done late is a fault of the network."""
        asked = self.server.deletions.get(uid, ())
        first = min(asked, key=lambda one: one.seconds + one.grace_seconds, default=None)
        if first is None or first.is_late:
            return "fault"
        return first.actor

    def _tell(self, identity: Identity, uid: str, status: Manifest) -> None:
        def edit(pod: Manifest) -> None:
            if pod["metadata"]["uid"] == uid:
                scheduled = [one for one in pod["status"].get("conditions") or () if one["type"] == "PodScheduled"]
                pod["status"] = {**status, "conditions": [*scheduled, *status.get("conditions", ())]}

        self.server.change(identity, "kubelet", edit)


def _running(time: str, *, is_ready: bool) -> Manifest:
    ready = {"type": "Ready", "status": str(is_ready), "lastTransitionTime": time}
    return {
        "phase": "Running",
        "conditions": [ready],
        "containerStatuses": [{"name": "worker", "state": {"running": {}}}],
    }


def _ended(time: str, exit_code: int, reason: str) -> Manifest:
    state = {"terminated": {"exitCode": exit_code, "reason": reason or "Completed", "finishedAt": time}}
    return {
        "phase": "Failed" if exit_code else "Succeeded",
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [{"name": "worker", "state": state}],
    }


def _ready(pod: Manifest) -> str:
    found = [one["status"] for one in pod["status"].get("conditions") or () if one["type"] == "Ready"]
    return found[0] if found else "False"
