"""Plans of tenants through the whole router: what is refused, in which words, and which headers tell what is left."""

import asyncio
import hashlib
import json
from typing import Any

import pytest

from m3_mock import Speaker
from m3_mock.running import StartRouter, eventually, post

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
KEY = {"authorization": "Bearer k"}
ONE: dict[str, Any] = {"model": "mock", "prompt": [1, 2], "max_tokens": 8}
TURN = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


def auth(**plan: Any) -> dict[str, Any]:
    key = {"tenant": "acme", "sha256": hashlib.sha256(b"k").hexdigest()}
    return {"plans": {"plan": plan}, "tenants": [{"name": "acme", "plan": "plan"}], "keys": [key]}


async def test_every_answer_says_what_is_left_in_the_words_of_its_dialect(
    start_router: StartRouter, speaker: Speaker
) -> None:
    router = await start_router([speaker], auth=auth(tokensPerDay=1_000_000, requestsPerMinute=1000))
    openai = await router.http.post("/v1/completions", json=ONE, headers=KEY)
    assert openai.headers["x-ratelimit-limit-requests"] == "1000"
    assert openai.headers["x-ratelimit-limit-tokens"] == "1000000"
    assert int(openai.headers["x-ratelimit-remaining-tokens"]) == 1_000_000 - 10
    anthropic = await router.http.post(MESSAGES, json={**TURN, "stream": True}, headers={"x-api-key": "k"})
    assert anthropic.headers["anthropic-ratelimit-tokens-limit"] == "1000000"
    assert anthropic.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert not any(name.startswith("x-ratelimit") for name in anthropic.headers)
    # What is left counts what was used, and no longer what might have been: 2 + 5 of each.
    last = await router.http.post("/v1/completions", json=ONE, headers=KEY)
    assert int(last.headers["x-ratelimit-remaining-tokens"]) == 1_000_000 - 7 - 7 - 10


async def test_a_limit_of_requests_is_429_for_both_dialects_and_never_529(
    start_router: StartRouter, speaker: Speaker
) -> None:
    router = await start_router([speaker], auth=auth(requestsPerMinute=1))
    assert (await router.http.post(CHAT, json=TURN, headers=KEY)).status_code == 200
    openai = await router.http.post(CHAT, json=TURN, headers=KEY)
    anthropic = await router.http.post(MESSAGES, json=TURN, headers=KEY)
    assert (openai.status_code, anthropic.status_code) == (429, 429)
    assert openai.json()["error"]["code"] == "rate_limit_exceeded"
    assert anthropic.json()["error"]["type"] == "rate_limit_error"
    for answer in (openai, anthropic):
        assert "requestsPerMinute: tenant 'acme'" in answer.json()["error"]["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert openai.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(speaker.received) == 1


async def test_a_limit_of_tokens_holds_what_a_request_may_use_and_keeps_what_it_did_use(
    start_router: StartRouter, speaker: Speaker
) -> None:
    # Each request may use 10 tokens and uses 7: three fit into 24 one after the other, a fourth does not.
    router = await start_router([speaker], auth=auth(tokensPerDay=24))
    statuses = [(await router.http.post("/v1/completions", json=ONE, headers=KEY)).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]


async def test_a_budget_that_is_used_up_is_insufficient_quota(start_router: StartRouter, speaker: Speaker) -> None:
    # At most 2 x 300 + 8 x 1,200 = 10,200 nano-dollars each, and in fact 6,600.
    router = await start_router([speaker], auth=auth(budgetUsd="0.000016"))
    first = await router.http.post("/v1/completions", json=ONE, headers=KEY)
    second = await router.http.post("/v1/completions", json=ONE, headers=KEY)
    assert (first.status_code, second.status_code) == (200, 429)
    error = second.json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert "0.000016000 USD" in error["message"]
    assert second.headers["x-should-retry"] == "false"


async def test_requests_at_a_time_are_given_back_when_one_ends_or_its_client_leaves(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.gate = asyncio.Event()
    router = await start_router([speaker], auth=auth(concurrentRequests=1))
    _, writer = await router.raw(post(TURN, "authorization: Bearer k"))
    await asyncio.wait_for(speaker.arrived.wait(), 10)
    refused = await router.http.post(CHAT, json=TURN, headers=KEY)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "1 requests at a time" in refused.json()["error"]["message"]
    writer.transport.abort()
    await asyncio.wait_for(speaker.aborted.wait(), 10)
    speaker.gate = None
    assert [(await router.http.post(CHAT, json=TURN, headers=KEY)).status_code for _ in range(2)] == [200, 200]


async def test_the_longest_input_and_the_tiers_are_the_plans(start_router: StartRouter, speaker: Speaker) -> None:
    router = await start_router([speaker], auth=auth(maxContextTokens=2, serviceTiers=["standard", "batch"]))
    assert (await router.http.post("/v1/completions", json=ONE, headers=KEY)).status_code == 200
    long = await router.http.post("/v1/completions", json={**ONE, "prompt": [1, 2, 3]}, headers=KEY)
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_above_plan")
    for tier, status in (("batch", 200), ("flex", 200), ("auto", 200), ("priority", 403), ("standard_only", 400)):
        answer = await router.http.post("/v1/completions", json={**ONE, "service_tier": tier}, headers=KEY)
        assert answer.status_code == status, tier


async def test_a_client_that_leaves_in_the_middle_has_used_what_was_made_until_then(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.gate, speaker.gate_at = asyncio.Event(), 4
    router = await start_router([speaker], auth=auth(tokensPerDay=1000))
    body = json.dumps({**ONE, "stream": True}).encode()
    reader, writer = await router.raw(post(body, "authorization: Bearer k", path="/v1/completions"))
    await asyncio.wait_for(reader.readuntil(b"three "), 10)
    writer.transport.abort()
    await asyncio.wait_for(speaker.aborted.wait(), 10)
    quota = router.router._tenants.quotas.get("acme")
    assert quota is not None
    await eventually(lambda: quota.meters[0].used == 5, "2 tokens of input and 3 of output are used")


@pytest.mark.parametrize("status", [400, 500])
async def test_what_failed_has_used_no_tokens(start_router: StartRouter, speaker: Speaker, status: int) -> None:
    speaker.status = status
    router = await start_router([speaker], auth=auth(tokensPerDay=1000))
    await router.http.post("/v1/completions", json=ONE, headers=KEY)
    quota = router.router._tenants.quotas.get("acme")
    assert quota is not None
    (bill,) = await router.ledger()
    assert (quota.meters[0].used, bill["cost_nanousd"]) == (bill["input_tokens"], 0)
