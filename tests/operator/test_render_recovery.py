"""What recovery asks of rendered objects: nodes to stay away from, the budget of evictions, the deadline of a step."""

from typing import Any

import kubernetes_validate
import pytest

from m3_operator.api import M3Deployment, SpecError, parse_deployment
from m3_operator.observed import read_pod
from m3_operator.render.disruption import disruption_budget
from m3_operator.render.worker import group_pods, revision
from m3_worker.config import WorkerSettings

KUBERNETES = "1.37"
ZONE = {"key": "zone", "operator": "In", "values": ["a"]}
GPU = {"key": "gpu", "operator": "Exists"}
NOT_BAD = {"key": "metadata.name", "operator": "NotIn", "values": ["bad"]}
NOT_WORSE = {"key": "metadata.name", "operator": "NotIn", "values": ["worse"]}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


APART = {
    "weight": 1,
    "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "other"}}},
}


def deployment(**spec: Any) -> M3Deployment:
    manifest = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": "m3", "namespace": "prod", "uid": "uid-1"},
        "spec": {"model": {"name": "M", "source": {"tiny": {}}}, "parallelism": {"nodes": 2}, **spec},
    }
    return parse_deployment(manifest, strict=True)


def affinity(asked: dict[str, Any] | None, *avoid: str) -> dict[str, Any]:
    """The affinity of a pod whose user asked for this one."""
    template = {} if asked is None else {"affinity": asked}
    pods = group_pods(deployment(template=template), 0, "rev", image="w", avoid=avoid)
    for pod in pods:
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    assert pods[0]["spec"].get("affinity") == pods[1]["spec"].get("affinity")
    found: dict[str, Any] = pods[0]["spec"].get("affinity") or {}
    return found


def test_without_nodes_to_avoid_the_users_affinity_is_passed_on_as_it_is() -> None:
    assert affinity(None) == {}
    assert affinity({"podAntiAffinity": {}}) == {"podAntiAffinity": {}}


def test_each_node_to_avoid_is_a_requirement_of_its_own() -> None:
    terms = affinity(None, "worse", "bad")["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert terms == [{"matchFields": [NOT_BAD, NOT_WORSE]}]


def test_every_alternative_that_the_user_gave_stays_away_from_them() -> None:
    asked = {
        "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [APART]},
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [GPU]}}
            ],
            REQUIRED: {
                "nodeSelectorTerms": [
                    {"matchExpressions": [ZONE]},
                    {"matchExpressions": [GPU], "matchFields": [NOT_WORSE]},
                ]
            },
        },
    }
    found = affinity(asked, "bad")
    assert found["podAntiAffinity"] == asked["podAntiAffinity"]
    assert found["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert found["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] == [
        {"matchExpressions": [ZONE], "matchFields": [NOT_BAD]},
        {"matchExpressions": [GPU], "matchFields": [NOT_WORSE, NOT_BAD]},
    ]


def test_a_term_that_matches_no_node_does_not_become_one_that_matches_most() -> None:
    asked = {
        "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": []}, {"matchExpressions": [ZONE]}]}}
    }
    terms = affinity(asked, "bad")["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert terms == [{"matchExpressions": [ZONE], "matchFields": [NOT_BAD]}]


def test_a_pod_remembers_what_it_was_kept_away_from() -> None:
    (first, _) = group_pods(deployment(), 0, "rev", image="w", avoid=("worse", "bad"))
    found = read_pod(first)
    assert found is not None
    assert found.avoids == ("bad", "worse")
    (first, _) = group_pods(deployment(), 0, "rev", image="w")
    found = read_pod(first)
    assert found is not None
    assert found.avoids == ()


@pytest.mark.parametrize(("groups", "limit", "least"), [(3, 1, 2), (3, 3, 0), (1, 1, 0), (0, 1, 0)])
def test_the_budget_of_evictions_is_over_rank_0_of_every_group(groups: int, limit: int, least: int) -> None:
    budget = disruption_budget(deployment(), groups=groups, max_unavailable=limit)
    kubernetes_validate.validate(budget, KUBERNETES, strict=True)
    assert budget["spec"] == {
        "minAvailable": least,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": {"serving.m3.dev/deployment": "m3", "serving.m3.dev/rank": "0"}},
    }


def test_workers_get_the_time_after_which_they_hang() -> None:
    (pod, _) = group_pods(deployment(recovery={"hangSeconds": 17}), 0, "rev", image="w")
    assert WorkerSettings.parse_arguments(pod["spec"]["containers"][0]["args"]).step_deadline_seconds == 17


def test_of_recovery_only_what_pods_carry_is_in_the_revision() -> None:
    plain = revision(deployment(), "w")
    others = {
        "policy": "None",
        "maxRestarts": 1,
        "windowSeconds": 60,
        "backoff": {"baseSeconds": 1, "maxSeconds": 2},
        "nodeLostSeconds": 7,
        "avoidFailedNodeSeconds": 8,
    }
    assert revision(deployment(recovery=others), "w") == plain
    assert revision(deployment(recovery={"hangSeconds": 17}), "w") != plain


def test_a_backoff_upside_down_is_refused_with_the_rule() -> None:
    with pytest.raises(SpecError, match="maxSeconds must not be less than baseSeconds"):
        deployment(recovery={"backoff": {"baseSeconds": 301}})
