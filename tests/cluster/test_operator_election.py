"""Two operators over one namespace: one acts, and the other takes over."""

import re
import signal
import time
from collections.abc import Callable

import httpx

from m3_operator.leader import Timing
from m3_operator.main import EXIT_LEASE_LOST
from m3_testcluster.cluster import Cluster
from operator_process import Account, Operator

StartOperator = Callable[..., Operator]
TIMING = Timing()


def health(operator: Operator) -> dict[str, object]:
    answer = httpx.get(operator.health, timeout=10, trust_env=False)
    assert answer.status_code == 200
    return dict(answer.json())


def holder(cluster: Cluster, namespace: str) -> str:
    lease = cluster.get("lease/m3-operator", f"--namespace={namespace}")
    return str(lease["spec"].get("holderIdentity", ""))


def test_a_standby_is_healthy_and_takes_over_when_the_leader_is_stopped_or_killed(
    m3_cluster: Cluster, account: Account, start_operator: StartOperator
) -> None:
    first = start_operator("--leader-identity=first")
    second = start_operator("--leader-identity=second", first_line="standing by: .* is held by first")
    assert [health(each)["role"] for each in (first, second)] == ["leader", "standby"]
    assert "m3_operator_leader 0.0" in httpx.get(second.metrics, timeout=10, trust_env=False).text
    stopped_at = time.monotonic()
    assert first.stop() == 0
    second.await_line("serving ")
    assert time.monotonic() - stopped_at < TIMING.lease_seconds - TIMING.retry_seconds, "it was not released"
    assert holder(m3_cluster, account.namespace) == "second"

    third = start_operator("--leader-identity=third", first_line="standing by: .* is held by second")
    killed_at = time.monotonic()
    second.process.kill()
    third.await_line("serving ")
    assert time.monotonic() - killed_at < 20
    assert health(third)["role"] == "leader"


def test_a_container_that_is_restarted_in_its_pod_goes_on_at_once(start_operator: StartOperator) -> None:
    crashed = start_operator("--leader-identity=pod-0")
    crashed.process.kill()
    started_at = time.monotonic()
    start_operator("--leader-identity=pod-0")
    assert time.monotonic() - started_at < TIMING.lease_seconds - TIMING.retry_seconds


def test_a_leader_whose_lease_is_taken_ends_at_once_and_says_so(
    m3_cluster: Cluster, account: Account, start_operator: StartOperator
) -> None:
    operator = start_operator("--leader-identity=first")
    patch = '{"spec": {"holderIdentity": "somebody"}}'
    where = f"--namespace={account.namespace}"
    m3_cluster.kubectl("patch", "lease/m3-operator", where, "--type=merge", f"--patch={patch}")
    assert operator.process.wait(timeout=10) == EXIT_LEASE_LOST
    last = operator.log.read_text().splitlines()[-1]
    assert last == (
        f"m3-operator: lost Lease {account.namespace}/m3-operator: somebody has it; another replica may act now"
    )


def test_a_leader_makes_its_lease_again_when_somebody_deletes_it(
    m3_cluster: Cluster, account: Account, start_operator: StartOperator
) -> None:
    operator = start_operator("--leader-identity=first")
    lease, where = "lease/m3-operator", f"--namespace={account.namespace}"
    m3_cluster.kubectl("delete", lease, where)
    m3_cluster.kubectl("wait", "--for=create", lease, where, "--timeout=10s")
    m3_cluster.kubectl("wait", "--for=jsonpath={.spec.holderIdentity}=first", lease, where, "--timeout=9s")
    assert operator.process.poll() is None


def test_a_standby_ends_cleanly_on_a_signal_and_leaves_the_lease_alone(
    m3_cluster: Cluster, account: Account, start_operator: StartOperator
) -> None:
    start_operator("--leader-identity=first")
    second = start_operator("--leader-identity=second", first_line="standing by")
    second.process.send_signal(signal.SIGINT)
    assert second.process.wait(timeout=10) == 0
    assert not re.search("Traceback|released", second.log.read_text())
    assert holder(m3_cluster, account.namespace) == "first"
