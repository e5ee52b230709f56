"""The command line of m3-operator, and how answers of the API server are told apart."""

from pathlib import Path

import pytest

from m3_operator.cluster import classify
from m3_operator.errors import ApiError, ConflictError, NotFoundError, RefusedError, UnavailableError
from m3_operator.handlers import STUCK_AFTER_SECONDS, build_settings, check_pace
from m3_operator.main import Options, parse_options
from m3_operator.resources import WATCHED_KINDS
from m3_operator.workqueue import WorkQueue


def test_flags_and_environment_become_options() -> None:
    environment = {"M3_WORKER_IMAGE": "w:env", "M3_ROUTER_IMAGE": "r:env"}
    found = parse_options(["--namespace=ns", "--worker-image=w:flag", "--kubeconfig=/k"], environment)
    assert found == Options(
        kubeconfig=Path("/k"),
        namespace="ns",
        worker_image="w:flag",
        router_image="r:env",
        health_host="127.0.0.1",
        health_port=8085,
        log_level="info",
    )


def test_no_image_is_invented() -> None:
    assert parse_options(["--all-namespaces"], {}).worker_image is None


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--namespace"),
        (["--namespace=a", "--all-namespaces"], "not allowed with"),
        (["--all-namespaces", "--health-port=0"], "--health-port 0"),
        (["--all-namespaces", "--log-level=loud"], "loud"),
    ],
)
def test_a_bad_command_line_ends_with_code_2(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(arguments, {})
    assert caught.value.code == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, NotFoundError),
        (409, ConflictError),
        (400, RefusedError),
        (401, RefusedError),
        (403, RefusedError),
        (422, RefusedError),
        (408, UnavailableError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
        (0, UnavailableError),
    ],
)
def test_an_answer_is_told_by_what_is_to_be_done_about_it(status: int, kind: type[ApiError]) -> None:
    found = classify(status, "GET /api/v1/pods", '{"kind": "Status", "message": "the words"}')
    assert type(found) is kind
    assert "the words" in str(found)
    assert type(classify(status, "GET /", "not JSON")) is kind


def test_kopf_writes_nothing_and_sees_only_what_is_ours() -> None:
    settings = build_settings(WATCHED_KINDS)
    assert settings.posting.enabled is False
    assert settings.peering.standalone
    assert settings.scanning.disabled


async def test_the_probe_fails_when_an_object_waits_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = WorkQueue()
    assert check_pace(queue) == 0
    monkeypatch.setattr(queue, "longest_wait_seconds", lambda: STUCK_AFTER_SECONDS + 1)
    with pytest.raises(Exception, match="has been waiting for 301 s"):
        check_pace(queue)
