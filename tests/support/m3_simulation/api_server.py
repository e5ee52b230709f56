"""The model's API server: objects with uid, resource version and generation, and what each verb means for them.

Owns all objects. Every change goes through one door, `_commit`, which numbers it, writes it into the history and tells
whoever watches. Objects are never changed in place, so what was given out stays as it was.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

from m3_operator import names
from m3_operator.observed import parse_time
from m3_operator.resources import RESOURCES
from m3_simulation.history import History
from m3_simulation.server_side_apply import copied, merged
from m3_simulation.virtual_time import Clock

Manifest = dict[str, Any]
Identity = tuple[str, str, str]  # kind, namespace, name
Watcher = Callable[[str, str, Manifest, Manifest | None], None]  # type, kind, object, what it was before
_REQUIREMENT = re.compile(r"([^,=\s]+)(?:=([^,]*)| in \(([^)]*)\))")
_COUNTED_GENERATIONS = (names.DEPLOYMENT_KIND, names.ROUTER_KIND, names.TENANT_KIND, "Deployment")


class ApiStatusError(Exception):
    """A refusal of the API server."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Deletion:
    """Somebody asked for a pod to go."""

    seconds: float
    actor: str
    grace_seconds: float
    is_late: bool = False  # the request was given up by who made it, long before it was done


@dataclass
class ApiServer:
    """All objects of the cluster."""

    clock: Clock
    history: History
    random: Random
    objects: dict[Identity, Manifest] = field(default_factory=dict)
    uids: set[str] = field(default_factory=set)
    deletions: dict[str, list[Deletion]] = field(default_factory=dict)  # by uid of a pod
    watchers: list[Watcher] = field(default_factory=list)
    version: int = 1000
    gone: dict[str, list[Manifest]] = field(default_factory=dict)  # by kind: the last form of what was deleted
    _applied: dict[str, Manifest] = field(default_factory=dict)  # by uid: what our manager applied last

    def get(self, kind: str, namespace: str, name: str) -> Manifest:
        """One object. Raises ApiStatusError 404."""
        found = self.objects.get((kind, namespace, name))
        if found is None:
            raise ApiStatusError(404, f'{RESOURCES[kind].plural} "{name}" not found')
        return found

    def of_kind(self, kind: str, namespace: str | None = None, selector: str = "") -> list[Manifest]:
        """The objects of a kind that a label selector picks."""
        return [
            found
            for (kind_, namespace_, _), found in list(self.objects.items())
            if kind_ == kind and namespace in (None, namespace_) and matches(found, selector)
        ]

    def create(self, manifest: Mapping[str, Any], actor: str, *, is_dry_run: bool = False) -> Manifest:
        """A new object. Raises ApiStatusError 409 if its name is taken."""
        identity = identity_of(manifest)
        if identity in self.objects:
            raise ApiStatusError(409, f'{RESOURCES[identity[0]].plural} "{identity[2]}" already exists')
        new = _with_defaults(copied(manifest))
        if is_dry_run:
            return new
        new["metadata"] |= {"uid": self._new_uid(), "creationTimestamp": self.timestamp()}
        if identity[0] in _COUNTED_GENERATIONS:
            new["metadata"]["generation"] = 1
        if identity[0] == "Pod":
            new["status"] = {"phase": "Pending"}
        return self._commit("ADDED", new, None, actor)

    def apply(self, manifest: Mapping[str, Any], actor: str) -> Manifest:
        """Server-side apply by the operator's manager, forced. Raises ApiStatusError 409 for another uid."""
        identity = identity_of(manifest)
        wanted = {key: value for key, value in copied(manifest).items() if key != "status"}
        expected = wanted["metadata"].pop("uid", None)
        old = self.objects.get(identity)
        if expected is not None and (old is None or old["metadata"]["uid"] != expected):
            raise ApiStatusError(409, f"uid mismatch: the provided object specified uid {expected}")
        if old is None:
            new = self.create(wanted, actor)
        else:
            new = self._replace(old, merged(old, self._applied.get(old["metadata"]["uid"], {}), wanted), actor)
        self._applied[new["metadata"]["uid"]] = wanted
        return new

    def apply_status(self, manifest: Mapping[str, Any], actor: str) -> Manifest:
        """Server-side apply of the status alone. Raises ApiStatusError 404, and 409 for another uid."""
        old = self.get(*identity_of(manifest))
        if manifest["metadata"].get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise ApiStatusError(409, "uid mismatch")
        return self._replace(old, {**old, "status": copied(manifest["status"])}, actor)

    def open_gates(self, identity: Identity, patch: Mapping[str, Any], actor: str) -> Manifest:
        """The one strategic merge patch there is: gates are taken from a pod, and labels or annotations noted."""
        old = self.get(*identity)
        if patch["metadata"].get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
            raise ApiStatusError(409, "uid mismatch")
        removed = {gate["name"] for gate in patch["spec"]["schedulingGates"]}
        new = copied(old)
        for field_ in ("labels", "annotations"):
            new["metadata"][field_] = {**new["metadata"].get(field_, {}), **patch["metadata"].get(field_, {})}
        new["spec"]["schedulingGates"] = [one for one in gates_of(old) if one["name"] not in removed]
        return self._replace(old, new, actor)

    def change(self, identity: Identity, actor: str, edit: Callable[[Manifest], object]) -> Manifest | None:
        """A controller, a kubelet or a person changes an object; None if it is gone."""
        old = self.objects.get(identity)
        if old is None:
            return None
        new = copied(old)
        edit(new)
        return self._replace(old, new, actor)

    def delete(
        self,
        identity: Identity,
        actor: str,
        *,
        preconditions: Mapping[str, str] | None = None,
        grace: int | None = None,
        is_late: bool = False,
    ) -> Manifest | None:
        """Delete an object; what is left of it, if it goes later. Raises ApiStatusError 404, 409."""
        old = self.get(*identity)
        for name, seen in (preconditions or {}).items():
            if seen != old["metadata"][name]:
                raise ApiStatusError(409, f"Precondition failed: {name}: {seen} is not {old['metadata'][name]}")
        if identity[0] == "Pod":
            seconds = _grace_seconds(old, grace)
            given = Deletion(self.clock.seconds, actor, seconds, is_late)
            self.deletions.setdefault(old["metadata"]["uid"], []).append(given)
            if seconds > 0:
                return self._mark(old, seconds, actor)
        self._commit("DELETED", old, old, actor)
        return None

    def timestamp(self) -> str:
        """The time as the server writes it."""
        return self.clock.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _mark(self, old: Manifest, seconds: float, actor: str) -> Manifest:
        """A pod that goes after its grace; a second deletion only ever brings its end nearer."""
        ends = (self.clock.now + timedelta(seconds=seconds)).replace(microsecond=0)
        known = parse_time(old["metadata"].get("deletionTimestamp"))
        if known is not None and known <= ends:
            return old
        mark = {"deletionTimestamp": ends.strftime("%Y-%m-%dT%H:%M:%SZ"), "deletionGracePeriodSeconds": seconds}
        return self._replace(old, {**old, "metadata": {**old["metadata"], **mark}}, actor)

    def _replace(self, old: Manifest, new: Manifest, actor: str) -> Manifest:
        """The new form of an object; nothing happens if it is the old one."""
        if new == old:
            return old
        if new["kind"] in _COUNTED_GENERATIONS and new.get("spec") != old.get("spec"):
            new = {**new, "metadata": {**new["metadata"], "generation": old["metadata"]["generation"] + 1}}
        return self._commit("MODIFIED", new, old, actor)

    def _commit(self, event: str, new: Manifest, old: Manifest | None, actor: str) -> Manifest:
        self.version += 1
        self.history.steps += 1
        new = {**new, "metadata": {**new["metadata"], "resourceVersion": str(self.version)}}
        identity, uid = identity_of(new), new["metadata"]["uid"]
        if event == "DELETED":
            del self.objects[identity]
            self.gone.setdefault(identity[0], []).append(new)
            self.uids.discard(uid)
            self._applied.pop(uid, None)
        else:
            self.objects[identity] = new
            self.uids.add(uid)
        self.history.add(
            self.clock.seconds, actor, f"{event.lower()} {identity[0]} {identity[2]}{_told(new, old, event)}"
        )
        for watcher in list(self.watchers):
            watcher(event, identity[0], new, old)
        return new

    def _new_uid(self) -> str:
        return f"{self.random.getrandbits(48):012x}"


def identity_of(manifest: Mapping[str, Any]) -> Identity:
    """Kind, namespace and name."""
    return manifest["kind"], manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]


def matches(manifest: Mapping[str, Any], selector: str) -> bool:
    """Whether a label selector picks an object: `a=b` and `c in (d,e)`, joined by commas."""
    labels = manifest["metadata"].get("labels") or {}
    for key, one, several in _REQUIREMENT.findall(selector):
        if labels.get(key) not in (several.split(",") if several else [one]):
            return False
    return True


def gates_of(pod: Manifest) -> list[dict[str, str]]:
    """What keeps the scheduler from a pod."""
    return list(pod["spec"].get("schedulingGates") or ())


def _grace_seconds(pod: Manifest, asked: int | None) -> float:
    """A pod without a node, or whose processes have ended, has nothing to wait for."""
    if not pod["spec"].get("nodeName") or pod["status"].get("phase") in ("Failed", "Succeeded"):
        return 0
    return float(pod["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked)


def _with_defaults(manifest: Manifest) -> Manifest:
    """What the real server adds, as far as a careless comparison would stumble over it."""
    if manifest["kind"] == "Service":
        spec = manifest["spec"]
        spec.setdefault("clusterIP", "10.0.0.1")
        spec |= {"sessionAffinity": "None", "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster"}
    if manifest["kind"] == "Deployment":
        spec = manifest["spec"]
        spec |= {"progressDeadlineSeconds": 600, "revisionHistoryLimit": 10}
        spec["template"]["spec"].setdefault("dnsPolicy", "ClusterFirst")
    return manifest


def _told(new: Manifest, old: Manifest | None, event: str) -> str:
    """What a reader of the history wants to know of a change."""
    if event != "MODIFIED" or old is None:
        revision = (new["metadata"].get("labels") or {}).get(names.REVISION_LABEL)
        return f" (uid {new['metadata']['uid']}{f', revision {revision}' if revision else ''})"
    words = []
    if new["metadata"].get("deletionTimestamp") != old["metadata"].get("deletionTimestamp"):
        words.append(f"goes until {new['metadata']['deletionTimestamp'][11:19]}")
    if new.get("spec") != old.get("spec"):
        words += [
            f"spec.{key}={new['spec'].get(key)!r:.80}"
            for key in sorted({*new.get("spec", {}), *old.get("spec", {})})
            if new["spec"].get(key) != old["spec"].get(key)
        ]
    status, before = new.get("status", {}), old.get("status", {})
    if status.get("phase") != before.get("phase"):
        words.append(f"phase {status.get('phase')}")
    ready = [one for one in status.get("conditions") or () if one["type"] in ("Ready", "PodScheduled")]
    words += [
        f"{one['type']}={one['status']} {one.get('reason', '')} {one.get('message', '')}".rstrip()[:140]
        for one in ready
        if one not in (before.get("conditions") or ())
    ]
    return f": {', '.join(words)}" if words else ""
