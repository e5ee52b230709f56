"""The code endpoints: what is answered matches the documented schema, and what is asked is checked."""

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from m3_fakes.worker import running_simulation
from m3_worker.api.code import GENERATION_SCHEMA, REVIEW_SCHEMA, GenerateFields, ReviewFields
from m3_worker.config import WorkerSettings

SETTINGS = WorkerSettings(simulate=True, simulate_token_seconds=0, simulate_prefill_tokens_per_second=1e9)
FILE = {"path": "a.py", "content": "print(1)\n"}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running_simulation(SETTINGS) as (_, url), httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "kind", "fields", "schema"),
    [
        ("generate", "code.generation", {"task": "sort it", "files": [FILE], "language": "Python"}, GENERATION_SCHEMA),
        ("review", "code.review", {"files": [FILE]}, REVIEW_SCHEMA),
        ("review", "code.review", {"diff": "-a\n+b", "instructions": "bugs"}, REVIEW_SCHEMA),
        ("review", "code.review", {"diff": "-a\n+b", "thinking": {"type": "enabled"}}, REVIEW_SCHEMA),
    ],
)
def test_a_result_matches_its_schema(
    client: httpx.Client, path: str, kind: str, fields: dict[str, Any], schema: dict[str, Any]
) -> None:
    body = client.post(f"/v1/code/{path}", json={"model": "simulated", **fields}).json()
    assert (body["object"], body["status"], body["incomplete_text"]) == (kind, "completed", None)
    jsonschema.validate(body["result"], schema)
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]


def test_an_answer_that_reaches_its_limit_has_no_result(client: httpx.Client) -> None:
    body = client.post("/v1/code/generate", json={"model": "simulated", "task": "x", "max_tokens": 5}).json()
    assert (body["status"], body["result"]) == ("incomplete", None)
    assert body["incomplete_text"].startswith("{")
    assert body["usage"]["completion_tokens"] == 5


def test_a_file_is_shown_in_a_fence_that_it_cannot_close() -> None:
    file = {"path": "a.md", "content": "```\n````"}
    shown = GenerateFields.model_validate({"model": "m", "task": "t", "language": "C", "files": [file]}).prompt
    assert shown == "Task: t\n\nLanguage: C\n\nFile a.md:\n`````\n```\n````\n`````"
    shown = ReviewFields.model_validate({"model": "m", "diff": "+1", "instructions": "bugs"}).prompt
    assert shown == "Review this.\n\nLook for: bugs\n\nDiff:\n```\n+1\n```"


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("generate", {}, "task is required"),
        ("generate", {"task": ""}, "task is "),
        ("generate", {"task": "x", "files": [{"path": "a"}]}, "files[0].content is required"),
        ("generate", {"task": "x", "stream": True}, "stream is true: the answer is one object"),
        ("generate", {"task": "x", "max_tokens": -1}, "max_tokens is -1"),
        ("review", {}, "give files or diff: there is nothing to review"),
        ("review", {"files": []}, "give files or diff"),
        ("review", {"diff": "x", "thinking": {"type": "on"}}, "thinking.type"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: httpx.Client, path: str, fields: dict[str, Any], message: str
) -> None:
    response = client.post(f"/v1/code/{path}", json={"model": "simulated", **fields})
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
