"""What the operator asks of the API server: nothing when nothing changed, and nothing beyond its Role."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx

from m3_testcluster.cluster import Cluster
from operator_process import Account, Operator

StartOperator = Callable[..., Operator]


def deployment(name: str, node_selector: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"name": "MiniMax-M3", "source": {"tiny": {"seed": 1}}},
            "parallelism": {"nodes": 1, "gpusPerNode": 1},
            # Written in forms that the API server rewrites: an operator that compares text would repair this for ever.
            "template": {
                "nodeSelector": node_selector,
                "shmSize": "1024Mi",
                "resources": {"requests": {"cpu": "1000m", "memory": "2048Mi"}, "limits": {"memory": 4294967296}},
            },
            **spec,
        },
    }


def settle(cluster: Cluster, account: Account, operator: Operator) -> None:
    """Wait until both objects are ready and the operator has nothing left to write."""
    where = f"--namespace={account.namespace}"
    cluster.kubectl("wait", "--for=condition=Ready", "m3d/m3", "m3r/m3", where, "--timeout=60s")
    cluster.kubectl("wait", "--for=condition=Progressing=False", "m3d/m3", where, "--timeout=60s")
    touch(cluster, account, operator, "settled")
    touch(cluster, account, operator, "settled again")


def touch(cluster: Cluster, account: Account, operator: Operator, value: str) -> None:
    """Change something nobody's plan looks at, and wait for the cycles that the event caused."""
    seen = {key: cycles(operator, account, key) for key in ("M3Deployment", "M3Router")}
    for name in ("m3d/m3", "m3r/m3"):
        where = f"--namespace={account.namespace}"
        cluster.kubectl("annotate", name, f"test/touched={value}", "--overwrite", where)
    for key, count in seen.items():
        operator.await_line(rf"{key} {account.namespace}/m3: cycle done", count=count + 1)


def cycles(operator: Operator, account: Account, kind: str) -> int:
    return len(re.findall(rf"{kind} {account.namespace}/m3: cycle done", operator.log.read_text()))


def test_a_second_reconcile_of_an_unchanged_world_writes_nothing(
    m3_cluster: Cluster, account: Account, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    operator = start_operator()
    router = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Router",
        "metadata": {"name": "m3"},
        "spec": {"deployments": [{"name": "m3"}], "template": deployment("m3", gpu_nodes)["spec"]["template"]},
    }
    m3_cluster.apply([deployment("m3", gpu_nodes, router={"name": "m3"}), router], namespace=account.namespace)
    settle(m3_cluster, account, operator)
    assert account.writes(), "the audit log shows none of the operator's writes: the test is blind"

    since = datetime.now(UTC)
    touch(m3_cluster, account, operator, "a new look at an unchanged world")
    assert account.writes(since) == []

    assert operator.stop() == 0
    since = datetime.now(UTC)
    restarted = start_operator()
    for kind in ("M3Deployment", "M3Router"):
        restarted.await_line(f"{kind} {account.namespace}/m3: cycle done")
    touch(m3_cluster, account, restarted, "a new look after a restart")
    assert account.writes(since) == []


def test_the_operator_never_asks_for_what_its_role_does_not_give(
    m3_cluster: Cluster, account: Account, gpu_nodes: dict[str, str], start_operator: StartOperator
) -> None:
    operator = start_operator()
    where = f"--namespace={account.namespace}"
    m3_cluster.apply(deployment("m3", gpu_nodes, replicas=2), namespace=account.namespace)
    settle(m3_cluster, account, operator)
    m3_cluster.kubectl("scale", "m3d/m3", "--replicas=1", where)
    m3_cluster.kubectl("wait", "--for=jsonpath={.status.replicas}=1", "m3d/m3", where, "--timeout=60s")
    m3_cluster.kubectl("wait", "--for=delete", "service/m3-g1", where, "--timeout=30s")
    refused = [event for event in account.writes() if event.code in (401, 403)]
    assert refused == []
    assert " 403 " not in operator.log.read_text()
    assert "forbidden" not in operator.log.read_text().lower()


def test_the_health_endpoint_answers_and_a_signal_ends_the_operator_cleanly(start_operator: StartOperator) -> None:
    operator = start_operator()
    answer = httpx.get(operator.health, timeout=10, trust_env=False)
    assert answer.status_code == 200
    assert answer.json()["longest_wait_seconds"] < 60
    assert operator.stop() == 0
    assert "Traceback" not in operator.log.read_text()
