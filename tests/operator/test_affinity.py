"""Two affinities joined: a pod goes where both let it, and prefers what either prefers."""

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from m3_operator.render.affinity import PREFERRED, REQUIRED, joined_affinity, with_affinity
from m3_operator.render.avoidance import without_nodes

KEYS, VALUES = ("zone", "rack", "gpu"), ("a", "b", "c")
NODES = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))


def requirement() -> st.SearchStrategy[dict[str, Any]]:
    values = st.lists(st.sampled_from(VALUES), min_size=1, max_size=3)
    sets = st.fixed_dictionaries(
        {"key": st.sampled_from(KEYS), "operator": st.sampled_from(["In", "NotIn"]), "values": values}
    )
    presence = st.fixed_dictionaries(
        {"key": st.sampled_from(KEYS), "operator": st.sampled_from(["Exists", "DoesNotExist"])}
    )
    return st.one_of(sets, presence)


def term() -> st.SearchStrategy[dict[str, Any]]:
    named = st.fixed_dictionaries(
        {
            "key": st.just("metadata.name"),
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(st.sampled_from(("n1", "n2")), min_size=1, max_size=1),
        }
    )
    return st.fixed_dictionaries(
        {},
        optional={"matchExpressions": st.lists(requirement(), max_size=2), "matchFields": st.lists(named, max_size=1)},
    )


SELECTORS = st.one_of(st.none(), st.fixed_dictionaries({"nodeSelectorTerms": st.lists(term(), min_size=1, max_size=3)}))


def matches(selector: Mapping[str, Any] | None, node: Mapping[str, str], name: str) -> bool:
    """Kubernetes' rule, written down once more: terms are alternatives, and an empty term matches nothing."""
    if selector is None:
        return True
    return any(_term_matches(term, node, name) for term in selector["nodeSelectorTerms"])


def _term_matches(term: Mapping[str, Any], node: Mapping[str, str], name: str) -> bool:
    wishes = [(wish, node.get(wish["key"])) for wish in term.get("matchExpressions", ())]
    wishes += [(wish, name) for wish in term.get("matchFields", ())]
    return bool(wishes) and all(_holds(wish, value) for wish, value in wishes)


def _holds(wish: Mapping[str, Any], value: str | None) -> bool:
    if wish["operator"] == "In":
        return value in wish["values"]
    if wish["operator"] == "NotIn":
        return value not in wish["values"]
    return (value is not None) == (wish["operator"] == "Exists")


def of_nodes(selector: Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if selector is None else {"nodeAffinity": {REQUIRED: selector}}


@given(SELECTORS, SELECTORS, NODES, st.sampled_from(["n1", "n2", "n3"]))
def test_a_node_is_allowed_exactly_where_both_selectors_allow_it(
    first: dict[str, Any] | None, second: dict[str, Any] | None, node: dict[str, str], name: str
) -> None:
    joined = joined_affinity(of_nodes(first), of_nodes(second)).get("nodeAffinity", {}).get(REQUIRED)
    assert matches(joined, node, name) == (matches(first, node, name) and matches(second, node, name))


WEIGHTED = st.lists(st.fixed_dictionaries({"weight": st.integers(1, 100), "preference": term()}), max_size=3)
PODS = st.lists(st.fixed_dictionaries({"topologyKey": st.sampled_from(KEYS)}), max_size=3)


@given(WEIGHTED, WEIGHTED, PODS, PODS)
def test_terms_about_pods_and_preferences_of_both_stay_in_order(
    one: list[Any], other: list[Any], near: list[Any], away: list[Any]
) -> None:
    first = {"nodeAffinity": {PREFERRED: one}, "podAffinity": {REQUIRED: near, PREFERRED: one}}
    second = {"nodeAffinity": {PREFERRED: other}, "podAffinity": {REQUIRED: away}, "podAntiAffinity": {REQUIRED: near}}
    joined = joined_affinity(first, second)
    assert joined.get("nodeAffinity", {}).get(PREFERRED, []) == one + other
    assert joined.get("podAffinity", {}).get(REQUIRED, []) == near + away
    assert joined.get("podAffinity", {}).get(PREFERRED, []) == one
    assert joined.get("podAntiAffinity", {}).get(REQUIRED, []) == near


def test_nothing_joined_with_nothing_writes_no_field() -> None:
    assert joined_affinity({}, {"nodeAffinity": {}}) == {}
    assert with_affinity({"containers": []}, {}) == {"containers": []}


@given(SELECTORS, NODES, st.sampled_from(["n1", "n2", "n3"]), st.sets(st.sampled_from(["n1", "n3"]), min_size=1))
def test_a_pod_that_avoids_nodes_goes_wherever_else_it_might(
    selector: dict[str, Any] | None, node: dict[str, str], name: str, avoided: set[str]
) -> None:
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [], "affinity": of_nodes(selector)}}
    found = without_nodes(pod, avoided)["spec"]["affinity"]["nodeAffinity"][REQUIRED]
    assert matches(found, node, name) == (matches(selector, node, name) and name not in avoided)
