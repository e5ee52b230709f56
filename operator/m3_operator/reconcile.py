"""The cycle of one object: snapshot, decide, act, tell.

Owns the order of things and what failure means: an API server that does not answer ends the cycle, to be tried again
after a growing pause; one that refuses becomes a condition with its words. Status is written last, once, and only if
it changed; events follow it, because they tell of what has happened. All state here is about pace: forgetting it
changes when something happens, never what.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from m3_operator import names
from m3_operator.decide import (
    DeploymentDecision,
    Images,
    Problem,
    RouterDecision,
    decide_deployment,
    decide_router,
)
from m3_operator.errors import NameTakenError, RefusedError, UnavailableError
from m3_operator.events import Happening, event
from m3_operator.observed import Key, Manifest, condition
from m3_operator.plan.actions import ApplyObject, CreatePods, DeletePods, ObjectAction, PodAction
from m3_operator.plan.recovery import FailureRecord, next_record
from m3_operator.render.router import keys_secret
from m3_operator.render.worker import group_pods
from m3_operator.status import deployment_status, router_status
from m3_operator.store import Store

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
_KEYS_INTERVAL: Final = timedelta(minutes=1)
_API_KEY_BYTES: Final = 32


class Writer(Protocol):
    """What a cycle needs of `cluster.Cluster`, which says what each method does and raises."""

    async def apply(self, manifest: Manifest, *, is_known: bool) -> dict[str, Any]: ...

    async def create(self, manifest: Manifest) -> dict[str, Any] | None: ...

    async def create_secret(self, manifest: Manifest) -> bool: ...

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str, grace_seconds: int | None = None
    ) -> dict[str, Any] | None: ...

    async def write_status(self, owner: Manifest, status: dict[str, Any]) -> dict[str, Any] | None: ...

    async def record(self, event: Manifest) -> None: ...


@dataclass
class _Pace:
    """How often an object's cycles failed in a row."""

    failures: int = 0

    def pause_seconds(self) -> float:
        """The next pause: doubling, bounded, and spread so that many objects do not come back at once."""
        self.failures += 1
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(self.failures - 1, 10), _LONGEST_PAUSE_SECONDS)
        return pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreading load, not a secret


class Reconciler:
    """Brings objects to what their specs ask for, one cycle at a time."""

    def __init__(
        self,
        writer: Writer,
        store: Store,
        images: Images,
        *,
        clock: Callable[[], datetime],
        wake: Callable[[Iterable[Key]], None],
    ) -> None:
        """`wake` is told whom a write concerns beside the object whose cycle made it."""
        self._writer = writer
        self._store = store
        self._images = images
        self._clock = clock
        self._wake = wake
        self._paces: dict[Key, _Pace] = {}
        self._keys_tried: dict[str, datetime] = {}  # by the router's uid: when a Secret was last offered

    async def cycle(self, key: Key) -> float | None:
        """One cycle; the answer is in how many seconds to look again, if nothing happens before."""
        try:
            problem, wake_at = await self._run(key)
        except UnavailableError as error:
            pause = self._paces.setdefault(key, _Pace()).pause_seconds()
            logger.warning("%s: %s; trying again in %.0f s", key, error, pause)
            return pause
        logger.debug("%s: cycle done", key)
        if problem is not None:
            return self._paces.setdefault(key, _Pace()).pause_seconds()
        self._paces.pop(key, None)
        return None if wake_at is None else (wake_at - self._clock()).total_seconds()

    async def _run(self, key: Key) -> tuple[Problem | None, datetime | None]:
        """What was refused, and when the plan wants to be asked again."""
        manifest = self._store.get(key)
        if manifest is None or manifest["metadata"].get("deletionTimestamp"):
            return None, None  # the garbage collector takes what it owned
        if key.kind == names.DEPLOYMENT_KIND:
            return await self._run_deployment(key)
        return await self._run_router(key)

    async def _run_deployment(self, key: Key) -> tuple[Problem | None, datetime | None]:
        snapshot = self._store.deployment_snapshot(key)
        if snapshot is None:
            return None, None
        decision = decide_deployment(snapshot, self._images, self._clock())
        happenings: list[Happening] = []
        refusal = await self._perform_objects(key, decision.objects, happenings)
        refusal = await self._perform_pods(decision, happenings) or refusal
        records = _updated_records(decision, self._clock())
        after = self._store.deployment_snapshot(key)
        if after is None:
            return refusal, None
        decision_after = decide_deployment(after, self._images, self._clock())
        problem = refusal or decision_after.problem
        status = deployment_status(after, decision_after, records, problem, self._clock())
        await self._tell(key, after.manifest, status, happenings)
        return refusal, decision_after.steps.wake_at

    async def _run_router(self, key: Key) -> tuple[Problem | None, datetime | None]:
        snapshot = self._store.router_snapshot(key)
        if snapshot is None:
            return None, None
        decision = decide_router(snapshot, self._images)
        happenings: list[Happening] = []
        refusal = await self._offer_keys(decision, happenings)
        refusal = await self._perform_objects(key, decision.objects, happenings) or refusal
        after = self._store.router_snapshot(key)
        if after is None:
            return refusal, None
        # What stands in the way does not change by our own writes; what runs does, and `after` has it.
        status = router_status(after, decision, refusal or decision.problem, self._clock())
        await self._tell(key, after.manifest, status, happenings)
        return refusal, None

    async def _perform_objects(
        self, owner: Key, actions: Sequence[ObjectAction], happenings: list[Happening]
    ) -> Problem | None:
        """One after the other, because pods read some of them; the first refusal ends it."""
        for action in actions:
            manifest = action.manifest
            kind, metadata = manifest["kind"], manifest["metadata"]
            try:
                if isinstance(action, ApplyObject):
                    is_known = self._store.knows(manifest)
                    self._remember(owner, kind, await self._writer.apply(manifest, is_known=is_known))
                else:
                    namespace, name = metadata["namespace"], metadata["name"]
                    left = await self._writer.delete(kind, namespace, name, uid=metadata["uid"])
                    self._remember(owner, kind, left)
            except (RefusedError, NameTakenError) as error:
                return _problem(kind, error)
            verb = "Applied" if isinstance(action, ApplyObject) else "Deleted"
            note = f"{verb} {kind} {metadata['name']}: {action.reason}"
            logger.info("%s: %s", owner, note)
            if isinstance(action, ApplyObject) and action.is_repair:
                happenings.append(Happening("Repaired", note, is_warning=True))
        return None

    async def _perform_pods(self, decision: DeploymentDecision, happenings: list[Happening]) -> Problem | None:
        """All groups at once: they do not wait for one another."""
        results = await asyncio.gather(
            *(self._perform_pod_action(decision, action) for action in decision.steps.actions), return_exceptions=True
        )
        refusal: Problem | None = None
        for action, result in zip(decision.steps.actions, results, strict=True):
            if isinstance(result, RefusedError | NameTakenError):
                refusal = refusal or _problem("Pod", result)
            elif isinstance(result, BaseException):
                raise result
            else:
                happenings.append(_happening(action))
        return refusal

    async def _perform_pod_action(self, decision: DeploymentDecision, action: PodAction) -> None:
        deployment = decision.deployment
        if deployment is None or decision.image is None or decision.revision is None:
            return
        if isinstance(action, CreatePods):
            pods = group_pods(deployment, action.group, decision.revision, image=decision.image)
            created = await asyncio.gather(*(self._writer.create(pods[rank]) for rank in action.ranks))
            for pod in created:
                if pod is not None:
                    self._store.put("Pod", pod)
            return
        namespace = deployment.metadata.namespace
        await asyncio.gather(*(self._delete_pod(namespace, pod.name, pod.uid, action) for pod in action.pods))

    async def _delete_pod(self, namespace: str, name: str, uid: str, action: DeletePods) -> None:
        left = await self._writer.delete("Pod", namespace, name, uid=uid, grace_seconds=action.grace_seconds)
        if left is not None:
            self._store.put("Pod", left)
        else:
            self._store.remove("Pod", {"metadata": {"namespace": namespace, "name": name, "uid": uid}})

    async def _offer_keys(self, decision: RouterDecision, happenings: list[Happening]) -> Problem | None:
        """Create the Secret with a random key, unless there is one. Not more often than once a minute."""
        if decision.router is None or not decision.needs_keys:
            return None
        owner, now = decision.router.metadata.uid, self._clock()
        tried = self._keys_tried.get(owner)
        if tried is not None and now - tried < _KEYS_INTERVAL:
            return None
        self._keys_tried[owner] = now
        manifest = keys_secret(decision.router, secrets.token_urlsafe(_API_KEY_BYTES))
        try:
            is_new = await self._writer.create_secret(manifest)
        except RefusedError as error:
            return _problem("Secret", error)
        if is_new:
            happenings.append(Happening("CreatedKey", f"Created Secret {manifest['metadata']['name']} with an API key"))
        return None

    def _remember(self, owner: Key, kind: str, manifest: Manifest | None) -> None:
        """Take in the answer to a write of this owner's cycle, and wake whom else it concerns."""
        if manifest is not None:
            self._wake(self._store.put(kind, manifest) - {owner})

    async def _tell(
        self, key: Key, manifest: Manifest, status: dict[str, Any], happenings: Sequence[Happening]
    ) -> None:
        """Write the status if it changed; then say what happened."""
        before = manifest.get("status", {})
        if status != before:
            written = await self._writer.write_status(manifest, status)
            if written is None:
                return
            self._remember(key, key.kind, written)
            if condition(manifest, "Ready").get("reason") != condition(written, "Ready").get("reason"):
                ready = condition(written, "Ready")
                happenings = [
                    *happenings,
                    Happening(ready["reason"], ready["message"] or ready["reason"], ready["status"] != "True"),
                ]
        for happening in happenings:
            logger.info("%s: %s", key, happening.note)
            try:
                await self._writer.record(event(manifest, happening, self._clock()))
            except (RefusedError, UnavailableError) as error:
                # Events are for people to read and are lost without harm; what they tell of has happened.
                logger.warning("%s: event not recorded: %s", key, error)


def _updated_records(decision: DeploymentDecision, now: datetime) -> dict[int, FailureRecord]:
    """The memory of failures after this cycle's replacements."""
    records = dict(decision.records)
    for action in decision.steps.actions:
        if isinstance(action, DeletePods) and action.counts_as_restart:
            records[action.group] = next_record(
                records.get(action.group, FailureRecord()), action.reason, now.replace(microsecond=0)
            )
    return records


def _happening(action: PodAction) -> Happening:
    if isinstance(action, CreatePods):
        return Happening("CreatedGroup", f"Created group {action.group}: {action.reason}")
    who = ", ".join(pod.name for pod in action.pods[:4])
    return Happening("DeletedPods", f"Deleted {who}: {action.reason}", action.counts_as_restart)


def _problem(kind: str, error: RefusedError | NameTakenError) -> Problem:
    """The reason of a refusal. Rights that lack are the operator's trouble, anything else the template's."""
    if isinstance(error, NameTakenError):
        return Problem("NameTaken", str(error))
    lacks_rights = error.status in (401, 403) and "cannot" in str(error) and "in the namespace" in str(error)
    reason = "PermissionMissing" if lacks_rights else "TemplateRefused"
    return Problem(reason, f"{kind}: {error}")
