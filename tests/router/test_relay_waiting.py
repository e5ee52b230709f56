"""What a request waits for: a place, a long prefill, a priority one that goes first; and what its client is told."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from m3_mock import Speaker
from m3_mock.running import Running, StartRouter, eventually, post, read_stream
from m3_mock.speaker import ANSWER, texts_of

CHAT, MESSAGES, COMPLETIONS = "/v1/chat/completions", "/v1/messages", "/v1/completions"
TURN = [{"role": "user", "content": "hi"}]
STREAM: dict[str, Any] = {"model": "mock", "messages": TURN, "max_tokens": 9, "stream": True}
KEEP_ALIVE = {CHAT: b": keep-alive\n\n", MESSAGES: b'event: ping\ndata: {"type": "ping"}\n\n'}
both = pytest.mark.parametrize("path", [CHAT, MESSAGES])
# A prompt of one token with an answer of nine holds ten tokens of its pool.
ONE: dict[str, Any] = {"model": "mock", "prompt": [1], "max_tokens": 9}
SMALL_POOL: dict[str, Any] = {"maxContextTokens": 10, "tokensInFlight": 10}


def ask(
    router: Running, body: dict[str, Any], *, path: str = COMPLETIONS, headers: dict[str, str] | None = None
) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(router.http.post(path, json=body, headers=headers))


@pytest.mark.parametrize("gate_at", [0, 1], ids=["before its head", "after its head"])
@both
async def test_a_stream_whose_prefill_takes_long_is_kept_alive_until_it_begins(
    start_router: StartRouter, speaker: Speaker, path: str, gate_at: int
) -> None:
    speaker.gate, speaker.gate_at = asyncio.Event(), gate_at
    router = await start_router([speaker], limits={"commentSeconds": 0.05})
    reader, _ = await router.raw(post(STREAM, path=path))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
    for _ in range(2):
        await asyncio.wait_for(reader.readuntil(KEEP_ALIVE[path]), 10)
    speaker.gate.set()
    rest = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
    assert texts_of(path, rest) == ANSWER
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["output_tokens"], bill["estimated"]) == ("ok", 5, False)


async def test_a_whole_answer_is_never_begun_with_a_comment(start_router: StartRouter, speaker: Speaker) -> None:
    speaker.gate = asyncio.Event()
    router = await start_router([speaker], limits={"commentSeconds": 0.05})
    answering = ask(router, {"model": "mock", "messages": TURN}, path=CHAT)
    await speaker.arrived.wait()
    await asyncio.sleep(0.6)
    speaker.gate.set()
    answer = await answering
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER


@both
async def test_an_error_after_comments_is_an_event_of_the_dialect(
    start_router: StartRouter, speaker: Speaker, path: str
) -> None:
    speaker.gate, speaker.status = asyncio.Event(), 400
    router = await start_router([speaker], limits={"commentSeconds": 0.05})
    reader, _ = await router.raw(post(STREAM, path=path))
    await asyncio.wait_for(reader.readuntil(KEEP_ALIVE[path]), 10)
    speaker.gate.set()
    rest = (await asyncio.wait_for(reader.read(), 10)).decode()
    assert "mock 400" in rest
    assert ("event: error\n" in rest) == (path == MESSAGES)
    assert "[DONE]" not in rest
    assert not rest.endswith("0\r\n\r\n")
    (bill,) = await router.ledger()
    assert (bill["status"], bill["outcome"]) == (400, "rejected")


@pytest.mark.parametrize("gate_at", [0, 1], ids=["before its head", "after its head"])
async def test_after_comments_a_worker_that_dies_is_still_replaced_by_another(
    start_router: StartRouter, speakers: list[Speaker], gate_at: int
) -> None:
    for one in speakers:
        one.gate, one.gate_at = asyncio.Event(), gate_at
    router = await start_router(speakers, limits={"commentSeconds": 0.05})
    reader, _ = await router.raw(post(STREAM))
    await asyncio.wait_for(reader.readuntil(KEEP_ALIVE[CHAT]), 10)
    first, second = sorted(speakers, key=lambda one: -len(one.received))
    assert (len(first.received), len(second.received)) == (1, 0)
    assert second.gate is not None
    second.gate.set()
    await first.stop()
    rest = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
    assert texts_of(CHAT, rest) == ANSWER
    assert first.received[0].body == second.received[0].body
    (bill,) = await router.ledger()
    assert (bill["attempts"], bill["continuations"], bill["outcome"]) == (2, 0, "ok")


async def test_a_sign_of_life_from_the_worker_is_no_first_byte(
    start_router: StartRouter, speakers: list[Speaker]
) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    for one in speakers:
        one.raw_answer = head + b"e\r\n: keep-alive\n\n\r\n"
        one.gate, one.gate_at = asyncio.Event(), 1
    router = await start_router(speakers, limits={"commentSeconds": 60})
    reader, _ = await router.raw(post(STREAM))
    _, stream, is_ended = await read_stream(reader)
    # Each worker gave a sign of life and closed: both were tried, and nothing but the signs reached the client.
    assert [len(one.received) for one in speakers] == [1, 1]
    assert not is_ended
    assert stream.startswith(b": keep-alive\n\n")
    assert b'"code":"worker_error"' in stream
    (bill,) = await router.ledger()
    assert (bill["attempts"], bill["continuations"], bill["outcome"]) == (2, 0, "worker_error")


async def test_between_head_and_first_event_the_limit_is_that_of_the_first_byte(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.gate, speaker.gate_at = asyncio.Event(), 1
    router = await start_router([speaker], limits={"firstByteSeconds": 30, "idleSeconds": 0.3})
    reader, _ = await router.raw(post(STREAM))
    await speaker.arrived.wait()
    await asyncio.sleep(1.0)
    speaker.gate.set()
    _, stream, is_ended = await read_stream(reader)
    assert is_ended
    assert texts_of(CHAT, stream) == ANSWER


async def test_a_priority_request_takes_the_place_of_one_that_has_no_first_byte_which_is_then_served_whole(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.gate = asyncio.Event()
    router = await start_router([speaker], pool=SMALL_POOL, lanes={"priorityReservedShare": 0.0})
    first = ask(router, {**ONE, "stream": True})
    await eventually(lambda: len(speaker.received) == 1, "the standard one is at the worker")
    second = ask(router, {**ONE, "service_tier": "priority", "prompt": [2]})
    await asyncio.wait_for(speaker.aborted.wait(), 10)
    await eventually(lambda: len(speaker.received) == 2, "the priority one is at the worker")
    assert speaker.received[1].headers["x-m3-priority"] == "0"
    speaker.gate.set()
    assert (await second).status_code == 200
    answer = await first
    assert texts_of(COMPLETIONS, answer.content) == ANSWER
    assert [one.json["prompt"] for one in speaker.received] == [[1], [2], [1]]
    assert speaker.received[0].body == speaker.received[2].body
    bills = {bill["service_tier"]: bill for bill in await router.ledger()}
    assert bills["standard"]["preemptions"] == 1
    assert bills["priority"]["preemptions"] == 0
    assert {bill["outcome"] for bill in bills.values()} == {"ok"}
    assert all(lane.in_flight_tokens == 0 for lane in router.pool().lanes.snapshot(0.0))


async def test_after_its_first_byte_nobody_is_put_back(start_router: StartRouter, speaker: Speaker) -> None:
    speaker.gate, speaker.gate_at = asyncio.Event(), 2
    router = await start_router([speaker], pool=SMALL_POOL, lanes={"priorityReservedShare": 0.0})
    reader, _ = await router.raw(post({**ONE, "stream": True}, path=COMPLETIONS))
    await asyncio.wait_for(reader.readuntil(b"one "), 10)
    second = ask(router, {**ONE, "service_tier": "priority"})
    await eventually(lambda: router.pool().lanes.waiting("priority", "standard") == 1, "the priority one waits")
    assert not speaker.aborted.is_set()
    speaker.gate.set()
    rest = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
    assert texts_of(COMPLETIONS, rest).endswith("five ")
    assert (await second).status_code == 200
    assert [bill["preemptions"] for bill in await router.ledger()] == [0, 0]


async def test_a_first_byte_that_comes_with_the_preemption_is_not_given_to_the_client(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.gate, speaker.gate_at = asyncio.Event(), 1
    router = await start_router([speaker], pool=SMALL_POOL, lanes={"priorityReservedShare": 0.0})
    first = ask(router, {**ONE, "stream": True})
    await eventually(lambda: len(speaker.received) == 1, "the standard one is at the worker")
    (connection,) = [one for one in router.router._connections.all if one.exchange is not None]
    exchange = connection.exchange
    assert exchange is not None
    # Both happen in one round of the loop: the lanes put it back, and before it is told, its worker's answer is read.
    lanes = router.pool().lanes
    now = asyncio.get_running_loop().time()
    lanes._put_back(exchange._place._ticket, now)
    router.router._services.follow(router.pool())
    exchange._attempt.worker_answered(None, b'data: {"choices":[{"text":"wrong"}]}\n\n', False)
    speaker.gate.set()
    lanes.tick(now)
    router.router._services.follow(router.pool())
    answer = await first
    assert texts_of(COMPLETIONS, answer.content) == ANSWER


async def test_a_request_that_was_put_back_after_comments_gets_more_of_them_while_it_waits(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.gate = asyncio.Event()
    router = await start_router(
        [speaker], pool=SMALL_POOL, lanes={"priorityReservedShare": 0.0}, limits={"commentSeconds": 0.05}
    )
    reader, _ = await router.raw(post({**ONE, "stream": True}, path=COMPLETIONS))
    await asyncio.wait_for(reader.readuntil(b": keep-alive\n\n"), 10)
    second = ask(router, {**ONE, "service_tier": "priority"})
    await eventually(lambda: len(speaker.received) == 2, "the priority one is at the worker")
    await asyncio.sleep(0.3)
    for _ in range(3):
        await asyncio.wait_for(reader.readuntil(b": keep-alive\n\n"), 10)
    assert len(speaker.received) == 2
    speaker.gate.set()
    assert (await second).status_code == 200
    rest = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
    assert texts_of(COMPLETIONS, rest) == ANSWER


@both
async def test_a_wait_that_expires_is_told_in_the_dialect(
    start_router: StartRouter, speaker: Speaker, path: str
) -> None:
    speaker.gate = asyncio.Event()
    router = await start_router(
        [speaker],
        pool={"maxContextTokens": 600, "tokensInFlight": 600},
        lanes={"priorityReservedShare": 0.0, "maxWaitSeconds": 0.2},
    )
    first = ask(router, STREAM, path=path)
    await speaker.arrived.wait()
    second = await router.http.post(path, json=STREAM)
    assert second.status_code == (529 if path == MESSAGES else 429)
    assert "no place became free in time" in second.json()["error"]["message"]
    assert int(second.headers["retry-after"]) >= 1
    speaker.gate.set()
    assert (await first).status_code == 200
    assert [bill["outcome"] for bill in await router.ledger()] == ["ok", "rejected"]


async def test_batch_goes_only_when_nobody_else_waits_and_says_so_to_the_worker(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.gate = asyncio.Event()
    router = await start_router([speaker], pool=SMALL_POOL, lanes={"priorityReservedShare": 0.0, "preemption": False})
    running = [ask(router, {**ONE, "prompt": [0]})]
    await eventually(lambda: len(speaker.received) == 1, "one is running")
    running.append(ask(router, {**ONE, "prompt": [1], "service_tier": "batch"}))
    await eventually(lambda: router.pool().lanes.waiting("batch", "standard") == 1, "batch waits")
    running.append(ask(router, {**ONE, "prompt": [2]}))
    await eventually(lambda: router.pool().lanes.waiting("standard", "standard") == 1, "standard waits")
    speaker.gate.set()
    answers = await asyncio.gather(*running)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [one.json["prompt"] for one in speaker.received] == [[0], [2], [1]]
    assert [one.headers["x-m3-priority"] for one in speaker.received] == ["10", "10", "20"]
    assert answers[1].headers["x-m3-service-tier"] == "batch"


async def test_among_priority_requests_the_one_that_wants_its_first_byte_soonest_goes_first(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.gate = asyncio.Event()
    router = await start_router([speaker], pool=SMALL_POOL, lanes={"priorityReservedShare": 0.0})
    body = {**ONE, "service_tier": "priority"}
    running = [ask(router, {**body, "prompt": [0]})]
    await eventually(lambda: len(speaker.received) == 1, "one is running")
    for prompt, wanted in ((1, None), (2, "60000"), (3, "5000")):
        headers = {} if wanted is None else {"x-m3-first-byte-ms": wanted}
        running.append(ask(router, {**body, "prompt": [prompt]}, headers=headers))
        await eventually(
            lambda prompt=prompt: router.pool().lanes.waiting("priority", "standard") == prompt, "it waits"
        )
    speaker.gate.set()
    assert {answer.status_code for answer in await asyncio.gather(*running)} == {200}
    assert [one.json["prompt"] for one in speaker.received] == [[0], [3], [2], [1]]
    assert "x-m3-first-byte-ms" not in speaker.received[1].headers


@pytest.mark.parametrize("value", ["0", "soon", "-1", "1.5", "1000000000"])
async def test_a_first_byte_wish_that_is_no_number_of_milliseconds_is_refused(
    start_router: StartRouter, speaker: Speaker, value: str
) -> None:
    router = await start_router([speaker])
    answer = await router.http.post(COMPLETIONS, json=ONE, headers={"x-m3-first-byte-ms": value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "x-m3-first-byte-ms"


async def test_long_prefills_are_capped_for_each_worker_and_short_requests_pass_them(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.gate = asyncio.Event()
    router = await start_router([speaker], contextTier={"thresholdTokens": 100, "inclusive": True})
    long = {"model": "mock", "prompt": list(range(101)), "max_tokens": 9}
    running = [ask(router, long)]
    await eventually(lambda: len(speaker.received) == 1, "one long one is at the worker")
    running.append(ask(router, {**long, "prompt": list(range(102))}))
    await eventually(lambda: router.pool().lanes.waiting("standard", "long") == 1, "the other one waits")
    running.append(ask(router, ONE))
    await eventually(lambda: len(speaker.received) == 2, "a short one passes")
    assert speaker.received[1].json["prompt"] == [1]
    speaker.gate.set()
    assert {answer.status_code for answer in await asyncio.gather(*running)} == {200}
    assert [len(one.json["prompt"]) for one in speaker.received] == [101, 1, 102]


async def test_the_first_byte_of_a_long_stream_makes_room_for_the_next_long_prefill(
    start_router: StartRouter, speaker: Speaker
) -> None:
    speaker.gate, speaker.gate_at = asyncio.Event(), 2
    router = await start_router([speaker], contextTier={"thresholdTokens": 100, "inclusive": True})
    long = {"model": "mock", "prompt": list(range(101)), "max_tokens": 9, "stream": True}
    readers = []
    for _ in range(2):
        reader, _ = await router.raw(post(long, path=COMPLETIONS))
        await asyncio.wait_for(reader.readuntil(b"one "), 10)
        readers.append(reader)
    speaker.gate.set()
    for reader in readers:
        rest = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)
        assert json.loads(rest.split(b"data: ")[1].partition(b"\n")[0])["choices"][0]["text"] == "two "
