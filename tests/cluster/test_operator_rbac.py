"""The chart's rules are what the operator needs, no less and no more: a life that needs every one of them.

Whoever adds a rule adds to `SCENES` what needs it, or to `GRANTED_ON` why it is held without being used.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from m3_operator import names
from m3_operator.api import parse_deployment
from m3_operator.render.cache import claim_of, fetch_job
from m3_operator.render.worker import revision
from m3_operator.resources import CHILD_SELECTORS, RESOURCES
from m3_testcluster.cluster import Cluster
from operator_process import WORKER_IMAGE, Account, chart_permissions, install_account, running_operator
from operator_rights import Right, not_covered, rights_of, used

_GIVEN_ON = "routers watch their workers' endpoints, by a Role that the operator makes: nobody grants what they lack"
GRANTED_ON = {
    **{Right("discovery.k8s.io", "endpointslices", verb): _GIVEN_ON for verb in ("get", "list", "watch")},
    Right("", "pods", "patch"): "takes away groups' gates where the API server has no PodGroups: this one has",
}
"""Rights that the operator holds and does not use in this life, and why."""


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
    strays = [_stray(kind, owner) for kind in CHILD_SELECTORS if kind in _ROUTERS_STRAYS]
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


def a_revision_s_name_is_taken_and_old_ones_are_forgotten(stage: Stage) -> None:
    """A stranger's ControllerRevision is looked at and left alone; ours go when nothing can go back to them."""
    wanted = stage.deployment(replicas=1, rollout={"revisionHistoryLimit": 0}, engine={"maxConcurrent": 3})
    name = names.revision_name("m3", revision(parse_deployment(wanted, strict=True), WORKER_IMAGE))
    stage.apply(
        {"apiVersion": "apps/v1", "kind": names.REVISION_KIND, "metadata": {"name": name}, "data": {}, "revision": 1}
    )
    stage.apply(wanted)
    stage.wait("--for=jsonpath={.status.conditions[?(@.type=='Ready')].reason}=NameTaken", "m3d/m3")
    before = stage.kubectl("get", "controllerrevisions", "--output=name", "--selector=serving.m3.dev/deployment=m3")
    stage.kubectl("delete", "controllerrevision", name)
    stage.wait("--for=delete", *before.split())
    stage.wait("--for=condition=Ready", "m3d/m3")


def budgets_of_an_earlier_version_are_left(stage: Stage) -> None:
    """A PodDisruptionBudget that a deployment owns and no longer wants."""
    stage.apply(_stray("PodDisruptionBudget", stage.cluster.get("m3d/m3", f"--namespace={stage.namespace}")))
    stage.wait("--for=delete", "poddisruptionbudget/stray")


def a_tenant_is_told_where_it_is_accepted(stage: Stage) -> None:
    """A key by its digest."""
    tenant = {"apiVersion": names.API_VERSION, "kind": names.TENANT_KIND, "metadata": {"name": "acme"}}
    stage.apply({**tenant, "spec": {"keys": [{"sha256": "ab" * 32}]}})
    stage.wait("--for=create", "m3t/acme")
    stage.wait("--for=jsonpath={.status.conditions[?(@.type=='Ready')].reason}=Accepted", "m3t/acme")


def what_a_spec_may_ask_for_is_made_and_removed(stage: Stage) -> None:
    """Objects that only some deployments have: each comes when it is asked for, and goes when it is not."""
    signal = {"type": "TokensInFlight", "target": 1000}
    scaled = {"maxReplicas": 2, "signals": [signal]}
    prometheus = "http://prometheus.monitoring:9090"
    aspects: list[tuple[dict[str, Any], str]] = [
        ({"networkPolicy": {"enabled": True}}, "networkpolicies"),
        ({"monitoring": {"enabled": True}}, "podmonitors.monitoring.coreos.com"),
        ({"autoscaling": {**scaled, "backend": "HPA"}}, "horizontalpodautoscalers"),
        ({"autoscaling": {**scaled, "backend": "KEDA", "prometheusUrl": prometheus}}, "scaledobjects.keda.sh"),
        ({"accelerator": {"mode": "DRA"}}, "resourceclaimtemplates"),
        *(
            ({"parallelism": {"nodes": 2, "gpusPerNode": 1}, "placement": {"gang": {"provider": provider}}}, plural)
            for provider, plural in (
                ("Native", "podgroups.scheduling.k8s.io"),
                ("Volcano", "podgroups.scheduling.volcano.sh"),
                ("SchedulerPlugins", "podgroups.scheduling.x-k8s.io"),
            )
        ),
    ]
    for aspect, plural in aspects:
        stage.apply(stage.deployment(replicas=1, **aspect))
        found = eventually(lambda plural=plural: stage.kubectl("get", plural, "--output=name").split())
        stage.apply(stage.deployment(replicas=1))
        stage.wait("--for=delete", *found)
    stage.wait("--for=condition=Ready", "m3d/m3")


def a_model_is_downloaded_into_a_volume(stage: Stage) -> None:
    """Strangers have the names of the Job and of the claim: they are left alone; what was made goes with the spec."""
    source = {"huggingFace": {"repo": "acme/model", "revision": "0123456789abcdef0123456789abcdef01234567"}}

    def spec(**cache: Any) -> dict[str, Any]:
        return stage.deployment(replicas=1, model={"name": "MiniMax-M3", "source": source, "cache": cache})

    theirs, own = spec(claimName="theirs"), spec(size="1Gi", retain=False)
    job = fetch_job(parse_deployment(theirs, strict=True), WORKER_IMAGE, "")["metadata"]["name"]
    claim = str(claim_of(parse_deployment(own, strict=True)))
    stage.apply(
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job}, "spec": {"template": _JOB_TEMPLATE}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": _CLAIM},
    )
    for wanted, taken in ((theirs, f"job/{job}"), (own, f"persistentvolumeclaim/{claim}")):
        stage.apply(wanted)
        stage.wait("--for=jsonpath={.status.conditions[?(@.type=='Ready')].reason}=NameTaken", "m3d/m3")
        stage.kubectl("delete", taken, "--wait")
        stage.wait("--for=create", taken)
    stage.wait("--for=delete", f"job/{job}")
    stage.apply(stage.deployment(replicas=1))
    stage.wait("--for=delete", f"persistentvolumeclaim/{claim}")
    stage.wait("--for=condition=Ready", "m3d/m3")


def eventually(look: Callable[[], list[str]]) -> list[str]:
    """What is there, once something is."""
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)
    return found


SCENES: list[Callable[[Stage], None]] = [
    a_pod_is_in_the_way,
    a_group_is_one_too_many,
    children_of_an_earlier_version_are_left,
    budgets_of_an_earlier_version_are_left,
    a_tenant_is_told_where_it_is_accepted,
    a_revision_s_name_is_taken_and_old_ones_are_forgotten,
    what_a_spec_may_ask_for_is_made_and_removed,
    a_model_is_downloaded_into_a_volume,
    a_router_is_shared,
]

_OWNER_LABELS = {names.ROUTER_KIND: names.ROUTER_LABEL, names.DEPLOYMENT_KIND: names.DEPLOYMENT_LABEL}
_LABELS = {"app": "stray"}
_POD_TEMPLATE = {
    "metadata": {"labels": _LABELS},
    "spec": {"containers": [{"name": "main", "image": "stranger.test/pod:1"}]},
}
_JOB_TEMPLATE = {"spec": {**_POD_TEMPLATE["spec"], "restartPolicy": "Never"}}
_CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
_ROLE_REF = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "stray"}
_STRAYS: dict[str, dict[str, Any]] = {
    "Service": {"spec": {"ports": [{"port": 80}]}},
    "ConfigMap": {},
    "ServiceAccount": {},
    "Deployment": {"spec": {"replicas": 0, "selector": {"matchLabels": _LABELS}, "template": _POD_TEMPLATE}},
    "Role": {"rules": []},
    "RoleBinding": {"roleRef": _ROLE_REF},
    "PodDisruptionBudget": {"spec": {"selector": {"matchLabels": _LABELS}, "maxUnavailable": 1}},
}
_ROUTERS_STRAYS = _STRAYS.keys() - {"PodDisruptionBudget"}


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
            "labels": {names.MANAGED_BY_LABEL: names.FIELD_MANAGER, _OWNER_LABELS[owner["kind"]]: metadata["name"]},
            "ownerReferences": [reference],
        },
        **_STRAYS[kind],
    }


@pytest.fixture
def kinds_of_other_projects(m3_cluster: Cluster) -> Iterator[None]:
    """The optional kinds that the API server does not have by itself, without their controllers."""
    definitions = [
        _definition("PodGroup", "podgroups", "scheduling.volcano.sh", "v1beta1"),
        _definition("PodGroup", "podgroups", "scheduling.x-k8s.io", "v1alpha1"),
        _definition("ScaledObject", "scaledobjects", "keda.sh", "v1alpha1"),
        _definition("PodMonitor", "podmonitors", "monitoring.coreos.com", "v1"),
    ]
    m3_cluster.apply(definitions)
    found = [f"crd/{definition['metadata']['name']}" for definition in definitions]
    m3_cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *found)
    yield
    m3_cluster.kubectl("delete", "--timeout=60s", *found)


def _definition(kind: str, plural: str, group: str, version: str) -> dict[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    versions = [{"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}]
    named = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {"group": group, "scope": "Namespaced", "names": named, "versions": versions},
    }


@pytest.mark.timeout(600, func_only=True)
@pytest.mark.usefixtures("kinds_of_other_projects")
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
    unused = sorted(str(right) for right in rights - used(rights, events) - GRANTED_ON.keys())
    assert not unused, (
        f"no request needed these rights of charts/m3serve/templates/_rules.tpl: {unused}. Remove them, add to SCENES "
        "what needs them, or say in GRANTED_ON why they are held"
    )
    stale = [str(right) for right in GRANTED_ON if right not in rights]
    assert not stale, f"GRANTED_ON explains what is not held: {stale}"


def remove_cluster_permissions(cluster: Cluster, namespace: str, scope: str) -> None:
    """What is not of the namespace, and does not go with it."""
    for found in chart_permissions(namespace, scope):
        if found["kind"].startswith("Cluster"):
            cluster.kubectl("delete", found["kind"], found["metadata"]["name"], "--ignore-not-found")
