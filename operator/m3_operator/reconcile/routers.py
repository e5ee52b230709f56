"""The cycle of one M3Router."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from m3_operator.chance import Chance
from m3_operator.decide.installation import Installation
from m3_operator.decide.problem import Problem
from m3_operator.decide.references import reference_problem, router_references
from m3_operator.decide.router import RouterDecision, decide_router
from m3_operator.errors import RefusedError
from m3_operator.events import Happening
from m3_operator.observed import Key
from m3_operator.reconcile.acting import Actor, problem_of
from m3_operator.reconcile.references import INTERVAL, ReferenceProbe
from m3_operator.reconcile.telling import Teller
from m3_operator.reconcile.writer import Writer
from m3_operator.render.router import keys_secret
from m3_operator.status.router import router_status
from m3_operator.store import Store

_KEYS_INTERVAL: Final = timedelta(minutes=1)
_API_KEY_BYTES: Final = 32


@dataclass(frozen=True)
class RouterCycle:
    """Snapshot, decide, act, look again, tell."""

    writer: Writer
    store: Store
    installation: Installation
    actor: Actor
    teller: Teller
    probe: ReferenceProbe
    clock: Callable[[], datetime]
    chance: Chance
    _keys_tried: dict[str, datetime] = field(default_factory=dict)  # by uid: when a Secret was last offered

    async def run(self, key: Key) -> tuple[Problem | None, datetime | None]:
        """What was refused, and when to look again."""
        snapshot = self.store.router_snapshot(key)
        if snapshot is None:
            return None, None
        decision = decide_router(snapshot, self.installation)
        happenings: list[Happening] = []
        refusal = await self._offer_keys(decision, happenings)
        refusal = await self.actor.change_objects(key, decision.objects, happenings) or refusal
        after = self.store.router_snapshot(key)
        if after is None:
            return refusal, None
        references = () if decision.router is None else router_references(decision.router, after)
        absent = reference_problem(await self.probe.missing(key.namespace, references))
        # What stands in the way does not change by our own writes; what runs does, and `after` has it.
        status = router_status(after, decision, refusal or absent or decision.problem, self.clock())
        self.actor.remember(key, key.kind, await self.teller.tell(key, after.manifest, status, happenings))
        return refusal, self.clock() + INTERVAL if references else None

    async def _offer_keys(self, decision: RouterDecision, happenings: list[Happening]) -> Problem | None:
        """Create the Secret with a random key, unless there is one. Not more often than once a minute."""
        if decision.router is None or not decision.needs_keys:
            return None
        owner, now = decision.router.metadata.uid, self.clock()
        tried = self._keys_tried.get(owner)
        if tried is not None and now - tried < _KEYS_INTERVAL:
            return None
        self._keys_tried[owner] = now
        manifest = keys_secret(decision.router, self.chance.token(_API_KEY_BYTES))
        try:
            is_new = await self.writer.create_secret(manifest)
        except RefusedError as error:
            return problem_of("Secret", error)
        if is_new:
            happenings.append(Happening("CreatedKey", f"Created Secret {manifest['metadata']['name']} with an API key"))
        return None
