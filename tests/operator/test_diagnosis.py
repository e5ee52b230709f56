"""Each cause has its own reason and a sentence that says what to do; a cause that is gone leaves nothing."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from m3_operator.decide.diagnosis import diagnose
from m3_operator.decide.problem import Problem
from m3_operator.decide.router_diagnosis import router_trouble
from m3_operator.errors import RefusedError
from m3_operator.groups import by_index
from m3_operator.observed import HelperPod, ObservedPod, read_helper_pod, read_pod
from m3_operator.plan.avoidance import AvoidedNode
from m3_operator.plan.faults import HEALTHY, NODE_LOST, Fault, Health
from m3_operator.plan.recovery import FailureRecord
from m3_operator.reconcile.acting import problem_of
from m3_operator.spec.recovery import RecoverySpec
from operator_world import NOW, failed, pod

FAULTY = Health(faults={0: Fault(NODE_LOST, "node n0 is out of service")})


def waiting(word: str, message: str) -> ObservedPod:
    """A pod as the API server shows it while a container waits."""
    state = {"name": "worker", "state": {"waiting": {"reason": word, "message": message}}}
    return seen({"phase": "Pending", "containerStatuses": [state]}, node="n0")


def unscheduled(message: str) -> ObservedPod:
    """A pod as the API server shows it while no node has room."""
    told = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return seen({"phase": "Pending", "conditions": [told]})


def seen(status: dict[str, Any], node: str | None = None) -> ObservedPod:
    labels = {
        "serving.m3.dev/deployment": "m3",
        "serving.m3.dev/group": "0",
        "serving.m3.dev/rank": "0",
        "serving.m3.dev/revision": "r1",
    }
    manifest: dict[str, Any] = {"metadata": {"name": "m3-g0-r0", "labels": labels}, "spec": {}, "status": status}
    if node is not None:
        manifest["spec"]["nodeName"] = node
    found = read_pod(manifest)
    assert found is not None
    return found


def finding(
    one: ObservedPod, record: FailureRecord | None = None, health: Health = HEALTHY, **recovery: Any
) -> Problem | None:
    spec = RecoverySpec.model_validate(recovery)
    records = {} if record is None else {0: record}
    return diagnose(by_index([one]), {0}, records, recovery=spec, health=health, now=NOW).get(0)


POD_CASES = [
    (
        waiting("ImagePullBackOff", 'Back-off pulling image "x.test/m3:9"'),
        "ImagePullFailed",
        'm3-g0-r0: container worker: ImagePullBackOff, Back-off pulling image "x.test/m3:9"; '
        "correct the image, or name a secret that may pull it",
    ),
    (waiting("ErrImagePull", "not found"), "ImagePullFailed", "correct the image"),
    (waiting("InvalidImageName", "couldn't parse"), "ImagePullFailed", "correct the image"),
    (
        waiting("CreateContainerConfigError", 'secret "hf" not found'),
        "SecretNotFound",
        "create Secret hf with what it asks for",
    ),
    (
        waiting("CreateContainerConfigError", "couldn't find key token in Secret ns/hf"),
        "SecretNotFound",
        "create Secret hf with what it asks for",
    ),
    (
        waiting("CreateContainerConfigError", 'configmap "settings" not found'),
        "ConfigNotFound",
        "create ConfigMap settings with what it asks for",
    ),
    (
        waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
        "ContainerNotStarted",
        "correct the environment or volume that asks for it",
    ),
    (waiting("RunContainerError", "exec: no such file"), "ContainerNotStarted", "correct the image"),
    (
        unscheduled('0/5 nodes are available: persistentvolumeclaim "weights" not found. preemption: 0/5 ...'),
        "ClaimNotFound",
        "there is no PersistentVolumeClaim weights in this namespace; create it",
    ),
    (
        unscheduled("0/5 nodes are available: pod has unbound immediate PersistentVolumeClaims."),
        "ClaimNotBound",
        "see kubectl describe of its PersistentVolumeClaims",
    ),
    (
        unscheduled(
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. preemption: 0/3 nodes ..."
        ),
        "NodeSelectorMatchesNothing",
        "none of 3 nodes has what spec.template and spec.placement ask for",
    ),
    (
        unscheduled(
            "0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, "
            "2 Insufficient nvidia.com/gpu."
        ),
        "Unschedulable",
        "2 Insufficient nvidia.com/gpu.; free or add nodes, or ask for fewer groups",
    ),
]


@pytest.mark.parametrize(
    ("one", "reason", "words"), POD_CASES, ids=[f"{case[1]} {n}" for n, case in enumerate(POD_CASES)]
)
def test_what_a_pod_says_becomes_a_reason_and_what_to_do(one: ObservedPod, reason: str, words: str) -> None:
    found = finding(one)
    assert found is not None
    assert found.reason == reason
    assert words in found.message


def test_a_node_selector_is_not_blamed_for_nodes_that_we_stay_away_from() -> None:
    avoided = Health(avoided=(AvoidedNode("n7", NOW + timedelta(hours=1), "lost"),))
    one = unscheduled("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.")
    found = finding(one, health=avoided)
    assert found is not None
    assert found.reason == "Unschedulable"
    assert "(nodes that are avoided: n7)" in found.message


def test_a_pod_that_merely_starts_is_no_problem() -> None:
    assert finding(pod(0, phase="Pending", is_ready=False)) is None
    assert finding(pod(0, is_ready=False)) is None
    assert finding(pod(0)) is None


def test_the_first_failure_is_repaired_without_a_word_and_the_next_ones_say_when() -> None:
    assert finding(failed(pod(0))) is None
    once = FailureRecord(1, NOW, "x", NOW, "r1")
    assert finding(failed(pod(0)), once) == Problem(
        "BackingOff", "group 0: m3-g0-r0 ended (exit code 1); it is replaced at 12:00:10 UTC"
    )


def test_a_group_that_crashes_again_and_again_says_so_until_it_serves() -> None:
    thrice = FailureRecord(3, NOW, "m3-g0-r0 ended (exit code 1)", NOW, "r1")
    for one in (failed(pod(0)), pod(0, is_ready=False), pod(0, phase="Pending", is_ready=False)):
        found = finding(one, thrice)
        assert found is not None
        assert found.reason == "CrashLooping"
        assert "was restarted 3 times since 12:00:00 UTC" in found.message
    absent = diagnose({}, {0}, {0: thrice}, recovery=RecoverySpec(), health=HEALTHY, now=NOW)
    assert absent[0].reason == "CrashLooping", "the reason must not flicker between two lives of the group"
    assert finding(pod(0), thrice) is None
    assert finding(pod(0, is_ready=False, revision="r2"), thrice) is None, "another revision is another story"


def test_a_budget_that_is_used_up_says_so_and_when_it_is_tried_again() -> None:
    ten = FailureRecord(10, NOW, "x", NOW - timedelta(seconds=600), "r1")
    found = finding(failed(pod(0)), ten)
    assert found is not None
    assert found.reason == "RestartBudgetExhausted"
    assert "after 10 restarts: it stays with its logs until 12:20:00 UTC, or until the spec changes" in found.message


def test_policy_none_says_how_to_bring_the_group_back() -> None:
    found = finding(failed(pod(0)), policy="None")
    assert found is not None
    assert found.reason == "RecoveryOff"
    assert "delete its pods to have it made again" in found.message


def test_a_fault_is_told_even_of_a_group_that_seems_to_serve() -> None:
    assert finding(pod(0), health=FAULTY) == Problem("NodeLost", "group 0: node n0 is out of service; it is replaced")


def test_groups_that_nobody_wants_are_not_diagnosed() -> None:
    surplus = replace(waiting("ErrImagePull", "no"), group=4)
    assert diagnose(by_index([surplus]), {0}, {}, recovery=RecoverySpec(), health=HEALTHY, now=NOW) == {}


def test_a_quota_has_its_own_reason() -> None:
    words = (
        'pods "m3-g0-r0" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, used: 8, limited: 8'
    )
    found = problem_of("Pod", RefusedError(403, words))
    assert found.reason == "QuotaExceeded"
    assert words in found.message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "m3-router-1" is forbidden: exceeded quota: pods', "QuotaExceeded"),
        ('pods "m3-router-1" is forbidden: violates PodSecurity "restricted:latest"', "TemplateRefused"),
    ],
)
def test_what_stops_the_routers_pods_is_read_from_their_deployment(message: str, reason: str) -> None:
    refused = {"type": "ReplicaFailure", "status": "True", "message": message}
    found = router_trouble({"status": {"conditions": [refused]}})
    assert found is not None
    assert found.reason == reason
    assert message in found.message
    assert router_trouble({"status": {"conditions": [{**refused, "status": "False"}]}}) is None
    assert router_trouble({}) is None


def router_pod(*, is_ready: bool = False, **state: Any) -> HelperPod:
    labels = {"app.kubernetes.io/component": "router", "serving.m3.dev/router": "front"}
    container = {"name": "router", "state": {}, **state}
    status = {
        "phase": "Pending",
        "containerStatuses": [container],
        "conditions": [{"type": "Ready", "status": str(is_ready)}],
    }
    metadata = {"name": "front-router-1", "namespace": "ns", "uid": "uid", "labels": labels}
    found = read_helper_pod({"metadata": metadata, "spec": {}, "status": status})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("word", "message", "reason"),
    [
        ("ImagePullBackOff", "Back-off pulling image router.test/m3:9", "ImagePullFailed"),
        ("ErrImagePull", "not found", "ImagePullFailed"),
        ("CreateContainerConfigError", 'secret "redis" not found', "SecretNotFound"),
        ("CreateContainerConfigError", 'configmap "ca" not found', "ConfigNotFound"),
        ("RunContainerError", "exec: m3-router: not found", "ContainerNotStarted"),
    ],
)
def test_what_stops_a_router_pod_is_read_from_itself(word: str, message: str, reason: str) -> None:
    waiting = {"waiting": {"reason": word, "message": message}}
    found = router_trouble({}, [router_pod(state={"running": {}}, is_ready=True), router_pod(state=waiting)])
    assert found is not None
    assert found.reason == reason
    assert message in found.message
    assert router_trouble({}, [router_pod(state=waiting, is_ready=True)]) is None


def test_a_router_that_ends_again_and_again_says_its_last_words() -> None:
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
    ended = {"terminated": {"exitCode": 2, "reason": "Error", "message": "m3-router: redis: no such host\n"}}
    found = router_trouble({}, [router_pod(state=waiting, lastState=ended)])
    assert found is not None
    assert found.reason == "CrashLooping"
    assert "front-router-1 ended: m3-router: redis: no such host; see kubectl logs --previous" in found.message
