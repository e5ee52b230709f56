"""Turns what the router's parts say into the one document that people look at.

Owns the console's memory: the samples of the timeline, the sums of recent bills, the newest decisions. The server
hands it every batch of settled bills (`read`) and every tick; whoever looks calls `state`. Time comes in.
"""

from typing import Final

import msgspec

from m3_router.admin.audit import Audit
from m3_router.admin.document import VERSION, PoolNow, State
from m3_router.admin.recent import Recent
from m3_router.admin.sources import Sources
from m3_router.admin.timeline import STEP_SECONDS, TimelineRing
from m3_router.admin.today import day_of
from m3_router.config import LaneSettings
from m3_router.money.bill import Bill
from m3_router.telemetry.decisions import Decisions

SHOWN_DECISIONS: Final = 60
SHOWN_TENANTS: Final = 50
SHOWN_ACTS: Final = 20


class Observatory:
    """What one router remembers of its last minutes, and sees now."""

    def __init__(self, sources: Sources, lanes: LaneSettings, audit: Audit, acts: list[str]) -> None:
        self._sources = sources
        self._audit = audit
        self._acts = acts
        self._recent = Recent(lanes)
        self._decisions = Decisions()
        self._timeline = TimelineRing()
        self._requests = 0  # settled since the last sample
        self._sampled_at = float("-inf")

    def read(self, bills: list[Bill], now: float) -> None:
        """Take a batch of settled bills."""
        self._requests += len(bills)
        self._recent.read(bills, now)
        self._decisions.read(bills)

    def tick(self, now: float, wall: float) -> None:
        """Sample the lanes, if a step has passed."""
        if now - self._sampled_at < STEP_SECONDS:
            return
        # A tick that is late must not make all later ones late; one that is very late begins anew.
        is_late = now - self._sampled_at >= 2 * STEP_SECONDS
        self._sampled_at = now if is_late else self._sampled_at + STEP_SECONDS
        lanes = {
            (pool.name, lane.name): (lane.in_flight_tokens, lane.waiting)
            for pool in self._sources.pools(now)
            for lane in pool.lanes
        }
        self._timeline.add(wall, self._requests, lanes)
        self._requests = 0

    def state(self, now: float, wall: float, since: int = 0) -> State:
        """The document; of the timeline what came after sample `since`."""
        tenants = sorted(self._sources.tenants(wall), key=lambda tenant: (-tenant.cost_nanousd, tenant.name))
        return State(
            version=VERSION,
            time=wall,
            router=self._sources.router(),
            rates=self._recent.rates(now),
            pools=self._pools(now),
            latency=self._recent.latency(now),
            day=day_of(wall),
            tenants=tenants[:SHOWN_TENANTS],
            tenants_left_out=max(len(tenants) - SHOWN_TENANTS, 0),
            decisions=self._decisions.newest(SHOWN_DECISIONS),
            audit=self._audit.newest(SHOWN_ACTS),
            acts=self._acts,
            timeline=self._timeline.since(since),
        )

    def _pools(self, now: float) -> list[PoolNow]:
        recent = self._recent.workers(now)
        return [
            msgspec.structs.replace(
                pool,
                workers=[msgspec.structs.replace(worker, recent=recent.get(worker.name)) for worker in pool.workers],
            )
            for pool in self._sources.pools(now)
        ]
