"""What keeps evictions from taking too many groups at once: one PodDisruptionBudget over every rank 0.

Rank 0 stands for its group: it alone serves, and it goes first when its group drains. A rank 0 that does not serve may
always be evicted, or a broken group would hold up the drain of its node.
"""

from typing import Any

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.render import pod


def disruption_budget(deployment: M3Deployment, *, max_unavailable: int | str = 1) -> dict[str, Any]:
    """The budget of one deployment: so many groups, or such a share of them, may be evicted at once."""
    meta = deployment.metadata
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": names.workers_service_name(meta.name),
            "namespace": meta.namespace,
            "labels": names.worker_labels(meta.name),
            "ownerReferences": [pod.owner_reference(names.DEPLOYMENT_KIND, meta.name, meta.uid)],
        },
        "spec": {
            "maxUnavailable": max_unavailable,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.rank0_selector(meta.name)},
        },
    }
