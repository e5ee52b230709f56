"""Since when a worker's step counter stands still while requests wait: the memory that one scrape does not have.

Pure: what was remembered and what was scraped in, what is to be remembered out. Who scrapes keeps it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from m3_operator.signals.values import DeploymentSignals, WorkerSignals


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A worker that has work: how many steps it had computed, since when, and when that was last seen."""

    steps: int
    since: datetime
    seen_at: datetime

    @property
    def still_seconds(self) -> float:
        """How long it has computed nothing, as far as was seen."""
        return (self.seen_at - self.since).total_seconds()


def remember_steps(before: Mapping[str, StepRecord], signals: DeploymentSignals) -> dict[str, StepRecord]:
    """The records after a scrape, by pod uid: of workers that have work and count steps, and of no others.

    A worker that stood still and has nothing to do is idle; its time begins anew with the next request.
    """
    records = {}
    for uid, found in signals.workers.items():
        record = _next(before.get(uid), found)
        if record is not None:
            records[uid] = record
    return records


def _next(before: StepRecord | None, found: WorkerSignals) -> StepRecord | None:
    if found.steps is None or found.in_flight == 0:
        return None
    if before is None or before.steps != found.steps:
        return StepRecord(found.steps, found.scraped_at, found.scraped_at)
    return StepRecord(before.steps, before.since, max(before.seen_at, found.scraped_at))
