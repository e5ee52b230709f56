"""The cycle of one M3Deployment."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from m3_operator.decide.deployment import DeploymentDecision, decide_deployment
from m3_operator.decide.installation import Installation
from m3_operator.decide.problem import Problem
from m3_operator.events import Happening
from m3_operator.observed import Key
from m3_operator.plan.actions import DeletePods
from m3_operator.plan.recovery import FailureRecord, next_record
from m3_operator.reconcile.acting import Actor
from m3_operator.reconcile.telling import Teller
from m3_operator.status.deployment import deployment_status
from m3_operator.store import Store


@dataclass(frozen=True)
class DeploymentCycle:
    """Snapshot, decide, act, look again, tell."""

    store: Store
    installation: Installation
    actor: Actor
    teller: Teller
    clock: Callable[[], datetime]

    async def run(self, key: Key) -> tuple[Problem | None, datetime | None]:
        """What was refused, and when the plan wants to be asked again."""
        snapshot = self.store.deployment_snapshot(key)
        if snapshot is None:
            return None, None
        decision = decide_deployment(snapshot, self.installation, self.clock())
        happenings: list[Happening] = []
        refusal = await self.actor.change_objects(key, decision.objects, happenings)
        pods_refused = await self.actor.change_pods(key, decision.templates, decision.steps.actions, happenings)
        refusal = pods_refused or refusal
        records = _updated_records(decision, self.clock())
        after = self.store.deployment_snapshot(key)
        if after is None:
            return refusal, None
        # Where nothing was done and nothing came meanwhile, the first answer still holds.
        is_same = not decision.objects and not decision.steps.actions and after == snapshot
        decision_after = decision if is_same else decide_deployment(after, self.installation, self.clock())
        problem = refusal or decision_after.problem
        status = deployment_status(after, decision_after, records, problem, self.clock())
        self.actor.remember(key, key.kind, await self.teller.tell(key, after.manifest, status, happenings))
        return refusal, decision_after.steps.wake_at


def _updated_records(decision: DeploymentDecision, now: datetime) -> dict[int, FailureRecord]:
    """The memory of failures after this cycle's replacements."""
    records = dict(decision.records)
    for action in decision.steps.actions:
        if isinstance(action, DeletePods) and action.counts_as_restart:
            records[action.group] = next_record(
                records.get(action.group, FailureRecord()), action.reason, now.replace(microsecond=0)
            )
    return records
