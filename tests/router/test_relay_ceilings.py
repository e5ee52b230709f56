"""Ceilings of a client, and the exact count that is asked for only where the price hangs on it."""

import asyncio
import json
from typing import Any

import pytest

from m3_mock import Speaker
from m3_mock.running import StartRouter, eventually

CHAT, MESSAGES, EMBEDDINGS = "/v1/chat/completions", "/v1/messages", "/v1/embeddings"
# The estimate's prior for 4,000 bytes: 333 to 3,178 tokens. The mock counts each byte of a message as one.
TIERS = {"contextTier": {"thresholdTokens": 1000, "inclusive": True}}


def chat(size: int) -> dict[str, Any]:
    return {"model": "mock", "messages": [{"role": "user", "content": "x" * size}], "max_tokens": 10}


def asked(speaker: Speaker) -> list[str]:
    return [one.path for one in speaker.received]


@pytest.mark.parametrize(("path", "question"), [(CHAT, "/tokenize"), (MESSAGES, "/v1/messages/count_tokens")])
async def test_a_worker_counts_where_the_tier_hangs_on_it_and_gets_the_same_body(
    start_router: StartRouter, speaker: Speaker, path: str, question: str
) -> None:
    router = await start_router([speaker], **TIERS)
    answer = await router.http.post(path, json=chat(1000), headers={"x-m3-max-context-tier": "standard"})
    assert answer.status_code == 200
    assert asked(speaker) == [question, path]
    assert speaker.received[0].body == speaker.received[1].body
    again = await router.http.post(path, json=chat(1000))
    assert again.status_code == 200
    assert asked(speaker) == [question, path, path]  # it is remembered


async def test_one_token_above_the_threshold_is_refused_with_the_numbers(
    start_router: StartRouter, speaker: Speaker
) -> None:
    router = await start_router([speaker], **TIERS)
    for path in (CHAT, MESSAGES):
        answer = await router.http.post(path, json=chat(1001), headers={"x-m3-max-context-tier": "standard"})
        assert answer.status_code == 400
        assert "1001 input tokens, above the 1000 tokens" in answer.json()["error"]["message"]
    assert asked(speaker) == ["/tokenize", "/v1/messages/count_tokens"]
    allowed = await router.http.post(CHAT, json=chat(1001), headers={"x-m3-max-context-tier": "long"})
    assert allowed.headers["x-m3-context-tier"] == "long"


async def test_nobody_is_asked_where_the_size_alone_decides(start_router: StartRouter, speaker: Speaker) -> None:
    router = await start_router([speaker], **TIERS)
    for size, status in ((10, 200), (20_000, 400)):
        answer = await router.http.post(CHAT, json=chat(size), headers={"x-m3-max-context-tier": "standard"})
        assert answer.status_code == status
    # 20,000 bytes are at least 1,666 tokens by the estimate, which only a ceiling doubts: it asks, and is told 20,000.
    assert asked(speaker) == [CHAT, "/tokenize"]
    speaker.received.clear()
    assert (await router.http.post(CHAT, json=chat(19_999))).status_code == 200
    assert asked(speaker) == [CHAT]


async def test_a_ceiling_of_cost_holds_to_the_nano_dollar(start_router: StartRouter, speaker: Speaker) -> None:
    router = await start_router([speaker])
    # 500 x 300 + 10 x 1,200 = 162,000 nano-dollars at most.
    for ceiling, status in (("0.000162", 200), ("0.000161999", 400)):
        answer = await router.http.post(CHAT, json=chat(500), headers={"x-m3-max-cost-usd": ceiling})
        assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("cost_above_ceiling", "x-m3-max-cost-usd")
    assert "0.000162000 USD" in error["message"]
    assert "x-m3-max-cost-usd" not in speaker.received[-1].headers


@pytest.mark.parametrize(
    ("header", "value"),
    [("x-m3-max-context-tier", "huge"), ("x-m3-max-cost-usd", "1e3"), ("x-m3-max-cost-usd", "-1")],
)
async def test_a_ceiling_that_cannot_be_read_is_refused(
    start_router: StartRouter, speaker: Speaker, header: str, value: str
) -> None:
    router = await start_router([speaker])
    answer = await router.http.post(CHAT, json=chat(5), headers={header: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, header)
    assert speaker.received == []


async def test_a_count_that_does_not_come_in_time_leaves_the_upper_bound(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.count_gate = asyncio.Event()
    router = await start_router([speaker], **TIERS)
    loop = asyncio.get_running_loop()
    began = loop.time()
    answer = await router.http.post(CHAT, json=chat(3000), headers={"x-m3-max-context-tier": "standard"})
    assert 0.9 < loop.time() - began < 20
    assert answer.status_code == 400
    assert "estimated from its size" in answer.json()["error"]["message"]
    # Without a ceiling it is served, and billed by what its worker counts then.
    served = await router.http.post(CHAT, json=chat(3001))
    assert served.status_code == 200
    (bill, _) = await router.ledger()
    assert (bill["input_tokens"], bill["context_tier"], bill["estimated"]) == (3001, "long", False)
    speaker.count_gate.set()


async def test_what_no_worker_can_count_is_held_to_its_upper_bound_at_once(
    start_router: StartRouter, speaker: Speaker
) -> None:
    router = await start_router([speaker], **TIERS)
    body = {"model": "mock", "input": "x" * 4000}
    answer = await router.http.post(EMBEDDINGS, json=body, headers={"x-m3-max-context-tier": "standard"})
    assert answer.json()["error"]["code"] == "context_tier_above_ceiling"
    assert speaker.received == []


async def test_a_client_that_leaves_while_its_tokens_are_counted_is_never_sent_to_a_worker(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.count_gate = asyncio.Event()
    router = await start_router([speaker], **TIERS)
    body = json.dumps(chat(3000)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: r\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    _, writer = await router.raw(head + body)
    await asyncio.wait_for(speaker.arrived.wait(), 10)
    writer.transport.abort()
    await eventually(lambda: len(router.router._ledger.newest(1)) == 1, "it is settled")
    speaker.count_gate.set()
    assert (await router.chat()).status_code == 200
    assert asked(speaker) == ["/tokenize", CHAT], "the second is that of the other client"
    assert [bill["outcome"] for bill in await router.ledger()] == ["ok", "client_gone"]
