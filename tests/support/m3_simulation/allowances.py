"""What a spec allows, read from the raw manifest and apart from the operator's own reading of it.

The rules ask only these functions, so that an aspect of the spec that changes what may be down or too many at a time
is added here and in `specs`, and nowhere else.
"""

from collections.abc import Mapping
from typing import Any


def wanted_groups(spec: Mapping[str, Any]) -> int:
    """Groups that should run."""
    return 0 if spec.get("suspend") else int(spec.get("replicas", 1))


def max_unavailable(_: Mapping[str, Any]) -> int:
    """Groups that the operator may take down at a time beside those that others took down."""
    return 1


def max_surge(_: Mapping[str, Any]) -> int:
    """Groups beyond those wanted that may exist at a time, those on their way out left aside."""
    return 0
