"""Kubernetes Events: what happened to an object, for `kubectl describe`."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from m3_operator import names
from m3_operator.observed import Manifest

_NOTE_MAX = 1024


@dataclass(frozen=True)
class Happening:
    """Something worth telling: a reason for programs, a note for people."""

    reason: str
    note: str
    is_warning: bool = False


def event(regarding: Manifest, happening: Happening, now: datetime) -> dict[str, Any]:
    """The Event of a happening. The same one at the same microsecond has the same name."""
    metadata = regarding["metadata"]
    time = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    digest = hashlib.sha256(f"{time} {happening.reason} {happening.note}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{digest}", "namespace": metadata["namespace"]},
        "eventTime": time,
        "type": "Warning" if happening.is_warning else "Normal",
        "reason": happening.reason[:128],
        "action": happening.reason[:128],
        "note": happening.note[:_NOTE_MAX],
        "reportingController": f"{names.GROUP}/{names.FIELD_MANAGER}",
        "reportingInstance": names.FIELD_MANAGER,
        "regarding": {
            "apiVersion": names.API_VERSION,
            "kind": regarding["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
    }
