"""The cycle of one M3Tenant: it writes a status and nothing else, for its routers' cycles carry it to them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from m3_operator.decide.tenant import decide_tenant
from m3_operator.observed import Key
from m3_operator.reconcile.acting import Actor
from m3_operator.reconcile.telling import Teller
from m3_operator.status.tenant import tenant_status
from m3_operator.store import Store


@dataclass(frozen=True)
class TenantCycle:
    """Snapshot, decide, tell."""

    store: Store
    actor: Actor
    teller: Teller
    clock: Callable[[], datetime]

    async def run(self, key: Key) -> None:
        """Tell the tenant where it is accepted."""
        snapshot = self.store.tenant_snapshot(key)
        if snapshot is None:
            return
        status = tenant_status(snapshot.manifest, decide_tenant(snapshot), self.clock())
        self.actor.remember(key, key.kind, await self.teller.tell(key, snapshot.manifest, status, ()))
