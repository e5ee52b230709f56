"""Bytes in any pieces mean what they mean in one: the readers of both ends, and the reader of event streams.

hypothesis makes messages out of the fuzz corpus, changes them, and cuts them; the oracle is the same code fed once.
`M3_FUZZ_EXAMPLES` sets how many it tries of each (`make fuzz-router` tries many, and anew each time).
"""

import asyncio
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from m3_fuzz.corpus import ANSWERS, BODIES, EVENTS, REQUESTS
from m3_fuzz.mutation import Mutator
from m3_router.bodies import usage
from m3_router.bodies.dialects import BY_PATH, CHAT, Dialect
from m3_router.bodies.request import parse
from m3_router.bodies.usage import EventStream
from m3_router.config import LimitSettings
from m3_router.errors import Refusal
from m3_router.http.connections import Connections
from m3_router.http.messages import Answer, Request, Start
from m3_router.http.request_reader import RequestReader
from m3_router.http.worker_end import WorkerConnection, WorkerConnections
from m3_router.workers.workers import WorkerAddress

SHORT_BYTES = 3000
ASKED = os.environ.get("M3_FUZZ_EXAMPLES")
FUZZED = settings(
    max_examples=int(ASKED or 500),
    derandomize=ASKED is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LIMITS = LimitSettings(body_bytes=2**20, head_bytes=2**16, buffered_bytes=2**22)
DIALECTS = sorted(BY_PATH.values(), key=lambda dialect: dialect.name)


def changed(corpus: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """A member of the corpus, as it is or changed by the mutator, or plain bytes."""
    short = [data for data in corpus if len(data) <= SHORT_BYTES]

    def mutated(seed: int) -> bytes:
        return Mutator(random.Random(seed), short).one()[:SHORT_BYTES]

    return st.one_of(st.sampled_from(short), st.integers(0, 2**32).map(mutated), st.binary(max_size=200))


@st.composite
def cut(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> list[bytes]:
    """The bytes in pieces, none of them empty."""
    data = draw(whole)
    at = sorted(draw(st.sets(st.integers(1, max(len(data) - 1, 1)), max_size=12)))
    ends = [0, *(one for one in at if one < len(data)), len(data)]
    return [data[begin:end] for begin, end in pairwise(ends) if end > begin]


def several(corpus: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """One to three of them, one after the other."""
    return st.lists(changed(corpus), min_size=1, max_size=3).map(b"".join)


# ---- requests


@dataclass
class Requests:
    """Application and sink of a reader: takes everything, and writes down what came."""

    seen: list[tuple[bytes, bytes, bytes, int]] = field(default_factory=list)
    continues: int = 0

    def accept(self, start: Start) -> object:
        if start.path == b"/tokenize":
            raise Refusal(401, "not here")
        return None

    def serve(self, request: Request, connection: object) -> None:
        raise AssertionError("a reader does not serve")

    def refused(self, request: Request | None, refusal: Refusal) -> bytes:
        raise AssertionError("a reader does not answer")

    def take(self, request: Request) -> None:
        status = 200 if request.refusal is None else request.refusal.status
        self.seen.append((request.method, request.path, request.body, status))
        self.connections.release(request)

    def expects_continue(self, request: Request) -> None:
        self.continues += 1

    connections: Connections = field(default_factory=lambda: Connections(LIMITS, lambda: 0.0))


def read_requests(pieces: list[bytes]) -> tuple[object, ...]:
    """What a reader makes of them: the requests, and the refusal that ended it, if one did."""
    taken = Requests()
    reader = RequestReader(taken, taken.connections, taken)
    ended: tuple[int, str | None] | None = None
    for piece in pieces:
        try:
            reader.feed(piece, is_alone=True)
        except Refusal as refusal:
            ended = (refusal.status, refusal.code)
            break
    state = (reader.is_idle, reader.is_in_body)
    reader.drop()
    assert taken.connections.buffered_bytes == 0
    return taken.seen, taken.continues, ended, state if ended is None else None


@given(cut(several(REQUESTS)))
@FUZZED
def test_requests_may_be_cut_anywhere(pieces: list[bytes]) -> None:
    assert read_requests(pieces) == read_requests([b"".join(pieces)])


@given(st.sampled_from([data for data in REQUESTS if len(data) <= SHORT_BYTES]), cut(several(REQUESTS)))
@FUZZED
def test_requests_after_one_that_was_learnt_may_be_cut_anywhere(first: bytes, pieces: list[bytes]) -> None:
    learnt = [first, first]
    assert read_requests([*learnt, *pieces]) == read_requests([*learnt, b"".join(pieces)])


# ---- answers


class Transport(asyncio.Transport):
    """Takes everything, and remembers whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def write(self, data: bytes) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True


@dataclass
class Answers:
    """Who asked: gets the answer in whatever pieces it comes."""

    statuses: list[int] = field(default_factory=list)
    types: list[bytes | None] = field(default_factory=list)
    body: bytes = b""
    completed: int = 0
    lost: int = 0

    def worker_answered(self, answer: Answer | None, body: bytes, is_complete: bool) -> None:
        if answer is not None:
            self.statuses.append(answer.status)
            self.types.append(answer.head.known.get(b"content-type"))
        self.body += body
        self.completed += is_complete

    def worker_lost(self, reason: str) -> None:
        self.lost += 1


@pytest.fixture(scope="module")
def no_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.close()  # nothing here dials
    return loop


def read_answer(loop: asyncio.AbstractEventLoop, learnt: bytes | None, pieces: list[bytes]) -> tuple[object, ...]:
    """What reaches whoever asked, after the worker has closed."""
    connection = WorkerConnection(WorkerConnections(loop), WorkerAddress(uid="u", name="w", host="h", port=1))
    transport = Transport()
    connection.connection_made(transport)
    if learnt is not None:
        for _ in range(2):
            if not connection.is_lost:
                connection.send(b"head", b"", Answers())
                connection.data_received(learnt)
    if connection.is_lost:
        return ()
    sink = Answers()
    connection.send(b"head", b"", sink)
    for piece in pieces:
        if not transport.is_closed:
            connection.data_received(piece)
    connection.connection_lost(None)
    assert sink.completed + sink.lost == 1
    if sink.lost:  # how much of a broken answer came before its fault was found depends on the pieces
        return ("lost",)
    return sink.statuses, sink.types, sink.body


@given(cut(changed(ANSWERS)))
@FUZZED
def test_an_answer_may_be_cut_anywhere(no_loop: asyncio.AbstractEventLoop, pieces: list[bytes]) -> None:
    assert read_answer(no_loop, None, pieces) == read_answer(no_loop, None, [b"".join(pieces)])


@given(st.sampled_from(ANSWERS[:2]), cut(changed(ANSWERS)))
@FUZZED
def test_an_answer_after_one_that_was_learnt_may_be_cut_anywhere(
    no_loop: asyncio.AbstractEventLoop, learnt: bytes, pieces: list[bytes]
) -> None:
    assert read_answer(no_loop, learnt, pieces) == read_answer(no_loop, learnt, [b"".join(pieces)])


# ---- events


def relay(make: Callable[[], EventStream], pieces: list[bytes]) -> tuple[object, ...]:
    """What the client gets in all, and what was read on the way."""
    stream = make()
    relayed = b"".join(stream.feed(piece) for piece in pieces)
    relayed += stream.finish()
    # Where line ends are mixed, how many events are counted depends on the pieces: it is a lower bound.
    events = None if b"\r" in b"".join(pieces) else stream.events
    return relayed, stream.usage, events, stream.is_complete, stream.failure


EVENTS_IN_PIECES = cut(st.lists(changed(EVENTS), max_size=6).map(b"".join))


@given(st.sampled_from(DIALECTS), st.booleans(), st.booleans(), EVENTS_IN_PIECES)
@FUZZED
def test_events_may_be_cut_anywhere(
    dialect: Dialect, is_usage_added: bool, include_cost: bool, pieces: list[bytes]
) -> None:
    # A worker that goes on after saying that it is done is read as one that has not, if both come in one read.
    assume(b"[DONE]" not in b"".join(pieces).rstrip()[:-6])

    def make() -> EventStream:
        stream = EventStream(dialect, is_usage_added, include_cost)
        stream.cost = lambda used: used.input_tokens + 3 * used.output_tokens
        return stream

    assert relay(make, pieces) == relay(make, [b"".join(pieces)])


@given(EVENTS_IN_PIECES)
@FUZZED
def test_events_too_long_to_hold_pass_as_they_came(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assume(b"error" not in whole)  # an error is held until the end, and with it what would be a false [DONE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(usage, "MAX_EVENT_BYTES", 64)
        stream = EventStream(CHAT, False, False)
        relayed = b"".join(stream.feed(piece) for piece in pieces) + stream.finish()
    assert relayed == whole


# ---- bodies


@given(st.sampled_from(DIALECTS), changed(BODIES))
@FUZZED
def test_whatever_a_body_is_it_is_read_or_refused_with_words(dialect: Dialect, body: bytes) -> None:
    try:
        view = parse(dialect, body)
    except Refusal as refusal:
        said = json.loads(refusal.body())["error"]["message"]
        assert (refusal.status, bool(said)) == (400, True)  # noqa: PT017 - it need not be refused
        return
    before, after = members_of(body), members_of(view.body)
    assert {name for name in after if name not in before or after[name] != before[name]} <= {"stream_options"}
    assert before.keys() <= after.keys()


def members_of(body: bytes) -> dict[str, object]:
    """Of an object whose strings need not be UTF-8: JSON's structure is ASCII."""
    members = json.loads(body.decode("latin-1"), parse_int=str, parse_float=str)
    assert isinstance(members, dict)
    return members
