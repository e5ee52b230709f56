"""The client's end on a fake transport and clock: framing, limits, order of answers."""

import pytest

from m3_mock.client_bench import CHUNKED, GET, LIMITS, POST, FakeApplication, FakeTransport, bench, statuses
from m3_router.errors import Refusal
from m3_router.http.client_end import ClientConnection
from m3_router.http.request_reader import MAX_HEADERS


@pytest.mark.parametrize("message", [GET, POST, CHUNKED])
def test_a_message_may_be_cut_anywhere(message: bytes) -> None:
    for cut in range(1, len(message)):
        one = bench()
        assert statuses(one.feed(message[:cut], message[cut:])) == [200]
        assert one.application.bodies == [b"" if message is GET else b"hello"]
    byte_by_byte = bench()
    assert statuses(byte_by_byte.feed(*(message[i : i + 1] for i in range(len(message))))) == [200]
    assert byte_by_byte.connections.buffered_bytes == 0


def test_a_request_is_sorted_into_what_is_read_and_what_goes_on() -> None:
    one = bench()
    one.feed(POST)
    (request,) = one.application.served
    assert (request.method, request.path, request.post_line) == (b"POST", b"/a", b"POST /a?q=1 HTTP/1.1\r\n")
    assert request.head.forward == b"X-Thing: v\r\n"
    assert request.head.known == {b"host": b"r"}
    assert request.context == "context"


def test_an_answer_is_one_write() -> None:
    one = bench()
    one.feed(POST)
    assert one.transport.writes == 1


def test_pipelined_requests_are_served_one_at_a_time_and_in_order() -> None:
    one = bench(FakeApplication(holds=True))
    assert one.feed(POST + GET + GET) == b""
    assert len(one.application.served) == 1
    one.connection.respond_json(b'{"n":1}')
    one.loop.run()
    assert len(one.application.served) == 2
    one.connection.respond_json(b'{"n":2}')
    one.loop.run()
    one.connection.respond_json(b'{"n":3}')
    assert [part[:7] for part in one.transport.written.split(b"\r\n\r\n")[1:]] == [b'{"n":1}', b'{"n":2}', b'{"n":3}']


def test_a_request_does_not_overtake_one_that_has_its_turn_next() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(POST, POST.replace(b"hello", b"later"))
    one.connection.respond_json(b"1")  # the second request's turn comes with the next round of the loop
    one.connection.data_received(POST.replace(b"hello", b"third"))
    one.loop.run()
    one.connection.respond_json(b"2")
    one.loop.run()
    assert one.application.bodies == [b"hello", b"later", b"third"]


@pytest.mark.parametrize("message", [POST, GET, CHUNKED])
def test_a_request_like_the_last_may_be_cut_anywhere_and_followed_by_anything(message: bytes) -> None:
    for cut in range(1, len(message)):
        one = bench()
        one.feed(POST, POST, message[:cut], message[cut:], POST, message + POST, POST)
        body = b"" if message is GET else b"hello"
        assert one.application.bodies == [b"hello", b"hello", body, b"hello", body, b"hello", b"hello"]
        assert one.connections.buffered_bytes == 0


def test_a_client_that_sends_far_ahead_has_to_wait() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(POST)
    for _ in range(60):
        one.feed(GET)
    assert one.transport.is_reading_paused
    for _ in range(61):
        one.connection.respond_json(b"{}")
        one.loop.run()
    assert not one.transport.is_reading_paused
    assert statuses(one.transport.written) == [200] * 61


MALFORMED = [
    b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 5, 5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: +5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 5 5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nX: a\r\n b\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nX : a\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nX: a\nY: b\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nX: a\rb\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nX: a\0b\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nHost: s\r\n\r\n",
    b"GET /a HTTP/1.1\r\nX: y\r\n\r\n",
    b"GET /a b HTTP/1.1\r\nHost: r\r\n\r\n",
    b"GET /a HTTP/1.1\nHost: r\n\n",
    b"POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /a HTTP/1.1\r\nHost: r\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"CONNECT r:80 HTTP/1.1\r\nHost: r\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@pytest.mark.parametrize("data", MALFORMED)
def test_what_could_be_read_in_two_ways_is_400_and_the_end_of_the_connection(data: bytes) -> None:
    one = bench()
    written = one.feed(data + GET)
    assert statuses(written) == [400]
    assert b"connection: close" in written
    assert b'"code":"malformed_http"' in written
    assert one.application.served == []
    assert one.transport.is_half_closed
    assert one.feed(GET) == b""
    assert one.connections.buffered_bytes == 0


def test_another_version_of_http_is_505() -> None:
    assert statuses(bench().feed(b"GET /a HTTP/2.0\r\nHost: r\r\n\r\n")) == [505]


@pytest.mark.parametrize(
    ("target", "path", "post_line"),
    [
        (b"http://other/a/b?c=d", b"/a/b", b"POST /a/b?c=d HTTP/1.1\r\n"),
        (b"http://other/a/b", b"/a/b", b"POST /a/b HTTP/1.1\r\n"),
        (b"http://other/a/b?", b"/a/b", b"POST /a/b HTTP/1.1\r\n"),
        (b"http://user@other:80/a", b"/a", b"POST /a HTTP/1.1\r\n"),
    ],
)
def test_a_target_in_absolute_form_is_its_path(target: bytes, path: bytes, post_line: bytes) -> None:
    one = bench()
    assert statuses(one.feed(b"GET %b HTTP/1.1\r\nHost: r\r\n\r\n" % target)) == [200]
    assert (one.application.served[0].path, one.application.served[0].post_line) == (path, post_line)


@pytest.mark.parametrize("target", [b"http://other", b"http://other?c=d", b"http://[::1"])
def test_a_target_without_a_path_is_400(target: bytes) -> None:
    one = bench()
    assert statuses(one.feed(b"GET %b HTTP/1.1\r\nHost: r\r\n\r\n" % target)) == [400]
    assert one.application.served == []


def test_a_head_of_too_many_lines_is_431_however_short_they_are() -> None:
    line = b"a:\r\n"
    head = b"GET /a HTTP/1.1\r\nHost: r\r\n"
    assert len(head + line * MAX_HEADERS) < LIMITS.head_bytes
    assert statuses(bench().feed(head + line * (MAX_HEADERS - 1) + b"\r\n")) == [200]
    assert statuses(bench().feed(head + line * MAX_HEADERS + b"\r\n")) == [431]


def test_a_head_over_the_limit_is_431_with_the_limit() -> None:
    one = bench()
    written = one.feed(b"GET /a HTTP/1.1\r\nHost: r\r\nX: " + b"y" * 2000)
    assert statuses(written) == [431]
    assert b"limit of 1024 bytes" in written
    whole = bench().feed(b"GET /a HTTP/1.1\r\nHost: r\r\nX: " + b"y" * 2000 + b"\r\n\r\n")
    assert statuses(whole) == [431]


def test_a_small_head_with_a_large_body_in_one_read_is_not_a_large_head() -> None:
    body = b"x" * 1024
    assert statuses(bench().feed(b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 1024\r\n\r\n" + body)) == [200]


def test_a_body_over_the_limit_is_dropped_answered_and_the_connection_goes_on() -> None:
    for framing in (
        b"Content-Length: 2000\r\n\r\n" + b"x" * 2000,
        b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n",
    ):
        one = bench()
        written = one.feed(b"POST /a HTTP/1.1\r\nHost: r\r\n" + framing, GET)
        assert statuses(written) == [413, 200]
        assert b"limit of 1024 bytes" in written
        assert one.connections.buffered_bytes == 0


def test_a_body_far_over_the_limit_ends_the_connection() -> None:
    one = bench()
    written = one.feed(b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 99999\r\n\r\n", *[b"x" * 1000] * 6)
    assert statuses(written) == [413]
    assert b"connection: close" in written
    assert one.transport.is_half_closed


def test_bodies_of_all_clients_together_are_bounded() -> None:
    limits = LIMITS.model_copy(update={"buffered_bytes": 1500})
    application = FakeApplication(holds=True)
    one = bench(application, limits)
    body = b"POST /a HTTP/1.1\r\nHost: r\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000
    one.feed(body)
    other, transport = ClientConnection(application, one.connections, one.loop), FakeTransport()
    other.connection_made(transport)
    other.data_received(body)
    assert statuses(transport.written) == [503]
    assert b"retry-after: 1" in transport.written
    one.connection.respond_json(b"{}")
    assert one.connections.buffered_bytes == 0
    other.data_received(GET)
    assert len(application.served) == 2


def test_a_refused_head_gets_its_answer_after_its_body_which_is_not_kept() -> None:
    one = bench(FakeApplication(refusal=Refusal(401, "no")))
    assert one.feed(POST[:-2]) == b""
    assert one.connections.buffered_bytes == 0
    assert statuses(one.feed(POST[-2:])) == [401]
    one.application.refusal = None
    assert statuses(one.feed(GET)) == [200]


def test_a_client_that_waits_for_leave_to_send_gets_it_or_the_refusal() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: r\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    one = bench()
    assert one.feed(head) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert statuses(one.feed(b"hello")) == [200]
    refused = bench(FakeApplication(refusal=Refusal(401, "no")))
    written = refused.feed(head)
    assert statuses(written) == [401]
    assert b"connection: close" in written


def test_connection_close_is_obeyed_and_what_follows_it_is_ignored() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(b"GET /a HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n" + GET)
    one.connection.respond_json(b"{}")
    assert statuses(one.transport.written) == [200]
    assert b"connection: close" in one.transport.written
    assert one.transport.is_closed
    assert one.application.refused_with == []


def test_http_1_0_gets_no_chunks_and_stays_only_if_it_asks() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    one.connection.start_response(b"HTTP/1.1 200 OK\r\n", b"a")
    one.connection.write(b"b")
    one.connection.end(b"c")
    assert one.transport.written == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"
    assert one.transport.is_closed
    kept = bench()
    assert b"connection: keep-alive" in kept.feed(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert not kept.transport.is_closed
    closed = bench()
    closed.feed(b"GET /a HTTP/1.0\r\n\r\n")
    assert closed.transport.is_closed


def test_an_answer_of_unknown_length_is_chunked() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(GET)
    one.connection.start_response(b"HTTP/1.1 200 OK\r\n", b"a" * 17)
    one.connection.write(b"")
    one.connection.end()
    assert one.transport.written == (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n11\r\n" + b"a" * 17 + b"\r\n0\r\n\r\n"
    )


def test_an_answer_that_is_cut_has_no_last_chunk_and_closes() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(GET)
    one.connection.start_response(b"HTTP/1.1 200 OK\r\n", b"")
    one.connection.cut(b"oh")
    assert one.transport.written.endswith(b"2\r\noh\r\n")
    assert one.transport.is_closed


def test_head_gets_the_length_and_no_body() -> None:
    one = bench()
    written = one.feed(b"HEAD /a HTTP/1.1\r\nHost: r\r\n\r\n")
    assert b"content-length: 2" in written
    assert written.endswith(b"\r\n\r\n")


def test_a_start_like_the_last_one_is_not_judged_again_and_another_one_is() -> None:
    one = bench()
    one.feed(POST, POST.replace(b"Content-Length: 5", b"Content-Length: 2").replace(b"hello", b"no"), POST)
    assert one.application.accepted == 1
    assert one.application.bodies == [b"hello", b"no", b"hello"]
    for other in (
        POST.replace(b"X-Thing: v", b"X-Thing: w"),
        POST.replace(b"/a?", b"/b?"),
        POST.replace(b"POST", b"PUT"),
        POST.replace(b"X-Thing: v", b"X-Thing: v\r\nConnection: keep-alive"),
    ):
        before = one.application.accepted
        one.feed(other)
        assert one.application.accepted == before + 1
    assert [request.method for request in one.application.served[-2:]] == [b"PUT", b"POST"]


def test_what_was_refused_is_judged_again() -> None:
    one = bench(FakeApplication(refusal=Refusal(401, "no")))
    one.feed(POST, POST)
    assert one.application.accepted == 2


def test_a_length_over_the_limit_is_seen_also_behind_an_accepted_start() -> None:
    one = bench()
    large = POST.replace(b"Content-Length: 5", b"Content-Length: 2000").replace(b"hello", b"x" * 2000)
    assert statuses(one.feed(POST, large, POST)) == [200, 413, 200]


def test_the_same_headers_in_http_1_0_are_another_start() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(GET)
    one.connection.respond_json(b"{}")
    one.feed(GET.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert one.application.served[1].is_http_1_0
