"""Where the pods of a group may go: packed, alone in their domain, spread, and never against the user's own words."""

from collections.abc import Mapping
from typing import Any

import kubernetes_validate
import pytest

from m3_operator.api import M3Deployment, SpecError, parse_deployment
from m3_operator.render import worker
from m3_operator.render.affinity import PREFERRED, REQUIRED

KUBERNETES = "1.37"
TWO_NODES = {"nodes": 2}


def deployment(name: str = "m3", namespace: str = "prod", **spec: Any) -> M3Deployment:
    manifest = {
        "apiVersion": "serving.m3.dev/v1alpha1",
        "kind": "M3Deployment",
        "metadata": {"name": name, "namespace": namespace, "uid": "uid-1"},
        "spec": {"model": {"name": "MiniMax-M3", "source": {"hostPath": {"path": "/m"}}}, **spec},
    }
    return parse_deployment(manifest, strict=True)


def pods(group: int = 0, **spec: Any) -> list[dict[str, Any]]:
    return worker.group_pods(deployment(**spec), group, "rev", image="worker.test/m3:1")


def rules(pod: Mapping[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = pod["spec"].get("affinity", {}).get(kind, {})
    return found


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Kubernetes' rule for label selectors, written down once more."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for wish in selector.get("matchExpressions", ()):
        has = labels.get(wish["key"])
        holds = {
            "In": has in wish.get("values", ()),
            "NotIn": has not in wish.get("values", ()),
            "Exists": has is not None,
        }[wish["operator"]]
        if not holds:
            return False
    return True


FULL = {
    "required": "Block",
    "preferred": "Clique",
    "exclusive": True,
    "spreadAcross": "Zone",
    "topologyKeys": {"block": "example.com/block"},
}


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("mode", ["DevicePlugin", "DRA"])
def test_every_pod_is_valid_to_kubernetes(nodes: int, mode: str) -> None:
    template = {
        "affinity": {"podAffinity": {REQUIRED: [{"topologyKey": "zone", "labelSelector": {}}]}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
    }
    found = pods(placement=FULL, parallelism={"nodes": nodes}, template=template, accelerator={"mode": mode})
    for pod in found:
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_a_group_of_several_nodes_is_packed_next_to_its_own_pods() -> None:
    for pod in pods(group=4, placement=FULL, parallelism=TWO_NODES):
        found = rules(pod, "podAffinity")
        (must,), (should,) = found[REQUIRED], found[PREFERRED]
        assert must["topologyKey"] == "example.com/block"
        assert should["podAffinityTerm"]["topologyKey"] == "nvidia.com/gpu.clique"
        own = pod["metadata"]["labels"]
        for term in (must, should["podAffinityTerm"]):
            assert selects(term["labelSelector"], own)
            assert not selects(term["labelSelector"], {**own, "serving.m3.dev/group": "5"})


def test_a_group_of_one_node_has_nothing_to_pack() -> None:
    (pod,) = pods(placement={"required": "Rack", "preferred": "Host"})
    assert "affinity" not in pod["spec"]


def test_without_placement_a_pod_says_nothing_of_where_it_goes() -> None:
    for pod in pods(parallelism=TWO_NODES):
        assert not {"affinity", "topologySpreadConstraints", "schedulingGates", "schedulingGroup"} & set(pod["spec"])


@pytest.mark.parametrize(
    ("other", "is_kept_out"),
    [
        ({"name": "m3", "namespace": "prod", "group": 1}, False),  # the group itself
        ({"name": "m3", "namespace": "prod", "group": 2}, True),
        ({"name": "other", "namespace": "prod", "group": 1}, True),
        ({"name": "m3", "namespace": "test", "group": 1}, True),
        ({"name": "other", "namespace": "test", "group": 7}, True),
    ],
)
def test_an_exclusive_group_keeps_out_every_other_group_and_not_itself(
    other: dict[str, Any], is_kept_out: bool
) -> None:
    (pod, _) = pods(group=1, placement={"required": "Rack", "exclusive": True}, parallelism=TWO_NODES)
    neighbour = worker.group_pods(deployment(other["name"], other["namespace"]), other["group"], "rev", image="i")[0]
    there = neighbour["metadata"]["namespace"]
    terms = rules(pod, "podAntiAffinity")[REQUIRED]
    assert {term["topologyKey"] for term in terms} == {"topology.kubernetes.io/rack"}

    def reaches(term: Mapping[str, Any]) -> bool:
        if "namespaceSelector" in term:
            return selects(term["namespaceSelector"], {"kubernetes.io/metadata.name": there})
        return there == "prod"

    hits = [term for term in terms if reaches(term) and selects(term["labelSelector"], neighbour["metadata"]["labels"])]
    assert bool(hits) is is_kept_out


def test_an_exclusive_group_minds_no_pod_that_is_in_no_group() -> None:
    (pod,) = pods(placement={"required": "Host", "exclusive": True})
    terms = rules(pod, "podAntiAffinity")[REQUIRED]
    assert not any(selects(term["labelSelector"], {"app": "node-exporter"}) for term in terms)


def test_groups_are_spread_by_their_first_rank() -> None:
    leader, follower = pods(placement={"spreadAcross": "Zone"}, parallelism=TWO_NODES)
    (constraint,) = leader["spec"]["topologySpreadConstraints"]
    assert constraint["topologyKey"] == "topology.kubernetes.io/zone"
    assert selects(constraint["labelSelector"], leader["metadata"]["labels"])
    assert not selects(constraint["labelSelector"], follower["metadata"]["labels"])
    assert "topologySpreadConstraints" not in follower["spec"]


def test_what_the_template_says_stays_beside_ours() -> None:
    mine = {"topologyKey": "rack", "labelSelector": {"matchLabels": {"app": "cache"}}}
    spread = {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    template = {"affinity": {"podAffinity": {REQUIRED: [mine]}}, "topologySpreadConstraints": [spread]}
    leader, _ = pods(template=template, placement={"required": "Rack", "spreadAcross": "Zone"}, parallelism=TWO_NODES)
    assert rules(leader, "podAffinity")[REQUIRED][0] == mine
    assert len(rules(leader, "podAffinity")[REQUIRED]) == 2
    assert leader["spec"]["topologySpreadConstraints"][0] == spread
    assert len(leader["spec"]["topologySpreadConstraints"]) == 2


def test_a_constraint_of_the_template_over_the_same_domain_replaces_ours_because_kubernetes_takes_one() -> None:
    mine = {"maxSkew": 3, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
    (pod,) = pods(template={"topologySpreadConstraints": [mine]}, placement={"spreadAcross": "Zone"})
    assert pod["spec"]["topologySpreadConstraints"] == [mine]


@pytest.mark.parametrize(
    ("placement", "sentence"),
    [
        ({"exclusive": True}, "placement: exclusive needs required"),
        ({"required": "Rack", "preferred": "Zone"}, "placement: preferred must be narrower than required"),
        ({"required": "Rack", "preferred": "Rack"}, "placement: preferred must be narrower than required"),
        ({"gang": {"provider": "Kueue"}}, "placement.gang: Kueue needs queueName"),
        ({"required": "Galaxy"}, "placement.required"),
        ({"topologyKeys": {"rack": "not a key"}}, "placement.topologyKeys.rack"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(placement: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        deployment(placement=placement)


def test_placement_is_part_of_the_revision() -> None:
    plain, placed = deployment(), deployment(placement={"required": "Rack"})
    assert worker.revision(plain, "i") != worker.revision(placed, "i")
    assert worker.revision(plain, "i") == worker.revision(deployment(placement={"exclusive": False}), "i")
