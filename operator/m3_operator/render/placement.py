"""Where the scheduler may put the pods of a group: what `spec.placement` becomes in a pod.

Packing is pod affinity to the group's own labels, exclusiveness is anti-affinity to every other group's, spreading is
a constraint over the pods of rank 0, one for each group. All of it joins what the user's template says, and overwrites
none of it. How a group is held back until all its pods have a place is `gang`'s.
"""

from collections.abc import Mapping
from typing import Any

from m3_operator import names
from m3_operator.api import M3Deployment
from m3_operator.render.affinity import PREFERRED, REQUIRED, joined_affinity, with_affinity

_WEIGHT = 100
"""The largest: nothing else that we prefer is worth more than the bandwidth between ranks."""
_NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def placed(pod_spec: Mapping[str, Any], deployment: M3Deployment, group: int, rank: int) -> dict[str, Any]:
    """The pod spec with the placement of its group laid beside what it already says."""
    placement = joined_affinity(_packing(deployment, group), _exclusion(deployment, group))
    spec = with_affinity(pod_spec, placement)
    spread = _spreading(deployment) if rank == 0 else None
    if spread is not None:
        constraints = spec.get("topologySpreadConstraints") or []
        # Kubernetes refuses two of one key and one action; the user's own says more of what they want.
        if not any(_identity(constraint) == _identity(spread) for constraint in constraints):
            spec["topologySpreadConstraints"] = [*constraints, spread]
    return spec


def _packing(deployment: M3Deployment, group: int) -> dict[str, Any]:
    """Affinity to the group itself. The scheduler lets the first pod of such a group go anywhere."""
    placement, name = deployment.spec.placement, deployment.metadata.name
    if deployment.spec.parallelism.nodes == 1:
        return {}

    def near(key: str) -> dict[str, Any]:
        return {"labelSelector": {"matchLabels": names.group_selector(name, group)}, "topologyKey": key}

    rules: dict[str, Any] = {}
    if placement.required is not None:
        rules[REQUIRED] = [near(placement.topology_keys.key(placement.required))]
    if placement.preferred is not None:
        term = near(placement.topology_keys.key(placement.preferred))
        rules[PREFERRED] = [{"weight": _WEIGHT, "podAffinityTerm": term}]
    return {"podAffinity": rules} if rules else {}


def _exclusion(deployment: M3Deployment, group: int) -> dict[str, Any]:
    """Anti-affinity to the pods of every other group: of this deployment, of others here, and of other namespaces.

    Three terms, because a label selector cannot say "not this deployment's group 3" in one.
    """
    placement, meta = deployment.spec.placement, deployment.metadata
    if not placement.exclusive or placement.required is None:
        return {}
    key = placement.topology_keys.key(placement.required)
    is_grouped = {"key": names.GROUP_LABEL, "operator": "Exists"}
    other_groups = [
        {"key": names.DEPLOYMENT_LABEL, "operator": "In", "values": [meta.name]},
        {"key": names.GROUP_LABEL, "operator": "NotIn", "values": [str(group)]},
        is_grouped,
    ]
    other_deployments = [{"key": names.DEPLOYMENT_LABEL, "operator": "NotIn", "values": [meta.name]}, is_grouped]
    elsewhere = [{"key": _NAMESPACE_LABEL, "operator": "NotIn", "values": [meta.namespace]}]
    terms: list[dict[str, Any]] = [
        {"labelSelector": {"matchExpressions": other_groups}, "topologyKey": key},
        {"labelSelector": {"matchExpressions": other_deployments}, "topologyKey": key},
        {
            "labelSelector": {"matchExpressions": [is_grouped]},
            "namespaceSelector": {"matchExpressions": elsewhere},
            "topologyKey": key,
        },
    ]
    return {"podAntiAffinity": {REQUIRED: terms}}


def _spreading(deployment: M3Deployment) -> dict[str, Any] | None:
    placement = deployment.spec.placement
    if placement.spread_across is None:
        return None
    return {
        "maxSkew": 1,
        "topologyKey": placement.topology_keys.key(placement.spread_across),
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": names.rank0_selector(deployment.metadata.name)},
    }


def _identity(constraint: Mapping[str, Any]) -> tuple[object, object]:
    return constraint.get("topologyKey"), constraint.get("whenUnsatisfiable")
