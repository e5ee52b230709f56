"""The cycle of one M3Deployment."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from m3_operator.decide.deployment import decide_deployment
from m3_operator.decide.installation import Installation
from m3_operator.decide.memory import Memory, read_memory, remember, told
from m3_operator.decide.problem import Problem
from m3_operator.decide.references import reference_problem, worker_references
from m3_operator.events import Happening
from m3_operator.observed import DeploymentSnapshot, Key, uid
from m3_operator.reconcile.acting import Actor, Deeds
from m3_operator.reconcile.references import INTERVAL, ReferenceProbe
from m3_operator.reconcile.telling import Teller
from m3_operator.signals.steps import StepRecord, remember_steps
from m3_operator.spec.recovery import RecoverySpec
from m3_operator.status.conditions import timestamp
from m3_operator.status.deployment import deployment_status
from m3_operator.store import Store


@dataclass(frozen=True)
class DeploymentCycle:
    """Snapshot, decide, act, look again, tell."""

    store: Store
    installation: Installation
    actor: Actor
    teller: Teller
    probe: ReferenceProbe
    clock: Callable[[], datetime]
    _memories: dict[Key, tuple[str, Memory]] = field(default_factory=dict)  # whose (uid), and what is known of it
    _steps: dict[str, Mapping[str, StepRecord]] = field(default_factory=dict)  # by uid: since when steps stand still

    async def run(self, key: Key) -> tuple[Problem | None, datetime | None]:
        """What was refused, and when the plan wants to be asked again.

        Raises ChangedError when all is done and told but what was decided for a pod that had changed meanwhile.
        """
        snapshot = self.store.deployment_snapshot(key)
        if snapshot is None:
            return None, None
        snapshot = self._with_steps(snapshot)
        owner = uid(snapshot.manifest)
        known = self._memories.get(key)
        memory = known[1] if known is not None and known[0] == owner else read_memory(snapshot.manifest)
        decision = decide_deployment(snapshot, self.installation, self.clock(), memory)
        happenings: list[Happening] = []
        refusal = await self.actor.change_objects(key, decision.objects, happenings)
        deeds = Deeds()
        try:
            pods_refused = await self.actor.change_pods(
                key, decision.templates, decision.steps.actions, happenings, deeds
            )
        finally:
            if deeds.done or deeds.begun:
                recovery = decision.deployment.spec.recovery if decision.deployment is not None else RecoverySpec()
                memory = remember(memory, deeds.done, deeds.begun, recovery, self.clock())
                self._memories[key] = owner, memory
        refusal = pods_refused or refusal
        if decision.turn.opening is not None:
            opened_at = timestamp(self.clock())
            refusal = await self.actor.open_gates(key, decision.turn.opening, opened_at, happenings) or refusal
        after = self.store.deployment_snapshot(key)
        if after is None:
            return refusal, None
        after = replace(after, steps=snapshot.steps)
        # Where nothing was done and nothing came meanwhile, the first answer still holds.
        is_same = not (decision.objects or decision.steps.actions or decision.turn.opening) and after == snapshot
        decision_after = decision if is_same else decide_deployment(after, self.installation, self.clock(), memory)
        deployment = decision_after.deployment
        references = () if deployment is None else worker_references(deployment, decision_after.groups)
        absent = reference_problem(await self.probe.missing(key.namespace, references))
        problem = refusal or absent or decision_after.problem
        avoided = decision_after.health.avoided
        status = deployment_status(after, decision_after, memory.records, problem, self.clock(), avoided=avoided)
        self.actor.remember(key, key.kind, await self.teller.tell(key, after.manifest, status, happenings))
        self._memories[key] = owner, told(memory, status, decision_after.places)
        if deeds.changed is not None:
            raise deeds.changed
        wakes = [decision_after.wake_at, self.clock() + INTERVAL if references else None]
        return refusal, min((wake for wake in wakes if wake is not None), default=None)

    def forget(self, key: Key) -> None:
        """It is gone."""
        self._memories.pop(key, None)

    def _with_steps(self, snapshot: DeploymentSnapshot) -> DeploymentSnapshot:
        """The snapshot with the memory of steps, which takes in its scrape."""
        owner = uid(snapshot.manifest)
        records = remember_steps(self._steps.get(owner, {}), snapshot.signals)
        if records:
            self._steps[owner] = records
        else:
            self._steps.pop(owner, None)
        return replace(snapshot, steps=records)
