"""A worker that dies in the middle of a stream, and another that goes on: the client sees one answer and one bill."""

import asyncio
import json
from typing import Any

import pytest

from m3_mock import Speaker
from m3_mock.running import Running, StartRouter, eventually, post, read_stream
from m3_mock.speaker import ANSWER, texts_of, values_of

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
TURN = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "mock", "messages": TURN, "stream": True, "stream_options": {"include_usage": True}},
    COMPLETIONS: {"model": "mock", "prompt": "hi", "stream": True, "stream_options": {"include_usage": True}},
    MESSAGES: {"model": "mock", "messages": TURN, "max_tokens": 50, "stream": True},
}
every_dialect = pytest.mark.parametrize("path", list(BODIES))
COST = 2 * 300 + 5 * 1200


async def in_order(router: Running, speakers: list[Speaker], path: str) -> list[Speaker]:
    """The speakers in the order in which a request with this body goes to them."""
    name = (await router.http.post(path, json=BODIES[path])).headers["x-m3-worker"]
    for one in speakers:
        one.received.clear()
    return sorted(speakers, key=lambda one: f"127.0.0.1:{one.port}" != name)


def usage_of(path: str, stream: bytes) -> list[tuple[int, int]]:
    """Every usage that tells of output, as input and output tokens."""
    told = [value["usage"] for value in values_of(stream) if value.get("usage")]
    if path == MESSAGES:
        return [(usage["input_tokens"], usage["output_tokens"]) for usage in told if usage["output_tokens"]]
    return [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in told]


def ids_of(stream: bytes) -> set[str]:
    """Every id that the stream gives the answer."""
    return {
        identity
        for value in values_of(stream)
        if (identity := value.get("id") or value.get("message", {}).get("id")) is not None
    }


@pytest.mark.parametrize("words", [1, 3, 5])
@every_dialect
async def test_another_worker_goes_on_and_the_client_sees_one_answer(
    start_router: StartRouter, speakers: list[Speaker], path: str, words: int
) -> None:
    router = await start_router(speakers)
    first, second = await in_order(router, speakers, path)
    undisturbed = (await router.http.post(path, json=BODIES[path])).content
    first.received.clear()
    first.die_at = words + 1
    answer = await router.http.post(path, json=BODIES[path])
    stream = answer.content
    assert texts_of(path, stream) == texts_of(path, undisturbed) == ANSWER
    assert len(ids_of(stream)) == 1
    assert ids_of(stream) == {f"{first.name}-1"}
    assert usage_of(path, stream) == usage_of(path, undisturbed) == [(2, 5)]
    assert stream.count(b"[DONE]") == (0 if path == MESSAGES else 1)
    assert stream.count(b'"role":"assistant"') <= 1
    assert b"error" not in stream
    assert [len(first.received), len(second.received)] == [1, 1]
    bill, undisturbed_bill, _ = await router.ledger()
    assert (bill["outcome"], bill["attempts"], bill["continuations"], bill["estimated"]) == ("ok", 2, 1, False)
    assert (bill["input_tokens"], bill["output_tokens"], bill["cost_nanousd"]) == (2, 5, COST)
    assert bill["cost_nanousd"] == undisturbed_bill["cost_nanousd"]
    assert bill["worker"] == f"127.0.0.1:{second.port}"


async def test_the_second_worker_is_asked_in_the_clients_own_bytes_and_how_the_answer_begins(
    start_router: StartRouter, speakers: list[Speaker]
) -> None:
    router = await start_router(speakers)
    first, second = await in_order(router, speakers, CHAT)
    first.die_at = 3
    body = (
        b'{"model":"mock", "x" : 1.50,"stream":true,"stream_options":{"include_usage":true},'
        b'"messages":[{"role":"user","content":"h\\u0069"} ]}'
    )
    answer = await router.http.post(CHAT, content=body)
    assert texts_of(CHAT, answer.content) == ANSWER
    assert first.received[0].body == body
    asked = second.received[0]
    assert asked.body == (
        b'{"add_generation_prompt":false,"continue_final_message":true,'
        b'"model":"mock", "x" : 1.50,"stream":true,"stream_options":{"include_usage":true},'
        b'"messages":[{"role":"user","content":"h\\u0069"},{"role":"assistant","content":"one two "}]}'
    )
    assert asked.headers["x-request-id"] == first.received[0].headers["x-request-id"]
    assert asked.headers["x-m3-attempt"] != first.received[0].headers["x-m3-attempt"]


async def test_what_is_left_of_the_longest_answer_is_all_that_the_second_worker_may_add(
    start_router: StartRouter, speakers: list[Speaker]
) -> None:
    router = await start_router(speakers)
    first, second = await in_order(router, speakers, MESSAGES)
    first.die_at = 4
    await router.http.post(MESSAGES, json=BODIES[MESSAGES])
    # 2 tokens of the first prompt, and the answer's 50.
    assert second.received[0].json["max_total_tokens"] == 52
    assert second.received[0].json["max_tokens"] == 50


@every_dialect
async def test_a_worker_that_says_that_it_gives_up_is_gone_on_with_too(
    start_router: StartRouter, speakers: list[Speaker], path: str
) -> None:
    router = await start_router(speakers)
    first, _ = await in_order(router, speakers, path)
    first.fail_at = 3
    stream = (await router.http.post(path, json=BODIES[path])).content
    assert texts_of(path, stream) == ANSWER
    assert b"mock gave up" not in stream
    assert usage_of(path, stream) == [(2, 5)]


async def test_a_worker_that_stalls_in_the_middle_is_gone_on_with(
    start_router: StartRouter, speakers: list[Speaker]
) -> None:
    router = await start_router(speakers, limits={"idleSeconds": 1.0})
    first, _ = await in_order(router, speakers, CHAT)
    first.gate, first.gate_at = asyncio.Event(), 3
    stream = (await router.http.post(CHAT, json=BODIES[CHAT])).content
    assert texts_of(CHAT, stream) == ANSWER
    assert usage_of(CHAT, stream) == [(2, 5)]
    await asyncio.wait_for(first.aborted.wait(), 10)


@every_dialect
async def test_an_answer_may_be_gone_on_with_more_than_once(start_router: StartRouter, path: str) -> None:
    async with Speaker(name="a").running() as a, Speaker(name="b").running() as b, Speaker(name="c").running() as c:
        speakers = [a, b, c]
        router = await start_router(speakers)
        first, *others = await in_order(router, speakers, path)
        first.die_at = 2
        for one in others:
            one.gate, one.gate_at = asyncio.Event(), 4
        reader, _ = await router.raw(post(BODIES[path], path=path))
        await asyncio.wait_for(reader.readuntil(b"three "), 10)
        (second,) = [one for one in others if one.received]
        (third,) = [one for one in others if not one.received]
        third.gate = None
        await second.stop()
        rest = b""
        async with asyncio.timeout(10):
            while not rest.endswith(b"0\r\n\r\n"):
                rest += await reader.read(2**16)
        assert texts_of(path, rest).endswith("four five ")
        assert [usage[1] for usage in usage_of(path, rest)] == [5]
        assert ids_of(rest) <= {f"{first.name}-1"}
        bill = (await router.ledger())[0]
        assert (bill["attempts"], bill["continuations"], bill["outcome"]) == (3, 2, "ok")
        assert (bill["input_tokens"], bill["output_tokens"], bill["cost_nanousd"]) == (2, 5, COST)


async def test_no_more_workers_than_the_limit_of_attempts_are_asked(
    start_router: StartRouter, speakers: list[Speaker]
) -> None:
    router = await start_router(speakers, limits={"attempts": 1})
    first, second = await in_order(router, speakers, CHAT)
    first.die_at = 3
    reader, _ = await router.raw(post(BODIES[CHAT]))
    _, stream, is_ended = await read_stream(reader)
    assert not is_ended
    assert texts_of(CHAT, stream) == "one two "
    assert json.loads(stream.rpartition(b"data: ")[2])["error"]["code"] == "worker_error"
    assert second.received == []
    first.die_at = 0
    assert (await router.http.post(CHAT, json=BODIES[CHAT])).status_code == 502
    assert second.received == []


@pytest.mark.parametrize("status", [400, 500, 503])
async def test_a_second_worker_that_refuses_ends_the_stream_with_an_error_event(
    start_router: StartRouter, speakers: list[Speaker], status: int
) -> None:
    router = await start_router(speakers)
    first, second = await in_order(router, speakers, CHAT)
    first.die_at = 3
    second.refuses_continuation = status == 400
    second.status = status
    reader, _ = await router.raw(post(BODIES[CHAT]))
    _, stream, is_ended = await read_stream(reader)
    assert not is_ended
    assert texts_of(CHAT, stream) == "one two "
    assert b"[DONE]" not in stream
    assert f"could not go on with the answer: {status}" in values_of(stream)[-1]["error"]["message"]
    bill = (await router.ledger())[0]
    assert (bill["outcome"], bill["status"], bill["cost_nanousd"]) == ("worker_error", 200, 0)
    assert (bill["input_tokens"], bill["output_tokens"]) == (2, 3)  # the role's event counts as one


CANNOT: dict[str, tuple[str, dict[str, Any]]] = {
    "two answers": (CHAT, {**BODIES[CHAT], "n": 2}),
    "a bound format": (CHAT, {**BODIES[CHAT], "response_format": {"type": "json_object"}}),
    "logprobs": (CHAT, {**BODIES[CHAT], "logprobs": True}),
    "echo": (COMPLETIONS, {**BODIES[COMPLETIONS], "echo": True}),
    "token ids": (COMPLETIONS, {**BODIES[COMPLETIONS], "prompt": [1, 2]}),
    "responses": (RESPONSES, {"model": "mock", "input": "hi", "stream": True}),
}


@pytest.mark.parametrize("case", list(CANNOT))
async def test_what_cannot_be_gone_on_with_ends_with_an_error_event(
    start_router: StartRouter, speakers: list[Speaker], case: str
) -> None:
    path, body = CANNOT[case]
    for one in speakers:
        one.die_at = 3
    router = await start_router(speakers)
    reader, _ = await router.raw(post(body, path=path))
    _, stream, is_ended = await read_stream(reader)
    assert not is_ended
    assert texts_of(path, stream) == "one two "
    assert b"failed during its answer" in stream
    assert sum(len(one.received) for one in speakers) == 1


async def test_a_pool_that_forbids_it_is_not_gone_on_with(start_router: StartRouter, speakers: list[Speaker]) -> None:
    router = await start_router(speakers, pool={"continuation": False})
    first, second = await in_order(router, speakers, CHAT)
    first.die_at = 3
    reader, _ = await router.raw(post(BODIES[CHAT]))
    _, stream, _ = await read_stream(reader)
    assert values_of(stream)[-1]["error"]["code"] == "worker_error"
    assert second.received == []


async def test_a_client_that_does_not_read_holds_the_second_worker_back_as_well(
    start_router: StartRouter, speakers: list[Speaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3_router.relay.reply.MAX_TRANSCRIPT_BYTES", 2**23)  # more than the kernel holds for a client
    words = tuple(f"{number:07} " + "x" * 20_000 + " " for number in range(200))
    for one in speakers:
        one.words = words
    router = await start_router(speakers)
    first, second = await in_order(router, speakers, CHAT)
    first.fail_at = 100
    reader, _ = await router.raw(post(BODIES[CHAT]))
    received = 0
    async with asyncio.timeout(20):
        while not second.received:
            data = await reader.read(2**16)
            assert data, "it was not gone on with"
            received += len(data)
    (connection,) = [one for one in router.router._connections.all if one.exchange is not None]
    await asyncio.sleep(0.3)
    assert connection._transport.get_write_buffer_size() < 2**19
    async with asyncio.timeout(20):
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = await reader.read(2**20)
            assert data, "the answer ended too soon"
            received += len(data)
            tail = (tail + data)[-16:]
    assert received > 200 * 20_000


async def test_a_client_that_leaves_during_the_second_part_is_billed_for_both(
    start_router: StartRouter, speakers: list[Speaker]
) -> None:
    router = await start_router(speakers)
    first, second = await in_order(router, speakers, CHAT)
    first.die_at = 3
    second.gate, second.gate_at = asyncio.Event(), 4
    reader, writer = await router.raw(post(BODIES[CHAT]))
    await asyncio.wait_for(reader.readuntil(b"three "), 10)
    writer.transport.abort()
    await asyncio.wait_for(second.aborted.wait(), 10)
    await eventually(lambda: len(router.router._ledger.newest(9)) == 2, "settled")
    bill = (await router.ledger())[0]
    assert (bill["outcome"], bill["continuations"], bill["estimated"]) == ("client_gone", 1, True)
    assert bill["input_tokens"] == 2
    assert bill["output_tokens"] in (3, 4)  # one event more where the role came by itself
