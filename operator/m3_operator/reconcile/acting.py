"""Carrying out what was decided: objects one after the other, pods of all groups at once.

What the API server answers goes into the store at once, so that the next look sees it before the watch does. What it
refuses becomes a `Problem`; when it does not answer, UnavailableError ends the cycle. A pod that is not as it was seen
is left as it is, and concerns no other group.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from m3_operator.decide.problem import Problem
from m3_operator.errors import ChangedError, NameTakenError, RefusedError
from m3_operator.events import Happening
from m3_operator.observed import Key, Manifest, ObservedPod, uid
from m3_operator.plan.actions import ApplyObject, CreateObject, CreatePods, DeletePods, ObjectAction, PodAction
from m3_operator.plan.gates import OpenGates
from m3_operator.reconcile.writer import Writer
from m3_operator.render.revisions import Template
from m3_operator.render.worker import group_pods
from m3_operator.resources import table_kind
from m3_operator.store import Store

logger = logging.getLogger(__name__)


@dataclass
class Deeds:
    """What came of the actions of one cycle, also of one that ends by an error."""

    done: list[PodAction] = field(default_factory=list)
    begun: list[PodAction] = field(default_factory=list)  # some of the pods were deleted, not all
    changed: ChangedError | None = None  # a pod was not as it was seen: what was decided for it wants another look


class Actor:
    """Performs the actions of one object's cycle."""

    def __init__(self, writer: Writer, store: Store, wake: Callable[[Iterable[Key]], None]) -> None:
        self._writer = writer
        self._store = store
        self._wake = wake

    async def change_objects(
        self, owner: Key, actions: Sequence[ObjectAction], happenings: list[Happening]
    ) -> Problem | None:
        """One after the other, because pods read some of them; the first refusal ends it."""
        for action in actions:
            manifest = action.manifest
            kind, metadata = table_kind(manifest), manifest["metadata"]
            try:
                if isinstance(action, ApplyObject):
                    seen = self._store.uid_of(manifest)
                    self.remember(owner, kind, await self._writer.apply(manifest, uid=seen))
                elif isinstance(action, CreateObject):
                    self.remember(owner, kind, await self._writer.create(manifest))
                else:
                    namespace, name = metadata["namespace"], metadata["name"]
                    left = await self._writer.delete(kind, namespace, name, uid=metadata["uid"])
                    self.remember(owner, kind, left)
            except (RefusedError, NameTakenError) as error:
                return problem_of(kind, error)
            verb = {ApplyObject: "Applied", CreateObject: "Created"}.get(type(action), "Deleted")
            note = f"{verb} {kind} {metadata['name']}: {action.reason}"
            logger.info("%s: %s", owner, note)
            if isinstance(action, ApplyObject) and action.is_repair:
                happenings.append(Happening("Repaired", note, is_warning=True))
        return None

    async def change_pods(
        self,
        owner: Key,
        templates: Mapping[str, Template],
        actions: Sequence[PodAction],
        happenings: list[Happening],
        deeds: Deeds,
    ) -> Problem | None:
        """All groups at once: they do not wait for one another. `deeds` is told what was done, and what had changed."""
        results = await asyncio.gather(
            *(self._change_group(owner, templates, action, deeds) for action in actions), return_exceptions=True
        )
        refusal: Problem | None = None
        for action, result in zip(actions, results, strict=True):
            if isinstance(result, RefusedError | NameTakenError):
                refusal = refusal or problem_of("Pod", result)
            elif isinstance(result, ChangedError):
                deeds.changed = result
            elif isinstance(result, BaseException):
                raise result
            else:
                happenings.append(_happening(action))
        return refusal

    async def open_gates(self, owner: Key, opening: OpenGates, at: str, happenings: list[Happening]) -> Problem | None:
        """Let one group to the scheduler, all its pods at once; what is left of a half opened one is next in turn."""
        patches = (self._writer.open_gate(owner.namespace, pod.name, uid=pod.uid, at=at) for pod in opening.pods)
        answers = await asyncio.gather(*patches, return_exceptions=True)
        for answer in answers:  # first what was done: it is not to be done again, whatever became of the others
            if not isinstance(answer, BaseException):
                self.remember(owner, "Pod", answer)
        for answer in answers:
            if isinstance(answer, RefusedError):
                return problem_of("Pod", answer)
            if isinstance(answer, BaseException):
                raise answer
        happenings.append(Happening("OpenedGroup", f"Let group {opening.group} to the scheduler: {opening.reason}"))
        return None

    def remember(self, owner: Key, kind: str, manifest: Manifest | None) -> None:
        """Take in the answer to a write of this owner's cycle, and wake whom else it concerns.

        The owner itself is woken when the answer to its status shows a spec that this cycle has not seen: the event of
        that change is older than the answer by then, and will be passed over.
        """
        if manifest is None:
            return
        before = self._store.get(owner) if kind == owner.kind else None
        concerned = self._store.put(kind, manifest)
        is_news = before is not None and uid(before) == uid(manifest) and _generation(before) != _generation(manifest)
        if not is_news:
            concerned -= {owner}
        self._wake(concerned)

    async def _change_group(
        self, owner: Key, templates: Mapping[str, Template], action: PodAction, deeds: Deeds
    ) -> None:
        if isinstance(action, DeletePods):
            await self._delete_pods(owner.namespace, action, deeds)
        else:
            template = templates[action.revision]
            pods = group_pods(
                template.deployment,
                action.group,
                action.revision,
                image=template.image,
                avoid=action.avoid_nodes,
                gang=template.gang,
                fetch_image=template.fetch_image,
            )
            creations = (self._writer.create(pods[rank]) for rank in action.ranks)
            answers = await asyncio.gather(*creations, return_exceptions=True)
            for answer in answers:
                if answer is not None and not isinstance(answer, BaseException):
                    self._store.put("Pod", answer)
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer
        deeds.done.append(action)

    async def _delete_pods(self, namespace: str, action: DeletePods, deeds: Deeds) -> None:
        """Rank 0 first: if it is not as it was seen, the group may serve by now, and none of it is touched."""
        leaders, peers = [[pod for pod in action.pods if (pod.rank == 0) is is_leader] for is_leader in (True, False)]
        deleted = 0
        for ranks in (leaders, peers):
            deletions = (self._delete_pod(namespace, pod, action.grace_seconds) for pod in ranks)
            failures = [answer for answer in await asyncio.gather(*deletions, return_exceptions=True) if answer]
            deleted += len(ranks) - len(failures)
            if failures:
                if deleted:
                    deeds.begun.append(action)
                raise next((one for one in failures if not isinstance(one, ChangedError)), failures[0])

    async def _delete_pod(self, namespace: str, pod: ObservedPod, grace_seconds: int | None) -> None:
        """Delete a pod as it was seen: what made it worth deleting may be over, and its event on the way.

        By force as well: a pod that has changed lately is on a node that answers again.
        """
        name, uid = pod.name, pod.uid
        try:
            left = await self._writer.delete(
                "Pod", namespace, name, uid=uid, version=pod.version, grace_seconds=grace_seconds
            )
        except ChangedError as error:
            self._wake(self._store.put("Pod", error.found))
            raise
        if left is not None:
            self._store.put("Pod", left)
        else:
            # Its event will tell the store nothing new, and so wake nobody: what takes its place is ours to see to.
            self._wake(self._store.remove("Pod", {"metadata": {"namespace": namespace, "name": name, "uid": uid}}))


def problem_of(kind: str, error: RefusedError | NameTakenError) -> Problem:
    """The reason of a refusal. Rights that lack are the operator's trouble, anything else the template's."""
    if isinstance(error, NameTakenError):
        return Problem("NameTaken", str(error))
    if "exceeded quota" in str(error):
        return Problem("QuotaExceeded", f"{kind}: {error}; raise the quota, or ask for fewer groups")
    lacks_rights = error.status in (401, 403) and "cannot" in str(error) and "in the namespace" in str(error)
    return Problem("PermissionMissing" if lacks_rights else "TemplateRefused", f"{kind}: {error}")


def _generation(manifest: Manifest) -> int:
    return int(manifest["metadata"].get("generation", 0))


def _happening(action: PodAction) -> Happening:
    if isinstance(action, CreatePods):
        return Happening("CreatedGroup", f"Created group {action.group}: {action.reason}")
    who = ", ".join(pod.name for pod in action.pods[:4])
    return Happening("DeletedPods", f"Deleted {who}: {action.reason}", action.counts_as_restart)
