"""The cycle of any object: which one it is, and what failure means.

An API server that does not answer ends the cycle, to be tried again after a growing pause, and so does an error that
no condition can tell of (a status that is refused, a write that lost a race); one that refuses becomes a condition with
its words. An object that is not there when its status is written is forgotten: nothing more is made for it. All state
here is about pace: forgetting it changes when something happens, never what.
"""

import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime

from m3_operator import names
from m3_operator.chance import Chance
from m3_operator.decide.installation import Installation
from m3_operator.decide.problem import Problem
from m3_operator.errors import ApiError, GoneError, UnavailableError
from m3_operator.observed import Key
from m3_operator.reconcile.acting import Actor
from m3_operator.reconcile.deployments import DeploymentCycle
from m3_operator.reconcile.pace import Pace
from m3_operator.reconcile.references import ReferenceProbe
from m3_operator.reconcile.routers import RouterCycle
from m3_operator.reconcile.telling import Teller
from m3_operator.reconcile.tenants import TenantCycle
from m3_operator.reconcile.writer import Writer
from m3_operator.store import Store

logger = logging.getLogger(__name__)


def _observe_nothing(kind: str, result: str, seconds: float) -> None:
    """Nobody counts cycles."""


class Reconciler:
    """Brings objects to what their specs ask for, one cycle at a time."""

    def __init__(
        self,
        writer: Writer,
        store: Store,
        installation: Installation,
        *,
        clock: Callable[[], datetime],
        wake: Callable[[Iterable[Key]], None],
        chance: Chance | None = None,
        observe: Callable[[str, str, float], None] = _observe_nothing,
    ) -> None:
        """`wake` is told whom a write concerns beside the object whose cycle made it; `observe` kind, result ("done",
        "refused", "unavailable" or "defect") and seconds of each cycle.
        """
        self._observe = observe
        self._store = store
        self._wake = wake
        self._clock = clock
        self._chance = chance or Chance()
        self._paces: dict[Key, Pace] = {}
        actor, teller, probe = Actor(writer, store, wake), Teller(writer, clock), ReferenceProbe(writer, clock)
        self._deployments = DeploymentCycle(store, installation, actor, teller, probe, clock)
        self._routers = RouterCycle(writer, store, installation, actor, teller, probe, clock, self._chance)
        self._tenants = TenantCycle(store, actor, teller, clock)

    async def cycle(self, key: Key) -> float | None:
        """One cycle; the answer is in how many seconds to look again, if nothing happens before."""
        started, result = time.monotonic(), "defect"
        try:
            problem, wake_at = await self._run(key)
            result = "done" if problem is None else "refused"
        except GoneError as error:
            result = "done"
            logger.info("%s: is gone, though nobody told: %s", key, error)
            lost = {"metadata": {"namespace": key.namespace, "name": key.name, "uid": error.uid}}
            self._wake(self._store.remove(key.kind, lost))
            return None
        except ApiError as error:
            result = "unavailable" if isinstance(error, UnavailableError) else "refused"
            pause = self._paces.setdefault(key, Pace()).pause_seconds(self._chance)
            logger.warning("%s: %s; trying again in %.0f s", key, error, pause)
            return pause
        finally:
            self._observe(key.kind, result, time.monotonic() - started)
        logger.debug("%s: cycle done", key)
        if problem is not None:
            return self._paces.setdefault(key, Pace()).pause_seconds(self._chance)
        self._paces.pop(key, None)
        return None if wake_at is None else (wake_at - self._clock()).total_seconds()

    async def _run(self, key: Key) -> tuple[Problem | None, datetime | None]:
        """What was refused, and when the plan wants to be asked again."""
        manifest = self._store.get(key)
        if manifest is None or manifest["metadata"].get("deletionTimestamp"):
            self._deployments.forget(key)
            return None, None  # the garbage collector takes what it owned
        if key.kind == names.DEPLOYMENT_KIND:
            return await self._deployments.run(key)
        if key.kind == names.TENANT_KIND:
            await self._tenants.run(key)
            return None, None
        return await self._routers.run(key)
