"""Every dialect through the router: the bytes to the worker, the answer, errors, and how a stream that breaks ends."""

import asyncio
import json
from typing import Any

import pytest

from m3_mock import Speaker
from m3_mock.running import StartRouter, eventually, post, read_stream
from m3_mock.speaker import ANSWER, texts_of, values_of

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, EMBEDDINGS = "/v1/messages", "/v1/embeddings"
TURN = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "mock", "messages": TURN},
    COMPLETIONS: {"model": "mock", "prompt": "hi"},
    RESPONSES: {"model": "mock", "input": "hi"},
    MESSAGES: {"model": "mock", "messages": TURN, "max_tokens": 9},
    EMBEDDINGS: {"model": "mock", "input": [1, 2]},
}
ENDS = {
    CHAT: b"data: [DONE]\n\n",
    COMPLETIONS: b"data: [DONE]\n\n",
    RESPONSES: b"response.completed",
    MESSAGES: b"message_stop",
}
STREAMED = list(ENDS)
every_stream = pytest.mark.parametrize("path", STREAMED)
# Two input tokens at 300 nano-dollars, five of output at 1,200.
COST = 2 * 300 + 5 * 1200


def error_of(path: str, body: bytes) -> dict[str, Any]:
    """The error of a JSON answer, which has the shape of its dialect."""
    answer = json.loads(body)
    if path.startswith(MESSAGES):
        assert set(answer) == {"type", "error", "request_id"}
        assert answer["type"] == "error"
        assert set(answer["error"]) == {"type", "message"}
    else:
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = answer["error"]
    return error


def last_error(path: str, stream: bytes) -> str:
    """The message of the error event that ends a stream, in the form that its dialect has for it."""
    last = stream.rstrip().split(b"\n\n")[-1]
    if path in (MESSAGES, RESPONSES):
        assert last.startswith(b"event: error\ndata: ")
    else:
        assert last.startswith(b"data: ")
    value = json.loads(last.partition(b"data: ")[2])
    if path == RESPONSES:
        assert value["type"] == "error"
        message: str = value["message"]
        return message
    if path == MESSAGES:
        assert value["type"] == "error"
    return str(value["error"]["message"])


@pytest.mark.parametrize("path", list(BODIES))
async def test_a_whole_answer_of_every_dialect_is_relayed_and_billed(
    start_router: StartRouter, speaker: Speaker, path: str
) -> None:
    router = await start_router([speaker])
    body = json.dumps(BODIES[path]).encode() + b" "
    answer = await router.http.post(path, content=body)
    assert answer.status_code == 200
    assert speaker.received[0].path == path
    assert speaker.received[0].body == body
    output_tokens = 0 if path == EMBEDDINGS else 5
    cost = 2 * 300 + output_tokens * 1200
    assert answer.headers["x-m3-cost-usd"] == f"0.{cost:09}"
    (bill,) = await router.ledger()
    assert (bill["input_tokens"], bill["output_tokens"], bill["cost_nanousd"]) == (2, output_tokens, cost)
    assert (bill["outcome"], bill["estimated"], bill["path"]) == ("ok", False, path)


@every_stream
async def test_a_stream_of_every_dialect_is_relayed_and_billed(
    start_router: StartRouter, speaker: Speaker, path: str
) -> None:
    router = await start_router([speaker])
    answer = await router.http.post(path, json={**BODIES[path], "stream": True})
    assert texts_of(path, answer.content) == ANSWER
    assert ENDS[path] in answer.content
    (bill,) = await router.ledger()
    assert (bill["input_tokens"], bill["output_tokens"], bill["cost_nanousd"]) == (2, 5, COST)
    assert (bill["outcome"], bill["estimated"]) == ("ok", False)


async def test_only_the_wish_for_usage_is_added_to_a_stream_and_every_other_byte_is_the_clients(
    start_router: StartRouter, speaker: Speaker
) -> None:
    router = await start_router([speaker])
    body = b'{ "stream" : true,"model":"mock", "x":[1.50,1e5 ],\t"messages":[{"role":"user","content":"\\u00e9"}] }\n'
    await router.http.post(CHAT, content=body)
    await router.http.post(MESSAGES, content=body)
    await router.http.post(RESPONSES, content=body)
    chat, messages, responses = speaker.received
    assert chat.body == b'{"stream_options":{"include_usage":true},' + body[1:]
    assert messages.body == responses.body == body


@pytest.mark.parametrize(
    ("path", "answer"), [("/tokenize", {"count": 2}), ("/v1/messages/count_tokens", {"input_tokens": 2})]
)
async def test_counting_is_relayed_and_free(
    start_router: StartRouter, speaker: Speaker, path: str, answer: dict[str, int]
) -> None:
    router = await start_router([speaker])
    got = await router.http.post(path, json={"model": "mock", "messages": TURN, "stream": True})
    assert (got.status_code, got.json()) == (200, answer)
    assert "x-m3-cost-usd" not in got.headers
    assert await router.ledger() == []


@pytest.mark.parametrize("path", [*BODIES, "/tokenize", "/v1/messages/count_tokens"])
async def test_a_refusal_has_the_shape_of_its_dialect(start_router: StartRouter, speaker: Speaker, path: str) -> None:
    router = await start_router([speaker])
    for body, status, part in ((b"{", 400, "not valid JSON"), (b'{"model": "nope"}', 404, "'nope' does not exist")):
        answer = await router.http.post(path, content=body)
        assert answer.status_code == status
        assert part in error_of(path, answer.content)["message"]
    assert speaker.received == []


@pytest.mark.parametrize("path", list(BODIES))
async def test_the_error_of_a_worker_reaches_the_client_as_it_is(
    start_router: StartRouter, speaker: Speaker, path: str
) -> None:
    speaker.status = 422
    router = await start_router([speaker])
    answer = await router.http.post(path, json=BODIES[path])
    assert (answer.status_code, answer.headers["retry-after"]) == (422, "7")
    assert answer.json()["error"]["message"] == "mock 422"
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["cost_nanousd"]) == ("rejected", 0)


@pytest.mark.parametrize("path", list(BODIES))
async def test_at_capacity_anthropics_clients_get_529_and_all_others_429(
    start_router: StartRouter, speaker: Speaker, path: str
) -> None:
    speaker.gate = asyncio.Event()
    router = await start_router(
        [speaker],
        pool={"maxContextTokens": 600, "tokensInFlight": 600, "queueRequests": 0},
        lanes={"priorityReservedShare": 0.0},
    )
    whole_pool = {"model": "mock", "prompt": list(range(591)), "max_tokens": 9}
    running = asyncio.create_task(router.http.post(COMPLETIONS, json=whole_pool))
    await speaker.arrived.wait()
    answer = await router.http.post(path, json=BODIES[path])
    assert answer.status_code == (529 if path == MESSAGES else 429)
    assert int(answer.headers["retry-after"]) >= 1
    kind = error_of(path, answer.content)["type"]
    assert kind == ("overloaded_error" if path == MESSAGES else "rate_limit_error")
    speaker.gate.set()
    assert (await running).status_code == 200


@every_stream
async def test_a_worker_that_dies_in_mid_stream_ends_it_with_an_error_event_of_the_dialect(
    start_router: StartRouter, speaker: Speaker, path: str
) -> None:
    speaker.die_at = 3
    router = await start_router([speaker])
    reader, _ = await router.raw(post({**BODIES[path], "stream": True}, path=path))
    _, stream, is_ended = await read_stream(reader)
    assert not is_ended
    assert texts_of(path, stream) == "one two "
    assert "failed during its answer" in last_error(path, stream)
    assert ENDS[path] not in stream
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["cost_nanousd"], bill["status"]) == ("worker_error", 0, 200)


@pytest.mark.parametrize("says_done", [False, True])
@every_stream
async def test_the_error_event_of_a_worker_is_the_last_thing_that_its_client_gets(
    start_router: StartRouter, speaker: Speaker, path: str, says_done: bool
) -> None:
    speaker.fail_at, speaker.says_done = 3, says_done
    router = await start_router([speaker])
    reader, _ = await router.raw(post({**BODIES[path], "stream": True}, path=path))
    _, stream, is_ended = await read_stream(reader)
    assert is_ended  # it is the worker's own last word; SDKs would take a cut connection for another failure
    assert texts_of(path, stream) == "one two "
    assert last_error(path, stream) == "mock gave up"
    assert ENDS[path] not in stream
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["cost_nanousd"]) == ("worker_error", 0)


@every_stream
async def test_a_stream_that_its_worker_ends_without_its_last_event_is_not_taken_for_a_whole_one(
    start_router: StartRouter, speaker: Speaker, path: str
) -> None:
    speaker.end_at = 3
    router = await start_router([speaker])
    reader, _ = await router.raw(post({**BODIES[path], "stream": True}, path=path))
    _, stream, is_ended = await read_stream(reader)
    assert not is_ended
    assert texts_of(path, stream) == "one two "
    assert "before its answer was complete" in last_error(path, stream)
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["cost_nanousd"]) == ("worker_error", 0)


@every_stream
async def test_a_stream_without_usage_is_still_a_whole_one(
    start_router: StartRouter, speaker: Speaker, path: str
) -> None:
    speaker.reports_usage = False
    router = await start_router([speaker])
    answer = await router.http.post(path, json={**BODIES[path], "stream": True})
    assert texts_of(path, answer.content) == ANSWER
    assert ENDS[path] in answer.content
    (bill,) = await router.ledger()
    assert (bill["outcome"], bill["input_tokens"]) == ("ok", 2)
    assert bill["output_tokens"] >= 5


@every_stream
async def test_a_worker_that_gives_up_before_its_first_word_gives_a_plain_error(
    start_router: StartRouter, speaker: Speaker, path: str
) -> None:
    speaker.fail_at = 1
    router = await start_router([speaker])
    answer = await router.http.post(path, json={**BODIES[path], "stream": True})
    assert answer.status_code == 502
    assert "mock gave up" in error_of(path, answer.content)["message"]


@every_stream
async def test_the_cost_is_told_in_the_usage_of_a_stream_that_asks_for_it(
    start_router: StartRouter, speaker: Speaker, path: str
) -> None:
    router = await start_router([speaker])
    answer = await router.http.post(path, json={**BODIES[path], "stream": True, "usage": {"include": True}})
    told = [
        usage["cost"]
        for value in values_of(answer.content)
        if (usage := value.get("usage") or (value.get("response") or {}).get("usage")) and "cost" in usage
    ]
    assert told == [COST / 1e9]


async def test_one_conversation_goes_to_one_worker_through_whichever_dialect_it_comes(
    start_router: StartRouter, speakers: list[Speaker]
) -> None:
    router = await start_router(speakers)
    text = "All that follows has been said before. " * 100
    turn = [{"role": "user", "content": text}]
    names = set()
    for path, body in (
        (CHAT, {"model": "mock", "messages": turn}),
        (MESSAGES, {"model": "mock", "messages": turn, "max_tokens": 9}),
        (RESPONSES, {"model": "mock", "input": turn}),
    ):
        names.add((await router.http.post(path, json=body)).headers["x-m3-worker"])
    assert len(names) == 1
    reasons = [bill["reason"] for bill in await router.ledger()]
    assert reasons[:2] == ["prefix", "prefix"]


async def test_a_client_that_leaves_in_the_middle_is_billed_for_what_was_made_in_every_dialect(
    start_router: StartRouter, speaker: Speaker
) -> None:
    router = await start_router([speaker])
    for path in STREAMED:
        speaker.gate, speaker.gate_at = asyncio.Event(), 3
        speaker.aborted.clear()
        reader, writer = await router.raw(post({**BODIES[path], "stream": True}, path=path))
        await asyncio.wait_for(reader.readuntil(b"two "), 10)
        writer.transport.abort()
        await asyncio.wait_for(speaker.aborted.wait(), 10)
    await eventually(lambda: len(router.router._ledger.newest(9)) == len(STREAMED), "all are settled")
    for bill in await router.ledger():
        assert (bill["outcome"], bill["estimated"], bill["input_tokens"]) == ("client_gone", True, 2)
        assert bill["output_tokens"] >= 2
        assert bill["cost_nanousd"] == 2 * 300 + bill["output_tokens"] * 1200
