"""What must hold at every step, judged by what really is (the server's objects, the fleet's processes).

Written against meaning: a group is a set of pods with one group label, it counts as taken down when somebody deletes a
pod of it while it really serves, and what is allowed is a function of the spec that the cycle in question saw. What the
faults did is never counted against the operator, and `standing` says what of it could be known.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m3_operator import names
from m3_operator.observed import Key, condition, owner_uid, parse_time
from m3_operator.store import Store
from m3_simulation.allowances import max_surge, max_unavailable, wanted_groups
from m3_simulation.api_server import ApiServer, Manifest
from m3_simulation.fleet import Fleet, GroupKey, Worker
from m3_simulation.history import BrokenRuleError, History
from m3_simulation.standing import Standing
from m3_simulation.virtual_time import Clock
from m3_simulation.wire import Request

OWN = "only own objects are touched"
BUDGET = "never more groups taken down than allowed"
SURGE = "never more groups than wanted and allowed"
REVISIONS = "no group mixes revisions"
DRAIN = "no request is cut while its drain time lasts"
REDUNDANT = "nothing is written that is known to be there"
CONDITIONS = "conditions are well-formed"
HONEST = "Ready only while every wanted group serves"
DEFECT = "no cycle has a defect"
BACKOFF = "a group that keeps failing is replaced ever more slowly"
EVERY_STEP = (OWN, BUDGET, SURGE, REVISIONS, DRAIN, REDUNDANT, CONDITIONS, HONEST, DEFECT, BACKOFF)
_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_UNSURE_SECONDS = 120.0  # in which an operator finds out, and repairs
_WINDOW_SECONDS = 1200.0  # in which failures of one group and revision count
_FAILURES = 4  # from which on a group has to wait: each write that is lost may lose the memory of one
_WAIT_SECONDS = 9.0
_NODE_LOST_SECONDS = 60  # the default of the spec


@dataclass(frozen=True)
class Cycle:
    """One cycle of one process: which object, and what it saw when it began."""

    process: str
    key: Key
    manifest: Manifest | None
    seen_uids: frozenset[str]  # of the object and of what it owns
    started: float
    store: Store
    told: Mapping[str, tuple[int, float]]  # by uid: the newest version that its process was shown, and when
    known: Mapping[str, int]  # the same as it was when the cycle began
    skew_seconds: float  # by which the clock of its process is wrong

    @property
    def owner(self) -> str:
        """The uid of its object."""
        return str(self.manifest["metadata"]["uid"]) if self.manifest else ""

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec it works by."""
        return dict(self.manifest["spec"]) if self.manifest else {}


@dataclass
class Rules:
    """Judges every write of the operator, and every request that is cut."""

    server: ApiServer
    clock: Clock
    history: History
    standing: Standing
    fleet: Fleet | None = None  # set once both are there
    broken: BrokenRuleError | None = None
    taken_down: Counter[str] = field(default_factory=Counter)  # by owner: groups, not yet replaced
    late_owners: dict[str, float] = field(default_factory=dict)  # by owner: when a write of it was done late
    several_until: float = 0.0  # when it is sure again that one process works alone
    _given_up: set[str] = field(default_factory=set)  # uids of pods that were taken by force from a node believed lost
    _hasty: dict[tuple[GroupKey, str], float] = field(default_factory=dict)  # when one was replaced at once
    _failures: dict[tuple[GroupKey, str], list[float]] = field(default_factory=dict)  # by group and revision: when

    def report(self, broken: BrokenRuleError) -> None:
        """A rule is broken; the first one counts."""
        if self.broken is None:
            self.broken = broken
            self.history.add(self.clock.seconds, "RULE", str(broken))

    def require(self, rule: str, *, holds: bool, message: str) -> None:
        """A rule that holds here, or is broken."""
        self.history.checks[rule] += 1
        if not holds:
            self.report(BrokenRuleError(rule, message))

    def before_write(self, cycle: Cycle, request: Request) -> None:
        """Judge one write by what it is about to do."""
        name = request.name or request.body["metadata"]["name"]
        found = self.server.objects.get((request.kind, request.namespace, name))
        if request.method == "POST" and request.kind == "Pod" and found is None:
            self._judge_creation(cycle, request)
        if found is None:
            return
        uid = found["metadata"]["uid"]
        told = f"{cycle.process} for {cycle.key}: {request} (uid {uid}, owner {owner_uid(found) or 'nobody'})"
        if request.method == "DELETE":
            # One that the server refuses, because the object is not as it was seen, does nothing.
            preconditions = request.body.get("preconditions") or {}
            if all(found["metadata"][name] == seen for name, seen in preconditions.items()):
                self.require(OWN, holds=uid in cycle.seen_uids, message=told)
                self._judge_deletion(cycle, request, found)
        elif request.method == "PATCH" and request.subresource != "status":
            if request.body["metadata"].get("uid", uid) != uid:
                return  # the server refuses it: this is not the object that was seen
            self.require(OWN, holds=_belongs_to(found, cycle), message=told)
        elif request.subresource == "status":
            self.require(OWN, holds=(request.kind, request.namespace, name) == _of(cycle.key), message=told)

    def after_write(
        self,
        cycle: Cycle,
        request: Request,
        before: Manifest | None,
        after: Manifest | None,
        told: Mapping[str, tuple[int, float]],
    ) -> None:
        """Judge one write by what it did: nothing, although the process knew what was there when its cycle began?"""
        if before is None or before is not after or request.method == "POST":
            return
        if request.body.get("preconditions", {}).get("uid") not in (None, before["metadata"]["uid"]):
            return
        version, at = told.get(before["metadata"]["uid"], (0, 0.0))
        knew = version >= int(before["metadata"]["resourceVersion"]) and at < cycle.started
        self.require(REDUNDANT, holds=not knew, message=f"{cycle.process} for {cycle.key}: {request} changed nothing")

    def judge_status(self, store: Store, owner: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Judge a status at the moment at which it was built, by what the process knew then."""
        generation, name = owner["metadata"].get("generation", 0), owner["metadata"]["name"]
        types = Counter(one["type"] for one in status["conditions"])
        for one in status["conditions"]:
            is_well_formed = (
                types[one["type"]] == 1
                and one["status"] in ("True", "False", "Unknown")
                and one["observedGeneration"] == status["observedGeneration"] == generation
                and _REASON.fullmatch(one["reason"]) is not None
                and bool(one["message"])
                and (one["lastTransitionTime"] == condition(owner, one["type"]).get("lastTransitionTime"))
                == (one["status"] == condition(owner, one["type"]).get("status"))
            )
            is_same_second = one["status"] != condition(owner, one["type"]).get("status")
            self.require(CONDITIONS, holds=is_well_formed or is_same_second, message=f"{owner['kind']} {name}: {one}")
        ready = next(one for one in status["conditions"] if one["type"] == "Ready")
        if owner["kind"] != names.DEPLOYMENT_KIND or ready["status"] != "True":
            return
        snapshot = store.deployment_snapshot(Key(owner["kind"], owner["metadata"]["namespace"], name))
        groups: dict[int, list[Any]] = {}
        for pod in snapshot.pods if snapshot else ():
            groups.setdefault(pod.group, []).append(pod)
        serving = sum(
            {pod.rank for pod in pods} == set(range(pods[0].nodes))
            and all(pod.is_ready and pod.deletion_at is None and pod.phase == "Running" for pod in pods)
            for pods in groups.values()
        )
        wanted = wanted_groups(owner["spec"])
        self.require(
            HONEST, holds=serving >= wanted > 0, message=f"{name}: {serving} of {wanted} groups serve: {ready}"
        )

    def on_loss(self, leader: Worker, lost: int, who: str, drain_ends: float | None) -> None:
        """Requests were cut."""
        is_operator = who.startswith("operator")
        is_over = drain_ends is not None and self.clock.seconds >= drain_ends - 1.0
        message = f"{lost} requests of {leader.identity[2]} were cut by a deletion of {who}"
        is_given_up = leader.uid in self._given_up
        self.require(DRAIN, holds=not is_operator or is_over or is_given_up, message=message)

    def on_late(self, request: Request) -> None:
        """A request of the operator is done that it had given up: what it meets is nobody's fault."""
        for reference in request.body.get("metadata", {}).get("ownerReferences") or ():
            self.late_owners[reference["uid"]] = self.clock.seconds + _UNSURE_SECONDS

    def on_crash(self, worker: Worker) -> None:
        """A process ends by itself. What ends after the first of its world is of the same failure."""
        if self.standing.is_whole(worker.uid):
            self._failures.setdefault((worker.group, worker.revision), []).append(self.clock.seconds)

    def on_serving(self, group: GroupKey, _: str) -> None:
        """A group serves: one that was taken down has its replacement."""
        self.taken_down[group[0]] = max(0, self.taken_down[group[0]] - 1)

    def _is_lost(self, cycle: Cycle, name: str | None) -> bool:
        """Whether the process was told, long enough ago, that this node is not ready, and not told otherwise since."""
        snapshot = cycle.store.deployment_snapshot(cycle.key)
        node = snapshot.nodes.get(name) if snapshot is not None and name is not None else None
        now = parse_time(self.server.timestamp())
        if node is None or node.is_ready or node.since is None or now is None:
            return False
        patience = (cycle.spec.get("recovery") or {}).get("nodeLostSeconds", _NODE_LOST_SECONDS)
        return bool((now - node.since).total_seconds() + cycle.skew_seconds >= patience - 1.0)

    def _judge_deletion(self, cycle: Cycle, request: Request, found: Manifest) -> None:
        if request.kind != "Pod" or self.fleet is None:
            return
        if request.body.get("gracePeriodSeconds") == 0 and self._is_lost(cycle, found["spec"].get("nodeName")):
            self._given_up.add(found["metadata"]["uid"])
        owner, group = owner_uid(found), found["metadata"]["labels"][names.GROUP_LABEL]
        serving = self.fleet.serving(owner)
        if (owner, group) not in serving:
            return
        wanted = wanted_groups(cycle.spec)
        if len(self.standing.groups_as_known(owner, cycle.known)) > wanted:
            return  # one too many
        down = min(self.taken_down[owner], max(0, wanted - len(serving)))
        allowed = max_unavailable(cycle.spec)
        self.taken_down[owner] = down + 1
        message = f"{cycle.key}: {request} takes group {group} down; {down} are down already, {allowed} may be"
        self.require(BUDGET, holds=down + 1 <= allowed, message=message)

    def _judge_creation(self, cycle: Cycle, request: Request) -> None:
        labels, owner = request.body["metadata"]["labels"], owner_uid(request.body)
        group = labels[names.GROUP_LABEL]
        peers = [pod for pod in self.standing.pods(owner) if pod["metadata"]["labels"][names.GROUP_LABEL] == group]
        known = [pod for pod in peers if pod["metadata"]["uid"] in cycle.told]  # of others it could not know
        revisions = {pod["metadata"]["labels"][names.REVISION_LABEL] for pod in known}
        is_excused = self.clock.seconds < max(self.several_until, self.late_owners.get(owner, 0.0))
        message = f"{cycle.key}: {request} of revision {labels[names.REVISION_LABEL]} joins {sorted(revisions)}"
        self.require(REVISIONS, holds=is_excused or revisions <= {labels[names.REVISION_LABEL]}, message=message)
        groups = self.standing.groups(owner) | {group}
        most = wanted_groups(cycle.spec) + max_surge(cycle.spec)
        message = f"{cycle.key}: {request} makes {len(groups)} groups ({', '.join(sorted(groups))}), {most} may be"
        self.require(SURGE, holds=is_excused or len(groups) <= most, message=message)
        self._judge_pace(cycle, request, (owner, group), labels[names.REVISION_LABEL])

    def _judge_pace(self, cycle: Cycle, request: Request, group: GroupKey, revision: str) -> None:
        failures = self._failures.get((group, revision), [])
        recent = [at for at in failures if at > self.clock.seconds - _WINDOW_SECONDS]
        if len(recent) < _FAILURES or cycle.skew_seconds or self._somebody_deleted(recent[-1]):
            return
        waited = self.clock.seconds - recent[-1]
        message = f"{cycle.key}: {request} comes {waited:.1f} s after failure {len(recent)} in {_WINDOW_SECONDS:.0f} s"
        if waited >= _WAIT_SECONDS:
            self.history.checks[BACKOFF] += 1
            return
        # One may come at once: the first of a new window.
        before, self._hasty[group, revision] = self._hasty.get((group, revision), -math.inf), self.clock.seconds
        self.require(BACKOFF, holds=before < self.clock.seconds - _WINDOW_SECONDS, message=message)

    def _somebody_deleted(self, since: float) -> bool:
        """Whether a pod was deleted by others: what is made in its place has no reason to wait."""
        return any(
            one.seconds >= since and not one.actor.startswith(("operator", "kubelet"))
            for deletions in self.server.deletions.values()
            for one in deletions
        )


def _belongs_to(found: Manifest, cycle: Cycle) -> bool:
    """Whether an object is its owner's; what an earlier owner of the same name left behind may be taken over."""
    for reference in found["metadata"].get("ownerReferences") or ():
        if (reference["kind"], reference["name"]) == (cycle.key.kind, cycle.key.name):
            return True
    return False


def _of(key: Key) -> tuple[str, str, str]:
    return key.kind, key.namespace, key.name
