"""What a spec allows, read from the raw manifest and apart from the operator's own reading of it.

The rules ask only these functions, so that an aspect of the spec that changes what may be down or too many at a time
is added here and in `specs`, and nowhere else.
"""

import math
from collections.abc import Mapping
from typing import Any


def wanted_groups(spec: Mapping[str, Any]) -> int:
    """Groups that should run."""
    return 0 if spec.get("suspend") else int(spec.get("replicas", 1))


def max_unavailable(spec: Mapping[str, Any]) -> int:
    """Groups that the operator may take down at a time beside those that others took down."""
    rollout, wanted = _rollout(spec), wanted_groups(spec)
    if rollout.get("strategy") == "Recreate":
        return wanted
    surges = max_surge(spec) > 0
    given = rollout.get("maxUnavailable", 0 if rollout.get("strategy") == "Surge" else 1)
    return _share(given, wanted, rounds_up=False) or int(not surges)


def max_surge(spec: Mapping[str, Any]) -> int:
    """Groups beyond those wanted that may exist at a time, those on their way out left aside."""
    rollout = _rollout(spec)
    return _share(rollout.get("maxSurge", 1), wanted_groups(spec), rounds_up=True) if _is_surge(rollout) else 0


def reaches_all_groups(spec: Mapping[str, Any]) -> bool:
    """Whether a change of the spec comes to every group by itself."""
    rollout = _rollout(spec)
    return not rollout.get("paused") and not rollout.get("partition") and rollout.get("strategy") != "OnDelete"


def _rollout(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(spec.get("rollout") or {})


def _is_surge(rollout: Mapping[str, Any]) -> bool:
    return rollout.get("strategy") == "Surge"


def _share(given: int | str, wanted: int, *, rounds_up: bool) -> int:
    if isinstance(given, int):
        return given
    percent = int(given.rstrip("%"))
    return math.ceil(wanted * percent / 100) if rounds_up else wanted * percent // 100
