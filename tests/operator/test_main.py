"""The command line of m3-operator, and how answers of the API server are told apart."""

from pathlib import Path

import kopf
import pytest

from m3_operator.cluster import classify
from m3_operator.errors import ApiError, ConflictError, NotFoundError, RefusedError, UnavailableError
from m3_operator.handlers import build_settings
from m3_operator.options import LeaseOptions, Options, parse_options
from m3_operator.resources import CHILD_SELECTORS, RESOURCES, WATCHED_KINDS

NOWHERE = Path("/nonexistent/namespace")  # this is no pod


def test_flags_and_environment_become_options() -> None:
    environment = {"M3_WORKER_IMAGE": "w:env", "M3_ROUTER_IMAGE": "r:env", "POD_NAME": "m3-operator-0"}
    found = parse_options(["--namespace=ns", "--worker-image=w:flag", "--kubeconfig=/k"], environment, NOWHERE)
    assert found == Options(
        kubeconfig=Path("/k"),
        namespace="ns",
        worker_image="w:flag",
        router_image="r:env",
        health_host="127.0.0.1",
        health_port=8085,
        metrics_host="127.0.0.1",
        metrics_port=8086,
        log_level="info",
        log_format="text",
        lease=LeaseOptions(namespace="ns", name="m3-operator", identity="m3-operator-0"),
        own_namespace=None,
    )


def test_no_image_is_invented() -> None:
    assert parse_options(["--all-namespaces", "--no-leader-election"], {}).worker_image is None


def test_the_lease_is_in_the_pods_own_namespace_whatever_is_watched(tmp_path: Path) -> None:
    own = tmp_path / "namespace"
    own.write_text("m3serve\n")
    for scope in ("--namespace=serving", "--all-namespaces"):
        lease = parse_options([scope], {}, own).lease
        assert lease is not None
        assert lease.namespace == "m3serve"
    lease = parse_options(["--all-namespaces", "--leader-namespace=elsewhere", "--leader-lease=blue"], {}, own).lease
    assert lease is not None
    assert (lease.namespace, lease.name) == ("elsewhere", "blue")


def test_two_operators_on_one_host_are_never_taken_for_one_another() -> None:
    found = [parse_options(["--namespace=ns"], {}, NOWHERE).lease for _ in range(2)]
    assert found[0] != found[1]


def test_development_needs_no_lease() -> None:
    assert parse_options(["--all-namespaces", "--no-leader-election"], {}, NOWHERE).lease is None


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--namespace"),
        (["--namespace=a", "--all-namespaces"], "not allowed with"),
        (["--all-namespaces", "--health-port=0"], "--health-port 0"),
        (["--all-namespaces", "--metrics-port=65536"], "--metrics-port 65536"),
        (["--all-namespaces", "--log-format=xml"], "xml"),
        (["--all-namespaces"], "say --leader-namespace NS, or --no-leader-election"),
        (["--all-namespaces", "--log-level=loud"], "loud"),
    ],
)
def test_a_bad_command_line_ends_with_code_2(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(arguments, {}, NOWHERE)
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


@pytest.mark.parametrize("kind", CHILD_SELECTORS)
def test_kopf_asks_for_nobody_s_objects_but_ours(kind: str) -> None:
    """By what kopf itself makes of the settings: a selector that it does not understand would select everything."""
    resource = RESOURCES[kind]
    of_kopf = kopf.Resource(resource.group, resource.api_version.rpartition("/")[2], resource.plural)
    collected = build_settings(WATCHED_KINDS).watching.label_selectors.collect(of_kopf)
    assert collected == [CHILD_SELECTORS[kind]]
