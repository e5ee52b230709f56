"""`/v1/chat/completions`: messages through the template, thinking apart from the answer, streams as whole answers."""

from typing import Any

import httpx
import openai
import pytest

from m3_fakes.http import sse_events
from m3_fakes.worker import CLOSING, END_OF_TURN, OPENING, FakeWorker

pytestmark = pytest.mark.either_way

USER = {"role": "user", "content": "hi"}
THOUGHT = [OPENING, *b"why", CLOSING, *b"yes", END_OF_TURN]


def ask(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json={"model": "fake", "messages": [USER], **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def stream(client: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "fake", "messages": [USER], "stream": True, **fields}
    return sse_events(client.post("/v1/chat/completions", json=body))


def test_messages_are_rendered_by_the_template(client: httpx.Client) -> None:
    messages = [{"role": "system", "content": "brief"}, {"role": "user", "content": [{"type": "text", "text": "hé"}]}]
    body = ask(client, messages=messages, max_tokens=1, return_token_ids=True)
    assert body["prompt_token_ids"] == list("system:brief\nuser:hé\nassistant:".encode())
    assert body["object"] == "chat.completion"


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "enabled"}},
        {"chat_template_kwargs": {"thinking_mode": "enabled"}},
        {"thinking": {"type": "enabled"}, "chat_template_kwargs": {"thinking_mode": "enabled"}},
    ],
)
def test_thinking_can_be_asked_for_in_two_ways(client: httpx.Client, fields: dict[str, Any]) -> None:
    body = ask(client, max_tokens=1, return_token_ids=True, **fields)
    assert body["prompt_token_ids"][-1] == OPENING


def test_thinking_is_returned_apart_from_the_answer(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = THOUGHT
    body = ask(client, max_tokens=50)
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "reasoning_content": "why", "content": "yes"}
    assert choice["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == len(THOUGHT)


def test_an_answer_without_thinking_has_no_reasoning_content(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = [*b"yes", END_OF_TURN]
    (choice,) = ask(client, max_tokens=50)["choices"]
    assert choice["message"] == {"role": "assistant", "content": "yes"}


def test_no_delta_of_a_stream_has_both_thinking_and_answer(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = THOUGHT
    events = stream(client, max_tokens=50, return_token_ids=True)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all(len(delta) <= 1 for delta in deltas[1:])
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "why"
    assert "".join(delta.get("content", "") for delta in deltas) == "yes"
    choices = [event["choices"][0] for event in events]
    assert [token for choice in choices for token in choice.get("token_ids", [])] == THOUGHT
    assert events[0]["prompt_token_ids"] == list(b"user:hi\nassistant:")
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


def test_a_stream_has_usage_only_if_asked_for_and_only_last(client: httpx.Client) -> None:
    assert all("usage" not in event for event in stream(client, max_tokens=4))
    *events, last = stream(client, max_tokens=4, stream_options={"include_usage": True})
    assert all("usage" not in event for event in events)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)


def test_log_probabilities_have_openai_s_form(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = ["é".encode()[0], END_OF_TURN]
    (choice,) = ask(client, max_tokens=4, logprobs=True, top_logprobs=1)["choices"]
    first, last = choice["logprobs"]["content"]
    top = [{"token": "\x00", "logprob": -1.0, "bytes": [0]}]
    assert first == {"token": "�", "logprob": -0.5, "bytes": [0xC3], "top_logprobs": top}
    assert last["token"] == "[e~["
    chosen_only = ask(client, max_tokens=1, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert chosen_only[0]["top_logprobs"] == []
    streamed = [event["choices"][0]["logprobs"] for event in stream(client, max_tokens=4, logprobs=True)]
    assert sum(len(part["content"]) for part in streamed if part) == 2


NS = "]<]minimax[>["
CALL = f'{NS}<tool_call>\n{NS}<invoke name="f">{NS}<a>x & <y>{NS}</a>{NS}<n>2{NS}</n>{NS}</invoke>\n{NS}</tool_call>'
PARAMETERS = {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}]


def say(worker: FakeWorker, text: str) -> None:
    """What the model answers from now on, and the end of its turn."""
    worker.runner.reply = [*worker.model.tokenizer.encode(text, add_special_tokens=False), END_OF_TURN]


def test_tool_calls_are_parsed_and_end_the_turn(worker: FakeWorker, client: httpx.Client) -> None:
    say(worker, f"Let me see.{CALL}")
    (choice,) = ask(client, tools=TOOLS)["choices"]
    (call,) = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": "Let me see."}
    assert (choice["finish_reason"], call["type"]) == ("tool_calls", "function")
    assert call["function"] == {"name": "f", "arguments": '{"a":"x & <y>","n":2}'}


def test_tool_calls_stream_with_id_and_name_first(worker: FakeWorker, client: httpx.Client) -> None:
    say(worker, CALL)
    choices = [event["choices"][0] for event in stream(client, tools=TOOLS)]
    first, *rest = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert first.pop("id").startswith("call_")
    assert first == {"index": 0, "type": "function", "function": {"name": "f", "arguments": ""}}
    assert all(call.keys() == {"index", "function"} and call["function"].keys() == {"arguments"} for call in rest)
    assert "".join(call["function"]["arguments"] for call in rest) == '{"a":"x & <y>","n":2}'
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["tool_calls"]


def test_a_call_that_a_limit_cuts_off_is_no_call_to_make(worker: FakeWorker, client: httpx.Client) -> None:
    say(worker, CALL)
    (choice,) = ask(client, tools=TOOLS, max_tokens=74)["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"a":"x')


def test_calls_are_text_without_tools_and_malformed_ones_with_them(worker: FakeWorker, client: httpx.Client) -> None:
    say(worker, CALL)
    assert ask(client)["choices"][0]["message"] == {"role": "assistant", "content": CALL}
    malformed = CALL.replace("invoke name", "call")
    say(worker, malformed)
    deltas = [event["choices"][0]["delta"] for event in stream(client, tools=TOOLS)]
    assert "".join(delta.get("content") or "" for delta in deltas) == malformed
    assert not any("tool_calls" in delta for delta in deltas)


def test_several_answers_stream_side_by_side(worker: FakeWorker, client: httpx.Client) -> None:
    say(worker, f"hm</mm:think>yes{CALL}")
    fields: dict[str, Any] = {"n": 2, "tools": TOOLS, "thinking": {"type": "enabled"}}
    body = ask(client, **fields)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    for index in (0, 1):
        message = body["choices"][index]["message"]
        choices = [event["choices"][0] for event in stream(client, **fields)]
        deltas = [choice["delta"] for choice in choices if choice["index"] == index]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"] == "hm"
        assert "".join(delta.get("content", "") for delta in deltas) == message["content"] == "yes"
    identities = {choice["message"]["tool_calls"][0]["id"] for choice in body["choices"]}
    assert len(identities) == 2


@pytest.mark.parametrize(
    ("fields", "last"),
    [
        ({"reasoning_effort": "none"}, CLOSING),
        ({"reasoning_effort": "minimal"}, CLOSING),
        ({"reasoning_effort": "high"}, OPENING),
        ({"reasoning_effort": "high", "thinking": {"type": "disabled"}}, CLOSING),
        ({}, ord(":")),
    ],
)
def test_an_effort_switches_thinking_where_nothing_else_does(
    client: httpx.Client, fields: dict[str, Any], last: int
) -> None:
    body = ask(client, max_tokens=1, return_token_ids=True, **fields)
    assert body["prompt_token_ids"][-1] == last


def test_max_completion_tokens_limits_the_answer(client: httpx.Client) -> None:
    assert ask(client, max_completion_tokens=3)["usage"]["completion_tokens"] == 3
    assert ask(client, max_completion_tokens=3, max_tokens=3)["usage"]["completion_tokens"] == 3


def test_tools_that_are_none_are_accepted(client: httpx.Client) -> None:
    ask(client, max_tokens=1, tools=[], tool_choice="none", parallel_tool_calls=True, modalities=["text"], n=1)


def test_the_openai_sdk_chats_and_streams(worker: FakeWorker) -> None:
    worker.runner.reply = THOUGHT
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as sdk:
        messages: list[Any] = [USER]
        whole = sdk.chat.completions.create(model="fake", messages=messages, max_completion_tokens=50)
        assert whole.choices[0].message.content == "yes"
        assert whole.choices[0].message.model_extra == {"reasoning_content": "why"}
        parts = sdk.chat.completions.create(
            model="fake", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        received = list(parts)
        assert "".join(part.choices[0].delta.content or "" for part in received[:-1]) == "yes"
        assert received[-1].usage == whole.usage
