"""Keeping a pod away from nodes by name: a required node affinity, merged with the one that the user asked for.

Field selectors (`matchFields`) and not labels: a node's hostname label need not be its name. The API server takes one
value for each, so every node is a requirement of its own; requirements of one term must all hold, and terms are
alternatives, so each term gets all of them.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from m3_operator import names

_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"


def without_nodes(pod: Mapping[str, Any], nodes: Collection[str]) -> dict[str, Any]:
    """The manifest of a pod that may not run on these nodes, and says so in an annotation."""
    spec, metadata = pod["spec"], pod["metadata"]
    annotations = {**metadata.get("annotations", {}), names.AVOIDS_ANNOTATION: ",".join(sorted(nodes))}
    return {
        **pod,
        "metadata": {**metadata, "annotations": annotations},
        "spec": {**spec, "affinity": _affinity(spec.get("affinity") or {}, nodes)},
    }


def _affinity(affinity: Mapping[str, Any], nodes: Collection[str]) -> dict[str, Any]:
    node_affinity = affinity.get("nodeAffinity") or {}
    required = node_affinity.get(_REQUIRED) or {}
    forbidden = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in sorted(nodes)]
    terms = required.get("nodeSelectorTerms") or ()
    # A term without requirements matches no node, and must not become one that matches most of them.
    narrowed = [
        {**term, "matchFields": [*(term.get("matchFields") or ()), *forbidden]} if any(term.values()) else term
        for term in terms
    ]
    selector = {**required, "nodeSelectorTerms": narrowed or [{"matchFields": forbidden}]}
    return {**affinity, "nodeAffinity": {**node_affinity, _REQUIRED: selector}}
