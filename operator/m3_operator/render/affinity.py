"""Affinities as Kubernetes writes them, and two of them joined so that a pod obeys both.

Pure, and of nobody's specs: placement, avoidance and a user's own template all go through `joined_affinity`, so that
none overwrites another.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

Affinity = Mapping[str, Any]

REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED: Final = "preferredDuringSchedulingIgnoredDuringExecution"
_NO_NODE: Final[Mapping[str, Any]] = {}
"""A node selector term without requirements: Kubernetes lets it match no node."""


def joined_affinity(first: Affinity, second: Affinity) -> dict[str, Any]:
    """An affinity that demands what either demands, and prefers what either prefers; `first` comes first.

    Terms about pods hold one beside the other, so they are appended. The terms of a required node selector are
    alternatives, so that both selectors hold where one term of each does: (a or b) and c = (a and c) or (b and c).
    """
    joined: dict[str, Any] = {}
    for kind in ("nodeAffinity", "podAffinity", "podAntiAffinity"):
        one, other = first.get(kind) or {}, second.get(kind) or {}
        rules: dict[str, Any] = {}
        preferred = [*(one.get(PREFERRED) or ()), *(other.get(PREFERRED) or ())]
        if kind == "nodeAffinity":
            required: Any = _joined_selectors(one.get(REQUIRED), other.get(REQUIRED))
        else:
            required = [*(one.get(REQUIRED) or ()), *(other.get(REQUIRED) or ())]
        if required:
            rules[REQUIRED] = required
        if preferred:
            rules[PREFERRED] = preferred
        if rules:
            joined[kind] = rules
    return joined


def with_affinity(pod_spec: Mapping[str, Any], affinity: Affinity) -> dict[str, Any]:
    """The pod spec with this affinity beside the one that it has."""
    joined = joined_affinity(pod_spec.get("affinity") or {}, affinity)
    return {**pod_spec, "affinity": joined} if joined else dict(pod_spec)


def _joined_selectors(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> dict[str, Any]:
    """The node selector that holds where both do; None selects every node."""
    if not first or not second:
        return dict(first or second or {})
    pairs = [(one, other) for one in _possible(first) for other in _possible(second)]
    return {"nodeSelectorTerms": [_both(one, other) for one, other in pairs] or [dict(_NO_NODE)]}


def _possible(selector: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The terms that some node can match: joined with another, an empty one would become that other."""
    return [term for term in selector["nodeSelectorTerms"] if term.get("matchExpressions") or term.get("matchFields")]


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("matchExpressions", "matchFields")
    joined = {field: [*(one.get(field) or ()), *(other.get(field) or ())] for field in fields}
    return {field: requirements for field, requirements in joined.items() if requirements}
