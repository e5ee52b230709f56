"""How far a rollout is, and whether it is stuck.

A rollout runs from the moment that the spec asks for another revision than the one that all groups were last brought
to, until they are brought to the new one. Progress is a new best: more groups of the new revision available than ever
before, or fewer groups of others. A group that comes up and falls over again and again is none, so that every rollout
ends or misses its deadline. The record is kept in the status; losing it only makes the deadline later.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from m3_operator.groups import Group
from m3_operator.observed import Manifest, parse_time
from m3_operator.plan.rollout import is_available
from m3_operator.plan.wanted import Wanted


@dataclass(frozen=True, kw_only=True)
class RolloutRecord:
    """What is remembered of the rollout of one revision."""

    revision: str
    available: int
    """Most groups of it that were available."""
    outdated: int
    """Fewest groups of other revisions that were left."""
    progressed_at: datetime
    is_rolled_back: bool = False
    """Whether it was given up."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Groups, seen from one revision."""

    wanted: int
    existing: int
    available: int
    """Of this revision, and serving for long enough."""
    unavailable: int
    """Of this revision, and not."""
    outdated: int
    """Of others."""

    @property
    def is_everywhere(self) -> bool:
        """Whether all groups are of this revision, as many as wanted, and serve."""
        return self.wanted > 0 and self.available >= self.wanted and self.outdated == 0

    def is_done(self, wanted: Wanted) -> bool:
        """Whether a rollout by these rules has nothing more to do."""
        if wanted.rollout.strategy == "OnDelete":
            return self.existing >= self.wanted and not self.unavailable
        behind = wanted.groups_behind
        return self.available >= self.wanted - behind and self.outdated <= behind


def tally(wanted: Wanted, groups: Mapping[int, Group], now: datetime) -> Tally:
    """The groups, seen from the wanted revision."""
    updated = [group for group in groups.values() if group.revision == wanted.revision]
    available = sum(is_available(wanted, group, now) for group in updated)
    return Tally(
        wanted=wanted.groups,
        existing=len(groups),
        available=available,
        unavailable=len(updated) - available,
        outdated=len(groups) - len(updated),
    )


def next_record(before: RolloutRecord | None, wanted: Wanted, seen: Tally, now: datetime) -> RolloutRecord | None:
    """The record after this look; None while no rollout of `wanted.revision` is under way."""
    of_this = before if before is not None and before.revision == wanted.revision else None
    if of_this is not None and of_this.is_rolled_back:
        return of_this
    is_asked = wanted.groups > 0 and wanted.revision != wanted.current and not wanted.rollout.is_paused
    if not is_asked or seen.is_done(wanted):
        return None
    if of_this is None:
        return RolloutRecord(
            revision=wanted.revision,
            available=seen.available,
            outdated=seen.outdated,
            progressed_at=now.replace(microsecond=0),
        )
    if seen.available <= of_this.available and seen.outdated >= of_this.outdated:
        return of_this
    return replace(
        of_this,
        available=max(seen.available, of_this.available),
        outdated=min(seen.outdated, of_this.outdated),
        progressed_at=now.replace(microsecond=0),
    )


def deadline(record: RolloutRecord | None, patience: timedelta) -> datetime | None:
    """When a rollout counts as stuck, if nothing moves until then."""
    return None if record is None or record.is_rolled_back else record.progressed_at + patience


def read_record(manifest: Manifest) -> RolloutRecord | None:
    """What an M3Deployment's status remembers of its rollout."""
    told = manifest.get("status", {}).get("rollout") or {}
    progressed_at = parse_time(told.get("progressTime"))
    if not told.get("revision") or progressed_at is None:
        return None
    return RolloutRecord(
        revision=str(told["revision"]),
        available=int(told.get("availableReplicas", 0)),
        outdated=int(told.get("outdatedReplicas", 0)),
        progressed_at=progressed_at,
        is_rolled_back=bool(told.get("rolledBack")),
    )
