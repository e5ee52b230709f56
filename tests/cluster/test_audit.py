"""Which of the API server's audit events count as writes."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from m3_testcluster.audit import parse_event, read_events, select_writes


def record(verb: str, **target: str) -> dict[str, Any]:
    return {
        "auditID": "1",
        "requestReceivedTimestamp": "2026-01-02T03:04:05.600000Z",
        "user": {"username": "operator"},
        "verb": verb,
        "requestURI": target.pop("uri", "/api/v1/pods"),
        "objectRef": target,
        "responseStatus": {"code": 200},
    }


@pytest.mark.parametrize(
    ("event", "is_write"),
    [
        (record("create", resource="pods"), True),
        (record("update", resource="pods"), True),
        (record("patch", resource="pods", subresource="status"), True),
        (record("delete", resource="pods"), True),
        (record("deletecollection", resource="pods"), True),
        (record("get", resource="pods"), False),
        (record("watch", resource="pods"), False),
        (record("patch", resource="pods", uri="/api/v1/pods/a?dryRun=All&force=true"), False),
        (record("create", resource="selfsubjectaccessreviews", apiGroup="authorization.k8s.io"), False),
        (record("create", resource="tokenreviews", apiGroup="authentication.k8s.io"), False),
        (record("create", resource="rolebindings", apiGroup="rbac.authorization.k8s.io"), True),
        (record("create", resource="events"), True),
    ],
)
def test_a_write_is_a_request_to_change_what_is_stored(event: dict[str, Any], is_write: bool) -> None:
    assert parse_event(event).is_write is is_write


def test_writes_are_selected_by_user_and_time() -> None:
    event = parse_event(record("create", resource="pods", namespace="n", name="p"))

    assert select_writes([event], "operator") == [event]
    assert select_writes([event], "admin") == []
    assert select_writes([event], "operator", datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)) == [event]
    assert select_writes([event], "operator", datetime(2026, 1, 2, 3, 4, 5, 600_001, tzinfo=UTC)) == []
    assert str(event) == "03:04:05.600000 operator create pods n/p -> 200"


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    line = json.dumps(record("get", resource="pods"))
    log.write_text(line + "\n" + line[:40])

    assert [event.verb for event in read_events(log)] == ["get"]
