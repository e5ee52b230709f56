"""What the relayed dialects differ in: their paths, and how each tells of an error."""

import json
from collections.abc import Iterator

import anthropic
import httpx2
import openai
import pytest

from m3_router.bodies.dialects import BY_PATH, CHAT, COUNT_TOKENS, MESSAGES, RESPONSES, TOKENIZE, Dialect
from m3_router.errors import Refusal, at_capacity, worker_failed


def test_each_path_has_its_dialect_and_the_free_ones_have_no_output() -> None:
    assert all(BY_PATH[path].path == path for path in BY_PATH)
    assert {dialect.name for dialect in BY_PATH.values() if dialect.is_free} == {
        "tokenize",
        "count_tokens",
        "input_tokens",
    }
    assert not any(dialect.has_output for dialect in BY_PATH.values() if dialect.is_free)
    assert {dialect.name for dialect in BY_PATH.values() if dialect.is_anthropic} == {"messages", "count_tokens"}
    assert BY_PATH[b"/tokenize"] is TOKENIZE
    assert CHAT.count_path in BY_PATH
    assert BY_PATH[MESSAGES.count_path] is COUNT_TOKENS


def stream_of(client: openai.OpenAI, dialect: Dialect) -> Iterator[object]:
    if dialect is CHAT:
        return iter(client.chat.completions.create(model="m", messages=[], stream=True))
    return iter(client.responses.create(model="m", input="x", stream=True))


@pytest.mark.parametrize("dialect", [CHAT, RESPONSES], ids=repr)
def test_openais_client_raises_what_an_error_event_says(dialect: Dialect) -> None:
    events = dialect.keep_alive + dialect.error_event(worker_failed("Worker a failed."), "r-1")
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=events)
    )
    with (
        openai.OpenAI(api_key="k", base_url="http://m/v1", http_client=httpx2.Client(transport=transport)) as client,
        pytest.raises(openai.APIError, match=r"Worker a failed\.") as raised,
    ):
        list(stream_of(client, dialect))
    assert raised.value.code == "worker_error"


def test_anthropics_client_raises_what_an_error_event_says_and_skips_the_keep_alive() -> None:
    events = MESSAGES.keep_alive + MESSAGES.error_event(worker_failed("Worker a failed."), "r-1")
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=events)
    )
    with (
        anthropic.Anthropic(api_key="k", http_client=httpx2.Client(transport=transport)) as client,
        pytest.raises(anthropic.APIStatusError) as raised,
    ):
        list(client.messages.create(model="m", max_tokens=1, messages=[], stream=True))
    error = {"type": "api_error", "message": "Worker a failed."}
    assert raised.value.body == {"type": "error", "error": error, "request_id": "r-1"}


@pytest.mark.parametrize(
    ("refusal", "status", "kind"),
    [
        (at_capacity("full", 3), 529, "overloaded_error"),
        (Refusal(429, "spent", code="insufficient_quota"), 429, "rate_limit_error"),
        (Refusal(400, "no"), 400, "invalid_request_error"),
        (Refusal(401, "no"), 401, "authentication_error"),
        (Refusal(413, "no"), 413, "request_too_large"),
        (Refusal(405, "no"), 405, "invalid_request_error"),
        (Refusal(502, "no"), 502, "api_error"),
        (Refusal(504, "no"), 504, "timeout_error"),
    ],
)
def test_a_refusal_reads_to_anthropics_clients_as_they_know_it(refusal: Refusal, status: int, kind: str) -> None:
    before = json.loads(refusal.body())
    refusal.answer_to("r-1", is_anthropic=True)
    assert refusal.status == status
    error = {"type": kind, "message": before["error"]["message"]}
    assert json.loads(refusal.body()) == {"type": "error", "error": error, "request_id": "r-1"}


def test_openais_clients_get_429_at_capacity() -> None:
    refusal = at_capacity("full", 3)
    assert refusal.status == 429
    assert json.loads(refusal.body())["error"]["type"] == "rate_limit_error"
