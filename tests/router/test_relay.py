"""The whole way of a request, over sockets, with mock engines behind the router."""

import asyncio
import gc
import json
from dataclasses import dataclass

import pytest

from m3_mock import MockEngine
from m3_mock.running import StartRouter, eventually, eventually_answers
from m3_router.relay.attempt import Attempt
from m3_router.relay.intake import Intake
from m3_router.relay.relay import Exchange
from m3_router.relay.reply import Reply

GOOD = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}


def post(body: bytes, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: r", f"content-length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split(" ")[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def test_an_answer_carries_tiers_worker_wait_and_cost(start_router: StartRouter, engine: MockEngine) -> None:
    router = await start_router([engine])
    answer = await router.http.post(
        "/v1/chat/completions", json={**GOOD, "service_tier": "priority"}, headers={"x-request-id": "mine-1"}
    )
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "Hi."
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-m3-context-tier"] == "standard"
    assert answer.headers["x-m3-service-tier"] == "priority"
    assert answer.headers["x-m3-worker"] == f"127.0.0.1:{engine.port}"
    assert answer.headers["x-m3-queue-ms"] == "0"
    # 2 input tokens ("hi" as bytes) x 450 + 3 output tokens x 1,800 nano-dollars = 6,300
    assert answer.headers["x-m3-cost-usd"] == "0.000006300"
    (bill,) = await router.ledger()
    assert {key: bill[key] for key in ("request_id", "tenant", "model", "context_tier", "service_tier")} == {
        "request_id": "mine-1",
        "tenant": "anonymous",
        "model": "mock",
        "context_tier": "standard",
        "service_tier": "priority",
    }
    assert (bill["input_tokens"], bill["cached_tokens"], bill["output_tokens"]) == (2, 0, 3)
    assert (bill["cost_nanousd"], bill["worker"], bill["outcome"]) == (6300, f"127.0.0.1:{engine.port}", "ok")
    assert bill["estimated"] is False


async def test_the_body_reaches_the_worker_byte_for_byte(start_router: StartRouter, engine: MockEngine) -> None:
    router = await start_router([engine])
    body = b'{ "model":"mock",\t"unknown" : {"b":1.50, "a":[1e5]}, "messages":[{"role":"user","content":"\\u00e9"}] }\n'
    await router.http.post("/v1/chat/completions", content=body)
    assert engine.received[0].body == body


async def test_the_worker_gets_our_headers_and_none_that_are_not_for_it(
    start_router: StartRouter, engine: MockEngine
) -> None:
    router = await start_router([engine])
    await router.http.post(
        "/v1/chat/completions",
        json=GOOD,
        headers={
            "authorization": "Bearer secret",
            "x-m3-priority": "-5",
            "x-m3-tenant": "boss",
            "connection": "keep-alive, x-hop",
            "x-hop": "1",
            "te": "trailers",
            "traceparent": "00-1-2-01",
        },
    )
    headers = engine.received[0].headers
    assert headers["x-m3-tenant"] == "anonymous"
    assert headers["x-m3-priority"] == "10"
    assert headers["traceparent"] == "00-1-2-01"
    assert headers["x-request-id"]
    assert not {"authorization", "x-hop", "te", "accept-encoding", "connection"} & set(headers)


@dataclass
class Boundary:
    threshold: int
    inclusive: bool
    tokens: int
    tier: str
    cost: int


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        # standard: input 300, output 1,200 nano-dollars a token; long: twice that. The mock always answers 3 tokens.
        Boundary(512, True, 512, "standard", 157_200),  # 512 x 300 + 3 x 1,200 = 153,600 + 3,600
        Boundary(512, True, 513, "long", 315_000),  # 513 x 600 + 3 x 2,400 = 307,800 + 7,200
        Boundary(512, False, 511, "standard", 156_900),  # 511 x 300 + 3 x 1,200 = 153,300 + 3,600
        Boundary(512, False, 512, "long", 314_400),  # 512 x 600 + 3 x 2,400 = 307,200 + 7,200
    ],
    ids=str,
)
async def test_the_threshold_parts_the_context_tiers_at_exactly_one_token(
    start_router: StartRouter, engine: MockEngine, case: Boundary, stream: bool
) -> None:
    router = await start_router([engine], contextTier={"thresholdTokens": case.threshold, "inclusive": case.inclusive})
    answer = await router.http.post(
        "/v1/completions", json={"model": "mock", "prompt": list(range(case.tokens)), "stream": stream}
    )
    assert answer.headers["x-m3-context-tier"] == case.tier
    (bill,) = await router.ledger()
    assert (bill["context_tier"], bill["input_tokens"], bill["cost_nanousd"]) == (case.tier, case.tokens, case.cost)


async def test_the_header_names_the_tier_that_the_worker_counted_not_the_estimate(
    start_router: StartRouter, engine: MockEngine
) -> None:
    router = await start_router([engine], contextTier={"thresholdTokens": 512, "inclusive": True})
    # 1,000 bytes of text are estimated as 250 tokens; the mock's tokenizer makes 1,000 of them.
    answer = await router.http.post("/v1/completions", json={"model": "mock", "prompt": "x" * 1000, "stream": True})
    assert answer.headers["x-m3-context-tier"] == "long"


async def test_a_stream_is_billed_by_usage_that_its_client_never_sees(
    start_router: StartRouter, engine: MockEngine
) -> None:
    router = await start_router([engine])
    answer = await router.chat(stream=True)
    assert engine.received[0].json["stream_options"] == {"include_usage": True}
    events = [line for line in answer.text.split("\n\n") if line]
    assert len(events) == 4
    assert events[-1] == "data: [DONE]"
    assert "usage" not in answer.text
    (bill,) = await router.ledger()
    assert (bill["input_tokens"], bill["output_tokens"], bill["cost_nanousd"]) == (2, 3, 2 * 300 + 3 * 1200)
    assert bill["stream"] is True


async def test_a_client_that_asks_for_usage_in_its_stream_gets_it(
    start_router: StartRouter, engine: MockEngine
) -> None:
    router = await start_router([engine])
    answer = await router.chat(stream=True, stream_options={"include_usage": True})
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 3


async def test_cached_tokens_are_billed_at_the_cache_rate(start_router: StartRouter, engine: MockEngine) -> None:
    engine.cached_tokens = 100
    router = await start_router([engine])
    await router.http.post("/v1/completions", json={"model": "mock", "prompt": list(range(150))})
    (bill,) = await router.ledger()
    assert bill["cost_nanousd"] == 50 * 300 + 100 * 60 + 3 * 1200  # 15,000 + 6,000 + 3,600


@pytest.mark.parametrize("gate_at", [0, 1])
async def test_a_stream_that_waits_is_told_that_somebody_is_there(
    start_router: StartRouter, engine: MockEngine, gate_at: int
) -> None:
    engine.gate, engine.gate_at = asyncio.Event(), gate_at  # before the worker's head, and after it
    router = await start_router([engine], limits={"commentSeconds": 0.01})
    body = json.dumps({**GOOD, "stream": True}).encode()
    reader, _ = await router.raw(post(body))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    assert b": keep-alive\n\n" in await reader.readuntil(b": keep-alive\n\n")
    engine.gate.set()
    answer = await reader.readuntil(b"data: [DONE]")
    assert b" t1" in answer


async def test_an_answer_without_usage_is_marked_as_estimated(start_router: StartRouter, engine: MockEngine) -> None:
    engine.reports_usage = False
    router = await start_router([engine])
    answer = await router.chat(stream=True)
    assert answer.text.endswith("data: [DONE]\n\n")
    (bill,) = await router.ledger()
    assert (bill["output_tokens"], bill["estimated"], bill["outcome"]) == (3, True, "ok")


async def test_tokenize_is_relayed_and_free(start_router: StartRouter, engine: MockEngine) -> None:
    router = await start_router([engine])
    answer = await router.http.post("/tokenize", json={"model": "mock", "prompt": "abc"})
    assert answer.json()["count"] == 3
    assert "x-m3-cost-usd" not in answer.headers
    assert await router.ledger() == []


async def test_models_name_the_threshold_and_its_inclusiveness(start_router: StartRouter, engine: MockEngine) -> None:
    router = await start_router([engine], pool={"models": ["mock", "org/mock"]})
    listed = (await router.http.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["mock", "org/mock"]
    one = (await router.http.get("/v1/models/org/mock")).json()
    assert one["context_tier"] == {"threshold_tokens": 512_000, "inclusive": True}
    missing = await router.http.get("/v1/models/nope")
    assert missing.status_code == 404
    assert "'nope'" in missing.json()["error"]["message"]


async def test_health_follows_the_workers(start_router: StartRouter, engine: MockEngine) -> None:
    router = await start_router([engine])
    assert (await router.http.get("/health")).status_code == 200
    assert (await router.http.head("/health")).status_code == 200
    engine.health_status = 503
    answer = await eventually_answers(lambda: router.http.get("/health"), 503)
    assert answer.headers["retry-after"] == "5"
    assert (await router.admin.get("/readyz")).status_code == 503
    assert (await router.admin.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "not an object"),
        (b"{}", 400, "model: this field is required"),
        (b'{"model": 3}', 400, "model: Expected `str`"),
        (b'{"model": "mock", "max_tokens": -1}', 400, "max_tokens: -1 is below 0"),
        (b'{"model": "mock", "max_tokens": 1048577}', 400, "max_tokens: 1048577 is above"),
        (b'{"model": "nope"}', 404, "'nope' does not exist here; there are: mock."),
        (b'{"model": "mock", "service_tier": "gold"}', 400, "service_tier: 'gold'"),
        (b'{"model": "mock", "stream": true, "stream_options": 1}', 400, "stream_options: Expected"),
    ],
)
async def test_a_bad_body_is_refused_in_words_and_the_connection_goes_on(
    start_router: StartRouter, engine: MockEngine, body: bytes, status: int, part: str
) -> None:
    router = await start_router([engine])
    reader, writer = await router.raw(post(body) + post(json.dumps(GOOD).encode()))
    got, _, answer = await read_answer(reader)
    error = json.loads(answer)["error"]
    assert got == status
    assert part in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (await read_answer(reader))[0] == 200
    writer.close()


async def test_a_body_over_the_limit_is_refused_with_the_limit_and_the_connection_goes_on(
    start_router: StartRouter, engine: MockEngine
) -> None:
    router = await start_router([engine], limits={"bodyBytes": 2048, "bufferedBytes": 2**20})
    reader, writer = await router.raw(post(b"x" * 4000) + post(json.dumps(GOOD).encode()))
    status, _, body = await read_answer(reader)
    assert status == 413
    assert "2048 bytes" in json.loads(body)["error"]["message"]
    assert (await read_answer(reader))[0] == 200
    writer.close()


async def test_a_wrong_key_is_refused_and_a_right_one_on_the_same_connection_serves(
    start_router: StartRouter, engine: MockEngine
) -> None:
    # sha256 of "right"
    digest = "27042f4e6eca7d0b2a7ee4026df2ecfa51d3339e6d122aa099118ecd8563bad9"
    router = await start_router([engine], auth={"keys": [{"tenant": "acme", "sha256": digest}]})
    body = json.dumps(GOOD).encode()
    reader, writer = await router.raw(
        post(body)
        + post(body, "authorization: Bearer wrong")
        + post(body, "authorization: Bearer right")
        + post(json.dumps({**GOOD, "service_tier": "priority"}).encode(), "authorization: Bearer right")
    )
    for part in ("No API key", "not known"):
        status, _, answer = await read_answer(reader)
        assert status == 401
        assert part in json.loads(answer)["error"]["message"]
    assert (await read_answer(reader))[0] == 200
    status, _, answer = await read_answer(reader)
    assert status == 403
    assert json.loads(answer)["error"]["message"] == (
        "Tenant 'acme' is not entitled to service_tier 'priority'; this key opens: standard."
    )
    assert engine.received[0].headers["x-m3-tenant"] == "acme"
    writer.close()


async def test_no_worker_ready_is_503_with_retry_after(start_router: StartRouter, engine: MockEngine) -> None:
    engine.health_status = 503
    router = await start_router([engine], ready=0)
    answer = await router.chat()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "No worker of model 'mock' is ready" in answer.json()["error"]["message"]
    engine.health_status = 200
    await eventually_answers(router.chat, 200)


async def test_a_full_queue_is_429_with_retry_after_and_those_inside_are_served(
    start_router: StartRouter, engine: MockEngine
) -> None:
    engine.gate = asyncio.Event()
    # One request charges 8 tokens of output and a few of input: two fill the pool, one waits, the fourth is refused.
    small = {"model": "mock", "prompt": [1, 2], "max_tokens": 8}
    router = await start_router(
        [engine],
        pool={"maxContextTokens": 10, "tokensInFlight": 20, "queueRequests": 1},
        lanes={"priorityReservedShare": 0.0},
    )
    running = [asyncio.create_task(router.http.post("/v1/completions", json=small)) for _ in range(3)]
    await eventually(lambda: len(engine.received) == 2, "two are running")
    pool = next(iter(router.router._pools))
    await eventually(lambda: pool.lanes.waiting("standard", "standard") == 1, "one waits")
    refused = await router.http.post("/v1/completions", json=small)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert "at its capacity" in refused.json()["error"]["message"]
    engine.gate.set()
    assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200, 200]
    assert [lane.in_flight_tokens for lane in pool.lanes.snapshot(0.0)] == [0] * 6
    waited = [bill for bill in await router.ledger() if bill["queue_ms"] > 0]
    assert [bill["outcome"] for bill in waited] == ["ok"]


async def test_a_wait_that_expires_is_429_with_retry_after(start_router: StartRouter, engine: MockEngine) -> None:
    engine.gate = asyncio.Event()
    router = await start_router(
        [engine],
        pool={"maxContextTokens": 10, "tokensInFlight": 10},
        lanes={"priorityReservedShare": 0.0, "maxWaitSeconds": 0.2},
    )
    first = asyncio.create_task(router.http.post("/v1/completions", json={"model": "mock", "prompt": [1]}))
    await eventually(lambda: len(engine.received) == 1, "one is running")
    second = await router.http.post("/v1/completions", json={"model": "mock", "prompt": [1]})
    assert second.status_code == 429
    assert "no place became free in time" in second.json()["error"]["message"]
    assert int(second.headers["retry-after"]) >= 1
    engine.gate.set()
    assert (await first).status_code == 200


async def test_every_request_is_one_line_in_the_log(start_router: StartRouter, engine: MockEngine) -> None:
    router = await start_router([engine])
    await router.chat()
    await router.chat(stream=True)
    await router.http.post("/v1/nothing", json={})
    await router.chat(model="nope")
    await eventually(lambda: len(router.log.lines) == 4, "written")
    lines = router.log.lines
    assert [(line["status"], line["outcome"]) for line in lines] == [
        (200, "ok"),
        (200, "ok"),
        (404, "rejected"),
        (404, "rejected"),
    ]
    assert lines[0]["cost_nanousd"] == 2 * 300 + 3 * 1200
    assert {"queue_ms", "duration_ms", "first_byte_ms", "time", "error", "worker"} <= set(lines[0])
    assert len(await router.ledger()) == 2


async def test_metrics_add_up(start_router: StartRouter, engine: MockEngine) -> None:
    router = await start_router([engine])
    await router.chat()
    await router.chat(stream=True)
    text = (await router.admin.get("/metrics")).text
    labels = 'context_tier="standard",model="mock",outcome="ok",service_tier="standard",status="200"'
    assert f"m3_router_requests_total{{{labels}}} 2.0" in text
    assert 'kind="output",model="mock",outcome="ok",service_tier="standard",status="200"} 6.0' in text
    assert 'm3_router_lane_tokens_in_flight{context_tier="standard",lane="standard",pool="mock"} 0.0' in text
    assert f'm3_router_worker_ready{{pool="mock",worker="127.0.0.1:{engine.port}"}} 1.0' in text


async def test_draining_finishes_what_runs_and_closes_the_connection(
    start_router: StartRouter, engine: MockEngine
) -> None:
    engine.gate, engine.gate_at = asyncio.Event(), 2
    router = await start_router([engine])
    reader, writer = await router.raw(post(json.dumps({**GOOD, "stream": True}).encode()))
    await reader.readuntil(b" t1")
    draining = asyncio.create_task(router.router.drain())
    await eventually(lambda: router.router._connections.is_draining, "draining")
    with pytest.raises(ConnectionRefusedError):
        await router.raw(b"")
    assert (await router.admin.get("/readyz")).status_code == 503
    engine.gate.set()
    rest = await reader.read()
    assert b"[DONE]" in rest
    await draining
    writer.close()


async def test_draining_breaks_off_what_does_not_finish_in_time(start_router: StartRouter, engine: MockEngine) -> None:
    engine.gate, engine.gate_at = asyncio.Event(), 2
    router = await start_router([engine], limits={"drainSeconds": 0.1})
    reader, writer = await router.raw(post(json.dumps({**GOOD, "stream": True}).encode()))
    await reader.readuntil(b" t1")
    await router.router.drain()
    rest = (await reader.read()).decode()
    assert "router_stopping" in rest
    assert "[DONE]" not in rest
    writer.close()


async def test_requests_spread_over_workers_by_tokens_in_flight(
    start_router: StartRouter, engines: list[MockEngine]
) -> None:
    for one in engines:
        one.gate = asyncio.Event()
    router = await start_router(engines)
    first, second = engines
    big = {"model": "mock", "prompt": list(range(5000)), "max_tokens": 1}
    small = {"model": "mock", "prompt": [1], "max_tokens": 1}
    tasks = []
    for body in (big, small, small, small):
        tasks.append(asyncio.create_task(router.http.post("/v1/completions", json=body)))
        count = len(tasks)
        await eventually(lambda count=count: len(first.received) + len(second.received) == count, "arrived")
    assert sorted((len(first.received), len(second.received))) == [1, 3]
    for one in engines:
        assert one.gate is not None
        one.gate.set()
    assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}


async def test_a_client_that_does_not_read_stops_the_worker_from_writing_and_loses_nothing(
    start_router: StartRouter, engine: MockEngine
) -> None:
    engine.output_tokens, engine.filler_bytes = 400, 100_000
    router = await start_router([engine])
    reader, writer = await router.raw(post(json.dumps({**GOOD, "stream": True}).encode()))
    await eventually(lambda: any(one.is_write_paused for one in router.router._connections.all), "buffers are full")
    (connection,) = [one for one in router.router._connections.all if one.exchange is not None]
    assert connection.is_write_paused
    assert connection.exchange._reply.events < engine.output_tokens
    answer = bytearray()
    while not answer.endswith(b"0\r\n\r\n"):
        answer += await reader.read(2**20)
    assert answer.count(b"data: {") == engine.output_tokens
    assert b"data: [DONE]" in answer[-100:]
    writer.close()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (7,), (64, 3)])
async def test_a_request_in_pieces_is_one_request(
    start_router: StartRouter, engine: MockEngine, sizes: tuple[int, ...]
) -> None:
    router = await start_router([engine])
    data = post(json.dumps(GOOD).encode())
    reader, writer = await router.raw(b"")
    at = 0
    while at < len(data):
        for size in sizes:
            writer.write(data[at : at + size])
            await writer.drain()
            at += size
    assert (await read_answer(reader))[0] == 200
    writer.close()


async def test_exchanges_leave_nothing_for_the_collector(start_router: StartRouter, engine: MockEngine) -> None:
    router = await start_router([engine])
    exchange = (Exchange, Intake, Reply, Attempt)
    gc.collect()
    gc.disable()
    try:
        for stream in (False, True):
            assert (await router.chat(stream=stream)).status_code == 200
        assert (await router.chat(model="nobody")).status_code == 404
        await eventually(lambda: not any(type(one) in exchange for one in gc.get_objects()), "nothing is left")
    finally:
        gc.enable()
