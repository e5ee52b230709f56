"""What the router itself refuses, as the SDKs' own exceptions; and what a full or a slow worker is through it."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from m3_fakes.worker import CONTEXT_TOKENS, FakeWorker, running_worker
from m3_mock import MockEngine
from m3_mock.running import Running, StartRouter, eventually, post, read_stream
from m3_routed import routed, routed_workers

KEY = "right"
HI: list[Any] = [{"role": "user", "content": "hi"}]
SOON = {"limits": {"commentSeconds": 0.01}}  # or a stream that waits had no head yet


def access(**plan: Any) -> dict[str, Any]:
    key = {"tenant": "acme", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}
    return {"plans": {"p": plan}, "tenants": [{"name": "acme", "plan": "p"}], "keys": [key]}


class Clients:
    """Both SDKs, which repeat nothing."""

    def __init__(self, router: Running, key: str = KEY) -> None:
        url = f"http://{router.router.address}"
        self._openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        self._anthropic = anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0)

    async def chat(self, **fields: Any) -> Any:
        async with self._openai as sdk:
            return await sdk.chat.completions.create(**{"model": "mock", "messages": HI, "max_tokens": 9, **fields})

    async def message(self, **fields: Any) -> Any:
        async with self._anthropic as sdk:
            return await sdk.messages.create(**{"model": "mock", "messages": HI, "max_tokens": 9, **fields})


async def test_a_key_that_is_not_known_and_a_model_that_is_not_there(
    start_router: StartRouter, engine: MockEngine
) -> None:
    router = await start_router([engine], auth=access())
    with pytest.raises(openai.AuthenticationError, match="not known"):
        await Clients(router, "wrong").chat()
    with pytest.raises(anthropic.AuthenticationError, match="not known") as unknown:
        await Clients(router, "wrong").message()
    assert unknown.value.type == "authentication_error"
    with pytest.raises(openai.NotFoundError, match="there are: mock") as missing:
        await Clients(router).chat(model="nope")
    assert missing.value.code == "model_not_found"
    with pytest.raises(anthropic.NotFoundError, match="there are: mock"):
        await Clients(router).message(model="nope")


async def test_anthropics_sdk_is_told_which_request_it_was(start_router: StartRouter, engine: MockEngine) -> None:
    router = await start_router([engine], auth=access())
    named = {"extra_headers": {"x-request-id": "mine-1"}}
    with pytest.raises(anthropic.AuthenticationError) as unknown:
        await Clients(router, "wrong").message(**named)
    with pytest.raises(anthropic.NotFoundError) as missing:
        await Clients(router).message(model="nope", **named)
    engine.raw_answer = b"no HTTP\r\n\r\n"
    with pytest.raises(anthropic.InternalServerError) as failed:
        await Clients(router).message(**named)
    engine.raw_answer, engine.die_at = None, 2
    body = {"model": "mock", "messages": HI, "max_tokens": 9, "stream": True}
    asking = post(body, f"x-api-key: {KEY}", "x-request-id: mine-1", path="/v1/messages")
    head, events, _ = await read_stream((await router.raw(asking))[0])
    assert b"\r\nrequest-id: mine-1\r\n" in head, "also where the worker gives none"
    assert json.loads(events.rpartition(b"event: error\ndata: ")[2])["request_id"] == "mine-1"
    for refused in (unknown, missing, failed):
        assert refused.value.request_id == "mine-1"
        assert refused.value.body["request_id"] == "mine-1"
    with pytest.raises(anthropic.NotFoundError) as unnamed:
        await Clients(router).message(model="nope")
    assert unnamed.value.request_id == unnamed.value.response.headers["x-request-id"] != ""


async def test_a_quota_that_is_used_up_says_what_is_left_and_when_to_come_back(
    start_router: StartRouter, engine: MockEngine
) -> None:
    router = await start_router([engine], auth=access(requests_per_minute=2))
    await Clients(router).chat()
    await Clients(router).chat()
    with pytest.raises(openai.RateLimitError) as chat:
        await Clients(router).chat()
    assert chat.value.code == "rate_limit_exceeded"
    assert chat.value.response.headers["x-ratelimit-limit-requests"] == "2"
    assert chat.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(chat.value.response.headers["retry-after"]) <= 60
    with pytest.raises(anthropic.RateLimitError) as message:
        await Clients(router).message()
    assert message.value.type == "rate_limit_error"
    assert message.value.response.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert 0 < int(message.value.response.headers["retry-after"]) <= 60


async def test_a_ceiling_is_a_bad_request_before_it_is_a_bill(start_router: StartRouter, engine: MockEngine) -> None:
    router = await start_router([engine], auth=access())
    ceiling = {"x-m3-max-cost-usd": "0.000000001"}
    with pytest.raises(openai.BadRequestError, match="x-m3-max-cost-usd allows") as chat:
        await Clients(router).chat(extra_headers=ceiling)
    assert chat.value.code == "cost_above_ceiling"
    with pytest.raises(anthropic.BadRequestError, match="x-m3-max-cost-usd allows"):
        await Clients(router).message(extra_headers=ceiling)
    assert not any(one.method == "POST" for one in engine.received), "no worker has heard of it"


async def test_no_room_in_a_lane_is_429_for_openai_and_529_for_anthropic(
    start_router: StartRouter, engine: MockEngine
) -> None:
    engine.gate = asyncio.Event()
    pool = {
        "maxContextTokens": 20,
        "tokensInFlight": 27,
        "queueRequests": 0,
    }  # room for one request that is not priority
    router = await start_router([engine], auth=access(), pool=pool)
    key = {"authorization": f"Bearer {KEY}"}
    body = {"model": "mock", "messages": HI, "max_tokens": 20}
    running = asyncio.create_task(router.http.post("/v1/chat/completions", json=body, headers=key))
    await eventually(lambda: any(one.method == "POST" for one in engine.received), "one is there")
    with pytest.raises(openai.RateLimitError, match="at its capacity") as chat:
        await Clients(router).chat()
    assert chat.value.code == "at_capacity"
    assert int(chat.value.response.headers["retry-after"]) >= 1
    with pytest.raises(anthropic.OverloadedError, match="at its capacity") as message:
        await Clients(router).message()
    assert (message.value.status_code, message.value.type) == (529, "overloaded_error")
    engine.gate.set()
    assert (await running).status_code == 200


@pytest.fixture
def full() -> Iterator[FakeWorker]:
    """Two workers with one place each, both taken."""
    with routed_workers(max_concurrent=1, max_waiting=0, router=SOON) as worker:
        worker.hold_steps()
        body = {"model": "fake", "messages": HI, "max_tokens": 9, "stream": True}
        with (
            httpx.Client(base_url=worker.url, timeout=30) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as one,
            client.stream("POST", "/v1/chat/completions", json=body) as other,
        ):
            assert one.headers["x-m3-worker"] != other.headers["x-m3-worker"], "the full one was passed over"
            yield worker
            worker.reset()


def test_workers_that_are_all_full_say_when_to_come_back(full: FakeWorker) -> None:
    with (
        openai.OpenAI(base_url=f"{full.url}/v1", api_key="none", max_retries=0) as chat,
        anthropic.Anthropic(base_url=full.url, api_key="none", max_retries=0) as messages,
    ):
        with pytest.raises(openai.RateLimitError, match="queue is full") as limited:
            chat.chat.completions.create(model="fake", messages=HI, max_tokens=9)
        assert limited.value.response.headers["retry-after"] == "1"
        with pytest.raises(anthropic.OverloadedError) as overloaded:
            messages.messages.create(model="fake", messages=HI, max_tokens=9)
        assert overloaded.value.response.headers["retry-after"] == "1"


def test_signs_of_life_before_the_first_event_are_nothing_to_the_sdks() -> None:
    with (
        running_worker() as worker,
        routed([worker.url], "fake", context_tokens=CONTEXT_TOKENS, **SOON) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as chat,
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as messages,
    ):
        gate = worker.hold_steps()
        with messages.messages.stream(model="fake", messages=HI, max_tokens=3) as events:  # the head came with a ping
            gate.release(100)
            assert events.get_final_message().usage.output_tokens == 3
        worker.reset()
        gate = worker.hold_steps()
        stream = chat.chat.completions.create(model="fake", messages=HI, max_tokens=3, stream=True)
        gate.release(100)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        worker.reset()
