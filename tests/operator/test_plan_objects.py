"""When an object is written, and when it is left alone."""

import copy
from typing import Any

import pytest

from m3_operator.plan.actions import ApplyObject, DeleteObject
from m3_operator.plan.objects import differences, first_difference, stamp

OWNER = {"metadata": {"uid": "owner"}}
DESIRED = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "m3-workers", "namespace": "ns", "labels": {"a": "b"}},
    "spec": {"selector": {"rank": "0"}, "ports": [{"name": "http", "port": 8000}], "externalIPs": []},
}


def live(**changes: Any) -> dict[str, Any]:
    """The desired object as the API server has it after our apply: with defaults, and without empty lists."""
    found = copy.deepcopy(stamp(DESIRED))
    del found["spec"]["externalIPs"]
    found["metadata"] |= {"uid": "x", "resourceVersion": "7", "ownerReferences": [{"uid": "owner", "controller": True}]}
    found["spec"] |= {"clusterIP": "10.0.0.1", **changes}
    found["spec"]["ports"][0]["protocol"] = "TCP"
    return found


def plan(*found: dict[str, Any]) -> list[Any]:
    return differences([DESIRED], {(one["kind"], one["metadata"]["name"]): one for one in found}, OWNER)


def test_what_is_missing_is_applied_and_what_is_as_it_should_be_is_not() -> None:
    (action,) = plan()
    assert isinstance(action, ApplyObject)
    assert action.reason == "it is missing"
    assert plan(live()) == []


def test_a_field_that_somebody_changed_is_named_and_applied() -> None:
    (action,) = plan(live(selector={"rank": "7"}))
    assert action.reason == "spec.selector.rank was changed by somebody else"


def test_fields_of_others_are_left_alone() -> None:
    found = live(sessionAffinity="ClientIP")
    found["metadata"]["labels"]["theirs"] = "x"
    assert plan(found) == []


def test_a_field_that_is_no_longer_wanted_is_noticed_by_the_hash() -> None:
    before = stamp({**DESIRED, "spec": {**DESIRED["spec"], "type": "NodePort"}})  # type: ignore[dict-item]
    before["metadata"]["ownerReferences"] = [{"uid": "owner", "controller": True}]
    (action,) = plan(before)
    assert action.reason == "its desired form has changed"


def test_only_what_this_owner_controls_is_pruned() -> None:
    ours, theirs, going = (copy.deepcopy(live()) for _ in range(3))
    for found, name in ((ours, "old"), (theirs, "theirs"), (going, "going")):
        found["metadata"]["name"] = name
    theirs["metadata"]["ownerReferences"][0]["uid"] = "another"
    going["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    (action,) = plan(live(), ours, theirs, going)
    assert isinstance(action, DeleteObject)
    assert action.manifest["metadata"]["name"] == "old"


@pytest.mark.parametrize(
    ("desired", "found"),
    [
        ({"memory": "1024Mi"}, {"memory": "1Gi"}),
        ({"cpu": "1000m"}, {"cpu": "1"}),
        ({"cpu": "0.5"}, {"cpu": "500m"}),
        ({"size": "4294967296"}, {"size": "4Gi"}),
        ({"a": [], "b": {}, "c": None}, {}),
        ({"emptyDir": {}}, {"emptyDir": {}}),
    ],
)
def test_what_the_api_server_rewrites_is_no_difference(desired: dict[str, Any], found: dict[str, Any]) -> None:
    assert first_difference(desired, found) is None


@pytest.mark.parametrize(
    ("desired", "found", "path"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b"),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, "a[0].b"),
        ({"a": [1]}, {"a": [1, 2]}, "a"),
        ({"a": True}, {}, "a"),
        ({"memory": "1Gi"}, {"memory": "1G"}, "memory"),
        ({"a": "8"}, {"a": 8}, "a"),
        ({"a": {"b": 1}}, {"a": None}, "a"),
    ],
)
def test_what_is_another_value_is_a_difference(desired: dict[str, Any], found: dict[str, Any], path: str) -> None:
    assert first_difference(desired, found) == path
