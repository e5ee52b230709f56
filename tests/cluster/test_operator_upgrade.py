"""Definitions of an older version are upgraded in place: no object is lost or changed, and the operator serves them."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from m3_operator import crd
from m3_testcluster.cluster import Cluster
from operator_process import BIN, Operator

FIRST = Path(__file__).with_name("first_crds.yaml")
NAMES = [f"crd/{plural}.serving.m3.dev" for plural in crd.PLURALS.values()]

DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "serving.m3.dev/v1alpha1",
    "kind": "M3Deployment",
    "metadata": {"name": "m3"},
    "spec": {
        "model": {"name": "MiniMax-M3", "source": {"tiny": {"seed": 3}}},
        "parallelism": {"nodes": 2, "gpusPerNode": 1},
        "replicas": 2,
        "router": {"name": "front"},
    },
}
ROUTER: dict[str, Any] = {
    "apiVersion": "serving.m3.dev/v1alpha1",
    "kind": "M3Router",
    "metadata": {"name": "front"},
    "spec": {"deployments": [{"name": "m3"}]},
}


@pytest.fixture
def older_cluster(m3_cluster: Cluster) -> Iterator[Cluster]:
    """The control plane with the definitions of the first version; afterwards it has the present ones again."""
    try:
        m3_cluster.apply(FIRST.read_text())
        # What was stored under the present definitions would keep fields that the first did not know.
        await_fields(m3_cluster, has_memory=False)
        yield m3_cluster
    finally:
        upgrade(m3_cluster)


def upgrade(cluster: Cluster) -> None:
    """`m3 crd | kubectl apply --server-side -f -`, as docs/upgrade.md says."""
    printed = subprocess.run([BIN / "m3", "crd"], capture_output=True, text=True, timeout=60, check=True).stdout
    cluster.kubectl("apply", "--server-side", "--filename=-", stdin=printed)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", *NAMES)
    await_fields(cluster, has_memory=True)


def await_fields(cluster: Cluster, *, has_memory: bool) -> None:
    """Wait until the API server publishes the schema with, or without, a field that the first version lacked."""
    for _ in range(300):
        explained = cluster.kubectl("explain", "m3deployment.spec.accelerator", "--recursive")
        if ("memoryGiB" in explained) == has_memory:
            return
    raise TimeoutError("the API server does not publish the definition that was applied")


def said(spec: dict[str, Any], live: dict[str, Any]) -> dict[str, Any]:
    """Of a live spec what was said by its author; the rest are defaults."""
    return {
        key: said(value, live[key]) if isinstance(value, dict) else live[key]
        for key, value in spec.items()
        if key in live
    }


def test_objects_of_an_older_version_outlive_the_upgrade_of_their_definitions(
    older_cluster: Cluster, namespace: str, gpu_nodes: dict[str, str], start_operator: Callable[..., Operator]
) -> None:
    where = f"--namespace={namespace}"
    wanted = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "template": {"nodeSelector": gpu_nodes}}}
    older_cluster.apply([wanted, ROUTER], namespace=namespace)
    before = {name: older_cluster.get(name, where) for name in ("m3d/m3", "m3r/front")}
    assert "memoryGiB" not in FIRST.read_text(), "this is not an older version"

    upgrade(older_cluster)

    for name, old in before.items():
        new = older_cluster.get(name, where)
        assert new["metadata"]["uid"] == old["metadata"]["uid"]
        assert new["metadata"]["generation"] == old["metadata"]["generation"]
        assert said(old["spec"], new["spec"]) == old["spec"], "a field that was stored is gone, or another"
    (definition,) = (
        found for found in older_cluster.get("crds")["items"] if found["spec"]["names"]["kind"] == "M3Deployment"
    )
    assert definition["status"]["storedVersions"] == ["v1alpha1"]

    start_operator()
    older_cluster.kubectl("wait", "--for=condition=Ready", "m3d/m3", "m3r/front", where, "--timeout=60s")
    served = older_cluster.get("m3d/m3", where)
    assert said(wanted["spec"], served["spec"]) == wanted["spec"]
    assert served["status"]["readyReplicas"] == 2


def test_every_field_of_the_first_version_is_still_known() -> None:
    first = {found["metadata"]["name"]: found for found in yaml.safe_load_all(FIRST.read_text())}
    present = {found["metadata"]["name"]: found for found in map(yaml.safe_load, crd.render_all().values())}
    for name, definition in first.items():
        old, new = (
            fields(found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]) for found in (definition, present[name])
        )
        assert old
        assert old - new == set()


def fields(schema: dict[str, Any], path: str = "") -> set[str]:
    """Every field of a schema by its path."""
    inner = {**schema.get("properties", {})}
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            inner["[]"] = schema[name]
    found = {f"{path}.{key}" for key in inner}
    for key, value in inner.items():
        found |= fields(value, f"{path}.{key}")
    return found
