"""Clients that leave, and workers that fail, over sockets: nobody waits in vain, and nothing is billed that failed."""

import asyncio
import json

import pytest

from m3_mock import MockEngine
from m3_mock.running import Running, StartRouter, eventually
from m3_promise import takes_less_than

GOOD = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}


def post(body: bytes, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: r", f"content-length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@pytest.mark.parametrize("gate_at", [0, 2])
async def test_a_client_that_leaves_stops_the_worker_at_once(
    start_router: StartRouter, engine: MockEngine, gate_at: int
) -> None:
    engine.gate, engine.gate_at = asyncio.Event(), gate_at
    engine.tells_usage = False
    router = await start_router([engine])
    loop = asyncio.get_running_loop()

    async def leave(number: int) -> float:
        engine.arrived.clear()
        engine.aborted.clear()
        reader, writer = await router.raw(post(json.dumps({**GOOD, "stream": True}).encode()))
        await engine.arrived.wait()
        if gate_at:
            await reader.readuntil(b" t1")
        left_at = loop.time()
        writer.transport.abort()
        await asyncio.wait_for(engine.aborted.wait(), 20)
        taken = loop.time() - left_at
        await eventually(lambda: len(router.router._ledger.newest(9)) == number + 1, "settled")
        return taken

    await takes_less_than(0.05, leave)
    bill = (await router.ledger())[0]
    assert bill["outcome"] == "client_gone"
    # Before the head nothing is known to have been used; after it, the input and one token for each relayed event.
    expected = (2, 1, 2 * 300 + 1200, True) if gate_at else (0, 0, 0, True)
    assert (bill["input_tokens"], bill["output_tokens"], bill["cost_nanousd"], bill["estimated"]) == expected
    assert [worker["requests_in_flight"] for worker in (await router.admin.get("/workers")).json()] == [0]


async def test_a_client_that_leaves_while_it_waits_gives_its_place_to_the_next(
    start_router: StartRouter, engine: MockEngine
) -> None:
    engine.gate = asyncio.Event()
    router = await start_router(
        [engine], pool={"maxContextTokens": 10, "tokensInFlight": 10}, lanes={"priorityReservedShare": 0.0}
    )
    body = json.dumps({"model": "mock", "prompt": [1]}).encode()
    first = asyncio.create_task(router.http.post("/v1/completions", content=body))
    await engine.arrived.wait()
    pool = next(iter(router.router._pools))
    _, writer = await router.raw(post(body, path="/v1/completions"))
    await eventually(lambda: pool.lanes.waiting("standard", "standard") == 1, "it waits")
    writer.transport.abort()
    await eventually(lambda: pool.lanes.waiting("standard", "standard") == 0, "it left")
    engine.gate.set()
    assert (await first).status_code == 200
    assert len(engine.received) == 1
    assert [bill["outcome"] for bill in await router.ledger()] == ["ok", "client_gone"]


async def test_a_refused_connection_moves_the_request_to_another_worker(
    start_router: StartRouter, engines: list[MockEngine]
) -> None:
    router = await start_router(engines)
    first, second = await by_preference(router, engines)
    await first.stop()
    answers = [await router.chat() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert {answer.headers["x-m3-worker"] for answer in answers} == {f"127.0.0.1:{second.port}"}
    states = {worker["name"]: worker["state"] for worker in (await router.admin.get("/workers")).json()}
    assert states[f"127.0.0.1:{first.port}"] == "unready"


async def by_preference(router: Running, engines: list[MockEngine]) -> list[MockEngine]:
    """The engines in the order in which `router.chat()` goes to them: equal prompts go to the same worker."""
    name = (await router.chat()).headers["x-m3-worker"]
    for engine in engines:
        engine.received.clear()
    return sorted(engines, key=lambda engine: f"127.0.0.1:{engine.port}" != name)


async def test_a_worker_that_dies_before_its_answer_is_replaced_by_another(
    start_router: StartRouter, engines: list[MockEngine]
) -> None:
    router = await start_router(engines)
    first, second = await by_preference(router, engines)
    first.die_at = 0
    answer = await router.chat()
    assert answer.status_code == 200
    assert answer.headers["x-m3-worker"] == f"127.0.0.1:{second.port}"
    bill, _ = await router.ledger()
    assert (bill["attempts"], bill["outcome"]) == (2, "ok")
    assert first.received[0].body == second.received[0].body


async def test_when_every_worker_fails_the_client_gets_502_in_words(
    start_router: StartRouter, engines: list[MockEngine]
) -> None:
    router = await start_router(engines)
    for one in engines:
        one.die_at = 0
    answer = await router.chat()
    assert answer.status_code == 502
    assert "failed: it closed the connection" in answer.json()["error"]["message"]
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["cost_nanousd"], bill["status"]) == ("worker_error", 0, 502)


async def test_a_kept_connection_that_the_worker_closed_is_replaced_by_a_new_one(
    start_router: StartRouter, engine: MockEngine
) -> None:
    router = await start_router([engine])
    assert (await router.chat()).status_code == 200
    engine.ignore_first = 1  # the next request is not answered, as if the worker had just closed its idle connection
    assert (await router.chat()).status_code == 200
    assert len(engine.received) == 3


async def test_a_worker_that_is_loading_is_passed_over(start_router: StartRouter, engines: list[MockEngine]) -> None:
    router = await start_router(engines)
    first, second = await by_preference(router, engines)
    first.status = 503
    answer = await router.chat()
    assert (answer.status_code, answer.headers["x-m3-worker"]) == (200, f"127.0.0.1:{second.port}")


@pytest.mark.parametrize(("status", "outcome"), [(400, "rejected"), (429, "rejected"), (500, "worker_error")])
async def test_a_worker_s_own_refusal_is_relayed_and_costs_nothing(
    start_router: StartRouter, engine: MockEngine, status: int, outcome: str
) -> None:
    engine.status = status
    router = await start_router([engine])
    answer = await router.chat(stream=True)
    assert (answer.status_code, answer.json()) == (status, {"error": {"message": f"mock {status}"}})
    assert answer.headers["retry-after"] == "7"
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["cost_nanousd"]) == (outcome, 0)


async def test_a_worker_that_dies_in_mid_stream_gives_an_error_event_and_no_done(
    start_router: StartRouter, engine: MockEngine
) -> None:
    engine.die_at = 3
    router = await start_router([engine])
    reader, writer = await router.raw(post(json.dumps({**GOOD, "stream": True}).encode()))
    answer = (await reader.read()).decode()
    assert "[DONE]" not in answer
    assert not answer.endswith("0\r\n\r\n")
    error = json.loads(answer.rpartition("data: ")[2].strip())["error"]
    assert error["code"] == "worker_error"
    assert "failed during its answer" in error["message"]
    writer.close()
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["output_tokens"], bill["cost_nanousd"]) == ("worker_error", 2, 0)


async def test_a_worker_that_dies_in_a_json_answer_gives_502(start_router: StartRouter, engine: MockEngine) -> None:
    engine.raw_answer = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"id":'
    router = await start_router([engine])
    answer = await router.chat()
    assert answer.status_code == 502


async def test_an_answer_that_ends_with_its_connection_is_relayed_whole(
    start_router: StartRouter, engine: MockEngine
) -> None:
    engine.raw_answer = b'HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{"usage":{"prompt_tokens":5}}'
    router = await start_router([engine])
    answer = await router.chat()
    assert answer.json() == {"usage": {"prompt_tokens": 5}}
    (bill,) = await router.ledger()
    assert (bill["input_tokens"], bill["estimated"]) == (5, False)


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000,
    ],
)
async def test_a_worker_that_does_not_speak_http_is_502(
    start_router: StartRouter, engine: MockEngine, raw: bytes
) -> None:
    engine.raw_answer = raw
    router = await start_router([engine])
    assert (await router.chat()).status_code == 502


async def test_an_answer_too_large_to_hold_is_relayed_without_its_cost_and_billed_by_its_tail(
    start_router: StartRouter, engine: MockEngine
) -> None:
    text = b'{"choices":[{"text":"' + b"x" * (9 * 2**20) + b'"}],"usage":{"prompt_tokens":7,"completion_tokens":9}}'
    engine.raw_answer = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(text) + text
    )
    router = await start_router([engine])
    answer = await router.chat()
    assert answer.content == text
    assert "x-m3-cost-usd" not in answer.headers
    (bill,) = await router.ledger()
    assert (bill["input_tokens"], bill["output_tokens"], bill["estimated"]) == (7, 9, False)


async def test_a_silent_worker_is_given_up_after_the_first_byte_limit(
    start_router: StartRouter, engine: MockEngine
) -> None:
    engine.gate = asyncio.Event()
    router = await start_router([engine], limits={"firstByteSeconds": 0.3})
    answer = await router.chat()
    assert answer.status_code == 504
    assert "sent nothing within 0.3 s" in answer.json()["error"]["message"]
    await asyncio.wait_for(engine.aborted.wait(), 5)
