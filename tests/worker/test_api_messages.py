"""Anthropic's dialect, spoken by Anthropic's own SDK: streaming, tools, thinking, counting, errors."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import MessageParam, ToolParam

from m3_fakes.http import wait_until
from m3_fakes.worker import END_OF_TURN, FakeWorker, StartWorker, running_worker

pytestmark = pytest.mark.either_way

HI: list[MessageParam] = [{"role": "user", "content": "hi"}]
NS = "]<]minimax[>["
CALL = (
    f'{NS}<tool_call>\n{NS}<invoke name="weather">{NS}<city>B & <co>{NS}</city>{NS}<days>2{NS}</days>'
    f"{NS}</invoke>\n{NS}</tool_call>"
)
WEATHER: ToolParam = {
    "name": "weather",
    "description": "the weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}


@pytest.fixture
def sdk(worker: FakeWorker) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=worker.url, api_key="none", max_retries=0) as client:
        yield client


def say(worker: FakeWorker, text: str) -> None:
    """What the model answers from now on, and the end of its turn."""
    worker.runner.reply = [*worker.model.tokenizer.encode(text, add_special_tokens=False), END_OF_TURN]


def send(sdk: anthropic.Anthropic, **fields: Any) -> anthropic.types.Message:
    message: anthropic.types.Message = sdk.messages.create(
        **{"model": "fake", "max_tokens": 225, "messages": HI, **fields}
    )
    return message


def blocks(message: anthropic.types.Message) -> list[dict[str, Any]]:
    """What was sent of the content; the SDK adds a field of its own to text that it parsed."""
    return [block.model_dump(exclude={"parsed_output"}) for block in message.content]


def streamed(sdk: anthropic.Anthropic, **fields: Any) -> tuple[list[str], anthropic.types.Message]:
    """The types of the events, and what the SDK makes of them all."""
    with sdk.messages.stream(**{"model": "fake", "max_tokens": 225, "messages": HI, **fields}) as stream:
        kinds = [event.type for event in stream]
        return kinds, stream.get_final_message()


def test_an_answer_is_one_block_of_text_and_its_usage_adds_up(worker: FakeWorker, sdk: anthropic.Anthropic) -> None:
    say(worker, "hello é")
    message = send(sdk, system="be brief", max_tokens=100)
    assert [block.model_dump() for block in message.content] == [{"type": "text", "text": "hello é", "citations": None}]
    assert (message.role, message.model, message.type) == ("assistant", "fake", "message")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    usage = message.usage
    assert usage.output_tokens == len("hello é".encode()) + 1
    counted = sdk.messages.count_tokens(model="fake", messages=HI, system="be brief").input_tokens
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted
    assert message._request_id


def test_a_stream_adds_up_to_the_whole_answer(worker: FakeWorker, sdk: anthropic.Anthropic) -> None:
    say(worker, "hello")
    whole = send(sdk)
    kinds, message = streamed(sdk)
    assert blocks(message) == blocks(whole)
    assert message.stop_reason == whole.stop_reason
    assert message.usage.output_tokens == whole.usage.output_tokens
    assert kinds[0] == "message_start"
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_the_events_of_a_stream_are_named_begin_with_a_ping_and_have_no_done(
    worker: FakeWorker, client: httpx.Client
) -> None:
    say(worker, "a")
    body = {"model": "fake", "max_tokens": 9, "messages": HI, "stream": True}
    response = client.post("/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [part.split("\n", 1) for part in response.text.strip().split("\n\n")]
    names = [name.removeprefix("event: ") for name, _ in events]
    assert names == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    for name, data in zip(names, (data for _, data in events), strict=True):
        assert json.loads(data.removeprefix("data: "))["type"] == name


def test_thinking_is_off_unless_it_is_asked_for(worker: FakeWorker, client: httpx.Client) -> None:
    def prompt(**fields: Any) -> str:
        counted = client.post("/v1/messages/count_tokens", json={"model": "fake", "messages": HI, **fields}).json()
        return str(counted["input_tokens"])

    off, on = prompt(), prompt(thinking={"type": "enabled", "budget_tokens": 1024})
    assert off == prompt(thinking={"type": "disabled"})
    assert on == prompt(thinking={"type": "enabled"})
    assert prompt(thinking={"type": "adaptive"}) != off


def test_thinking_is_a_block_of_its_own_before_the_answer(worker: FakeWorker, sdk: anthropic.Anthropic) -> None:
    say(worker, "hm, so</mm:think>yes")
    thinking = {"type": "enabled", "budget_tokens": 1024}
    whole = send(sdk, thinking=thinking)
    kinds, message = streamed(sdk, thinking=thinking)
    for found in (whole, message):
        first, second = found.content
        assert (first.type, second.type) == ("thinking", "text")
        assert first.type == "thinking"
        assert first.thinking == "hm, so"
        assert second.type == "text"
        assert second.text == "yes"
    assert blocks(whole) == blocks(message), "signatures too"
    assert kinds.count("content_block_start") == 2
    omitted = send(sdk, thinking={**thinking, "display": "omitted"})
    assert omitted.content[0].model_dump()["thinking"] == ""


def test_a_tool_is_called_and_its_result_is_taken(worker: FakeWorker, sdk: anthropic.Anthropic) -> None:
    say(worker, f"I look\n{CALL}")
    whole = send(sdk, tools=[WEATHER])
    _, message = streamed(sdk, tools=[WEATHER])
    for found in (whole, message):
        assert found.stop_reason == "tool_use"
        text, call = found.content
        assert text.type == "text"
        assert text.text.strip() == "I look"
        assert call.type == "tool_use"
        assert (call.name, call.input) == ("weather", {"city": "B & <co>", "days": 2})
    call = whole.content[1]
    assert call.type == "tool_use"
    say(worker, "sunny")
    messages = [
        *HI,
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sun"}]},
    ]
    assert send(sdk, tools=[WEATHER], messages=messages, max_tokens=50).content[0].model_dump()["text"] == "sunny"


def test_a_call_that_was_cut_off_has_no_input(worker: FakeWorker, sdk: anthropic.Anthropic) -> None:
    say(worker, CALL)
    message = send(sdk, tools=[WEATHER], max_tokens=90)
    assert message.stop_reason == "max_tokens"
    assert [block.model_dump()["input"] for block in message.content] == [{}]


@pytest.mark.parametrize(
    ("fields", "stop", "text"),
    [
        ({"max_tokens": 3}, ("max_tokens", None), "one"),
        ({"stop_sequences": ["never", "thr"]}, ("stop_sequence", "thr"), "one two "),
        ({}, ("end_turn", None), "one two three"),
    ],
)
def test_why_an_answer_ended_is_told(
    worker: FakeWorker, sdk: anthropic.Anthropic, fields: dict[str, Any], stop: tuple[str, str | None], text: str
) -> None:
    say(worker, "one two three")
    for message in (send(sdk, **fields), streamed(sdk, **fields)[1]):
        assert (message.stop_reason, message.stop_sequence) == stop
        assert message.content[0].model_dump()["text"] == text


CALLED = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {}}]}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "x"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens is null"),
        ({"max_tokens": 0}, "max_tokens is 0: must be greater than or equal to 1"),
        ({"temperature": 5.0}, "temperature is 5.0: must be less than or equal to 2"),
        ({"messages": []}, "messages is []"),
        ({"messages": [{"role": "root", "content": "x"}]}, 'messages[0].role is "root": must be user or assistant'),
        ({"messages": [*HI, {"role": "assistant", "content": "so"}]}, "messages[1] is the assistant's"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content is 5"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0] must be an object with a type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
            'messages[0].content[0].type is "document": only text, image, video and tool_result blocks',
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
            'messages[0].content[0].source.type is "file": must be base64 or url',
        ),
        (
            {"messages": [*HI, CALLED, {"role": "user", "content": [{"type": "text", "text": "x"}, RESULT]}]},
            "messages[2].content[1]: tool_result blocks must come before other content",
        ),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "messages[0].content[0]"),
        ({"messages": [*HI, CALLED, *HI]}, "t1"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "only custom tools"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema is required"),
        ({"tool_choice": {"type": "tool"}}, "name belongs to type tool"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ],
)
def test_a_bad_request_is_refused_in_anthropic_s_shape(
    client: httpx.Client, fields: dict[str, Any], message: str
) -> None:
    body = {"model": "fake", "max_tokens": 9, "messages": HI, **fields}
    response = client.post("/v1/messages", json=body, headers={"x-request-id": "r-1"})
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]
    assert response.json() == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": response.json()["error"]["message"]},
        "request_id": "r-1",
    }
    assert response.headers["request-id"] == "r-1"


def test_other_errors_have_anthropic_s_types(worker: FakeWorker, sdk: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="fake") as not_found:
        send(sdk, model="other")
    assert not_found.value.type == "not_found_error"
    with pytest.raises(anthropic.APIStatusError) as too_large:
        send(sdk, system="x" * 70_000)
    assert (too_large.value.status_code, too_large.value.type) == (413, "request_too_large")
    wrong = httpx.get(f"{worker.url}/v1/messages")
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()["type"]) == (405, "POST", "error")


def test_a_full_engine_is_overloaded() -> None:
    with (
        running_worker(max_concurrent=1, max_waiting=0) as worker,
        anthropic.Anthropic(base_url=worker.url, api_key="none", max_retries=0) as sdk,
        httpx.Client(base_url=worker.url, timeout=30) as client,
    ):
        worker.hold_steps()
        body = {"model": "fake", "max_tokens": 9, "messages": HI, "stream": True}
        with client.stream("POST", "/v1/messages", json=body):
            with pytest.raises(anthropic.OverloadedError) as full:
                send(sdk)
            assert full.value.response.headers["retry-after"] == "1"
            worker.reset()
        wait_until(lambda: worker.engine.in_flight_count == 0)


def test_an_engine_that_fails_in_mid_stream_is_an_error_event(start_worker: StartWorker) -> None:
    def fail(batch: object) -> None:
        raise RuntimeError("the device is gone")

    with start_worker() as worker, httpx.Client(base_url=worker.url, timeout=30) as client:
        gate = worker.hold_steps()
        gate.release()
        body = {"model": "fake", "max_tokens": 50, "messages": HI, "stream": True}
        with client.stream("POST", "/v1/messages", json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            assert next(lines) == "event: message_start"
            worker.runner.before_step = fail
            gate.release()
            rest = list(lines)
        assert rest[-2] == "event: error"
        error = json.loads(rest[-1].removeprefix("data: "))
        assert error["error"] == {"type": "api_error", "message": "the engine failed: RuntimeError: the device is gone"}
        assert error["request_id"] == response.headers["request-id"]
