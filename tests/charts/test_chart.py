"""The chart as Helm renders it: what its values may be, and what every rendered object has to be."""

import itertools
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from m3_operator.options import DEFAULT_LEASE, parse_options

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "m3serve"
HELM = Path(sys.executable).parent / "helm"
KUBERNETES = "1.37"
CLUSTER_SCOPED = {"ClusterRole", "ClusterRoleBinding"}

MATRIX: dict[str, list[str]] = {
    "defaults": [],
    "cluster": ["rbac.scope=cluster"],
    "aggregation": ["rbac.aggregate=true"],
    "no rbac": ["rbac.create=false"],
    "account of somebody else": ["serviceAccount.create=false", "serviceAccount.name=mine"],
    "two replicas": ["operator.replicas=2", "operator.logFormat=json"],
    "network policy": [
        "networkPolicy.enabled=true",
        "networkPolicy.apiServerPorts={443,16443}",
        "networkPolicy.gpuMetricsPorts={9400}",
    ],
    "metrics": [
        "networkPolicy.enabled=true",
        "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name=monitoring",
    ],
    "test": ["test.deployment=tiny", "test.timeoutSeconds=60"],
    "test through a shared router": [
        "test.deployment=blue",
        "test.router=shared",
        "test.model=M3-blue",
        "test.port=8080",
    ],
    "images": [
        "operator.image.repository=registry.example:5000/m3/operator",
        "operator.image.digest=sha256:" + "0" * 64,
        "worker.image.tag=2.0",
        "imagePullSecrets[0].name=pull",
    ],
    "placement": [
        "operator.nodeSelector.disk=ssd",
        "operator.tolerations[0].key=a",
        "operator.tolerations[0].operator=Exists",
        "operator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]"
        ".matchExpressions[0].key=zone",
        "operator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]"
        ".matchExpressions[0].operator=Exists",
        "operator.priorityClassName=high",
        "test.deployment=tiny",
    ],
    "metadata": [
        "operator.podAnnotations.a=b",
        "operator.podLabels.c=d",
        "serviceAccount.annotations.e=f",
        "fullnameOverride=other",
    ],
}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=60, check=False)


def settings(values: list[str]) -> list[str]:
    return list(itertools.chain.from_iterable(("--set", value) for value in values))


def render(values: list[str], release: str = "m3", namespace: str = "serving") -> list[dict[str, Any]]:
    result = helm("template", release, str(CHART), "--namespace", namespace, *settings(values))
    assert result.returncode == 0, result.stderr
    return [document for document in yaml.safe_load_all(result.stdout) if document]


def one(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (item for item in objects if item["kind"] == kind)
    return found


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_every_choice_of_values_lints_and_renders_objects_that_kubernetes_knows(values: list[str]) -> None:
    linted = helm("lint", "--strict", str(CHART), *settings(values))
    assert linted.returncode == 0, linted.stdout + linted.stderr

    objects = render(values)

    assert objects
    for item in objects:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
        expected = None if item["kind"] in CLUSTER_SCOPED else "serving"
        assert item["metadata"].get("namespace") == expected, item["metadata"]["name"]
        assert item["metadata"]["labels"]["app.kubernetes.io/part-of"] == "m3serve"


def test_a_namespaced_install_creates_nothing_outside_of_its_namespace() -> None:
    kinds = {item["kind"] for item in render([])}

    assert kinds == {"ServiceAccount", "Role", "RoleBinding", "Deployment"}


def test_the_operator_watches_what_its_permissions_reach() -> None:
    namespaced, cluster = render([]), render(["rbac.scope=cluster"])

    assert "--namespace=serving" in container(namespaced)["args"]
    assert one(namespaced, "RoleBinding")["roleRef"]["name"] == one(namespaced, "Role")["metadata"]["name"]
    assert "--all-namespaces" in container(cluster)["args"]
    assert "--namespace=serving" not in container(cluster)["args"]
    assert {"kind": "ServiceAccount", "name": "m3-m3serve-operator", "namespace": "serving"} in one(
        cluster, "ClusterRoleBinding"
    )["subjects"]


def test_two_releases_of_one_name_in_two_namespaces_do_not_share_cluster_roles() -> None:
    first = {item["metadata"]["name"] for item in render(["rbac.scope=cluster"], namespace="a") if is_cluster(item)}
    second = {item["metadata"]["name"] for item in render(["rbac.scope=cluster"], namespace="b") if is_cluster(item)}

    assert first
    assert not first & second


def test_the_operator_gets_no_more_than_it_uses() -> None:
    rules = one(render([]), "Role")["rules"]

    allowed = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert not [entry for entry in allowed if "*" in entry]
    assert {verb for _, resource, verb in allowed if resource == "secrets"} == {"create"}
    assert not {verb for _, _, verb in allowed} & {"escalate", "bind", "impersonate", "deletecollection"}
    assert {resource for _, resource, verb in allowed if verb == "update"} == {"leases"}
    assert not [rule for rule in rules if "nonResourceURLs" in rule]


def test_the_operator_may_do_in_a_cluster_what_it_may_do_in_a_namespace_and_look_at_nodes() -> None:
    cluster = render(["rbac.scope=cluster"])
    rules = [*one(cluster, "ClusterRole")["rules"], *one(cluster, "Role")["rules"]]
    nodes = {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}

    assert [rule for rule in rules if rule != nodes] == one(render([]), "Role")["rules"]
    assert nodes in rules


def test_aggregation_lets_a_namespaces_admin_grant_everything_that_the_operator_needs() -> None:
    objects = render(["rbac.aggregate=true"])

    to_admin = [
        item
        for item in objects
        if item["metadata"]["labels"].get("rbac.authorization.k8s.io/aggregate-to-admin") == "true"
    ]
    assert one(objects, "Role")["rules"] in [item["rules"] for item in to_admin]


@pytest.mark.parametrize("kind", ["Deployment", "Pod"])
def test_pods_meet_the_restricted_pod_security_standard(kind: str) -> None:
    item = one(render(["test.deployment=tiny"]), kind)
    pod = item["spec"]["template"]["spec"] if kind == "Deployment" else item["spec"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for box in pod["containers"]:
        assert box["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert box["resources"]["limits"]["memory"]


def test_one_operator_is_replaced_by_a_new_one_that_stands_by_first() -> None:
    spec = one(render([]), "Deployment")["spec"]

    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert "affinity" not in spec["template"]["spec"]
    assert "PodDisruptionBudget" not in {item["kind"] for item in render([])}


def test_a_standby_is_kept_apart_and_up() -> None:
    objects = render(MATRIX["two replicas"])
    spec = one(objects, "Deployment")["spec"]

    assert spec["replicas"] == 2
    (term,) = spec["template"]["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert term["podAffinityTerm"]["labelSelector"] == spec["selector"]
    budget = one(objects, "PodDisruptionBudget")["spec"]
    assert (budget["maxUnavailable"], budget["selector"]) == (1, spec["selector"])


@pytest.mark.parametrize("scope", ["namespace", "cluster"])
def test_of_all_leases_the_operator_may_write_its_own_in_its_own_namespace(scope: str) -> None:
    objects = render([f"rbac.scope={scope}"])
    rules = [
        (item["kind"], rule)
        for item in objects
        if "rules" in item
        for rule in item["rules"]
        if "leases" in rule["resources"]
    ]

    ((kind, rule),) = rules
    assert kind == "Role"
    assert rule["resourceNames"] == [DEFAULT_LEASE]
    assert rule["verbs"] == ["get", "create", "update"]
    env = {entry["name"]: entry["valueFrom"] for entry in container(objects)["env"]}
    assert env == {"POD_NAME": {"fieldRef": {"fieldPath": "metadata.name"}}}


def test_a_pod_monitor_reads_the_port_that_the_operator_serves() -> None:
    objects = render(
        ["monitoring.podMonitor=true", "monitoring.labels.release=prometheus", "operator.metricsPort=9100"]
    )
    monitor = one(objects, "PodMonitor")

    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "metrics", "interval": "30s"}]
    assert {"name": "metrics", "containerPort": 9100} in container(objects)["ports"]
    assert monitor["spec"]["selector"] == one(objects, "Deployment")["spec"]["selector"]


def test_the_operators_selector_matches_no_pod_that_the_operator_makes() -> None:
    selector = one(render([]), "Deployment")["spec"]["selector"]["matchLabels"]

    assert selector["app.kubernetes.io/component"] == "operator"


def test_images_default_to_the_charts_version_and_a_digest_wins_over_a_tag() -> None:
    plain, pinned = container(render([])), container(render(MATRIX["images"]))

    assert plain["image"] == f"m3serve/operator:{version('m3serve')}"
    assert f"--worker-image=m3serve/worker:{version('m3serve')}" in plain["args"]
    assert pinned["image"] == "registry.example:5000/m3/operator@sha256:" + "0" * 64
    assert "--worker-image=m3serve/worker:2.0" in pinned["args"]


def test_the_network_policy_lets_the_operator_reach_dns_the_api_server_and_metrics_alone() -> None:
    spec = one(render(MATRIX["network policy"]), "NetworkPolicy")["spec"]

    to_anybody = [rule for rule in spec["egress"] if "to" not in rule]
    ports = {(entry["protocol"], entry["port"]) for rule in to_anybody for entry in rule["ports"]}
    assert ports == {("UDP", 53), ("TCP", 53), ("TCP", 443), ("TCP", 16443), ("TCP", 9400)}
    (to_pods,) = [rule for rule in spec["egress"] if "to" in rule]
    (peer,) = to_pods["to"]
    assert peer["podSelector"] == {"matchLabels": {"app.kubernetes.io/managed-by": "m3-operator"}}
    assert spec["ingress"] == []
    assert spec["policyTypes"] == ["Ingress", "Egress"]


@pytest.mark.parametrize("scope", ["namespace", "cluster"])
def test_the_operator_is_started_with_flags_that_it_knows(scope: str) -> None:
    values = ["operator.healthPort=9000", "operator.metricsPort=9001", "operator.logLevel=debug"]
    box = container(render([f"rbac.scope={scope}", *values, "operator.logFormat=json"]))

    options = parse_options([*box["args"], "--leader-namespace=serving"], {"POD_NAME": "m3-operator-0"})

    assert box["command"] == ["m3-operator"]
    assert options.namespace == ("serving" if scope == "namespace" else None)
    assert (options.health_host, options.health_port) == ("0.0.0.0", 9000)
    assert (options.metrics_host, options.metrics_port) == ("0.0.0.0", 9001)
    assert (options.log_level, options.log_format) == ("debug", "json")
    assert options.lease is not None
    assert options.lease.identity == "m3-operator-0"
    assert box["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_helm_test_asks_the_router_of_the_named_deployment_with_the_key_from_its_secret() -> None:
    pod = one(render(MATRIX["test through a shared router"]), "Pod")

    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "hook-succeeded" in pod["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    (box,) = pod["spec"]["containers"]
    assert box["args"][:2] == ["--url=http://shared-router.serving.svc:8080", "--model=M3-blue"]
    assert box["env"][0]["valueFrom"]["secretKeyRef"] == {"name": "shared-keys", "key": "api-key", "optional": True}
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_helm_test_calls_m3_chat_with_flags_that_it_knows() -> None:
    (box,) = one(render(["test.deployment=tiny"]), "Pod")["spec"]["containers"]
    program, *arguments = box["command"] + box["args"]
    elsewhere = [re.sub(r"^--url=.*", "--url=http://127.0.0.1:1", argument) for argument in arguments]

    result = subprocess.run(
        [Path(sys.executable).parent / program, *elsewhere], capture_output=True, text=True, timeout=60, check=False
    )

    assert result.returncode == 1
    assert result.stderr.startswith("m3: no answer from http://127.0.0.1:1")


def test_without_a_deployment_to_test_there_is_no_test_pod() -> None:
    assert "Pod" not in {item["kind"] for item in render([])}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("rbac.scope=clsuter", 'rbac.scope must be one of the following: "namespace", "cluster"'),
        ("operator.image.tagg=1", "Additional property tagg is not allowed"),
        ("bogus=1", "Additional property bogus is not allowed"),
        ("operator.replicas=3", "Must be less than or equal to 2"),
        ("operator.logFormat=xml", "operator.logFormat must be one of the following"),
        ("operator.metricsPort=80", "Must be greater than or equal to 1024"),
        ("monitoring.interval=often", "monitoring.interval: Does not match pattern"),
        ("operator.healthPort=80", "Must be greater than or equal to 1024"),
        ("operator.healthPort=high", "Invalid type. Expected: integer, given: string"),
        ("operator.logLevel=loud", "operator.logLevel must be one of the following"),
        ("operator.image.pullPolicy=Sometimes", "operator.image.pullPolicy must be one of the following"),
        ("worker.image.digest=sha256:abc", "worker.image.digest: Does not match pattern"),
        ("worker.image.repository=", "worker.image.repository: String length must be greater than or equal to 1"),
        ("operator.image.tag=a b", "operator.image.tag: Does not match pattern"),
        ("test.timeoutSeconds=0", "test.timeoutSeconds: Must be greater than or equal to 1"),
        ("test.deployment=Tiny", "test.deployment: Does not match pattern"),
        ("networkPolicy.apiServerPorts={}", "networkPolicy.apiServerPorts"),
        ("operator.podAnnotations.a.b=c", "operator.podAnnotations.a: Invalid type. Expected: string"),
        ("imagePullSecrets[0]=pull", "imagePullSecrets.0: Invalid type. Expected: object"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_the_rule(value: str, message: str) -> None:
    result = helm("template", "m3", str(CHART), "--set", value)

    assert result.returncode != 0
    assert message in result.stderr


def test_an_account_of_somebody_else_has_to_be_named() -> None:
    result = helm("template", "m3", str(CHART), "--set", "serviceAccount.create=false")

    assert "serviceAccount.name is needed when serviceAccount.create is false" in result.stderr


def test_the_charts_crds_are_the_generated_ones() -> None:
    generated = {path.name: path.read_text() for path in (ROOT / "manifests" / "crds").glob("*.yaml")}
    copies = {path.name: path.read_text() for path in (CHART / "crds").glob("*.yaml")}

    assert generated
    assert copies == generated, "charts/m3serve/crds is stale: run `make crds`"


def test_show_crds_prints_every_definition_as_a_document_of_its_own() -> None:
    shown = helm("show", "crds", str(CHART))

    kinds = [document["spec"]["names"]["kind"] for document in yaml.safe_load_all(shown.stdout)]
    assert sorted(kinds) == ["M3Deployment", "M3Router", "M3Tenant"]


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert chart["appVersion"] == version("m3serve")


def test_the_readme_has_every_value_with_its_default() -> None:
    table = dict(re.findall(r"^\| `([^`]+)` \| `([^`]*)` \|", (CHART / "README.md").read_text(), re.MULTILINE))

    assert table == dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))


def leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every value by its dotted path, as JSON; an object that is a value of its own (empty, or of resources) is one."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict) and value and key != "resources":
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", json.dumps(value)))
    return found


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (box,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(box)


def is_cluster(item: dict[str, Any]) -> bool:
    return item["kind"] in CLUSTER_SCOPED
