"""Which objects differ from their desired form.

Two looks, because neither is enough. The hash of what was applied last tells that the desired form has changed, fields
that are no longer wanted included. Comparing the desired fields with the live ones tells that somebody else changed
them. Fields we do not apply (defaults, other managers') never count. An object that passes both is not written.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

from m3_operator import names
from m3_operator.observed import Manifest, owner_uid, uid
from m3_operator.plan.actions import ApplyObject, CreateObject, DeleteObject, ObjectAction
from m3_operator.resources import table_kind

# Made once: what may change of a claim (its size) is the user's, and of a Job nothing may.
_IMMUTABLE: Final = (names.REVISION_KIND, "PersistentVolumeClaim", "Job")
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)([numkMGTPE]|[KMGTPE]i)?")
_DECIMAL_SUFFIXES = {s: Decimal(1000) ** power for power, s in enumerate(("n", "u", "m", "", *"kMGTPE"), -3)}
_BINARY_SUFFIXES = {f"{s}i": Decimal(1024) ** power for power, s in enumerate("KMGTPE", 1)}
_SUFFIXES: Final = {**_DECIMAL_SUFFIXES, **_BINARY_SUFFIXES}


def differences(
    desired: Iterable[Manifest], live: Mapping[tuple[str, str], Manifest], owner: Manifest
) -> list[ObjectAction]:
    """Apply what is missing or differs; delete what this owner controls and no longer wants. `live`: by kind, name."""
    actions: list[ObjectAction] = []
    wanted: set[tuple[str, str]] = set()
    for manifest in desired:
        identity = (table_kind(manifest), manifest["metadata"]["name"])
        wanted.add(identity)
        found = live.get(identity)
        if manifest["kind"] in _IMMUTABLE:
            if found is None:
                actions.append(CreateObject(manifest, "it is missing"))
            continue
        stamped = stamp(manifest)
        if found is None:
            actions.append(ApplyObject(stamped, "it is missing"))
        elif applied_hash(found) != applied_hash(stamped):
            actions.append(ApplyObject(stamped, "its desired form has changed"))
        elif (path := first_difference(stamped, found)) is not None:
            actions.append(ApplyObject(stamped, f"{path} was changed by somebody else", is_repair=True))
    for identity, found in live.items():
        if identity not in wanted and owner_uid(found) == uid(owner) and not _is_terminating(found):
            actions.append(DeleteObject(found, "it is no longer wanted"))
    return actions


def stamp(manifest: Manifest) -> dict[str, Any]:
    """The manifest with the hash of itself as an annotation."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), names.APPLIED_HASH_ANNOTATION: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def applied_hash(manifest: Manifest) -> str | None:
    """The hash that `stamp` left on an object."""
    found: str | None = (manifest.get("metadata", {}).get("annotations") or {}).get(names.APPLIED_HASH_ANNOTATION)
    return found


def first_difference(desired: object, live: object, path: str = "") -> str | None:
    """The path of the first desired field whose live value is another; None if all are there.

    Empty values count as absent, and quantities by what they mean: the API server drops the first and rewrites the
    second ("1024Mi" becomes "1Gi").
    """
    if isinstance(desired, Mapping) and isinstance(live, Mapping):
        for key, value in desired.items():
            found = first_difference(value, live.get(key), f"{path}.{key}" if path else str(key))
            if found is not None:
                return found
        return None
    if isinstance(desired, list | tuple) and isinstance(live, list | tuple) and len(desired) == len(live):
        for index, (value, other) in enumerate(zip(desired, live, strict=True)):
            found = first_difference(value, other, f"{path}[{index}]")
            if found is not None:
                return found
        return None
    if desired == live or (not desired and live is None) or _is_same_quantity(desired, live):
        return None
    return path


def _is_same_quantity(one: object, other: object) -> bool:
    first, second = _quantity(one), _quantity(other)
    return first is not None and first == second


def _quantity(value: object) -> Decimal | None:
    """A Kubernetes quantity as a number; None if it is none."""
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    return Decimal(match[1]) * _SUFFIXES[match[2] or ""] if match else None


def _is_terminating(manifest: Manifest) -> bool:
    return bool(manifest.get("metadata", {}).get("deletionTimestamp"))
