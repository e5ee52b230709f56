"""The loop that looks at the experts of every deployment once a window.

Owns when that happens and who is asked; what follows from the answers is `window`'s to decide. The outcome goes into
the store, from where the deployment's next cycle shows it in the status and keeps the plan in a ConfigMap.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final

from m3_operator import names
from m3_operator.api import M3Deployment, SpecError, parse_deployment
from m3_operator.expert_plan.plan import ExpertPlan, ExpertPlanError
from m3_operator.experts.reading import ExpertReading
from m3_operator.experts.window import Memory, Window, next_window
from m3_operator.experts.worker_client import ExpertsUnavailableError, WorkerClient
from m3_operator.groups import by_index
from m3_operator.observed import Key, Manifest, ObservedPod, uid
from m3_operator.render.experts import has_plan
from m3_operator.store import Store

logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 5.0
_AT_ONCE: Final = 8
_TELL_SECONDS: Final = 600.0
"""A plan that moves a tenth of M3's experts reads some 40 GB."""


class ExpertKeeper:
    """Watches and moves the experts of all deployments."""

    def __init__(
        self,
        store: Store,
        client: WorkerClient,
        *,
        clock: Callable[[], datetime],
        wake: Callable[[Iterable[Key]], None],
    ) -> None:
        self._store = store
        self._client = client
        self._clock = clock
        self._wake = wake
        self._memories: dict[str, Memory] = {}  # by the deployment's uid
        self._specs: dict[str, tuple[int, M3Deployment | None]] = {}  # by uid: of which generation, and what it says
        self._looked_at: dict[str, tuple[datetime, frozenset[str]]] = {}  # when, and which pods there were

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """One look at every deployment whose window is over, or that has a new group."""
        alive: set[str] = set()
        due: list[tuple[Key, M3Deployment, Mapping[str, ObservedPod]]] = []
        known, self._specs = self._specs, {}
        for key in self._store.owners():
            deployment, leaders = self._watched(key, known)
            if deployment is None:
                continue
            alive.add(deployment.metadata.uid)
            if self._is_due(deployment, leaders):
                due.append((key, deployment, leaders))
        for gone in self._memories.keys() - alive:
            del self._memories[gone]
            self._looked_at.pop(gone, None)
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(key: Key, deployment: M3Deployment, leaders: Mapping[str, ObservedPod]) -> None:
            async with limit:
                await self._look_at(key, deployment, leaders)

        await asyncio.gather(*(one(*found) for found in due))

    def _watched(
        self, key: Key, known: Mapping[str, tuple[int, M3Deployment | None]]
    ) -> tuple[M3Deployment | None, Mapping[str, ObservedPod]]:
        """The deployment and its serving rank 0 pods by uid, if it has experts to look after."""
        manifest = self._store.get(key) if key.kind == names.DEPLOYMENT_KIND else None
        deployment = self._read(manifest, known) if manifest is not None else None
        if deployment is None or not has_plan(deployment):
            return None, {}
        snapshot = self._store.deployment_snapshot(key)
        if snapshot is None:
            return None, {}
        groups = by_index(snapshot.pods).values()
        return deployment, {group.pods[0].uid: group.pods[0] for group in groups if group.is_ready}

    def _read(self, manifest: Manifest, known: Mapping[str, tuple[int, M3Deployment | None]]) -> M3Deployment | None:
        """The typed form, the one that is known while the spec is the same; None if it cannot be read."""
        generation = manifest["metadata"].get("generation", 0)
        before = known.get(uid(manifest))
        if before is None or before[0] != generation:
            try:
                before = generation, parse_deployment(manifest, strict=False)
            except SpecError:
                before = generation, None
        self._specs[uid(manifest)] = before
        return before[1]

    def _is_due(self, deployment: M3Deployment, leaders: Mapping[str, ObservedPod]) -> bool:
        if not leaders:
            return False
        at, seen = self._looked_at.get(deployment.metadata.uid, (None, frozenset[str]()))
        if at is None or leaders.keys() - seen:
            return True
        passed = (self._clock() - at).total_seconds()
        return not 0 <= passed < deployment.spec.expert_balancing.window_seconds

    async def _look_at(self, key: Key, deployment: M3Deployment, leaders: Mapping[str, ObservedPod]) -> None:
        owner, now = deployment.metadata.uid, self._clock()
        self._looked_at[owner] = (now, frozenset(leaders))
        readings = await self._ask(key, deployment, leaders)
        memory = self._memories.get(owner, Memory())
        try:
            # The search for a plan takes up to a second of pure Python.
            window: Window = await asyncio.to_thread(
                next_window, deployment.spec.expert_balancing, readings, memory, now
            )
        except ExpertPlanError as error:
            logger.warning("%s: experts are left where they are: %s", key, error)
            return
        self._memories[owner] = window.memory
        self._wake(self._store.put_experts(key, window.memory.state))
        addresses = {pod_uid: _address(deployment, leaders[pod_uid]) for pod_uid in window.publish}
        await asyncio.gather(*(self._tell(key, addresses[who], plan) for who, plan in window.publish.items()))

    async def _ask(
        self, key: Key, deployment: M3Deployment, leaders: Mapping[str, ObservedPod]
    ) -> dict[str, ExpertReading]:
        async def read(pod: ObservedPod) -> ExpertReading | None:
            try:
                return await self._client.read(_address(deployment, pod), pod.nodes)
            except ExpertsUnavailableError as error:
                logger.warning("%s: experts of %s not seen: %s", key, pod.name, error)
                return None

        answers = await asyncio.gather(*(read(pod) for pod in leaders.values()))
        return {uid: found for uid, found in zip(leaders, answers, strict=True) if found is not None}

    async def _tell(self, key: Key, address: str, plan: ExpertPlan) -> None:
        try:
            await self._client.tell(address, plan, _TELL_SECONDS)
        except ExpertsUnavailableError as error:
            # The next window sees who has another plan, and tells it again.
            logger.warning("%s: plan %s not taken: %s", key, plan.epoch, error)
        else:
            logger.info("%s: %s has plan %s of experts", key, address, plan.epoch)


def _address(deployment: M3Deployment, pod: ObservedPod) -> str:
    host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
    return f"http://{host}:{deployment.spec.engine.port}"
