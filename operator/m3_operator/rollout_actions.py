"""What the commands of `m3 rollout` do: read one M3Deployment and its revisions, and change its spec.

The operator rolls out; these only ask it to. Changes are merge patches under a field manager of their own, and fail if
somebody else changed the object meanwhile. Everything printed about the state is what the operator says of it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from m3_operator import names
from m3_operator.api import SpecError, parse_deployment
from m3_operator.cluster import Cluster
from m3_operator.errors import ConflictError, NotFoundError, OperatorError
from m3_operator.kubeconfig import connect
from m3_operator.observed import Manifest, condition
from m3_operator.render.revisions import number_of, revision_data, revision_of
from m3_operator.render.worker import revision_spec

_POLL_SECONDS: Final = 2.0
_MOVING: Final = ("RollingOut", "Scaling", "Recovering", "Paused")


class RolloutError(OperatorError):
    """The rollout failed, or cannot be changed so. The message is one line for people."""


class Objects(Protocol):
    """What the commands need of `cluster.Cluster`."""

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]: ...

    async def list(self, kind: str, namespace: str | None, selector: str = "") -> list[dict[str, Any]]: ...

    async def merge(self, kind: str, namespace: str, name: str, patch: Manifest, *, manager: str) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Standing:
    """Where the rollout of the revision that the spec asks for stands."""

    line: str
    is_done: bool = False
    is_failed: bool = False


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The rollout of one M3Deployment."""

    objects: Objects
    namespace: str
    name: str
    say: Callable[[str], None]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic

    async def wait(self, *, timeout_seconds: float = 0.0) -> None:
        """Say how far it is until it is done. Raises RolloutError if it failed, or not in time (0: no limit)."""
        until, said = self.clock() + timeout_seconds, ""
        while True:
            standing = standing_of(await self._get())
            if standing.is_failed:
                raise RolloutError(standing.line)
            if standing.line != said:
                self.say(standing.line)
                said = standing.line
            if standing.is_done:
                return
            if timeout_seconds and self.clock() >= until:
                raise RolloutError(f"not done after {timeout_seconds:g} s: {standing.line}")
            await self.sleep(_POLL_SECONDS)

    async def history(self) -> None:
        """Print the kept revisions, the oldest first."""
        deployment = await self._get()
        status = deployment.get("status", {})
        self.say(f"{'NUMBER':<8}{'REVISION':<13}{'CREATED':<22}{'STATE':<20}IMAGE")
        for found in await self._revisions():
            revision, created = revision_of(found), found["metadata"].get("creationTimestamp", "")
            states = [word for word in ("current", "update") if status.get(f"{word}Revision") == revision]
            state = ",".join(states)
            self.say(f"{number_of(found):<8}{revision:<13}{created:<22}{state:<20}{revision_data(found)[1]}".rstrip())

    async def undo(self, number: int | None) -> None:
        """Bring the spec back to a kept revision. Raises RolloutError if there is none to go back to."""
        deployment = await self._get()
        asked, kept = _asked(deployment), await self._revisions()
        target = _choose(kept, asked, deployment.get("status", {}).get("currentRevision"), number)
        spec, image = revision_data(target)
        if "image" not in spec.get("engine", {}) and image != _default_image(kept):
            # The operator's own image was another one then: what ran has to be named.
            spec = {**spec, "engine": {**spec.get("engine", {}), "image": image}}
            self.say(f"spec.engine.image is set to {image}, the operator's image of that time")
        try:
            live = revision_spec(parse_deployment(deployment, strict=False).spec)
        except SpecError as error:
            raise RolloutError(f"the spec cannot be read: {error}") from None
        await self._change(deployment, merge_patch(live, spec))
        self.say(f"M3Deployment {self.name}: rolled back to number {number_of(target)}, {revision_of(target)}")

    async def set_paused(self, *, is_paused: bool) -> None:
        """Pause or resume. Raises RolloutError if it is so already."""
        deployment = await self._get()
        word = "paused" if is_paused else "resumed"
        if _is_paused(deployment) == is_paused:
            raise RolloutError(f"M3Deployment {self.name} is {word if is_paused else 'not paused'} already")
        await self._change(deployment, {"rollout": {"paused": is_paused}})
        self.say(f"M3Deployment {self.name}: {word}")

    async def restart(self) -> None:
        """Ask for a revision that differs in the time of this restart alone. Raises RolloutError if it is paused."""
        deployment = await self._get()
        if _is_paused(deployment):
            raise RolloutError(f"M3Deployment {self.name} is paused; m3 rollout resume {self.name} first")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await self._change(deployment, {"template": {"annotations": {names.RESTARTED_ANNOTATION: now}}})
        self.say(f"M3Deployment {self.name}: restarted")

    async def _get(self) -> dict[str, Any]:
        try:
            return await self.objects.get(names.DEPLOYMENT_KIND, self.namespace, self.name)
        except NotFoundError:
            raise RolloutError(f"there is no M3Deployment {self.name} in namespace {self.namespace}") from None

    async def _revisions(self) -> list[dict[str, Any]]:
        selector = f"{names.DEPLOYMENT_LABEL}={self.name}"
        found = await self.objects.list(names.REVISION_KIND, self.namespace, selector)
        return sorted(found, key=number_of)

    async def _change(self, seen: Manifest, spec: Mapping[str, Any]) -> None:
        patch = {"metadata": {"resourceVersion": seen["metadata"]["resourceVersion"]}, "spec": spec}
        try:
            await self.objects.merge(
                names.DEPLOYMENT_KIND, self.namespace, self.name, patch, manager=names.CLI_FIELD_MANAGER
            )
        except ConflictError:
            raise RolloutError(f"M3Deployment {self.name} was changed meanwhile; look at it, and try again") from None


def run(
    name: str, namespace: str | None, kubeconfig: Path | None, action: Callable[[Rollout], Awaitable[None]]
) -> None:
    """Connect as the kubeconfig says, and act. Raises OperatorError."""
    connection = connect(kubeconfig)

    async def act(executor: ThreadPoolExecutor) -> None:
        objects = Cluster(connection.client, executor)
        await action(Rollout(objects=objects, namespace=namespace or connection.namespace, name=name, say=print))

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(act(executor))


def standing_of(deployment: Manifest) -> Standing:
    """Where a rollout stands, by what the operator says."""
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return Standing("the operator has not seen the last change yet")
    rolled_back, progressing = condition(deployment, "RolledBack"), condition(deployment, "Progressing")
    if rolled_back.get("status") == "True":
        return Standing(rolled_back["message"], is_failed=True)
    reason, message = progressing.get("reason", ""), progressing.get("message", "")
    update = status.get("updateRevision")
    if update is not None and update == status.get("currentRevision"):
        return Standing(f"revision {update} is rolled out", is_done=True)
    if reason == "Settled":
        return Standing(f"revision {update} is rolled out: {message}", is_done=True)
    return Standing(
        message or "the operator has not said anything yet", is_failed=bool(reason) and reason not in _MOVING
    )


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) that turns `before` into `after`: what is no longer there becomes null."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        if isinstance(value, Mapping) and isinstance(before.get(key), Mapping):
            inner = merge_patch(before[key], value)
            patch |= {key: inner} if inner else {}
        elif key not in before or before[key] != value:
            patch[key] = value
    return patch


def _asked(deployment: Manifest) -> str:
    """The revision that the spec asks for, which only the operator can tell: it knows the default image."""
    status = deployment.get("status", {})
    asked = (status.get("rollout") or {}).get("revision") or status.get("updateRevision")
    if not asked or status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        raise RolloutError("the operator has not seen the last change yet; is it running?")
    return str(asked)


def _choose(kept: list[dict[str, Any]], asked: str, current: str | None, number: int | None) -> dict[str, Any]:
    """The revision to go back to: by number; else the current one, if it is another; else the newest other one."""
    if number is not None:
        found = [one for one in kept if number_of(one) == number]
        if not found:
            numbers = ", ".join(str(number_of(one)) for one in kept) or "none"
            raise RolloutError(f"there is no revision {number}; kept are {numbers}")
        if revision_of(found[0]) == asked:
            raise RolloutError(f"revision {number} is what the spec asks for already")
        return found[0]
    others = [one for one in kept if revision_of(one) != asked]
    if not others:
        raise RolloutError("there is no earlier revision to go back to")
    return next((one for one in others if revision_of(one) == current), others[-1])


def _default_image(kept: list[dict[str, Any]]) -> str | None:
    """The operator's own image, as far as the revisions tell: that of the newest one that names none."""
    unnamed = [image for spec, image in map(revision_data, kept) if "image" not in spec.get("engine", {})]
    return unnamed[-1] if unnamed else None


def _is_paused(deployment: Manifest) -> bool:
    return bool((deployment.get("spec", {}).get("rollout") or {}).get("paused"))
