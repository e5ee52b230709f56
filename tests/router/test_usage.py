"""Reading usage out of answers, and the one event that is taken out of a stream."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_router.bill import Usage
from m3_router.usage import MAX_EVENT_BYTES, BodyTail, EventStream, usage_of_body, usage_of_tail


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


def relay(pieces: list[bytes], *, added: bool) -> tuple[bytes, EventStream]:
    stream = EventStream(added)
    out = b"".join([stream.feed(piece) for piece in pieces])
    return out + stream.finish(), stream


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_wherever_a_stream_is_cut_the_usage_event_alone_is_missing(cut: int) -> None:
    out, stream = relay([piece for piece in (STREAM[:cut], STREAM[cut:]) if piece], added=True)
    assert out == CLIENT
    assert stream.usage == Usage(7, 2, 3)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_cut_into_any_pieces_the_bytes_are_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert relay(pieces, added=True)[0] == CLIENT
    assert relay(pieces, added=False)[0] == STREAM


def test_one_byte_at_a_time_counts_the_same_events() -> None:
    pieces = [STREAM[i : i + 1] for i in range(len(STREAM))]
    out, stream = relay(pieces, added=True)
    assert (out, stream.events, stream.usage) == (CLIENT, 3, Usage(7, 2, 3))


def test_carriage_returns_are_relayed_as_they_came() -> None:
    crlf = STREAM.replace(b"\n", b"\r\n")
    assert relay([crlf], added=True)[0] == CLIENT.replace(b"\n", b"\r\n")


def test_usage_beside_a_choice_is_read_and_kept() -> None:
    last = event(choices=[{"delta": {}, "finish_reason": "stop"}], usage={"prompt_tokens": 1, "completion_tokens": 2})
    out, stream = relay([last, DONE], added=True)
    assert (out, stream.usage) == (last + DONE, Usage(1, 0, 2))


def test_a_null_usage_in_every_event_is_no_usage() -> None:
    chunk = event(choices=[], usage=None)
    out, stream = relay([chunk], added=True)
    assert (out, stream.usage) == (chunk, None)


def test_an_event_without_an_end_is_given_back_at_the_end() -> None:
    out, _ = relay([TOKENS[0] + b'data: {"half'], added=True)
    assert out == TOKENS[0] + b'data: {"half'


def test_an_event_too_long_to_hold_passes_and_the_next_is_read_again() -> None:
    long = b"data: " + b"x" * (MAX_EVENT_BYTES + 10)
    stream = EventStream(True)
    first = stream.feed(long)
    assert len(first) == len(long) - 3
    assert stream.boundary() == b"\n\n"
    rest = stream.feed(b"yy\n") + stream.feed(b"\n" + USAGE + DONE)
    assert first + rest == long + b"yy\n\n" + DONE
    assert stream.usage == Usage(7, 2, 3)


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage":{"prompt_tokens":5,"completion_tokens":1}}', Usage(5, 0, 1)),
        (b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":null}}', Usage(5, 0, 0)),
        (b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":9}}}', Usage(5, 5, 0)),
        (b'{"usage":{"prompt_tokens":-5}}', None),
        (b'{"usage":null}', None),
        (b"{}", None),
        (b"not json", None),
        (b'{"a":' + b"[" * 100_000, None),
    ],
)
def test_the_usage_of_a_body(body: bytes, usage: Usage | None) -> None:
    assert usage_of_body(body) == usage


def test_the_usage_of_a_long_body_is_found_in_its_tail_and_not_in_its_text() -> None:
    fake = json.dumps({"text": '"usage": {"prompt_tokens": 99}'})[1:-1].encode()
    tail = BodyTail()
    for _ in range(2000):
        tail.feed(b"xyz")
    tail.feed(
        b'..."usage" : {"prompt_tokens": 8, "x": "}", "prompt_tokens_details": {"cached_tokens": 1}}, ' + fake + b"}"
    )
    assert tail.usage == Usage(8, 1, 0)
    assert usage_of_tail(fake) is None
