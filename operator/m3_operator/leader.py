"""Which of several operators acts: the one that holds a Lease of coordination.k8s.io.

Owns the rules (pure: what is known of the Lease, and what time it is here, give a move) and the loop that carries them
out. Clocks of different machines are never compared: a replica notes, on its own monotonic clock, when it first saw the
present version of the Lease, and takes it when that has not changed for as long as the Lease says. The times inside the
Lease are for people to read.

The holder gives up well before anybody may take over: `Timing` keeps the renew deadline below the lease.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NoReturn, Protocol

from m3_operator.errors import ConflictError, NotFoundError, OperatorError, RefusedError, UnavailableError
from m3_operator.observed import Manifest

logger = logging.getLogger(__name__)

LEASE_KIND: Final = "Lease"
_INVALID: Final = 422


class LeaseLostError(OperatorError):
    """Somebody else may act by now: this process must not."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a silent holder keeps the Lease, when a holder that cannot renew gives up, and how often both try."""

    lease_seconds: float = 12.0
    renew_deadline_seconds: float = 8.0
    retry_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Held:
    """What the Lease object says."""

    version: str  # its resourceVersion, which every write changes
    holder: str  # "" after a release
    lease_seconds: float
    transitions: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """What one replica knows. Times are its own monotonic clock's, in seconds."""

    held: Held | None = None  # None: there is no Lease, or none was seen yet
    seen_at: float = 0.0  # when this version of it was first seen
    renewed_at: float | None = None  # when the last successful write was sent; None: this replica is not the leader

    def after_reading(self, held: Held | None, now: float) -> "View":
        """The view with what was just read."""
        is_news = self.held is None or held is None or held.version != self.held.version
        return replace(self, held=held, seen_at=now if is_news else self.seen_at)

    def after_writing(self, held: Held, sent_at: float) -> "View":
        """The view after our own write was answered. It holds from when it was sent: others may have seen it then."""
        return View(held, sent_at, sent_at)


class Move(StrEnum):
    """What a replica does next."""

    TAKE = "take"  # write the Lease in our name
    WAIT = "wait"  # somebody else holds it
    LOST = "lost"  # we held it, and may no longer act


def decide(view: View, identity: str, timing: Timing, now: float) -> Move:
    """The next move of the replica of this identity."""
    if view.renewed_at is not None:
        is_taken = view.held is not None and view.held.holder not in ("", identity)
        is_late = now - view.renewed_at >= timing.renew_deadline_seconds
        return Move.LOST if is_taken or is_late else Move.TAKE
    # Our own name without our own write: this container was restarted in its pod, and its predecessor is dead.
    if view.held is None or view.held.holder in ("", identity):
        return Move.TAKE
    return Move.TAKE if now - view.seen_at >= view.held.lease_seconds else Move.WAIT


def read_lease(manifest: Manifest) -> Held:
    """The Lease as the API server has it; whatever is missing counts as released."""
    spec = manifest.get("spec") or {}
    return Held(
        version=str(manifest["metadata"]["resourceVersion"]),
        holder=spec.get("holderIdentity") or "",
        lease_seconds=float(spec.get("leaseDurationSeconds") or 0),
        transitions=int(spec.get("leaseTransitions") or 0),
    )


def lease_manifest(
    namespace: str, name: str, holder: str, *, before: Held | None, timing: Timing, now: datetime
) -> dict[str, Any]:
    """The Lease in this holder's name; "" releases it. Names the version it replaces, so that a race has one winner."""
    metadata = {"name": name, "namespace": namespace}
    time_text = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    transitions = before.transitions if before is not None else 0
    spec: dict[str, Any] = {
        "holderIdentity": holder,
        "leaseDurationSeconds": round(timing.lease_seconds),
        "leaseTransitions": transitions,
        "renewTime": time_text,
    }
    if before is None or before.holder != holder:
        spec |= {"acquireTime": time_text, "leaseTransitions": transitions + bool(before is not None and holder)}
    if before is not None:
        metadata["resourceVersion"] = before.version
    return {"apiVersion": "coordination.k8s.io/v1", "kind": LEASE_KIND, "metadata": metadata, "spec": spec}


class LeaseApi(Protocol):
    """What an election needs of `cluster.Cluster`."""

    async def read(self, kind: str, namespace: str, name: str) -> dict[str, Any]: ...

    async def overwrite(self, manifest: Manifest) -> dict[str, Any]: ...


class Election:
    """One replica's part in it."""

    def __init__(
        self,
        api: LeaseApi,
        namespace: str,
        name: str,
        identity: str,
        *,
        timing: Timing | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.identity = identity
        self._api = api
        self._namespace, self._name = namespace, name
        self._timing = timing or Timing()
        self._monotonic, self._sleep = monotonic, sleep
        self._view = View()

    @property
    def is_leader(self) -> bool:
        """Whether the Lease was ours at the last word of the API server."""
        return self._view.renewed_at is not None

    @property
    def leader(self) -> str:
        """Who holds the Lease as far as is known; "" for nobody."""
        return self._view.held.holder if self._view.held is not None else ""

    async def acquire(self) -> None:
        """Stand by until the Lease is ours. Raises RefusedError where the rights lack."""
        told = ""
        while True:
            try:
                await self._look()
                if decide(self._view, self.identity, self._timing, self._monotonic()) is Move.TAKE:
                    await self._write()
                    logger.info("leading: Lease %s/%s is ours (%s)", self._namespace, self._name, self.identity)
                    return
            except ConflictError:
                continue  # somebody was quicker: look who
            except UnavailableError as error:
                logger.warning("standing by: %s", error)
            else:
                if told != self.leader:
                    logger.info("standing by: Lease %s/%s is held by %s", self._namespace, self._name, self.leader)
                told = self.leader
            await self._sleep(self._timing.retry_seconds)

    async def keep(self) -> NoReturn:
        """Renew until that fails for too long. Raises LeaseLostError then, and only then."""
        trouble = ""
        while self._may_act():
            try:
                async with asyncio.timeout(self._seconds_left()):
                    await self._renew()
                trouble = ""
            except TimeoutError:
                trouble = "the API server did not answer in time"
            except OperatorError as error:
                trouble = str(error)
                logger.warning("cannot renew Lease %s/%s: %s", self._namespace, self._name, error)
            if self._may_act():
                await self._sleep(min(self._timing.retry_seconds, self._seconds_left()))
        why = trouble or f"{self.leader or 'nobody'} has it"
        raise LeaseLostError(f"lost Lease {self._namespace}/{self._name}: {why}; another replica may act now")

    async def release(self) -> None:
        """Let the next one lead at once. Failing that, it has to wait for the Lease to run out."""
        if not self.is_leader:
            return
        try:
            await self._look()  # a renewal that was cut off may have been written
            if self.leader == self.identity:
                await self._write(holder="")
            logger.info("Lease %s/%s is released", self._namespace, self._name)
        except OperatorError as error:
            logger.warning("Lease %s/%s was not released: %s", self._namespace, self._name, error)
        self._view = View()

    async def _look(self) -> None:
        try:
            held = read_lease(await self._api.read(LEASE_KIND, self._namespace, self._name))
        except NotFoundError:
            held = None
        self._view = self._view.after_reading(held, self._monotonic())

    async def _renew(self) -> None:
        """Write it in our name once more; after a conflict, read who has it now."""
        try:
            await self._write()
        except ConflictError:
            await self._look()

    def _may_act(self) -> bool:
        return decide(self._view, self.identity, self._timing, self._monotonic()) is not Move.LOST

    def _seconds_left(self) -> float:
        """Until the renew deadline."""
        renewed_at = self._view.renewed_at or 0.0
        return max(renewed_at + self._timing.renew_deadline_seconds - self._monotonic(), 0.0)

    async def _write(self, holder: str | None = None) -> None:
        holder = self.identity if holder is None else holder
        sent_at = self._monotonic()
        manifest = lease_manifest(
            self._namespace, self._name, holder, before=self._view.held, timing=self._timing, now=datetime.now(UTC)
        )
        try:
            held = read_lease(await self._api.overwrite(manifest))
        except RefusedError as error:
            if error.status == _INVALID and self._view.held is None:
                raise ConflictError(error.status, str(error)) from None  # somebody made it since we looked
            raise
        self._view = self._view.after_writing(held, sent_at)
