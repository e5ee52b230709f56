"""What requests cost, worked by hand and charged by a real router in front of mock engines, to the nano-dollar.

Each case is looked at wherever the cost is told: the answer's header, `usage.cost`, the ledger, `GET /v1/usage`.

Nano-dollars a token            input  cached  output
    standard context, standard    300      60   1,200
    long context, standard        600     120   2,400
    standard context, priority    450      90   1,800
    long context, priority        900     180   3,600
    standard context, batch       150      30     600
"""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from m3_mock import MockEngine
from m3_mock.running import Running, StartRouter, eventually

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
PATHS = [CHAT, COMPLETIONS, RESPONSES, MESSAGES]
KINDS = [(path, stream) for path in PATHS for stream in (False, True)]
RESUMABLE = [CHAT, COMPLETIONS, MESSAGES]
PRICES = {"batchFactor": "0.5"}


@dataclass(frozen=True)
class Case:
    """A request, and what it costs."""

    tokens: int
    output: int
    nanousd: int
    tier: str = "standard"
    context: str = "standard"
    cached: int = 0
    threshold: int = 512
    inclusive: bool = True


CASES = [
    # the boundary: the whole request changes its rates, at exactly one token
    Case(511, 3, 156_900),  # 511 x 300 + 3 x 1,200 = 153,300 + 3,600
    Case(512, 3, 157_200),  # 512 x 300 + 3 x 1,200 = 153,600 + 3,600
    Case(513, 3, 315_000, context="long"),  # 513 x 600 + 3 x 2,400 = 307,800 + 7,200
    Case(511, 3, 156_900, inclusive=False),
    Case(512, 3, 314_400, context="long", inclusive=False),  # 512 x 600 + 3 x 2,400 = 307,200 + 7,200
    Case(513, 3, 315_000, context="long", inclusive=False),
    # cached tokens are a part of the input, and count towards the boundary
    Case(100, 7, 23_040, cached=64),  # 36 x 300 + 64 x 60 + 7 x 1,200 = 10,800 + 3,840 + 8,400
    Case(513, 1, 64_440, context="long", cached=512),  # 1 x 600 + 512 x 120 + 1 x 2,400 = 600 + 61,440 + 2,400
    Case(64, 0, 3_840, cached=64),  # 64 x 60
    # service tiers
    Case(100, 7, 57_600, tier="priority"),  # 100 x 450 + 7 x 1,800 = 45,000 + 12,600
    # 385 x 900 + 128 x 180 + 2 x 3,600 = 346,500 + 23,040 + 7,200
    Case(513, 2, 376_740, tier="priority", context="long", cached=128),
    Case(100, 7, 16_800, tier="batch", cached=20),  # 80 x 150 + 20 x 30 + 7 x 600 = 12,000 + 600 + 4,200
]


def body_of(path: str, text: str, **fields: Any) -> dict[str, Any]:
    """A request with this prompt, which a mock engine counts byte by byte, and which asks what it costs."""
    body: dict[str, Any] = {"model": "mock", "usage": {"include": True}, **fields}
    if path == RESPONSES:
        return {**body, "input": text}
    if path == COMPLETIONS:
        return {**body, "prompt": text}
    return {**body, "messages": [{"role": "user", "content": text}]}


async def money_router(start_router: StartRouter, engines: list[MockEngine], **settings: Any) -> Running:
    return await start_router(engines, prices=PRICES, **settings)


async def settled(router: Running, requests: int) -> list[dict[str, Any]]:
    """The bills of all requests, once they are settled; and `GET /v1/usage` says the same."""
    await eventually(lambda: len(router.router._ledger.newest(requests + 1)) >= requests, "settled")
    bills = await router.ledger()
    assert len(bills) == requests
    usage = (await router.http.get("/v1/usage")).raise_for_status().json()
    assert usage["requests"] == requests
    assert nanousd(usage["cost_usd"]) == sum(bill["cost_nanousd"] for bill in bills)
    (row,) = usage["rows"]
    for name in ("input_tokens", "cached_tokens", "output_tokens"):
        assert row[name] == sum(bill[name] for bill in bills)
    assert {(row["context_tier"], row["service_tier"])} == {
        (bill["context_tier"], bill["service_tier"]) for bill in bills
    }
    return bills


def nanousd(usd: str | bytes) -> int:
    return int(Decimal(usd.decode() if isinstance(usd, bytes) else usd) * 10**9)


def told_cost(answer: bytes) -> int:
    """`usage.cost` of an answer or of a stream, which has it once, as it was written."""
    (usd,) = re.findall(rb'"cost":(\d+\.\d{9})\}', answer)
    return nanousd(usd)


def used(bill: dict[str, Any]) -> tuple[int, int, int, int]:
    return bill["input_tokens"], bill["cached_tokens"], bill["output_tokens"], bill["cost_nanousd"]


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_request_costs_what_its_tiers_and_tokens_say_wherever_it_is_told(
    start_router: StartRouter, engine: MockEngine, case: Case
) -> None:
    """In every dialect, whole and streamed."""
    fields = {} if case.tier == "standard" else {"service_tier": case.tier}
    engine.output_tokens, engine.cached_tokens = case.output, case.cached
    router = await money_router(
        start_router, [engine], contextTier={"thresholdTokens": case.threshold, "inclusive": case.inclusive}
    )
    for path, stream in KINDS:
        answer = await router.http.post(path, json=body_of(path, "x" * case.tokens, stream=stream, **fields))
        assert answer.status_code == 200
        assert (answer.headers["x-m3-context-tier"], answer.headers["x-m3-service-tier"]) == (case.context, case.tier)
        assert told_cost(answer.content) == case.nanousd, (path, stream)
        if not stream:
            assert nanousd(answer.headers["x-m3-cost-usd"]) == case.nanousd
    bills = await settled(router, len(KINDS))
    for bill in bills:
        assert used(bill) == (case.tokens, case.cached, case.output, case.nanousd)
        assert (bill["outcome"], bill["estimated"], bill["context_tier"]) == ("ok", False, case.context)


async def read_until(reader: asyncio.StreamReader, is_enough: Callable[[bytes], bool]) -> bytes:
    data = b""
    async with asyncio.timeout(10):
        while not is_enough(data):
            piece = await reader.read(2**16)
            assert piece, data
            data += piece
    return data


async def begin(router: Running, path: str, body: dict[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request on a connection of the test's own, to be left at any time."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: r\r\ncontent-length: {len(data)}\r\n\r\n".encode()
    return await router.raw(head + data)


def tokens_in(data: bytes) -> int:
    """Tokens in a stream of an engine whose tokens are `@` each."""
    return len(re.findall(rb'"(?:text|delta)": ?"@"', data))


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_leaves_after_k_tokens_pays_what_the_worker_says_it_made(
    start_router: StartRouter, engine: MockEngine, path: str
) -> None:
    engine.output_tokens, engine.cached_tokens, engine.token_text = 10, 3, "@"
    engine.gate, engine.gate_at = asyncio.Event(), 3  # two tokens are sent
    engine.tokens_ahead = 2  # and two more are made before it hears of the abort
    router = await money_router(start_router, [engine])
    reader, writer = await begin(router, path, body_of(path, "x" * 7, stream=True))
    await read_until(reader, lambda data: tokens_in(data) == 2)
    writer.transport.abort()
    (bill,) = await settled(router, 1)
    assert used(bill) == (7, 3, 4, 6_180)  # 4 x 300 + 3 x 60 + 4 x 1,200 = 1,200 + 180 + 4,800
    assert (bill["outcome"], bill["estimated"]) == ("client_gone", False)


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_leaves_before_a_whole_answer_pays_what_was_made_of_it(
    start_router: StartRouter, engine: MockEngine, path: str
) -> None:
    engine.output_tokens = 10
    engine.gate, engine.gate_at = asyncio.Event(), 6
    router = await money_router(start_router, [engine])
    _, writer = await begin(router, path, body_of(path, "x" * 7))
    await eventually(lambda: any(one.completion_tokens == 5 for one in engine.records.known.values()), "five tokens")
    writer.transport.abort()
    (bill,) = await settled(router, 1)
    assert used(bill) == (7, 0, 5, 8_100)  # 7 x 300 + 5 x 1,200 = 2,100 + 6,000
    assert (bill["outcome"], bill["estimated"]) == ("client_gone", False)


async def test_a_client_that_leaves_before_its_prompt_was_computed_pays_nothing(
    start_router: StartRouter, engine: MockEngine
) -> None:
    engine.gate = asyncio.Event()
    router = await money_router(start_router, [engine])
    _, writer = await begin(router, CHAT, body_of(CHAT, "x" * 7, stream=True))
    await engine.arrived.wait()
    writer.transport.abort()
    (bill,) = await settled(router, 1)
    assert used(bill) == (0, 0, 0, 0)
    assert (bill["outcome"], bill["estimated"]) == ("client_gone", False)


async def test_a_router_that_stops_first_hears_what_those_who_left_have_used(
    start_router: StartRouter, engine: MockEngine
) -> None:
    engine.output_tokens, engine.pace_seconds = 10, 0.3  # after which it notices that nobody is there any more
    router = await money_router(start_router, [engine])
    reader, writer = await begin(router, CHAT, body_of(CHAT, "x" * 7, stream=True))
    await read_until(reader, lambda data: b" t1" in data)
    writer.transport.abort()
    await router.router.drain()
    (bill,) = await router.ledger()
    assert used(bill) == (7, 0, 1, 3_300)  # 7 x 300 + 1,200
    assert (bill["outcome"], bill["estimated"]) == ("client_gone", False)


@pytest.mark.parametrize("path", PATHS)
async def test_where_no_worker_can_say_the_input_and_each_delivered_event_is_billed(
    start_router: StartRouter, engine: MockEngine, path: str
) -> None:
    engine.output_tokens, engine.token_text, engine.tells_usage = 10, "@", False
    engine.gate, engine.gate_at = asyncio.Event(), 3
    router = await money_router(start_router, [engine])
    reader, writer = await begin(router, path, body_of(path, "x" * 7, stream=True))
    await read_until(reader, lambda data: tokens_in(data) == 2)
    writer.transport.abort()
    (bill,) = await settled(router, 1)
    assert used(bill) == (7, 0, 2, 4_500)  # 7 x 300 + 2 x 1,200
    assert (bill["outcome"], bill["estimated"]) == ("client_gone", True)


async def chosen(engines: list[MockEngine]) -> tuple[MockEngine, MockEngine]:
    """The engine that the request has reached, and the other one."""
    await eventually(lambda: any(one.records.known for one in engines), "a request has come")
    one, other = engines
    return (one, other) if one.records.known else (other, one)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", RESUMABLE)
async def test_a_request_that_is_tried_again_on_another_worker_is_billed_once(
    start_router: StartRouter, engines: list[MockEngine], path: str, stream: bool
) -> None:
    for engine in engines:
        engine.gate = asyncio.Event()
    router = await money_router(start_router, engines)
    reader, _ = await begin(router, path, body_of(path, "x" * 16, stream=stream))
    failing, _ = await chosen(engines)
    failing.die_at = 1  # it computes the prompt, and dies before its first token
    for engine in engines:
        assert engine.gate is not None
        engine.gate.set()
    answer = await read_until(reader, lambda data: b'"cost"' in data)
    assert [record.prompt_tokens for one in engines for record in one.records.known.values()] == [16, 16]
    (bill,) = await settled(router, 1)
    assert told_cost(answer) == 8_400  # 16 x 300 + 3 x 1,200 = 4,800 + 3,600
    assert used(bill) == (16, 0, 3, 8_400)
    assert (bill["outcome"], bill["attempts"], bill["estimated"]) == ("ok", 2, False)


@pytest.mark.parametrize("prompt_tokens", [6, 512])
@pytest.mark.parametrize("path", RESUMABLE)
async def test_an_answer_that_another_worker_goes_on_with_costs_its_prompt_once_and_all_that_was_delivered(
    start_router: StartRouter, engines: list[MockEngine], path: str, prompt_tokens: int
) -> None:
    """The worker that goes on has a longer prompt, which with 512 tokens would be of the long tier."""
    for engine in engines:
        engine.gate, engine.gate_at = asyncio.Event(), 3
        engine.output_tokens, engine.token_text, engine.cached_tokens = 5, "@", 4
    router = await money_router(start_router, engines, contextTier={"thresholdTokens": 512, "inclusive": True})
    body = body_of(path, "x" * prompt_tokens, stream=True, max_tokens=5)
    reader, _ = await begin(router, path, body)
    failing, other = await chosen(engines)
    data = await read_until(reader, lambda data: tokens_in(data) == 2)
    other.gate = None
    await failing.stop()
    data += await read_until(reader, lambda data: data.endswith(b"0\r\n\r\n"))
    assert tokens_in(data) == 5
    (record,) = other.records.known.values()
    assert (record.prompt_tokens, record.completion_tokens) == (prompt_tokens + 2, 3)
    # 2 x 300 + 4 x 60 + 5 x 1,200 = 600 + 240 + 6,000, and 508 x 300 + 240 + 6,000 = 152,400 + 6,240
    cost = {6: 6_840, 512: 158_640}[prompt_tokens]
    assert told_cost(data) == cost
    (bill,) = await settled(router, 1)
    assert used(bill) == (prompt_tokens, 4, 5, cost)
    assert (bill["outcome"], bill["continuations"], bill["estimated"]) == ("ok", 1, False)
    assert bill["context_tier"] == "standard"


@pytest.mark.parametrize("path", RESUMABLE)
async def test_a_client_that_leaves_a_continued_answer_pays_its_prompt_once_and_what_both_workers_made(
    start_router: StartRouter, engines: list[MockEngine], path: str
) -> None:
    for engine in engines:
        engine.gate, engine.gate_at = asyncio.Event(), 3
        engine.output_tokens, engine.token_text, engine.cached_tokens = 9, "@", 4
    router = await money_router(start_router, engines)
    reader, writer = await begin(router, path, body_of(path, "x" * 6, stream=True, max_tokens=9))
    failing, other = await chosen(engines)
    await read_until(reader, lambda data: tokens_in(data) == 2)
    other.gate_at, other.tokens_ahead = 2, 1  # one token is sent, and another one made
    await failing.stop()
    await read_until(reader, lambda data: tokens_in(data) == 1)
    writer.transport.abort()
    (bill,) = await settled(router, 1)
    assert used(bill) == (6, 4, 4, 5_640)  # 2 x 300 + 4 x 60 + (2 + 2) x 1,200 = 600 + 240 + 4,800
    assert (bill["outcome"], bill["continuations"], bill["estimated"]) == ("client_gone", 1, False)


@pytest.mark.parametrize("path", PATHS)
async def test_an_answer_that_nobody_can_complete_is_not_charged(
    start_router: StartRouter, engine: MockEngine, path: str
) -> None:
    engine.die_at = 3
    router = await money_router(start_router, [engine])
    reader, _ = await begin(router, path, body_of(path, "x" * 6, stream=True))
    answer = await reader.read()
    assert b"failed during its answer" in answer
    assert b'"cost"' not in answer
    (bill,) = await settled(router, 1)
    assert (bill["outcome"], bill["input_tokens"], bill["cost_nanousd"]) == ("worker_error", 6, 0)


@pytest.mark.parametrize(("status", "outcome"), [(400, "rejected"), (500, "worker_error")])
async def test_what_a_worker_refuses_or_fails_at_is_not_charged(
    start_router: StartRouter, engine: MockEngine, status: int, outcome: str
) -> None:
    engine.status = status
    router = await money_router(start_router, [engine])
    answer = await router.http.post(CHAT, json=body_of(CHAT, "x" * 6))
    assert answer.status_code == status
    assert "x-m3-cost-usd" not in answer.headers
    (bill,) = await settled(router, 1)
    assert (bill["outcome"], bill["cost_nanousd"]) == (outcome, 0)
