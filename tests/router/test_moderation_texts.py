"""What is text in requests, answers and streams of every dialect, and what is not."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_router.bodies.texts import MAX_EVENT_BYTES, StreamTexts, answer_text, request_text
from m3_router.errors import Refusal

IMAGE = "data:image/png;base64," + "QUJD" * 10


def lines(body: dict[str, Any]) -> list[str]:
    return request_text(json.dumps(body).encode()).split("\n")


def test_a_chat_is_read_with_tools_thinking_calls_and_results() -> None:
    body = {
        "model": "m3",
        "user": "user-7",
        "stop": ["never"],
        "messages": [
            {"role": "system", "content": "be kind"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "what is this?"},
                    {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "a picture",
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "a cat"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "look",
                    "description": "looks",
                    "parameters": {"type": "object", "properties": {"secret word": {"type": "string"}}},
                },
            }
        ],
    }
    schema = '{"type":"object","properties":{"secret word":{"type":"string"}}}'
    conversation = ["be kind", "what is this?", "a picture", "look", '{"at": "it"}', "a cat"]
    assert lines(body) == ["look", "looks", schema, *conversation]


def test_a_body_of_messages_is_read_with_its_blocks() -> None:
    body = {
        "model": "m3",
        "max_tokens": 5,
        "metadata": {"user_id": "u"},
        "system": [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"poison": ["a", "b"]}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_1",
                        "content": [
                            {"type": "text", "text": "a cat"},
                            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
                        ],
                    },
                    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a letter"}},
                ],
            },
        ],
    }
    assert lines(body) == ["be kind", "hi", "hm", "look", '{"poison":["a","b"]}', "a cat", "a letter"]


def test_responses_are_read_with_their_items() -> None:
    body = {
        "model": "m3",
        "instructions": "be kind",
        "input": [
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": IMAGE}],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "a cat"},
        ],
    }
    assert lines(body) == ["be kind", "hi", "hm", "look", "{}", "a cat"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": "m", "prompt": "one"}, ["one"]),
        ({"model": "m", "prompt": ["one", "two"], "suffix": "end"}, ["one", "two", "end"]),
        ({"model": "m", "input": "one"}, ["one"]),
        ({"model": "m", "input": ["one", "two"]}, ["one", "two"]),
        ({"model": "m", "messages": [], "chat_template_kwargs": {"persona": "x"}}, ['{"persona":"x"}']),
        ({"model": "m"}, [""]),
    ],
)
def test_prompts_and_inputs_are_read(body: dict[str, Any], expected: list[str]) -> None:
    assert lines(body) == expected


@pytest.mark.parametrize(
    ("name", "value"), [("prompt", [1, 2]), ("prompt", [[1], [2]]), ("prompt", ["a", [1]]), ("input", [3])]
)
def test_token_ids_are_refused_because_nobody_can_read_them(name: str, value: list[Any]) -> None:
    with pytest.raises(Refusal) as refused:
        lines({"model": "m", name: value})
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "unmoderated_token_ids", name)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff", b'{"prompt": ' + b"[" * 100_000])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        request_text(body)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


def test_deep_nesting_is_read_without_recursion() -> None:
    depth = 400
    body = b'{"messages": ' + b'[{"content": ' * depth + b'"deep"' + b"}]" * depth + b"}"
    assert request_text(body) == "deep"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "model": "m3",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "logprobs": {"content": [{"token": "x"}]},
                        "message": {"role": "assistant", "content": "one", "reasoning_content": "hm"},
                    },
                    {
                        "index": 1,
                        "message": {"tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
                    },
                ],
            },
            "one\nhm\nf\n{}",
        ),
        ({"choices": [{"text": "one", "index": 0}]}, "one"),
        (
            {"type": "message", "stop_reason": "end_turn", "content": [{"type": "text", "text": "one"}]},
            "one",
        ),
        (
            {
                "status": "completed",
                "instructions": "not its own",
                "output": [
                    {"type": "message", "status": "completed", "content": [{"type": "output_text", "text": "one"}]},
                    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                ],
            },
            "one\nf\n{}",
        ),
        ({"data": [{"embedding": [0.1]}]}, ""),
    ],
    ids=["chat", "completions", "messages", "responses", "embeddings"],
)
def test_answers_are_read(answer: dict[str, Any], expected: str) -> None:
    assert answer_text(json.dumps(answer).encode()) == expected


def test_an_answer_that_is_no_json_is_text() -> None:
    assert answer_text(b"plain \xff words") == "plain \ufffd words"


def event(data: object, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"


def delta(text: str, index: int = 0, field: str = "content") -> bytes:
    return event({"id": "x", "choices": [{"index": index, "delta": {"role": "assistant", field: text}}]})


STREAMS = {
    "chat": (
        b": keep-alive\n\n"
        + delta("Hel")
        + delta("lo")
        + event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"name": "f"}}]}}]})
        + event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]}}]})
        + event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}}]})
        + event({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
        + event({"choices": [], "usage": {"prompt_tokens": 1}})
        + b"data: [DONE]\n\n",
        'Hello\nf\n{"a":1}',
    ),
    "completions": (event({"choices": [{"index": 0, "text": "Hel"}]}) + event({"choices": [{"text": "lo"}]}), "Hello"),
    "messages": (
        event({"type": "message_start", "message": {"id": "msg", "model": "m3", "content": []}}, "message_start")
        + event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        + event({"type": "ping"}, "ping")
        + event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}})
        + event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}})
        + event({"type": "content_block_stop", "index": 0})
        + event(
            {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "f"}}
        )
        + event(
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}}
        )
        + event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}})
        + event({"type": "message_stop"}, "message_stop"),
        "Hello\nf\n{}",
    ),
    "responses": (
        event({"type": "response.created", "response": {"id": "r", "instructions": "not its own"}})
        + event(
            {"type": "response.output_item.added", "output_index": 0, "item": {"type": "function_call", "name": "f"}}
        )
        + event({"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "Hel"})
        + event({"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "lo"})
        + event({"type": "response.output_text.done", "output_index": 1, "content_index": 0, "text": "Hello"})
        + event({"type": "response.completed", "response": {"output": [{"content": [{"text": "Hello"}]}]}}),
        "f\nHello",
    ),
}


@pytest.mark.parametrize("dialect", STREAMS)
@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 1500), max_size=8), has_crlf=st.booleans())
def test_streams_are_read_wherever_they_are_cut(dialect: str, cuts: list[int], has_crlf: bool) -> None:
    stream, expected = STREAMS[dialect]
    if has_crlf:
        stream = stream.replace(b"\n", b"\r\n")
    texts = StreamTexts(10**6, 100)
    places = [0, *sorted(cuts), len(stream)]
    for start, end in pairwise(places):
        texts.feed(stream[start:end])
    assert texts.window() is None
    assert texts.rest() == expected
    assert texts.rest() is None


def test_a_window_is_due_after_so_much_text_and_begins_with_the_end_of_the_last() -> None:
    texts = StreamTexts(10, 4)
    texts.feed(delta("12345") + delta("6789"))
    assert texts.window() is None
    texts.feed(delta("0"))
    assert texts.window() == "1234567890"
    assert texts.window() is None
    texts.feed(delta("abc"))
    assert texts.window() is None
    assert texts.rest() == "7890abc"


def test_answers_that_grow_side_by_side_are_not_mixed() -> None:
    texts = StreamTexts(6, 2)
    for letter in "abc":
        texts.feed(delta(letter, 0) + delta(letter.upper(), 1))
    assert texts.window() == "abc\nABC"
    texts.feed(delta("d", 0) + delta("hm", 0, "reasoning_content"))
    assert texts.rest() == "bcd\nhm"


def test_events_that_cannot_be_read_are_shown_as_they_are() -> None:
    texts = StreamTexts(10**9, 0)
    texts.feed(b"data: not json\n\ndata: [1]\n\n")
    assert texts.rest() == "not json[1]"


def test_an_event_too_long_to_hold_is_shown_in_pieces() -> None:
    texts = StreamTexts(10**9, 0)
    long = b'data: {"choices": [{"text": "' + b"x" * MAX_EVENT_BYTES
    texts.feed(long)
    texts.feed(b'the end"}]}\n\n')
    texts.feed(delta("next"))
    shown = texts.rest()
    assert shown is not None
    assert shown.replace("\n", "").startswith('data: {"choices": [{"text": "xxxx')
    assert 'the end"}]}' in shown
    assert shown.endswith("next")
    assert len(texts._pending) == 0
