"""A deployment that cannot fit: a condition with the numbers, no new pods, and nothing taken from what serves."""

from typing import Any

import pytest

from m3_operator.decide.deployment import DeploymentDecision, decide_deployment
from m3_operator.decide.installation import Installation
from m3_operator.observed import DeploymentSnapshot, ObservedPod
from m3_operator.plan.actions import CreatePods, DeletePods
from m3_operator.status.deployment import deployment_status
from operator_world import NOW, failed, pod

READY_ROUTER = {
    "metadata": {"name": "m3", "namespace": "prod", "uid": "r", "ownerReferences": [{"uid": "u", "controller": True}]},
    "spec": {"deployments": [{"name": "m3"}]},
    "status": {"readyReplicas": 1, "conditions": [{"type": "Ready", "status": "True", "reason": "AllRoutersReady"}]},
}
PVC = {"pvc": {"claimName": "weights"}}
TOO_SMALL = {"accelerator": {"memoryGiB": 79}}


def snapshot(*pods: ObservedPod, release: str | None = "MiniMax-M3", **spec: Any) -> DeploymentSnapshot:
    model = {"name": "M", "source": PVC} | ({"release": release} if release else {})
    return DeploymentSnapshot(
        manifest={
            "metadata": {"name": "m3", "namespace": "prod", "uid": "u", "generation": 4},
            "spec": {"model": model, "parallelism": {"gpusPerNode": 8}, **spec},
        },
        pods=tuple(pods),
        names_in_the_way=frozenset(),
        children={},
        router=READY_ROUTER,
        namesake=READY_ROUTER,
    )


def decide(found: DeploymentSnapshot) -> DeploymentDecision:
    return decide_deployment(found, Installation(worker_image="w", router_image="r"), NOW)


def conditions(found: DeploymentSnapshot) -> dict[str, tuple[str, str, str]]:
    decision = decide(found)
    status = deployment_status(found, decision, decision.records, decision.problem, NOW)
    return {one["type"]: (one["status"], one["reason"], one["message"]) for one in status["conditions"]}


def test_no_pod_and_no_child_is_made_and_ready_says_why_with_the_numbers() -> None:
    found = snapshot(**TOO_SMALL)
    decision, told = decide(found), conditions(found)
    assert (decision.steps.actions, decision.objects) == ((), ())
    for type_ in ("Ready", "Available", "Fits"):
        assert told[type_][:2] == ("False", "DoesNotFit"), type_
        assert "needs 113.0 GiB for weights" in told[type_][2]
        assert "use GPUs of at least 115 GiB" in told[type_][2]
    assert told["Progressing"] == ("False", "Refused", "no group is made or replaced until the spec fits")


def test_mended_it_is_made_and_the_condition_is_cleared() -> None:
    mended = snapshot(accelerator={"memoryGiB": 140})
    assert [type(action) for action in decide(mended).steps.actions] == [CreatePods]
    told = conditions(mended)
    assert told["Fits"][:2] == ("True", "Fits")
    assert told["Ready"][1] == "GroupsNotReady"


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"release": "MiniMax-M3.1-Flash"}, "NotSupported"),
        ({"parallelism": {"gpusPerNode": 8, "redundantExperts": 3}}, "DoesNotFit"),
        ({"engine": {"maxContextTokens": 4096, "cacheTokens": 1024}}, "DoesNotFit"),
    ],
)
def test_what_no_gpu_would_help_is_refused_without_declared_memory(spec: dict[str, Any], reason: str) -> None:
    found = snapshot(**spec)
    assert decide(found).steps.actions == ()
    assert conditions(found)["Ready"][1] == reason


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"release": None}, "ModelUnknown", "model.release does not say which published release it is"),
        ({}, "MemoryUnknown", "accelerator.memoryGiB does not say how much memory a GPU has"),
    ],
)
def test_what_is_not_known_is_named_and_stops_nothing(spec: dict[str, Any], reason: str, words: str) -> None:
    found = snapshot(**spec)
    status, why, message = conditions(found)["Fits"]
    assert (status, why) == ("Unknown", reason)
    assert words in message
    assert [type(action) for action in decide(found).steps.actions] == [CreatePods]


def test_groups_that_serve_go_on_serving_under_a_spec_that_does_not_fit() -> None:
    found = snapshot(pod(0, revision="before"), **TOO_SMALL)
    assert decide(found).steps.actions == ()
    told = conditions(found)
    assert told["Available"][:2] == ("True", "GroupsServe")
    assert told["Ready"][:2] == ("False", "DoesNotFit")
    assert told["Progressing"][1] == "Refused"


def test_a_failed_group_is_not_replaced_by_one_that_would_not_start() -> None:
    assert decide(snapshot(failed(pod(0, revision="before")), **TOO_SMALL)).steps.actions == ()


def test_groups_too_many_still_go_and_none_wanted_is_no_refusal() -> None:
    pods = [pod(0, revision="before"), pod(1, revision="before")]
    (only,) = decide(snapshot(*pods, replicas=1, **TOO_SMALL)).steps.actions
    assert isinstance(only, DeletePods)
    assert only.group == 1
    suspended = snapshot(*pods, suspend=True, **TOO_SMALL)
    assert {action.group for action in decide(suspended).steps.actions} == {0, 1}
    told = conditions(suspended)
    assert (told["Ready"][1], told["Fits"][1]) == ("Suspended", "DoesNotFit")


def test_a_spec_that_cannot_be_read_has_no_word_on_whether_it_fits() -> None:
    assert "Fits" not in conditions(snapshot(replicas="many"))
