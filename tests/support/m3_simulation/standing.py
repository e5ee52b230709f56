"""Which groups of an owner stay: in fact, and as far as a process of the operator could know when its cycle began.

A pod departs once, when it is marked to go, ends, or vanishes, whichever comes first. Who knows of a group that it
stays, and was not told yet that somebody else has taken a pod of it, decides as if it stayed: nobody can do better.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from m3_operator import names
from m3_operator.observed import owner_uid
from m3_simulation.api_server import ApiServer, Manifest

_ENDED = ("Failed", "Succeeded")


@dataclass(frozen=True)
class Departure:
    """One pod has begun to go."""

    owner: str
    group: str
    rank: str
    version: int  # of its object from then on
    is_deleted: bool  # or ended by itself
    is_operators: bool  # its doing, in its own time


@dataclass
class Standing:
    """Listens to the API server, and remembers every departure."""

    server: ApiServer
    _departures: dict[str, Departure] = field(default_factory=dict)  # by uid
    _born: dict[str, int] = field(default_factory=dict)  # by uid: the first version

    def on_change(self, event: str, kind: str, new: Manifest, _: Manifest | None) -> None:
        """Something changed."""
        if kind != "Pod" or names.GROUP_LABEL not in (labels := new["metadata"].get("labels") or {}):
            return
        uid, version = new["metadata"]["uid"], int(new["metadata"]["resourceVersion"])
        self._born.setdefault(uid, version)
        is_deleted = event == "DELETED" or bool(new["metadata"].get("deletionTimestamp"))
        if uid in self._departures or not (is_deleted or _is_over(new)):
            return
        first = next(iter(self.server.deletions.get(uid, ())), None)
        self._departures[uid] = Departure(
            owner=owner_uid(new),
            group=labels[names.GROUP_LABEL],
            rank=labels[names.RANK_LABEL],
            version=version,
            is_deleted=is_deleted,
            is_operators=first is not None and first.actor.startswith("operator") and not first.is_late,
        )

    def pods(self, owner: str) -> list[Manifest]:
        """The pods of an owner that neither go nor have ended."""
        return [pod for pod in self._of(owner) if pod["metadata"]["uid"] not in self._departures]

    def groups(self, owner: str) -> set[str]:
        """Groups that are not on their way out: their rank 0 stays, and no member of them is being deleted."""
        leaving = {_group(pod) for pod in self._of(owner) if self._is_deleted(pod)}
        return {_group(pod) for pod in self.pods(owner) if _rank(pod) == "0"} - leaving

    def groups_as_known(self, owner: str, known: Mapping[str, int]) -> set[str]:
        """The same by what somebody could know who was told of these versions (by uid), and what others did since."""
        fresh = {
            uid
            for uid, departure in self._departures.items()
            if departure.owner == owner and not departure.is_operators and 0 < known.get(uid, 0) < departure.version
        }
        leaving = {
            _group(pod) for pod in self._of(owner) if self._is_deleted(pod) and pod["metadata"]["uid"] not in fresh
        }
        taken = {self._departures[uid].group for uid in fresh if self._departures[uid].rank == "0"}
        return (taken | {_group(pod) for pod in self.pods(owner) if _rank(pod) == "0"}) - leaving

    def is_whole(self, uid: str) -> bool:
        """Whether nothing of this pod's world, itself included, has departed since it came."""
        if uid in self._departures:
            return False
        pod = next(found for found in self.server.of_kind("Pod") if found["metadata"]["uid"] == uid)
        world = owner_uid(pod), _group(pod)
        return not any(
            (departure.owner, departure.group) == world and departure.version > self._born[uid]
            for departure in self._departures.values()
        )

    def _of(self, owner: str) -> list[Manifest]:
        return [pod for pod in self.server.of_kind("Pod") if owner_uid(pod) == owner]

    def _is_deleted(self, pod: Manifest) -> bool:
        departure = self._departures.get(pod["metadata"]["uid"])
        return bool(pod["metadata"].get("deletionTimestamp")) or (departure is not None and departure.is_deleted)


def _is_over(pod: Manifest) -> bool:
    return pod.get("status", {}).get("phase") in _ENDED


def _group(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"][names.GROUP_LABEL])


def _rank(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"][names.RANK_LABEL])
