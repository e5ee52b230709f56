"""From `helm install` to `helm uninstall` on two real nodes: what a user does, in the order in which it is done.

The tests of this file are one story: each takes the world as the one before left it. The model is tiny and its weights
random; everything else is what runs in production: the chart, the operator under its own rights, pods from images, the
router, Services and DNS.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from m3_installation import MODEL, NAME, RELEASE, Installation, installed
from m3_load import steady_load
from m3_testcluster.cluster import KubectlError
from m3_testcluster.real import RealCluster


@pytest.fixture(scope="module")
def installation(real_cluster: RealCluster, project_images: dict[str, str]) -> Iterator[Installation]:
    with installed(real_cluster, project_images, "m3-e2e", f"test.deployment={NAME}") as found:
        yield found


@pytest.fixture(scope="module")
def empty(installation: Installation) -> set[str]:
    """What is in the namespace before anything is deployed."""
    return installation.objects()


@pytest.fixture(scope="module")
def deployed(installation: Installation, empty: set[str]) -> Installation:
    """The packaged example with one group."""
    assert f"m3deployment.serving.m3.dev/{NAME}" not in empty
    installation.deploy(replicas=1)
    installation.await_ready(replicas=1)
    return installation


def test_a_chat_is_answered_through_the_router(deployed: Installation) -> None:
    answer = deployed.client().chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=8, extra_body={"ignore_eos": True}
    )
    chat = answer.parse()
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 8
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + 8
    assert answer.headers["x-m3-context-tier"] == "standard"
    assert answer.headers["x-m3-service-tier"] == "standard"
    # 0.30 USD per million input tokens and 1.20 per million output tokens
    assert float(answer.headers["x-m3-cost-usd"]) == pytest.approx((0.30 * chat.usage.prompt_tokens + 1.20 * 8) / 1e6)


def test_a_streamed_chat_says_the_same(deployed: Installation) -> None:
    def ask(*, stream: bool) -> Any:
        return deployed.client().chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=24,
            temperature=0,
            stream=stream,
            extra_body={"ignore_eos": True},
        )

    whole = ask(stream=False).choices[0].message
    deltas = [chunk.choices[0].delta for chunk in ask(stream=True)]
    assert "".join(delta.content or "" for delta in deltas) == (whole.content or "")
    assert len(deltas) > 2


def test_a_wrong_key_is_refused(deployed: Installation) -> None:
    client = deployed.client().with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_the_operator_can_read_no_secret(deployed: Installation) -> None:
    account = deployed.get("deployment", "--selector=app.kubernetes.io/component=operator")["items"][0]
    user = f"system:serviceaccount:{deployed.namespace}:{account['spec']['template']['spec']['serviceAccountName']}"
    with pytest.raises(KubectlError):
        deployed.kubectl("auth", "can-i", "get", "secrets", f"--as={user}")


def test_scaling_up_brings_traffic_to_both_groups(deployed: Installation) -> None:
    deployed.kubectl("scale", f"m3d/{NAME}", "--replicas=2")
    deployed.await_ready(replicas=2)
    with steady_load(deployed.client(), MODEL, streams=4, max_tokens=8) as load:
        load.await_count(lambda: len(load.answered_since(0)) == 2, 60, "an answer by each of two workers")
    assert [outcome.error for outcome in load.outcomes if outcome.error] == []


def test_a_killed_worker_is_replaced_while_requests_go_on(deployed: Installation) -> None:
    victim = f"{NAME}-g1-r0"
    before = deployed.get("pod", victim)["metadata"]["uid"]
    with steady_load(deployed.client(), MODEL, streams=6, max_tokens=32) as load:
        load.await_count(lambda: victim in load.answered_since(0), 60, "an answer by the victim")
        deployed.cluster.kill_container_process(deployed.namespace, victim)
        killed = time.monotonic()
        deployed.kubectl("wait", "--for=condition=Ready=false", f"m3d/{NAME}", "--timeout=30s")
        deployed.await_ready(replicas=2)
        assert deployed.get("pod", victim)["metadata"]["uid"] != before
        ready = time.monotonic()
        load.await_count(lambda: victim in load.answered_since(ready), 60, "an answer by the new one")
    failed = [outcome for outcome in load.outcomes if outcome.error]
    assert len(failed) <= 6, failed
    for outcome in failed:
        assert outcome.started < killed, f"a request that began after the kill failed: {outcome}"
        assert outcome.worker in (None, victim)
        assert isinstance(outcome.error, openai.APIError)
        assert outcome.error.body is not None, f"a failure without an error object: {outcome.error!r}"


def test_every_request_was_settled_once(deployed: Installation) -> None:
    pods = deployed.get("pods", "--selector=app.kubernetes.io/component=router")["items"]
    ledger = json.loads(
        deployed.cluster.exec(deployed.namespace, pods[0]["metadata"]["name"], *_fetch("/ledger?limit=10000"))
    )
    ids = [entry["request_id"] for entry in ledger]
    assert len(ids) > 10
    assert len(set(ids)) == len(ids)
    assert all(entry["cost_nanousd"] > 0 for entry in ledger if entry["outcome"] == "ok" and entry["output_tokens"])


def _fetch(path: str) -> list[str]:
    code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:9090{path}').read().decode())"
    return ["python3", "-c", code]


def test_helm_test_chats(deployed: Installation) -> None:
    assert "Phase:          Succeeded" in deployed.helm("test", RELEASE, "--timeout=180s")


def test_scaling_down_drops_no_request(deployed: Installation) -> None:
    with steady_load(deployed.client(), MODEL, streams=4, max_tokens=16) as load:
        load.await_count(lambda: len(load.answered_since(0)) == 2, 60, "an answer by each of two workers")
        deployed.kubectl("scale", f"m3d/{NAME}", "--replicas=1")
        deployed.kubectl("wait", "--for=delete", f"pod/{NAME}-g1-r0", "--timeout=180s")
    assert [outcome.error for outcome in load.outcomes if outcome.error] == []
    deployed.await_ready(replicas=1)
    assert deployed.status()["replicas"] == 1


def test_deleting_it_leaves_nothing_behind(deployed: Installation, empty: set[str]) -> None:
    deployed.kubectl("delete", "m3d", NAME, "--timeout=60s")
    await_gone(lambda: deployed.objects() - empty)


def test_helm_uninstall_takes_the_operator_with_it(installation: Installation) -> None:
    installation.helm("uninstall", RELEASE, "--wait", "--timeout=180s")
    await_gone(lambda: {name for name in installation.objects() if RELEASE in name})


def await_gone(remaining: Callable[[], set[str]]) -> None:
    """Returns when nothing is left; pods take their time to end, and the garbage collector works behind the scenes."""
    deadline = time.monotonic() + 120
    while (left := remaining()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == set()
