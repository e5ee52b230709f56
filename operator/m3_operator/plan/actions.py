"""What a plan asks for: data, each with its reason in words, for the log and for events."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from m3_operator.observed import ObservedPod


@dataclass(frozen=True)
class CreatePods:
    """Create these ranks of a group; one that exists already is fine."""

    group: int
    ranks: tuple[int, ...]
    revision: str
    reason: str
    avoid_nodes: tuple[str, ...] = ()  # where none of them may run


@dataclass(frozen=True)
class DeletePods:
    """Delete these pods of a group, if they are still the ones that were seen."""

    group: int
    pods: tuple[ObservedPod, ...]
    reason: str
    grace_seconds: int | None = None  # None: what the pods themselves declare
    counts_as_restart: bool = False
    blamed_nodes: tuple[str, ...] = ()  # to stay away from for a while


@dataclass(frozen=True)
class ApplyObject:
    """Bring one object to its desired form."""

    manifest: Mapping[str, Any]
    reason: str
    is_repair: bool = False  # somebody else changed it


@dataclass(frozen=True)
class CreateObject:
    """Create an object that is never changed."""

    manifest: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class DeleteObject:
    """Delete one object, if it is still the one that was seen."""

    manifest: Mapping[str, Any]
    reason: str


PodAction = CreatePods | DeletePods
ObjectAction = ApplyObject | CreateObject | DeleteObject
