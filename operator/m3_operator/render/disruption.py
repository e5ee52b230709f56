"""What keeps evictions from taking too many groups at once: one PodDisruptionBudget over every rank 0.

Rank 0 stands for its group: it alone serves, and it goes first when its group drains. A rank 0 that does not serve may
always be evicted, or a broken group would hold up the drain of its node.
"""

from typing import Any

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.render import pod


def disruption_budget(deployment: M3Deployment, *, groups: int, max_unavailable: int = 1) -> dict[str, Any]:
    """The budget of one deployment of which `groups` are wanted: so many of them may be evicted at once.

    Said as `minAvailable`, for Kubernetes reads `maxUnavailable` against spec.replicas, which autoscaling leaves alone.
    """
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
            "minAvailable": max(groups - max_unavailable, 0),
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.rank0_selector(meta.name)},
        },
    }
