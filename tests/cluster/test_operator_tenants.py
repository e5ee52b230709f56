"""M3Tenants on a real API server: carried to their router, told where they are accepted, and gone when they go."""

import json
import re
from collections.abc import Callable
from typing import Any

from m3_testcluster.cluster import Cluster
from operator_process import Account, Operator

StartOperator = Callable[..., Operator]
APPLIED = "Applied ConfigMap m3-router"

# No group and so no GPU: what matters is its router.
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "serving.m3.dev/v1alpha1",
    "kind": "M3Deployment",
    "metadata": {"name": "m3"},
    "spec": {"model": {"name": "M", "source": {"tiny": {}}}, "parallelism": {"gpusPerNode": 0}, "replicas": 0},
}


def tenant(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "serving.m3.dev/v1alpha1", "kind": "M3Tenant", "metadata": {"name": name}, "spec": spec}


def test_tenants_reach_their_router_and_read_well(
    m3_cluster: Cluster, account: Account, start_operator: StartOperator
) -> None:
    operator, where = start_operator(), f"--namespace={account.namespace}"
    keys = [{"secretRef": {"name": "not-there", "key": "api-key"}}]
    tenants = [tenant("ada", keys=keys), tenant("grace", plan="plus", routers=["m3"])]
    m3_cluster.apply([*tenants, DEPLOYMENT], namespace=account.namespace)

    def await_reason(name: str, reason: str) -> None:
        path = "{.status.conditions[0].reason}"
        m3_cluster.kubectl("wait", f"--for=jsonpath={path}={reason}", f"m3t/{name}", where, "--timeout=60s")

    def rows() -> dict[str, list[str]]:
        """The table without the age, by name."""
        lines = [line.split() for line in m3_cluster.kubectl("get", "m3t", where).splitlines()]
        assert lines[0] == ["NAME", "READY", "PLAN", "ROUTERS", "REASON", "AGE"]
        return {line[0]: line[1:-1] for line in lines[1:]}

    def carried() -> set[str]:
        found = m3_cluster.get("configmap/m3-router", where)
        return {one["name"] for one in json.loads(found["data"]["tenants.json"])["tenants"]}

    def applied() -> int:
        return len(re.findall(APPLIED, operator.log.read_text()))

    await_reason("ada", "Accepted")
    await_reason("grace", "PlanNotFound")
    operator.await_line(APPLIED)
    assert rows() == {"ada": ["True", "unlimited", '["m3"]', "Accepted"], "grace": ["False", "plus", "PlanNotFound"]}
    assert "M3Router m3 has no plan plus" in m3_cluster.kubectl("get", "m3t/grace", where, "--output=wide")
    assert carried() == {"ada"}

    before = applied()
    plans = json.dumps({"spec": {"plans": [{"name": "plus", "tokensPerDay": 1000}]}})
    m3_cluster.kubectl("patch", "m3r/m3", where, "--type=merge", f"--patch={plans}")
    await_reason("grace", "Accepted")
    assert rows()["grace"] == ["True", "plus", '["m3"]', "Accepted"]
    operator.await_line(APPLIED, count=before + 1)
    assert carried() == {"ada", "grace"}

    before = applied()
    m3_cluster.kubectl("delete", "m3t/ada", where)
    operator.await_line(APPLIED, count=before + 1)
    assert carried() == {"grace"}
    assert [event for event in m3_cluster.writes(account.user) if event.code in (401, 403)] == []
