"""The worker's end on a fake transport: answers in pieces, broken answers, reuse."""

import asyncio

import pytest

from m3_router.http.worker_end import (
    MAX_HEAD_BYTES,
    MAX_IDLE_PER_WORKER,
    Answer,
    AnswerSink,
    WorkerConnection,
    WorkerConnections,
)
from m3_router.workers.workers import WorkerAddress

ADDRESS = WorkerAddress(uid="u", name="w", host="127.0.0.1", port=1)
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Other: o\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_closed = self.is_aborted = self.is_paused = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def writelines(self, parts: object) -> None:
        self.writes.extend(parts)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Sink(AnswerSink):
    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.body = b""
        self.calls = self.completed = 0
        self.lost: list[str] = []

    def worker_answered(self, answer: Answer | None, body: bytes, is_complete: bool) -> None:
        self.calls += 1
        if answer is not None:
            self.answers.append(answer)
        self.body += body
        self.completed += is_complete

    def worker_lost(self, reason: str) -> None:
        self.lost.append(reason)


class Bench:
    def __init__(self) -> None:
        self.connections = WorkerConnections(asyncio.new_event_loop())
        self.connections._loop.close()  # nothing here dials
        self.connection = WorkerConnection(self.connections, ADDRESS)
        self.transport = FakeTransport()
        self.connection.connection_made(self.transport)
        self.sink = Sink()

    def ask(self, *pieces: bytes, body: bytes = b"b") -> Sink:
        self.sink = Sink()
        self.connection.send(b"head", body, self.sink)
        for piece in pieces:
            self.connection.data_received(piece)
        return self.sink


@pytest.mark.parametrize("message", [JSON, CHUNKED])
def test_an_answer_may_be_cut_anywhere(message: bytes) -> None:
    for cut in range(1, len(message)):
        one = Bench()
        sink = one.ask(message[:cut], message[cut:])
        assert (len(sink.answers), sink.body, sink.completed, sink.lost) == (1, b"hello", 1, [])
        assert one.connections.take(ADDRESS) is one.connection


@pytest.mark.parametrize("message", [JSON, CHUNKED])
def test_an_answer_like_one_before_may_be_cut_anywhere(message: bytes) -> None:
    for cut in range(1, len(message)):
        one = Bench()
        for pieces in ((JSON,), (JSON,), (message[:cut], message[cut:]), (JSON,)):
            sink = one.ask(*pieces)
            assert (len(sink.answers), sink.body, sink.completed, sink.lost) == (1, b"hello", 1, [])
            assert one.connections.take(ADDRESS) is one.connection


def test_bytes_after_an_answer_like_one_before_end_the_connection() -> None:
    one = Bench()
    one.ask(JSON)
    sink = one.ask(JSON + b"HTTP/1.1 200 OK\r\n")
    assert (sink.completed, sink.body) == (1, b"hello")
    assert one.transport.is_closed or one.ask(JSON).lost


def test_a_whole_answer_in_one_read_is_one_call() -> None:
    sink = Bench().ask(JSON)
    assert sink.calls == 1
    assert sink.answers[0].status == 200
    assert sink.answers[0].head.forward == b"X-Other: o\r\n"
    assert sink.answers[0].head.known[b"content-type"] == b"application/json"


def test_chunks_of_one_read_are_handed_over_together() -> None:
    sink = Bench().ask(CHUNKED[:47], CHUNKED[47:])
    assert sink.calls == 2


def test_a_request_is_one_write_and_a_long_body_is_not_copied() -> None:
    one = Bench()
    one.ask(JSON)
    assert one.transport.writes == [b"headb"]
    body = b"x" * 100_000
    one.ask(JSON, body=body)
    assert one.transport.writes[1] == b"head"
    assert one.transport.writes[2] is body


def test_a_connection_is_used_again_only_while_the_worker_keeps_it() -> None:
    kept = Bench()
    kept.ask(JSON)
    assert kept.connection.is_reused
    kept.ask(JSON)
    assert kept.connections.take(ADDRESS) is not None
    for last in (
        JSON.replace(b"X-Other: o", b"Connection: close"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        JSON + b"more",
    ):
        one = Bench()
        assert one.ask(last).completed == 1
        assert one.transport.is_closed or one.transport.is_aborted
        assert one.connections.take(ADDRESS) is None


def test_an_interim_answer_is_not_the_answer() -> None:
    sink = Bench().ask(b"HTTP/1.1 100 Continue\r\n\r\n" + JSON)
    assert [answer.status for answer in sink.answers] == [200]
    assert (sink.body, sink.completed) == (b"hello", 1)


def test_without_a_length_the_answer_ends_with_its_connection() -> None:
    one = Bench()
    sink = one.ask(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo")
    assert sink.completed == 0
    one.connection.connection_lost(None)
    assert (sink.body, sink.completed, sink.lost) == (b"hello", 1, [])


@pytest.mark.parametrize("received", [b"", JSON[:20], JSON[:-1], CHUNKED[:-2]])
def test_a_connection_that_is_lost_in_an_answer_is_told_once(received: bytes) -> None:
    one = Bench()
    sink = one.ask(*([received] if received else []))
    one.connection.connection_lost(ConnectionResetError("reset"))
    assert (sink.completed, sink.lost) == (0, ["it closed the connection: reset"])


@pytest.mark.parametrize(
    ("received", "reason"),
    [
        (b"nonsense\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Type: b\r\n\r\n", "more than once"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_HEAD_BYTES, "the head of its answer exceeds 65536 bytes"),
    ],
)
def test_what_cannot_be_read_is_a_failure_and_closes(received: bytes, reason: str) -> None:
    one = Bench()
    sink = one.ask(received)
    assert len(sink.lost) == 1
    assert reason in sink.lost[0]
    assert one.transport.is_aborted
    one.connection.connection_lost(None)
    assert len(sink.lost) == 1


def test_bytes_that_answer_nothing_close_the_connection() -> None:
    one = Bench()
    one.ask(JSON)
    one.connection.data_received(JSON)
    assert one.transport.is_aborted
    assert one.connections.take(ADDRESS) is None


def test_an_aborted_request_is_heard_of_no_more() -> None:
    one = Bench()
    sink = one.ask(JSON[:-2])
    one.connection.abort()
    one.connection.connection_lost(None)
    assert one.transport.is_aborted
    assert (sink.completed, sink.lost) == (0, [])


def test_an_idle_connection_that_is_lost_is_not_taken() -> None:
    one = Bench()
    one.ask(JSON)
    one.connection.connection_lost(None)
    assert one.connections.take(ADDRESS) is None


def test_pausing_is_harmless_twice() -> None:
    one = Bench()
    one.ask(JSON[:-2])
    one.connection.pause()
    one.connection.pause()
    assert one.transport.is_paused
    one.connection.resume()
    one.connection.resume()
    assert not one.transport.is_paused


def test_idle_connections_are_bounded_and_all_closed_with_their_worker() -> None:
    one = Bench()
    transports = []
    for _ in range(MAX_IDLE_PER_WORKER + 1):
        connection, transport = WorkerConnection(one.connections, ADDRESS), FakeTransport()
        connection.connection_made(transport)
        one.connections.put(connection)
        transports.append(transport)
    assert [transport.is_aborted for transport in transports] == [True] + [False] * MAX_IDLE_PER_WORKER
    one.connections.close_worker(ADDRESS)
    assert all(transport.is_aborted for transport in transports)
    assert one.connections.take(ADDRESS) is None
