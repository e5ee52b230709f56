"""A pool without a ready worker that holds requests: they wait for one, over real connections."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from m3_mock import Speaker
from m3_mock.running import Running, StartRouter, eventually, post, read_stream
from m3_mock.speaker import ANSWER, texts_of

CHAT, MESSAGES, COMPLETIONS = "/v1/chat/completions", "/v1/messages", "/v1/completions"
TURN: dict[str, Any] = {"model": "mock", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
ONE: dict[str, Any] = {"model": "mock", "prompt": [1], "max_tokens": 9}
HOLD: dict[str, Any] = {"holdWhenEmptySeconds": 60}


@pytest.fixture
async def away() -> AsyncIterator[Speaker]:
    """A worker whose address is known, and which does not run yet."""
    one = Speaker()
    await one.start()
    await one.stop()
    yield one
    await one.stop()


def ask(router: Running, body: dict[str, Any], path: str = COMPLETIONS) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(router.http.post(path, json=body))


def held(router: Running) -> int:
    return router.pool().lanes.waiting_for_worker


async def eventually_held(router: Running, count: int) -> None:
    await eventually(lambda: held(router) == count, f"{count} requests wait for a worker")


async def gauge(router: Running) -> float:
    """What an autoscaler reads."""
    name = 'm3_router_requests_waiting_for_worker{pool="mock"}'
    lines = (await router.admin.get("/metrics")).text.splitlines()
    (line,) = [line for line in lines if line.startswith(name)]
    return float(line.removeprefix(name))


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_request_at_zero_workers_is_answered_whole_by_the_worker_that_comes(
    start_router: StartRouter, away: Speaker, path: str
) -> None:
    router = await start_router([away], ready=0, pool=HOLD)
    assert await gauge(router) == 0
    reader, _ = await router.raw(post({**TURN, "stream": True}, path=path))
    await eventually_held(router, 1)
    assert await gauge(router) == 1
    await asyncio.sleep(2.0)
    await away.start(away.port)
    _, stream, is_ended = await read_stream(reader)
    assert is_ended
    assert texts_of(path, stream) == ANSWER
    assert await gauge(router) == 0
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["attempts"], bill["output_tokens"]) == ("ok", 1, 5)
    assert bill["queue_ms"] >= 2000


async def test_without_the_setting_it_is_refused_at_once(start_router: StartRouter, away: Speaker) -> None:
    router = await start_router([away], ready=0)
    answer = await router.http.post(COMPLETIONS, json=ONE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker_ready")
    assert answer.headers["retry-after"] == "5"


@pytest.mark.parametrize(("path", "kind"), [(CHAT, "server_error"), (MESSAGES, "overloaded_error")])
async def test_a_wait_that_is_in_vain_ends_as_the_refusal_at_once_does(
    start_router: StartRouter, away: Speaker, path: str, kind: str
) -> None:
    router = await start_router([away], ready=0, pool={"holdWhenEmptySeconds": 0.5})
    begun = time.monotonic()
    answer = await router.http.post(path, json=TURN)
    assert time.monotonic() - begun >= 0.5
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, kind)
    assert "No worker of model 'mock' is ready" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == "5"
    assert held(router) == 0


async def test_what_is_free_waits_in_no_lane(start_router: StartRouter, away: Speaker) -> None:
    router = await start_router([away], ready=0, pool=HOLD)
    answer = await router.http.post("/tokenize", json={"model": "mock", "prompt": "hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker_ready")


async def test_a_client_that_leaves_is_gone_from_the_queue_at_once(start_router: StartRouter, away: Speaker) -> None:
    router = await start_router([away], ready=0, pool=HOLD)
    _, writer = await router.raw(post(TURN))
    await eventually_held(router, 1)
    writer.transport.abort()
    await eventually_held(router, 0)  # which takes less than the hold
    await away.start(away.port)
    await eventually(lambda: len(router.pool().workers.ready) == 1, "the worker is ready")
    assert away.received == []
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["cost_nanousd"]) == ("client_gone", 0)


async def test_priority_goes_first_to_the_worker_that_comes(start_router: StartRouter, away: Speaker) -> None:
    pool = {**HOLD, "maxContextTokens": 10, "tokensInFlight": 10}  # one at a time
    router = await start_router([away], ready=0, pool=pool, lanes={"priorityReservedShare": 0.0})
    standard = ask(router, {**ONE, "prompt": [2]})
    await eventually_held(router, 1)
    priority = ask(router, {**ONE, "prompt": [1], "service_tier": "priority"})
    await eventually_held(router, 2)
    await away.start(away.port)
    answers = await asyncio.gather(priority, standard)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [one.json["prompt"] for one in away.received] == [[1], [2]]


async def test_as_many_wait_as_the_lane_has_places_and_all_of_them_are_answered(
    start_router: StartRouter, away: Speaker
) -> None:
    router = await start_router([away], ready=0, pool={**HOLD, "queueRequests": 50})
    waiting = [ask(router, ONE) for _ in range(50)]
    await eventually_held(router, 50)
    refused = await router.http.post(COMPLETIONS, json=ONE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "at_capacity")
    assert int(refused.headers["retry-after"]) > 0
    refused = await router.http.post(MESSAGES, json=TURN)
    assert refused.status_code == 529
    await away.start(away.port)
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
    assert len(away.received) == 50


async def test_when_the_last_worker_is_gone_a_request_that_it_had_not_begun_waits_for_the_next(
    start_router: StartRouter, speaker: Speaker
) -> None:
    router = await start_router([speaker], pool=HOLD)
    await speaker.stop()
    answering = ask(router, ONE)  # the router believes that the worker is there, until it cannot be reached
    await eventually_held(router, 1)
    await speaker.start(speaker.port)
    assert (await answering).status_code == 200
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["attempts"]) == ("ok", 2)


async def test_the_second_worker_that_goes_with_a_request_is_the_last(
    start_router: StartRouter, speaker: Speaker
) -> None:
    router = await start_router([speaker], pool=HOLD)
    await speaker.stop()
    answering = ask(router, ONE)
    await eventually_held(router, 1)
    worker = next(iter(router.pool().workers))
    router.pool().workers.report(worker, is_ready=True, reason="says the test, and nobody listens there")
    answer = await answering
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker_ready")
    assert held(router) == 0


async def test_a_price_that_nobody_can_count_for_is_that_of_the_upper_bound_until_the_answer_says(
    start_router: StartRouter, away: Speaker
) -> None:
    tier = {"thresholdTokens": 40}
    router = await start_router([away], ready=0, pool=HOLD, contextTier=tier)
    answering = ask(router, {"model": "mock", "prompt": "p" * 70, "max_tokens": 9})
    await eventually_held(router, 1)
    await away.start(away.port)
    answer = await answering
    assert answer.status_code == 200
    (bill,) = await router.ledger()
    expected = "long" if bill["input_tokens"] > tier["thresholdTokens"] else "standard"
    assert (bill["context_tier"], bill["estimated"]) == (expected, False)


async def test_a_router_whose_pool_holds_requests_is_ready_for_them(start_router: StartRouter, away: Speaker) -> None:
    router = await start_router([away], ready=0, pool=HOLD)
    assert (await router.admin.get("/readyz")).status_code == 200
    assert (await router.http.get("/health")).status_code == 200
    without = await start_router([away], ready=0)
    assert (await without.admin.get("/readyz")).status_code == 503
    assert (await without.http.get("/health")).status_code == 503


async def test_a_router_that_stops_tells_those_that_wait(start_router: StartRouter, away: Speaker) -> None:
    router = await start_router([away], ready=0, pool=HOLD, limits={"drainSeconds": 0.2})
    reader, _ = await router.raw(post(TURN))
    await eventually_held(router, 1)
    await router.router.drain()
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "router_stopping"
