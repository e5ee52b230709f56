"""Keeping a pod away from nodes by name: a required node affinity beside the one that it has.

Field selectors (`matchFields`) and not labels: a node's hostname label need not be its name. The API server takes one
value for each, so every node is a requirement of its own.
"""

from collections.abc import Collection, Mapping
from typing import Any

from m3_operator import names
from m3_operator.render.affinity import REQUIRED, with_affinity


def without_nodes(pod: Mapping[str, Any], nodes: Collection[str]) -> dict[str, Any]:
    """The manifest of a pod that may not run on these nodes, and says so in an annotation."""
    spec, metadata = pod["spec"], pod["metadata"]
    annotations = {**metadata.get("annotations", {}), names.AVOIDS_ANNOTATION: ",".join(sorted(nodes))}
    forbidden = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in sorted(nodes)]
    elsewhere = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchFields": forbidden}]}}}
    return {
        **pod,
        "metadata": {**metadata, "annotations": annotations},
        "spec": with_affinity(spec, elsewhere),
    }
