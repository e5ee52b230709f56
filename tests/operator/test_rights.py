"""Rights and requests are held against each other rightly, or the check of the chart's rules would be blind."""

from m3_testcluster.audit import AuditEvent, parse_event
from operator_rights import Right, not_covered, rights_of, used

RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "create"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": ["mine"],
        "verbs": ["create", "update"],
    },
]
RIGHTS = rights_of(RULES)


def request(
    verb: str, resource: str, *, group: str = "", name: str = "", subresource: str = "", code: int = 200
) -> AuditEvent:
    return parse_event(
        {
            "auditID": "1",
            "requestReceivedTimestamp": "2026-01-02T03:04:05.600000Z",
            "user": {"username": "operator"},
            "verb": verb,
            "objectRef": {"resource": resource, "apiGroup": group, "name": name, "subresource": subresource},
            "responseStatus": {"code": code},
        }
    )


def test_rules_are_the_product_of_their_lists() -> None:
    assert {str(right) for right in RIGHTS} == {
        "get pods",
        "create pods",
        "create leases.coordination.k8s.io mine",
        "update leases.coordination.k8s.io mine",
    }


def test_a_request_uses_the_right_of_its_verb_and_a_write_that_made_the_object_that_to_create_it() -> None:
    assert used(RIGHTS, [request("get", "pods", name="a")]) == {Right("", "pods", "get")}
    lease = {"group": "coordination.k8s.io", "name": "mine"}
    assert {right.verb for right in used(RIGHTS, [request("update", "leases", **lease)])} == {"update"}  # type: ignore[arg-type]
    assert {right.verb for right in used(RIGHTS, [request("update", "leases", code=201, **lease)])} == {
        "create",
        "update",
    }  # type: ignore[arg-type]


def test_a_right_for_one_name_covers_no_other_and_a_subresource_is_a_resource_of_its_own() -> None:
    other = request("update", "leases", group="coordination.k8s.io", name="other")
    status = request("get", "pods", name="a", subresource="status")
    assert not_covered(RIGHTS, [other, status, request("get", "pods", name="a")]) == [
        "get pods/status a",
        "update leases.coordination.k8s.io other",
    ]
    assert used(RIGHTS, [other]) == set()


def test_discovery_needs_no_right_of_ours() -> None:
    assert not_covered(RIGHTS, [request("get", "")]) == []
