"""What `m3 up` says."""

import json
import shlex

import pytest

from m3_operator.local.console import curl_line, describe
from m3_operator.local.processes import Endpoint, Kind
from m3_operator.local.supervisor import State, Status
from m3_router.config import RouterConfig

CONFIG = RouterConfig.model_validate(
    {
        "auth": "none",
        "pools": [
            {"name": "a", "models": ["it's a model".replace(" ", "-")], "workers": ["http://127.0.0.1:9101"]},
        ],
    }
)


def status(state: State, **fields: object) -> Status:
    return Status(**{"name": "w", "kind": Kind.WORKER, "since": 12.34, "state": state, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (status(State.STARTING, started_at=12.0), "w: starting"),
        (status(State.STARTING, started_at=12.0, restarts=2), "w: starting again (restart 2)"),
        (status(State.READY, started_at=10.0), "w: ready after 2.3 s"),
        (status(State.DONE, started_at=10.0), "w: written in 2.3 s"),
        (status(State.DONE), "w: there already"),
        (
            status(State.RESTARTING, detail="it was killed by SIGKILL; starting again in 1 s"),
            "w: it was killed by SIGKILL; starting again in 1 s",
        ),
        (status(State.STOPPED), "w: stopped"),
    ],
)
def test_every_change_has_its_line(change: Status, line: str) -> None:
    assert describe(change) == line


def test_the_curl_line_survives_a_shell_and_carries_the_key() -> None:
    endpoint = Endpoint(url="http://127.0.0.1:8080", admin_url="http://127.0.0.1:1", key="m3-k", config=CONFIG)

    words = shlex.split(curl_line(endpoint))

    assert "\n" not in curl_line(endpoint)
    assert words[:2] == ["curl", "http://127.0.0.1:8080/v1/chat/completions"]
    assert "Authorization: Bearer m3-k" in words
    assert json.loads(words[-1])["model"] == "it's-a-model"


def test_the_curl_line_of_an_open_endpoint_has_no_key() -> None:
    endpoint = Endpoint(url="http://127.0.0.1:8080", admin_url="http://127.0.0.1:1", key=None, config=CONFIG)

    assert "Authorization" not in curl_line(endpoint)
