"""Reading usage out of answers, and the one event that is taken out of a stream."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_router.bodies.dialects import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Dialect
from m3_router.bodies.usage import MAX_EVENT_BYTES, BodyTail, EventStream, usage_of_body, usage_of_tail, with_cost
from m3_router.money.bill import Usage


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


TOKENS = [event(choices=[{"delta": {"content": f't{n} "usage" [DONE]'}}]) for n in range(3)]
COMMENT = b": keep-alive\n\n"
USAGE = event(
    choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
)
DONE = b"data: [DONE]\n\n"
STREAM = b"".join([*TOKENS, COMMENT, USAGE, DONE])
CLIENT = b"".join([*TOKENS, COMMENT, DONE])


def named(name: str, **fields: object) -> bytes:
    return f"event: {name}\n".encode() + event(type=name, **fields)


def relay(pieces: list[bytes], *, added: bool = False, dialect: Dialect = CHAT) -> tuple[bytes, EventStream]:
    stream = EventStream(dialect, added, include_cost=False)
    out = b"".join([stream.feed(piece) for piece in pieces])
    return out + stream.finish(), stream


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_wherever_a_stream_is_cut_the_usage_event_alone_is_missing(cut: int) -> None:
    out, stream = relay([piece for piece in (STREAM[:cut], STREAM[cut:]) if piece], added=True)
    assert out == CLIENT
    assert stream.usage == Usage(7, 2, 0, 3)
    assert stream.is_complete


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cut_into_any_pieces_the_bytes_are_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert relay(pieces, added=True)[0] == CLIENT
    assert relay(pieces, added=False)[0] == STREAM


def test_one_byte_at_a_time_counts_the_same_events() -> None:
    pieces = [STREAM[i : i + 1] for i in range(len(STREAM))]
    out, stream = relay(pieces, added=True)
    assert (out, stream.events, stream.usage) == (CLIENT, 3, Usage(7, 2, 0, 3))


def test_carriage_returns_are_relayed_as_they_came() -> None:
    crlf = STREAM.replace(b"\n", b"\r\n")
    assert relay([crlf], added=True)[0] == CLIENT.replace(b"\n", b"\r\n")


def test_usage_beside_a_choice_is_read_and_kept() -> None:
    last = event(choices=[{"delta": {}, "finish_reason": "stop"}], usage={"prompt_tokens": 1, "completion_tokens": 2})
    out, stream = relay([last, DONE], added=True)
    assert (out, stream.usage) == (last + DONE, Usage(1, 0, 0, 2))


def test_a_null_usage_in_every_event_is_no_usage() -> None:
    chunk = event(choices=[], usage=None)
    out, stream = relay([chunk], added=True)
    assert (out, stream.usage) == (chunk, None)


def test_an_event_without_an_end_is_given_back_at_the_end() -> None:
    out, _ = relay([TOKENS[0] + b'data: {"half'], added=True)
    assert out == TOKENS[0] + b'data: {"half'


def test_an_event_too_long_to_hold_passes_and_the_next_is_read_again() -> None:
    long = b"data: " + b"x" * (MAX_EVENT_BYTES + 10)
    stream = EventStream(CHAT, True, include_cost=False)
    first = stream.feed(long)
    assert len(first) == len(long) - 3
    assert stream.boundary() == b"\n\n"
    rest = stream.feed(b"yy\n") + stream.feed(b"\n" + USAGE + DONE)
    assert first + rest == long + b"yy\n\n" + DONE
    assert stream.usage == Usage(7, 2, 0, 3)


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage":{"prompt_tokens":5,"completion_tokens":1}}', Usage(5, 0, 0, 1)),
        (b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":null}}', Usage(5, 0, 0, 0)),
        (b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":9}}}', Usage(5, 5, 0, 0)),
        (
            b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":2,"cache_write_tokens":3}}}',
            Usage(5, 2, 3, 0),
        ),
        (b'{"usage":{"prompt_tokens":-5}}', None),
        (b'{"usage":null}', None),
        (b"{}", None),
        (b"not json", None),
        (b'{"a":' + b"[" * 100_000, None),
    ],
)
def test_the_usage_of_a_body(body: bytes, usage: Usage | None) -> None:
    assert usage_of_body(CHAT, body) == usage


RESPONSE_USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2, "cache_write_tokens_details": {"ttl": 1}},
    "output_tokens": 6,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 15,
}
MESSAGE_USAGE = {"input_tokens": 3, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 4, "output_tokens": 6}


@pytest.mark.parametrize(
    ("dialect", "usage", "meaning"),
    [
        (EMBEDDINGS, {"prompt_tokens": 4, "total_tokens": 4}, Usage(4, 0, 0, 0)),
        (RESPONSES, RESPONSE_USAGE, Usage(9, 4, 2, 6)),
        (MESSAGES, MESSAGE_USAGE, Usage(9, 4, 2, 6)),
        (MESSAGES, {"input_tokens": 3, "cache_read_input_tokens": None, "output_tokens": 6}, Usage(3, 0, 0, 6)),
        (MESSAGES, {"output_tokens": 6}, None),
    ],
)
def test_a_usage_means_what_its_dialect_says(dialect: Dialect, usage: dict[str, object], meaning: Usage | None) -> None:
    body = json.dumps({"content": 'a "usage": {"input_tokens": 99}', "usage": usage, "model": "m"}).encode()
    assert usage_of_body(dialect, body) == meaning
    tail = BodyTail(dialect)
    assert tail.feed(body) is body
    assert tail.usage == meaning


def test_the_usage_of_a_long_body_is_found_in_its_tail_and_not_in_its_text() -> None:
    fake = json.dumps({"text": '"usage": {"prompt_tokens": 99}'})[1:-1].encode()
    tail = BodyTail(CHAT)
    for _ in range(2000):
        tail.feed(b"xyz")
    tail.feed(
        b'..."usage" : {"prompt_tokens": 8, "x": "}", "prompt_tokens_details": {"cached_tokens": 1}}, ' + fake + b"}"
    )
    assert tail.usage == Usage(8, 1, 0, 0)
    assert usage_of_tail(CHAT, fake) is None


def anthropic_stream(start: dict[str, object], end: dict[str, object]) -> list[bytes]:
    return [
        named("message_start", message={"id": "m", "usage": start}),
        named("ping"),
        named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *[named("content_block_delta", index=0, delta={"type": "text_delta", "text": f"t{n}"}) for n in range(3)],
        named("content_block_stop", index=0),
        named("message_delta", delta={"stop_reason": "end_turn"}, usage=end),
        named("message_stop"),
    ]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (MESSAGE_USAGE, {"output_tokens": 6}),
        (MESSAGE_USAGE | {"output_tokens": 1}, {"input_tokens": 0, "output_tokens": 6}),
        ({"input_tokens": 9, "output_tokens": 0}, MESSAGE_USAGE),
        ({"input_tokens": 0, "output_tokens": 0}, MESSAGE_USAGE),
    ],
)
def test_anthropics_usage_is_what_its_end_says_and_its_beginning_where_that_says_nothing(
    start: dict[str, object], end: dict[str, object]
) -> None:
    events = anthropic_stream(start, end)
    for pieces in (events, [b"".join(events)], [bytes([byte]) for byte in b"".join(events)]):
        out, stream = relay(pieces, dialect=MESSAGES)
        assert out == b"".join(events)
        assert (stream.usage, stream.events, stream.is_complete) == (Usage(9, 4, 2, 6), 3, True)


def test_what_anthropic_says_of_the_input_is_known_before_the_end() -> None:
    _, stream = relay(anthropic_stream(MESSAGE_USAGE, {"output_tokens": 6})[:5], dialect=MESSAGES)
    assert (stream.usage, stream.begun, stream.is_complete) == (None, Usage(9, 4, 2, 6), False)


def response_stream(last: str, **response: object) -> list[bytes]:
    begun = {"id": "r", "error": None, "tools": [{"usage": {"type": "object"}}], "usage": None}
    return [
        named("response.created", response=begun),
        named("response.output_item.added", output_index=0, item={"type": "message"}),
        *[named("response.output_text.delta", delta=f"t{n}") for n in range(3)],
        named("response.output_text.done", text="t0t1t2"),
        named(last, response={**begun, **response}),
    ]


@pytest.mark.parametrize("last", ["response.completed", "response.incomplete"])
def test_the_usage_of_a_response_is_in_the_event_that_ends_it(last: str) -> None:
    events = response_stream(last, usage=RESPONSE_USAGE)
    for pieces in (events, [b"".join(events)], [bytes([byte]) for byte in b"".join(events)]):
        out, stream = relay(pieces, dialect=RESPONSES)
        assert out == b"".join(events)
        assert (stream.usage, stream.events, stream.is_complete) == (Usage(9, 4, 2, 6), 3, True)


def test_the_end_of_a_response_too_long_to_hold_is_read_from_its_tail() -> None:
    events = response_stream("response.completed", output=["x" * (MAX_EVENT_BYTES + 10)], usage=RESPONSE_USAGE)
    whole = b"".join(events)
    out, stream = relay([whole[at : at + 65536] for at in range(0, len(whole), 65536)], dialect=RESPONSES)
    assert out == whole
    assert (stream.usage, stream.is_complete) == (Usage(9, 4, 2, 6), True)


FAILURES = [
    (CHAT, event(error={"message": "engine failed"})),
    (COMPLETIONS, event(error="engine failed")),
    (MESSAGES, named("error", error={"type": "api_error"})),
    (RESPONSES, named("error", message="engine failed")),
    (RESPONSES, named("response.failed", response={"error": {"code": "server_error"}, "usage": None})),
]


@pytest.mark.parametrize(("dialect", "failure"), FAILURES)
def test_a_workers_own_error_is_held_until_its_stream_is_over(dialect: Dialect, failure: bytes) -> None:
    begun = TOKENS[0] if dialect in (CHAT, COMPLETIONS) else named("ping")
    for pieces in ([begun, failure], [begun + failure], [bytes([byte]) for byte in begun + failure]):
        stream = EventStream(dialect, is_usage_added=False, include_cost=False)
        assert b"".join([stream.feed(piece) for piece in pieces]) == begun
        assert (stream.failure, stream.is_complete) == (failure, False)
        assert stream.finish() == failure


def test_after_an_error_there_is_no_done_but_what_goes_on_goes_on() -> None:
    failure = FAILURES[0][1]
    out, stream = relay([TOKENS[0] + failure, COMMENT + DONE])
    assert (out, stream.is_complete) == (TOKENS[0] + failure, False)
    out, stream = relay([TOKENS[0] + failure, TOKENS[1] + DONE])
    assert (out, stream.is_complete, stream.failure) == (TOKENS[0] + failure + TOKENS[1] + DONE, True, b"")


def test_an_error_that_is_null_is_none() -> None:
    chunk = event(choices=[{"delta": {"content": "a"}}], error=None)
    out, stream = relay([chunk, DONE])
    assert (out, stream.is_complete, stream.events) == (chunk + DONE, True, 1)


def test_a_stream_that_stops_without_its_end_is_not_complete() -> None:
    assert not relay(TOKENS)[1].is_complete
    assert not relay([*TOKENS, USAGE])[1].is_complete
    assert not relay(anthropic_stream(MESSAGE_USAGE, {"output_tokens": 6})[:-1], dialect=MESSAGES)[1].is_complete


def test_a_server_that_says_in_each_event_that_it_has_no_usage_is_relayed_alike() -> None:
    chunk = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'
    out, stream = relay([chunk, chunk + chunk, USAGE, DONE], added=True)
    assert (out, stream.events, stream.usage) == (chunk * 3 + DONE, 3, Usage(7, 2, 0, 3))


@pytest.mark.parametrize(
    ("dialect", "events"),
    [
        (CHAT, [*TOKENS, USAGE, DONE]),
        (RESPONSES, response_stream("response.completed", usage=RESPONSE_USAGE)),
        (MESSAGES, anthropic_stream(MESSAGE_USAGE, {"output_tokens": 6})),
    ],
    ids=["chat", "responses", "messages"],
)
def test_the_usage_event_tells_its_cost_to_who_asked(dialect: Dialect, events: list[bytes]) -> None:
    stream = EventStream(dialect, is_usage_added=False, include_cost=True)
    stream.cost = lambda usage: 1_000_000_000 * usage.output_tokens + usage.input_tokens
    out = b"".join([stream.feed(one) for one in events])
    assert stream.usage is not None
    priced = b', "cost":%d.%09d}' % (stream.usage.output_tokens, stream.usage.input_tokens)
    assert out.replace(priced.replace(b", ", b","), b"}") == b"".join(events)
    assert out.count(b'"cost"') == 1


def test_a_whole_answer_tells_its_cost_as_a_number_with_nine_decimals() -> None:
    body = b'{"usage_":{"usage":{"prompt_tokens":1}}, "usage" : {"prompt_tokens":1 } ,"x":1}'
    priced = b'{"usage_":{"usage":{"prompt_tokens":1}}, "usage" : {"prompt_tokens":1,"cost":0.000000070} ,"x":1}'
    assert with_cost(CHAT, body, 70) == priced
    assert with_cost(EMBEDDINGS, b'{"usage":{"prompt_tokens":1}}', 12_000_000_001).endswith(b',"cost":12.000000001}}')


@pytest.mark.parametrize("body", [b"{}", b'{"usage":null}', b'{"usage":{}}', b"[]", b"no"])
def test_an_answer_without_a_usage_has_no_cost(body: bytes) -> None:
    assert with_cost(CHAT, body, 70) is body


def test_events_are_rewritten_before_they_are_read() -> None:
    stream = EventStream(CHAT, is_usage_added=False, include_cost=False)
    stream.rewrite = lambda one: b"" if b"t0" in one else one.replace(b'"prompt_tokens": 7', b'"prompt_tokens": 5')
    out = b"".join([stream.feed(piece) for piece in (TOKENS[0] + TOKENS[1], TOKENS[2], USAGE, DONE)])
    assert out == TOKENS[1] + TOKENS[2] + USAGE.replace(b": 7", b": 5") + DONE
    assert (stream.usage, stream.events, stream.is_complete) == (Usage(5, 2, 0, 3), 3, True)
