"""OpenAI's Responses, spoken by OpenAI's own SDK: items, tools, thinking, events in order, and no memory."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from m3_fakes.worker import END_OF_TURN, FakeWorker, StartWorker

pytestmark = pytest.mark.either_way

NS = "]<]minimax[>["
CALL = (
    f'{NS}<tool_call>\n{NS}<invoke name="weather">{NS}<city>Bern{NS}</city>{NS}<days>2{NS}</days>'
    f"{NS}</invoke>\n{NS}</tool_call>"
)
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}


@pytest.fixture
def sdk(worker: FakeWorker) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def say(worker: FakeWorker, text: str) -> None:
    """What the model answers from now on, and the end of its turn."""
    worker.runner.reply = [*worker.model.tokenizer.encode(text, add_special_tokens=False), END_OF_TURN]


def ask(sdk: openai.OpenAI, **fields: Any) -> Response:
    response: Response = sdk.responses.create(**{"model": "fake", "input": "hi", **fields})
    return response


def streamed(sdk: openai.OpenAI, **fields: Any) -> tuple[list[Any], Response]:
    """The events, and the response of the last one."""
    events = list(sdk.responses.create(**{"model": "fake", "input": "hi", "stream": True, **fields}))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    return events, events[-1].response


def comparable(response: Response) -> list[dict[str, Any]]:
    """The items without their ids, of which only a call's `call_id` means something to the model."""
    return [{**item.model_dump(exclude={"id", "call_id", "parsed"})} for item in response.output]


def test_an_answer_is_one_message_and_its_usage_adds_up(worker: FakeWorker, sdk: openai.OpenAI) -> None:
    say(worker, "hello é")
    response = ask(sdk, instructions="be brief", metadata={"a": "b"})
    assert response.output_text == "hello é"
    assert (response.object, response.status, response.error, response.model) == ("response", "completed", None, "fake")
    assert (response.instructions, response.metadata, response.temperature) == ("be brief", {"a": "b"}, 0.0)
    assert response.model_dump()["store"] is False
    usage = response.usage
    assert usage is not None
    assert usage.output_tokens == len("hello é".encode()) + 1
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"instructions": "be brief", "reasoning": {"effort": "high"}},
        {"tools": [WEATHER], "input": [{"role": "user", "content": [{"type": "input_text", "text": "h\u00e9"}]}]},
    ],
)
def test_input_is_counted_as_it_is_then_billed(worker: FakeWorker, sdk: openai.OpenAI, fields: dict[str, Any]) -> None:
    say(worker, "a")
    asked = {"model": "fake", "input": "hi", **fields}
    counted = sdk.responses.input_tokens.count(**asked)
    assert counted.object == "response.input_tokens"
    usage = ask(sdk, **fields).usage
    assert usage is not None
    assert counted.input_tokens == usage.input_tokens


def test_what_cannot_be_served_is_not_counted_either(client: httpx.Client) -> None:
    body = {"model": "fake", "input": "hi", "previous_response_id": "resp_1"}
    response = client.post("/v1/responses/input_tokens", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "previous_response_id"


def test_a_stream_adds_up_to_the_whole_answer(worker: FakeWorker, sdk: openai.OpenAI) -> None:
    say(worker, "hello")
    whole = ask(sdk)
    events, response = streamed(sdk)
    assert comparable(response) == comparable(whole)
    assert response.usage is not None
    assert whole.usage is not None
    assert response.usage.output_tokens == whole.usage.output_tokens
    assert [kind for kind, _ in itertools.groupby(event.type for event in events)] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "hello"
    assert events[2].item.content == [], "nothing is in it when it is added"


def test_the_sdk_s_own_stream_helper_is_content(worker: FakeWorker, sdk: openai.OpenAI) -> None:
    say(worker, f"let me{CALL}")
    with sdk.responses.stream(model="fake", input="hi", tools=[WEATHER]) as stream:  # type: ignore[list-item]
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call"]


def test_thinking_is_off_unless_an_effort_is_asked_for(worker: FakeWorker, sdk: openai.OpenAI) -> None:
    def prompt_tokens(**fields: Any) -> int:
        usage = ask(sdk, max_output_tokens=1, **fields).usage
        assert usage is not None
        return usage.input_tokens

    off = prompt_tokens()
    assert off == prompt_tokens(reasoning={"effort": "none"})
    on = prompt_tokens(extra_body={"thinking": {"type": "enabled"}})
    assert on == prompt_tokens(reasoning={"effort": "low"}) == prompt_tokens(reasoning={"effort": "high"})
    say(worker, "hm, so</mm:think>yes")
    whole = ask(sdk, reasoning={"effort": "high"})
    events, response = streamed(sdk, reasoning={"effort": "high"})
    for found in (whole, response):
        thought, said = found.output
        assert thought.type == "reasoning"
        assert thought.content is not None
        assert thought.content[0].text == "hm, so"
        assert said.type == "message"
        assert found.output_text == "yes"
        assert found.usage is not None
        assert found.usage.output_tokens_details.reasoning_tokens == len("hm, so")
    assert comparable(whole) == comparable(response)
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == "hm, so"


def test_a_tool_is_called_and_its_output_is_taken(worker: FakeWorker, sdk: openai.OpenAI) -> None:
    say(worker, CALL)
    whole = ask(sdk, tools=[WEATHER])
    events, response = streamed(sdk, tools=[WEATHER])
    assert comparable(whole) == comparable(response)
    call = whole.output[-1]
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Bern", "days": 2})
    fragments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(fragments)) == {"city": "Bern", "days": 2}
    say(worker, "sunny")
    items = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        *(item.model_dump() for item in whole.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "sun"},
    ]
    assert ask(sdk, input=items, tools=[WEATHER]).output_text == "sunny"


def test_an_answer_that_was_cut_off_is_incomplete(worker: FakeWorker, sdk: openai.OpenAI) -> None:
    say(worker, "one two three")
    for response in (ask(sdk, max_output_tokens=3), streamed(sdk, max_output_tokens=3)[1]):
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert [item.model_dump()["status"] for item in response.output] == ["incomplete"]
        assert response.output_text == "one"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"previous_response_id": "resp_1"}, 'previous_response_id is "resp_1": this worker stores nothing'),
        ({"conversation": "c"}, "this worker stores nothing"),
        ({"background": True}, "background is true: this worker stores nothing"),
        ({"truncation": "auto"}, 'truncation is "auto": this worker leaves out nothing'),
        ({"input": None}, "input"),
        ({"input": []}, "messages must be a list with at least one message"),
        ({"input": [5]}, "input[0] is 5: must be an object"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0] refers to a stored item"),
        ({"input": [{"type": "file_search_call"}]}, 'input[0].type is "file_search_call": only message, reasoning'),
        ({"input": [{"role": "root", "content": "x"}]}, 'input[0].role is "root": must be one of user'),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]},
            "input[0].arguments is not valid JSON",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[1]"}]},
            "must be a JSON object",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0]"),
        ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"temperature": 5.0}, "temperature is 5.0: must be less than or equal to 2"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"reasoning": {"effort": "some"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "schema is required for json_schema"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(client: httpx.Client, fields: dict[str, Any], message: str) -> None:
    response = client.post("/v1/responses", json={"model": "fake", "input": "hi", **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


def test_an_engine_that_fails_in_mid_stream_is_a_failed_response(start_worker: StartWorker) -> None:
    def fail(batch: object) -> None:
        raise RuntimeError("the device is gone")

    with (
        start_worker() as worker,
        openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as sdk,
    ):
        gate = worker.hold_steps()
        gate.release()
        events = iter(sdk.responses.create(model="fake", input="hi", stream=True))
        assert next(events).type == "response.created"
        worker.runner.before_step = fail
        gate.release()
        *_, last = events
        assert last.type == "response.failed"
        assert last.response.status == "failed"
        assert last.response.error is not None
        assert last.response.error.message == "the engine failed: RuntimeError: the device is gone"
