"""The moderation hook through the whole router: requests, answers, streams, and a service that fails."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from m3_mock import Speaker
from m3_mock.moderation import ModerationService
from m3_mock.running import StartRouter, eventually, post
from m3_mock.speaker import ANSWER, texts_of

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"


def body_of(path: str, text: str) -> dict[str, Any]:
    """A request that says `text`."""
    body: dict[str, Any] = {"model": "mock", "max_tokens": 50}
    if path == COMPLETIONS:
        return {**body, "prompt": text}
    if path == RESPONSES:
        return {**body, "input": text}
    return {**body, "messages": [{"role": "user", "content": text}]}


@pytest.fixture
async def service() -> AsyncIterator[ModerationService]:
    async with ModerationService().running() as one:
        yield one


def moderation(service: ModerationService, **more: Any) -> dict[str, Any]:
    return {"url": service.url, "stages": ["request", "response"], **more}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_a_flagged_request_is_refused_and_no_worker_sees_it(
    start_router: StartRouter, speaker: Speaker, service: ModerationService, path: str
) -> None:
    router = await start_router([speaker], moderation=moderation(service))
    answer = await router.http.post(path, json=body_of(path, "something evil"))
    assert answer.status_code == 400
    assert "The request was stopped by content moderation: it is evil" in answer.json()["error"]["message"]
    assert speaker.received == []
    (question,) = service.asked
    assert (question["stage"], question["model"]) == ("request", "mock")
    assert "something evil" in question["input"]
    assert "evil" not in json.dumps([{**line, "error": None} for line in router.log.lines])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_a_flagged_whole_answer_is_never_given(
    start_router: StartRouter, speaker: Speaker, service: ModerationService, path: str
) -> None:
    speaker.words = ("an ", "evil ", "word")
    router = await start_router([speaker], moderation=moderation(service))
    answer = await router.http.post(path, json=body_of(path, "hi"))
    assert answer.status_code == 400
    assert "The response was stopped" in answer.json()["error"]["message"]
    assert "an evil" not in answer.text
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["status"], bill["cost_nanousd"]) == ("rejected", 400, 0)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_a_flagged_stream_ends_with_an_error_event_and_never_as_a_good_one(
    start_router: StartRouter, speaker: Speaker, service: ModerationService, path: str
) -> None:
    speaker.words = ("an ", "evil ", "word")
    speaker.gate, speaker.gate_at = asyncio.Event(), 2
    router = await start_router([speaker], moderation=moderation(service))
    reader, _ = await router.raw(post({**body_of(path, "hi"), "stream": True}, path=path))
    await asyncio.wait_for(reader.readuntil(b"an "), 10)
    speaker.gate.set()
    stream = await asyncio.wait_for(reader.read(), 10)
    assert not stream.endswith(b"0\r\n\r\n")
    assert b"The response was stopped by content moderation" in stream
    assert not any(end in stream for end in (b"[DONE]", b"message_stop", b"response.completed"))
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["cost_nanousd"]) == ("rejected", 0)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_what_is_allowed_is_given_whole_and_billed(
    start_router: StartRouter, speaker: Speaker, service: ModerationService, path: str, is_stream: bool
) -> None:
    router = await start_router([speaker], moderation=moderation(service))
    answer = await router.http.post(path, json={**body_of(path, "hi"), "stream": is_stream})
    assert answer.status_code == 200
    if is_stream:
        assert texts_of(path, answer.content) == ANSWER
    assert [question["stage"] for question in service.asked] == ["request", "response"]
    assert service.asked[1]["input"].strip() == ANSWER.strip()
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["output_tokens"]) == ("ok", 5)


async def test_a_stream_passes_while_it_is_asked_about_and_its_end_waits(
    start_router: StartRouter, speaker: Speaker, service: ModerationService
) -> None:
    service.gate = asyncio.Event()
    speaker.gate, speaker.gate_at = asyncio.Event(), 2
    router = await start_router([speaker], moderation=moderation(service, stages=["response"], timeoutSeconds=20))
    reader, _ = await router.raw(post({**body_of(CHAT, "hi"), "stream": True}))
    head = await asyncio.wait_for(reader.readuntil(b"one "), 10)
    assert head.startswith(b"HTTP/1.1 200")
    speaker.gate.set()
    await asyncio.wait_for(service.arrived.wait(), 10)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readuntil(b"[DONE]"), 0.3)
    service.gate.set()
    await asyncio.wait_for(reader.readuntil(b"[DONE]"), 10)


@pytest.mark.parametrize(("on_failure", "status"), [("refuse", 503), ("allow", 200)])
@pytest.mark.parametrize("stage", ["request", "response"])
async def test_a_service_that_fails_has_its_stated_effect(  # noqa: PLR0917 - fixtures and a table
    start_router: StartRouter, speaker: Speaker, service: ModerationService, on_failure: str, status: int, stage: str
) -> None:
    service.status = 500
    router = await start_router([speaker], moderation=moderation(service, stages=[stage], onFailure=on_failure))
    answer = await router.http.post(CHAT, json=body_of(CHAT, "hi"))
    assert answer.status_code == status
    if status == 503:
        assert answer.json()["error"]["code"] == "moderation_unavailable"
        assert answer.headers["retry-after"] == "5"


async def test_a_service_that_says_nothing_is_given_up_in_time(
    start_router: StartRouter, speaker: Speaker, service: ModerationService
) -> None:
    service.gate = asyncio.Event()
    router = await start_router([speaker], moderation=moderation(service, timeoutSeconds=0.2))
    assert (await router.http.post(CHAT, json=body_of(CHAT, "hi"))).status_code == 503
    assert speaker.received == []


async def test_a_client_that_leaves_while_its_request_is_asked_about_is_never_sent_to_a_worker(
    start_router: StartRouter, speaker: Speaker, service: ModerationService
) -> None:
    service.gate = asyncio.Event()
    router = await start_router([speaker], moderation=moderation(service, timeoutSeconds=20))
    _, writer = await router.raw(post(body_of(CHAT, "hi")))
    await asyncio.wait_for(service.arrived.wait(), 10)
    writer.transport.abort()
    await eventually(lambda: len(router.router._ledger.newest(1)) == 1, "it is settled")
    service.gate.set()
    assert (await router.chat()).status_code == 200
    assert len(speaker.received) == 1, "that of the other client"
    assert [bill["outcome"] for bill in await router.ledger()] == ["ok", "client_gone"]
