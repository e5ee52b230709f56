"""The chart's rules are what the operator needs, no less and no more: a life that needs every one of them.

Whoever adds a rule adds to `SCENES` what needs it, or to `GRANTED_ON` why it is held without being used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m3_operator import names
from m3_operator.resources import CHILD_SELECTORS, RESOURCES
from m3_testcluster.cluster import Cluster
from operator_process import Account, chart_permissions, install_account, running_operator
from operator_rights import Right, not_covered, rights_of, used

GRANTED_ON = {
    (
        "discovery.k8s.io",
        "endpointslices",
    ): "routers watch their workers' endpoints, by a Role that the operator makes: "
    "nobody may grant what they do not have",
}
"""Resources whose rights the operator holds and does not use itself, and why."""


class Stage:
    """A namespace in which the operator runs."""

    def __init__(self, cluster: Cluster, namespace: str, node_selector: dict[str, str]) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.template = {"nodeSelector": node_selector}

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl(*arguments, f"--namespace={self.namespace}")

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.cluster.apply(manifests, namespace=self.namespace)

    def wait(self, *arguments: str) -> None:
        self.kubectl("wait", "--timeout=60s", *arguments)

    def deployment(self, **spec: Any) -> dict[str, Any]:
        return {
            "apiVersion": names.API_VERSION,
            "kind": names.DEPLOYMENT_KIND,
            "metadata": {"name": "m3"},
            "spec": {
                "model": {"name": "MiniMax-M3", "source": {"tiny": {"seed": 1}}},
                "parallelism": {"nodes": 1, "gpusPerNode": 1},
                "template": self.template,
                **spec,
            },
        }


def a_pod_is_in_the_way(stage: Stage) -> None:
    """A stranger's pod has a name that is needed: it is looked at, left alone, and the group comes when it is gone."""
    container = {"name": "main", "image": "stranger.test/pod:1"}
    stage.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "m3-g1-r0"}, "spec": {"containers": [container]}}
    )
    stage.apply(stage.deployment(replicas=2))
    stage.wait("--for=jsonpath={.status.readyReplicas}=1", "m3d/m3")
    stage.wait("--for=create", "m3r/m3")
    stage.kubectl("delete", "pod/m3-g1-r0", "--grace-period=0", "--force")
    stage.wait("--for=condition=Ready", "m3d/m3", "m3r/m3")


def a_group_is_one_too_many(stage: Stage) -> None:
    """Scaling in removes its pod and its Service."""
    stage.kubectl("scale", "m3d/m3", "--replicas=1")
    stage.wait("--for=delete", "service/m3-g1", "pod/m3-g1-r0")


def children_of_an_earlier_version_are_left(stage: Stage) -> None:
    """Objects that a router owns and no longer wants: one of each kind that the operator makes for it."""
    owner = stage.cluster.get("m3r/m3", f"--namespace={stage.namespace}")
    strays = [_stray(kind, owner) for kind in CHILD_SELECTORS if kind in _STRAYS]
    stage.apply(*strays)
    for stray in strays:
        resource = RESOURCES[stray["kind"]]
        plural = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
        stage.wait("--for=delete", f"{plural}/stray")


def a_router_is_shared(stage: Stage) -> None:
    """A deployment that names a router loses the one that was made for it."""
    shared = {
        "apiVersion": names.API_VERSION,
        "kind": names.ROUTER_KIND,
        "metadata": {"name": "shared"},
        "spec": {"deployments": [{"name": "m3"}], "template": stage.template},
    }
    stage.apply(shared, stage.deployment(replicas=1, router={"name": "shared"}))
    stage.wait("--for=delete", "m3r/m3")
    stage.wait("--for=condition=Ready", "m3r/shared")


SCENES: list[Callable[[Stage], None]] = [
    a_pod_is_in_the_way,
    a_group_is_one_too_many,
    children_of_an_earlier_version_are_left,
    a_router_is_shared,
]

_LABELS = {"app": "stray"}
_POD_TEMPLATE = {
    "metadata": {"labels": _LABELS},
    "spec": {"containers": [{"name": "main", "image": "stranger.test/pod:1"}]},
}
_ROLE_REF = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "stray"}
_STRAYS: dict[str, dict[str, Any]] = {
    "Service": {"spec": {"ports": [{"port": 80}]}},
    "ConfigMap": {},
    "ServiceAccount": {},
    "Deployment": {"spec": {"replicas": 0, "selector": {"matchLabels": _LABELS}, "template": _POD_TEMPLATE}},
    "Role": {"rules": []},
    "RoleBinding": {"roleRef": _ROLE_REF},
}


def _stray(kind: str, owner: dict[str, Any]) -> dict[str, Any]:
    metadata = owner["metadata"]
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }
    return {
        "apiVersion": RESOURCES[kind].api_version,
        "kind": kind,
        "metadata": {
            "name": "stray",
            "labels": {names.MANAGED_BY_LABEL: names.FIELD_MANAGER, names.ROUTER_LABEL: metadata["name"]},
            "ownerReferences": [reference],
        },
        **_STRAYS[kind],
    }


@pytest.mark.parametrize("scope", ["namespace", "cluster"])
def test_the_operator_uses_every_rule_of_the_chart_and_asks_for_nothing_else(
    m3_cluster: Cluster, namespace: str, gpu_nodes: dict[str, str], tmp_path: Path, scope: str
) -> None:
    account = install_account(m3_cluster, namespace, scope)
    try:
        stage = Stage(m3_cluster, namespace, gpu_nodes)
        with running_operator(account, tmp_path, all_namespaces=scope == "cluster") as operator:
            for scene in SCENES:
                scene(stage)
            assert operator.stop() == 0  # a watch is in the audit log when it has ended
        check(account, scope)
    finally:
        remove_cluster_permissions(m3_cluster, namespace, scope)


def check(account: Account, scope: str) -> None:
    """Every request against every rule."""
    rights = rights_of(
        rule for found in chart_permissions(account.namespace, scope) for rule in found.get("rules") or ()
    )
    # What it did in namespaces that other tests are leaving behind is not of this life.
    events = [event for event in account.cluster.requests(account.user) if event.namespace in ("", account.namespace)]
    assert events, "the audit log shows none of the operator's requests: the test is blind"

    missing = not_covered(rights, events)
    assert not missing, f"the operator asked for what charts/m3serve/templates/_rules.tpl does not give: {missing}"
    refused = [str(event) for event in events if event.code in (401, 403)]
    assert not refused, f"refused: {refused}"
    unused = sorted(str(right) for right in rights - used(rights, events) if not _is_granted_on(right))
    assert not unused, (
        f"no request needed these rights of charts/m3serve/templates/_rules.tpl: {unused}. Remove them, add to SCENES "
        "what needs them, or say in GRANTED_ON why they are held"
    )
    stale = [key for key in GRANTED_ON if key not in {(right.group, right.resource) for right in rights}]
    assert not stale, f"GRANTED_ON explains what is not held: {stale}"


def remove_cluster_permissions(cluster: Cluster, namespace: str, scope: str) -> None:
    """What is not of the namespace, and does not go with it."""
    for found in chart_permissions(namespace, scope):
        if found["kind"].startswith("Cluster"):
            cluster.kubectl("delete", found["kind"], found["metadata"]["name"], "--ignore-not-found")


def _is_granted_on(right: Right) -> bool:
    return (right.group, right.resource) in GRANTED_ON
