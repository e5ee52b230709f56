"""OpenAI's own SDK against a worker of a tiny M3 that was never trained: what is promised holds whatever it says."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
import torch

from m3_fakes.worker import serving
from m3_routed import reached
from m3_worker.byte_vocabulary import BYTES, M3_TOKENS
from m3_worker.config import TinySettings, WorkerSettings
from m3_worker.loading import load_served_model
from m3_worker.serving import WorkerState
from m3_worker.tiny import write_checkpoint

pytestmark = [
    pytest.mark.either_way,
    pytest.mark.xdist_group("oracles"),  # torch's import takes seconds: once is enough
]

CONTEXT = 2048
USER = {"role": "user", "content": "What is the weather?"}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Zürich & Bern", "<Paris>"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "exact": {"type": "boolean"},
        "note": {"type": ["string", "null"], "maxLength": 6},
        "hours": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 23}, "maxItems": 2},
        "at": {"type": "object", "properties": {"lat": {"type": "number", "enum": [1.5, 2]}}, "required": ["lat"]},
    },
    "required": ["city", "days", "exact", "hours", "at"],
    "additionalProperties": False,
}
FORMAT = {
    "type": "object",
    "properties": {"sunny": {"type": "boolean"}, "wind": {"enum": ["none", "some"]}},
    "required": ["sunny", "wind"],
    "additionalProperties": False,
}
OPENING, CLOSING = (BYTES + [text for text, _ in M3_TOKENS].index(tag) for tag in ("<mm:think>", "</mm:think>"))
WEATHER = {"type": "function", "function": {"name": "weather", "description": "It rains.", "parameters": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_checkpoint(TinySettings(directory=directory, seed=5, layers=2, hidden=32, experts=4, context=CONTEXT))
    return directory


@pytest.fixture(scope="module")
def url(way: str, checkpoint: Path) -> Iterator[str]:
    torch.set_num_threads(1)
    with reached(way, lambda: untrained_worker(checkpoint), "tiny", context_tokens=CONTEXT) as url:
        yield url


@contextmanager
def untrained_worker(checkpoint: Path) -> Iterator[str]:
    settings = WorkerSettings(model=checkpoint, served_model_name="tiny", device="cpu", dtype="float32")
    model = load_served_model(settings, lambda read, needed: None)
    with serving(WorkerState(settings.max_body_bytes, model), model.engine) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(sdk: openai.OpenAI, **fields: Any) -> Any:
    body = {"model": "tiny", "messages": [USER], "max_completion_tokens": 700, "seed": 7, **fields}
    return sdk.chat.completions.create(**body)


def without_thinking(**fields: Any) -> dict[str, Any]:
    return {"extra_body": {"thinking": {"type": "disabled"}}, **fields}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_model_that_knows_nothing_calls_tools_with_valid_arguments(sdk: openai.OpenAI, choice: Any) -> None:
    fields = without_thinking(tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, n=2)
    answer = ask(sdk, **fields)
    assert len(answer.choices) == 2
    for one in answer.choices:
        assert one.finish_reason == "tool_calls"
        assert one.message.content is None
        (call,) = one.message.tool_calls
        assert (call.type, call.function.name) == ("function", "weather")
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_the_tool_that_is_named_is_called_and_no_other(sdk: openai.OpenAI) -> None:
    for seed in range(3):
        choice = {"type": "function", "function": {"name": "clock"}}
        answer = ask(sdk, **without_thinking(tools=[WEATHER, CLOCK], tool_choice=choice, seed=seed))
        (call,) = answer.choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("clock", "{}")


def test_calls_stream_as_name_first_and_fragments_that_join_to_what_the_whole_answer_has(sdk: openai.OpenAI) -> None:
    fields = without_thinking(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    (expected,) = ask(sdk, **fields).choices[0].message.tool_calls
    chunks = list(ask(sdk, **fields, stream=True))
    deltas = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    first, *rest = deltas
    assert (first.index, first.type, first.function.name, first.function.arguments) == (0, "function", "weather", "")
    assert first.id.startswith("call_")
    assert all(part.index == 0 and part.id is None and part.function.name is None for part in rest)
    assert "".join(part.function.arguments for part in rest) == expected.function.arguments
    assert len(rest) > 3
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_results_of_calls_are_taken_back(sdk: openai.OpenAI) -> None:
    fields = without_thinking(tools=[WEATHER, CLOCK])
    first = ask(sdk, **fields, tool_choice="required", parallel_tool_calls=False).choices[0].message
    (call,) = first.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain & <b>wind</b>"}
    later = ask(sdk, **fields, tool_choice="none", messages=[USER, first, result, USER], max_completion_tokens=20)
    assert later.choices[0].message.tool_calls is None
    with pytest.raises(openai.BadRequestError, match="has no tool call of this id"):
        ask(sdk, **fields, messages=[USER, first, {**result, "tool_call_id": "other"}])
    with pytest.raises(openai.BadRequestError, match="every call needs one"):
        ask(sdk, **fields, messages=[USER, first, USER])


@pytest.mark.parametrize("thinking", ["disabled", "adaptive"])
def test_structured_output_validates(sdk: openai.OpenAI, thinking: str) -> None:
    answer = ask(
        sdk,
        response_format={"type": "json_schema", "json_schema": {"name": "weather", "schema": FORMAT}},
        logit_bias={str(OPENING): -100},  # thinking might not end in time
        extra_body={"thinking": {"type": thinking}},
    )
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content), FORMAT)


def test_the_format_holds_from_the_end_of_thinking_on(sdk: openai.OpenAI) -> None:
    fields: dict[str, Any] = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": FORMAT}},
        "logit_bias": {str(CLOSING): 2.0},  # or it would think for long
        "extra_body": {"thinking": {"type": "enabled"}},
    }
    message = ask(sdk, **fields).choices[0].message
    jsonschema.validate(json.loads(message.content), FORMAT)
    assert message.reasoning_content
    chunks = list(ask(sdk, **fields, stream=True))
    deltas = [chunk.choices[0].delta.model_dump(exclude_none=True) for chunk in chunks[1:]]
    assert not any("content" in delta and "reasoning_content" in delta for delta in deltas)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message.reasoning_content
    assert "".join(delta.get("content", "") for delta in deltas) == message.content


def test_the_second_identical_prompt_is_cached_and_usage_adds_up(sdk: openai.OpenAI) -> None:
    messages = [{"role": "root", "content": "r" * 400}, USER]
    usages = [ask(sdk, messages=messages, max_completion_tokens=5).usage for _ in range(2)]
    assert all(one.total_tokens == one.prompt_tokens + one.completion_tokens for one in usages)
    assert usages[1].prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 5.0}, "temperature is 5.0: must be less than or equal to 2"),
        ({"max_completion_tokens": -1}, "max_completion_tokens is -1: must be greater than or equal to 1"),
        ({"max_completion_tokens": 524_289}, "max_completion_tokens is 524289: with"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice names 'x'"),
        ({"messages": [USER, {"role": "system", "content": "x"}]}, "can only open the conversation"),
    ],
)
def test_what_is_wrong_is_a_bad_request_to_the_sdk(
    sdk: openai.OpenAI, way: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(sdk, **fields)
    if way == "routed" and "x-m3-worker" not in refused.value.response.headers:
        (message, *_) = fields  # a router has its own words for what it finds itself
    assert message in refused.value.message


def test_fields_that_nobody_knows_are_accepted(url: str) -> None:
    body = {"model": "tiny", "messages": [{**USER, "x": 1}], "max_tokens": 1, "x": {"y": 1}, "user": "u"}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).status_code == 200
