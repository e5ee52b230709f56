"""What happens to a cluster, while requests flow through the router: each test breaks or changes one thing.

Workers are simulated (the same HTTP API and metrics over a latency model), so that a group is up in seconds; everything
else is real: two nodes, the chart, two replicas of the operator, pods, Services, evictions, signals.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from m3_installation import MODEL, NAME, Installation, installed
from m3_load import Load, Outcome, steady_load
from m3_redis.in_cluster import cluster_redis
from m3_testcluster.real import RealCluster

SIMULATED = ["--simulate", "--simulate-token-seconds=0.05"]
pytestmark = pytest.mark.timeout(420, func_only=True)


@pytest.fixture(scope="module")
def installation(real_cluster: RealCluster, project_images: dict[str, str]) -> Iterator[Installation]:
    with installed(real_cluster, project_images, "m3-scenarios", "operator.replicas=2") as found:
        yield found


@pytest.fixture
def two_groups(installation: Installation) -> Installation:
    """Two groups that serve, whatever the test before left."""
    deploy(installation, replicas=2)
    installation.await_ready(replicas=2)
    return installation


def deploy(installation: Installation, *flags: str, image: str | None = None, **spec: Any) -> None:
    """Apply the example with simulated workers, whose answers take a second: drains are short."""
    engine = {"args": [*SIMULATED, *flags], **({} if image is None else {"image": image})}
    installation.deploy(engine=engine, drain={"timeoutSeconds": 10}, **spec)


@contextmanager
def requests_flowing(installation: Installation, streams: int = 4) -> Iterator[Load]:
    """Streams of about a second each, one after another; both workers answer when the block begins."""
    with steady_load(installation.client(), MODEL, streams=streams, max_tokens=16) as load:
        load.await_count(lambda: len(load.answered_since(0)) >= 2, 60, "an answer by each of two workers")
        yield load
        enough = len(load.outcomes) + 2 * streams
        load.await_count(lambda: len(load.outcomes) >= enough, 60, "answers after the change")


def failed(load: Load) -> list[Outcome]:
    return [outcome for outcome in load.outcomes if outcome.error]


def group_pods(installation: Installation) -> dict[str, dict[str, Any]]:
    listed = installation.get("pods", f"--selector=serving.m3.dev/deployment={NAME}")["items"]
    return {pod["metadata"]["name"]: pod for pod in listed}


def revisions(installation: Installation) -> set[str]:
    return {pod["metadata"]["labels"]["serving.m3.dev/revision"] for pod in group_pods(installation).values()}


def test_scaling_out_and_in_drops_no_request(two_groups: Installation) -> None:
    with requests_flowing(two_groups) as load:
        two_groups.kubectl("scale", f"m3d/{NAME}", "--replicas=3")
        two_groups.await_ready(replicas=3)
        since = time.monotonic()
        load.await_count(lambda: len(load.answered_since(since)) == 3, 60, "an answer by each of three workers")
        two_groups.kubectl("scale", f"m3d/{NAME}", "--replicas=1")
        two_groups.kubectl("wait", "--for=jsonpath={.status.replicas}=1", f"m3d/{NAME}", "--timeout=180s")
    assert failed(load) == []


def test_a_rolling_update_drops_no_request(two_groups: Installation) -> None:
    before = revisions(two_groups)
    with requests_flowing(two_groups) as load:
        deploy(two_groups, "--simulate-load-factor=0.02", replicas=2)
        load.await_count(lambda: revisions(two_groups).isdisjoint(before), 180, "every pod of the new revision")
        two_groups.await_ready(replicas=2)
    assert failed(load) == []


def test_draining_a_node_moves_its_groups_and_drops_no_request(two_groups: Installation) -> None:
    (node, *_) = sorted({pod["spec"]["nodeName"] for pod in group_pods(two_groups).values()})
    workers = f"--pod-selector=serving.m3.dev/deployment={NAME}"
    try:
        with requests_flowing(two_groups) as load:
            two_groups.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", workers)
            two_groups.await_ready(replicas=2)
        assert failed(load) == []
        assert node not in {pod["spec"]["nodeName"] for pod in group_pods(two_groups).values()}
    finally:
        two_groups.kubectl("uncordon", node)


def test_a_deleted_pod_comes_back_and_drops_no_request(two_groups: Installation) -> None:
    victim = f"{NAME}-g0-r0"
    before = group_pods(two_groups)[victim]["metadata"]["uid"]
    with requests_flowing(two_groups) as load:
        two_groups.kubectl("delete", "pod", victim, "--wait=false")
        load.await_count(
            lambda: group_pods(two_groups).get(victim, {"metadata": {"uid": before}})["metadata"]["uid"] != before,
            120,
            "a new pod",
        )
        two_groups.await_ready(replicas=2)
    assert failed(load) == []


def test_a_killed_worker_fails_at_most_what_it_was_answering(two_groups: Installation) -> None:
    victim, streams = f"{NAME}-g0-r0", 4
    with requests_flowing(two_groups, streams) as load:
        killed = time.monotonic()
        two_groups.cluster.kill_container_process(two_groups.namespace, victim)
        two_groups.kubectl("wait", "--for=condition=Ready=false", f"m3d/{NAME}", "--timeout=30s")
        two_groups.await_ready(replicas=2)
    assert len(failed(load)) <= streams
    for outcome in failed(load):
        assert outcome.started < killed, f"a request that began after the kill failed: {outcome}"
        assert isinstance(outcome.error, openai.APIError)


def test_a_worker_that_hangs_is_replaced(two_groups: Installation) -> None:
    victim = f"{NAME}-g0-r0"
    before = group_pods(two_groups)[victim]["metadata"]["uid"]
    two_groups.cluster.kill_container_process(two_groups.namespace, victim, signal_number=signal.SIGSTOP)
    stopped = time.monotonic()
    client = two_groups.client()
    # The kubelet takes the pod out of the Service within seconds, and kills it when it has been silent for a minute.
    two_groups.kubectl("wait", "--for=condition=Ready=false", f"pod/{victim}", "--timeout=60s")
    with steady_load(client, MODEL, streams=2, max_tokens=8) as load:
        load.await_count(lambda: len(load.outcomes) > 4, 60, "answers by the other")
        load.await_count(
            lambda: group_pods(two_groups).get(victim, {"metadata": {"uid": before}})["metadata"]["uid"] != before,
            180,
            "a new pod",
        )
    assert failed(load) == []
    assert time.monotonic() - stopped < 240
    two_groups.await_ready(replicas=2)


def test_a_bad_image_is_rolled_back_and_drops_no_request(two_groups: Installation) -> None:
    before = revisions(two_groups)
    rollout = {"autoRollback": True, "progressDeadlineSeconds": 15}
    with requests_flowing(two_groups) as load:
        deploy(two_groups, image="m3serve.test/worker:absent", replicas=2, rollout=rollout)
        load.await_count(lambda: not revisions(two_groups) <= before, 60, "a pod with the bad image")
        two_groups.kubectl("wait", "--for=condition=RolledBack", f"m3d/{NAME}", "--timeout=120s")
        load.await_count(lambda: revisions(two_groups) == before, 120, "only pods of the former revision")
        two_groups.await_ready(replicas=2)
    assert failed(load) == []


def test_a_deployment_that_sleeps_is_woken_by_a_request_which_is_answered(
    two_groups: Installation, record_property: Callable[[str, object], None]
) -> None:
    signals = [{"type": "QueueWait", "target": 2}]
    bounds = {"minReplicas": 0, "maxReplicas": 2, "idleSeconds": 30, "holdSeconds": 120}
    deploy(two_groups, autoscaling={**bounds, "signals": signals})
    two_groups.kubectl("wait", "--for=jsonpath={.status.replicas}=0", f"m3d/{NAME}", "--timeout=280s")
    assert group_pods(two_groups) == {}
    asked = time.monotonic()
    answer = two_groups.client().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Good morning"}], max_tokens=4, timeout=120
    )
    seconds = round(time.monotonic() - asked, 1)
    record_property("seconds to the first answer after zero", seconds)
    print(f"first answer after zero: {seconds} s")
    assert answer.choices[0].message.content
    assert len(group_pods(two_groups)) == 1


def test_routers_answer_on_while_redis_is_gone_and_meet_there_again_when_it_is_back(
    two_groups: Installation, tmp_path: Path
) -> None:
    with cluster_redis(two_groups.cluster.network, tmp_path) as redis:
        two_groups.route(replicas=2, redis={"url": redis.url})
        try:
            with requests_flowing(two_groups) as load:
                load.await_count(lambda: len(redis.users()) == 2, 60, "both routers at Redis")
                redis.kill()
                enough = len(load.outcomes) + 20
                load.await_count(lambda: len(load.outcomes) >= enough, 60, "answers without Redis")
                redis.start()
                load.await_count(lambda: len(redis.users()) == 2, 60, "both routers at Redis again")
            assert failed(load) == []
        finally:
            two_groups.route(replicas=1, redis=None)


def test_an_operator_killed_again_and_again_finishes_its_rollout(two_groups: Installation) -> None:
    before = revisions(two_groups)
    with requests_flowing(two_groups) as load:
        deploy(two_groups, "--simulate-load-factor=0.03", replicas=3)
        for pause_seconds in (0.1, 0.4, 1.5, 4.0):
            time.sleep(pause_seconds)
            for pod in two_groups.get("pods", "--selector=app.kubernetes.io/component=operator")["items"]:
                _kill(two_groups, pod["metadata"]["name"])
        load.await_count(lambda: revisions(two_groups).isdisjoint(before), 240, "every pod of the new revision")
        two_groups.await_ready(replicas=3)
    assert failed(load) == []


def test_a_rank_that_hangs_costs_its_own_group_and_no_other(installation: Installation) -> None:
    """Two groups of two nodes that compute the tiny model: rank 1 of one stands still in the midst of a collective."""
    victim, other = f"{NAME}-g0-r1", f"{NAME}-g1-r0"
    drain, recovery = {"timeoutSeconds": 5}, {"hangSeconds": 10}
    installation.deploy(replicas=2, parallelism={"nodes": 2}, drain=drain, recovery=recovery)
    installation.await_ready(replicas=2)
    before = {name: pod["metadata"]["uid"] for name, pod in group_pods(installation).items()}
    assert len(before) == 4
    with requests_flowing(installation) as load:
        installation.cluster.kill_container_process(installation.namespace, victim, signal_number=signal.SIGSTOP)
        stopped = time.monotonic()

        def is_replaced() -> bool:
            now = {name: pod["metadata"]["uid"] for name, pod in group_pods(installation).items()}
            return all(name in now and now[name] != before[name] for name in (f"{NAME}-g0-r0", victim))

        load.await_count(is_replaced, 120, "a new group")
        replaced = time.monotonic()
        assert load.answered_since(stopped) == {other}
        installation.await_ready(replicas=2)
    assert [outcome for outcome in failed(load) if outcome.started > replaced] == []
    after = {name: pod["metadata"]["uid"] for name, pod in group_pods(installation).items()}
    assert {name for name in before if after[name] == before[name]} == {f"{NAME}-g1-r0", f"{NAME}-g1-r1"}


def _kill(installation: Installation, pod: str) -> None:
    with contextlib.suppress(LookupError):  # it is on its way up again
        installation.cluster.kill_container_process(installation.namespace, pod)
